"""CERTIFICATE KEY STAGE: ends every connection with a reset at `accept`, `tls`, `head` or `body`, there
when a line on stdin says so; `silent` never answers."""

import socket
import ssl
import struct
import sys

tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain(*sys.argv[1:3])
stage = sys.argv[3]
listener = socket.create_server(("127.0.0.1", 0))
print("ready", listener.getsockname()[1], flush=True)
kept = []


def serve(stream):
    if stage == "accept":
        return
    if stage == "tls":
        stream.recv(16)
        return
    secure = tls.wrap_socket(stream, server_side=True)
    kept.append(secure)
    while b"\r\n\r\n" not in secure.recv(65536):
        pass
    print("request", flush=True)
    if stage == "body":
        secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"first part\n")
        sys.stdin.readline()
    if stage != "silent":
        secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        secure.close()


while True:
    stream, _ = listener.accept()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    try:
        serve(stream)
    except OSError as error:
        print("error", error, flush=True)
    if stage != "silent":
        stream.close()
