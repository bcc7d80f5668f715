"""Operations, files and callers whose combinations test_compare.py runs on the bare source and on the mount.

A case is done twice, in directories of the same content: once in the source itself, once through the mount. What
the caller was told and what is then in the source must be the same.
"""
from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import pickle
import random
import select
import shutil
import signal
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
OLD = 1_000_000_000_000_000_000  # the times of what is made for a case
PROGRAM = "/bin/cat"  # tells /proc/self/status
DATA = b"0123456789abcdef" * 312 + b"last"  # 4,996 bytes: more than a page


def _call(name: str, *args: Any) -> int:
    """A function of libc, or OSError."""
    done = getattr(LIBC, name)(*args)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(done)


# ------------------------------------------------------------ callers

OWNER, MEMBER, EXTRA, STRANGER, NAMED, CAPABLE = 21001, 21002, 21003, 21004, 21005, 21006  # uids, and gids of their own
TEAM, NAMED_GROUP = 22001, 22002

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID = 1, 2, 3, 4
ALL_CAPS = (1 << 41) - 1


@dataclass(frozen=True)
class Caller:
    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    caps: int = 0

    def __str__(self) -> str:
        said = f"{self.name} (uid {self.uid}, gid {self.gid}"
        return said + (f", groups {', '.join(map(str, self.groups))})" if self.groups else ")")


CALLERS = (
    Caller("owner", OWNER, OWNER, (TEAM,)),
    Caller("owner out of the group", OWNER, OWNER),
    Caller("member", MEMBER, TEAM),
    Caller("supplementary member", EXTRA, EXTRA, (23001, TEAM, 23002)),
    Caller("stranger", STRANGER, STRANGER),
    Caller("named in ACLs", NAMED, NAMED, (NAMED_GROUP,)),
    Caller("root", 0, 0, caps=ALL_CAPS),
    Caller("root without FSETID and DAC", 0, 0, caps=ALL_CAPS & ~(1 << CAP_FSETID | 1 << CAP_DAC_OVERRIDE
                                                                 | 1 << CAP_DAC_READ_SEARCH)),
    Caller("root without capabilities", 0, 0),
    Caller("user with FSETID and DAC", CAPABLE, CAPABLE, caps=1 << CAP_FSETID | 1 << CAP_DAC_OVERRIDE),
)


