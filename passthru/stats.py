"""The status page of a live mount: the counters that its threads write (layout: _stats.pxd).

A page is a file of the daemon's user, in a directory that only this user can write to. Who reads the pages of
others (root) takes nothing in them for granted: what a page says must agree with /proc, and what is no plain
file of the right owner and size is not opened or not believed.
"""

from __future__ import annotations

import difflib
import itertools
import json
import mmap
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .mounting import mounts
from .status_page import (
    BLOCK_FIELDS,
    COUNTERS,
    DIALECTS,
    HEADER,
    HEADER_FIELDS,
    NAME,
    OPCODES,
    READING,
    TRANSPORTS,
    directories,
    in_use,
    process_owner,
    read_header,
    start_ticks,
)

MOST_PAGES = 1000  # looked at in one directory

HEADER_DTYPE = np.dtype(list(HEADER_FIELDS))
THREAD_DTYPE = np.dtype(list(BLOCK_FIELDS))


def _bounds() -> np.ndarray[Any, np.dtype[np.int64]]:
    small = [64 * n for n in range(8)]
    return np.array(small + [(8 + n) << shift for shift in range(6, 33) for n in range(8)] + [1 << 36])


# Of the latency buckets, in ns: bucket n has what took BOUNDS[n] or more and less than BOUNDS[n + 1].
BOUNDS = _bounds()


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
    at: float = field(default_factory=time.time)
    seconds: int | None = None

    def __repr__(self) -> str:
        requests = self.total("ring_requests") + self.total("dev_requests")
        return (f"<Snapshot of {self.mountpoint}, pid {self.pid}, {self.transport}"
                f"{', kernel passthrough' if self.passthrough else ''}: {requests} requests in {self.uptime} s>")

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

    @property
    def cached(self) -> str:
        """What the kernel keeps of the source's names, and why no more, if it could be more."""
        return str(self._said().get("cached", ""))

    @property
    def passthrough(self) -> bool:
        """Does the kernel read and write files itself, on one filesystem at least?"""
        return bool(self.header["passthrough"])

    @property
    def not_passed(self) -> str:
        """The filesystems, in words, on which it would but cannot: there the daemon reads and writes."""
        return str(self._said().get("not_passed", ""))

    @property
    def takeover(self) -> dict[str, Any]:
        """Of a mount with --supervise, as report.Takeover has it; else empty."""
        said = self._said().get("takeover")
        return said if isinstance(said, dict) else {}

    @property
    def sandbox(self) -> str:
        """How the daemon is confined: the level of --sandbox, and in brackets why it is no higher one, if it is not."""
        return str(self._said().get("sandbox", ""))

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
        """A counter over all threads; status_page.COUNTERS has their names. KeyError: there is none of that name."""
        if counter not in COUNTERS:
            near = difflib.get_close_matches(counter, COUNTERS, 3) or COUNTERS
            raise KeyError(f"no counter {counter!r}; there are {', '.join(near)}")
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
    def uptime(self) -> int:
        """Seconds from the daemon's start to now; of a difference, seconds between its two snapshots."""
        return self.seconds if self.seconds is not None else max(0, int(self.at - int(self.header["started"])))

    def __sub__(self, before: Snapshot) -> Snapshot:
        """What has happened between two snapshots of one mount, whose counters are differences.

        ValueError: they are of different mounts.
        """
        if (self.pid, self.header["start_ticks"]) != (before.pid, before.header["start_ticks"]):
            raise ValueError(f"{self!r} and {before!r} are of different mounts")
        threads = self.threads.copy()
        known = min(len(threads), len(before.threads))
        for name in (*COUNTERS, "ops", "op_errors", "op_ns", "latency"):
            threads[name][:known] -= before.threads[name][:known]
        return Snapshot(self.header, threads, self.owner, self.path, self.at, round(self.at - before.at))

    def to_dict(self) -> dict[str, Any]:
        """The same in Python's own types, as for json.dumps()."""
        return {
            "source": self.source, "mountpoint": self.mountpoint, "pid": self.pid, "uptime": self.uptime,
            "transport": self.transport, "dialect": self.dialect, "passthrough": self.passthrough,
            "not_passed": self.not_passed, "why": self.why, "sandbox": self.sandbox, "in_flight": self.in_flight,
            "counters": {name: self.total(name) for name in COUNTERS}, "operations": self.ops(),
            "errors": self.op_errors(), "options": self.settings}

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
                    and process_owner(self.pid) == self.owner)
        except (OSError, ValueError, IndexError):
            return False


def _read(fd: int, path: Path, owner: int | None) -> Snapshot:
    st = os.fstat(fd)
    if not stat.S_ISREG(st.st_mode) or st.st_nlink > 1 or owner not in (None, st.st_uid):
        raise ValueError(f"{path}: not a status page")
    header = np.frombuffer(read_header(fd, path), HEADER_DTYPE, 1)[0]
    size = THREAD_DTYPE.itemsize
    if header["block_size"] != size:
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
    fd = os.open(path, READING)
    try:
        return _read(fd, path, owner)
    finally:
        os.close(fd)


def of_memory(memory: mmap.mmap, path: Path) -> Snapshot:
    """The daemon's own page."""
    header = np.frombuffer(memory, HEADER_DTYPE, 1)[0]
    used = min(int(header["threads"]), int(header["used"]))
    return Snapshot(header.copy(), np.frombuffer(memory, THREAD_DTYPE, used, HEADER).copy(), os.geteuid(), path)


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
        for name in sorted(filter(NAME.fullmatch, names)):
            try:
                fd = os.open(name, READING, dir_fd=directory_fd)
            except OSError:
                continue  # just going
            try:
                yield _read(fd, where / name, owner)
            except ValueError as e:
                if in_use(fd):
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
    """The snapshot of the mount at `mountpoint`, the newest. LookupError if none of ours is there."""
    want = os.fspath(os.path.abspath(mountpoint))
    found = [s for s in live() if s.mountpoint == want]  # others have been detached, or have another one over them
    if not found:
        raise LookupError(f"{os.fspath(mountpoint)}: no live passthru mount")
    return max(found, key=lambda s: int(s.header["start_ticks"]))
