"""A filesystem to be measured: a daemon started by a command, mounted, proved, ended by its pid.

What is verified how
--------------------
A claim says how requests reach the daemon (`ring`, `dev`) and whether the kernel reads and writes
files by itself (`passthrough`); `passthrough+ring` is both. Every cell begins and ends with two
probes through the mount: lookups of names that do not exist, which always reach the daemon, and
reads of a file, O_DIRECT where the source has it.

passthru's own daemons keep counters, which decide:
  ring          ring_requests rose by at least the probe, and dev_requests by nothing since the mount
  dev           dev_requests rose by at least the probe, and there are no ring_requests at all
  passthrough   read_bytes did not rise by the probe's reads; else it rose by all of them

Of a foreign daemon only what the kernel shows of its process is known:
  ring          /proc/PID/fd has io_uring rings, and /proc/PID/io shows that it answered the lookups
                without system calls that write
  dev           /proc/PID/io shows at least one writing system call for each lookup
  passthrough   its threads' CPU time (/proc/PID/task/*/schedstat) did not rise by READ_NS for each
                read; else it rose by more
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT))  # the daemon is this tree's, so its status page is too
try:
    from passthru import stats
except ImportError:  # not built: an installed one
    sys.path.remove(str(ROOT))
    from passthru import stats

CLAIMS = ("ring", "dev", "passthrough", "passthrough+ring", "passthrough+dev")
LOOKUPS, READS, BLOCK = 300, 400, 4096
READ_NS = 2000  # of CPU time: no daemon serves a read for so little, and the opening costs something too
PROBE_FILE = ".probe"
UNMOUNT_SECONDS = 15.0
READY_SECONDS = 2.0


class TargetError(Exception):
    """A daemon did not start, died, or does not do what it claims."""


@dataclass
class Target:
    """A daemon's command with {src} and {mnt}; no command: the source itself."""

    name: str
    command: str = ""
    claim: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def bare(self) -> bool:
        return not self.command

    @property
    def null(self) -> bool:
        """It neither reads nor writes the source: only rows of file data mean anything."""
        return "--null-io" in self.command


# This tree's own daemon, in its ways to serve: {name: (options, claim)}.
OURS = {
    "default": ("", "passthrough+ring"),
    "ring": ("--transport ring --no-passthrough", "ring"),
    "dev": ("--transport dev --no-passthrough", "dev"),
}
NULL = {"null": ("--transport ring --null-io", "ring")}  # what the ring could do at the most


def ours(name: str) -> Target:
    """A target of this tree's own daemon."""
    options, claim = {**OURS, **NULL}[name]
    return Target(name, f"{shlex.quote(sys.executable)} -m passthru -f {options} {{src}} {{mnt}}", claim)


def mounted(path: Path) -> bool:
    """Is something mounted there? Asks the mount table, not a filesystem that may not answer."""
    want = os.fsencode(path)
    with open("/proc/self/mountinfo", "rb") as f:
        return any(line.split()[4] == want for line in f)


