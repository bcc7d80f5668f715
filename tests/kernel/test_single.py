"""SOURCE is one file or block device, and MOUNTPOINT a file."""
from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from _daemon import Daemon, mounted, until
from _modes import DATA_TOO

pytestmark = DATA_TOO

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
KEEP_SIZE, PUNCH, ZERO = 1, 2, 16
M = 1 << 20
SIZE = 64 * M


def fallocate(fd: int, mode: int, at: int, length: int) -> None:
    if libc.fallocate(fd, mode, at, length) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def run(*command: str | Path, **more) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, **more)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as e:
        yield
    assert e.value.errno == number, e.value


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def loop(file: Path, *options: str) -> Path:
    """A loop device over a file; skips where there are none."""
    if shutil.which("losetup") is None or not os.path.exists("/dev/loop-control"):
        pytest.skip("no loop devices here")
    return Path(run("losetup", "--find", "--show", *options, file).strip())


def unloop(device: Path) -> None:
    """Detach it, as soon as nobody uses it any more."""
    run("losetup", "--detach", device)


def until_free(device: Path) -> None:
    """What was mounted may have lived on in another mount namespace."""
    until(lambda: not Path(f"/sys/block/{device.name}/loop/backing_file").exists(), f"{device} is free")


@pytest.fixture
def image(place) -> Path:
    with open(place / "image", "wb") as f:
        f.truncate(SIZE)
    return place / "image"


@pytest.fixture
def device(image) -> Iterator[Path]:
    found = loop(image)
    yield found
    unloop(found)


@pytest.fixture
def show(mount, place) -> Callable[..., Daemon]:
    """show(source, *options) mounts it on a file."""
    def start(source: Path, *options: str, mountpoint: Path | None = None) -> Daemon:
        if mountpoint is None:
            mountpoint = place / "mnt"
            mountpoint.touch()
        return mount(*options, source=source, mountpoint=mountpoint)
    return start


@pytest.fixture(params=["file", "device"])
def either(request, image) -> Path:
    """A source of either kind that keeps its size."""
    return image if request.param == "file" else request.getfixturevalue("device")


def fixed(source: Path) -> tuple[str, ...]:
    return ("--fixed-size",) if source.is_file() else ()


# ------------------------------------------------------------ regular files

def test_file(show, image):
    os.chmod(image, 0o640)
    os.chown(image, 1000, 1001)
    os.truncate(image, 5000)
    fs = show(image)
    for name in ("st_mode", "st_size", "st_uid", "st_gid", "st_ino", "st_blocks", "st_mtime_ns", "st_nlink"):
        assert getattr(os.stat(fs.mnt), name) == getattr(os.stat(image), name), name
    os.chmod(fs.mnt, 0o600)
    assert stat.S_IMODE(os.stat(image).st_mode) == 0o600
    fs.mnt.write_bytes(b"0123456789")
    assert image.read_bytes() == fs.mnt.read_bytes() == b"0123456789"
    with open(fs.mnt, "ab") as f:
        f.write(b"more")
    with opened(fs.mnt) as fd:
        os.pwrite(fd, b"far", 10 * M)
        os.fsync(fd)
        assert os.fstat(fd).st_size == 10 * M + 3
        assert os.lseek(fd, 0, os.SEEK_HOLE) == os.stat(image).st_blksize
        assert os.lseek(fd, M, os.SEEK_DATA) == 10 * M
        os.ftruncate(fd, 7)
    assert image.read_bytes() == b"0123456"
    os.truncate(fs.mnt, 3 * M)
    assert os.stat(fs.mnt).st_size == os.stat(image).st_size == 3 * M
    os.setxattr(fs.mnt, "user.a", b"b")
    assert os.getxattr(image, "user.a") == b"b"


def test_who_moves_the_data(show, image, transport):
    fs = show(image)
    with opened(fs.mnt) as fd:
        os.pwrite(fd, b"x" * M, 0)
        assert os.pread(fd, M, 0) == b"x" * M
    said, s = fs.stderr(), fs.stats()
    if transport == "passthrough":
        assert ", kernel passthrough, file, " in said
        assert s.total("write_bytes") == 0
    else:
        assert "passthrough" not in said
        assert s.total("write_bytes") == M


