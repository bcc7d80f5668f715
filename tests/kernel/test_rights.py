"""Who changes a file through the mount changes of its rights what it would change in the source: not less, not more."""
from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from _daemon import detach, until
from _modes import DATA_TOO
from _users import as_user

pytestmark = [pytest.mark.release_only("takes long on a build with sanitizers"), DATA_TOO]

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
@pytest.mark.parametrize(
    "options", [(), ("--writeback",), ("--cache", "never")], ids=["plain", "writeback", "uncached"])
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


def test_lock_of_a_created_file(mount, top):
    """Nothing of the daemon's keeps an open file that its user has closed: a flock(2) goes, and a program runs."""
    fs = mount()
    for _ in range(2):
        with open(fs.mnt / "lock", "w") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        until(lambda: not lock_held(fs.src / "lock"), "given up")
    shutil.copy("/bin/true", fs.mnt / "program")
    until(lambda: runs(fs.src / "program"), "not busy")


def lock_held(path) -> bool:
    with open(path) as f:
        return result(lambda: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)) != "done"


def runs(path) -> bool:
    return result(lambda: subprocess.run([path], check=True)) == "done"


@pytest.mark.parametrize("beside", [False, True])
def test_append_is_taken_away_and_set(mount, top, beside):
    """fcntl(F_SETFL) of O_APPEND counts from the next write on. beside: somebody else has the file open."""
    fs = mount()
    for where in (fs.src, fs.mnt):
        path = where / f"f {where.name}"
        path.write_bytes(b"0123456789")
        other = os.open(path, os.O_RDWR) if beside else os.open("/", os.O_RDONLY)
        fd = os.open(path, os.O_RDWR | os.O_APPEND)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
        os.pwrite(fd, b"AB", 0)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        os.write(fd, b"CD")
        os.close(fd)
        os.close(other)
        assert (fs.src / path.name).read_bytes() == b"AB23456789CD"


def test_busy_program_keeps_its_bits(mount, top):
    fs = mount()
    shutil.copy("/bin/sleep", fs.src / "s")
    os.chown(fs.src / "s", 0, TEAM)
    (fs.src / "s").chmod(0o4770)
    process = subprocess.Popen([fs.src / "s", "60"])
    try:
        for how in ("open to truncate", "truncate"):
            said = as_user(MEMBER, MEMBER, [TEAM], lambda how=how: result(lambda: CHANGES[how](fs.mnt / "s")))
            assert (said, os.stat(fs.src / "s").st_mode & 0o7777) == ("ETXTBSY", 0o4770)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("mode, owner, capability, good", [
    (0o4755, 0, False, True), (0o4775, 0, False, False), (0o2757, 0, False, False), (0o2745, 0, False, True),
    (0o755, 0, True, True), (0o775, 0, True, False), (0o755, OWNER, True, False), (0o777, OWNER, False, True)])
def test_execution(mount, top, mode, owner, capability, good):
    """A program with rights of its own that others may write is not executed."""
    fs = mount()
    shutil.copy("/bin/true", fs.src / "program")
    os.chown(fs.src / "program", owner, TEAM)
    if capability:
        os.setxattr(fs.src / "program", "security.capability", CAPABILITY)
    (fs.src / "program").chmod(mode)
    assert runs(fs.mnt / "program") == good


def test_owner_of_this_moment(mount, top):
    """Who has lost a file beside the mount changes neither mode nor ACL, whatever the kernel still believes."""
    fs = mount("--attr-timeout", "60")
    path = fs.mnt / "f"
    as_user(OWNER, OWNER, [], path.touch)
    os.stat(path)
    os.chown(fs.src / "f", 0, 0)
    assert as_user(OWNER, OWNER, [], lambda: result(lambda: path.chmod(0o4777))) == "EPERM"
    assert os.stat(fs.src / "f").st_mode & 0o7000 == 0


@pytest.mark.parametrize("groups, kept", [([], 0), ([TEAM], 0o2000)])
def test_sgid_is_for_members(mount, top, groups, kept):
    fs = mount()
    for where in (fs.src, fs.mnt):
        name = f"f {where.name}"
        program(fs.src / name, 0o755)
        as_user(OWNER, OWNER, groups, lambda path=where / name: path.chmod(0o2755))
        assert os.stat(fs.src / name).st_mode & 0o7000 == kept


def test_create_meets_a_file(mount, top):
    """What the kernel took for not being there is checked: the caller's groups may let in, or keep out."""
    fs = mount("--negative-timeout", "60")
    for mode, said in ((0o606, "EACCES"), (0o660, "done")):
        name = f"f{mode:o}"
        assert not (fs.mnt / name).exists()
        program(fs.src / name, mode, owner=0)
        create = lambda name=name: os.close(os.open(fs.mnt / name, os.O_RDWR | os.O_CREAT, 0o600))  # noqa: E731
        assert as_user(MEMBER, MEMBER, [TEAM], lambda act=create: result(act)) == said


def test_append_only_and_holes_with_writeback(mount, place):
    (place / "src").mkdir()
    (place / "src" / "log").touch()
    subprocess.run(["chattr", "+a", place / "src" / "log"], check=True)
    try:
        fs = mount("--writeback")
        opened(fs.mnt / "log", os.O_WRONLY | os.O_APPEND, lambda fd: (os.write(fd, b"abc"), os.write(fd, b"def")))
        assert (fs.src / "log").read_bytes() == b"abcdef"
        assert result(lambda: os.open(fs.mnt / "log", os.O_WRONLY)) == "EPERM"
        fd = os.open(fs.mnt / "f", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 1 << 20)
        os.pwrite(fd, b"x" * 4096, 512 << 10)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 512 << 10
        os.close(fd)
    finally:
        subprocess.run(["chattr", "-a", place / "src" / "log"], check=True)