def become(who: Caller) -> None:
    """These ids and capabilities, for good."""
    _call("prctl", 8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setgroups(who.groups)
    os.setresgid(who.gid, who.gid, who.gid)
    os.setresuid(who.uid, who.uid, who.uid)
    allowed = int(next(line for line in Path("/proc/self/status").read_text().splitlines()
                       if line.startswith("CapPrm")).split()[1], 16)
    low, high = who.caps & allowed & 0xFFFFFFFF, (who.caps & allowed) >> 32
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    _call("capset", header, ctypes.create_string_buffer(struct.pack("6I", low, low, 0, high, high, 0)))
    os.umask(0o022)


# ------------------------------------------------------------ what files are made of

def acl(owner: str, group: str, other: str, users: dict[int, str] = {}, groups: dict[int, str] = {},  # noqa: B006
        mask: str = "") -> bytes:
    """The value of a system.posix_acl_* attribute."""
    def bits(said: str) -> int:
        return sum({"r": 4, "w": 2, "x": 1}[c] for c in said)

    none = 0xFFFFFFFF
    entries = [(1, bits(owner), none), *((2, bits(p), u) for u, p in sorted(users.items())), (4, bits(group), none),
               *((8, bits(p), g) for g, p in sorted(groups.items()))]
    if users or groups:
        entries.append((0x10, bits(mask), none))
    entries.append((0x20, bits(other), none))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


ACCESS, DEFAULT, CAPS = "system.posix_acl_access", "system.posix_acl_default", "security.capability"
NET_RAW = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # what `setcap cap_net_raw+ep` writes
FL_IMMUTABLE, FL_APPEND, FL_NODUMP, FL_NOATIME = 0x10, 0x20, 0x40, 0x80
GETFLAGS, SETFLAGS = 0x80086601, 0x40086602


@dataclass(frozen=True)
class Kind:
    """What `f` is."""
    name: str
    type: str = "file"
    mode: int = 0o644
    uid: int = OWNER
    gid: int = TEAM
    data: bytes = DATA
    xattrs: tuple[tuple[str, bytes], ...] = ()
    flags: int = 0
    target: str = ""
    inside: int = -1  # a directory: the owner of a file in it
    names: int = 1


@dataclass(frozen=True)
class Parent:
    """The directory of `f`."""
    name: str
    mode: int = 0o777
    uid: int = 0
    gid: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()


_DEFAULT_ACL = acl("rwx", "rx", "", users={NAMED: "rwx"}, groups={NAMED_GROUP: "rx"}, mask="rwx")
PARENTS = (
    Parent("in a directory for all"),
    Parent("in the owner's directory", 0o755, OWNER, TEAM),
    Parent("in a directory of the group", 0o770, OWNER, TEAM),
    Parent("in root's sticky directory", 0o1777),
    Parent("in a member's sticky directory", 0o1777, MEMBER, TEAM),
    Parent("in a set-group-ID directory", 0o2777, 0, TEAM),
    Parent("in a directory with a default ACL", 0o777, xattrs=((DEFAULT, _DEFAULT_ACL),)),
    Parent("in a directory with an ACL", 0o750, xattrs=((ACCESS, acl("rwx", "rx", "", {NAMED: "rwx", OWNER: "rx"},
                                                                     {TEAM: "rwx"}, "rwx")),)),
)


def _files() -> Iterator[Kind]:
    for mode in (0o644, 0o600, 0o664, 0o606, 0o444, 0o666, 0o000, 0o755, 0o711, 0o4755, 0o2755, 0o6770, 0o4770, 0o2664,
                 0o6777, 0o1666, 0o2666):
        yield Kind(f"file {mode:04o}", mode=mode)
        if mode in (0o644, 0o666, 0o6777, 0o2666):
            yield Kind(f"empty file {mode:04o}", mode=mode, data=b"")
        if mode & 0o6000:
            yield Kind(f"root's file {mode:04o}", mode=mode, uid=0)
        if mode & 0o2000:
            yield Kind(f"file {mode:04o} of another group", mode=mode, gid=NAMED_GROUP)
    for mode in (0o755, 0o775, 0o777, 0o6777):
        yield Kind(f"file {mode:04o} with capabilities", mode=mode, xattrs=((CAPS, NET_RAW),))
    for name, entries in {
        "an ACL for a user": acl("rw", "", "", {NAMED: "rwx", STRANGER: "r"}, mask="rwx"),
        "an ACL for a group": acl("rw", "r", "r", groups={NAMED_GROUP: "rw", TEAM: ""}, mask="rwx"),
        "an ACL with a narrow mask": acl("rwx", "rwx", "", {NAMED: "rwx"}, {TEAM: "rwx"}, "r"),
        "an ACL against a user": acl("rw", "rw", "rw", {NAMED: "", STRANGER: ""}, mask="rw"),
    }.items():
        yield Kind(f"file with {name}", mode=0o600, xattrs=((ACCESS, entries),))
    yield Kind("set-user-ID file with an ACL", mode=0o4700, xattrs=(
        (ACCESS, acl("rwx", "rx", "x", {NAMED: "rwx"}, mask="rwx")),))
    yield Kind("file with attributes", mode=0o666, xattrs=(("user.a", b"one"), ("trusted.b", b"two")))
    yield Kind("append-only file", mode=0o666, flags=FL_APPEND)
    yield Kind("append-only set-user-ID file", mode=0o6777, flags=FL_APPEND)
    yield Kind("immutable file", mode=0o666, flags=FL_IMMUTABLE)
    yield Kind("file of two names", mode=0o664, names=2)


def _others() -> Iterator[Kind]:
    for mode in (0o755, 0o777, 0o700, 0o1777, 0o2775):
        yield Kind(f"directory {mode:04o}", "directory", mode)
    yield Kind("directory with a file", "directory", 0o777, inside=0)
    yield Kind("sticky directory with a stranger's file", "directory", 0o1777, inside=STRANGER)
    yield Kind("directory with a default ACL", "directory", 0o777, xattrs=((DEFAULT, _DEFAULT_ACL),))
    yield Kind("append-only directory", "directory", 0o777, flags=FL_APPEND)
    yield Kind("immutable directory", "directory", 0o777, flags=FL_IMMUTABLE)
    yield Kind("symlink to a file", "symlink", target="g")
    yield Kind("symlink to a directory", "symlink", target=".")
    yield Kind("symlink to nothing", "symlink", target="nowhere")
    yield Kind("fifo 0666", "fifo", 0o666)
    yield Kind("fifo 0640", "fifo", 0o640)
    yield Kind("null device 0666", "null", 0o666)
    yield Kind("null device 0640", "null", 0o640)
    yield Kind("block device without driver", "block", 0o666)
    yield Kind("socket", "socket", 0o666)


FILES = tuple(_files())
KINDS = (*FILES, *_others())
DIRECTORIES = tuple(k for k in KINDS if k.type == "directory")
PROGRAMS = tuple(k for k in FILES if k.mode & 0o111 or k.xattrs)


# ------------------------------------------------------------ operations

class Spot:
    """Where an operation takes place: one of the two directories of a case."""

    def __init__(self, top: str, nonblock: int):
        self.dir = top
        self.f, self.g, self.d, self.n = (f"{top}/{name}" for name in "fgdn")
        self.nonblock = nonblock

    @contextmanager
    def opened(self, flags: int, path: str = "", mode: int = 0o666) -> Iterator[int]:
        fd = os.open(path or self.f, flags | self.nonblock, mode)
        try:
            yield fd
        finally:
            os.close(fd)


Act = Callable[[Spot], Any]


@dataclass(frozen=True)
class Operation:
    name: str
    act: Act = field(compare=False)
    family: str = ""
    needs: str = ""  # besides f: g, another's file; d, a directory; p: f is a program
    kinds: tuple[Kind, ...] = field(default=KINDS, compare=False)


OPERATIONS: list[Operation] = []


def _add(family: str, name: str, act: Act, needs: str = "", kinds: Iterable[Kind] = KINDS) -> None:
    OPERATIONS.append(Operation(name, act, family, needs, tuple(kinds)))


def _flag_names(flags: int) -> str:
    said = [("RDONLY", "WRONLY", "RDWR", "3")[flags & 3]]
    for name in ("TMPFILE", "DIRECTORY", "CREAT", "EXCL", "TRUNC", "APPEND", "NOFOLLOW", "NOATIME", "DIRECT", "PATH",
                 "SYNC", "DSYNC", "NONBLOCK"):
        bits = getattr(os, f"O_{name}")
        if flags & bits == bits:
            said.append(name)
            flags &= ~bits
    return "|".join(said)


def _opens() -> None:
    def opener(flags: int, path: Callable[[Spot], str]) -> Act:
        def act(s: Spot) -> Any:
            with s.opened(flags, path(s), 0o666) as fd:
                st = os.fstat(fd)
                left = fcntl.fcntl(fd, fcntl.F_GETFL) & ~s.nonblock
                return f"flags {left:o}", f"{st.st_mode:o} {st.st_uid}:{st.st_gid}", st.st_nlink
        return act

    creations = (0, os.O_TRUNC, os.O_APPEND, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC,
                 os.O_CREAT | os.O_APPEND)
    extras = (0, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_NOATIME, os.O_DIRECT, os.O_PATH, os.O_SYNC, os.O_NONBLOCK,
              os.O_PATH | os.O_NOFOLLOW, os.O_NOATIME | os.O_NOFOLLOW)
    for access in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3):
        for creation in creations:
            for extra in extras:
                flags = access | creation | extra
                _add("open", f"open(f, {_flag_names(flags)})", opener(flags, lambda s: s.f))
                if creation & os.O_CREAT and access != 3:
                    _add("open new", f"open(new, {_flag_names(flags)})", opener(flags, lambda s: s.n), kinds=FILES[:1])
                    _add("open", f"open(f/new, {_flag_names(flags)})", opener(flags, lambda s: s.f + "/n"),
                         kinds=DIRECTORIES)
    for access in (os.O_WRONLY, os.O_RDWR):
        for more in (0, os.O_EXCL, os.O_APPEND, os.O_SYNC):
            flags = os.O_TMPFILE | access | more
            _add("open new", f"open(., {_flag_names(flags)})", opener(flags, lambda s: s.dir), kinds=FILES[:1])
            _add("open", f"open(f, {_flag_names(flags)})", opener(flags, lambda s: s.f), kinds=DIRECTORIES)

    def link_tmpfile(s: Spot) -> Any:
        with s.opened(os.O_TMPFILE | os.O_RDWR, s.dir, 0o6777) as fd:
            os.write(fd, b"tmp")
            os.link(f"/proc/self/fd/{fd}", s.n, src_dir_fd=fd, follow_symlinks=True)
            return os.fstat(fd).st_nlink
    _add("open new", "link of an O_TMPFILE", link_tmpfile, kinds=FILES[:1])


