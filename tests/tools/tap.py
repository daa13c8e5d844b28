"""Counts TCP payload on one interface by port. `from PORT` or `to PORT` on stdin is answered with one line of JSON."""

import ctypes
import json
import select
import socket
import struct
import sys

SO_ATTACH_FILTER, SO_TIMESTAMPNS, SO_RCVBUFFORCE = 26, 35, 33
SOL_PACKET, PACKET_STATISTICS, PACKET_OUTGOING, ETH_P_ALL = 263, 6, 4, 3
SNAP = 192

tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
# One instruction: keep the first SNAP bytes (linux/filter.h, BPF_RET | BPF_K).
program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, SNAP))
tap.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))
tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 30)
tap.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
tap.bind((sys.argv[1], ETH_P_ALL))
tap.setblocking(False)

seen = {"from": {}, "to": {}}
lost = 0


def tcp(packet, protocol):
    """(source port, destination port, payload length) of a TCP packet; the IP header's own length counts."""
    if protocol == 0x0800 and packet[9] == 6:
        head, total = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
    elif protocol == 0x86DD and packet[6] == 6:
        head, total = 40, 40 + struct.unpack_from("!H", packet, 4)[0]
    else:
        return None
    source, destination = struct.unpack_from("!HH", packet, head)
    return source, destination, total - head - (packet[head + 12] >> 4) * 4


def drain():
    while True:
        try:
            packet, ancillary, _, address = tap.recvmsg(SNAP, 64)
        except BlockingIOError:
            return
        if address[2] != PACKET_OUTGOING:
            continue
        found = tcp(packet, address[1])
        if not found or found[2] <= 0:
            continue
        seconds, nanoseconds = struct.unpack_from("qq", ancillary[0][2])
        for way, port in (("from", found[0]), ("to", found[1])):
            packets, payload, _ = seen[way].get(port, (0, 0, 0))
            seen[way][port] = (packets + 1, payload + found[2], seconds * 10**9 + nanoseconds)


print("ready", flush=True)
while True:
    readable, _, _ = select.select([tap, sys.stdin], [], [])
    drain()
    if sys.stdin in readable:
        line = sys.stdin.readline()
        if not line:
            break
        way, port = line.split()
        lost += struct.unpack("II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        packets, payload, last = seen[way].get(int(port), (0, 0, 0))
        print("seen", json.dumps({"packets": packets, "bytes": payload, "last_ns": last, "lost": lost}), flush=True)
