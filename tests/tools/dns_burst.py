"""COUNT: the C library's look-ups of COUNT names of `burst.test` at once; prints how many had an address, then the seconds."""

import socket
import sys
import threading
import time

count = int(sys.argv[1])
found, start = [], threading.Barrier(count + 1)


def look_up(number):
    start.wait()
    try:
        found.append(socket.getaddrinfo(f"n{number}.burst.test", 443, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        print(error, file=sys.stderr)


threads = [threading.Thread(target=look_up, args=[number]) for number in range(count)]
for thread in threads:
    thread.start()
start.wait()
began = time.monotonic()
for thread in threads:
    thread.join()
print(found.count("192.0.2.9"), time.monotonic() - began)