def test_holes_in_a_file(show, image):
    fs = show(image)
    with opened(fs.mnt) as fd:
        os.pwrite(fd, b"x" * M, 0)
        os.fsync(fd)
        before = os.fstat(fd).st_blocks
        fallocate(fd, PUNCH | KEEP_SIZE, 0, M // 2)
        assert os.pread(fd, M, 0) == bytes(M // 2) + b"x" * (M // 2)
        assert os.fstat(fd).st_blocks <= before - M // 2 // 512
        fallocate(fd, 0, 0, SIZE + M)
        assert os.fstat(fd).st_size == os.stat(image).st_size == SIZE + M


def test_no_directory(show, image):
    fs = show(image)
    for make in (os.listdir, os.mkdir, os.unlink, os.stat):
        with refused(errno.ENOTDIR):
            make(f"{fs.mnt}/x")
    with refused(errno.EBUSY):
        os.unlink(fs.mnt)


def test_file_over_itself(show, image):
    image.write_bytes(b"before")
    with open(image, "r+b", buffering=0) as below:
        fs = show(image, mountpoint=image)
        assert mounted(image)
        assert image.read_bytes() == b"before"
        with opened(image) as fd:
            os.pwrite(fd, b"after!", 0)
        assert below.read() == b"after!"
        os.truncate(image, 3)
        assert os.fstat(below.fileno()).st_size == 3
        with opened(image, os.O_WRONLY | os.O_TRUNC) as fd:
            os.write(fd, b"new")
        assert os.pread(below.fileno(), 9, 0) == b"new"
        fs.umount()
    assert image.read_bytes() == b"new"


def test_mmap(show, either):
    fs = show(either, *fixed(either))
    with opened(fs.mnt) as fd, mmap.mmap(fd, SIZE) as m:
        m[:5] = b"begin"
        m[-3:] = b"end"
        m.flush()
        os.fsync(fd)
    data = either.read_bytes()
    assert (data[:5], data[-3:]) == (b"begin", b"end")


# -------------------------------------------------------------- fixed sizes

def test_size_is_kept(show, either):
    fs = show(either, *fixed(either))
    assert f"kept at {SIZE} bytes" in fs.stderr()
    with opened(fs.mnt) as fd:
        assert os.fstat(fd).st_size == SIZE
        assert os.pwrite(fd, b"0123456789", SIZE - 4) == 4
        assert os.pread(fd, 100, SIZE - 4) == b"0123"
        for at in (SIZE, SIZE + 5 * M):
            with refused(errno.ENOSPC):
                os.pwrite(fd, b"x", at)
        for size in (0, SIZE - 1, SIZE + 1):
            with refused(errno.EPERM):
                os.ftruncate(fd, size)
        os.ftruncate(fd, SIZE)
        for mode in (0, ZERO):
            with refused(errno.ENOSPC):
                fallocate(fd, mode, SIZE - 100, 200)
        os.copy_file_range(fd, fd, 4, SIZE - 4, 0)
        with refused(errno.ENOSPC):
            os.copy_file_range(fd, fd, 4, 0, SIZE)
        os.fsync(fd)
    with refused(errno.EPERM):
        os.truncate(fs.mnt, 5)
    for flags in (os.O_TRUNC, os.O_TRUNC | os.O_CREAT):
        with refused(errno.EPERM):
            os.open(fs.mnt, os.O_WRONLY | flags)
    with opened(fs.mnt, os.O_WRONLY | os.O_APPEND) as fd, refused(errno.ENOSPC):
        os.write(fd, b"x")
    with opened(fs.mnt, os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(-1, 8192) as pages:
        assert os.pwrite(fd, pages, SIZE - 8192) == 8192
        with refused(errno.ENOSPC):  # the kernel makes EIO of a short one
            os.pwrite(fd, pages, SIZE - 4096)
    with open(either, "rb") as f:
        assert f.seek(0, os.SEEK_END) == SIZE
        assert os.pread(f.fileno(), 4, 0) == b"0123"
    assert "passthrough" not in fs.stderr()


def test_fixed_is_not_read_from_a_full_end(show, image):
    """A file that grows beside the mount is not appended to there."""
    os.truncate(image, 1000)
    fs = show(image, "--fixed-size", "--attr-timeout", "0")
    os.truncate(image, 2000)
    with opened(fs.mnt, os.O_WRONLY | os.O_APPEND) as fd, refused(errno.ENOSPC):
        os.write(fd, b"x")
    assert os.stat(image).st_size == 2000


# ------------------------------------------------------------ block devices

def test_device(show, device):
    node = os.stat(device)
    fs = show(device)
    st = os.stat(fs.mnt)
    assert stat.S_ISREG(st.st_mode) and stat.S_IMODE(st.st_mode) == stat.S_IMODE(node.st_mode)
    assert (st.st_size, st.st_blocks, st.st_rdev) == (SIZE, SIZE // 512, 0)
    assert os.statvfs(fs.mnt).f_blocks * os.statvfs(fs.mnt).f_frsize == SIZE
    assert "block device" in fs.stderr()
    random = os.urandom(5 * M + 77)
    with opened(fs.mnt) as fd:
        os.pwrite(fd, random, 12345)
        os.fsync(fd)
        assert os.pread(fd, len(random), 12345) == random
        assert os.lseek(fd, 0, os.SEEK_END) == SIZE
        assert os.lseek(fd, 100, os.SEEK_DATA) == 100
        assert os.lseek(fd, 100, os.SEEK_HOLE) == SIZE
        with refused(errno.ENXIO):
            os.lseek(fd, SIZE, os.SEEK_DATA)
    with open(device, "rb") as f:
        assert os.pread(f.fileno(), len(random), 12345) == random


def test_device_written_beside(show, device):
    """The page cache is not believed at the next open."""
    fs = show(device)
    for word in (b"one", b"two"):
        with opened(device, os.O_WRONLY | os.O_SYNC) as fd:
            os.pwrite(fd, word, 0)
        with opened(fs.mnt, os.O_RDONLY) as fd:
            assert os.pread(fd, 3, 0) == word


@pytest.mark.parametrize("mode", [PUNCH | KEEP_SIZE, ZERO, ZERO | KEEP_SIZE])
@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_device_zeroed(show, device, mode, flags):
    """Whole blocks by the device, the rest by hand."""
    fs = show(device)
    with opened(fs.mnt) as fd:
        os.pwrite(fd, b"x" * 65536, 0)
        os.fsync(fd)
    with opened(fs.mnt, os.O_RDWR | flags) as fd:
        try:
            fallocate(fd, mode, 4096, 8192)
        except OSError as e:
            if e.errno != errno.EOPNOTSUPP:
                raise
            pytest.skip("the loop device cannot do that here")
        fallocate(fd, mode, 20000, 10000)
        fallocate(fd, mode, 40001, 3)
        os.fsync(fd)
    want = bytearray(b"x" * 65536)
    for at, length in ((4096, 8192), (20000, 10000), (40001, 3)):
        want[at:at + length] = bytes(length)
    for path in (fs.mnt, device):
        with open(path, "rb") as f:
            assert f.read(65536) == want, path
    with opened(fs.mnt) as fd:
        if mode & KEEP_SIZE:
            fallocate(fd, mode, SIZE - 512, M)
            fallocate(fd, mode, SIZE + M, M)
            assert os.fstat(fd).st_size == SIZE
        with refused(errno.EOPNOTSUPP):
            fallocate(fd, 0, 0, 4096)


def test_device_resized(show, image, device):
    fs = show(device, "--attr-timeout", "0")
    os.truncate(image, 2 * SIZE)
    run("losetup", "--set-capacity", device)
    assert os.stat(fs.mnt).st_size == 2 * SIZE
    with opened(fs.mnt) as fd:
        assert os.pwrite(fd, b"x", 2 * SIZE - 1) == 1


def test_read_only(show, either):
    with open(either, "r+b") as f:
        f.write(b"content")
    fs = show(either, "-o", "ro")
    with open(fs.mnt, "rb") as f:
        assert f.read(7) == b"content"
    for refuse in (lambda: os.open(fs.mnt, os.O_RDWR), lambda: os.truncate(fs.mnt, 1), lambda: os.chmod(fs.mnt, 0)):
        with refused(errno.EROFS):
            refuse()


def test_read_only_device(show, image):
    image.write_bytes(b"content".ljust(M))
    device = loop(image, "--read-only")
    try:
        fs = show(device)
        assert "read-only block device" in fs.stderr()
        with opened(fs.mnt, os.O_RDONLY) as fd:
            assert os.pread(fd, 7, 0) == b"content"
        with refused(errno.EROFS):
            os.open(fs.mnt, os.O_RDWR)
        fs.umount()
        fs.wait()
    finally:
        unloop(device)


# ------------------------------------------------------- what it is good for

@pytest.mark.parametrize("direct", ["off", "on"])
def test_filesystem_within(show, either, place, direct):
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4")
    fs = show(either)
    run("mkfs.ext4", "-q", "-F", fs.mnt)
    inner, disk = place / "inner", loop(fs.mnt, f"--direct-io={direct}")
    try:
        inner.mkdir()
        run("mount", disk, inner)
        try:
            for n in range(50):
                (inner / f"file{n}").write_bytes(bytes([n]) * (n * 5000))
            run("fstrim", inner)
        finally:
            run("umount", inner)
    finally:
        unloop(disk)
    until_free(disk)
    for path in (fs.mnt, either):
        run("fsck.ext4", "-f", "-n", path)
    inner_disk = loop(either, "--read-only")
    try:
        run("mount", "-o", "ro", inner_disk, inner)
        try:
            assert all((inner / f"file{n}").read_bytes() == bytes([n]) * (n * 5000) for n in range(50))
        finally:
            run("umount", inner)
    finally:
        unloop(inner_disk)


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_qemu(show, place, either, cache):
    """qemu-img and qemu-io, with the page cache and with O_DIRECT."""
    if shutil.which("qemu-img") is None or shutil.which("qemu-io") is None:
        pytest.skip("no qemu-img or qemu-io (qemu-utils)")
    fs = show(either)
    qcow, raw = place / "disk.qcow2", place / "disk.raw"
    with open(raw, "wb") as f:
        f.truncate(SIZE)
        for n in range(0, 64, 5):
            f.seek(n * M)
            f.write(os.urandom(M))
    run("qemu-img", "convert", "-O", "qcow2", raw, qcow)
    run("qemu-img", "convert", "-n", "-t", cache, "-T", cache, "-O", "raw", qcow, fs.mnt)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", fs.mnt, qcow)
    assert run("cmp", raw, either) == ""
    run("qemu-io", "-f", "raw", "-t", cache, "-c", "write -P 0x5a 1M 3M", "-c", "read -P 0x5a 1M 3M",
        "-c", "write -z 2M 1M", "-c", "discard 8M 4M", "-c", "flush", "-c", "read -P 0 2M 1M", fs.mnt)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", fs.mnt, qcow)
    run("qemu-img", "check", qcow)
    with open(either, "rb") as f:
        assert os.pread(f.fileno(), 3 * M, M) == b"\x5a" * M + bytes(M) + b"\x5a" * M
    # An image format of its own in the mount.
    if either.is_file():
        run("qemu-img", "create", "-q", "-f", "qcow2", fs.mnt, "32M")
        run("qemu-io", "-t", cache, "-c", "write -P 7 0 32M", "-c", "read -P 7 0 32M", fs.mnt)
        run("qemu-img", "check", "-f", "qcow2", fs.mnt)
        assert either.stat().st_size > 32 * M


# ------------------------------------------------------------------ the end

def test_signal_while_open(show, image):
    fs = show(image)
    with suppress(OSError), opened(fs.mnt) as fd:  # from close(2)
        os.write(fd, b"x")
        fs.expected_lines = ["busy: detached"]
        fs.signal(15)
        until(lambda: not mounted(fs.mnt), "unmounted")
        fs.wait()
    assert fs.mnt.read_bytes() == b""
    assert image.read_bytes()[:1] == b"x"


def test_signal(show, either):
    fs = show(either)
    fs.signal(15)
    assert fs.wait() == 0
    assert not mounted(fs.mnt)


def test_source_is_a_mounted_file(show, place, image):
    first = show(image)
    (place / "second").touch()
    second = show(first.mnt, mountpoint=place / "second")
    with opened(second.mnt) as fd:
        os.pwrite(fd, b"through both", M)
        os.fsync(fd)
    with open(image, "rb") as f:
        assert os.pread(f.fileno(), 12, M) == b"through both"
    second.umount()
    second.wait()
