"""What the daemon may tell the kernel without having been asked: each notification is sent, and its effect looked at.

They are written by this process, to the daemon's own fd, with _notify's functions. The mounts keep names and attributes
for long, so that what the kernel asks for again it asks for because of them.
"""
from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
from _daemon import Daemon, run, until

from passthru import _testing

PIDFD_GETFD = 438
ROOT = 1
KEEP = ("--attr-timeout", "1000", "--entry-timeout", "1000")
IN_DELETE_SELF = 0x400
LIBC = ctypes.CDLL(None, use_errno=True)


class Notified:
    """A mount, its counters, and notifications to its connection."""

    def __init__(self, fs: Daemon):
        self.fs = fs
        fs.strange_lines = list  # type: ignore[method-assign]  # nodeids are read in what it says
        fds = f"/proc/{fs.pid}/fd"
        number = min(int(n) for n in os.listdir(fds) if os.readlink(f"{fds}/{n}") == "/dev/fuse")
        process = os.pidfd_open(fs.pid)
        self.fd = LIBC.syscall(PIDFD_GETFD, process, number, 0)
        os.close(process)
        assert self.fd >= 0, os.strerror(ctypes.get_errno())
        self.kernel = _testing.Notifier(self.fd)

    def asked(self, name: str) -> int:
        """How many requests of that name have come."""
        return self.fs.stats().ops().get(name, 0)

    def asks(self, name: str, path: str = "f") -> int:
        """How many such requests a stat of a file takes."""
        before = self.asked(name)
        os.stat(self.fs.mnt / path)
        return self.asked(name) - before

    def node(self, path: str) -> int:
        """The nodeid of what is there, by the request that reads its label: the kernel keeps none."""
        assert run("set", self.fs.mnt, "debug_fuse=yes").returncode == 0
        begin = len(self.fs.stderr())
        try:
            os.getxattr(self.fs.mnt / path, "user.none")
        except OSError as e:
            assert e.errno in (errno.ENODATA, errno.ENOTSUP)
        finally:
            assert run("set", self.fs.mnt, "debug_fuse=no").returncode == 0
        lines = re.compile(r"opcode: GETXATTR \(22\), nodeid: (\d+)")
        until(lambda: lines.search(self.fs.stderr(), begin), "the request in the log")
        found = lines.search(self.fs.stderr(), begin)
        assert found is not None
        return int(found[1])

    def minor(self) -> int:
        return int(self.fs.stats().header["minor"])


@pytest.fixture
def notified(mount) -> Iterator[Notified]:
    n = Notified(mount(*KEEP))
    (n.fs.src / "f").write_bytes(b"before")
    os.stat(n.fs.mnt / "f")
    assert n.asks("LOOKUP") == n.asks("GETATTR") == 0  # all is known
    yield n
    os.close(n.fd)
    assert n.kernel.failed == 0


def test_attributes(notified):
    node = notified.node("f")
    os.chmod(notified.fs.src / "f", 0o640)
    assert os.stat(notified.fs.mnt / "f").st_mode & 0o777 != 0o640
    assert notified.kernel.attributes(node) == 0
    assert notified.asks("GETATTR") + notified.asks("STATX") == 1
    assert os.stat(notified.fs.mnt / "f").st_mode & 0o777 == 0o640


def test_pages(notified):
    """Those named are read again, the others are kept: the file's times do not show its change."""
    page = os.sysconf("SC_PAGE_SIZE")
    where, source = notified.fs.mnt / "f", notified.fs.src / "f"
    source.write_bytes(b"a" * 3 * page)
    st = source.stat()
    notified.kernel.attributes(notified.node("f"))
    with open(where, "rb", buffering=0) as f:

        def seen() -> str:
            f.seek(0)
            return "".join(chr(f.read(page)[-1]) for _ in range(3))

        assert seen() == "aaa"
        source.write_bytes(b"b" * 3 * page)
        os.utime(source, ns=(st.st_atime_ns, st.st_mtime_ns))
        assert seen() == "aaa"
        assert notified.kernel.attributes(notified.node("f")) == 0
        assert seen() == "aaa"
        assert notified.kernel.pages(notified.node("f"), page, page) == 0
        assert seen() == "aba"
        assert notified.kernel.pages(notified.node("f"), page, 0) == 0
        assert seen() == "abb"


@pytest.mark.parametrize("expire_only", [True, False])
def test_entry(notified, expire_only):
    """The name is looked up again. Only without EXPIRE_ONLY it is gone at once for who has it open."""
    (notified.fs.src / "d").mkdir()
    fd = os.open(notified.fs.mnt / "d", os.O_RDONLY)
    try:
        assert notified.kernel.entry(ROOT, b"d", expire_only) == 0
        assert os.readlink(f"/proc/self/fd/{fd}").endswith("/d (deleted)") is not expire_only
    finally:
        os.close(fd)
    assert notified.kernel.entry(ROOT, b"f", expire_only) == 0
    assert notified.asks("LOOKUP") == 1
    assert notified.asks("LOOKUP") == 0
    assert notified.kernel.entry(ROOT, b"never heard of", expire_only) == -errno.ENOENT


