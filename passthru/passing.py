"""Where kernel passthrough happens: that is a matter of each filesystem that the mount shows.

The kernel refuses files of stacked filesystems: of overlayfs and ecryptfs always, which is known by their type, of FUSE
if that mount has kernel passthrough itself, which only trying tells.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass

from . import _mounts, _server, mounting
from ._confine import NUMBERS
from .mount_changes import below, read_table

LOOKED_AT = 1000  # names of the source's directory among which a file is looked for
NAMED = 4         # filesystems that are named


@dataclass(frozen=True)
class Passing:
    """happens: on one of the filesystems at least. but_on: names of those where the daemon reads and writes."""

    happens: bool = False
    but_on: str = ""

    @property
    def text(self) -> str:
        """As of the start line; '' if there is nothing to say."""
        if self.happens:
            return "kernel passthrough" + (f" (not on {self.but_on}: there the daemon reads and writes)"
                                           if self.but_on else "")
        return f"no kernel passthrough on {self.but_on}: the daemon reads and writes" if self.but_on else ""


def regular_file(directory: int, flags: int) -> int:
    """An fd of a file of the directory, opened with these flags; -1: none among the first that can be opened."""
    with os.scandir(directory) as entries:
        for _, entry in zip(range(LOOKED_AT), entries, strict=False):
            try:
                if entry.is_file(follow_symlinks=False):
                    return os.open(
                        entry.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            except OSError:
                continue
    return -1


def _refuses(fuse_fd: int, source_fd: int, directory: bool) -> bool:
    """Does the kernel refuse to read and write the source's files itself? False: no, or there is no file to try."""
    fd = regular_file(source_fd, os.O_PATH) if directory else os.dup(source_fd)
    if fd < 0:
        return False
    try:
        asked = bytearray(struct.pack("=iIQ", fd, 0, 0))  # of what may be changed, ioctl() returns the number
        number = fcntl.ioctl(fuse_fd, NUMBERS["FUSE_DEV_IOC_BACKING_OPEN"], asked)
        fcntl.ioctl(fuse_fd, NUMBERS["FUSE_DEV_IOC_BACKING_CLOSE"], struct.pack("=I", number))
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _named(table: list[mounting.MountInfo], number: int, major: int, minor: int) -> mounting.MountInfo | None:
    """The mount of a row; of a private copy, another mount of that device."""
    dev = os.makedev(major, minor)
    return next((m for m in table if m.mount_id == number), None) or next((m for m in table if m.dev == dev), None)


def try_source(core: _server.ServerCore, mountinfo: int, fuse_fd: int, source_fd: int, directory: bool) -> None:
    """After INIT: find out about a source on FUSE, before anybody is told that its files are passed through."""
    number, major, minor, passed = core.filesystems[0]
    here = _named(read_table(mountinfo), number, major, minor)
    if passed and here is not None and here.fstype.partition(".")[0] == "fuse" \
            and _refuses(fuse_fd, source_fd, directory):
        core.no_backing()


def look(core: _server.ServerCore, mountinfo: int, source: str, *, submounts: bool = True) -> Passing:
    """Where it happens just now. source: where that is in the table `mountinfo`; submounts: they are shown.

    What is mounted below the source and nobody uses is no row: of that, types that are always refused are known.
    """
    rows = core.filesystems
    table = read_table(mountinfo)
    paths = below(table, source)
    names = []
    for n, (number, major, minor, passed) in enumerate(rows):
        if not passed:
            here = _named(table, number, major, minor)
            name = here.fstype if here is not None else f"{major}:{minor}"
            names.append(f"{name} at {paths[here.mount_id]}" if n and here is not None and here.mount_id in paths
                         else name)
    happens = len(names) < len(rows)
    names += [f"{m.fstype} at {paths[m.mount_id]}" for m in table
              if submounts and m.mount_id in paths and m.fstype in _mounts.STACKED]
    names = list(dict.fromkeys(names))  # overlayfs has several devices
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return Passing(happens, ", ".join([*names[:NAMED], *more]))
