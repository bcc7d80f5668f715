"""Mounts made by a Python program: mount() starts a daemon of its own for each, a child process.

Nothing of the daemon is in the calling process: neither its threads nor its GIL, and a crash of
either leaves the other alive. docs/api.md is the manual.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self

from . import child, control, mounting, options, stats
from .errors import MountpointError, PassthruError, SourceError, UsageError

P = ParamSpec("P")
Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_live: set[Mount] = set()  # they stay, whether or not the caller keeps them


class Mount:
    """A mount that this process has made; returned by mount(), and a context manager that unmounts.

    source, mountpoint: absolute paths, the mountpoint without symbolic links. pid: the daemon's.
    summary: what serves it, as the command shows it with -f.

    It belongs to the process that has made it. In a child made by fork(2) leaving the context does
    nothing, stats() works, and all else raises RuntimeError.
    """

    def __init__(self, arguments: list[str], source: str, mountpoint: str):
        self.source, self.mountpoint = source, os.path.realpath(mountpoint)
        self._owner = os.getpid()
        self._detached = False
        self._words, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "passthru.child", str(theirs.fileno()), str(self._owner)]
        with theirs:
            # A session of its own: Ctrl-C at the terminal is for the caller, which unmounts or does not.
            self._process = subprocess.Popen(
                [*command, *arguments, "--", source, mountpoint], pass_fds=[theirs.fileno()], cwd="/",
                env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
        self.pid = self._process.pid
        try:
            self.summary = child.outcome(self._words.recv(1 << 16))
        except BaseException:
            self._process.terminate()
            self._process.wait()
            self._words.close()
            raise
        here = mounting.mounted_at(self.mountpoint)
        self._mount_id = here.mount_id if here is not None else -1
        _live.add(self)

    def __repr__(self) -> str:
        how = "another process's" if os.getpid() != self._owner else (
            f"serves by {self.summary.rpartition(': ')[2].partition(',')[0]}" if self.alive else "ended")
        return f"<passthru.Mount of {self.source} on {self.mountpoint}: {how}, pid {self.pid}>"

    def __enter__(self) -> Self:
        if os.getpid() == self._owner and not self.alive:
            raise PassthruError(f"the daemon of {self.mountpoint} has ended")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._owner or self._detached:
            return
        try:
            self.unmount(force=True)
        except (PassthruError, OSError):
            if error is None:  # else it would hide what went wrong first
                raise

    @property
    def alive(self) -> bool:
        """Does the daemon run?"""
        self._check_owner()
        return self._process.poll() is None

    def stats(self) -> stats.Snapshot:
        """The counters at this moment. LookupError after the mount's end."""
        return stats.of(self.mountpoint)

    def set(self, **keywords: Any) -> None:
        """Change options while it serves, as `passthru set` does: all of them, or none and an error.

        keywords: those that docs/monitoring.md lists. Raises UsageError, PassthruError; LookupError after the end.
        """
        self._check_owner()
        live = {field: name for name, field in options.live_options().items()}
        for name in keywords:
            if name not in live:
                raise UsageError(f"{name} cannot be changed while the mount serves; {', '.join(live)} can")
        if keywords:
            control.ask_set(self.stats(), [f"{live[n]}={options.value_text(v)}" for n, v in keywords.items()])

    def unmount(self, *, force: bool = False, timeout: float | None = None) -> None:
        """Unmount, and wait for the daemon's end.

        force: if files are open in the mount, what is written to them so far is saved, the mount is
        taken away, and they get errors from then on. Without it that is OSError (EBUSY), and the
        mount stays. timeout: seconds to wait, or None; TimeoutError. PassthruError if the daemon
        had ended with an error. Again, or after an umount(8): nothing to do, no error.
        """
        self._check_owner()
        root = os.geteuid() == 0
        if not self.alive:  # killed, perhaps: its mount is still there then
            mounting.unmount(self.mountpoint, self._mount_id, root)
        elif force:
            self._process.terminate()
        else:
            mounting.unmount(self.mountpoint, self._mount_id, root, lazy=False)
        code = self.wait(timeout)
        if code and force:
            mounting.unmount(self.mountpoint, self._mount_id, root)
        if code:
            raise PassthruError(
                f"the daemon of {self.mountpoint} " + (f"ended with exit code {code}" if code > 0 else
                f"was killed by signal {-code} ({signal.Signals(-code).name})"))

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the daemon has ended, which it does when the mount is unmounted by anybody.

        Its exit code (docs/api.md), or minus the number of the signal that killed it. timeout:
        seconds; TimeoutError.
        """
        self._check_owner()
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the daemon of {self.mountpoint} still runs after {timeout} seconds") from None
        self._words.close()
        _live.discard(self)
        return code

    def detach(self) -> None:
        """Have the mount stay when this process ends, and when the context is left. PassthruError if it has ended.

        What the daemon has to say goes nowhere from then on, unless it has a log.
        """
        self._check_owner()
        try:
            self._words.send(b"detach")
            said = self._words.recv(64)
        except OSError:
            said = b""
        if said != b"detached":
            raise PassthruError(f"the daemon of {self.mountpoint} has ended")
        self._detached = True
        _live.discard(self)

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError(f"{self!r} belongs to process {self._owner}")


def _environment() -> dict[str, str]:
    """The caller's, with its module search path: the daemon has to be of this package."""
    path = [os.path.abspath(p) for p in sys.path]  # '' is the working directory
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


