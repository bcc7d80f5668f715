"""Telling the service manager how a service is (sd_notify(3)): a datagram to $NOTIFY_SOCKET."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

_kept: socket.socket | None = None
_settled = False  # there is _kept, or nobody


def _connected() -> socket.socket | None:
    """To who wants to be told. A name that begins with '@' is of the abstract namespace (unix(7))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return None
    name = os.fsencode(address)
    if name[:1] == b"@":
        name = b"\0" + name[1:]
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        s.connect(name)
    except OSError:  # a service goes on without its manager
        s.close()
        return None
    return s


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Keep a socket to the manager for a while, as a process needs that will have no path to it."""
    global _kept, _settled
    _kept, _settled = _connected(), True
    try:
        yield
    finally:
        if _kept is not None:
            _kept.close()
        _kept, _settled = None, False


def notify(*lines: str) -> bool:
    """Send assignments such as 'READY=1'. False if nobody asked for them, or they cannot be sent."""
    s = _kept if _settled else _connected()
    if s is None:
        return False
    try:
        s.send(os.fsencode("\n".join(line.replace("\n", " ") for line in lines)))
    except OSError:
        return False
    finally:
        if s is not _kept:
            s.close()
    return True
