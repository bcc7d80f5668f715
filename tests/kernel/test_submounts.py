"""Filesystems below the source: what is shown of them, by whose word, and that they come and go."""
from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from _daemon import mounts_below, run, until, user_mode_linux
from _users import as_user

LIBC = ctypes.CDLL(None, use_errno=True)
KERNEL = tuple(int(n) for n in os.uname().release.split(".")[:2])


@pytest.fixture(autouse=True)
def nothing_left(mount, place):
    """What a test has mounted below its source goes before its daemon does."""
    yield
    for target in reversed(mounts_below(place / "src")):
        subprocess.run(["umount", "-l", target], check=True)


def mount_at(where: Path, kind: str, *options: str) -> Path:
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, *options, "test", where], check=True)
    return where


def stranger(act):
    return as_user(1000, 1000, (), act)


@pytest.fixture
def user_fuse(place):
    """A FUSE filesystem of uid 1000's at src/theirs, that answers INIT and nothing else, and counts requests."""
    (place / "src" / "theirs").mkdir(parents=True)
    (place / "src" / "theirs" / "under").write_text("lies under")
    fd = os.open("/dev/fuse", os.O_RDWR)
    what = f"fd={fd},rootmode=40000,user_id=1000,group_id=1000,allow_other".encode()
    assert LIBC.mount(b"theirs", os.fsencode(place / "src" / "theirs"), b"fuse", 6, what) == 0, ctypes.get_errno()
    asked: list[int] = []

    def serve() -> None:
        while True:
            try:
                data = os.read(fd, 1 << 17)
            except OSError:
                return
            opcode, unique = struct.unpack_from("=IQ", data, 4)
            if opcode == 26:
                body = struct.pack("=IIIIHHIIHHI", 7, 31, 0, 0, 1, 1, 4096, 1, 1, 0, 0) + bytes(28)
                os.write(fd, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)
            else:
                asked.append(opcode)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield asked
    subprocess.run(["umount", "-l", place / "src" / "theirs"], check=False)
    thread.join(5)
    os.close(fd)


@pytest.mark.parametrize("kind", ["proc", "sysfs", "devpts"])
def test_no_kernel_state(mount, place, kind):
    (place / "src" / "sub").mkdir(parents=True)
    (place / "src" / "sub" / "under").write_text("lies under")
    mount_at(place / "src" / "sub", kind)
    fs = mount()
    assert os.listdir(fs.mnt) == ["sub"]
    assert os.listdir(fs.mnt / "sub") == ["under"]
    assert (fs.mnt / "sub" / "under").read_text() == "lies under"
    (fs.mnt / "sub" / "new").write_text("x")
    assert (fs.mnt / "sub").stat().st_ino == (fs.mnt / "sub").stat().st_ino
    with pytest.raises(OSError):
        (fs.mnt / "sub").rename(fs.mnt / "other")
    subprocess.run(["umount", place / "src" / "sub"], check=True)
    assert (place / "src" / "sub" / "new").read_text() == "x"
    until(lambda: sorted(os.listdir(fs.mnt / "sub")) == ["new", "under"], "the directory itself")


def test_kernel_state_if_wanted(mount, place):
    (place / "src").mkdir()
    mount_at(place / "src" / "sub", "proc")
    fs = mount("--submounts", "all", "-o", "noallow_other")
    assert (fs.mnt / "sub" / "version").read_text() == Path("/proc/version").read_text()


def test_kernel_state_not_for_all(place):
    (place / "mnt").mkdir()
    done = run("--submounts", "all", place, place / "mnt")
    assert done.returncode == 2 and "noallow_other" in done.stderr
    done = run("/proc/self", place / "mnt")
    assert done.returncode == 3 and "kernel's own state" in done.stderr


def test_users_own_is_not_asked(mount, place, user_fuse):
    fs = mount()
    for _ in range(3):
        assert os.listdir(fs.mnt / "theirs") == ["under"]
    subprocess.run(["find", fs.mnt, "-ls"], check=True, capture_output=True, timeout=10)
    assert user_fuse == []


