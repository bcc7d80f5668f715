"""A reader of /dev/fuse, with a socket in its place: what it makes of requests, and of replies that are not taken."""
from __future__ import annotations

import errno
import os
import socket
import struct
import threading

import pytest
from _served import OPCODES, Mount, apart, served, until

from passthru import _server

HEADER = struct.Struct("=IIQQIIIHH")


class Reader:
    def __init__(self, m: Mount):
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.core = m.core
        self.thread = threading.Thread(target=self.serve, args=(theirs.detach(),))
        self.thread.start()

    def serve(self, fd: int) -> None:
        reader = _server.ReaderThread(self.core)
        reader.open(fd)
        reader.serve()
        reader.close()

    def send(self, name: str, node: int = 1, rest: bytes = b"", unique: int = 100, length: int | None = None) -> None:
        size = HEADER.size + len(rest) if length is None else length
        self.ours.send(HEADER.pack(size, OPCODES[name], unique, node, 0, 0, 1, 0, 0) + rest)

    def answer(self) -> tuple[int, int, bytes]:
        """(error, number of the request, the rest)."""
        reply = self.ours.recv(1 << 17)
        length, error, unique = struct.unpack_from("=IiQ", reply)
        assert length == len(reply)
        return error, unique, reply[16:]

    def ask(self, *args, **more) -> tuple[int, int, bytes]:
        self.send(*args, **more)
        return self.answer()

    def end(self) -> None:
        self.core.stop()
        self.ours.send(b"x")  # too short for anything, but read
        self.thread.join()
        self.ours.close()


@pytest.fixture
def source(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_text("content")
    return tmp_path / "src"


@apart
def test_answers(source):
    """Each to its own request, an error without a body; nothing for FORGET."""
    with served(source) as m:
        r = Reader(m)
        error, unique, body = r.ask("LOOKUP", 1, b"f\0", unique=12)
        assert (error, unique, len(body)) == (0, 12, 128)
        node = struct.unpack_from("=Q", body)[0]
        assert r.ask("LOOKUP", 1, b"a/b\0", unique=14) == (-errno.EINVAL, 14, b"")
        r.send("FORGET", node, struct.pack("=Q", 1))
        assert r.ask("GETATTR", node, bytes(16), unique=16) == (-errno.ESTALE, 16, b"")
        assert r.ask("BMAP", 1, bytes(16), unique=18) == (-errno.ENOSYS, 18, b"")
        r.end()


@apart
def test_lengths_that_are_not_right(source):
    with served(source) as m:
        r = Reader(m)
        assert r.ask("LOOKUP", 1, b"f\0", length=41)[0] == -errno.EIO
        assert r.ask("LOOKUP", 1, b"f\0", length=43)[0] == -errno.EIO
        assert r.ask("GETATTR", 1, bytes(15))[0] == -errno.EINVAL
        _, _, body = r.ask("LOOKUP", 1, b"f\0")
        node = struct.unpack_from("=Q", body)[0]
        r.send("FORGET", node, struct.pack("=Q", 1), length=47)  # not answered, and not done
        r.send("FORGET", node, b"1234")
        assert r.ask("GETATTR", node, bytes(16))[0] == 0
        r.end()


@apart
@pytest.mark.parametrize("name, rest", [
    ("LOOKUP", b"f\0"), ("MKDIR", struct.pack("=II", 0o755, 0) + b"d\0"), ("SYMLINK", b"l\0target\0"),
    ("MKNOD", struct.pack("=IIII", 0o100644, 0, 0, 0) + b"n\0"), ("LINK", None), ("OPEN", None), ("OPENDIR", bytes(8)),
    ("CREATE", struct.pack("=IIII", os.O_RDWR, 0o644, 0, 0) + b"c\0"),
    ("TMPFILE", struct.pack("=IIII", os.O_RDWR, 0o644, 0, 0) + b"\0"), ("READDIRPLUS", None),
])
def test_what_is_not_taken_is_given_back(source, name, rest):
    """The kernel does not take a reply (the caller has been killed): it has no lookup and no handle of it."""
    with served(source) as m:
        r = Reader(m)
        node = 1
        if name in ("LINK", "OPEN"):
            known = struct.unpack_from("=Q", r.ask("LOOKUP", 1, b"f\0")[2])[0]
            rest = struct.pack("=Q", known) + b"k\0" if name == "LINK" else struct.pack("=II", os.O_RDWR, 0)
            node = known if name == "OPEN" else 1
        if name == "READDIRPLUS":
            handle = struct.unpack_from("=Q", r.ask("OPENDIR", 1, bytes(8))[2])[0]
            rest = struct.pack("=QQI20x", handle, 0, 4096)
        before = m.core.live
        r.ours.shutdown(socket.SHUT_RD)
        r.send(name, node, rest)
        r.send("MKDIR", 1, struct.pack("=II", 0o755, 0) + b"after\0")
        until((source / "after").exists, "served")
        until(lambda: m.core.live == before, f"given back: {m.core.live} instead of {before}", 3)
        if name == "LINK":
            r.send("FORGET", known, struct.pack("=Q", 1))
            until(lambda: m.core.live == (1, 0), "no lookup too many", 3)
        r.end()
