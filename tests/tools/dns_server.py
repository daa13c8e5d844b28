"""ADDRESS: a resolver on ADDRESS:53 that answers every A question with 192.0.2.9, and says each name it was asked for."""

import socket
import sys

listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.bind((sys.argv[1], 53))
print("ready", flush=True)
while True:
    data, client = listener.recvfrom(4096)
    labels, at = [], 12
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode("latin-1"))
        at += 1 + data[at]
    print("asked", ".".join(labels), flush=True)
    answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x09"
    listener.sendto(data[:2] + b"\x81\x80\0\x01\0\x01\0\0\0\0" + data[12 : at + 5] + answer, client)
