"""CERTIFICATE KEY: echoes WebSocket messages over TLS. Says `ready PORT`, then what arrives."""

import asyncio
import ssl
import sys

from websockets.asyncio.server import serve


async def echo(connection):
    print("opened", connection.request.path, flush=True)
    async for message in connection:
        print("message", len(message), flush=True)
        await connection.send(message)


async def main():
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*sys.argv[1:3])
    async with serve(echo, "127.0.0.1", 0, ssl=tls, max_size=None) as server:
        print("ready", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


asyncio.run(main())
