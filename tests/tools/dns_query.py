"""SERVER NAME TYPE udp|tcp: one DNS question with EDNS(0) to port 53; prints what came back as JSON (RFC 1035, 6891, 8914)."""

import json
import socket
import struct
import sys

server, name, kind, protocol = sys.argv[1:]
TYPES = {"A": 1, "TXT": 16, "AAAA": 28, "HTTPS": 65, "ANY": 255}
OPT, EDE = 41, 15


def question():
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    head = struct.pack("!6H", 0x1234, 0x0100, 1, 0, 0, 1)
    return head + labels + b"\0" + struct.pack("!2H", TYPES[kind], 1) + b"\0" + struct.pack("!HHIH", OPT, 1232, 0, 0)


def skip_name(data, at):
    while data[at]:
        if data[at] >= 0xC0:
            return at + 2
        at += 1 + data[at]
    return at + 1


def read(data):
    identity, flags, questions, *counts = struct.unpack_from("!6H", data)
    assert identity == 0x1234, "an answer to something else"
    at = 12
    for _ in range(questions):
        at = skip_name(data, at) + 4
    answers, errors = [], []
    for section, count in enumerate(counts):
        for _ in range(count):
            at = skip_name(data, at)
            record, _, _, length = struct.unpack_from("!HHIH", data, at)
            value = data[at + 10 : at + 10 + length]
            at += 10 + length
            if record == OPT:
                while len(value) >= 4:
                    code, size = struct.unpack_from("!2H", value)
                    if code == EDE:
                        errors.append(struct.unpack_from("!H", value, 4)[0])
                    value = value[4 + size :]
            elif section == 0 and record in (1, 28):
                answers.append(socket.inet_ntop(socket.AF_INET if record == 1 else socket.AF_INET6, value))
            elif section == 0:
                answers.append(f"type {record}")
    return {"rcode": flags & 15, "answers": answers, "extended": errors}


with socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as resolver:
    resolver.settimeout(30)
    try:
        resolver.connect((server, 53))
        peer = resolver.getpeername()
        message = question()
        if protocol == "tcp":
            resolver.sendall(struct.pack("!H", len(message)) + message)
            size = struct.unpack("!H", resolver.recv(2, socket.MSG_WAITALL))[0]
            data, source = resolver.recv(size, socket.MSG_WAITALL), peer
        else:
            resolver.send(message)
            data, source = resolver.recvfrom(65535)
        print(json.dumps({**read(data), "peer": peer[0], "source": source[0]}))
    except OSError as error:
        print(json.dumps({"error": type(error).__name__, "errno": error.errno}))
