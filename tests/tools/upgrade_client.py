"""URL PROTOCOL [BODY]: asks for a tunnel as docker's client does (`POST`, `Connection: Upgrade`), then sends each line of stdin
through it and says what comes back. Prints `open PROTOCOL`, or the status and the body of another answer; `ended` at its end.
"""

import http.client
import socket
import ssl
import sys
from urllib.parse import urlsplit

url, protocol, body = urlsplit(sys.argv[1]), sys.argv[2], "".join(sys.argv[3:])
stream = socket.create_connection((url.hostname, url.port), timeout=60)
stream = ssl.create_default_context().wrap_socket(stream, server_hostname=url.hostname)
head = f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n"
stream.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
answer = http.client.HTTPResponse(stream, method="POST")
answer.begin()
if answer.status != 101:
    print(answer.status, answer.read().decode(), flush=True)
    sys.exit()
print("open", answer.getheader("Upgrade"), flush=True)
stream.settimeout(None)
try:
    for line in sys.stdin:
        stream.sendall(line.encode())
        if not (back := answer.fp.readline()):
            break
        print("back", back.decode().strip(), flush=True)
    stream.unwrap()
    print("ended", flush=True)
except OSError as error:
    print("ended", type(error).__name__, flush=True)
