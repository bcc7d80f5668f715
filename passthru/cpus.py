"""CPUs, and which thread serves which queue on which of them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

NETLINK_KOBJECT_UEVENT = 15  # linux/netlink.h
KERNEL_EVENTS = 1            # its multicast group
MAX_ENTRIES = 1 << 14        # of one ring: IORING_MAX_REG_BUFFERS, less than IORING_MAX_ENTRIES


def cpu_list(text: str) -> list[int]:
    """CPU numbers of a kernel list such as '0-3,8'."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        if part:
            low, _, high = part.partition("-")
            cpus += range(int(low), int(high or low) + 1)
    return cpus


def possible_cpus() -> list[int]:
    """One queue each: the kernel waits for all of them (trap: not only those online)."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as f:
        return cpu_list(f.read())


@dataclass(frozen=True)
class Share:
    """What one thread serves: it runs on `cpus`, and `qids` are its queues."""

    cpus: tuple[int, ...]
    qids: tuple[int, ...]


def queue_plan(threads: int = 0) -> list[Share]:
    """A share for each CPU that we may use and that is online, or `threads` shares if those are fewer.

    CPUs with neighbouring numbers share a thread. The queues of all others go to the threads in turn.
    """
    possible = possible_cpus()
    allowed = sorted(os.sched_getaffinity(0))  # the mask and the cpuset; what is offline is not in it
    allowed = [cpu for cpu in allowed if cpu in possible] or allowed[:1]
    count = min(threads or len(allowed), len(allowed))
    cpus = [allowed[len(allowed) * n // count:len(allowed) * (n + 1) // count] for n in range(count)]
    qids = [[cpu for cpu in share if cpu in possible] for share in cpus]
    for n, qid in enumerate(sorted(set(possible) - set(allowed))):
        qids[n % count].append(qid)
    return [Share(tuple(c), tuple(q)) for c, q in zip(cpus, qids, strict=True)]


def entries(plan: list[Share], depth: int) -> int:
    """Entries per queue: `depth`, or what one ring can hold of the most queues that a thread has."""
    most = max((len(share.qids) for share in plan), default=1)
    return max(1, min(depth, (MAX_ENTRIES - 2) // most - 1))


class Hotplug:
    """Tells when a CPU came or went. fileno() can be read then."""

    def __init__(self) -> None:
        """Raises OSError where there are no such messages."""
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT)
        try:
            self.socket.bind((0, KERNEL_EVENTS))
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        return self.socket.fileno()

    def changed(self) -> bool:
        """Read what is there: is a CPU's change among it? Lost messages count as one."""
        found = False
        while True:
            try:
                message, (port, _) = self.socket.recvfrom(8192)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS
                found = True
                continue
            if port == 0:  # of the kernel
                found = found or is_hotplug(message)

    def close(self) -> None:
        self.socket.close()


def is_hotplug(message: bytes) -> bool:
    """Is this uevent that of a CPU which came online or went offline?"""
    action, _, path = message.partition(b"\0")[0].partition(b"@")
    name = path.rpartition(b"/cpu/cpu")
    return action in (b"online", b"offline") and name[1] != b"" and name[2].isdigit()
