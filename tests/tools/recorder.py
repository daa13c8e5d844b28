"""An HTTPS server that takes any request whole: `hit METHOD PATH CONTENT-TYPE BYTES SHA256` for each, and answers 201, or as the query
says: `?status=404`; `?status=never` not at all."""

import hashlib
import http.server
import ssl
import sys
import threading
import urllib.parse

say = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def chunked(self):
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def answer(self):
        if self.headers.get("transfer-encoding") == "chunked":
            body = b"".join(self.chunked())
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        kind = self.headers.get("content-type", "-").replace(" ", "")
        digest = hashlib.sha256(body).hexdigest()
        with say:
            print("hit", self.command, self.path, kind, len(body), digest, flush=True)
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        status = query.get("status", ["201"])[0]
        if status == "never":
            threading.Event().wait()
        self.send_response(int(status))
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_):
        pass


certificate, key = sys.argv[1:3]
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", server.server_port, flush=True)
server.serve_forever()
