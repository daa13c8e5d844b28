"""CERTIFICATE KEY: an origin whose handlers answer without reading a request's body, one connection after another.

Python's http.server takes what it finds behind a head for the next request, as many a handler's server does. Says each
request that it serves.
"""

import http.server
import ssl
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def serve(self):
        print("served", self.command, self.path, flush=True)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        if "/last" in self.path:
            # Nobody else is served while a connection is kept.
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"ok")

    do_GET = do_POST = do_PUT = do_DELETE = serve

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(*sys.argv[1:3])
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", server.server_port, flush=True)
server.serve_forever()
