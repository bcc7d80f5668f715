"""Requests served without a kernel, by the handlers themselves. Whoever serves them gives up its signals, groups and
umask, so a test that does is run in a process of its own: apart()."""
from __future__ import annotations

import functools
import os
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from passthru import _server, _testing, sandbox, serving, status_page
from passthru.options import Options

OPCODES = {name: n for n, name in status_page.OPCODES.items()}
ENTRY, ATTR, OPENED = 128, 104, 16  # bytes of replies
PAYLOAD = 65536
PATIENCE = 30  # seconds for a test
KEEP_CACHE, DIRECT_IO = 2, 1  # FOPEN_
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root acts as its callers")


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a child process; one that does not end in time is killed, and has failed."""
    @functools.wraps(test)
    def run(*args: Any, **more: Any) -> None:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            said = b"ended"
            try:
                os.close(read_end)
                test(*args, **more)
                said = b"good"
            except pytest.skip.Exception as e:
                said = b"skip" + str(e).encode()
            except BaseException:
                said = traceback.format_exc().encode()
            finally:
                os.write(write_end, said[-60000:])
                os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end, "rb", buffering=0) as f:
            ready = select.select([f], [], [], PATIENCE)[0]
            if not ready:
                os.kill(child, signal.SIGKILL)
            said = f.read(60000) if ready else b"hangs"
        os.waitpid(child, 0)
        if said.startswith(b"skip"):
            pytest.skip(said[4:].decode())
        if said != b"good":
            pytest.fail(said.decode(errors="replace") or "it died", pytrace=False)

    return run


class Queue:
    """Serves for the thread that makes it, which becomes a serving thread."""

    def __init__(self, core: _server.ServerCore):
        self.requests = _testing.Requests(core, PAYLOAD)

    def ask(
        self, name: str, node: int = 1, first: bytes = b"", payload: bytes = b"", *, uid: int = 0, gid: int = 0,
        pid: int = 0, ext: bytes = b"", unique: int = 100,
    ) -> tuple[int, bytes]:
        """(length of the reply or -errno, its first 160 bytes). pid 0: of nobody that could have a capability."""
        payload += ext
        header = struct.pack("=IIQQIIIHH", 40 + len(first) + len(payload), OPCODES[name], unique, node, uid, gid, pid,
                             len(ext) // 8, 0)
        slot = header.ljust(128, b"\0") + first.ljust(128, b"\0") + struct.pack("=QQIIQ", 0, 9, len(payload), 0, 0)
        assert self.requests.parse(slot, payload)[0] == 0
        result, reply = self.requests.serve()
        return result, reply[:max(result, 0)]

    def lookup(self, name: bytes, node: int = 1) -> tuple[int, bytes]:
        """(nodeid, the whole reply)."""
        result, reply = self.ask("LOOKUP", node, payload=name + b"\0")
        assert result == ENTRY, result
        return struct.unpack_from("=Q", reply)[0], reply

    def forget(self, node: int, n: int = 1) -> None:
        assert self.ask("FORGET", node, struct.pack("=Q", n))[0] < -0xffff

    def known(self, node: int) -> bool:
        result, _ = self.ask("GETATTR", node, bytes(16))
        assert result in (ATTR, -116), result
        return result == ATTR

    def open(self, node: int, flags: int = os.O_RDWR, more: int = 0, name: str = "OPEN", **who: Any) -> tuple[int, int]:
        """(file handle, FOPEN_ flags)."""
        result, reply = self.ask(name, node, struct.pack("=II", flags, more), **who)
        assert result == OPENED, result
        return struct.unpack_from("=QI", reply)

    def create(self, name: bytes, node: int = 1, mode: int = 0o644, flags: int = os.O_RDWR, **who: Any):
        """(nodeid, file handle)."""
        result, reply = self.ask("CREATE", node, struct.pack("=IIII", flags, mode, 0o022, 0), name + b"\0", **who)
        assert result == ENTRY + OPENED, result
        return struct.unpack_from("=Q", reply)[0], struct.unpack_from("=Q", reply, ENTRY)[0]

    def release(self, node: int, handle: int, name: str = "RELEASE") -> None:
        assert self.ask(name, node, struct.pack("=QIIQ", handle, 0, 0, 0))[0] == 0

    def write(self, node: int, handle: int, at: int, data: bytes, how: int = 0, flags: int = 0, **who: Any) -> int:
        """how: FUSE_WRITE_ flags; flags: the open file's at this moment."""
        return self.ask("WRITE", node, struct.pack("=QQIIQII", handle, at, len(data), how, 0, flags, 0), data, **who)[0]

    def read(self, node: int, handle: int, at: int, size: int, flags: int = 0) -> tuple[int, bytes]:
        return self.ask("READ", node, struct.pack("=QQIIQII", handle, at, size, 0, 0, flags, 0))

    def lock(
        self, node: int, handle: int, kind: int, start: int, end: int, owner: int = 1, name: str = "SETLK",
        flags: int = 0, **more: Any
    ) -> int:
        """A record lock of [start, end]; kind: of fcntl(2). flags: 1 for a flock(2)."""
        return self.ask(name, node, struct.pack("=QQQQIIII", handle, owner, start, end, kind, 7, flags, 0), **more)[0]


class Mount:
    def __init__(self, source: Path, core: _server.ServerCore):
        self.source, self.core = source, core
        self.first = self.queue()

    def queue(self) -> Queue:
        """For the calling thread."""
        return Queue(self.core)


@contextmanager
def served(
    source: Path, flags: int = 0, minor: int = 46, fd_cache: int = 16, identity: bool = False, **options: Any,
) -> Iterator[Mount]:
    """A directory served to the calling thread's questions. flags: of INIT; options: as a mount has them."""
    fd, mountinfo = os.open(source, os.O_RDONLY), os.open("/proc/self/mountinfo", os.O_RDONLY)
    sandbox.fd_directory()
    page = bytearray(_server.stats_size(16))
    core = _server.ServerCore(
        fd, page, 16, 4, fd_cache, payload_size=PAYLOAD, max_write=PAYLOAD, fixed_budget=0, identity=identity,
        locks=True, xattr=True, writeback=False, mountinfo=mountinfo)
    serving.configure(core, Options(**{"spin_us": 0, **options}), passthrough=False)
    core.negotiated(flags, minor, -1, False)
    core.mounts_changed()
    yield Mount(source, core)
    core.stop()


def groups() -> list[int]:
    """Supplementary groups of the calling thread."""
    with open("/proc/thread-self/status", encoding="ascii") as f:
        return [int(g) for g in next(line for line in f if line.startswith("Groups:")).split()[1:]]


def until(condition: Callable[[], object], what: str, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} seconds still not: {what}"
        time.sleep(0.005)