def test_flags_of_a_mount(mount, place):
    (place / "src").mkdir()
    sub = mount_at(place / "src" / "sub", "tmpfs", "-o", "nosuid,nodev,noexec,mode=755")
    for name, mode in (("suid", 0o4755), ("sgid", 0o2755), ("plain", 0o755)):
        shutil.copy(shutil.which("true") or "/bin/true", sub / name)
        (sub / name).chmod(mode)
    os.mknod(sub / "zero", 0o20666, os.makedev(1, 5))
    os.chmod(sub / "zero", 0o666)
    subprocess.run(["setcap", "cap_net_raw=ep", sub / "plain"], check=False)
    fs = mount("--sandbox", "seccomp")  # in a namespace of its own the daemon sees no remount
    there = fs.mnt / "sub"
    assert [oct((there / n).stat().st_mode & 0o7777) for n in ("suid", "sgid", "plain")] == ["0o644"] * 3
    for name in ("suid", "sgid", "plain"):
        with pytest.raises(PermissionError):
            stranger(lambda name=name: os.execv(there / name, ["x"]))
    with pytest.raises(OSError):
        stranger(lambda: os.open(there / "zero", os.O_RDONLY))
    with pytest.raises(OSError):
        os.getxattr(there / "plain", "security.capability")
    subprocess.run(["mount", "-o", "remount,bind,suid,dev,exec", sub], check=True)
    until(lambda: (there / "suid").stat().st_mode & 0o7777 == 0o4755, "the remount's flags")
    Path("/proc/sys/vm/drop_caches").write_text("2")  # the kernel keeps a device's number as long as the inode
    assert stranger(lambda: os.read(os.open(there / "zero", os.O_RDONLY), 1)) == b"\0"


def test_flags_of_the_source(mount, place):
    mount_at(place / "src", "tmpfs", "-o", "nosuid,nodev,mode=755")
    fs = mount()
    options = next(line.split()[5] for line in Path("/proc/self/mountinfo").read_text().splitlines()
                   if line.split()[4] == str(fs.mnt))
    assert {"nosuid", "nodev"} <= set(options.split(",")) and "noexec" not in options
    (place / "src" / "f").write_text("x")
    (place / "src" / "f").chmod(0o4755)
    assert (fs.mnt / "f").stat().st_mode & 0o7777 == 0o4755  # shown, as there, and without effect


@pytest.mark.parametrize("outer, inner", [("ramfs", "tmpfs"), ("tmpfs", "ramfs")])
def test_acls_by_filesystem(mount, place, outer, inner):
    mount_at(place / "src", outer)
    (place / "src").chmod(0o755)
    sub = mount_at(place / "src" / "sub", inner)
    sub.chmod(0o755)
    with_acl = sub if inner == "tmpfs" else place / "src"
    for where in (place / "src", sub):
        (where / "f").write_text("secret")
        os.chown(where / "f", 0, 1000)
        (where / "f").chmod(0o660)
    subprocess.run(["setfacl", "-m", "g::---,u:2000:rw,m::rw", with_acl / "f"], check=True)
    fs = mount()
    for where in (fs.mnt, fs.mnt / "sub"):
        has = (where == fs.mnt / "sub") == (inner == "tmpfs")
        if has:
            with pytest.raises(PermissionError):
                stranger((where / "f").read_text)
        else:
            assert stranger((where / "f").read_text) == "secret"


@pytest.mark.skipif(KERNEL < (6, 8), reason="mount ids are used again before Linux 6.8")
def test_unmounted_when_idle(mount, place):
    (place / "src").mkdir()
    sub = mount_at(place / "src" / "sub", "tmpfs")
    (sub / "f").write_text("before")
    fs = mount()
    assert (fs.mnt / "sub" / "f").read_text() == "before"

    def unmounts() -> bool:
        return subprocess.run(["umount", sub], capture_output=True, check=False).returncode == 0

    time.sleep(5)  # it is found again when it is wanted again
    assert (fs.mnt / "sub" / "f").read_text() == "before"
    until(unmounts, "unmounted")
    until(lambda: os.listdir(fs.mnt / "sub") == [], "what lies under it")
    mount_at(sub, "tmpfs")
    (sub / "f").write_text("after")
    until(lambda: os.listdir(fs.mnt / "sub") == ["f"], "the next one")
    assert (fs.mnt / "sub" / "f").read_text() == "after"


def test_kept_while_open(mount, place):
    (place / "src").mkdir()
    sub = mount_at(place / "src" / "sub", "tmpfs")
    (sub / "f").write_text("before")
    fs = mount()
    with open(fs.mnt / "sub" / "f") as f:
        time.sleep(5)
        assert subprocess.run(["umount", sub], capture_output=True, check=False).returncode != 0
        assert f.read() == "before"


