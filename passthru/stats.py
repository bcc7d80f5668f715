"""The status page of a live mount: the counters that its threads write (layout: _stats.pxd).

A page is a file of the daemon's user, in a directory that only this user can write to. Who reads the pages of
others (root) takes nothing in them for granted: what a page says must agree with /proc, and what is no plain
file of the right owner and size is not opened or not believed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import mmap
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .mounting import mounts

MAGIC, VERSION, HEADER = 0x75726874, 2, 16384
TRANSPORTS = {0: "none", 1: "ring", 2: "dev"}
DIALECTS = {0: "", 1: "per-entry", 2: "bufring", 3: "bufpool"}
KINDS = {0: "", 1: "queue", 2: "dev", 3: "pool"}
SETTINGS = 6144  # room for the settings in the header
BUCKETS = 224
MOST_PAGES = 1000  # looked at in one directory

HEADER_DTYPE = np.dtype([
    ("magic", "u4"), ("version", "u4"), ("pid", "u4"), ("header_size", "u4"), ("threads", "u4"),
    ("block_size", "u4"), ("used", "u4"), ("transport", "u4"), ("dialect", "u4"), ("queues", "u4"), ("depth", "u4"),
    ("buffers", "u4"), ("readers", "u4"), ("pinned", "u4"), ("zero_copy", "u4"), ("passthrough", "u4"),
    ("identity", "u4"), ("minor", "u4"), ("max_write", "u4"), ("payload_size", "u4"),
    ("init_flags", "u8"), ("fuse_dev", "u8"), ("mount_id", "u8"), ("start_ticks", "u8"), ("started", "u8"),
    ("settings_seq", "u4"), ("settings_len", "u4"), ("pad", "V64"),
    ("inodes", "u4"), ("pad1", "V60"), ("handles", "u4"), ("pad2", "V60"), ("backings", "u4"), ("pad3", "V60"),
    ("source", "S4096"), ("mountpoint", "S4096"), ("settings", f"V{SETTINGS}"),
])
COUNTERS = (
    "ring_requests", "commits", "dev_requests", "dev_replies", "errors", "read_bytes", "write_bytes",
    "io_inline", "io_ring", "io_fixed", "io_pool", "enters", "sleeps", "lookups", "forgets", "opens",
    "releases", "entries_lost", "io_zero_copy", "refused", "buffers_taken", "buffers_given", "opens_passthrough",
)
THREAD_DTYPE = np.dtype(
    [("kind", "u8"), ("cpu", "i8")] + [(n, "u8") for n in COUNTERS]
    + [("spare", "u8", 7), ("queues", "S64"), ("ops", "u8", 64), ("op_errors", "u8", 64), ("op_ns", "u8", 64),
       ("latency", "u8", (64, BUCKETS))])

OPCODES = {
    1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 6: "SYMLINK", 8: "MKNOD", 9: "MKDIR",
    10: "UNLINK", 11: "RMDIR", 12: "RENAME", 13: "LINK", 14: "OPEN", 15: "READ", 16: "WRITE", 17: "STATFS",
    18: "RELEASE", 20: "FSYNC", 21: "SETXATTR", 22: "GETXATTR", 23: "LISTXATTR", 24: "REMOVEXATTR", 25: "FLUSH",
    26: "INIT", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 31: "GETLK", 32: "SETLK",
    33: "SETLKW", 34: "ACCESS", 35: "CREATE", 36: "INTERRUPT", 37: "BMAP", 38: "DESTROY", 39: "IOCTL", 40: "POLL",
    41: "NOTIFY_REPLY", 42: "BATCH_FORGET", 43: "FALLOCATE", 44: "READDIRPLUS", 45: "RENAME2", 46: "LSEEK",
    47: "COPY_FILE_RANGE", 48: "SETUPMAPPING", 49: "REMOVEMAPPING", 50: "SYNCFS", 51: "TMPFILE", 52: "STATX",
    53: "COPY_FILE_RANGE_64",
}



def _bounds() -> np.ndarray[Any, np.dtype[np.int64]]:
    small = [64 * n for n in range(8)]
    return np.array(small + [(8 + n) << shift for shift in range(6, 33) for n in range(8)] + [1 << 36])


# Of the latency buckets, in ns: bucket n has what took BOUNDS[n] or more and less than BOUNDS[n + 1].
BOUNDS = _bounds()


def directory() -> Path:
    """Where this user's daemons keep their pages: /run/passthru, or in the user's runtime directory."""
    if os.geteuid() == 0:
        return Path("/run/passthru")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "passthru" if base else Path(f"/tmp/passthru-{os.geteuid()}")


def directories(*, everybody: bool = False) -> list[tuple[Path, int]]:
    """(directory, its owner's uid) wherever pages of this user may be; `everybody`: and of all users, for root."""
    uid = os.geteuid()
    found = {directory(): uid}
    if uid:
        found |= {Path(f"/run/user/{uid}/passthru"): uid, Path(f"/tmp/passthru-{uid}"): uid}
    elif everybody:
        for parent, prefix, rest in (("/run/user", "", "/passthru"), ("/tmp", "passthru-", "")):
            with contextlib.suppress(OSError):
                for name in os.listdir(parent):
                    number = name.removeprefix(prefix)
                    if name.startswith(prefix) and number.isascii() and number.isdigit():
                        found[Path(f"{parent}/{name}{rest}")] = int(number)
    return list(found.items())


def start_ticks(pid: int) -> int:
    """When a process was started, in clock ticks after boot (proc(5)). OSError: there is none, or it has ended."""
    with open(f"/proc/{pid}/stat", "rb") as f:
        words = f.read().rpartition(b")")[2].split()
    if words[0] in (b"Z", b"X"):
        raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended")
    return int(words[19])


def _runs(pid: int) -> bool:
    try:
        return bool(start_ticks(pid))
    except (OSError, IndexError, ValueError):
        return False


class Page:
    """A daemon's own page: created for the owner's eyes, removed at the end."""

    def __init__(self, size: int):
        where = directory()
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        st = where.lstat()  # in /tmp it may be anybody's, or a link
        if st.st_uid != os.geteuid() or not stat.S_ISDIR(st.st_mode) or st.st_mode & 0o022:
            raise PermissionError(errno.EPERM, f"{where} can be written by others")
        self._clean(where)
        self.path = where / str(os.getpid())
        self.path.unlink(missing_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            self.memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self.describe(start_ticks=start_ticks(os.getpid()), started=int(time.time()))

    @staticmethod
    def _clean(where: Path) -> None:
        """Remove what was left by daemons that were killed, but not while their dead mounts are there."""
        there = {(m.dev, m.mount_id) for m in mounts()}
        for left in where.iterdir():
            number = left.name.removesuffix(".sock")
            if not number.isdigit() or _runs(int(number)):
                continue
            with contextlib.suppress(OSError, ValueError):
                header = read(where / number, os.geteuid()).header
                if (header["fuse_dev"], header["mount_id"]) in there:
                    continue
            left.unlink(missing_ok=True)

    def describe(self, **fields: int | bytes) -> None:
        """Write fields of the header."""
        header = np.frombuffer(self.memory, HEADER_DTYPE, 1)
        for name, value in fields.items():
            header[name] = value

    def settings(self, options: dict[str, Any], why: str = "") -> None:
        """Say which options are in effect, and why there is no ring. ValueError: there is no room for it."""
        text = json.dumps({"options": options, "why": why}).encode()
        if len(text) > SETTINGS:
            raise ValueError("settings too long")
        header = np.frombuffer(self.memory, HEADER_DTYPE, 1)
        at = HEADER_DTYPE.fields["settings"][1]  # type: ignore[index]
        header["settings_seq"] |= 1
        self.memory[at:at + len(text)] = text
        header["settings_len"] = len(text)
        header["settings_seq"] += 1

    def remove(self) -> None:
        """Take the page out of sight; the memory stays as long as it is used."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Latency:
    """How long requests took in the daemon, from when it saw them to when it answered: a histogram.

    buckets: counts by BOUNDS. ns: the sum, in nanoseconds.
    """

    buckets: Any
    ns: int

    @property
    def count(self) -> int:
        return int(self.buckets.sum())

    def quantile(self, q: float) -> float:
        """In seconds, not more than 1/16 off; nan if there is nothing."""
        below = np.cumsum(self.buckets)
        if not len(below) or not below[-1]:
            return float("nan")
        rank = q * float(below[-1])
        n = int(np.searchsorted(below, rank))
        while not self.buckets[n]:  # rank 0
            n += 1
        before = float(below[n]) - float(self.buckets[n])
        part = min(1.0, max(0.0, (rank - before) / float(self.buckets[n])))
        return float(BOUNDS[n] + part * (BOUNDS[n + 1] - BOUNDS[n])) * 1e-9

    def __sub__(self, before: Latency) -> Latency:
        return Latency(self.buckets - before.buckets, self.ns - before.ns)


@dataclass(frozen=True, repr=False)
class Snapshot:
    """A mount's counters at one moment. header and threads are numpy records of the page's layout.

    A counter is read at once, but one after the other: two of them may be of different moments.
    """

    header: Any
    threads: Any
    owner: int = 0
    path: Path = Path()

    def __repr__(self) -> str:
        return f"<Snapshot of {self.mountpoint}, pid {self.pid}, {self.transport}>"

    @property
    def pid(self) -> int:
        return int(self.header["pid"])

    @property
    def source(self) -> str:
        return os.fsdecode(bytes(self.header["source"]))

    @property
    def mountpoint(self) -> str:
        """Where it was mounted; it may have been moved or detached since then."""
        return os.fsdecode(bytes(self.header["mountpoint"]))

    @property
    def transport(self) -> str:
        """'ring' or 'dev'; 'none' before the mount is usable."""
        return TRANSPORTS.get(int(self.header["transport"]), "none")

    @property
    def dialect(self) -> str:
        return DIALECTS.get(int(self.header["dialect"]), "")

    @property
    def settings(self) -> dict[str, Any]:
        """The options in effect; {} if they are just being changed."""
        found = self._said().get("options")
        return found if isinstance(found, dict) else {}

    @property
    def why(self) -> str:
        """Why there is no ring, if that was not what was asked for."""
        return str(self._said().get("why", ""))

    def _said(self) -> dict[str, Any]:
        text = bytes(self.header["settings"])[:int(self.header["settings_len"])]
        if self.header["settings_seq"] % 2:
            return {}
        try:
            found = json.loads(text or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def total(self, counter: str) -> int:
        """A counter over all threads."""
        return int(self.threads[counter].sum())

    def ops(self) -> dict[str, int]:
        """Requests served by opcode, those that came."""
        return self._by_opcode("ops")

    def op_errors(self) -> dict[str, int]:
        """Of these, those answered with an error."""
        return self._by_opcode("op_errors")

    def _by_opcode(self, counter: str) -> dict[str, int]:
        sums = self.threads[counter].sum(axis=0)
        return {OPCODES.get(n, f"opcode {n}"): int(c) for n, c in enumerate(sums) if c}

    def latencies(self) -> dict[str, Latency]:
        """By opcode, those that were answered."""
        buckets, ns = self.threads["latency"].sum(axis=0), self.threads["op_ns"].sum(axis=0)
        return {OPCODES.get(n, f"opcode {n}"): Latency(buckets[n], int(ns[n]))
                for n in range(len(ns)) if buckets[n].any()}

    @property
    def in_flight(self) -> int:
        """Requests that the daemon has and has not answered."""
        t = self.threads
        came = t["ring_requests"].sum() + t["dev_requests"].sum()
        return max(0, int(came) - int(t["commits"].sum() + t["dev_replies"].sum()))

    def alive(self) -> bool:
        """Does the process that made this page still run, as the user whose page it is?"""
        try:
            return (start_ticks(self.pid) == self.header["start_ticks"]
                    and os.stat(f"/proc/{self.pid}").st_uid == self.owner)
        except (OSError, ValueError, IndexError):
            return False


def _read(fd: int, path: Path, owner: int | None) -> Snapshot:
    st = os.fstat(fd)
    if not stat.S_ISREG(st.st_mode) or st.st_nlink > 1 or owner not in (None, st.st_uid):
        raise ValueError(f"{path}: not a status page")
    data = os.pread(fd, HEADER, 0)
    if len(data) < HEADER:
        raise ValueError(f"{path}: not a status page")
    header = np.frombuffer(data, HEADER_DTYPE, 1)[0]
    size = THREAD_DTYPE.itemsize
    if (header["magic"], header["version"], header["header_size"], header["block_size"]) != (
            MAGIC, VERSION, HEADER, size):
        raise ValueError(f"{path}: a status page of another version")
    threads = int(header["threads"])
    if threads > 2 * (os.cpu_count() or 1) + 4096 or HEADER + threads * size > st.st_size:
        raise ValueError(f"{path}: a status page of the wrong size")
    length = min(threads, int(header["used"])) * size
    blocks = bytearray(length)
    at = 0
    while at < length:
        n = os.preadv(fd, [memoryview(blocks)[at:]], HEADER + at)
        if not n:
            raise ValueError(f"{path}: a status page of the wrong size")
        at += n
    return Snapshot(header, np.frombuffer(blocks, THREAD_DTYPE), st.st_uid, path)


def read(path: Path, owner: int | None = None) -> Snapshot:
    """Read a page. ValueError if it is not one of this version, and of the user `owner` if that is given."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _read(fd, path, owner)
    finally:
        os.close(fd)


def _pages(where: Path, owner: int) -> Iterator[Snapshot | ValueError]:
    try:
        directory_fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        st = os.fstat(directory_fd)
        if st.st_uid != owner or st.st_mode & 0o022:
            return
        with os.scandir(directory_fd) as entries:
            names = [e.name for e in itertools.islice(entries, MOST_PAGES)]
        for name in sorted((n for n in names if n.isascii() and n.isdigit()), key=int):
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
            except OSError:
                continue  # just going
            try:
                yield _read(fd, where / name, owner)
            except ValueError as e:
                if _runs(int(name)):
                    yield e
            finally:
                os.close(fd)
    finally:
        os.close(directory_fd)


def pages(*, everybody: bool = False) -> tuple[list[Snapshot], list[str]]:
    """All pages of this user (`everybody`: of all users, for root), of live daemons or not, and what is no page."""
    found: list[Snapshot] = []
    strange: list[str] = []
    targets = [m.target for m in mounts()]
    for where, owner in directories(everybody=everybody):
        # What another user has mounted there may hang whoever looks.
        if owner != os.geteuid() and any(t == str(where) or t.startswith(f"{where}/") for t in targets):
            continue
        for page in _pages(where, owner):
            if isinstance(page, ValueError):
                strange.append(str(page))
            else:
                found.append(page)
    return found, strange


def live() -> list[Snapshot]:
    """Snapshots of this user's live mounts."""
    return [s for s in pages()[0] if s.alive()]


def of(mountpoint: str | os.PathLike[str]) -> Snapshot:
    """The snapshot of the mount at `mountpoint`. LookupError if none of ours is there."""
    want = os.fspath(os.path.abspath(mountpoint))
    for snapshot in reversed(live()):
        if snapshot.mountpoint == want:
            return snapshot
    raise LookupError(f"{os.fspath(mountpoint)}: no live passthru mount")
