"""The daemon's keeper: a process beside it that stays where the mount is, when the daemon confines itself (sandbox.py).

It attaches and unmounts, connects to the log daemon, and removes status page and socket at the end: this mount, these
sockets and these files, whatever the daemon may have come to. With -o auto_unmount it unmounts as well when the daemon
has gone without doing so, even by SIGKILL. With --cache coherent it aborts the connection then: see _watch.pyx.

A request is a packet of JSON: [what, ...]; so is the answer: [result] or [null, errno, text].
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import threading
from pathlib import Path
from typing import Any

from . import _confine, _sys, log, mounting, status_page
from .capabilities import CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN
from .stdio import quiet

PACKET = 8192
PATIENCE = 15.0  # seconds
PATHS = {"journal": log.JOURNAL, "syslog": log.SYSLOG}


class Keeper:
    """The keeper as its daemon sees it. To be made before any thread is.

    target: where the mount is to be, target_fd: what is there now. pages: the directory of status pages.
    """

    def __init__(self, target: str, target_fd: int, pages: Path, *, auto_unmount: bool):
        """Raises OSError."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._pid = os.fork()
        if self._pid == 0:
            with contextlib.suppress(BaseException):
                self._socket.close()
                _Server(theirs, target, target_fd, pages, auto_unmount).serve()
            os._exit(0)
        theirs.close()
        self._socket.settimeout(PATIENCE)

    def _ask(self, *words: Any, fds: tuple[int, ...] = ()) -> tuple[Any, int]:
        """(result, fd or -1). Raises OSError: what went wrong there, or EPIPE: it has gone."""
        with self._lock:
            if self._socket.fileno() < 0:
                raise OSError(errno.EPIPE, "the keeper has been dismissed")
            try:
                socket.send_fds(self._socket, [json.dumps(words).encode()], fds)
                data, got, _, _ = socket.recv_fds(self._socket, PACKET, 1)
            except BrokenPipeError:
                raise OSError(errno.EPIPE, "the daemon's keeper has ended") from None
            except TimeoutError:
                raise OSError(errno.ETIMEDOUT, "the daemon's keeper does not answer") from None
        if not data:
            raise OSError(errno.EPIPE, "the daemon's keeper has ended")
        result, *error = json.loads(data)
        if error:
            raise OSError(*error)
        return result, got[0] if got else -1

    def forget_answers(self) -> None:
        """A daemon has died that may have asked something: what it was answered is nobody's."""
        with contextlib.suppress(OSError):
            while select.select([self._socket], [], [], 0)[0]:
                data, fds, _, _ = socket.recv_fds(self._socket, PACKET, 1)
                for fd in fds:
                    os.close(fd)
                if not data:  # it has ended
                    break

    def attach(self, mount_fd: int, page: tuple[int, int]) -> None:
        """Put a detached mount at its place. page: Page.identity."""
        self._ask("attach", page, fds=(mount_fd,))

    def mounted(self, dev: int, mount_id: int, page: tuple[int, int]) -> None:
        """It is there already, by fusermount3. dev: its st_dev; page: Page.identity."""
        self._ask("mounted", dev, mount_id, page)

    def unmount(self, *, lazy: bool = True) -> str:
        """As mounting.unmount()."""
        return str(self._ask("unmount", lazy)[0])

    def aborts_by(self, fd: int) -> None:
        """What to write to if the daemon has gone and somebody still waits for it."""
        self._ask("aborts_by", fds=(fd,))

    def connect(self, path: str) -> socket.socket:
        """A socket of a log daemon."""
        name = next(n for n, p in PATHS.items() if p == path)
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0, self._ask("connect", name)[1])

    def dismiss(self) -> None:
        """End it: the mount has been taken away, or never came; the files go. May be called again."""
        if self._socket.fileno() >= 0:
            hangs = False
            try:
                self._ask("dismiss")
            except OSError as e:
                hangs = e.errno == errno.ETIMEDOUT
            self._socket.close()
            with contextlib.suppress(OSError):
                os.waitpid(self._pid, os.WNOHANG if hangs else 0)


