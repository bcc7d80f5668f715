"""Messages: one line for each event, with a level, to stderr, the journal or syslog.

Python code calls error(), warning(), info() and debug() here; threads that serve write into a pipe
(_log.pyx), which a thread of this module empties, so that they wait for nobody's disk or terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable

from . import _log, threads
from .errors import PassthruError, reason

LEVELS = {"error": 3, "warning": 4, "info": 6, "debug": 7}  # priorities of syslog(3)
TARGETS = ("auto", "stderr", "journal", "syslog")
JOURNAL = "/run/systemd/journal/socket"
SYSLOG = "/dev/log"
NAME = "passthru"
DAEMON = 3  # facility of syslog(3)
PIPE_SIZE = 1 << 20
connector: Callable[[str], socket.socket] | None = None  # for a process that has no path to these sockets any more
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_END = b"\0"  # no message has it


class _Stderr:
    def send(self, level: int, text: str) -> None:
        self.raw(f"passthru: {text}\n")

    def raw(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a closed terminal
            sys.stderr.write(text)
            sys.stderr.flush()


class _Datagrams:
    """A socket of a log daemon, connected anew if that was restarted."""

    def __init__(self, path: str):
        """Raises OSError."""
        self.path = path
        self._socket = self._connected()

    def _connected(self) -> socket.socket:
        if connector is not None:
            found = connector(self.path)
            found.settimeout(1)
            return found
        found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        found.settimeout(1)  # a log daemon that hangs must not hang us
        try:
            found.connect(self.path)
        except OSError:
            found.close()
            raise
        return found

    def write(self, data: bytes) -> None:
        """Lost if nobody takes it.

        The fd's number is never free in between: another process may share the table of files (--supervise), and go on
        to use it for the socket.
        """
        try:
            self._socket.send(data)
        except OSError:
            with contextlib.suppress(OSError):
                anew = self._connected()
                os.dup2(anew.fileno(), self._socket.fileno(), inheritable=False)
                anew.close()
                self._socket.send(data)


class _Journal:
    """systemd's journal by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

    def __init__(self, fields: dict[str, str]):
        self._to = _Datagrams(JOURNAL)
        fixed = {"SYSLOG_IDENTIFIER": NAME, "SYSLOG_FACILITY": str(DAEMON), "SYSLOG_PID": str(os.getpid()), **fields}
        self._fixed = b"".join(self._field(name, value) for name, value in fixed.items())

    @staticmethod
    def _field(name: str, value: str) -> bytes:
        data = os.fsencode(value)
        if b"\n" in data:
            return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        return name.encode() + b"=" + data + b"\n"

    def send(self, level: int, text: str) -> None:
        self._to.write(self._field("MESSAGE", text) + self._field("PRIORITY", str(level)) + self._fixed)


class _Syslog:
    """The system's log daemon, in the form of syslog(3)."""

    def __init__(self) -> None:
        self._to = _Datagrams(SYSLOG)

    def send(self, level: int, text: str) -> None:
        when = time.strftime("%b %e %H:%M:%S")
        self._to.write(os.fsencode(f"<{DAEMON << 3 | level}>{when} {NAME}[{os.getpid()}]: {text}"))


_target: _Stderr | _Journal | _Syslog = _Stderr()
_level = LEVELS["info"]
_lock = threading.Lock()
_thread: _Taker | None = None
_pipe = -1


def _to_journal() -> bool:
    """Is our stderr the journal (systemd.exec(5), JOURNAL_STREAM)?"""
    try:
        st = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{st.st_dev}:{st.st_ino}"


def _is_socket(path: str) -> bool:
    try:
        if connector is not None:
            connector(path).close()
            return True
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def choose(target: str, background: bool) -> str:
    """What 'auto' means: in the foreground stderr, in the background the log daemon that is here, or '' for none."""
    if target != "auto":
        return target
    if not background:
        return "journal" if _to_journal() and _is_socket(JOURNAL) else "stderr"
    return "journal" if _is_socket(JOURNAL) else "syslog" if _is_socket(SYSLOG) else ""


