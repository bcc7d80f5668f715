"""Runs the daemon for a test, and looks at what it leaves behind."""
from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import passthru
from passthru import _server, stats, status_page
from passthru.mounting import mounts

ROOT = Path(passthru.__file__).resolve().parent.parent
KERNEL = tuple(int(n) for n in re.findall(r"\d+", os.uname().release)[:2])
START = re.compile(r"^passthru: .* on .*: (ring|/dev/fuse) transport, .*$", re.MULTILINE)
UNCOUNTED = ("FORGET", "BATCH_FORGET", "INTERRUPT")  # come by /dev/fuse, ring or not (but see forgets_by_ring)
FORGET = next(n for n, name in status_page.OPCODES.items() if name == "FORGET")
QUEUE = next(n for n, name in status_page.KINDS.items() if name == "queue")
RING_OPTIONS = tuple(shlex.split(os.environ.get("PASSTHRU_TEST_RING", "")))  # for all daemons that serve by the ring


def environment() -> dict[str, str]:
    """The environment in which a child finds the package under test."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def command(*args: str | bytes | os.PathLike[str]) -> list[str]:
    """The daemon's command line."""
    return [sys.executable, "-m", "passthru", *map(os.fsdecode, args)]


def forgets_by_ring(s: stats.Snapshot) -> int:
    """FORGETs that queues have served: on kernels that send them so."""
    queues = s.threads[s.threads["kind"] == QUEUE]
    return int(queues["ops"][:, FORGET].sum())


