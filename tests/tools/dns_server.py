"""ADDRESS [DELAY]: a resolver on ADDRESS:53 that answers A questions with 192.0.2.9, SRV and MX with a host below the name that
was asked for and one elsewhere, TXT with a word, and has nothing else, after DELAY seconds; it says each name it was asked for."""

import asyncio
import socket
import struct
import sys

A, MX, TXT, SRV = 1, 15, 16, 33
SO_RCVBUFFORCE = 33
address, delay = sys.argv[1], float((sys.argv[2:] or ["0"])[0])


def wire(*labels):
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


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
        host = [label for label in labels if not label.startswith("_")]
        targets = [wire("below", *host), wire("elsewhere", "test")]
        records = {
            A: [b"\xc0\0\x02\x09"],
            MX: [struct.pack("!H", 10) + target for target in targets],
            TXT: [b"\x04word"],
            SRV: [struct.pack("!3H", 1, 1, 27017) + target for target in targets],
        }.get(kind, [])
        answer = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(record)) + record for record in records)
        head = data[:2] + b"\x81\x80" + struct.pack("!4H", 1, len(records), 0, 0)
        message = head + data[12 : at + 5] + answer
        asyncio.get_running_loop().call_later(delay, self.transport.sendto, message, client)


async def serve():
    await asyncio.get_running_loop().create_datagram_endpoint(Resolver, (address, 53))
    await asyncio.Event().wait()


asyncio.run(serve())
