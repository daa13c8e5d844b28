"""PORT WHAT [COUNT]: one agent that takes what it can of what all share; says `ready` when it has it, and goes on until its
standard input ends. Says `cut` of each flood whose connection was ended."""

import asyncio
import itertools
import resource
import socket
import ssl
import struct
import sys

from h2.connection import H2Connection

port, what = int(sys.argv[1]), sys.argv[2]
count = int(sys.argv[3]) if len(sys.argv) > 3 else 1

FRAMES = {
    "priority": (2, 0, 1, struct.pack(">IB", 3, 1)),
    "window-update": (8, 0, 0, struct.pack(">I", 1)),
    "ping": (6, 0, 0, bytes(8)),
    "settings": (4, 0, 0, b""),
}


def frame(kind, flags, stream, body):
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def tls(*protocols):
    context = ssl.create_default_context()
    context.set_alpn_protocols(protocols)
    return context


def hello(name):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = CONTEXT.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()


def ready():
    print("ready", flush=True)


CONTEXT = tls("h2")


async def hellos(hello):
    """`count` loops, each of which sends one hello after another and reads the beginning of the answer. Ready when there have
    been as many answers as there are loops."""
    answers = itertools.count(1)

    async def one():
        while True:
            try:
                reader, writer = await asyncio.open_connection("origin.test", port)
                writer.write(hello())
                await reader.read(1)
                writer.transport.abort()
                if next(answers) == count:
                    ready()
            except OSError:
                await asyncio.sleep(0)

    await asyncio.gather(*(one() for _ in range(count)))


async def connections(said):
    """`count` connections that say this, and nothing more."""
    held = []
    for _ in range(count):
        try:
            reader, writer = await asyncio.open_connection("origin.test", port)
            writer.write(said)
            held.append((reader, writer))
        except OSError:
            pass
    ready()
    return held


async def connection():
    return await asyncio.open_connection("origin.test", port, ssl=CONTEXT, server_hostname="origin.test")


async def uploads():
    """`count` connections, each with bodies that nobody reads, as far as the windows let them."""
    held = []
    for _ in range(count):
        reader, writer = await connection()
        h2 = H2Connection()
        h2.initiate_connection()
        writer.write(h2.data_to_send())
        h2.receive_data(await reader.read(65536))
        left = h2.outbound_flow_control_window
        for index in range(min(8, h2.remote_settings.max_concurrent_streams)):
            stream = 1 + 2 * index
            head = {":method": "POST", ":scheme": "https", ":authority": f"origin.test:{port}", ":path": "/v1/hold"}
            h2.send_headers(stream, head.items())
            writer.write(h2.data_to_send())
            room = min(left, h2.remote_settings.initial_window_size)
            left -= room
            while room > 0:
                part = min(room, h2.max_outbound_frame_size)
                room -= part
                writer.write(frame(0, 0, stream, bytes(part)))
            await writer.drain()
        held.append((reader, writer))
    ready()
    return held


async def flood(kind):
    """`count` connections that send nothing but these frames."""
    frames = frame(*FRAMES[kind]) * 512

    async def one():
        reader, writer = await connection()
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))

        async def drain():
            while await reader.read(65536):
                pass

        reading = asyncio.ensure_future(drain())
        try:
            while not reading.done():
                writer.write(frames)
                await writer.drain()
                # Draining alone lets nobody else run.
                await asyncio.sleep(0)
        except OSError:
            pass
        print("cut", flush=True)

    await asyncio.gather(*(one() for _ in range(count)))


async def main():
    if what == "hellos":
        always = hello("origin.test")
        going = asyncio.ensure_future(hellos(lambda: always))
    elif what == "names":
        numbers = itertools.count()
        going = asyncio.ensure_future(hellos(lambda: hello(f"name-{next(numbers)}.test")))
    elif what == "connections":
        going = asyncio.ensure_future(connections(b""))
    elif what == "handshakes":
        going = asyncio.ensure_future(connections(hello("origin.test")))
    elif what == "uploads":
        going = asyncio.ensure_future(uploads())
    else:
        going = asyncio.ensure_future(flood(what))
        ready()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    going.cancel()


_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
try:
    asyncio.run(main())
except asyncio.CancelledError:
    pass
