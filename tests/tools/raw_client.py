"""PORT [ALPN]: connects to origin.test by TLS (or, with `plain`, by TCP), sends stdin's bytes (a Python expression), prints the answer.

Reads until the peer ends or has been silent for the given seconds; what it read is printed as Latin-1.
"""

import socket
import ssl
import sys

port, way = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "http/1.1"
pieces = eval(sys.stdin.read())
stream = socket.create_connection(("origin.test", port), timeout=60)
stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
try:
    if way != "plain":
        context = ssl.create_default_context()
        context.set_alpn_protocols([way])
        stream = context.wrap_socket(stream, server_hostname="origin.test")
    for piece in pieces if isinstance(pieces, list) else [pieces]:
        stream.sendall(piece)
    answer = b""
    while more := stream.recv(65536):
        answer += more
    print(answer.decode("latin-1"))
except OSError as error:
    print("error", type(error).__name__, error)
