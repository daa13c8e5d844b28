"""PORT COUNT: so many requests, each on a connection of its own. Prints the failed ones' number, and the median and the 99th
percentile of the others' times in ms."""

import socket
import ssl
import sys
import time

port, count = int(sys.argv[1]), int(sys.argv[2])
context = ssl.create_default_context()
request = f"GET /v1/x HTTP/1.1\r\nHost: origin.test:{port}\r\nConnection: close\r\n\r\n".encode()
times, failed = [], 0
for _ in range(count):
    began = time.monotonic()
    try:
        stream = socket.create_connection(("origin.test", port), timeout=60)
        with context.wrap_socket(stream, server_hostname="origin.test") as secure:
            secure.sendall(request)
            if not secure.recv(65536).startswith(b"HTTP/1.1 200"):
                raise OSError("no 200")
        times.append((time.monotonic() - began) * 1000)
    except OSError as error:
        failed += 1
        print(type(error).__name__, error, file=sys.stderr)
times.sort()
print(failed, round(times[len(times) // 2], 2), round(times[len(times) * 99 // 100], 2))
