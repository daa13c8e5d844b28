"""A process that tries one system call per line of stdin; answers `said ok` or `said NAME` of the error.

A line is a call and its arguments, see CALLS.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import stat
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
NUMBERS = {
    "ptrace": 101, "mount": 165, "umount2": 166, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272,
    "perf_event_open": 298, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
    "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438, "fsopen": 430,
    "open_tree": 428, "fanotify_init": 300, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
    "pidfd_send_signal": 424, "prlimit64": 302, "kcmp": 312,
}
CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWNS = 0x10000000, 0x40000000, 0x20000


def call(name, *args):
    result = LIBC.syscall(NUMBERS[name], *[ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args])
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def in_child(attempt):
    """What cannot be undone is tried in a child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            attempt()
            os.write(writing, b"0")
        except OSError as error:
            os.write(writing, str(error.errno).encode())
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 16)
    os.close(reading)
    os.waitpid(child, 0)
    if int(said):
        raise OSError(int(said), "in a child")


def closing(descriptor):
    os.close(descriptor)


def ptrace(pid):
    attach, detach = 16, 17
    call("ptrace", attach, int(pid), 0, 0)
    os.waitpid(int(pid), 0x40000000)
    call("ptrace", detach, int(pid), 0, 0)


def vm(name, pid, address):
    here = ctypes.create_string_buffer(8)
    local = struct.pack("QQ", ctypes.addressof(here), 8)
    remote = struct.pack("QQ", int(address, 16), 8)
    if name == "process_vm_writev":
        call("process_vm_readv", int(pid), local, 1, remote, 1, 0)
    call(name, int(pid), local, 1, remote, 1, 0)


def memory(pid):
    """The same without a system call of its own."""
    with open(f"/proc/{pid}/maps") as maps:
        address = int(next(line for line in maps if "rw-p" in line).split("-")[0], 16)
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as file:
        file.seek(address)
        file.read(8)


def mem_write(pid, address):
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as file:
        file.seek(int(address, 16))
        was = file.read(1)
        file.seek(int(address, 16))
        file.write(was)


def queue(name, *target):
    """SIGCONT with a value."""
    info = struct.pack("iii", signal.SIGCONT, 0, -1) + bytes(116)
    call(name, *[int(number) for number in target], signal.SIGCONT, info)


def pidfd_signal(pid):
    pidfd = call("pidfd_open", int(pid), 0)
    try:
        call("pidfd_send_signal", pidfd, signal.SIGCONT, None, 0)
    finally:
        os.close(pidfd)


def prlimit(pid):
    """What it has, once more."""
    limit = ctypes.create_string_buffer(16)
    call("prlimit64", int(pid), 7, None, limit)
    call("prlimit64", int(pid), 7, limit, None)


def child():
    """One that waits, with a pipe of its own to read from, and ends with this process."""
    reading, writing = os.pipe()
    made = os.fork()
    if made == 0:
        os.dup2(reading, 0)
        LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)
        while True:
            signal.pause()
    return made


def stack(pid):
    with open(f"/proc/{pid}/maps") as maps:
        return next(line for line in maps if line.endswith("[stack]\n")).split("-")[0]


def node(path, kind, major, minor):
    os.mknod(path, (stat.S_IFBLK if kind == "b" else stat.S_IFCHR) | 0o600, os.makedev(int(major), int(minor)))
    os.unlink(path)


def rewrite(path):
    """What is there already, by one write."""
    file = os.open(path, os.O_RDWR)
    try:
        was = os.read(file, 4096)
        os.pwrite(file, was, 0)
    finally:
        os.close(file)


