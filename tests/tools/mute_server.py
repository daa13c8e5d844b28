"""CERTIFICATE KEY [SECONDS]: an origin by HTTP/2 and HTTP/1.1. At a line on stdin the connections that there are go
silent: nothing that comes on them is acknowledged any more. HTTP/1.1 connections are closed, without having said so, when
they have been idle for so many seconds."""

import ctypes
import socket
import ssl
import struct
import sys
import threading

import h2.config
import h2.connection
import h2.events

tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain(*sys.argv[1:3])
tls.set_alpn_protocols(["h2", "http/1.1"])
idle = float(sys.argv[3]) if len(sys.argv) > 3 else None
listener = socket.create_server(("127.0.0.1", 0), backlog=512)
print("ready", listener.getsockname()[1], flush=True)
streams = []
SO_ATTACH_FILTER = 26


def mute():
    # A filter of one instruction: return 0, which drops each packet before TCP sees it.
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    for stream in streams:
        fprog = struct.pack("HL", 1, ctypes.addressof(program))
        stream.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
    print("muted", flush=True)


def http1(stream):
    stream.settimeout(idle)
    rest = b""
    while True:
        while b"\r\n\r\n" not in rest:
            more = stream.recv(65536)
            if not more:
                return
            rest += more
        head, _, rest = rest.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        while len(rest) < length:
            rest += stream.recv(65536)
        rest = rest[length:]
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def http2(stream):
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    stream.sendall(connection.data_to_send())
    while data := stream.recv(65536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.StreamEnded):
                connection.send_headers(event.stream_id, [(":status", "200")])
                connection.send_data(event.stream_id, b"ok", end_stream=True)
        stream.sendall(connection.data_to_send())


def serve(stream):
    try:
        with tls.wrap_socket(stream, server_side=True) as secure:
            streams.append(secure)
            (http2 if secure.selected_alpn_protocol() == "h2" else http1)(secure)
    except (OSError, ssl.SSLError):
        pass


def commands():
    for _ in sys.stdin:
        mute()


threading.Thread(target=commands, daemon=True).start()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
