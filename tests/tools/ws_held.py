"""URL [echo]: a WebSocket that says `open` once a message has come back, and `ended` when it has been closed. With `echo` it sends
each line of its standard input and says what comes back."""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def main():
    async with connect(sys.argv[1], open_timeout=60) as connection:
        await connection.send("hello")
        await connection.recv()
        print("open", flush=True)
        try:
            while sys.argv[2:]:
                await connection.send(await asyncio.to_thread(sys.stdin.readline))
                print("echo", await connection.recv(), flush=True)
            await connection.recv()
        except ConnectionClosed:
            print("ended", flush=True)


asyncio.run(main())
