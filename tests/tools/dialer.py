"""A process that lives as long as the test wants and tries one thing per line of stdin; answers `ok …` or `error NAME`.

tcp HOST PORT · udp HOST PORT (unconnected) · send HOST PORT (connected UDP) · socket FAMILY TYPE PROTOCOL · bind TYPE HOST
PORT · listen HOST PORT (or -, without bind; answers the port) · accept (one, which is told hello) · unix PATH · exec FILE
(in a child; answers its status) · memory FILE (the same, from a memfd) · resolve NAME · get URL · pid · fork (goes on in a
grandchild of its own session whose parent is gone)
"""

import errno
import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request

TYPES = {"stream": socket.SOCK_STREAM, "dgram": socket.SOCK_DGRAM, "raw": socket.SOCK_RAW, "seqpacket": socket.SOCK_SEQPACKET}
FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def tcp(host, port):
    with socket.socket(family(host), socket.SOCK_STREAM) as stream:
        stream.settimeout(60)
        stream.connect((host, int(port)))
        return "%s %s" % stream.getpeername()[:2]


def udp(host, port):
    with socket.socket(family(host), socket.SOCK_DGRAM) as datagram:
        return datagram.sendto(b"hello", (host, int(port)))


def send(host, port):
    with socket.socket(family(host), socket.SOCK_DGRAM) as datagram:
        datagram.connect((host, int(port)))
        return datagram.send(b"hello")


def make(domain, kind, protocol):
    socket.socket(FAMILIES[domain], TYPES[kind], int(protocol)).close()
    return ""


def bind(kind, host, port):
    with socket.socket(family(host), TYPES[kind]) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        return "%s %s" % listener.getsockname()[:2]


listeners = []


def listen(host, port):
    listener = socket.socket(family(host), socket.SOCK_STREAM)
    if port != "-":
        listener.bind((host, int(port)))
    listener.listen()
    listener.settimeout(60)
    listeners.append(listener)
    return listener.getsockname()[1]


def accept():
    with listeners.pop() as listener, listener.accept()[0] as stream:
        stream.sendall(b"hello")
    return ""


def unix(path):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(60)
        stream.connect(path)
    return ""


def execute(path):
    return subprocess.run([path]).returncode


def memory(path):
    with open(path, "rb") as image:
        fd = os.memfd_create("memory", 0)
        os.write(fd, image.read())
    # A writer is in the way of an exec.
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    return subprocess.run([f"/proc/self/fd/{reading}"], pass_fds=[reading]).returncode


def resolve(name):
    return " ".join(sorted({found[4][0] for found in socket.getaddrinfo(name, 1, type=socket.SOCK_STREAM)}))


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        raise error.reason if isinstance(error.reason, OSError) else error


def pid():
    return os.getpid()


def fork():
    """setsid and double fork, as daemons do; the first process only waits, so that stdin has one reader."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        os.read(reading, 1)
        os.wait()
        sys.exit()
    os.setsid()
    if os.fork():
        os._exit(0)
    return os.getpid()


COMMANDS = {"tcp": tcp, "udp": udp, "send": send, "socket": make, "bind": bind, "listen": listen, "accept": accept, "unix": unix, "exec": execute, "memory": memory, "resolve": resolve, "get": get, "pid": pid, "fork": fork}


def serve():
    for line in iter(sys.stdin.readline, ""):
        command, *words = line.split()
        if command == "end":
            return
        try:
            print("ok", COMMANDS[command](*words), flush=True)
        except socket.gaierror as error:
            print("error", error.args[1].replace(" ", "-"), flush=True)
        except ssl.SSLError as error:
            # Its errno is the library's own.
            print("error TLS", error.reason, flush=True)
        except OSError as error:
            print("error", errno.errorcode.get(error.errno, repr(error)), flush=True)


serve()
