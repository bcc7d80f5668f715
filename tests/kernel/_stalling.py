"""A FUSE server for tests that leaves one kind of request unanswered when told so: `python _stalling.py MOUNTPOINT`.

It is a program of its own, which nobody else shares its /dev/fuse with: killed, it takes the connection with it, and
whoever waits for it is told so. Its files are made up: a name that begins with f is a file, with d a directory, with s
a symlink; others are there when they have been made.
"""
from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

OPCODES = {
    "LOOKUP": 1, "FORGET": 2, "GETATTR": 3, "SETATTR": 4, "READLINK": 5, "SYMLINK": 6, "MKNOD": 8, "MKDIR": 9,
    "UNLINK": 10, "RMDIR": 11, "RENAME": 12, "LINK": 13, "OPEN": 14, "READ": 15, "WRITE": 16, "STATFS": 17,
    "RELEASE": 18, "FSYNC": 20, "SETXATTR": 21, "GETXATTR": 22, "LISTXATTR": 23, "REMOVEXATTR": 24, "FLUSH": 25,
    "INIT": 26, "OPENDIR": 27, "READDIR": 28, "RELEASEDIR": 29, "FSYNCDIR": 30, "GETLK": 31, "SETLK": 32, "SETLKW": 33,
    "ACCESS": 34, "CREATE": 35, "INTERRUPT": 36, "DESTROY": 38, "IOCTL": 39, "BATCH_FORGET": 42, "FALLOCATE": 43,
    "READDIRPLUS": 44, "RENAME2": 45, "LSEEK": 46, "COPY_FILE_RANGE": 47, "SYNCFS": 50, "TMPFILE": 51, "STATX": 52}
NAMES = {n: name for name, n in OPCODES.items()}
SIZE = 100_000
POSIX_LOCKS, FLOCK_LOCKS, BIG_WRITES = 1 << 1, 1 << 10, 1 << 5


