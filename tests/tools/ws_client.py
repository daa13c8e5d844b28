"""URL: opens a WebSocket, has a text, a binary and a large message echoed, and closes it. Or says `refused STATUS BODY`.

On one task: the library's other client reads and writes one TLS connection in two threads, and about one in a thousand of its
requests is then never sent (Python 3.11, seen without AgentGuard)."""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus


async def main():
    try:
        async with connect(sys.argv[1], open_timeout=60, max_size=None, compression=None) as connection:
            for message in ("hello", b"\x00\xff", "x" * 1_000_000):
                await connection.send(message)
                assert await asyncio.wait_for(connection.recv(), 60) == message
                print("echoed", len(message), flush=True)
        print("closed", connection.close_code)
    except InvalidStatus as error:
        print("refused", error.response.status_code, error.response.body.decode())


asyncio.run(main())
