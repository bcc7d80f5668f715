"""Changing a live mount's options: a Unix socket beside the status page.

A packet is a JSON object. {"set": ["key=value", ...]} asks; {"options": {...}} (all in effect) or
{"error": "...", "code": exit code} answers. The daemon's main thread answers, which serves no requests.
ask_set() there is Session.set_options() here, which reads the words (options.live_values()) and makes new Options of
them (Options.with_values()).
Only the daemon's user and root are listened to.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import PassthruError, by_exit_code, reason
from .status_page import socket_path

if TYPE_CHECKING:  # numpy takes its time
    from .stats import Snapshot

PACKET = 65536
MOST_CLIENTS = 16
PATIENCE = 10.0  # seconds; a daemon answers at once, unless it is stopped or is just unmounting

SetOptions = Callable[[list[str], int], dict[str, Any]]


def _short(directory: int, name: str) -> str:
    """An address of a socket in a directory: the path itself may be longer than an address can be."""
    return f"/proc/self/fd/{directory}/{name}"


def _peer(s: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the other side, when it connected or began to listen (unix(7))."""
    pid, uid, _ = struct.unpack("3i", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


class Control:
    """The daemon's side. set_options(words, uid) applies `key=value` words or raises PassthruError.

    Whenever `fd` becomes readable, ready() is to be called; it never waits.
    """

    def __init__(self, page: Path, set_options: SetOptions):
        self.path = socket_path(page)
        self._set_options = set_options
        self._clients: dict[int, socket.socket] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._poll = select.epoll()
        self.path.unlink(missing_ok=True)
        directory = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._socket.setblocking(False)
            os.fchmod(self._socket.fileno(), 0o600)  # bind(2) makes the file with this mode
            self._socket.bind(_short(directory, self.path.name))
            self._socket.listen(128)
        except OSError:
            self.close()
            raise
        finally:
            os.close(directory)
        self._poll.register(self._socket, select.EPOLLIN)

    @property
    def fd(self) -> int:
        return self._poll.fileno()

    def ready(self) -> None:
        """Accept and answer what has come."""
        for fd, _ in self._poll.poll(0):
            if fd == self._socket.fileno():
                self._accept()
            elif fd in self._clients:
                self._answer(fd)

    def _accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError:
            return
        client.setblocking(False)
        if _peer(client)[1] not in (0, os.geteuid()):
            client.close()
            return
        if len(self._clients) >= MOST_CLIENTS:
            self._drop(next(iter(self._clients)))
        self._clients[client.fileno()] = client
        self._poll.register(client, select.EPOLLIN)

    def _answer(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            packet = client.recv(PACKET)
            if not packet:
                self._drop(fd)
                return
            client.send(json.dumps(self._reply(packet, _peer(client)[1])).encode())
        except OSError:
            self._drop(fd)

    def _reply(self, packet: bytes, uid: int) -> dict[str, Any]:
        try:
            asked = json.loads(packet)
            words = asked["set"] if isinstance(asked, dict) else None
        except (ValueError, KeyError, RecursionError):
            words = None
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            return {"error": "not understood", "code": 1}
        try:
            return {"options": self._set_options(words, uid)}
        except PassthruError as e:
            return {"error": str(e), "code": e.exit_code}
        except Exception as e:  # a fault of ours is no reason to end the mount
            return {"error": f"{type(e).__name__}: {e}", "code": 1}

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._poll.unregister(client)
        client.close()

    def close(self) -> None:
        """Listen no more. The socket's file goes with the page (status_page.remove())."""
        for fd in list(self._clients):
            self._drop(fd)
        self._poll.close()
        self._socket.close()


def ask_set(page: Snapshot, words: Sequence[str]) -> dict[str, Any]:
    """Have a live daemon change options; all that are then in effect.

    Raises PassthruError: of the kind that the command line raises for the same mistake, and nothing is changed;
    or because the daemon cannot be reached.
    """
    where = socket_path(page.path)
    try:
        answer = _asked(page, where, {"set": list(words)})
    except (TimeoutError, BlockingIOError):
        raise PassthruError(f"the daemon (pid {page.pid}) does not answer") from None
    except OSError as e:
        raise PassthruError(f"the daemon's control socket {where}: {reason(e)}") from None
    if "error" in answer:
        raise by_exit_code(answer.get("code"))(str(answer["error"]))
    found = answer.get("options")
    return found if isinstance(found, dict) else {}


def _asked(page: Snapshot, where: Path, question: dict[str, Any]) -> dict[str, Any]:
    directory = os.open(where.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, directory)
        st = os.stat(where.name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISSOCK(st.st_mode) or st.st_uid != page.owner:
            raise PassthruError(f"{where}: not the socket of the daemon")
        s = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        s.settimeout(PATIENCE)
        s.connect(_short(directory, where.name))
        if _peer(s) != (page.pid, page.owner):
            raise PassthruError(f"{where}: another process listens there")
        s.send(json.dumps(question).encode())
        try:
            found = json.loads(s.recv(PACKET) or b"null")
        except ValueError:
            found = None
    if not isinstance(found, dict):
        raise PassthruError(f"the daemon (pid {page.pid}) refused to answer")
    return found