class Filesystem:
    def __init__(self) -> None:
        self.kinds = {1: stat.S_IFDIR | 0o777}
        self.nodes: dict[tuple[int, bytes], int] = {}
        self.held: dict[tuple[int, int], int] = {}  # who has a node's lock

    def attr(self, node: int) -> bytes:
        mode = self.kinds[node]
        size = SIZE if stat.S_ISREG(mode) else 6 if stat.S_ISLNK(mode) else 0
        return struct.pack("=6Q10I", node, size, (size + 511) // 512, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def entry(self, node: int) -> bytes:
        return struct.pack("=QQQQII", node, 1, 0, 0, 0, 0) + self.attr(node)  # valid for no time: all is asked for

    def make(self, parent: int, name: bytes, mode: int) -> int:
        node = self.nodes.setdefault((parent, name), len(self.kinds) + 1)
        self.kinds[node] = mode
        return node

    def lookup(self, parent: int, name: bytes) -> int:
        if (parent, name) in self.nodes:
            return self.nodes[parent, name]
        kind = {b"f": stat.S_IFREG | 0o666, b"d": stat.S_IFDIR | 0o777, b"s": stat.S_IFLNK | 0o777}.get(name[:1])
        if kind is None:
            raise OSError(errno.ENOENT, "")
        return self.make(parent, name, kind)

    def answer(self, op: str, node: int, data: bytes) -> bytes:
        """What is sent back, after the header."""
        if op == "INIT":
            minor, flags = struct.unpack_from("=I", data, 4)[0], POSIX_LOCKS | FLOCK_LOCKS | BIG_WRITES
            return struct.pack("=4IHHIIHHI28x", 7, min(minor, 31), 0, flags, 100, 90, 1 << 16, 1, 16, 0, 0)
        if op == "LOOKUP":
            return self.entry(self.lookup(node, data[:-1]))
        if op in ("GETATTR", "SETATTR"):
            return struct.pack("=QII", 0, 0, 0) + self.attr(node)
        if op == "SYMLINK":
            return self.entry(self.make(node, data.split(b"\0")[0], stat.S_IFLNK | 0o777))
        if op == "MKDIR":
            return self.entry(self.make(node, data[8:-1], stat.S_IFDIR | 0o777))
        if op == "MKNOD":
            return self.entry(self.make(node, data[16:-1], struct.unpack_from("=I", data)[0]))
        if op == "LINK":
            target = struct.unpack_from("=Q", data)[0]
            self.nodes[node, data[8:-1]] = target
            return self.entry(target)
        opened = struct.pack("=QII", 7, 1, 0)  # FOPEN_DIRECT_IO: nothing is cached
        if op == "CREATE":
            return self.entry(self.make(node, data[16:-1], stat.S_IFREG | 0o666)) + opened
        if op in ("OPEN", "OPENDIR"):
            return opened if op == "OPEN" else struct.pack("=QII", 7, 0, 0)
        if op == "READLINK":
            return b"target"
        if op == "READ":
            start, size = struct.unpack_from("=QI", data, 8)
            return bytes(max(0, min(size, SIZE - start)))
        if op == "READDIR":
            if struct.unpack_from("=Q", data, 8)[0]:
                return b""
            return b"".join(struct.pack("=QQII8s", n + 2, n + 1, 2, stat.S_IFREG >> 12, b"fname%d\0\0" % n)
                            for n in range(3))
        if op == "WRITE":
            return struct.pack("=II", struct.unpack_from("=I", data, 16)[0], 0)
        if op == "COPY_FILE_RANGE":
            return struct.pack("=II", struct.unpack_from("=Q", data, 40)[0], 0)
        if op == "STATFS":
            return struct.pack("=5Q10I", 1000, 900, 900, 100, 90, 4096, 255, 4096, *[0] * 7)
        if op in ("GETXATTR", "LISTXATTR"):
            size = struct.unpack_from("=I", data)[0]
            value = b"v" if op == "GETXATTR" else b"user.a\0"
            if op == "GETXATTR" and not data[8:].startswith(b"user."):
                raise OSError(errno.ENODATA, "")
            return value if size else struct.pack("=II", len(value), 0)
        if op == "LSEEK":
            return data[8:16]
        if op == "IOCTL":
            return struct.pack("=iIIII", 0, 0, 0, 0, 0)
        if op == "GETLK":
            return data[16:40]
        if op in ("UNLINK", "RMDIR", "RENAME", "RENAME2", "RELEASE", "FSYNC", "SETXATTR", "REMOVEXATTR", "FLUSH",
                  "RELEASEDIR", "FSYNCDIR", "SETLK", "SETLKW", "FALLOCATE", "ACCESS", "SYNCFS", "DESTROY"):
            return b""
        raise OSError(errno.ENOSYS, "")


def serve(mountpoint: str) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"stalling", mountpoint.encode(), b"fuse", 6, options) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    fs, silent, reading = Filesystem(), "", True
    print("mounted", flush=True)
    while True:
        ready = select.select([0, fd] if reading else [0], [], [])[0]
        if 0 in ready:
            words = os.read(0, 100).decode().split()
            if not words:
                return
            silent, reading = (words[1], True) if words[0] == "silent" else ("", False)
            print("told", flush=True)
        elif fd in ready:
            try:
                request = os.read(fd, 1 << 17)
            except BlockingIOError:
                continue
            opcode, unique, node = struct.unpack_from("=IQQ", request, 4)
            op = NAMES.get(opcode, str(opcode))
            if op == silent or (op == "RENAME2" and silent == "RENAME"):
                print(f"stalled {op}", flush=True)
                continue
            if op in ("FORGET", "BATCH_FORGET", "INTERRUPT"):
                continue
            try:
                said, code = fs.answer(op, node, request[40:]), 0
            except OSError as e:
                said, code = b"", -(e.errno or errno.EIO)
            try:
                os.write(fd, struct.pack("=IiQ", 16 + len(said), code, unique) + said)
            except FileNotFoundError:
                continue  # interrupted


class Server:
    """The program, from mount to the end of its connection."""

    def __init__(self, mountpoint: Path):
        self.mountpoint = mountpoint
        self.process = subprocess.Popen(
            [sys.executable, __file__, mountpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.heard = ""
        self.expect(lambda: "mounted" in self.heard, "mounted")

    def listen(self) -> None:
        assert self.process.stdout is not None
        while more := self.process.stdout.read():
            self.heard += more.decode()

    def expect(self, condition: Callable[[], object], what: str, seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while True:
            self.listen()
            if condition():
                return
            assert time.monotonic() < end, f"the stalling server was not {what}: {self.heard}"
            time.sleep(0.01)

    def tell(self, *words: str) -> None:
        """From now on: `silent OPCODE`: that is read and not answered; `stop`: nothing is read any more."""
        assert self.process.stdin is not None
        before = self.heard.count("told")
        os.write(self.process.stdin.fileno(), " ".join(words).encode())
        self.expect(lambda: self.heard.count("told") > before, "told")

    def asked(self, op: str, times: int = 1, seconds: float = 10) -> None:
        """Wait until so many requests of that kind are without an answer."""
        self.expect(lambda: self.heard.count(f"stalled {op}") >= times, f"asked for {op}", seconds)

    def end(self) -> None:
        """Whoever waits for it gets an error, and its mount goes."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        subprocess.run(["umount", "-l", self.mountpoint], capture_output=True, check=False)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


if __name__ == "__main__":
    serve(sys.argv[1])
