"""FUSE_INIT: what the kernel offers, and what of it is taken, each for a reason.

The layout of struct fuse_init_in and fuse_init_out is in abi.h; bit numbers 32..63 travel
in flags2 (FUSE_INIT_EXT).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

from .options import Options

# The protocol's versions, all that is known of them here.
MAJOR, MINOR, MIN_MINOR = 7, 46, 37
BUFFERS = 46  # from this minor on the ring's requests may share payload buffers, in one way or the other
OLDEST = "6.1"  # the Linux that speaks 7.MIN_MINOR. Ones before 5.13 do not check who changes inode flags
EPOCHS = 44  # from this minor on all names can be made old at a time
EXTENSIONS = 38  # from this minor on a request says where its extensions begin
OP_INIT = 26
IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
INIT_IN = struct.Struct("=IIIII")
INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")


@dataclass(frozen=True)
class Situation:
    """What a capability's use depends on."""

    options: Options
    ring: bool          # the queues' threads are ready to register
    identity: bool      # the daemon can act as its callers
    umask: bool         # its threads can have their callers' umasks
    privileged: bool    # the source lets the daemon keep suid and sgid bits (CAP_FSETID)
    passthrough: bool   # the daemon may register backing files, and is to


def _yes(s: Situation) -> bool:
    return True


def _no(s: Situation) -> bool:
    return False


CAPABILITIES: tuple[tuple[int, str, Callable[[Situation], bool], str], ...] = (
    (0, "ASYNC_READ", _yes, "reads of one file in parallel"),
    (1, "POSIX_LOCKS", lambda s: not s.options.local_locks, "record locks hold against the source's other users"),
    (3, "ATOMIC_O_TRUNC", _yes, "open truncates: one round trip, and no window between"),
    (4, "EXPORT_SUPPORT", _no, "nodeids do not outlive the daemon, as NFS handles must"),
    (5, "BIG_WRITES", _yes, "writes beyond a page"),
    (6, "DONT_MASK", lambda s: s.umask, "the source applies the umask, or its default ACL in its place"),
    (7, "SPLICE_WRITE", _no, "the ring has no splice, and payloads are ours"),
    (8, "SPLICE_MOVE", _no, "as SPLICE_WRITE"),
    (9, "SPLICE_READ", _no, "as SPLICE_WRITE"),
    (10, "FLOCK_LOCKS", lambda s: not s.options.local_locks, "as POSIX_LOCKS"),
    (11, "HAS_IOCTL_DIR", _yes, "only says that such ioctls may come"),
    (12, "AUTO_INVAL_DATA", _yes, "pages go when the source's mtime or size shows a change"),
    (13, "DO_READDIRPLUS", _yes, "names with attributes in one round trip"),
    (14, "READDIRPLUS_AUTO", _yes, "only where they are used"),
    (15, "ASYNC_DIO", _yes, "O_DIRECT requests in parallel"),
    (16, "WRITEBACK_CACHE", lambda s: s.options.writeback, "an option: it hides changes beside the mount"),
    (17, "NO_OPEN_SUPPORT", _no, "each open has an open file in the daemon"),
    (18, "PARALLEL_DIROPS", _yes, "lookups and listings of one directory in parallel"),
    (19, "HANDLE_KILLPRIV", _no, "V2 is exact about who may keep suid and sgid"),
    (20, "POSIX_ACL", lambda s: s.identity, "the kernel checks the source's ACLs; where there are none it hears so"),
    (21, "ABORT_ERROR", _yes, "an aborted connection reads as ECONNABORTED"),
    (22, "MAX_PAGES", _yes, "requests beyond 32 pages"),
    (23, "CACHE_SYMLINKS", _yes, "a symlink's target never changes"),
    (24, "NO_OPENDIR_SUPPORT", _no, "listings need an open directory for their position"),
    (25, "EXPLICIT_INVAL_DATA", _no, "AUTO_INVAL_DATA sees changes beside the mount"),
    (26, "MAP_ALIGNMENT", _no, "DAX is virtiofs's"),
    (27, "SUBMOUNTS", _no, "virtiofs's automounts; st_dev is that of the mount"),
    (28, "HANDLE_KILLPRIV_V2", lambda s: s.identity or not s.privileged,
     "the source clears suid, sgid and capabilities; no GETXATTR per write"),
    (29, "SETXATTR_EXT", _yes, "tells when setting an ACL has to clear sgid"),
    (30, "INIT_EXT", _yes, "bits 32..63"),
    (32, "SECURITY_CTX", lambda s: s.options.selinux and s.identity,
     "an option: labels are the source's own policy's business"),
    (33, "HAS_INODE_DAX", _no, "DAX is virtiofs's"),
    (34, "CREATE_SUPP_GROUP", lambda s: s.identity, "creates in setgid directories as a member of their group"),
    (35, "HAS_EXPIRE_ONLY", _no, "only says what the kernel has"),
    (36, "DIRECT_IO_ALLOW_MMAP", _yes, "mmap of files open for direct I/O, as in the source"),
    (37, "PASSTHROUGH", lambda s: s.passthrough, "the kernel reads and writes the source itself"),
    (38, "NO_EXPORT_SUPPORT", lambda s: s.options.inotify == "off",
     "says so to exportfs: see EXPORT_SUPPORT; what is repeated (--inotify) finds its directory by handle"),
    (39, "HAS_RESEND", _no, "no other daemon takes a mount over"),
    (40, "ALLOW_IDMAP", lambda s: s.options.idmapped and s.identity and s.options.default_permissions,
     "an option: with it requests do not tell who asks, but for those that make something"),
    (41, "OVER_IO_URING", lambda s: s.ring, "only if every queue's thread stands ready: else the mount would hang"),
    (42, "REQUEST_TIMEOUT", _no, "the source may take its time"),
    (43, "HAS_IO_URING_BUFPOOL", _no, "only says what the kernel has"),
)


