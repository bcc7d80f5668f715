"""A daemon's status page: its layout (that of _stats.pxd), its place, and what the daemon itself does with it.

A page has the name of its mount's device, MAJOR:MINOR as in /proc/self/mountinfo: no other mount has that number while
the connection lives, whichever process serves it. When the mount has gone another one may get it. So who names or
removes a page holds the directory's lock, and looks whose the name is. A page in use is locked itself: the lock ends
with the last process that has the page mapped.

Without numpy, which a daemon has no other use for, and which would take a third of its memory and of the time that a
mount takes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import re
import secrets
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import _dialect, log
from ._ops import operations
from .mounting import mounts

MAGIC, VERSION, HEADER = 0x75726874, 3, 16384
TRANSPORTS = {0: "none", 1: "ring", 2: "dev"}
DIALECTS = {0: "", **_dialect.DIALECTS}
KINDS = {0: "", 1: "queue", 2: "dev", 3: "pool", 4: "watch"}
SETTINGS = 6144  # room for the settings in the header
SHOWN = 256  # characters of a text in them that may be any length
BUCKETS = 224
READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # what is a page, or may be anything
NAME = re.compile(r"[0-9]+:[0-9]+")
UNNAMED = re.compile(r"\.[0-9a-f]{16}")  # of a mount that is just being made

# Fields of the header and of a thread's block, without gaps: (name, numpy's code of the type, how many).
HEADER_FIELDS = (
    ("magic", "u4"), ("version", "u4"), ("pid", "u4"), ("header_size", "u4"), ("threads", "u4"),
    ("block_size", "u4"), ("used", "u4"), ("transport", "u4"), ("dialect", "u4"), ("queues", "u4"), ("depth", "u4"),
    ("buffers", "u4"), ("readers", "u4"), ("pinned", "u4"), ("zero_copy", "u4"), ("passthrough", "u4"),
    ("identity", "u4"), ("minor", "u4"), ("max_write", "u4"), ("payload_size", "u4"),
    ("init_flags", "u8"), ("fuse_dev", "u8"), ("mount_id", "u8"), ("start_ticks", "u8"), ("started", "u8"),
    ("settings_seq", "u4"), ("settings_len", "u4"), ("pad", "V64"),
    ("inodes", "u4"), ("pad1", "V60"), ("handles", "u4"), ("pad2", "V60"), ("backings", "u4"), ("notify_failed", "u4"),
    ("pad3", "V56"),
    ("source", "S4096"), ("mountpoint", "S4096"), ("settings", f"V{SETTINGS}"),
)
COUNTERS = (
    "ring_requests", "commits", "dev_requests", "dev_replies", "errors", "read_bytes", "write_bytes",
    "io_inline", "io_ring", "io_fixed", "io_pool", "enters", "sleeps", "lookups", "forgets", "opens",
    "releases", "entries_lost", "io_zero_copy", "refused", "buffers_taken", "buffers_given", "opens_passthrough",
    "watch_events", "watch_own", "watch_unknown", "watch_notified", "watch_overflows", "watch_stuck",
    "repeat_events", "repeat_told", "repeat_dropped",
)
BLOCK_FIELDS = (
    ("kind", "u8"), ("cpu", "i8"), *((n, "u8") for n in COUNTERS),
    ("spare", "u8", 6), ("queues", "S64"), ("ops", "u8", 64), ("op_errors", "u8", 64), ("op_ns", "u8", 64),
    ("latency", "u8", (64, BUCKETS)),
)

OPCODES = {row["opcode"]: name for name, row in operations().items()}


def _placed() -> dict[str, tuple[int, struct.Struct]]:
    places, at = {}, 0
    for name, code in HEADER_FIELDS:
        form = struct.Struct({"u4": "=I", "u8": "=Q"}.get(code) or f"={code[1:]}s")
        places[name] = at, form
        at += form.size
    return places


_PLACES = _placed()


def directory() -> Path:
    """Where this user's daemons keep their pages: /run/passthru, or in the user's runtime directory."""
    if os.geteuid() == 0:
        return Path("/run/passthru")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "passthru" if base else Path(f"/tmp/passthru-{os.geteuid()}")


def directories(*, everybody: bool = False) -> list[tuple[Path, int]]:
    """(directory, its owner's uid) wherever pages of this user may be; `everybody`: and of all users, for root."""
    uid = os.geteuid()
    found = {directory(): uid}
    if uid:
        found |= {Path(f"/run/user/{uid}/passthru"): uid, Path(f"/tmp/passthru-{uid}"): uid}
    elif everybody:
        for parent, prefix, rest in (("/run/user", "", "/passthru"), ("/tmp", "passthru-", "")):
            with contextlib.suppress(OSError):
                for name in os.listdir(parent):
                    number = name.removeprefix(prefix)
                    if name.startswith(prefix) and number.isascii() and number.isdigit():
                        found[Path(f"{parent}/{name}{rest}")] = int(number)
    return list(found.items())


def name_of(dev: int) -> str:
    """The name of the page of the mount with this st_dev."""
    return f"{os.major(dev)}:{os.minor(dev)}"


def socket_path(page: Path) -> Path:
    """The control socket that belongs to a page, and goes with it."""
    return page.with_name(f"{page.name}.sock")


@contextlib.contextmanager
def _locked(where: Path) -> Iterator[int]:
    """An fd of the directory, which nobody else changes meanwhile. PermissionError: others can write to it."""
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        st = os.fstat(fd)  # in /tmp it may be anybody's
        if st.st_uid != os.geteuid() or st.st_mode & 0o022:
            raise PermissionError(errno.EPERM, f"{where} can be written by others")
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def in_use(fd: int) -> bool:
    """Has a process this page mapped as its own? fd: one that was opened to ask this."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def remove(page: Path, identity: tuple[int, int]) -> None:
    """Remove a page and its socket, unless the name is another page's by now. identity: (st_dev, st_ino)."""
    with contextlib.suppress(OSError), _locked(page.parent) as where:
        st = os.stat(page.name, dir_fd=where, follow_symlinks=False)
        if (st.st_dev, st.st_ino) == identity:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(socket_path(page).name, dir_fd=where)
            os.unlink(page.name, dir_fd=where)


def start_ticks(pid: int) -> int:
    """When a process was started, in clock ticks after boot (proc(5)). OSError: there is none, or it has ended."""
    with open(f"/proc/{pid}/stat", "rb") as f:
        words = f.read().rpartition(b")")[2].split()
    if words[0] in (b"Z", b"X"):
        raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended")
    return int(words[19])


def process_owner(pid: int) -> int:
    """Whose process it is (proc_pid_status(5)); the files in /proc/PID are root's, of one that nobody may look into."""
    with open(f"/proc/{pid}/status", "rb") as f:
        return int(next(line for line in f if line.startswith(b"Uid:")).split()[1])


def field(page: bytes | mmap.mmap, name: str) -> Any:
    """A field of a page's header."""
    at, form = _PLACES[name]
    return form.unpack_from(page, at)[0]


def read_header(fd: int, path: Path) -> bytes:
    """The header of a page. ValueError: it is not one of this version."""
    data = os.pread(fd, HEADER, 0)
    if len(data) < HEADER:
        raise ValueError(f"{path}: not a status page")
    if (field(data, "magic"), field(data, "version"), field(data, "header_size")) != (MAGIC, VERSION, HEADER):
        raise ValueError(f"{path}: a status page of another version")
    return data


class Page:
    """A daemon's own page: for the owner's eyes, found by others from publish() on, removed at the end.

    Of the file only what is in use has blocks, and these are there before it is written to: a store into a hole
    of a full filesystem would be SIGBUS. fd: for reserving more; -1: there is no file, since there is no room for one.
    path: None before publish(), and if there is no file. identity: (st_dev, st_ino) of the file.
    """

    def __init__(self, size: int):
        """A new page of so many bytes. Raises OSError."""
        self.path: Path | None = None
        self.fd = -1
        self.identity = (0, 0)
        self._unnamed: Path | None = None
        try:
            self._create(size)
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.remove()
            self.memory = mmap.mmap(-1, size)
            log.warning(f"status page in {directory()}: {e.strerror}: this mount will not be listed")
        self.describe(start_ticks=start_ticks(os.getpid()), started=int(time.time()))

    @classmethod
    def received(cls, path: Path, fd: int) -> Page:
        """A page that another process has made, by an fd of it, which is taken over. Raises ValueError, OSError."""
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode) or st.st_uid != os.geteuid() or NAME.fullmatch(path.name) is None:
            raise ValueError(f"{path}: not a status page")
        read_header(fd, path)
        page = cls.__new__(cls)
        page.path, page._unnamed = path, None
        page.fd, page.identity = fd, (st.st_dev, st.st_ino)
        page.memory = mmap.mmap(fd, st.st_size)
        return page

    @property
    def has_file(self) -> bool:
        """Is `fd` the page's, and has it a name? A daemon that has confined itself has another file in its place."""
        if self.fd < 0 or self.path is None:
            return False
        st = os.fstat(self.fd)
        return (st.st_dev, st.st_ino) == self.identity

    def _create(self, size: int) -> None:
        where = directory()
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(where) as place:
            self._clean(place)
            self._unnamed = where / f".{secrets.token_hex(8)}"
            self.fd = os.open(
                self._unnamed.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=place)
            fcntl.flock(self.fd, fcntl.LOCK_EX)
        st = os.fstat(self.fd)
        self.identity = st.st_dev, st.st_ino
        os.ftruncate(self.fd, size)
        os.posix_fallocate(self.fd, 0, HEADER)
        self.memory = mmap.mmap(self.fd, size)

    @staticmethod
    def _clean(where: int) -> None:
        """Remove what was left by daemons that were killed, but not while their dead mounts are there."""
        there = {(m.dev, m.mount_id) for m in mounts()}
        for name in sorted(os.listdir(where)):  # a page before its socket
            page = name.removesuffix(".sock")
            if NAME.fullmatch(page) is None and UNNAMED.fullmatch(name) is None:
                continue
            with contextlib.suppress(OSError, ValueError):
                fd = os.open(page, READING, dir_fd=where)
                try:
                    if in_use(fd):
                        continue
                    header = read_header(fd, Path(page))
                    if (field(header, "fuse_dev"), field(header, "mount_id")) in there:
                        continue
                finally:
                    os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=where)

    def publish(self, dev: int) -> None:
        """Give it the name of its mount, whose st_dev is `dev`. Who had that name has no mount any more.

        Raises OSError.
        """
        if self._unnamed is None:
            return
        path = self._unnamed.with_name(name_of(dev))
        with _locked(path.parent) as where:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(socket_path(path).name, dir_fd=where)
            os.rename(self._unnamed.name, path.name, src_dir_fd=where, dst_dir_fd=where)
        self.path, self._unnamed = path, None

    def describe(self, **fields: int | bytes) -> None:
        """Write fields of the header."""
        for name, value in fields.items():
            at, form = _PLACES[name]
            form.pack_into(self.memory, at, value)

    def settings(self, options: dict[str, Any], why: str = "", sandbox: str = "", cached: str = "",
                 not_passed: str = "", takeover: dict[str, Any] | None = None) -> None:
        """Say which options are in effect, why there is no ring, how the daemon is confined, what the kernel keeps, on
        which filesystems there is no kernel passthrough, and from whom it was taken over (report.Takeover).

        ValueError: there is no room for it.
        """
        text = json.dumps({"options": options, "why": why, "sandbox": sandbox, "cached": cached,
                           "not_passed": not_passed[:SHOWN], "takeover": takeover}).encode()
        if len(text) > SETTINGS:
            raise ValueError("settings too long")
        changing = field(self.memory, "settings_seq") | 1
        self.describe(settings_seq=changing)
        self.describe(settings=text, settings_len=len(text))
        self.describe(settings_seq=(changing + 1) & 0xFFFFFFFF)

    def unlist(self) -> None:
        """Take page and socket out of sight; the memory stays as long as it is used."""
        name = self.path or self._unnamed
        if name is not None:
            remove(name, self.identity)
        self._unnamed = None

    def remove(self) -> None:
        """The same, when no more memory of it will be reserved."""
        self.unlist()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Unmap it, and leave it to other processes that have it."""
        self.memory.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