class _Server:
    """The keeper's own side."""

    def __init__(self, to_daemon: socket.socket, target: str, target_fd: int, pages: Path, auto_unmount: bool):
        os.setsid()  # signals to the daemon's group and terminal are not for us
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        # Not the least /dev/fuse: the connection has to end with the daemon.
        place = os.dup(target_fd)  # not one of those that are overwritten next
        here = os.dup(to_daemon.detach())
        os.dup2(here, 3)
        quiet()
        os.dup2(place, 4)
        os.closerange(5, os.sysconf("SC_OPEN_MAX"))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, 3)
        self._place = 4
        self._target, self._pages, self._auto = target, pages, auto_unmount
        self._dev, self._mount_id = 0, -1
        self._abort = -1
        self._page = (0, 0)
        self._root = os.geteuid() == 0
        self._go = True
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text("passthru-keeper")
        with contextlib.suppress(OSError):
            _confine.undumpable()
        if self._root:  # an ordinary user's has to call fusermount3
            with contextlib.suppress(OSError):
                _confine.no_new_privileges()
                _confine.cut_capabilities(1 << CAP_SYS_ADMIN | 1 << CAP_DAC_READ_SEARCH)

    def serve(self) -> None:
        """Until it is dismissed, or the daemon has gone."""
        while self._go:
            data, fds, _, _ = socket.recv_fds(self._socket, PACKET, 1)
            if not data:
                # One of its threads may live on, waiting for a lock of the mount's whose holder waits for the daemon.
                if self._abort >= 0:
                    with contextlib.suppress(OSError):
                        os.write(self._abort, b"1")
                if self._auto and self._mount_id >= 0:
                    mounting.detach(self._target, self._mount_id, self._root)
                    self._dismiss_asked()
                return
            fd = -1
            try:
                what, *words = json.loads(data)
                result, fd = getattr(self, f"_{what}_asked")(*words, *fds)
                answer: list[Any] = [result]
            except OSError as e:
                answer = [None, e.errno or errno.EIO, e.strerror or str(e)]
            except Exception as e:
                answer = [None, errno.EINVAL, f"{type(e).__name__}: {e}"]
            for sent in fds:
                os.close(sent)
            with contextlib.suppress(OSError):
                socket.send_fds(self._socket, [json.dumps(answer).encode()], [fd] if fd >= 0 else [])
            if fd >= 0:
                os.close(fd)

    def _attach_asked(self, page: list[int], mount_fd: int) -> tuple[None, int]:
        place = self._take_place()
        try:
            self._know(*_sys.mount_identity(mount_fd), page)  # before others see the mount
            _sys.move_mount(mount_fd, place)
        finally:
            os.close(place)
        return None, -1

    def _mounted_asked(self, dev: int, mount_id: int, page: list[int]) -> tuple[None, int]:
        os.close(self._take_place())
        self._know(int(dev), int(mount_id), page)
        return None, -1

    def _take_place(self) -> int:
        """The fd of where the mount is to be: which one it is is said once."""
        if self._place < 0:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        place, self._place = self._place, -1
        return place

    def _know(self, dev: int, mount_id: int, page: list[int]) -> None:
        self._dev, self._mount_id = dev, mount_id
        self._page = int(page[0]), int(page[1])

    def _aborts_by_asked(self, fd: int) -> tuple[None, int]:
        if self._abort < 0:
            self._abort = os.dup(fd)
        return None, -1

    def _unmount_asked(self, lazy: bool) -> tuple[str, int]:
        return mounting.unmount(self._target, self._mount_id, self._root, lazy=bool(lazy)), -1

    def _connect_asked(self, name: str) -> tuple[None, int]:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        with s:
            s.connect(PATHS[name])
            return None, os.dup(s.fileno())

    def _dismiss_asked(self) -> tuple[None, int]:
        if self._dev:
            status_page.remove(self._pages / status_page.name_of(self._dev), self._page)
        self._go = False
        return None, -1