@atexit.register
def _end() -> None:
    """At the end of the process that made them, mounts are unmounted. If it is killed the daemons see that."""
    for m in list(_live):
        if m._owner == os.getpid():
            with contextlib.suppress(PassthruError, OSError):
                m.unmount(force=True, timeout=10)


def _like_options(
    _: Callable[Concatenate[str, str, P], options.Options],
) -> Callable[[Callable[..., Mount]], Callable[Concatenate[Path, Path, P], Mount]]:
    """Gives mount() the keywords of Options, so that these are declared once, and type checkers know them."""
    kept = [p for p in inspect.signature(options.Options).parameters.values() if p.name not in ("foreground",)]

    def decorate(f: Callable[..., Mount]) -> Callable[Concatenate[Path, Path, P], Mount]:
        paths = [p.replace(kind=p.POSITIONAL_ONLY, default=p.empty, annotation="Path") for p in kept[:2]]
        f.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*paths, *kept[2:]], return_annotation="Mount")
        return f

    return decorate


@_like_options(options.Options)
def mount(source: Path, mountpoint: Path, /, **keywords: Any) -> Mount:
    """Mount `source` on `mountpoint`; returns when the mount is usable.

    keywords: the fields of passthru.Options, which are the command's options (`--queue-depth 32` is
    queue_depth=32). Sizes are bytes, times seconds; what the command line takes as text may be given
    as the same text. The mount lasts until it is unmounted, at the latest until this process ends,
    unless Mount.detach() is called.

    Raises TypeError (no such option, or a value of the wrong type), UsageError (a bad value),
    SourceError, MountpointError, TransportError, MountError, or PassthruError; then nothing is mounted.
    """
    source, mountpoint = os.fsdecode(source), os.fsdecode(mountpoint)
    if not source:
        raise SourceError("source '': No such file or directory")
    if not mountpoint:
        raise MountpointError("mountpoint '': No such file or directory")
    arguments = _arguments(keywords)
    source, mountpoint = os.path.abspath(source), os.path.abspath(mountpoint)
    options.parse([*arguments, "--", source, mountpoint])  # what is wrong is known without a process
    if not sys.executable:
        raise PassthruError("sys.executable is not set: no interpreter to run the daemon with")
    return Mount(arguments, source, mountpoint)


def _arguments(keywords: dict[str, Any]) -> list[str]:
    """The command line's words. Raises TypeError."""
    known = {f.name for f in fields(options.Options)}
    for name in keywords:
        if name not in known:
            raise TypeError(f"mount() has no option {name!r}")
    return options.arguments({name: value for name, value in keywords.items() if name != "foreground"})


@dataclass(frozen=True)
class CheckResult:
    """How a mount would come out. result: the error, or what would serve it; exit_code: the command's.

    checks: what was looked at, each with the keys name, state ("ok", "missing", "note"), value, cure.
    """

    works: bool
    exit_code: int
    result: str
    checks: list[dict[str, str]]

    def __bool__(self) -> bool:
        return self.works


def check(source: Path | None = None, mountpoint: Path | None = None, /, **keywords: Any) -> CheckResult:
    """What this machine can do and, if they are given, how that mount would come out; nothing is mounted.

    keywords: as of mount(). By a process of its own. Raises TypeError, UsageError, PassthruError.
    """
    if (source is None) != (mountpoint is None):
        raise TypeError("check() takes a source and a mountpoint, or neither")
    ends = [] if source is None or mountpoint is None else [
        "--", os.path.abspath(os.fsdecode(source)), os.path.abspath(os.fsdecode(mountpoint))]
    arguments = _arguments(keywords)
    options.parse([*arguments, *ends], ends=bool(ends))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "passthru", "check", "--json", *arguments, *ends], env=_environment(),
        stdin=subprocess.DEVNULL, capture_output=True, check=False)
    try:
        said = json.loads(done.stdout)
    except ValueError:
        raise PassthruError(os.fsdecode(done.stderr).strip() or f"check ended with {done.returncode}") from None
    return CheckResult(said["works"], said["exit_code"], said["result"], said["checks"])