def create(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.unlink(path)


def mkdir(path):
    os.mkdir(path)
    os.rmdir(path)


def move(path):
    """There and back."""
    os.rename(path, path + ".moved")
    os.rename(path + ".moved", path)


def rewrite_in_own_netns(path):
    def attempt():
        call("unshare", CLONE_NEWNET)
        rewrite(path)
    in_child(attempt)


def getfd(pid):
    pidfd = call("pidfd_open", int(pid), 0)
    closing(call("pidfd_getfd", pidfd, 0, 0))
    os.close(pidfd)


def terminal():
    """TIOCSTI into a terminal of its own."""
    def attempt():
        os.setsid()
        master, slave = os.openpty()
        fcntl.ioctl(slave, 0x540E, 0)
        fcntl.ioctl(slave, 0x5412, b"x")
    in_child(attempt)


def clone_user():
    def attempt():
        # A raw clone: 56, flags, no stack of its own.
        child = LIBC.syscall(56, ctypes.c_long(CLONE_NEWUSER | 17), 0, 0, 0, 0)
        if child < 0:
            raise OSError(ctypes.get_errno(), "clone")
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    in_child(attempt)


def make(family, kind, protocol):
    socket.socket(int(family), int(kind), int(protocol)).close()


def key(name):
    if name == "add_key":
        call("add_key", b"user\0", b"agentguard-test\0", b"x", 1, -3)
    elif name == "request_key":
        try:
            call("request_key", b"user\0", b"agentguard-no-such-key\0", None, 0)
        except OSError as error:
            if error.errno not in (errno.ENOKEY, 126):
                raise
    else:
        call("keyctl", 0, -3, 1)


def handle():
    path = os.open("/", os.O_RDONLY)
    handle = ctypes.create_string_buffer(136)
    struct.pack_into("I", handle, 0, 128)
    mount_id = ctypes.c_int()
    LIBC.name_to_handle_at(path, b"etc", handle, ctypes.byref(mount_id), 0)
    closing(call("open_by_handle_at", path, handle, os.O_RDONLY))
    os.close(path)


def mount():
    def attempt():
        call("unshare", CLONE_NEWNS)
        call("mount", b"none\0", b"/\0", None, (1 << 19) | (1 << 14), None)
        call("mount", b"none\0", b"/mnt\0", b"tmpfs\0", 0, None)
    in_child(attempt)


def perf():
    attributes = bytearray(128)
    struct.pack_into("IIQ", attributes, 0, 1, 128, 0)
    closing(call("perf_event_open", bytes(attributes), 0, -1, -1, 0))


def bpf():
    # BPF_MAP_CREATE of an array.
    attributes = struct.pack("IIIII", 2, 4, 4, 1, 0) + bytes(52)
    closing(call("bpf", 0, attributes, len(attributes)))


CALLS = {
    "io_uring_setup": lambda: closing(call("io_uring_setup", 4, ctypes.create_string_buffer(120))),
    "bpf": bpf,
    "ptrace": ptrace,
    "process_vm_readv": lambda *where: vm("process_vm_readv", *where),
    "process_vm_writev": lambda *where: vm("process_vm_writev", *where),
    "mem": memory,
    "pidfd_getfd": getfd,
    "socket": make,
    "terminal": terminal,
    "unshare_user": lambda: in_child(lambda: call("unshare", CLONE_NEWUSER)),
    "clone_user": clone_user,
    "setns": lambda: in_child(lambda: call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), CLONE_NEWNET)),
    "mount": mount,
    "fsopen": lambda: closing(call("fsopen", b"tmpfs\0", 0)),
    "add_key": lambda: key("add_key"),
    "request_key": lambda: key("request_key"),
    "keyctl": lambda: key("keyctl"),
    "perf_event_open": perf,
    "userfaultfd": lambda: closing(call("userfaultfd", 1)),
    "open_by_handle_at": handle,
    "fanotify_init": lambda: closing(call("fanotify_init", 0, 0)),
    "unlink": os.unlink,
    "rename": os.rename,
    "rmdir": os.rmdir,
    "kill": lambda pid, signal: os.kill(int(pid), int(signal)),
    "read": lambda path: open(path, "rb").close(),
    "list": lambda path: os.listdir(path)[0],
    "look": os.listdir,
    "pid": os.getpid,
    "child": child,
    "stack": stack,
    "mem_write": mem_write,
    "open": lambda path: closing(os.open(path, os.O_RDONLY | os.O_NONBLOCK)),
    "tgkill": lambda pid: call("tgkill", int(pid), int(pid), signal.SIGCONT),
    "rt_sigqueueinfo": lambda pid: queue("rt_sigqueueinfo", pid),
    "rt_tgsigqueueinfo": lambda pid: queue("rt_tgsigqueueinfo", pid, pid),
    "pidfd_send_signal": pidfd_signal,
    "kcmp": lambda pid: call("kcmp", os.getpid(), int(pid), 2, 0, 0),
    "prlimit": prlimit,
    "node": node,
    "append": lambda path: closing(os.open(path, os.O_WRONLY | os.O_APPEND)),
    "create": create,
    "mkdir": mkdir,
    "move": move,
    "rewrite": rewrite,
    "rewrite_in_own_netns": rewrite_in_own_netns,
}

for words in map(str.split, iter(sys.stdin.readline, "")):
    try:
        found = CALLS[words[0]](*words[1:])
        print("said", found if words[0] in ("pid", "child", "stack") else "ok", flush=True)
    except IndexError:
        print("said ENOENT", flush=True)
    except OSError as error:
        print("said", errno.errorcode.get(error.errno, repr(error)), flush=True)