@dataclass(frozen=True)
class Init:
    """The kernel's INIT request."""

    unique: int
    major: int
    minor: int
    max_readahead: int
    flags: int

    def offers(self, name: str) -> bool:
        """Does the kernel know the capability?"""
        return bool(self.flags & flag(name))

    @property
    def dialects(self) -> tuple[str, ...]:
        """The forms of FUSE over io_uring that the kernel has, if it has that; the best one last."""
        if self.offers("HAS_IO_URING_BUFPOOL"):
            return "per-entry", "bufpool"
        return ("per-entry", "bufring") if self.minor >= BUFFERS else ("per-entry",)


def flag(name: str) -> int:
    """The bit of a capability."""
    return 1 << next(bit for bit, n, _, _ in CAPABILITIES if n == name)


def names(flags: int) -> list[str]:
    """The names of the capabilities in `flags`, unknown ones as numbers."""
    known = {bit: n for bit, n, _, _ in CAPABILITIES}
    return [known.get(bit, f"bit {bit}") for bit in range(64) if flags >> bit & 1]


def parse(data: bytes) -> Init:
    """The INIT request in what was read from /dev/fuse. ValueError if it is another or too short."""
    if len(data) < IN_HEADER.size + INIT_IN.size - 4:
        raise ValueError("INIT request too short")
    length, opcode, unique = IN_HEADER.unpack_from(data)[:3]
    if opcode != OP_INIT or length != len(data):
        raise ValueError(f"expected INIT, got opcode {opcode}")
    major, minor, readahead, flags = struct.unpack_from("=IIII", data, IN_HEADER.size)
    if flags & flag("INIT_EXT") and len(data) >= IN_HEADER.size + INIT_IN.size:
        flags |= struct.unpack_from("=I", data, IN_HEADER.size + 16)[0] << 32
    return Init(unique, major, minor, readahead, flags)


def too_old(init: Init) -> str:
    """Why the kernel is not served, or ''."""
    if init.major == MAJOR and init.minor >= MIN_MINOR:
        return ""
    return (f"Linux {OLDEST} or newer is needed (FUSE {MAJOR}.{MIN_MINOR}); "
            f"this is Linux {os.uname().release} (FUSE {init.major}.{init.minor})")


def choose(init: Init, situation: Situation) -> int:
    """The flags to answer with: what is offered and wanted."""
    flags = sum(1 << bit for bit, _, want, _ in CAPABILITIES if init.flags >> bit & 1 and want(situation))
    return flags if init.minor >= EXTENSIONS else flags & ~flag("SECURITY_CTX")


def reply(init: Init, flags: int, options: Options) -> bytes:
    """The INIT reply."""
    body = INIT_OUT.pack(
        MAJOR, min(MINOR, init.minor), init.max_readahead, flags & 0xFFFFFFFF,
        options.max_background, options.max_background * 3 // 4 or 1,
        options.max_write, 1, options.max_pages, 0, flags >> 32, 1 if flags & flag("PASSTHROUGH") else 0, 0)
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, init.unique) + body


def refusal(init: Init, errno: int) -> bytes:
    """An INIT reply that makes the mount fail."""
    return OUT_HEADER.pack(OUT_HEADER.size, -errno, init.unique)
