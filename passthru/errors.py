"""What can go wrong before and while a mount serves, and the exit code of each."""

from __future__ import annotations

import os


class PassthruError(Exception):
    """An error to be shown as one line. `exit_code` is what the command ends with."""

    exit_code = 1


class UsageError(PassthruError):
    """Unknown option, bad value, missing argument."""

    exit_code = 2


class SourceError(PassthruError):
    """The source is missing, not readable, or neither a directory nor a regular file nor a block device."""

    exit_code = 3


class MountpointError(PassthruError):
    """The mountpoint is missing, already a mount point, or no directory (no file, for a source that is a file)."""

    exit_code = 4


class TransportError(PassthruError):
    """The transport asked for cannot be had."""

    exit_code = 5


class MountError(PassthruError):
    """The kernel or fusermount3 refused the mount."""

    exit_code = 6


_KINDS = (UsageError, SourceError, MountpointError, TransportError, MountError)

EXIT_CODES = (
    (0, "success; in the background: the mount is usable"),
    (1, "the session failed, or could not be set up for a reason not below"),
    *((c.exit_code, c.__doc__) for c in _KINDS),
)


def by_exit_code(code: object) -> type[PassthruError]:
    """The error that ends the command with `code`; PassthruError itself if there is none."""
    return next((c for c in _KINDS if c.exit_code == code), PassthruError)


def unexpected(error: Exception) -> str:
    """A line for an error of another kind; what is known to be want of memory says so."""
    text = str(error)
    if isinstance(error, MemoryError) or "failed to map segment" in text or "start new thread" in text:
        return "too little memory: look at ulimit -v and -u, and at a container's limits"
    if isinstance(error, OSError) and error.errno:
        return (f"{error.filename}: " if error.filename else "") + reason(error)
    lines = text.strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else '?'}"


def reason(error: OSError) -> str:
    """The text of an OSError's errno, without path and number."""
    return os.strerror(error.errno) if error.errno else str(error)
