"""--supervise: a process that never serves, the holder, keeps a mount alive when its daemon dies.

The holder makes the mount, and has all that must not die with a daemon: the fds, since it and all daemons share one
table of files, and the memory of the tables (_arena). Daemons are copies of the holder (_spawn). What becomes of
requests and tables: docs/takeover.md.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import _confine, _spawn, init, log, report, session
from .capabilities import CAP_SYS_ADMIN, capable_of_all
from .connection import Agreement
from .errors import PassthruError, TransportError, UsageError, reason
from .options import Options
from .sandbox import NONE, SECCOMP

# Seconds: a daemon that has served for so long has not died of how it was started, or of a request that waited.
LIVED = 0.1
# Before the successor of the n-th in a row that has not; the last is kept.
PAUSES = (0.0, 0.0, 0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
GIVE_UP = 30       # so many in a row, and the mount is taken away
FAULTS, WITHIN = 100, 3600.0  # so many by a fault within these seconds: all have one layout of memory
FAULT = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP)
ARENA = 1 << 36    # bytes of addresses
STOP = session.STOP_SIGNALS


def check(o: Options) -> None:
    """Raises UsageError if a mount with these options cannot be supervised."""
    why = _refusal(o)
    if why:
        raise UsageError(f"--supervise: {why}")


def _refusal(o: Options) -> str:
    if os.geteuid() != 0 or not capable_of_all(CAP_SYS_ADMIN):
        return "only root's mounts can be taken over"
    if o.transport == "ring" or o.dialect != "auto" or o.zero_copy == "on":
        return "a dead daemon's ring cannot be taken over yet: not with --transport ring or its options"
    for given, what in (
        (o.writeback, "--writeback"), (o.cache == "coherent", "--cache coherent"), (o.debug_fuse, "--debug-fuse"),
        (o.null_io, "--null-io"), (o.selinux, "--selinux"), (o.fixed_size, "--fixed-size"),
    ):
        if given:
            return f"not with {what} yet"
    return ""


class Supervised(session.Session):
    """A session that the holder starts, and daemons serve, one after the other."""

    arena = ARENA

    def __init__(self, options: Options, stopping: Callable[[], object] | None = None):
        check(options)
        super().__init__(options, stopping)
        self.transport.ring = False
        self.sandbox.limit(SECCOMP, "--supervise: a successor needs files that it would hide")
        self._died = 0.0
        self._reason = ""

    # ------------------------------------------------------------ the holder: start()

    def _open(self) -> None:
        super()._open()
        if not self.source.directory:
            raise UsageError("--supervise: the source must be a directory")
        if self._connection.by_fusermount:
            raise UsageError("--supervise: not where fusermount3 mounts")

    def _start_log(self) -> None:
        """It has no threads, so that copies can be made of it."""

    def _serve_first(self) -> None:
        """Readers are the daemons'."""

    def _keep_house(self) -> None:
        """So is this."""

    def _agree(self, request: init.Init) -> Agreement:
        if not request.offers("HAS_RESEND"):
            raise TransportError("--supervise: this kernel does not send requests again (Linux 6.9)")
        if self.core.source_remote:
            raise UsageError("--supervise: the source's filesystem is not a local one")
        return super()._agree(request)

    def _confine(self) -> None:
        """Daemons confine themselves."""

    def set_options(self, words: list[str], uid: int) -> dict[str, Any]:
        raise UsageError("not of a mount with --supervise: a successor would not know of it")

    # ------------------------------------------------------------ a daemon

    def daemon(self, number: int, files: set[int], serving: int) -> int:
        """Its life; the exit code. files: fds of the holder's. serving: an eventfd by which the holder hears of it."""
        if self.sandbox.level != NONE:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # as the sandbox does later; a dump would take its time
        if number > 1:
            self.core.adopt()
            self.core.mounts_changed()  # the dead one may have heard of it and not come to it
            # Who closes a clone of the fuse fd fails what was read by it: so RESEND comes first.
            self.core.resend()
            known = files | self.core.fds()
            for name in os.listdir("/proc/self/fd"):
                if int(name) not in known:
                    with contextlib.suppress(OSError):
                        os.close(int(name))
        self.holder = self._own
        self.sandbox.renew()
        self.thread_ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if self._connection.keeper is not None:
            self._connection.keeper.forget_answers()
        self._add_readers()
        pause = 0.0
        if number > 1:
            os.eventfd_write(serving, 1)
            pause = (time.monotonic() - self._died) * 1000
        self._catch_signals()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
        log.start(_confine.cut_thread)
        session.Session._keep_house(self)
        self.takeover = report.Takeover(number - 1, self._reason, round(pause, 1), os.getpid())
        if number > 1:
            log.warning(f"{self._connection.target}: taken over from a daemon that has ended ({self._reason}): "
                        f"number {number - 1}, {pause:.1f} ms")
        session.Session._confine(self)
        if number == 1:
            os.eventfd_write(serving, 1)
        try:
            self.serve()
        finally:
            log.stop()
        return 0

    def _child(self, number: int, files: set[int], serving: int) -> None:
        code = 1
        try:
            code = self.daemon(number, files, serving)
        except PassthruError as e:
            code = e.exit_code
            log.error(str(e))
        except Exception as e:
            log.error(f"{type(e).__name__}: {e}")
        finally:
            os._exit(code)

    # ------------------------------------------------------------ the holder

    def hold(self, ready: Callable[[], object]) -> None:
        """Have daemons serve until the end. ready: called when the first one does. Raises PassthruError."""
        wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        serving = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for s in (*STOP, signal.SIGCHLD):
            signal.signal(s, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))
        self._own = os.pidfd_open(os.getpid())
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(serving, select.POLLIN)
        files = {int(name) for name in os.listdir("/proc/self/fd")}
        short = 0
        faults: list[float] = []
        self._stop_asked = False
        while True:
            number = self.core.next_daemon()
            self._since = 0.0
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # until the daemon has a handler of its own
            try:
                pid = _spawn.spawn()
            except OSError as e:
                if not self._told:
                    raise PassthruError(f"--supervise: no process can be made: {reason(e)}") from None
                pid, self._reason = -1, f"no process could be made: {reason(e)}"
            if pid == 0:
                self._child(number, files, serving)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
            if pid > 0:
                status = self._wait(poll, wake, serving, pid, ready if number == 1 else lambda: None)
                self._died = time.monotonic()
                if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                    return
                if os.WIFEXITED(status) and (self._stop_asked or not self._told):
                    raise PassthruError("the daemon ended with an error")
                self._reason = _how(status)
                if not self._told:
                    raise PassthruError(f"the daemon ended before the mount was usable ({self._reason})")
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) in FAULT:
                    faults = [*(t for t in faults if t > self._died - WITHIN), self._died]
                # What the filter has caught would be tried again, and again.
                if (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS) or len(faults) > FAULTS:
                    raise PassthruError(f"the daemon ended by a fault ({self._reason}): unmounting")
            short = 0 if self._since and self._died - self._since >= LIVED else short + 1
            if short >= GIVE_UP:
                log.error(f"{self._connection.target}: {short} daemons in a row have ended at once ({self._reason}): "
                          "unmounting")
                raise PassthruError("the daemon ends again and again")
            pause = PAUSES[min(short, len(PAUSES) - 1)]
            if pause:
                log.warning(f"{self._connection.target}: {short} daemons in a row have ended soon ({self._reason}): "
                            f"the next one in {pause:g} s; until then all waits")
            if not self._rest(poll, wake, pause):
                self._take_away()
                return

    _own = -1      # pidfd of the holder
    _told = False
    _since = 0.0  # since when the daemon of now serves; 0: it does not yet

    def _wait(self, poll: select.poll, wake: int, serving: int, pid: int, ready: Callable[[], object]) -> int:
        """Until the daemon `pid` has ended: its status, as of waitpid(2)."""
        while True:
            for fd, _ in poll.poll():
                if fd == serving:
                    os.eventfd_read(serving)
                    self._told, self._since = True, time.monotonic()
                    ready()
                    continue
                for number in os.read(wake, 64):
                    if number != signal.SIGCHLD:
                        self._stop_asked = True
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGTERM)
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    return status

    def _rest(self, poll: select.poll, wake: int, pause: float) -> bool:
        """Wait before the next daemon. False: the mount has ended, or is to end."""
        until = time.monotonic() + pause
        there = select.poll()
        there.register(wake, select.POLLIN)
        there.register(self._connection.fuse_fd, 0)  # POLLERR: the connection has ended
        while True:
            left = until - time.monotonic()
            for fd, _ in there.poll(max(0, int(left * 1000))):
                if fd != wake:
                    return False
                if any(number != signal.SIGCHLD for number in os.read(wake, 64)):
                    return False
            if self._stop_asked:
                return False
            if left <= 0:
                return True

    def give_up(self) -> None:
        """Nobody is to serve the mount any more."""
        if self._told:
            self._take_away()
        else:
            self._abandon()

    def _take_away(self) -> None:
        """The mount ends while nobody serves it."""
        self._say_stopping()
        with contextlib.suppress(OSError):
            self._connection.unmount()
        self._connection.abort()
        self._connection.hide()


def run(
    options: Options, ready: Callable[[str], None], stopping: Callable[[], object] | None = None,
    notes: Callable[[Sequence[str], str], None] | None = None,
) -> None:
    """As session.run(), for all options."""
    if not options.supervise:
        session.run(options, ready, stopping, notes)
        return
    supervised = Supervised(options, stopping)
    line = supervised.start()
    supervised.say_notes(notes)
    try:
        supervised.hold(lambda: ready(line))
    except BaseException:
        supervised.give_up()
        raise


def _how(status: int) -> str:
    """What a process has died of, by its status of waitpid(2)."""
    if os.WIFEXITED(status):
        return f"exit code {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
