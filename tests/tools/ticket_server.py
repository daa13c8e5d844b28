"""CERTIFICATE KEY: a ticket system over HTTPS, which answers `/open?record=NAME` in the way that the name says. For each
question `ask TARGET HEADERS`; `held` waits for a line on stdin and says `gone` if the other end does not wait for it."""

import select
import socketserver
import ssl
import sys
import threading
from urllib.parse import parse_qs, urlsplit

BODIES = {
    "open": (200, "application/json", '{"open": true, "level": "fraud"}'),
    "closed": (200, "application/json", '{"open": false, "level": "normal"}'),
    "silent": (200, "application/json", "{}"),
    "charset": (200, "application/json; charset=utf-8", '{"open": true}'),
    "redirect": (302, "application/json", '{"open": true}'),
    "created": (201, "application/json", '{"open": true}'),
    "error": (500, "application/json", '{"open": true}'),
    "html": (200, "text/html", '{"open": true}'),
    "cut": (200, "application/json", '{"open": true'),
    "twice": (200, "application/json", '{"open": false, "open": true}'),
    "wrong": (200, "application/json", '{"open": "true"}'),
    "null": (200, "application/json", '{"open": null}'),
    "long": (200, "application/json", '{"open": true, "pad": "' + "x" * 70_000 + '"}'),
    "empty": (200, "application/json", ""),
}
orders = threading.Semaphore(0)
say = threading.Lock()


class Handler(socketserver.BaseRequestHandler):
    def tell(self, *words):
        with say:
            print(*words, flush=True)

    def handle(self):
        try:
            self.serve(tls.wrap_socket(self.request, server_side=True))
        except OSError:
            pass

    def serve(self, stream):
        head = b""
        while b"\r\n\r\n" not in head:
            more = stream.recv(65536)
            if not more:
                return
            head += more
        line, *headers = head.decode().strip().split("\r\n")
        target = line.split(" ")[1]
        names = sorted(header.split(":")[0].lower() for header in headers)
        record = parse_qs(urlsplit(target).query)["record"][0]
        self.tell("ask", line.split(" ")[0], target, ",".join(names))
        if record == "slow":
            # Until the other end has had enough.
            stream.recv(1)
            return
        if record == "drip":
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n")
            while not select.select([stream], [], [], 0.05)[0]:
                stream.sendall(b" ")
            return
        if record == "broken":
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
            return
        if record.startswith("held"):
            while not orders.acquire(timeout=0.05):
                if select.select([stream], [], [], 0)[0]:
                    self.tell("gone")
                    return
            record = "open"
        status, kind, body = BODIES.get(record, BODIES["open"])
        answer = [f"HTTP/1.1 {status} Said", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        if status == 302:
            answer.append("Location: /open?record=open")
        stream.sendall("\r\n".join([*answer, "", body]).encode())


def listen():
    for _ in sys.stdin:
        orders.release()


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128


certificate, key = sys.argv[1:3]
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(certificate, key)
server = Server(("127.0.0.1", 0), Handler)
threading.Thread(target=listen, daemon=True).start()
print("ready", server.server_address[1], flush=True)
server.serve_forever()
