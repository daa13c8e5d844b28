"""CERTIFICATE KEY SECONDS: answers each request as late as that, and says the number of the connection that it came on."""

import http.server
import ssl
import sys
import time

connections = 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        global connections
        super().setup()
        connections += 1
        self.number = connections

    def do_GET(self):
        time.sleep(float(sys.argv[3]))
        body = f"connection {self.number}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(*sys.argv[1:3])
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", server.server_port, flush=True)
server.serve_forever()