def events(inotify: int) -> int:
    """All that has been seen."""
    seen, data = 0, os.read(inotify, 65536)
    while data:
        _, mask, _, length = struct.unpack_from("=iIII", data)
        seen |= mask
        data = data[16 + length:]
    return seen


def test_delete(notified):
    """Who watches the file hears that it has gone; a name that is another inode's stays."""
    (notified.fs.src / "d" / "below").mkdir(parents=True)
    os.stat(notified.fs.mnt / "d" / "below")
    node = notified.node("f")
    inotify = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        watched = LIBC.inotify_add_watch(inotify, os.fsencode(notified.fs.mnt / "f"), IN_DELETE_SELF)
        assert watched >= 0
        assert notified.kernel.delete(ROOT, node + 1, b"f") == -errno.ENOENT
        with pytest.raises(BlockingIOError):
            os.read(inotify, 1000)
        os.stat(notified.fs.mnt / "f")
        os.unlink(notified.fs.src / "f")
        assert notified.kernel.delete(ROOT, node, b"f") == 0
        assert events(inotify) & IN_DELETE_SELF
    finally:
        os.close(inotify)
    assert not (notified.fs.mnt / "f").exists()
    node = notified.node("d")
    fd = os.open(notified.fs.mnt / "d" / "below", os.O_RDONLY)
    try:
        assert notified.kernel.delete(ROOT, node, b"d") == -errno.ENOTEMPTY
    finally:
        os.close(fd)


def test_epoch(notified):
    if notified.minor() < 44:
        pytest.skip("this kernel has no INC_EPOCH")
    (notified.fs.src / "d").mkdir()
    os.stat(notified.fs.mnt / "d")
    assert notified.kernel.epoch() == 0
    assert notified.asks("LOOKUP", "f") == 1 and notified.asks("LOOKUP", "d") == 1
    assert notified.asks("LOOKUP", "f") == 0


def test_prune(notified):
    """What nobody uses is forgotten, what is open is not."""
    if notified.minor() < 45:
        pytest.skip("this kernel has no PRUNE")
    (notified.fs.src / "g").touch()
    fd = os.open(notified.fs.mnt / "g", os.O_RDONLY)
    try:
        nodes = [notified.node("f"), notified.node("g")]
        before = notified.fs.stats().total("forgets")
        assert notified.kernel.prune([*nodes, 1 << 40]) == 0
        until(lambda: notified.fs.stats().total("forgets") == before + 1, "a FORGET")
        assert notified.asks("LOOKUP", "f") == 1
        assert notified.asks("LOOKUP", "g") == 0
    finally:
        os.close(fd)


LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+") as f:
    fcntl.lockf(f, fcntl.LOCK_EX)
"""


def test_resend(notified):
    """A request that waits comes again if it came by /dev/fuse, and is answered once. What a ring has does not."""
    if notified.minor() < 40:
        pytest.skip("this kernel has no RESEND")
    with open(notified.fs.src / "f", "r+") as f:
        fcntl.lockf(f, fcntl.LOCK_EX)
        waiting = subprocess.Popen([sys.executable, "-c", LOCK, str(notified.fs.mnt / "f")])
        try:
            until(lambda: notified.asked("SETLKW") == 1, "a request that waits")
            assert notified.kernel.resend() == 0
            if notified.fs.transport == "dev":
                until(lambda: notified.asked("SETLKW") == 2, "the same request once more")
            os.stat(notified.fs.mnt / "f")
            assert notified.asked("SETLKW") == (2 if notified.fs.transport == "dev" else 1)
            assert waiting.poll() is None
            fcntl.lockf(f, fcntl.LOCK_UN)
            assert waiting.wait(10) == 0
        finally:
            waiting.kill()
            waiting.wait()


def test_retrieve(notified):
    """What the kernel holds of a file comes as a request, by the ring if there is one: the counters are compared."""
    node = notified.node("f")
    with open(notified.fs.mnt / "f", "rb") as f:
        f.read()
        before = notified.asked("NOTIFY_REPLY")
        assert notified.kernel.retrieve(1 << 40, node, 0, 100) == 0
        until(lambda: notified.asked("NOTIFY_REPLY") == before + 1, "a NOTIFY_REPLY")
    assert notified.kernel.retrieve(1 << 40, 1 << 40, 0, 0) == -errno.ENOENT


def test_poll(notified):
    """Taken, but of no effect while POLL is not served: there is no number that anybody waits for."""
    assert notified.kernel.poll(1) == 0


def test_what_the_kernel_does_not_know(notified):
    assert notified.kernel.attributes(1 << 40) == -errno.ENOENT
    assert notified.kernel.entry(1 << 40, b"f", False) == -errno.ENOENT


def test_failures_are_counted(mount, capfd):
    """By an fd that is no connection's. Each notification's first failure is said."""
    n = Notified(mount(*KEEP))
    os.close(n.fd)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        kernel = _testing.Notifier(fd)
        assert kernel.attributes(ROOT) == kernel.attributes(ROOT) == -errno.EPERM
        assert kernel.epoch() == -errno.EPERM
        assert kernel.failed == 3
        said = capfd.readouterr().err
        assert said.count("notification INVAL_INODE: ") == said.count("notification INC_EPOCH: ") == 1
    finally:
        os.close(fd)
    assert n.fs.stats().header["notify_failed"] == 0