ALLOCATE = {"": 0, "KEEP": 1, "PUNCH|KEEP": 3, "PUNCH": 2, "COLLAPSE": 8, "ZERO": 16, "ZERO|KEEP": 17, "INSERT": 32,
            "UNSHARE": 64, "KEEP|UNSHARE": 65, "WRITE_ZEROES": 128}


def _fallocate(fd: int, mode: int, start: int, size: int) -> None:
    _call("fallocate", fd, mode, ctypes.c_long(start), ctypes.c_long(size))


def _store(fd: int) -> None:
    with mmap.mmap(fd, 16, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as m:
        m[:3] = b"new"


def _with_pipe(act: Callable[[int, int], Any]) -> Any:
    r, w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # what sends nothing leaves nothing to wait for
    try:
        return act(r, w)
    finally:
        os.close(r)
        os.close(w)


def _memory(data: bytes) -> int:
    fd = os.memfd_create("other")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _from_memory(fd: int, send: Callable[[int, int], Any]) -> Any:
    other = _memory(b"from memory")
    try:
        return send(fd, other)
    finally:
        os.close(other)


def _set_append(fd: int) -> int:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return os.write(fd, b"appended")


def _clear_append(fd: int) -> int:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_APPEND)
    return os.write(fd, b"at the start")


def _set_direct(fd: int) -> int:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as m:
        m[:4] = b"even"
        return os.writev(fd, [m])


def _write_aligned(fd: int) -> int:
    with mmap.mmap(-1, 9000) as m:  # aligned, as the server's memory is whatever the caller's is
        m[:] = b"x" * 9000
        return os.pwritev(fd, [m], 0)


def _in_steps(fd: int) -> Any:
    os.fchmod(fd, 0o6777)
    os.write(fd, b"after chmod")
    return oct(os.fstat(fd).st_mode)


