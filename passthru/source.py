"""The source: a directory, or one regular file or block device."""

from __future__ import annotations

import array
import fcntl
import os
import stat
from dataclasses import dataclass, replace

from . import _server, mounting
from ._confine import NUMBERS
from .errors import SourceError, UsageError, reason
from .options import Options


@dataclass(frozen=True)
class Source:
    """An open source. fd: O_RDONLY; mode: st_mode; size: bytes of a file or device; read_only: nothing writes to it."""

    fd: int
    mode: int
    size: int
    read_only: bool

    @property
    def directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def device(self) -> bool:
        """Is it a block device? It is shown as a regular file."""
        return stat.S_ISBLK(self.mode)

    @property
    def kind(self) -> str:
        if self.device:
            return "read-only block device" if self.read_only else "block device"
        return "directory" if self.directory else "file"

    @property
    def root_mode(self) -> int:
        """st_mode of the mount's root as it is before the first GETATTR."""
        return stat.S_IFDIR if self.directory else stat.S_IFREG | stat.S_IMODE(self.mode)


def reopen(fd: int, flags: int) -> int:
    """A new fd of what an O_PATH fd refers to, whatever is mounted over its name meanwhile."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def open_source(path: str) -> Source:
    """Open the source. Raises SourceError; nothing but a directory, regular file or block device is opened."""
    try:
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            mode = os.fstat(found).st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                # Opening it might wait (a FIFO), or do something (a tape drive).
                raise SourceError(f"source {path}: neither a directory nor a regular file nor a block device")
            fd = reopen(found, os.O_RDONLY)
        finally:
            os.close(found)
    except OSError as e:
        raise SourceError(f"source {path}: {reason(e)}") from None
    size, read_only = os.fstat(fd).st_size, False
    if not stat.S_ISBLK(mode):
        read_only = bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY) and not (
            stat.S_ISDIR(mode) and _writable_below(os.path.realpath(path)))
    else:
        size, read_only = _ask(fd, NUMBERS["BLKGETSIZE64"], "Q"), bool(_ask(fd, NUMBERS["BLKROGET"], "i"))
    return Source(fd, mode, size, read_only)


def _writable_below(source: str) -> bool:
    """Is a filesystem mounted below a directory that may be written to? What is to come is not known."""
    start = source.rstrip("/") + "/"
    return any(m.target.startswith(start) and "rw" in m.options for m in mounting.mounts())


def _ask(fd: int, request: int, kind: str) -> int:
    """The number that an ioctl(2) of a block device gives; kind: a type code of array."""
    answer = array.array(kind, [0])
    fcntl.ioctl(fd, request, answer)
    return answer[0]


def keeps_size(source: Source, options: Options) -> bool:
    """Is nothing to be written past the source's end? Raises UsageError for options that do not go with it."""
    fixed = not options.read_only and (source.device or options.fixed_size)
    if options.fixed_size and source.directory:
        raise UsageError("--fixed-size: the source is a directory")
    if fixed and options.writeback:
        raise UsageError("--writeback: the kernel would take writes past the end of a source of fixed size")
    return fixed


def options_for(kind: int, options: Options, *, all_callers: bool) -> Options:
    """The options, with the flags of the source's mount, which ours then has too. Raises SourceError.

    kind: ServerCore.source_is. all_callers: others than the daemon's user see what is shown with root's rights.
    """
    o = options
    if all_callers:
        if kind & _server.PSEUDO and o.submounts != "all":
            raise SourceError(
                f"source {o.source}: not data, but the kernel's own state, which all users would see as root does; "
                "--submounts all with -o noallow_other serves it to root")
        if kind & _server.SERVER and not o.trust_modes:
            raise SourceError(
                f"source {o.source}: its server decides who may do what, but here mode bits would, with root's "
                "rights; --trust-modes if they will do")
    return replace(
        o, nosuid=o.nosuid or bool(kind & _server.NOSUID), nodev=o.nodev or bool(kind & _server.NODEV),
        noexec=o.noexec or bool(kind & _server.NOEXEC))
