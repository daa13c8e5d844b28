"""ADDRESS [DELAY]: a resolver on ADDRESS:53 that answers A questions with 192.0.2.9 and has nothing else, after DELAY seconds;
it says each name it was asked for."""

import asyncio
import socket
import struct
import sys

A = 1
SO_RCVBUFFORCE = 33
address, delay = sys.argv[1], float((sys.argv[2:] or ["0"])[0])


class Resolver(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
        # For bursts; asyncio makes the socket with what the host gives by default.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        print("ready", flush=True)

    def datagram_received(self, data, client):
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode("latin-1"))
            at += 1 + data[at]
        print("asked", ".".join(labels), flush=True)
        (kind,) = struct.unpack_from("!H", data, at + 1)
        answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x09" if kind == A else b""
        head = data[:2] + b"\x81\x80" + struct.pack("!4H", 1, bool(answer), 0, 0)
        message = head + data[12 : at + 5] + answer
        asyncio.get_running_loop().call_later(delay, self.transport.sendto, message, client)


async def serve():
    await asyncio.get_running_loop().create_datagram_endpoint(Resolver, (address, 53))
    await asyncio.Event().wait()


asyncio.run(serve())
