"""The standard files of a process that goes to the background."""
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import TextIO

from .errors import PassthruError, reason

_null = -1


def use_null(fd: int) -> None:
    """What quiet() takes from now on, in a process that has no path to /dev/null any more."""
    global _null
    _null = fd


def quiet(fds: Iterable[int] = (0, 1, 2)) -> None:
    """What is written to `fds` goes nowhere from now on, and there is nothing to read."""
    null = _null if _null >= 0 else os.open("/dev/null", os.O_RDWR)
    for fd in fds:
        os.dup2(null, fd)
    if null != _null:
        os.close(null)


def say(text: str, file: TextIO) -> None:
    """Write a text. Raises PassthruError."""
    try:
        file.write(text or "")
        file.flush()
    except OSError as e:
        quiet([file.fileno()])  # else what is left of it would fail again
        raise PassthruError(f"standard output: {reason(e)}") from None


def standard_files() -> None:
    """Have 0, 1 and 2 open, as they may not be at boot: else the mount's own files would get these numbers."""
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)


def close_inherited() -> None:
    """A daemon keeps nothing open of whoever ran mount: a lock's file, a pipe's end."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))
