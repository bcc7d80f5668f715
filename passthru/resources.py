"""What the machine lets the process have: memory, open files, sizes of requests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource

from .errors import PassthruError, UsageError
from .options import PAGE, Options

LEAST_FDS = 128


def memory() -> int:
    """The machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def raise_fd_limit() -> None:
    """As many fds as may be had: each file that a caller opens is one here. Root goes beyond the hard limit.

    Raises PassthruError: too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/proc/sys/fs/nr_open", encoding="ascii") as f:
        most = int(f.read())
    for limit in (most, hard):
        if limit > soft:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
                break
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < LEAST_FDS:
        raise PassthruError(f"a limit of fewer than {LEAST_FDS} open files is too low (ulimit -n)")


def fd_cache_size() -> int:
    """How many known inodes have an open fd at the most."""
    return max(16, min(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


def grow_fd_table(fd: int, room: int) -> None:
    """Have the kernel make room for so many fds, while there is one thread only.

    Of a table that threads share it grows each time by waiting for all CPUs (synchronize_rcu), for
    milliseconds, in the open(2) of a request.
    """
    with contextlib.suppress(OSError):
        os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, room - 1))


def check_max_write(options: Options) -> None:
    """Raises UsageError if the kernel has no such large requests."""
    try:
        with open("/proc/sys/fs/fuse/max_pages_limit", encoding="ascii") as f:
            limit = int(f.read())
    except OSError:
        limit = 256  # FUSE_MAX_MAX_PAGES before 6.13
    if options.max_pages > limit:
        raise UsageError(
            f"--max-write: the kernel's limit is {limit * PAGE} bytes (/proc/sys/fs/fuse/max_pages_limit)")