def asked(options: Sequence[str], name: str) -> str:
    """The last value of `--name value` or `--name=value` among a command's options, or ''."""
    value, words = "", iter(options)
    for word in words:
        if word == name:
            value = next(words, "")
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def run(*args: str | bytes | os.PathLike[str], timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, as for bad input and in the background."""
    return subprocess.run(
        command(*args), env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="backslashreplace", timeout=timeout, check=False)


def until(condition: Callable[[], object], what: str, seconds: float = 15) -> None:
    """Wait for a condition, not longer than that."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} seconds still not: {what}"
        time.sleep(0.01)


def user_mode_linux() -> bool:
    """Is this a kernel of docs/testing-kernels.md?"""
    return "User Mode Linux" in Path("/proc/cpuinfo").read_text()


def mounted(path: Path) -> bool:
    """Is something mounted there? Asks no filesystem."""
    return any(m.target == str(path) for m in mounts())


def remote(path: Path) -> bool:
    """Is it served by a daemon or over a network? A path that the mount itself hides is not."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=False).stdout
    return kind.strip() in ("fuseblk", "fuse", "nfs", "cifs", "smb2", "ceph", "v9fs")


def is_keeper(pid: int) -> bool:
    """Is it a daemon's keeper, which has the daemon's command line?"""
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "passthru-keeper\n"
    except OSError:
        return False


def left_pages(pid: int) -> list[Path]:
    """The status pages of a process, dead or alive."""
    found = []
    for path in status_page.directory().glob("*:*"):
        if not path.name.endswith(".sock"):
            with contextlib.suppress(FileNotFoundError):
                if status_page.field(path.read_bytes()[:status_page.HEADER], "pid") == pid:
                    found.append(path)
    return found


def forget_pages(pid: int) -> None:
    """What a killed daemon has left; another one's start clears it too."""
    for page in left_pages(pid):
        page.unlink(missing_ok=True)
        status_page.socket_path(page).unlink(missing_ok=True)


def keepers(daemon: int) -> list[int]:
    """The keeper of a daemon, if it has one."""
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    return [int(pid) for pid in children if is_keeper(int(pid))]


def open_files(pid: int) -> list[int]:
    """The fds of a process."""
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


def mounts_below(path: Path) -> list[str]:
    return [m.target for m in mounts() if m.target.startswith(f"{path}/") or m.target == str(path)]


def detach(path: str) -> None:
    """Take a mount out of the way, whatever its state."""
    subprocess.run(["umount", "-l", path], capture_output=True, check=False)


class Daemon:
    """One daemon in the foreground, from mount to exit."""

    def __init__(
        self, src: Path, mnt: Path, transport: str, options: tuple[str, ...], log: Path, patience: float
    ):
        self.src, self.mnt, self.transport = src, mnt, transport
        more = RING_OPTIONS if transport == "ring" else ()
        self.command = command("-f", "--transport", transport, *more, *options, src, mnt)
        self.log = log
        self.patience = patience
        self.process: subprocess.Popen[bytes]
        self.watchdog: subprocess.Popen[bytes] | None = None
        self.served = False
        self.limited = False  # may it come out as less than asked for?
        self.said = ""
        self.expected_code = 0
        self.expected_lines: list[str] = []  # patterns of stderr lines beside the start line

    # ------------------------------------------------------------ start

    def launch(self) -> None:
        """Start the process."""
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        # A daemon that hangs makes whoever uses the mount unkillable, this process included.
        self.watchdog = subprocess.Popen(
            ["sh", "-c", f"sleep {self.patience}; kill -9 {self.process.pid}"], start_new_session=True,
            stdin=subprocess.DEVNULL)

    def start(self) -> Daemon:
        """Start, and wait until the mount is there and serves by the right transport."""
        self.launch()
        until(lambda: START.search(self.stderr()) or self.process.poll() is not None, "mounted", self.patience / 5)
        assert self.process.poll() is None, f"exit code {self.process.poll()}: {self.stderr()}"
        self.served = True
        os.statvfs(self.mnt)
        self.check_transport()
        self.check_dialect()
        return self

    @property
    def pid(self) -> int:
        return self.process.pid

    def stderr(self) -> str:
        if self.log.exists():  # it goes with the test's directory
            self.said = self.log.read_text(errors="backslashreplace")
        return self.said

    def how(self) -> str:
        """What the start line says of how it serves, without numbers."""
        line = START.search(self.stderr())
        said = line.group() if line else ""
        parts = [self.transport]
        if self.transport == "ring":
            found = re.search(r" (\S+) dialect(?: \(\d+ (pinned )?buffers each\))?", said)
            parts += [found[1], *(["pinned"] if found[2] else [])] if found else []
        parts += [word for word in ("zero-copy", "kernel passthrough") if f", {word}" in said]
        return ", ".join(parts)

    def repeat(self) -> str:
        """How to do it by hand."""
        return f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.join(self.command)}"

    # ------------------------------------------------------------ while it runs

    def stats(self) -> stats.Snapshot:
        return stats.of(self.mnt)

    def check_transport(self) -> None:
        """The counters say that every request came by the transport wanted."""
        def right() -> bool:
            nonlocal said
            s = self.stats()
            counted = sum(n for name, n in s.ops().items() if name not in UNCOUNTED) + forgets_by_ring(s)
            ring, dev = s.total("ring_requests"), s.total("dev_requests")
            said = f"transport {s.transport}, ring {ring}, /dev/fuse {dev}, operations {counted}"
            ours, other = (ring, dev) if self.transport == "ring" else (dev, ring)
            return s.transport == self.transport and other == 0 and 0 < ours == counted

        said = ""
        end = time.monotonic() + 5
        while not right():  # a request in flight is in one counter and not yet in another
            assert time.monotonic() < end, f"not served by {self.transport}: {said}"
            time.sleep(0.01)

    def check_dialect(self) -> None:
        """The form of the ring's protocol is the one asked for: the status page and the start line say so."""
        if self.transport != "ring":
            return
        line = START.search(self.stderr())
        assert line is not None, self.stderr()
        said, served = line.group(), self.stats().dialect
        dialect, zero_copy = asked(self.command, "--dialect"), asked(self.command, "--zero-copy")
        assert served and f" {served} dialect" in said, f"served {served!r}: {said}"
        if self.limited:
            return
        if dialect not in ("", "auto"):
            assert served == dialect, f"{served} dialect instead of {dialect}: {said}"
        if zero_copy not in ("", "auto") and "--null-io" not in self.command:  # which has nothing to copy
            assert (", zero-copy" in said) == (zero_copy == "on"), f"--zero-copy {zero_copy}: {said}"
        if served != "per-entry" and dialect not in ("", "auto") and not remote(self.src):
            pinned = "--no-pin-buffers" not in self.command
            assert (" pinned buffers" in said) == pinned, f"pinned: {said}"

    def check_level(self) -> None:
        """What the kernel was given is given back when nothing uses it: handles, lookups, ring entries."""
        os.sync()

        def level() -> bool:
            nonlocal said
            Path("/proc/sys/vm/drop_caches").write_text("2")
            s = self.stats()
            pairs = [("opens", "releases"), ("lookups", "forgets")]
            if self.transport == "ring":
                pairs.append(("ring_requests", "commits"))
            said = ", ".join(f"{s.total(a)} {a} {s.total(b)} {b}" for a, b in pairs)
            return all(s.total(a) == s.total(b) for a, b in pairs) and not s.total("entries_lost")

        said = ""
        end = time.monotonic() + 10
        while not level():
            assert time.monotonic() < end, f"counters not level: {said}"
            time.sleep(0.1)

    # ------------------------------------------------------------ end

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 10) -> int:
        """The exit code; the daemon has to end within that time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon still runs {seconds} seconds after it had to end") from None

    def umount(self, *options: str) -> None:
        """umount(8)."""
        done = subprocess.run(
            ["umount", *options, str(self.mnt)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"umount: {done.stderr.strip()}"

    def umount_when_idle(self) -> None:
        """umount(8), again if something that looks at all mounts is in the way just then (df, for one)."""
        end = time.monotonic() + 3
        while True:
            try:
                return self.umount()
            except AssertionError as e:
                if "busy" not in str(e) or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def finish(self) -> list[str]:
        """Check transport and counters, unmount, and see that nothing is left. What was wrong."""
        problems: list[str] = []
        if not self.served:  # the test has failed, or looked at that itself
            detach(str(self.mnt))
            self.end_by_force()
            return problems

        def check(step: Callable[[], object]) -> None:
            try:
                step()
            except (AssertionError, OSError, LookupError, subprocess.TimeoutExpired) as e:
                problems.append(str(e))

        if self.process.poll() is None and mounted(self.mnt):
            check(self.check_transport)
            if _server.DEBUG:
                check(self.check_level)
            check(self.umount_when_idle)
        elif mounted(self.mnt):
            problems.append("the daemon has gone and left its mount")
        if problems:
            detach(str(self.mnt))
        check(self.wait)
        self.end_by_force()
        if self.process.returncode != self.expected_code:
            problems.append(f"exit code {self.process.returncode} instead of {self.expected_code}")
        problems += self.strange_lines()
        left = left_pages(self.pid)
        if self.process.returncode == -signal.SIGKILL:
            forget_pages(self.pid)
        elif left:
            problems.append("status page left")
        return problems

    def strange_lines(self) -> list[str]:
        """Of stderr all but the start line and what the test expects, and what it expects in vain."""
        lines = START.sub("", self.stderr(), count=1).split("\n")
        lines = [line for line in lines if line]
        problems = []
        for pattern in self.expected_lines:
            match = next((line for line in lines if re.search(pattern, line)), None)
            if match is None:
                problems.append(f"no line like {pattern!r} on stderr")
            else:
                lines.remove(match)
        return problems + [f"on stderr: {line}" for line in lines]

    def end_by_force(self) -> None:
        """The last resort, for this process only."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        if self.watchdog is not None:
            os.killpg(self.watchdog.pid, signal.SIGKILL)
            self.watchdog.wait()
            self.watchdog = None
