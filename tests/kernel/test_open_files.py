"""Open files: unlinked, appended to, shared, mapped, synced."""
import contextlib
import errno
import fcntl
import mmap
import os
import subprocess

import pytest
from _daemon import until
from _modes import DATA_TOO

pytestmark = DATA_TOO


@contextlib.contextmanager
def opened(path, flags: int, mode: int = 0o644):
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def test_unlinked(fs):
    with opened(fs.mnt / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"0123456789")
        os.unlink(fs.mnt / "f")
        assert os.listdir(fs.src) == []
        st = os.fstat(fd)
        assert (st.st_size, st.st_nlink) == (10, 0)
        os.pwrite(fd, b"abc", 20)
        assert os.pread(fd, 100, 0) == b"0123456789" + bytes(10) + b"abc"
        os.ftruncate(fd, 3)
        os.fchmod(fd, 0o600)
        os.utime(fd, ns=(1, 2))
        os.setxattr(fd, "user.a", b"still")
        os.fsync(fd)
        assert os.getxattr(fd, "user.a") == b"still"
        assert (os.fstat(fd).st_size, os.fstat(fd).st_mtime_ns) == (3, 2)


def test_unlinked_beside(fs):
    """Removed in the source, not by the mount."""
    (fs.src / "f").write_bytes(b"data")
    with opened(fs.mnt / "f", os.O_RDWR) as fd:
        os.unlink(fs.src / "f")
        os.pwrite(fd, b"D", 0)
        assert os.pread(fd, 10, 0) == b"Data"
        os.ftruncate(fd, 2)
        assert os.fstat(fd).st_size == 2


def test_removed_directory(fs):
    (fs.mnt / "d").mkdir()
    with opened(fs.mnt / "d", os.O_RDONLY) as fd:
        os.rmdir(fs.mnt / "d")
        assert os.listdir(fd) == []
        os.fstat(fd)
        with pytest.raises(FileNotFoundError):
            os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd)


def test_replaced(fs):
    (fs.mnt / "f").write_text("old")
    with opened(fs.mnt / "f", os.O_RDONLY) as fd:
        (fs.mnt / "g").write_text("new")
        os.rename(fs.mnt / "g", fs.mnt / "f")
        assert os.pread(fd, 10, 0) == b"old"
    assert (fs.mnt / "f").read_text() == "new"


@pytest.mark.parametrize("option", [(), ("--writeback",)], ids=["", "writeback"])
def test_two_appenders(mount, option):
    fs = mount(*option)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with opened(fs.mnt / "log", flags) as a, opened(fs.mnt / "log", flags) as b:
        for n in range(500):
            os.write(a if n % 2 else b, b"%06d\n" % n)
    lines = (fs.src / "log").read_bytes().splitlines()
    assert lines == [b"%06d" % n for n in range(500)]


