"""Mounts as seen from outside: which there are, whether they live, what they do.

Nothing here asks a mounted filesystem: a daemon that hangs is what one wants to look at.
"""

from __future__ import annotations

import contextlib
import math
import os
import pwd
import time
from dataclasses import dataclass
from typing import Any

import psutil

from . import stats
from .errors import MountpointError, PassthruError
from .mounting import MountInfo, mounts
from .stats import Snapshot
from .status_page import COUNTERS, KINDS

MOUNTED = "mounted"
ELSEWHERE = "in another namespace"  # of mounts
DETACHED = "detached"               # umount -l: it lives until its last file is closed
DEAD = "dead"                       # the daemon has gone, its mount has not
UNKNOWN = "no status page"          # of another version, in a directory that is not looked at, or just starting
PASSTHROUGH_NOTE = "kernel passthrough: READ and WRITE of most files do not reach the daemon and are not counted"


@dataclass(frozen=True)
class Mount:
    """A mount. page: its daemon's status page, if there is one; mountpoint: where it is now."""

    state: str
    source: str
    mountpoint: str
    owner: int
    page: Snapshot | None

    @property
    def user(self) -> str:
        return user_name(self.owner)

    def live(self) -> Snapshot:
        """The page of a live daemon. PassthruError if there is none."""
        if self.page is None:
            raise PassthruError(f"{shown(self.mountpoint)}: a mount without a status page of this version")
        if self.state == DEAD:
            raise PassthruError(
                f"{shown(self.mountpoint)}: its daemon (pid {self.page.pid}) has ended without unmounting: umount it")
        return self.page


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def shown(text: str) -> str:
    """A path as it can be shown on a terminal: others may have chosen it."""
    return "".join(c if c.isprintable() else c.encode("utf-8", "surrogateescape").decode("latin-1").encode(
        "unicode_escape").decode() for c in text)


def _is_served_by(m: MountInfo, page: Snapshot) -> bool:
    """Is m what the page says? Its owner may have written anything into it, but not whose mount m is."""
    return m.dev == page.header["fuse_dev"] and m.user_id == page.owner


