"""PORT CASE: one odd TLS client against origin.test; prints `answer STATUS`, or `closed WHY` where there is no answer."""

import socket
import ssl
import sys

port, case = int(sys.argv[1]), sys.argv[2]
stream = socket.create_connection(("origin.test", port), timeout=60)
stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def context():
    return ssl.create_default_context()


def hello(tls, name="origin.test"):
    """The bytes of a ClientHello, and the session to go on with."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = tls.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return session, incoming, outgoing


def in_pieces(tls, size):
    session, incoming, outgoing = hello(tls)
    first = outgoing.read()
    for at in range(0, len(first), size):
        stream.sendall(first[at : at + size])
    while True:
        try:
            session.do_handshake()
            break
        except ssl.SSLWantReadError:
            stream.sendall(outgoing.read())
            more = stream.recv(65536)
            if not more:
                raise ConnectionError("end of handshake") from None
            incoming.write(more)
    session.write(b"GET /v1/pieces HTTP/1.1\r\nHost: origin.test:%d\r\nConnection: close\r\n\r\n" % port)
    stream.sendall(outgoing.read())
    while True:
        try:
            return session.read(65536)
        except ssl.SSLWantReadError:
            more = stream.recv(65536)
            if not more:
                raise ConnectionError("end before an answer") from None
            incoming.write(more)


def request(tls, host="origin.test", sni="origin.test", authority=None):
    with tls.wrap_socket(stream, server_hostname=sni) as secure:
        head = f"GET /v1/odd HTTP/1.1\r\nHost: {authority or host}:{port}\r\nConnection: close\r\n\r\n"
        secure.sendall(head.encode())
        return secure.recv(65536)


def raw(data, then_end=True):
    stream.sendall(data)
    if then_end:
        stream.shutdown(socket.SHUT_WR)
    return stream.recv(65536)


def large():
    tls = context()
    tls.set_alpn_protocols([f"protocol-number-{n}" for n in range(150)] + ["http/1.1"])
    session, _, outgoing = hello(tls)
    assert outgoing.pending > 2500, outgoing.pending
    return tls


def alpn(*names):
    tls = context()
    tls.set_alpn_protocols(names)
    return tls


def old():
    tls = context()
    tls.set_ciphers("ALL:@SECLEVEL=0")
    tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_1
    return tls


CASES = {
    "byte-by-byte": lambda: in_pieces(context(), 1),
    "large": lambda: in_pieces(large(), 700),
    "http1": lambda: request(alpn("http/1.1")),
    "no-alpn": lambda: request(context()),
    "unknown-alpn": lambda: request(alpn("imap", "foo/9")),
    "other-sni": lambda: request(context(), sni="elsewhere.test", authority="elsewhere.test"),
    "other-host": lambda: request(context(), authority="elsewhere.test"),
    "other-host-allowed-sni": lambda: request(context(), sni="second.test", authority="origin.test"),
    "untrusting": lambda: request(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)),
    "tls-1.1": lambda: request(old()),
    "garbage-record": lambda: raw(b"\x16\x03\x01\x00\x05hello"),
    "huge-record": lambda: raw(b"\x16\x03\x01\xff\xff" + b"x" * 70000),
    "half-hello": lambda: raw(hello(context())[2].read()[:100]),
    "fatal-alert": lambda: raw(b"\x15\x03\x01\x00\x02\x02\x28"),
    "ssh": lambda: raw(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "nothing": lambda: raw(b""),
}

try:
    answer = CASES[case]()
    print("answer", answer.split(b" ")[1].decode() if answer.startswith(b"HTTP/") else f"none {answer[:7].hex()}")
    print(answer.decode("latin-1"))
except (OSError, ConnectionError) as error:
    print("closed", type(error).__name__, error)
