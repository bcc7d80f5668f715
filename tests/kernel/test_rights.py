"""Who changes a file through the mount changes of its rights what it would change in the source: not less, not more."""
from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from _daemon import detach
from _modes import DATA_TOO
from _users import as_user

pytestmark = DATA_TOO

OWNER, MEMBER, STRANGER, TEAM = 12345, 12346, 12347, 12350
LIBC = ctypes.CDLL(None, use_errno=True)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw+ep
KEEP_SIZE, PUNCH, ZERO = 1, 2, 16


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def opened(path, flags: int, act) -> None:
    fd = os.open(path, flags)
    try:
        act(fd)
    finally:
        os.close(fd)


def copy(path) -> None:
    with open(path.parent / "payload", "rb") as payload:
        opened(path, os.O_WRONLY, lambda fd: os.copy_file_range(payload.fileno(), fd, 4096, 0, 0))


def write_shared(path) -> None:
    opened(path, os.O_RDWR, lambda fd: os.pwritev(fd, [b"x" * 100, b"y" * 4000], 50))


CHANGES = {
    "write": lambda p: opened(p, os.O_WRONLY, lambda fd: os.write(fd, b"x")),
    "writev": write_shared,
    "large write": lambda p: opened(p, os.O_WRONLY, lambda fd: os.write(fd, b"x" * (1 << 20))),
    "append": lambda p: opened(p, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x")),
    "synchronous": lambda p: opened(p, os.O_WRONLY | os.O_SYNC, lambda fd: os.write(fd, b"x")),
    "truncate": lambda p: os.truncate(p, 100),
    "ftruncate": lambda p: opened(p, os.O_WRONLY, lambda fd: os.ftruncate(fd, 100)),
    "extend": lambda p: os.truncate(p, 1 << 20),
    "open to truncate": lambda p: opened(p, os.O_WRONLY | os.O_TRUNC, lambda fd: None),
    "open to read and truncate": lambda p: opened(p, os.O_RDONLY | os.O_TRUNC, lambda fd: None),
    "allocate": lambda p: opened(p, os.O_WRONLY, lambda fd: fallocate(fd, 0, 0, 100_000)),
    "allocate behind": lambda p: opened(p, os.O_WRONLY, lambda fd: fallocate(fd, KEEP_SIZE, 0, 100_000)),
    "punch": lambda p: opened(p, os.O_WRONLY, lambda fd: fallocate(fd, KEEP_SIZE | PUNCH, 0, 4096)),
    "zero": lambda p: opened(p, os.O_WRONLY, lambda fd: fallocate(fd, ZERO, 0, 4096)),
    "copy": copy,
    "chown": lambda p: os.chown(p, -1, TEAM),
    "chmod": lambda p: os.chmod(p, 0o6775),
    "utime": lambda p: os.utime(p, ns=(1, 1)),
    "touch": lambda p: os.utime(p),
}


WRITES = ("write", "writev", "large write", "append", "synchronous")


@pytest.fixture(params=["disk", "memory"])
def top(request, place) -> Iterator[Path]:
    """A source on a disk's filesystem, or in memory, in which everybody may make things."""
    (place / "src").mkdir()
    if request.param == "memory":
        subprocess.run(["mount", "-t", "tmpfs", "none", place / "src"], check=True)
    (place / "src").chmod(0o777)
    (place / "src" / "payload").write_bytes(b"p" * 8192)
    yield place / "src"
    if request.param == "memory":
        detach(place / "src")


def program(path, mode: int, owner: int = OWNER, capability: bool = False) -> None:
    path.write_bytes(os.urandom(20_000))
    os.chown(path, owner, TEAM)
    if capability:
        os.setxattr(path, "security.capability", CAPABILITY)
    path.chmod(mode)


def rights(path) -> tuple[int, int, int, int, bool]:
    st = os.stat(path)
    return st.st_mode, st.st_uid, st.st_gid, st.st_size, "security.capability" in os.listxattr(path)


def result(act):
    try:
        act()
    except OSError as e:
        return errno.errorcode[e.errno]
    return "done"


WHO = {
    "owner": (OWNER, OWNER, []), "owner in the group": (OWNER, OWNER, [TEAM]), "member": (MEMBER, MEMBER, [TEAM]),
    "stranger": (STRANGER, STRANGER, []), "root": (0, 0, []),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("options", [(), ("--writeback",), ("--cache", "never")], ids=["plain", "writeback", "uncached"])
def test_as_in_the_source(mount, top, options):
    """Result, mode, owner, size and capabilities after each change by each kind of caller, in mount and source."""
    fs = mount(*options)
    differ = []
    memory = subprocess.run(
        ["stat", "-f", "-c", "%T", fs.src], capture_output=True, text=True, check=True).stdout == "tmpfs\n"
    for how, act in CHANGES.items():
        if how == "zero" and memory:  # cannot be done there, but the kernel takes capabilities away before it asks
            continue
        for who, (uid, gid, groups) in WHO.items():
            if who == "root" and how in WRITES and "--writeback" in options:
                continue  # a page does not tell who has written it (docs/limits.md)
            for mode in (0o6777, 0o4770, 0o2775, 0o755) if not options else (0o6777,):
                seen = []
                for where in (fs.src, fs.mnt):
                    name = f"{how} {who} {mode:o} {where.name}"  # the kernel keeps names
                    program(fs.src / name, mode, capability=mode in (0o755, 0o6777))
                    os.stat(fs.mnt / name)
                    said = as_user(uid, gid, groups, lambda path=where / name, act=act: result(lambda: act(path)))
                    shown = rights(fs.mnt / name)
                    seen.append((said, *rights(fs.src / name)))
                    if where == fs.mnt and shown != seen[1][1:]:
                        differ.append((how, who, oct(mode), "the mount shows", shown))
                if seen[0] != seen[1]:
                    differ.append((how, who, oct(mode), *seen))
    assert not differ, "\n".join(map(str, differ))