def _data() -> None:
    writes: dict[str, Callable[[int], Any]] = {
        "write": lambda fd: os.write(fd, b"new"),
        "write nothing": lambda fd: os.write(fd, b""),
        "writev": lambda fd: os.writev(fd, [b"new", b"er"]),
        "pwrite at 10": lambda fd: os.pwrite(fd, b"new", 10),
        "pwrite behind the end": lambda fd: os.pwrite(fd, b"new", 9000),
        "pwrite of 9,000 bytes": _write_aligned,
        "pwritev2 with RWF_APPEND": lambda fd: os.pwritev(fd, [b"end"], 0, 0x10),
        "write and fsync": lambda fd: (os.write(fd, b"new"), os.fsync(fd)),
        "F_SETFL of O_APPEND, write": _set_append,
        "F_SETFL without O_APPEND, write": _clear_append,
        "F_SETFL of O_DIRECT, write": _set_direct,
        "fchmod 6777, write": _in_steps,
        "sendfile to": lambda fd: _from_memory(fd, lambda a, b: os.sendfile(a, b, None, 20)),
        "copy_file_range from memory": lambda fd: _from_memory(fd, lambda a, b: os.copy_file_range(b, a, 20)),
        "splice to": lambda fd: _with_pipe(lambda r, w: (os.write(w, b"spliced"), os.splice(r, fd, 7))),
        "ftruncate to 0": lambda fd: os.ftruncate(fd, 0),
        "ftruncate to its size": lambda fd: os.ftruncate(fd, len(DATA)),
        "ftruncate to 10": lambda fd: os.ftruncate(fd, 10),
        "ftruncate to 9,000": lambda fd: os.ftruncate(fd, 9000),
        "mmap store": _store,
    }
    for name, mode in ALLOCATE.items():
        for start, size in ((0, 4096), (4096, 4096), (100, 50), (8192, 10000)):
            writes[f"fallocate({name or 0}, {start}, {size})"] = (
                lambda fd, mode=mode, start=start, size=size: _fallocate(fd, mode, start, size))
    opens = (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_DIRECT, os.O_WRONLY | os.O_SYNC)
    for name, write in writes.items():
        for flags in opens:
            if name == "mmap store" and flags & 3 != os.O_RDWR:
                continue
            def act(s: Spot, flags: int = flags, write: Callable[[int], Any] = write) -> Any:
                with s.opened(flags) as fd:
                    done = write(fd)
                    return done, os.fstat(fd).st_size, f"{os.fstat(fd).st_mode:o}"
            _add("data" if not name.startswith("fallocate") else "fallocate", f"{name} ({_flag_names(flags)})", act,
                 kinds=FILES)
            if flags == os.O_RDWR:
                _add("data of others", f"{name} ({_flag_names(flags)})", act, "g",
                     [k for k in KINDS if k.type not in ("file", "directory")])

    def copy_to(s: Spot, size: int, there: int) -> Any:
        with s.opened(os.O_WRONLY) as out, open(s.g, "rb", buffering=0) as source:
            return os.copy_file_range(source.fileno(), out, size, 0, there)

    def copy_from(s: Spot) -> Any:
        with s.opened(os.O_RDONLY) as source, open(s.n, "wb", buffering=0) as out:
            return os.copy_file_range(source, out.fileno(), 5000)

    def copy_within(s: Spot, there: int) -> Any:
        with s.opened(os.O_RDWR) as fd:
            return os.copy_file_range(fd, fd, 100, 0, there)

    _add("data", "copy_file_range to", lambda s: copy_to(s, 6, 0), "g", FILES)
    _add("data", "copy_file_range of nothing", lambda s: copy_to(s, 0, 0), "g", FILES)
    _add("data", "copy_file_range behind the end", lambda s: copy_to(s, 100, 9000), "g", FILES)
    _add("data", "copy_file_range from", copy_from, kinds=FILES)
    _add("data", "copy_file_range within", lambda s: copy_within(s, 4000), kinds=FILES)
    _add("data", "copy_file_range onto itself", lambda s: copy_within(s, 50), kinds=FILES)
    for size in (0, 10, len(DATA), 9000):
        _add("data", f"truncate to {size}", lambda s, size=size: os.truncate(s.f, size), "g", KINDS)

    reads: dict[str, Callable[[int], Any]] = {
        "read": lambda fd: os.read(fd, 100),
        "pread at 4,990": lambda fd: os.pread(fd, 100, 4990),
        "mmap read": lambda fd: mmap.mmap(fd, 10, mmap.MAP_SHARED, mmap.PROT_READ)[:],
        "sendfile from": lambda fd: _with_pipe(lambda r, w: (os.sendfile(w, fd, 0, 100), os.read(r, 100))),
        "splice from": lambda fd: _with_pipe(lambda r, w: (os.splice(fd, w, 100), os.read(r, 100))),
        "write without the right": lambda fd: os.write(fd, b"new"),
        "ftruncate without the right": lambda fd: os.ftruncate(fd, 0),
        "fallocate without the right": lambda fd: _fallocate(fd, 0, 0, 100),
        "SEEK_DATA": lambda fd: os.lseek(fd, 0, os.SEEK_DATA),
        "SEEK_HOLE": lambda fd: os.lseek(fd, 0, os.SEEK_HOLE),
        "SEEK_DATA behind the end": lambda fd: os.lseek(fd, 6000, os.SEEK_DATA),
        "SEEK_HOLE at the end": lambda fd: os.lseek(fd, len(DATA), os.SEEK_HOLE),
        "SEEK_END": lambda fd: os.lseek(fd, 0, os.SEEK_END),
        "fsync": os.fsync,
        "readahead": lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED),
        "getflags": lambda fd: struct.unpack("i", fcntl.ioctl(fd, GETFLAGS, bytes(4))),
        "futimens given": lambda fd: os.utime(fd, ns=(5_000_000_007, 6_000_000_008)),
        "futimens now": lambda fd: os.utime(fd),
        "fchmod 0640": lambda fd: os.fchmod(fd, 0o640),
        "fchmod 6755": lambda fd: os.fchmod(fd, 0o6755),
        "fchown to itself": lambda fd: os.fchown(fd, -1, -1),
        "fchown to the group": lambda fd: os.fchown(fd, -1, TEAM),
        "fsetxattr": lambda fd: os.setxattr(fd, "user.a", b"by fd"),
        "fgetxattr": lambda fd: os.getxattr(fd, "user.a"),
        "flistxattr": lambda fd: sorted(os.listxattr(fd)),
        "getdents": lambda fd: sorted(os.listdir(fd)),
        "fstatvfs": lambda fd: os.fstatvfs(fd).f_namemax,
        "F_SETFL of O_NOATIME, read": lambda fd: (fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NOATIME), os.read(fd, 10)),
        "F_SETLEASE": lambda fd: (fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)),
    }
    for name, flag in {"FL_NODUMP": FL_NODUMP, "FL_NOATIME": FL_NOATIME, "FL_APPEND": FL_APPEND,
                       "FL_IMMUTABLE": FL_IMMUTABLE, "none": 0}.items():
        reads[f"setflags {name}"] = lambda fd, flag=flag: _set_flags(fd, flag)
    for exclusive in (False, True):
        how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        said = "exclusive" if exclusive else "shared"
        reads[f"flock {said}"] = lambda fd, how=how: fcntl.flock(fd, how | fcntl.LOCK_NB)
        reads[f"lockf {said}"] = lambda fd, how=how: fcntl.lockf(fd, how | fcntl.LOCK_NB, 10, 5)
        reads[f"OFD lock {said}"] = lambda fd, kind=kind: _ofd_lock(fd, kind)
        reads[f"F_GETLK {said}"] = lambda fd, kind=kind: fcntl.fcntl(
            fd, fcntl.F_GETLK, struct.pack("hhqqi4x", kind, 0, 0, 0, 0))[:2]
    for name, read in reads.items():
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_PATH, os.O_RDONLY | os.O_NOATIME):
            def act(s: Spot, flags: int = flags, read: Callable[[int], Any] = read) -> Any:
                with s.opened(flags) as fd:
                    return read(fd)
            _add("open file", f"{name} ({_flag_names(flags)})", act, "g")


