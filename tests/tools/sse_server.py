"""CERTIFICATE KEY: a server-sent event stream whose next event is a line on stdin. Says what is asked of it."""

import socket
import ssl
import sys
import threading

tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain(*sys.argv[1:3])
listener = socket.create_server(("127.0.0.1", 0))
print("ready", listener.getsockname()[1], flush=True)
lines = iter(sys.stdin.readline, "")


def chunk(text):
    return b"%x\r\n%s\r\n" % (len(text), text)


def serve(raw):
    with tls.wrap_socket(raw, server_side=True) as stream:
        head = b""
        while b"\r\n\r\n" not in head:
            more = stream.recv(65536)
            if not more:
                return
            head += more
        print("request", *head.split(b"\r\n")[0].decode().split()[:2], flush=True)
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for line in lines:
            if line.strip() == "end":
                stream.sendall(b"0\r\n\r\n")
                return
            stream.sendall(chunk(f"data: {line.strip()}\n\n".encode()))


while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