def test_appender_beside(fs):
    """One appends in the source, one by the mount: neither overwrites the other's."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with opened(fs.mnt / "log", flags) as a, opened(fs.src / "log", flags) as b:
        for n in range(50):
            os.write(a if n % 2 else b, b"%06d\n" % n)
    assert (fs.src / "log").read_bytes().splitlines() == [b"%06d" % n for n in range(50)]


def test_appending_processes(fs):
    script = f"for i in $(seq 200); do echo $0 $i >>{fs.mnt}/log; done"
    writers = [subprocess.Popen(["sh", "-c", script, str(n)]) for n in range(4)]
    assert [w.wait() for w in writers] == [0] * 4
    lines = (fs.src / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{n} {i}" for n in range(4) for i in range(1, 201))


def test_access_modes(fs):
    (fs.mnt / "f").write_bytes(b"x")
    with opened(fs.mnt / "f", os.O_WRONLY) as fd, pytest.raises(OSError) as e:
        os.read(fd, 1)
    assert e.value.errno == errno.EBADF
    with opened(fs.mnt / "f", os.O_RDONLY) as fd, pytest.raises(OSError) as e:
        os.write(fd, b"y")
    assert e.value.errno == errno.EBADF
    with opened(fs.mnt / "f", os.O_PATH) as fd:
        assert os.fstat(fd).st_size == 1


def test_sync(fs):
    with opened(fs.mnt / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x" * 100_000)
        os.fsync(fd)
        os.fdatasync(fd)
    with opened(fs.mnt, os.O_RDONLY) as fd:
        os.fsync(fd)
    subprocess.run(["sync", "-f", fs.mnt], check=True)
    with opened(fs.mnt / "f", os.O_RDWR | os.O_SYNC) as fd:
        os.pwrite(fd, b"y", 5)
    with opened(fs.mnt / "f", os.O_RDWR | os.O_DSYNC) as fd:
        os.pwrite(fd, b"z", 6)
    assert (fs.src / "f").read_bytes() == b"xxxxxyz" + b"x" * 99_993
    ops = fs.stats().ops()
    assert ops["FSYNC"] >= 2 and ops["FSYNCDIR"] >= 1


@pytest.mark.parametrize("option", [(), ("--writeback",)], ids=["", "writeback"])
def test_shared_mapping(mount, option):
    fs = mount(*option)
    size = 1 << 20
    with opened(fs.mnt / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, size + 100)
        with mmap.mmap(fd, size + 100) as m:
            for at in range(0, size, 4096):
                m[at:at + 8] = b"%08d" % at
            m[size + 90:size + 100] = b"last bytes"
            assert os.pread(fd, 8, 40960) == b"00040960"
            os.pwrite(fd, b"written!", 8192)
            assert m[8192:8200] == b"written!"
            m.flush()
        data = (fs.src / "f").read_bytes()
    assert len(data) == size + 100 and data[-10:] == b"last bytes"
    assert all(data[at:at + 8] == b"%08d" % at for at in range(0, size, 4096) if at != 8192)


@pytest.mark.parametrize("option", [(), ("--writeback",)], ids=["", "writeback"])
def test_mapping_of_an_appender(mount, option):
    """Stores go where they are made, though write(2) by the same open file goes to the end."""
    fs = mount(*option)
    (fs.src / "log").write_bytes(b"x" * 8192)
    with opened(fs.mnt / "log", os.O_RDWR | os.O_APPEND) as fd:
        with mmap.mmap(fd, 8192) as m:
            m[100:105] = b"store"
            m[5000:5005] = b"other"
            m.flush()
        os.write(fd, b"end")
        os.fsync(fd)
    data = (fs.src / "log").read_bytes()
    assert len(data) == 8195 and data[-3:] == b"end"
    assert (data[100:105], data[5000:5005]) == (b"store", b"other")


def test_stores_change_the_times(mount, transport):
    """Into an mmap of a file that the kernel has passed through it sees none, and is told when the file is closed."""
    if transport != "passthrough":
        pytest.skip("there stores come as writes")
    fs = mount("--attr-timeout=100", "--entry-timeout=100")
    (fs.mnt / "f").write_bytes(b"x" * 4096)
    with opened(fs.mnt / "f", os.O_RDWR) as fd:
        os.utime(fd, (1, 1))
        assert os.fstat(fd).st_mtime == 1
        with mmap.mmap(fd, 4096) as m:
            os.stat(fs.mnt / "f")  # after mmap(2) the kernel asks by itself, once
            m[:5] = b"store"
            m.flush()
    assert os.stat(fs.mnt / "f").st_mtime_ns == os.stat(fs.src / "f").st_mtime_ns > 10**18


def test_backing_files_go_with_their_inodes(mount, transport):
    """The kernel keeps what it has of a source's file, and so the file's space, no longer than the file."""
    if transport != "passthrough":
        pytest.skip("of kernel passthrough")
    fs = mount()
    for n in range(10):
        (fs.mnt / f"f{n}").write_bytes(b"x" * 4096)
    assert fs.stats().header["backings"] == 10
    for n in range(10):
        os.unlink(fs.mnt / f"f{n}")
    until(lambda: fs.stats().header["inodes"] == 1, "forgotten")
    assert fs.stats().header["backings"] == 0


def test_direct(fs):
    """O_DIRECT and the page cache see each other's writes, also at an odd end of file."""
    page = mmap.mmap(-1, 8192)
    page.write(b"d" * 8192)
    with opened(fs.mnt / "f", os.O_RDWR | os.O_CREAT) as plain:
        os.write(plain, b"p" * 10_000)
        with opened(fs.mnt / "f", os.O_RDWR | os.O_DIRECT) as direct:
            assert os.pwritev(direct, [memoryview(page)[:4096]], 4096) == 4096
            assert os.pread(plain, 10_000, 0) == b"p" * 4096 + b"d" * 4096 + b"p" * 1808
            os.pwrite(plain, b"q" * 10, 0)
            assert os.preadv(direct, [page], 0) == 8192
            assert page[:20] == b"q" * 10 + b"p" * 10
            assert os.preadv(direct, [page], 8192) == 1808
    page.close()


def test_program_in_use(fs):
    """Programs run from the mount, and are busy meanwhile."""
    subprocess.run(["cp", "/bin/sleep", fs.mnt / "sleep"], check=True)
    process = subprocess.Popen([fs.mnt / "sleep", "60"])
    try:
        with pytest.raises(OSError) as e:
            os.open(fs.mnt / "sleep", os.O_WRONLY)
        assert e.value.errno == errno.ETXTBSY
    finally:
        process.kill()
        process.wait()


def test_direct_given_up_and_taken_back(fs, transport):
    """F_SETFL takes O_DIRECT from an open file, and with it what it asks of offsets and sizes."""
    if transport == "passthrough":
        pytest.skip("the kernel's backing file stays as it was opened (docs/limits.md)")
    page = mmap.mmap(-1, 8192)
    page[:] = b"a" * 8192
    with opened(fs.mnt / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as fd:
        assert os.pwrite(fd, page, 0) == 8192
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        assert os.pwrite(fd, b"xyz", 100) == 3
        assert os.pread(fd, 5, 99) == b"axyza"
        with mmap.mmap(fd, 8192) as m:
            assert m[99:104] == b"axyza"
            m[0:3] = b"MMM"
            m.flush()
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        assert os.preadv(fd, [page], 0) == 8192
        assert page[:8192] == b"MMM" + b"a" * 97 + b"xyz" + b"a" * 8089
    assert (fs.src / "f").read_bytes() == page[:8192]
