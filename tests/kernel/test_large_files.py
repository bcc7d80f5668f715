"""Files beyond 4 GiB, and holes."""
import os

from _modes import DATA_TOO

pytestmark = DATA_TOO

GIB = 1 << 30


def test_beyond_4_gib(fs):
    marks = [0, GIB - 3, 4 * GIB - 5, 4 * GIB + 4096, 6 * GIB + 12345]
    with open(fs.mnt / "large", "w+b", buffering=0) as f:
        for at in marks:
            os.pwrite(f.fileno(), b"mark %d" % at, at)
        for at in marks:
            assert os.pread(f.fileno(), len(b"mark %d" % at), at) == b"mark %d" % at
        assert os.fstat(f.fileno()).st_size == marks[-1] + len(b"mark %d" % marks[-1])
    st = os.stat(fs.mnt / "large")
    assert st.st_blocks * 512 < 1 << 20, "holes are holes"
    assert st.st_blocks == os.stat(fs.src / "large").st_blocks
    with open(fs.src / "large", "rb") as f:
        for at in marks:
            assert os.pread(f.fileno(), len(b"mark %d" % at), at) == b"mark %d" % at


def test_seek_hole_and_data(fs):
    with open(fs.mnt / "holes", "w+b", buffering=0) as f:
        fd = f.fileno()
        os.ftruncate(fd, 8 * GIB)
        os.pwrite(fd, b"x" * 4096, 5 * GIB)
        os.fsync(fd)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 5 * GIB
        assert os.lseek(fd, 5 * GIB, os.SEEK_HOLE) == 5 * GIB + 4096
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.lseek(fd, 0, os.SEEK_END) == 8 * GIB
        try:
            os.lseek(fd, 6 * GIB, os.SEEK_DATA)
            raise AssertionError("data where there is none")
        except OSError as e:
            assert e.strerror == os.strerror(6)  # ENXIO
        assert os.pread(fd, 4096, 6 * GIB) == bytes(4096)


def test_large_requests(fs):
    """What is larger than a request comes in parts and in order."""
    data = os.urandom(1 << 20) * 9 + b"end"
    (fs.mnt / "f").write_bytes(data)
    assert (fs.src / "f").read_bytes() == data
    fd = os.open(fs.mnt / "f", os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, len(data) + 100, 0) == data
        assert os.pread(fd, 100, len(data)) == b""
    finally:
        os.close(fd)