def _set_flags(fd: int, flag: int) -> Any:
    now = struct.unpack("i", fcntl.ioctl(fd, GETFLAGS, bytes(4)))[0] & ~(FL_NODUMP | FL_NOATIME)
    fcntl.ioctl(fd, SETFLAGS, struct.pack("i", now | flag))
    return struct.unpack("i", fcntl.ioctl(fd, GETFLAGS, bytes(4)))


def _ofd_lock(fd: int, kind: int) -> None:
    fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", kind, 0, 0, 10, 0))  # F_OFD_SETLK


NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2


def _utimensat(path: str, a: int, m: int, flags: int = 0) -> None:
    times = ctypes.create_string_buffer(struct.pack("4q", 7, a, 8, m))
    _call("utimensat", -100, path.encode(), times, flags)


def _renameat2(old: str, new: str, flags: int) -> None:
    _call("renameat2", -100, old.encode(), -100, new.encode(), flags)


def _run(s: Spot) -> Any:
    """What rights a program has that is started from there."""
    def act(r: int, w: int) -> Any:
        child = os.posix_spawn(s.f, ["cat", "/proc/self/status"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, w, 1)])
        os.waitpid(child, 0)
        said = os.read(r, 10000).decode()
        return [line.replace("\t", " ") for line in said.splitlines()
                if line.split(":")[0] in ("Uid", "Gid", "CapPrm", "CapEff")]
    return _with_pipe(act)


def _write_and_run(s: Spot, how: Callable[[int, bytes], Any]) -> Any:
    with open(PROGRAM, "rb") as f:
        program = f.read()
    with s.opened(os.O_RDWR) as fd:
        how(fd, program)
    return _run(s)


def _by_name() -> None:
    for mode in (0, 0o600, 0o644, 0o755, 0o1777, 0o2755, 0o4755, 0o6755, 0o2644):
        _add("attributes", f"chmod {mode:04o}", lambda s, mode=mode: os.chmod(s.f, mode), "g")
    for follow in (True, False):
        said = "chown" if follow else "lchown"
        for name, uid, gid in (("nothing", -1, -1), ("the owner", OWNER, -1), ("the group", -1, TEAM),
                               ("another group", -1, NAMED_GROUP), ("the stranger", STRANGER, STRANGER),
                               ("root", 0, 0), ("the owner's group", OWNER, OWNER), ("the extra group", -1, EXTRA)):
            _add("attributes", f"{said} to {name}", lambda s, uid=uid, gid=gid, follow=follow: os.chown(
                s.f, uid, gid, follow_symlinks=follow), "g")
    for name, a, m in (("now", NOW, NOW), ("given", 70, 80), ("atime now", NOW, OMIT), ("mtime now", OMIT, NOW),
                       ("atime given", 70, OMIT), ("mtime given", OMIT, 80), ("nothing", OMIT, OMIT),
                       ("both ways", NOW, 80)):
        _add("attributes", f"utimensat {name}", lambda s, a=a, m=m: _utimensat(s.f, a, m), "g")
        _add("attributes", f"utimensat {name} nofollow", lambda s, a=a, m=m: _utimensat(s.f, a, m, 0x100), "g")
    for mode in range(8):
        _add("attributes", f"access {mode}", lambda s, mode=mode: os.access(s.f, mode), "g")
        _add("attributes", f"faccessat {mode} AT_EACCESS", lambda s, mode=mode: os.access(
            s.f, mode, effective_ids=True), "g")

    values: dict[str, tuple[bytes, ...]] = {
        "user.a": (b"", b"value", b"v" * 900), "user.other": (b"v",), "trusted.b": (b"v",), "security.other": (b"v",),
        CAPS: (NET_RAW, b"nonsense"), "system.other": (b"v",), "nonsense": (b"v",), "user.": (b"v",),
        ACCESS: (acl("rwx", "rx", "rx"), acl("rw", "r", "", {STRANGER: "rw"}, mask="rw"),
                 acl("rw", "r", "", {STRANGER: "rw"}, mask="r"), b"nonsense", b"",
                 acl("rwx", "rwx", "x", groups={TEAM: "rwx"}, mask="rwx")),
        DEFAULT: (acl("rwx", "rx", "rx"), acl("rwx", "r", "", {STRANGER: "rwx"}, mask="rwx"), b""),
    }
    for name, some in values.items():
        for n, value in enumerate(some):
            for flags in ("", "CREATE", "REPLACE"):
                bits = getattr(os, f"XATTR_{flags}", 0)
                _add("xattrs", f"setxattr {name} {flags} value {n}", lambda s, name=name, value=value, bits=bits:
                     os.setxattr(s.f, name, value, bits), "g")
            _add("xattrs", f"lsetxattr {name} value {n}", lambda s, name=name, value=value:
                 os.setxattr(s.f, name, value, follow_symlinks=False), "g")
        _add("xattrs", f"getxattr {name}", lambda s, name=name: os.getxattr(s.f, name), "g")
        _add("xattrs", f"lgetxattr {name}", lambda s, name=name: os.getxattr(s.f, name, follow_symlinks=False), "g")
        _add("xattrs", f"removexattr {name}", lambda s, name=name: os.removexattr(s.f, name), "g")
        _add("xattrs", f"lremovexattr {name}", lambda s, name=name: os.removexattr(
            s.f, name, follow_symlinks=False), "g")
    _add("xattrs", "listxattr", lambda s: sorted(os.listxattr(s.f)), "g")
    _add("xattrs", "llistxattr", lambda s: sorted(os.listxattr(s.f, follow_symlinks=False)), "g")

    _add("attributes", "stat", lambda s: _stat(os.stat(s.f)), "g")
    _add("attributes", "lstat", lambda s: _stat(os.lstat(s.f)), "g")
    _add("attributes", "statx", lambda s: _statx(s.f), "g")
    _add("attributes", "statvfs", lambda s: os.statvfs(s.f)[:1], "g")
    _add("attributes", "readlink", lambda s: os.readlink(s.f), "g")
    _add("attributes", "listdir", lambda s: sorted(os.listdir(s.f)), "g", DIRECTORIES)
    _add("attributes", "chdir", lambda s: os.chdir(s.f) or os.chdir("/"), "g", DIRECTORIES)


