"""CERTIFICATE KEY MODE: a proxy on loopback, one request on each connection. `open` is honest: it passes on what it is asked for;
`tls` is so too, is spoken to over TLS, and wants `user:secret`. Every other mode answers badly, in its own way. Says each
request's first line.
"""

import base64
import select
import socket
import ssl
import sys
import threading
from urllib.parse import urlsplit

certificate, key, mode = sys.argv[1:4]
tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain(certificate, key)
listener = socket.create_server(("127.0.0.1", 0))
print("ready", listener.getsockname()[1], flush=True)

# Who is asked for `origin.test` knows where that is.
CREDENTIALS = "Basic " + base64.b64encode(b"user:secret").decode()
OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"
DENIED = b'HTTP/1.1 407 x\r\nProxy-Authenticate: %s realm="x"\r\nContent-Length: 0\r\n\r\n'
BAD = {
    "refuses": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
    "redirects": b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.test/\r\nContent-Length: 0\r\n\r\n",
    "wants-basic": DENIED % b"Basic",
    "wants-more": DENIED % b"Negotiate",
    "speaks-ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "speaks-first": OPEN + b"HTTP/1.1 200 OK\r\n\r\n",
    "tunnels-badly": None,
    "endless-head": None,
    "endless-interim": None,
    "hangs": None,
    "closes": b"",
}


def relay(client, upstream):
    """In one thread, which is all that a TLS connection takes; ends both where one ends."""
    other = {client: upstream, upstream: client}
    while True:
        decrypted = isinstance(client, ssl.SSLSocket) and client.pending()
        for source in [client] if decrypted else select.select([*other], [], [])[0]:
            if not (piece := source.recv(65536)):
                return
            other[source].sendall(piece)


def pass_on(client, line, fields, rest):
    method, target, _ = line.split(" ")
    if method == "CONNECT":
        upstream = socket.create_connection(("127.0.0.1", int(target.rsplit(":", 1)[1])))
        client.sendall(OPEN)
    else:
        url = urlsplit(target)
        upstream = socket.create_connection(("127.0.0.1", url.port or 80))
        path = url.path + ("?" + url.query if url.query else "")
        lines = [f"{method} {path} HTTP/1.1", "Connection: close"]
        lines += [line for line in fields if not line.lower().startswith("proxy-")]
        upstream.sendall("\r\n".join(lines + ["", ""]).encode() + rest)
    with upstream:
        relay(client, upstream)


def endlessly(client, start, piece):
    client.sendall(start)
    while True:
        client.sendall(piece)


def serve(client):
    if mode == "tls":
        client = tls.wrap_socket(client, server_side=True)
    head = b""
    while b"\r\n\r\n" not in head:
        if not (piece := client.recv(65536)):
            return
        head += piece
    head, rest = head.split(b"\r\n\r\n", 1)
    line, *fields = head.decode("latin-1").split("\r\n")
    print("asked", line, flush=True)
    if mode == "tls" and f"proxy-authorization: {CREDENTIALS}" not in [
        name.lower() + ": " + value for name, value in (field.split(": ", 1) for field in fields)
    ]:
        client.sendall(BAD["wants-basic"])
    elif mode in ("tls", "open"):
        pass_on(client, line, fields, rest)
    elif mode == "hangs":
        client.recv(1)
    elif mode == "tunnels-badly":
        client.sendall(OPEN)
        client.recv(65536)
        client.sendall(b"no TLS at all\r\n" * 10)
    elif mode == "endless-head":
        endlessly(client, b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"x" * 1000 + b"\r\n")
    elif mode == "endless-interim":
        endlessly(client, b"", b"HTTP/1.1 100 Continue\r\n\r\n")
    else:
        client.sendall(BAD[mode])
    client.close()


def quietly(client):
    try:
        serve(client)
    except OSError:
        pass


while True:
    stream, _ = listener.accept()
    threading.Thread(target=quietly, args=(stream,), daemon=True).start()
