"""The counters of a live mount, read from the page that its threads write (layout: _stats.pxd)."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAGIC, VERSION, HEADER = 0x75726874, 1, 4096
TRANSPORTS = {0: "none", 1: "ring", 2: "dev"}
DIALECTS = {0: "", 1: "per-entry", 2: "bufring", 3: "bufpool"}
KINDS = {0: "", 1: "queue", 2: "dev", 3: "pool"}

HEADER_DTYPE = np.dtype([
    ("magic", "u4"), ("version", "u4"), ("pid", "u4"), ("threads", "u4"), ("block_size", "u4"),
    ("transport", "u4"), ("queues", "u4"), ("depth", "u4"), ("minor", "u4"), ("max_write", "u4"),
    ("init_flags", "u8"), ("fuse_dev", "u8"), ("mount_id", "u8"), ("payload_size", "u4"), ("dialect", "u4"),
    ("inodes", "u4"), ("handles", "u4"), ("source", "S1024"), ("mountpoint", "S1024"),
])
COUNTERS = (
    "ring_requests", "commits", "dev_requests", "dev_replies", "errors", "read_bytes", "write_bytes",
    "io_inline", "io_ring", "io_fixed", "io_pool", "enters", "sleeps", "lookups", "forgets", "opens",
    "releases", "entries_lost", "io_zero_copy", "refused",
)
THREAD_DTYPE = np.dtype(
    [("kind", "u8"), ("cpu", "i8")] + [(n, "u8") for n in COUNTERS] + [("spare", "u8", 2), ("ops", "u8", 64)])

OPCODES = {
    1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 6: "SYMLINK", 8: "MKNOD", 9: "MKDIR",
    10: "UNLINK", 11: "RMDIR", 12: "RENAME", 13: "LINK", 14: "OPEN", 15: "READ", 16: "WRITE", 17: "STATFS",
    18: "RELEASE", 20: "FSYNC", 21: "SETXATTR", 22: "GETXATTR", 23: "LISTXATTR", 24: "REMOVEXATTR", 25: "FLUSH",
    26: "INIT", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 31: "GETLK", 32: "SETLK",
    33: "SETLKW", 34: "ACCESS", 35: "CREATE", 36: "INTERRUPT", 37: "BMAP", 38: "DESTROY", 39: "IOCTL", 40: "POLL",
    41: "NOTIFY_REPLY", 42: "BATCH_FORGET", 43: "FALLOCATE", 44: "READDIRPLUS", 45: "RENAME2", 46: "LSEEK",
    47: "COPY_FILE_RANGE", 48: "SETUPMAPPING", 49: "REMOVEMAPPING", 50: "SYNCFS", 51: "TMPFILE", 52: "STATX",
    53: "COPY_FILE_RANGE_64",
}


def directory() -> Path:
    """Where this user's daemons keep their pages: /run/passthru, or in the user's runtime directory."""
    if os.geteuid() == 0:
        return Path("/run/passthru")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "passthru" if base else Path(f"/tmp/passthru-{os.geteuid()}")


class Page:
    """A daemon's own page: created for the owner's eyes, removed at the end."""

    def __init__(self, size: int):
        where = directory()
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        st = where.lstat()  # in /tmp it may be anybody's, or a link
        if st.st_uid != os.geteuid() or not stat.S_ISDIR(st.st_mode) or st.st_mode & 0o022:
            raise PermissionError(errno.EPERM, f"{where} can be written by others")
        for left in where.iterdir():  # by daemons that were killed
            if left.name.isdigit() and not Path(f"/proc/{left.name}").exists():
                left.unlink(missing_ok=True)
        self.path = where / str(os.getpid())
        self.path.unlink(missing_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            self.memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Take the page out of sight; the memory stays as long as it is used."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Snapshot:
    """A mount's counters at one moment. header and threads are numpy records of the page's layout."""

    header: Any
    threads: Any

    @property
    def transport(self) -> str:
        """'ring' or 'dev'."""
        return TRANSPORTS[int(self.header["transport"])]

    @property
    def dialect(self) -> str:
        return DIALECTS[int(self.header["dialect"])]

    def total(self, counter: str) -> int:
        """A counter over all threads."""
        return int(self.threads[counter].sum())

    def ops(self) -> dict[str, int]:
        """Requests served by opcode, those that came."""
        sums = self.threads["ops"].sum(axis=0)
        return {OPCODES.get(n, f"opcode {n}"): int(c) for n, c in enumerate(sums) if c}


def read(path: Path) -> Snapshot:
    """Read a page. ValueError if it is not one of this version."""
    data = path.read_bytes()
    if len(data) < HEADER:
        raise ValueError(f"{path}: not a status page")
    header = np.frombuffer(data, HEADER_DTYPE, 1)[0]
    if header["magic"] != MAGIC or header["version"] != VERSION or header["block_size"] != THREAD_DTYPE.itemsize:
        raise ValueError(f"{path}: a status page of another version")
    return Snapshot(header, np.frombuffer(data, THREAD_DTYPE, int(header["threads"]), HEADER))


def live() -> list[Snapshot]:
    """Snapshots of this user's live mounts."""
    found = []
    where = directory()
    for path in sorted(where.iterdir()) if where.is_dir() else []:
        try:
            os.kill(int(path.name), 0)
            found.append(read(path))
        except (ValueError, OSError):
            continue  # of a dead daemon, or just going
    return found


def of(mountpoint: str | os.PathLike[str]) -> Snapshot:
    """The snapshot of the mount at `mountpoint`. LookupError if none of ours is there."""
    want = os.fsencode(os.path.abspath(mountpoint))
    for snapshot in reversed(live()):
        if bytes(snapshot.header["mountpoint"]) == want:
            return snapshot
    raise LookupError(f"{os.fspath(mountpoint)}: no live passthru mount")