def _stat(st: os.stat_result) -> Any:
    return f"{st.st_mode:o} {st.st_uid}:{st.st_gid}", st.st_nlink, st.st_size, st.st_rdev, st.st_mtime_ns == OLD


def _statx(path: str) -> Any:
    """Mask, attributes that are compared, mode; block size and device numbers are the mount's own."""
    buffer = ctypes.create_string_buffer(256)
    _call("statx", -100, path.encode(), 0x100, 0xFFF, buffer)
    mask, _, _, nlink, uid, gid, mode = struct.unpack_from("IIQIIIH", buffer)
    return f"mask {mask & 0x7ff:x}", nlink, uid, gid, oct(mode)


def _names() -> None:
    _add("names", "link to new", lambda s: os.link(s.f, s.n, follow_symlinks=False), "g")
    _add("names", "link of what f leads to", lambda s: os.link(s.f, s.n, src_dir_fd=0, follow_symlinks=True), "g")
    _add("names", "link to g", lambda s: os.link(s.f, s.g, follow_symlinks=False), "g")
    _add("names", "symlink to new", lambda s: os.symlink("somewhere", s.n))
    _add("names", "symlink to f", lambda s: os.symlink("somewhere", s.f), "g")
    _add("names", "symlink in f", lambda s: os.symlink("somewhere", s.f + "/n"), "g", DIRECTORIES)
    for flags, said in ((0, ""), (1, " NOREPLACE"), (2, " EXCHANGE"), (4, " WHITEOUT"), (5, " NOREPLACE|WHITEOUT"),
                        (3, " NOREPLACE|EXCHANGE"), (6, " EXCHANGE|WHITEOUT")):
        for old, new in ("fn", "fg", "gf", "fd", "df", "ff", "nf", "dn"):
            _add("names", f"rename {old} to {new}{said}", lambda s, old=old, new=new, flags=flags: _renameat2(
                getattr(s, old), getattr(s, new), flags), "gd")
        _add("names", f"rename into a directory{said}", lambda s, flags=flags: _renameat2(s.f, s.d + "/n", flags),
             "gd")
        _add("names", f"rename into f{said}", lambda s, flags=flags: _renameat2(s.g, s.f + "/n", flags), "g",
             DIRECTORIES)
        _add("names", f"rename out of f{said}", lambda s, flags=flags: _renameat2(s.f + "/x", s.n, flags), "",
             DIRECTORIES)
        _add("names", f"rename onto what is in f{said}", lambda s, flags=flags: _renameat2(s.g, s.f + "/x", flags), "g",
             DIRECTORIES)
    _add("names", "unlink", lambda s: os.unlink(s.f), "g")
    _add("names", "unlink in f", lambda s: os.unlink(s.f + "/x"), "", DIRECTORIES)
    _add("names", "unlink of a directory's name with a slash", lambda s: os.unlink(s.f + "/"), "")
    _add("names", "rmdir", lambda s: os.rmdir(s.f), "g")
    _add("names", "rmdir of another's", lambda s: os.rmdir(s.d), "d")
    _add("names", "unlink of another's", lambda s: os.unlink(s.g), "g")
    makers: dict[str, Callable[[str], Any]] = {
        "fifo": lambda p: os.mkfifo(p, 0o666),
        "fifo 6777": lambda p: os.mknod(p, stat.S_IFIFO | 0o6777),
        "socket": lambda p: os.mknod(p, stat.S_IFSOCK | 0o777),
        "regular file": lambda p: os.mknod(p, stat.S_IFREG | 0o666),
        "regular file 7777": lambda p: os.mknod(p, stat.S_IFREG | 0o7777),
        "null device": lambda p: os.mknod(p, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        "whiteout": lambda p: os.mknod(p, stat.S_IFCHR | 0o666, 0),
        "block device": lambda p: os.mknod(p, stat.S_IFBLK | 0o600, os.makedev(240, 7)),
        "directory": lambda p: os.mkdir(p, 0o777),
        "directory 1777": lambda p: os.mkdir(p, 0o1777),
        "directory 6750": lambda p: os.mkdir(p, 0o6750),
        "bound socket": _bind,
        "symlink": lambda p: os.symlink("x" * 100, p),
        "file 6777": lambda p: os.close(os.open(p, os.O_CREAT | os.O_WRONLY, 0o6777)),
    }
    for name, make in makers.items():
        for mask in (0o022, 0, 0o777):
            def masked(p: str, make: Callable[[str], Any] = make, mask: int = mask) -> Any:
                was = os.umask(mask)
                try:
                    return make(p)
                finally:
                    os.umask(was)
            said = f"{name} (umask {mask:03o})"
            _add("making", f"make {said}", lambda s, masked=masked: masked(s.n), kinds=FILES[:1])
            _add("making", f"make {said} in f", lambda s, masked=masked: masked(s.f + "/n"), kinds=DIRECTORIES)
        _add("names", f"make {name} over f", lambda s, make=make: make(s.f), "g")


def _bind(path: str) -> None:
    where = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)  # sun_path is short
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(f"/proc/self/fd/{where}/{os.path.basename(path)}")
    finally:
        os.close(where)


