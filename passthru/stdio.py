"""The standard files of a process that goes to the background."""
from __future__ import annotations

import os
import sys
from collections.abc import Iterable


def quiet(fds: Iterable[int] = (0, 1, 2)) -> None:
    """What is written to `fds` goes nowhere from now on, and there is nothing to read."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in fds:
        os.dup2(null, fd)
    os.close(null)


def standard_files() -> None:
    """Have 0, 1 and 2 open, as they may not be at boot: else the mount's own files would get these numbers."""
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)
