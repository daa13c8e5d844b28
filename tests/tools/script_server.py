"""CERTIFICATE KEY NAME=ANSWER…: over TLS (`ready`) and plain (`plain`), answers `…/NAME` with the bytes of a Python expression.

Says each request as it came, body included: `got` and the Python form of its bytes. `?end=close` ends the connection behind the
answer, over TLS without its `close_notify`; `?end=notify` with it. Else the connection is kept.
"""

import re
import socket
import ssl
import sys
import threading

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(*sys.argv[1:3])
context.set_alpn_protocols(["http/1.1"])
answers = {name: eval(answer) for name, answer in (arg.split("=", 1) for arg in sys.argv[3:])}
say = threading.Lock()


def serve(stream, secure):
    if secure:
        stream = context.wrap_socket(stream, server_side=True, suppress_ragged_eofs=True)
    seen = b""
    while True:
        while b"\r\n\r\n" not in seen:
            more = stream.recv(65536)
            if not more:
                return
            seen += more
        head, seen = seen.split(b"\r\n\r\n", 1)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = int(length[1]) if length else 0
        while len(seen) < body:
            seen += stream.recv(65536)
        request, seen = head + b"\r\n\r\n" + seen[:body], seen[body:]
        with say:
            print("got", repr(request.decode("latin-1")), flush=True)
        name = re.search(rb"([\w-]*)(?:\?(\S*))? HTTP/", head)
        stream.sendall(answers[name[1].decode()])
        if name[2] == b"end=close":
            # What is under TLS: its end comes without a word of TLS's own.
            socket.socket.shutdown(stream, socket.SHUT_RDWR)
            return
        if name[2] == b"end=notify":
            stream.unwrap() if secure else stream.close()
            return


def quietly(stream, secure):
    try:
        serve(stream, secure)
    except OSError as error:
        print("error", error, flush=True)
    finally:
        stream.close()


def listen(listener, secure):
    while True:
        stream, _ = listener.accept()
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=quietly, args=[stream, secure], daemon=True).start()


listeners = [socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(2)]
print("plain", listeners[1].getsockname()[1], flush=True)
print("ready", listeners[0].getsockname()[1], flush=True)
threading.Thread(target=listen, args=[listeners[1], False], daemon=True).start()
listen(listeners[0], True)