def _programs() -> None:
    _add("programs", "execve", _run, "p", PROGRAMS)
    _add("programs", "write and execve", lambda s: _write_and_run(s, os.write), "p", PROGRAMS)
    _add("programs", "mmap store and execve", lambda s: _write_and_run(s, lambda fd, _: _store_same(fd)), "p", PROGRAMS)
    _add("programs", "ftruncate and execve", lambda s: _write_and_run(
        s, lambda fd, program: os.ftruncate(fd, len(program) + 1)), "p", PROGRAMS)
    _add("programs", "fallocate and execve", lambda s: _write_and_run(
        s, lambda fd, program: _fallocate(fd, 1, len(program), 10)), "p", PROGRAMS)
    _add("programs", "copy_file_range and execve", lambda s: _write_and_run(
        s, lambda fd, program: _from_memory(fd, lambda a, b: os.copy_file_range(a, a, 0, 0, 4096))), "p", PROGRAMS)
    _add("programs", "chmod 6755 and execve", lambda s: (os.chmod(s.f, 0o6755), _run(s)), "p", PROGRAMS)
    _add("programs", "chown and execve", lambda s: (os.chown(s.f, -1, TEAM), _run(s)), "p", PROGRAMS)
    _add("programs", "link and execve", lambda s: (os.link(s.f, s.n), _run(s)), "p", PROGRAMS)


def _store_same(fd: int) -> None:
    with mmap.mmap(fd, 16, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as m:
        m[:3] = m[:3]


_opens()
_data()
_by_name()
_names()
_programs()
BY_NAME = {(op.family, op.name): n for n, op in enumerate(OPERATIONS)}
SHARES = {"open": 16, "open new": 5, "data": 14, "data of others": 2, "fallocate": 8, "open file": 14, "attributes": 12,
          "xattrs": 9, "names": 12, "making": 5, "programs": 3}


# ------------------------------------------------------------ cases

@dataclass(frozen=True)
class Case:
    operation: Operation
    kind: Kind
    parent: Parent
    caller: Caller

    def __str__(self) -> str:
        return f"{self.caller}: {self.operation.name}; f: {self.kind.name}, {self.parent.name}"

    @property
    def rank(self) -> tuple[int, int, int]:
        """The plainest case shows a difference best."""
        return PARENTS.index(self.parent), CALLERS.index(self.caller), KINDS.index(self.kind)


def cases(seed: str, count: int) -> list[Case]:
    """So many different ones, in the families' shares: each operation in turn, the rest by chance."""
    chance = random.Random(seed)
    chosen: dict[Case, None] = {}
    for family, share in SHARES.items():
        operations = [op for op in OPERATIONS if op.family == family]
        chance.shuffle(operations)
        for n in range(count * share // sum(SHARES.values())):
            op = operations[n % len(operations)]
            case = Case(op, chance.choice(op.kinds), PARENTS[0] if chance.random() < 0.3 else chance.choice(PARENTS),
                        chance.choice(CALLERS))
            chosen[case] = None
    return list(chosen)


def _make(path: str, kind: Kind, program: bytes | None) -> None:
    if kind.type == "file":
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, kind.data if program is None else program)
        os.close(fd)
    elif kind.type == "directory":
        os.mkdir(path)
        if kind.inside >= 0:
            _plain(f"{path}/x", kind.inside)
    elif kind.type == "symlink":
        os.symlink(kind.target, path)
    else:
        types = {"fifo": stat.S_IFIFO, "null": stat.S_IFCHR, "block": stat.S_IFBLK, "socket": stat.S_IFSOCK}
        numbers = {"null": os.makedev(1, 3), "block": os.makedev(240, 7)}
        os.mknod(path, types[kind.type] | 0o600, numbers.get(kind.type, 0))
    os.chown(path, kind.uid, kind.gid, follow_symlinks=False)
    if kind.type != "symlink":
        os.chmod(path, kind.mode)
    for name, value in kind.xattrs:
        os.setxattr(path, name, value, follow_symlinks=False)
    for n in range(1, kind.names):
        os.link(path, f"{path}{n}")


def _plain(path: str, uid: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, b"second")
    os.close(fd)
    os.chown(path, uid, TEAM)
    os.chmod(path, 0o666)
    os.utime(path, ns=(OLD, OLD))


def make(top: str, case: Case, program: bytes) -> None:
    """The directory of a case, as root, in the source."""
    os.mkdir(top)
    _make(f"{top}/f", case.kind, program if "p" in case.operation.needs else None)
    if "g" in case.operation.needs:
        _plain(f"{top}/g", STRANGER)
    if "d" in case.operation.needs:
        os.mkdir(f"{top}/d")
        os.chown(f"{top}/d", EXTRA, EXTRA)
        os.chmod(f"{top}/d", 0o777)
        os.utime(f"{top}/d", ns=(OLD, OLD))
    os.utime(f"{top}/f", ns=(OLD, OLD), follow_symlinks=False)
    os.chown(top, case.parent.uid, case.parent.gid)
    os.chmod(top, case.parent.mode)
    for name, value in case.parent.xattrs:
        os.setxattr(top, name, value)
    os.utime(top, ns=(OLD, OLD))
    if case.kind.flags:
        set_flags(f"{top}/f", case.kind.flags)


def get_flags(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, GETFLAGS, bytes(4)))[0])
    except OSError:
        return 0
    finally:
        os.close(fd)


def set_flags(path: str, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        now = struct.unpack("i", fcntl.ioctl(fd, GETFLAGS, bytes(4)))[0] & ~(FL_APPEND | FL_IMMUTABLE)
        fcntl.ioctl(fd, SETFLAGS, struct.pack("i", now | flags))
    finally:
        os.close(fd)


def remove(top: str) -> None:
    """What a case has left, whatever its flags are."""
    try:
        shutil.rmtree(top)
    except PermissionError:
        unprotect(top)
        shutil.rmtree(top)


def unprotect(top: str) -> None:
    """So that it can be removed."""
    for folder, names, files in os.walk(top):
        for name in (*names, *files):
            path = f"{folder}/{name}"
            plain = stat.S_IFMT(os.lstat(path).st_mode) in (stat.S_IFREG, stat.S_IFDIR)
            if plain and get_flags(path) & (FL_APPEND | FL_IMMUTABLE):
                set_flags(path, 0)


Found = dict[str, dict[str, Any]]


def look(top: str) -> Found:
    """What is there: {name: {what of it: value}}. Asked of the source, by root."""
    found: Found = {"": _one(top)}
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            found[path[len(top) + 1:]] = _one(path)
            if found[path[len(top) + 1:]]["type"] == "directory":
                waiting.append(path)
    return found


_TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
          stat.S_IFCHR: "character device", stat.S_IFBLK: "block device", stat.S_IFSOCK: "socket"}


