"""Telling the service manager how a service is (sd_notify(3)): a datagram to $NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> bool:
    """Send assignments such as 'READY=1'. False if nobody asked for them, or they cannot be sent.

    A name that begins with '@' is of the abstract namespace (unix(7)).
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    name = os.fsencode(address)
    if name[:1] == b"@":
        name = b"\0" + name[1:]
    text = "\n".join(line.replace("\n", " ") for line in lines)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        try:
            s.sendto(os.fsencode(text), name)
        except OSError:  # a service goes on without its manager
            return False
    return True