def _family(pid: int) -> list[int]:
    """A daemon and its keeper: the daemon may have a namespace of its own, in which its mount is not."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children())]
    except psutil.Error:
        return [pid]


def _of_page(page: Snapshot, table: list[MountInfo]) -> Mount | None:
    here = [m for m in table if _is_served_by(m, page)]
    own = next((m for m in here if m.mount_id == page.header["mount_id"]), None)
    if not page.alive():
        return Mount(DEAD, page.source, own.target, page.owner, page) if own else None
    if page.transport == "none":
        return None  # it is just starting
    if here:
        return Mount(MOUNTED, page.source, (own or here[0]).target, page.owner, page)
    state = DETACHED
    for pid in _family(page.pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if any(_is_served_by(m, page) for m in mounts(pid)):
                state = ELSEWHERE
    return Mount(state, page.source, page.mountpoint, page.owner, page)


def find_all() -> list[Mount]:
    """All mounts of this user, or, for root, of all users; in the order of their mountpoints."""
    table = mounts()
    found = [m for page in stats.pages(everybody=True)[0] if (m := _of_page(page, table))]
    known = {int(m.page.header["fuse_dev"]) for m in found if m.page}
    for info in table:
        if info.fstype == "fuse.passthru" and info.dev not in known and os.geteuid() in (0, info.user_id):
            known.add(info.dev)
            found.append(Mount(UNKNOWN, info.source, info.target, info.user_id or 0, None))
    return sorted(found, key=lambda m: (m.mountpoint, m.owner))


def find(path: str) -> Mount:
    """The mount at a path: where it was mounted, or where it is bound or has been moved to. MountpointError."""
    table, every = mounts(), find_all()
    wanted = os.path.abspath(path)
    for resolve in (False, True):
        if resolve:  # it may be a symbolic link; if it is a mount of ours we do not get here
            wanted = os.path.realpath(path)
        top = next((m for m in reversed(table) if m.target == wanted), None)
        for m in every:
            if top is not None and m.page is not None and _is_served_by(top, m.page):
                return m
        found = [m for m in every if m.mountpoint == wanted]
        if found:
            return max(found, key=lambda m: m.state == MOUNTED)
        if top is not None and top.user_id not in (None, os.geteuid()) and os.geteuid():
            raise MountpointError(
                f"{shown(path)}: mounted by {user_name(top.user_id or 0)}, and only they and root can see its status")
        if top is not None:
            break
    raise MountpointError(f"{shown(path)}: no passthru mount")


def refresh(page: Snapshot) -> Snapshot | None:
    """The page as it is now, or None if its daemon has ended."""
    try:
        new = stats.read(page.path, page.owner)
    except (OSError, ValueError):
        return None
    same = (new.pid, new.header["start_ticks"]) == (page.pid, page.header["start_ticks"])
    return new if same and new.alive() else None


# ------------------------------------------------------------------ figures

def threads(s: Snapshot) -> list[dict[str, Any]]:
    """The serving threads: each that has queues; the readers, and those of the pools, together."""
    rows = []
    for kind in ("queue", "dev", "pool", "watch"):
        number = next(n for n, name in KINDS.items() if name == kind)
        of_kind = s.threads[s.threads["kind"] == number]
        alone = kind == "queue"
        for group in [of_kind[n:n + 1] for n in range(len(of_kind))] if alone else [of_kind] if len(of_kind) else []:
            row: dict[str, Any] = {"kind": kind, "threads": len(group)}
            if kind == "queue":
                row["cpu"] = int(group["cpu"][0])
                row["queues"] = bytes(group["queues"][0]).decode("ascii", "replace")
                row["in_flight"] = max(0, int(group["ring_requests"].sum()) - int(group["commits"].sum()))
                row["buffers_in_use"] = max(0, int(group["buffers_taken"].sum()) - int(group["buffers_given"].sum()))
            row |= {name: int(group[name].sum()) for name in COUNTERS}
            rows.append(row)
    return rows


def operations(s: Snapshot) -> dict[str, dict[str, Any]]:
    """By opcode: count, errors, and in seconds the sum and quantiles of the time they took; None: none answered."""
    ops, errors, latencies = s.ops(), s.op_errors(), s.latencies()
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(ops, key=lambda n: -ops[n]):
        latency = latencies.get(name)
        quantiles = {key: latency.quantile(q) if latency and latency.count else None
                     for key, q in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))}
        found[name] = {"count": ops[name], "errors": errors.get(name, 0),
                       "seconds": latency.ns * 1e-9 if latency else 0.0, **quantiles}
    return found


def pool_pinned(s: Snapshot) -> int:
    """Bytes of payload buffers that are pinned from the start, as those of a pool may be."""
    h = s.header
    return int(h["queues"]) * int(h["buffers"]) * int(h["payload_size"]) if h["pinned"] else 0


def process(s: Snapshot) -> dict[str, Any]:
    """Memory (bytes), CPU time (seconds), threads and fds of the daemon; {} if it has ended."""
    try:
        p = psutil.Process(s.pid)
        with p.oneshot():
            memory, cpu = p.memory_info(), p.cpu_times()
            found: dict[str, Any] = {
                "rss": memory.rss, "shared": memory.shared, "cpu_user": cpu.user, "cpu_system": cpu.system,
                "threads": p.num_threads()}
        with contextlib.suppress(psutil.Error):
            found["fds"] = p.num_fds()
        with open(f"/proc/{s.pid}/status", encoding="ascii", errors="replace") as f:
            kib = {k: int(v.split()[0]) << 10 for k, _, v in (line.partition(":") for line in f)
                   if k in ("VmLck", "VmPin", "VmSwap")}
        # Linux 7.3 does not count there what a process with CAP_IPC_LOCK has registered.
        counted = kib.get("VmPin", 0) + kib.get("VmLck", 0)
        return found | {"pinned": max(counted, pool_pinned(s)), "swap": kib.get("VmSwap", 0)}
    except (psutil.Error, OSError):
        return {}


def summary(m: Mount) -> dict[str, Any]:
    """What `list` shows."""
    found: dict[str, Any] = {
        "source": m.source, "mountpoint": m.mountpoint, "state": m.state, "uid": m.owner, "user": m.user}
    if m.page is not None:
        h = m.page.header
        found |= {
            "pid": m.page.pid, "transport": m.page.transport, "dialect": m.page.dialect or None,
            "zero_copy": bool(h["zero_copy"]), "passthrough": m.page.passthrough, "not_passed": m.page.not_passed,
            "started": int(h["started"])}
        if m.state != DEAD:
            found["uptime"] = max(0, int(time.time()) - int(h["started"]))
    return found


def status(m: Mount) -> dict[str, Any]:
    """What `status` shows. PassthruError if the daemon has gone."""
    s = m.live()
    h = s.header
    rows = threads(s)
    taken = sum(t["buffers_taken"] - t["buffers_given"] for t in rows)
    ring = s.transport == "ring"
    return {
        **summary(m), "why": s.why, "sandbox": s.sandbox, "cached": s.cached, "takeover": s.takeover,
        "fuse": {"minor": int(h["minor"]), "init_flags": int(h["init_flags"]), "max_write": int(h["max_write"]),
                 "device": f"{os.major(int(h['fuse_dev']))}:{os.minor(int(h['fuse_dev']))}"},
        "identity": bool(h["identity"]), "readers": int(h["readers"]),
        "queues": int(h["queues"]), "depth": int(h["depth"]),
        "buffers": {
            "size": int(h["payload_size"]), "per_queue": int(h["buffers"] or h["depth"]) if ring else 0,
            "pinned": bool(h["pinned"]), "in_use": max(0, taken) if ring else s.in_flight},
        "in_flight": s.in_flight, "inodes": int(h["inodes"]), "handles": int(h["handles"]),
        "backing_files": int(h["backings"]),
        "totals": {name: s.total(name) for name in COUNTERS},
        "threads": rows, "operations": operations(s), "process": process(s), "options": s.settings,
    }


# -------------------------------------------------------------------- text

def size_text(n: float) -> str:
    """Bytes, as 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n) < 1024 or unit == "TiB":
            break
        n /= 1024
    return f"{n:.0f} {unit}" if n >= 100 or n == int(n) else f"{n:.1f} {unit}"


