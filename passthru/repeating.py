"""inotify in the mount (--inotify): the processes that repeat in it what changes beside it, and when they do.

They are forked before there are threads, and stay in the namespace of the start. Each has a copy of the mount of its
own, which does not keep the mount at its place busy, and gives it up when that has gone: then the filesystem can end.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from . import _confine, _repeat, _repeater, _server, _sys, mounting
from .capabilities import CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_SYS_ADMIN, CAP_SYS_PTRACE
from .errors import MountError, reason
from .stdio import quiet
from .threads import STEP, ServingThread

PATIENCE = 10.0  # seconds, until a repeater has the mount
LOOK = 1.0       # seconds between two looks for watchers, ...
SHARE = 50       # ... but so many times as long as a look takes, at the least
PACKET = 64
SDEV = re.compile(r"^(?:inotify|fanotify) .*\bsdev:([0-9a-f]+)", re.MULTILINE)
KEPT = (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE, CAP_FOWNER)


def watched(text: str) -> set[int]:
    """The filesystems that an fd of inotify(7) or fanotify(7) watches, by its fdinfo: the kernel's device numbers."""
    return {int(number, 16) for number in SDEV.findall(text)}


def fdinfos() -> Iterator[str]:
    """The fdinfo of each fd of inotify(7) and fanotify(7), of all processes that can be seen."""
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") in ("anon_inode:inotify", "anon_inode:[fanotify]"):
                        yield Path(f"/proc/{pid}/fdinfo/{fd}").read_text()


def mounted(dev: int) -> bool:
    """Is the filesystem mounted in this namespace?"""
    number = f" {os.major(dev)}:{os.minor(dev)} ".encode()
    return any(number in line for line in Path("/proc/self/mountinfo").read_bytes().splitlines())


class Repeaters:
    """The processes as their daemon sees them. To be made before any thread is.

    auto: one more looks whether anybody watches.
    """

    def __init__(self, *, auto: bool):
        """Raises OSError."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else their pids would be others' when they have ended
        self._sockets: list[socket.socket] = []
        self._pids: list[int] = []
        self._auto = auto
        for n in range(_repeat.Repeat.repeaters() + auto):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    _process(theirs, looks=n == _repeat.Repeat.repeaters())
                os._exit(0)
            theirs.close()
            self._sockets.append(ours)
            self._pids.append(pid)

    def begin(self, mount_fd: int, dev: int) -> None:
        """Give them the mount, which is at its place by now. Raises MountError."""
        for s in self._sockets:
            with contextlib.suppress(OSError):
                socket.send_fds(s, [str(dev).encode()], [mount_fd])
        for s in self._sockets:
            s.settimeout(PATIENCE)
            try:
                word = s.recv(PACKET)
            except OSError as e:
                word = reason(e).encode()
            if word != b"ready":
                raise MountError(f"--inotify: {os.fsdecode(word) or 'a repeater has ended'}")
            s.settimeout(None)

    def known(self) -> tuple[list[tuple[int, int]], int]:
        """(pid and socket of each that repeats, socket of the one that looks for watchers or -1)."""
        pairs = [(pid, s.fileno()) for pid, s in zip(self._pids, self._sockets, strict=True)]
        return (pairs[:-1], pairs[-1][1]) if self._auto else (pairs, -1)

    def dismiss(self) -> None:
        """Have them give up the mount and end. They are not waited for: until close() their pids are nobody else's."""
        for s in self._sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """After all that serves has ended: wait for those that have ended, or are just about to."""
        self.dismiss()
        by = time.monotonic() + 1
        for pid in self._pids:
            with contextlib.suppress(OSError):
                while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < by:
                    time.sleep(STEP)
        for s in self._sockets:
            s.close()
        self._pids, self._sockets = [], []


class Repeating(ServingThread):
    """Has the repeaters told what changes. To be made after the Watcher, before anything is served."""

    def __init__(self, core: _server.ServerCore, *, always: bool):
        """always: also if nobody watches. Raises MountError."""
        super().__init__("repeat")
        try:
            self._repeat = _repeat.Repeat(core, always)
        except OSError as e:
            raise MountError(f"--inotify: {e.filename}: {reason(e)}") from None

    def trust(self, repeaters: Repeaters) -> None:
        """These are the ones whose requests change nothing."""
        self._repeat.trust(*repeaters.known())

    def serve(self) -> None:
        self._repeat.serve()

    def wake(self) -> None:
        self._repeat.stop()

    def ended(self, by: float) -> bool:
        """After the thread: until `by` (time.monotonic()), has the one ended that reads?"""
        while not self._repeat.ended and time.monotonic() < by:
            time.sleep(STEP)
        return self._repeat.ended


def _process(to_daemon: socket.socket, *, looks: bool) -> None:
    """A repeater's life, or that of the one who looks for watchers."""
    os.setsid()  # signals to the daemon's group and terminal are not for us
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    here = os.dup(to_daemon.detach())
    os.dup2(here, 3)
    quiet()
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))  # not the least /dev/fuse: the connection has to end with the daemon
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("passthru-look" if looks else "passthru-repeat")
    with contextlib.suppress(OSError):
        _confine.undumpable()
    _confine.no_new_privileges()
    kept = (CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH) if looks else KEPT
    _confine.cut_capabilities(sum(1 << n for n in (*kept, CAP_SYS_ADMIN)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, 3) as s:
        word, fds, _, _ = socket.recv_fds(s, PACKET, 1)
        if not fds:
            return
        dev = int(word)
        try:
            root = -1 if looks else _own_mount(fds[0])
        except OSError as e:
            s.send(f"{e.filename or 'the mount'}: {reason(e)}".encode()[:PACKET])
            return
        finally:
            os.close(fds[0])
        _confine.cut_capabilities(sum(1 << n for n in kept))
        s.send(b"ready")
        if looks:
            _look(s, dev)
        else:
            _repeat_on(s, root, dev)


def _own_mount(mount_fd: int) -> int:
    """An fd of the mount's root, in a copy of the mount."""
    tree = _sys.clone_mount(
        mount_fd, 0, mounting.MOUNT_ATTR_NOSUID | mounting.MOUNT_ATTR_NODEV | mounting.MOUNT_ATTR_NOEXEC, False)
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    finally:
        os.close(tree)


def _repeat_on(s: socket.socket, root: int, dev: int) -> None:
    mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    repeater = _repeater.Repeater(s.fileno(), root)
    while mounted(dev) and repeater.work(mountinfo):
        pass
    repeater.close()


def _look(s: socket.socket, dev: int) -> None:
    """Tell whether somebody watches, whenever that has changed, until the daemon has gone."""
    number = os.major(dev) << 20 | os.minor(dev)
    before = False
    poll = select.poll()
    poll.register(s, select.POLLIN)
    while True:
        began = time.monotonic()
        now = any(number in watched(text) for text in fdinfos())
        took = time.monotonic() - began
        if now != before:
            s.send(b"1" if now else b"0")
            before = now
        if poll.poll(max(LOOK, took * SHARE) * 1000):
            return