class Daemon:
    """A target's running daemon."""

    def __init__(self, target: Target, source: Path, mountpoint: Path):
        self.target, self.source, self.mountpoint = target, source, mountpoint
        self.log = mountpoint.with_name(mountpoint.name + ".log")
        self.mounted_after = self.ended_after = 0.0  # seconds that starting and unmounting took
        self.began = time.monotonic()
        words = [w.replace("{src}", str(source)).replace("{mnt}", str(mountpoint))
                 for w in shlex.split(target.command)]
        path = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), str(ROOT)) if p)
        with open(self.log, "wb") as log:
            # In a session of its own, so that Ctrl-C at the terminal does not end it before its turn.
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, **target.environment})

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """The last line it wrote."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def wait_mounted(self, seconds: float = 15.0) -> None:
        end = time.monotonic() + seconds
        while not mounted(self.mountpoint):
            if self.process.poll() is not None:
                raise TargetError(
                    f"{self.target.name}: ended with {self.process.returncode} before it was mounted "
                    f"(it must stay in the foreground): {self.said()}")
            if time.monotonic() > end:
                raise TargetError(f"{self.target.name}: not mounted after {seconds:.0f} s: {self.said()}")
            time.sleep(0.002)
        os.stat(self.mountpoint)
        self.mounted_after = time.monotonic() - self.began

    def end(self) -> None:
        """Unmount and see the process off; by force if it must be. Ctrl-C waits until that is done."""
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        began = time.monotonic()
        try:
            for words in (["umount"], ["fusermount3", "-u", "-q"]):
                for _ in range(20):  # a process that has just ended may keep it busy for a moment
                    if not mounted(self.mountpoint):
                        break
                    with contextlib.suppress(FileNotFoundError):
                        subprocess.run([*words, str(self.mountpoint)], stderr=subprocess.DEVNULL, check=False)
                    if mounted(self.mountpoint):
                        time.sleep(0.05)
            for s in (None, signal.SIGTERM, signal.SIGKILL):
                if s is not None:
                    self.process.send_signal(s)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(UNMOUNT_SECONDS)
                    break
            if mounted(self.mountpoint):
                subprocess.run(["umount", "-l", str(self.mountpoint)], check=False)
            self.ended_after = time.monotonic() - began
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    # --------------------------------------------------------------- proofs

    def page(self) -> stats.Snapshot | None:
        """passthru's status page, or None if it is a foreign daemon."""
        try:
            s = stats.of(self.mountpoint)
        except LookupError:
            return None
        return s if int(s.header["pid"]) == self.pid else None

    def counters(self) -> dict[str, int] | None:
        """Of these, those that tell the transport."""
        s = self.page()
        return None if s is None else {c: s.total(c) for c in ("ring_requests", "dev_requests", "read_bytes")}

    def writing_calls(self) -> int:
        with open(f"/proc/{self.pid}/io", encoding="ascii") as f:
            return int(next(line for line in f if line.startswith("syscw")).split()[1])

    def rings(self) -> int:
        """io_uring instances that the process holds."""
        n = 0
        for fd in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                n += os.readlink(fd) == "anon_inode:[io_uring]"
        return n

    def cpu_ns(self) -> int:
        n = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                n += int((task / "schedstat").read_text().split()[0])
        return n

    def prove_ready(self) -> None:
        """prove() at the start: a daemon may answer by /dev/fuse until its rings stand, for a moment."""
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                return self.prove()
            except TargetError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def prove(self) -> None:
        """TargetError unless the daemon works as it is claimed to."""
        if not self.target.claim:
            return
        kernel_data = self.target.claim.startswith("passthrough")
        transport = self.target.claim.removeprefix("passthrough").lstrip("+")
        before = self.counters()
        wrote, cpu = self.writing_calls(), 0
        stamp = time.monotonic_ns()
        for n in range(LOOKUPS):
            with contextlib.suppress(FileNotFoundError):
                os.stat(self.mountpoint / f".probe-{stamp}-{n}")
        wrote = self.writing_calls() - wrote
        cpu = self.cpu_ns()
        size = read_probe(self.mountpoint / PROBE_FILE)
        cpu = self.cpu_ns() - cpu
        after = self.counters()
        fail = self.target.name + ": "
        if before is not None and after is not None:
            ring, dev, data = (
                after[c] - before[c] for c in ("ring_requests", "dev_requests", "read_bytes"))
            if transport == "ring" and (ring < LOOKUPS or after["dev_requests"]):
                raise TargetError(f"{fail}claims the ring, but {ring} of its requests came by the ring and "
                                  f"{after['dev_requests']} by /dev/fuse: {self.said()}")
            if transport == "dev" and (dev < LOOKUPS or after["ring_requests"]):
                raise TargetError(f"{fail}claims /dev/fuse, but {dev} of {LOOKUPS} lookups came by it and "
                                  f"{after['ring_requests']} requests by the ring")
            if kernel_data and data:
                raise TargetError(f"{fail}claims kernel passthrough, but served {data} of {size} bytes")
            if not kernel_data and data < size:
                raise TargetError(f"{fail}claims to serve reads itself, but served {data} of {size} bytes")
            return
        rings = self.rings()
        if transport == "ring" and (not rings or wrote >= LOOKUPS // 2):
            raise TargetError(f"{fail}claims the ring, but has {rings} io_uring fds and answered {LOOKUPS} "
                              f"lookups with {wrote} writing system calls: {self.said()}")
        if transport == "dev" and wrote < LOOKUPS:
            raise TargetError(f"{fail}claims /dev/fuse, but answered {LOOKUPS} lookups with {wrote} "
                              "writing system calls")
        if kernel_data != (cpu < READS * READ_NS):
            raise TargetError(f"{fail}claims {'' if kernel_data else 'no '}kernel passthrough, but {READS} "
                              f"reads cost the daemon {cpu / 1000:.0f} us of CPU time")


def raise_fd_limit() -> None:
    """A daemon may hold an fd for each file that it knows; the limit is not what is to be measured."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = max(hard, 1 << 20)
    with contextlib.suppress(OSError, ValueError):  # only root goes beyond the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (want, want))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def make_probe_file(source: Path) -> None:
    """The file that prove() reads."""
    (source / PROBE_FILE).write_bytes(os.urandom(READS * BLOCK))


def read_probe(path: Path) -> int:
    """Read a file in blocks that the page cache does not have. Bytes read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    buffer = mmap.mmap(-1, BLOCK)
    try:
        return sum(os.preadv(fd, [buffer], n * BLOCK) for n in range(READS))
    finally:
        os.close(fd)


@contextlib.contextmanager
def running(target: Target, source: Path, mountpoint: Path) -> Iterator[tuple[Path, Daemon | None]]:
    """(where to work, its daemon or None) for a while."""
    if target.bare:
        yield source, None
        return
    daemon: Any = None
    try:
        daemon = Daemon(target, source, mountpoint)
        daemon.wait_mounted()
        yield mountpoint, daemon
    finally:
        if daemon is not None:
            daemon.end()