def seconds_text(s: float | None) -> str:
    """A latency, to three digits: 1.23 ms."""
    if s is None or math.isnan(s):
        return "-"
    units = (("ns", 1e9), ("us", 1e6), ("ms", 1e3))
    unit, factor = next(((u, f) for u, f in units if s * f < 999.5), ("s", 1.0))
    value = s * factor
    return f"{value:.0f} {unit}" if value >= 100 or unit == "ns" else f"{value:.3g} {unit}"


def uptime_text(s: int) -> str:
    """A span of time: 2 d 03:04:05."""
    days, rest = divmod(int(s), 86400)
    return (f"{days} d " if days else "") + f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"


def served_by(s: dict[str, Any]) -> str:
    """Transport, dialect, zero-copy and passthrough really in use, of status() or summary()."""
    words = [f"ring, {s['dialect']} dialect" if s["transport"] == "ring" else "/dev/fuse"]
    words += ["zero-copy"] if s["zero_copy"] else []
    where = shown(s.get("not_passed", ""))
    if s["passthrough"]:
        words.append("kernel passthrough" + (f" (not on {where})" if where else ""))
    elif where:
        words.append(f"no kernel passthrough on {where}")
    return ", ".join(words)


def table(head: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """Lines of a table; the first `left` columns are left-aligned."""
    widths = [max(len(r[n]) for r in [head, *rows]) for n in range(len(head))]
    return ["  ".join(c.ljust(w) if n < left else c.rjust(w) for n, (c, w) in enumerate(zip(r, widths, strict=True)))
            .rstrip() for r in [head, *rows]]