def setup(target: str, level: str, background: bool, fields: dict[str, str]) -> None:
    """Where messages go from now on, and which. fields: what the journal is told with each. Raises PassthruError."""
    global _target
    chosen = choose(target, background)
    try:
        _target = _Journal(fields) if chosen == "journal" else _Syslog() if chosen == "syslog" else _Stderr()
    except OSError as e:
        path = JOURNAL if chosen == "journal" else SYSLOG
        if target != "auto":
            raise PassthruError(f"--log {target}: {path}: {reason(e)}") from None
        _target = _Stderr()
    set_level(level)


def set_level(level: str) -> None:
    """Only messages of this level and graver ones, from now on."""
    global _level
    _level = LEVELS[level]
    _log.set_level(_level)


def _send(level: int, text: str) -> None:
    with _lock:
        _target.send(level, _CONTROL.sub(lambda m: f"\\x{ord(m.group()):02x}", text))


def _message(level: int, text: str) -> None:
    if level <= _level:
        _send(level, text)


def error(text: str) -> None:
    """What was asked for is not, or no longer, done."""
    _message(LEVELS["error"], text)


def warning(text: str) -> None:
    """It goes on, but not as one would wish."""
    _message(LEVELS["warning"], text)


def info(text: str) -> None:
    """What everybody may want to know."""
    _message(LEVELS["info"], text)


def debug(text: str) -> None:
    """What the daemon does."""
    _message(LEVELS["debug"], text)


def trace(text: str) -> None:
    """Lines of --debug-fuse, as they are."""
    with _lock:
        if isinstance(_target, _Stderr):
            _target.raw(text + "\n")
        else:
            for line in text.split("\n"):
                _target.send(LEVELS["debug"], line)


# ------------------------------------------------------------- messages of other threads

def start(prepare: Callable[[], object] = lambda: None) -> None:
    """Take the messages of threads that serve, until stop(). prepare: what the thread for it does first.

    Raises OSError.
    """
    global _thread, _pipe
    read_end, _pipe = os.pipe()
    os.set_blocking(_pipe, False)
    with contextlib.suppress(OSError):  # an ordinary user may have used up what there is
        fcntl.fcntl(_pipe, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    _thread = _Taker(read_end, prepare)
    _thread.start()
    _log.use(_pipe)


def stop() -> None:
    """Deliver what is in the pipe. What threads say after that goes to fd 2."""
    global _thread
    if _thread is None:
        return
    _log.use(-1)
    os.set_blocking(_pipe, True)
    threads.end([_thread], time.monotonic() + 5)
    _thread = None  # the pipe stays: a thread may be about to write to it


class _Taker(threads.ServingThread):
    """Takes messages out of the pipe, and to the target."""

    def __init__(self, pipe: int, prepare: Callable[[], object]):
        super().__init__("log")
        self._pipe, self._prepare = pipe, prepare

    def open(self) -> None:
        self._prepare()

    def wake(self) -> None:
        os.write(_pipe, _END)

    def serve(self) -> None:
        data = b""
        while True:
            data += os.read(self._pipe, PIPE_SIZE)
            lines, _, rest = data.rpartition(b"\n")
            traced: list[str] = []
            for line in lines.split(b"\n") if lines else []:
                line = line.lstrip(_END)
                text = line[1:].decode(errors="backslashreplace")
                if line[:1] == b"t":
                    traced.append(text)
                    continue
                if traced:
                    trace("\n".join(traced))
                    traced = []
                _send(int(line[:1]), text)
            if traced:
                trace("\n".join(traced))
            _log.delivered(data.count(b"\n"))
            if lost := _log.take_lost():
                _message(LEVELS["warning"], f"{lost} messages lost: they came faster than they could be written")
            if rest[-1:] == _END:
                return
            data = rest
