"""PORT OPEN [CODE]: runs CODE, which gets to PORT or raises; says `through`, `refused NAME`, or `absent NAME` if the kernel lacks it.

Without CODE it is one line of standard input after another, in hexadecimal, each run by a child; `ended` follows its end.
"""

import ctypes
import errno
import os
import signal
import socket
import struct
import sys
import time
import traceback

PORT = int(sys.argv[1])
# What the agent may reach.
OPEN = int(sys.argv[2])
# What goes out on a way that has no ports.
MARK = b"agentguard-attempt"
# For what is dropped without a word; everything else answers at once.
PATIENCE = 2
ABSENT = {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.ENOSYS, errno.ENOPROTOOPT}
LIBC = ctypes.CDLL(None, use_errno=True)
socket.setdefaulttimeout(PATIENCE)


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def tcp(host="127.0.0.1", port=PORT, prepare=lambda stream: None):
    stream = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    prepare(stream)
    stream.connect((host, port))
    stream.sendall(MARK)
    return stream


def ask(data, port=PORT, stream=None):
    """Sends it and reads to the end; anything but an answer of success is a refusal."""
    stream = stream or socket.create_connection(("127.0.0.1", port))
    stream.sendall(data)
    answer = b""
    try:
        while more := stream.recv(65536):
            answer += more
    except ConnectionResetError:
        pass
    if b" 200 " not in answer.split(b"\r\n", 1)[0]:
        raise PermissionError(errno.EACCES, "refused")
    return answer


def udp(host="127.0.0.1"):
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)


def sockaddr(host, port=PORT, family=socket.AF_INET):
    return struct.pack("=H", family) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)


def in_child(work):
    """Does it in a child; its refusal is this process's."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.ETIMEDOUT)
    return from_child(os.waitpid(pid, 0)[1])


def from_child(status):
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise OSError(code, "in the child")


def attempt(code):
    try:
        exec(code, globals())
    except OSError as error:
        name = errno.errorcode.get(error.errno, "timeout")
        print("absent" if error.errno in ABSENT else "refused", name, flush=True)
    else:
        print("through", flush=True)


if len(sys.argv) > 3:
    attempt(sys.argv[3])
else:
    for line in iter(sys.stdin.readline, ""):
        pid = os.fork()
        if pid == 0:
            try:
                attempt(bytes.fromhex(line).decode())
            except BaseException:
                traceback.print_exc(file=sys.stdout)
            finally:
                sys.stdout.flush()
                os._exit(0)
        os.waitpid(pid, 0)
        print("ended", flush=True)