def _one(path: str) -> dict[str, Any]:
    st = os.lstat(path)
    what = _TYPES[stat.S_IFMT(st.st_mode)]
    old = OLD, 7_000_000_070, 8_000_000_080, 5_000_000_007, 6_000_000_008  # what operations set, and what was
    found: dict[str, Any] = {
        "type": what, "mode": f"{st.st_mode & 0o7777:04o}", "owner": st.st_uid, "group": st.st_gid,
        "links": st.st_nlink, "device": st.st_rdev, "size": st.st_size,
        "atime": st.st_atime_ns if st.st_atime_ns in old else "now",
        "mtime": st.st_mtime_ns if st.st_mtime_ns in old else "now",
        "xattrs": {name: os.getxattr(path, name, follow_symlinks=False)
                   for name in sorted(os.listxattr(path, follow_symlinks=False))},
    }
    if what == "symlink":
        found["target"] = os.readlink(path)
    elif what in ("file", "directory"):
        fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
        try:
            flags = bytes(4)
            with suppress(OSError):
                flags = fcntl.ioctl(fd, GETFLAGS, flags)
            found["flags"] = f"{struct.unpack('i', flags)[0]:x}"
            if what == "file":
                found["content"] = os.read(fd, 1 << 20)
                found["holes"] = _holes(fd, st.st_size) if st.st_size > 4096 else ()
        finally:
            os.close(fd)
    return found


def _holes(fd: int, size: int) -> tuple[int, ...]:
    """Where data and holes begin."""
    found, at = [], 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found += [start, at]
    return tuple(found)


# ------------------------------------------------------------ the processes that do it

Said = tuple[Any, Any]  # what the operation gave, what f then looked like to the caller


def _too_long(_number: int, _frame: Any) -> None:
    raise TimeoutError("hangs")


def _attempt(operation: Operation, spot: Spot) -> Said:
    signal.setitimer(signal.ITIMER_REAL, 10)
    try:
        result: Any = operation.act(spot)
    except OSError as e:
        result = errno.errorcode.get(e.errno or 0, str(e))
    except Exception as e:
        result = f"{type(e).__name__}: {e}"
    signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        after: Any = _stat(os.lstat(spot.f))
    except OSError as e:
        after = errno.errorcode.get(e.errno or 0, str(e))
    return result, after


def _warm(spot: Spot, how: str) -> None:
    """What a caller may have looked at before, so that the kernel knows it."""
    with suppress(OSError):
        if how == "created":
            os.stat(spot.n)
        os.stat(spot.f)
        os.listxattr(spot.f)
        os.access(spot.f, os.W_OK, effective_ids=True)
        os.stat(spot.g)
    with suppress(OSError):
        os.close(os.open(spot.f, os.O_RDONLY | os.O_NONBLOCK))


class Worker:
    """A process of one caller, which does what it is told, in each of the given directories."""

    def __init__(self, who: Caller):
        self.who = who
        there, self.tell = os.pipe()
        self.hear, back = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.tell)
                os.close(self.hear)
                signal.signal(signal.SIGPIPE, signal.SIG_IGN)
                signal.signal(signal.SIGIO, signal.SIG_IGN)
                signal.signal(signal.SIGALRM, _too_long)
                null = os.open("/dev/null", os.O_RDONLY)
                os.dup2(null, 0)
                os.chdir("/")
                become(who)
                self._serve(there, back)
            finally:
                os._exit(1)
        os.close(there)
        os.close(back)

    @staticmethod
    def _serve(there: int, back: int) -> None:
        with os.fdopen(there, "rb") as jobs, os.fdopen(back, "wb") as answers:
            while True:
                try:
                    batch = pickle.load(jobs)
                except EOFError:
                    os._exit(0)
                said = []
                for number, nonblock, how, tops in batch:
                    spots = [Spot(top, os.O_NONBLOCK if nonblock else 0) for top in tops]
                    if number < 0:
                        for spot in spots:
                            _warm(spot, how)
                    else:
                        said.append([_attempt(OPERATIONS[number], spot) for spot in spots])
                pickle.dump(said, answers)
                answers.flush()

    def start(self, batch: Sequence[tuple[int, bool, str, tuple[str, ...]]]) -> None:
        data = memoryview(pickle.dumps(batch))
        while data:
            data = data[os.write(self.tell, data):]

    def answers(self, seconds: float) -> list[list[Said]]:
        """What start() was asked for, or TimeoutError if it hangs."""
        data = b""
        while True:
            if not select.select([self.hear], [], [], seconds)[0]:
                raise TimeoutError(f"{self.who}: no answer for {seconds} seconds")
            more = os.read(self.hear, 1 << 20)
            data += more
            try:
                return pickle.loads(data)  # type: ignore[no-any-return]
            except (pickle.UnpicklingError, EOFError):
                assert more, f"{self.who}: the process has ended"

    def end(self) -> None:
        os.close(self.tell)
        os.close(self.hear)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def job(case: Case, *tops: str) -> tuple[int, bool, str, tuple[str, ...]]:
    """What a worker is told to do."""
    number = BY_NAME[case.operation.family, case.operation.name]
    return number, case.kind.type not in ("file", "directory", "symlink"), "", tops