def test_many_come_and_go(mount, place):
    (place / "src").mkdir()
    fs = mount("--entry-timeout", "0")
    fds = len(os.listdir(f"/proc/{fs.pid}/fd"))
    for n in range(150):
        sub = mount_at(place / "src" / "sub", "tmpfs")
        (sub / str(n)).touch()
        until(lambda n=n: os.listdir(fs.mnt / "sub") == [str(n)], "the new one")
        subprocess.run(["umount", "-l", sub], check=True)

    def level() -> bool:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        return len(os.listdir(f"/proc/{fs.pid}/fd")) <= fds + 2

    until(level, "fds given back")


def test_rename_and_link_between(mount, place):
    (place / "src").mkdir()
    sub = mount_at(place / "src" / "sub", "tmpfs")
    (sub / "f").touch()
    (place / "src" / "g").touch()
    fs = mount()
    there = fs.mnt / "sub"
    for act in (lambda: os.rename(fs.mnt / "g", there / "g"), lambda: os.link(there / "f", fs.mnt / "h")):
        with pytest.raises(OSError, match="cross-device"):
            act()


def test_removed_files_space(mount, place):
    """A file that was looked at through the mount, and then removed beside it, is gone within seconds."""
    mount_at(place / "src", "tmpfs", "-o", "size=64m")
    fs = mount()
    (place / "src" / "big").write_bytes(bytes(32 << 20))
    assert len((fs.mnt / "big").read_bytes()) == 32 << 20
    (place / "src" / "big").unlink()
    until(lambda: os.statvfs(place / "src").f_bfree * 4096 > 60 << 20, "its space is free", 10)


@pytest.mark.skipif(not shutil.which("mkfs.btrfs") or "btrfs" not in Path("/proc/filesystems").read_text(),
                    reason="no btrfs here")
def test_subvolumes(mount, place):
    """Each has a device number of its own, within one mount; there may be more than a thousand."""
    (place / "src").mkdir()
    with open(place / "image", "wb") as f:
        f.truncate(256 << 20)
    subprocess.run(["mkfs.btrfs", "-q", place / "image"], check=True)
    subprocess.run(["mount", "-o", "loop", place / "image", place / "src"], check=True)
    count = 1100
    top = os.open(place / "src", os.O_RDONLY)
    for n in range(count):
        fcntl.ioctl(top, 0x5000940E, bytearray(struct.pack("=q4088s", 0, b"v%d" % n)))  # BTRFS_IOC_SUBVOL_CREATE
    os.close(top)
    for n in range(count):
        (place / "src" / f"v{n}" / "f").write_text(str(n))
    fs = mount()
    assert [(fs.mnt / f"v{n}" / "f").read_text() for n in range(count)] == [str(n) for n in range(count)]
    numbers = {(fs.mnt / f"v{n}" / "f").stat().st_ino for n in range(count)}
    assert len(numbers) == count  # although they have but one st_dev
    with pytest.raises(OSError, match="cross-device"):
        os.rename(fs.mnt / "v1" / "f", fs.mnt / "v2" / "g")

    def few() -> bool:
        return len(os.listdir(f"/proc/{fs.pid}/fd")) < 200

    until(few, "fds of idle subvolumes closed")
    assert (fs.mnt / "v7" / "f").read_text() == "7"


@pytest.mark.skipif(not user_mode_linux(), reason="without the guard it would hang the machine for good")
def test_own_mount_below_itself(mount, place):
    (place / "src" / "self").mkdir(parents=True)
    (place / "src" / "self" / "under").touch()
    fs = mount()
    subprocess.run(["mount", "--bind", fs.mnt, place / "src" / "self"], check=True)
    try:
        assert os.listdir(fs.mnt / "self") == ["under"]
    finally:
        subprocess.run(["umount", "-l", place / "src" / "self"], check=True)


def test_creating_where_something_has_been_mounted(mount, place):
    """CREATE of a name that the kernel took for free: what is mounted there now is judged as at any other look."""
    (place / "src").mkdir()
    fs = mount("--negative-timeout", "1000")
    name = fs.src / "f"
    assert not (fs.mnt / "f").exists()
    name.write_text("covered")
    subprocess.run(["mount", "--bind", "/proc/sys/kernel/ostype", name], check=True)
    try:
        fd = os.open(fs.mnt / "f", os.O_CREAT | os.O_RDONLY, 0o600)
        try:
            assert os.read(fd, 100) == b"covered"
        finally:
            os.close(fd)
    finally:
        subprocess.run(["umount", "-l", name], check=True)
