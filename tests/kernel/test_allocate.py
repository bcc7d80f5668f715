"""fallocate(2), truncate(2) and copy_file_range(2)."""
import ctypes
import errno
import os

import pytest
from _modes import DATA_TOO

pytestmark = DATA_TOO

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
KEEP_SIZE, PUNCH, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32
K = 4096


def fallocate(fd: int, mode: int, at: int, length: int) -> None:
    if libc.fallocate(fd, mode, at, length) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def f(fs):
    with open(fs.mnt / "f", "w+b", buffering=0) as f:
        f.write(b"".join(bytes([65 + n]) * K for n in range(8)))
        yield f


def test_grow(f):
    fallocate(f.fileno(), 0, 0, 100 * K)
    st = os.fstat(f.fileno())
    assert st.st_size == 100 * K and st.st_blocks * 512 >= 100 * K
    fallocate(f.fileno(), KEEP_SIZE, 0, 200 * K)
    assert os.fstat(f.fileno()).st_size == 100 * K
    assert os.pread(f.fileno(), K, 8 * K) == bytes(K)


def test_punch_hole(fs, f):
    before = os.fstat(f.fileno()).st_blocks
    fallocate(f.fileno(), PUNCH | KEEP_SIZE, 2 * K, 3 * K)
    assert os.pread(f.fileno(), 6 * K, 0) == b"A" * K + b"B" * K + bytes(3 * K) + b"F" * K
    assert os.stat(fs.mnt / "f").st_blocks < before
    assert (fs.src / "f").read_bytes()[2 * K:5 * K] == bytes(3 * K)


def test_zero_range(f, fs):
    with open(fs.src / "probe", "wb") as probe:
        try:
            fallocate(probe.fileno(), ZERO, 0, 50)
        except OSError as e:
            if e.errno == errno.EOPNOTSUPP:
                pytest.skip("the source's filesystem has no FALLOC_FL_ZERO_RANGE (tmpfs)")
            raise
    fallocate(f.fileno(), ZERO, 100, 50)
    assert os.pread(f.fileno(), 200, 0) == b"A" * 100 + bytes(50) + b"A" * 50


@pytest.mark.parametrize("mode", [COLLAPSE, INSERT])
def test_collapse_and_insert(f, mode):
    """FUSE has no words for these."""
    with pytest.raises(OSError) as e:
        fallocate(f.fileno(), mode, K, K)
    assert e.value.errno == errno.EOPNOTSUPP
    assert os.pread(f.fileno(), 2 * K, 0) == b"A" * K + b"B" * K


def test_truncate(fs):
    path = fs.mnt / "f"
    path.write_bytes(b"0123456789" * 1000)
    os.truncate(path, 5)
    assert path.read_bytes() == (fs.src / "f").read_bytes() == b"01234"
    os.truncate(path, 3 * K)
    assert path.read_bytes() == b"01234" + bytes(3 * K - 5)
    with open(path, "r+b", buffering=0) as f:
        f.truncate(2)
        assert os.fstat(f.fileno()).st_size == 2
        f.truncate(0)
        f.write(b"again")
    assert (fs.src / "f").read_bytes() == b"again"
    assert os.stat(path).st_size == 5
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert os.stat(path).st_size == os.stat(fs.src / "f").st_size == 0
    (fs.mnt / "d").mkdir()
    with pytest.raises(IsADirectoryError):
        os.truncate(fs.mnt / "d", 0)


def test_large_truncate(fs):
    """Freeing much takes its time, but gives the same."""
    with open(fs.mnt / "f", "wb", buffering=0) as f:
        fallocate(f.fileno(), 0, 0, 200 << 20)
        f.write(b"head")
    os.truncate(fs.mnt / "f", 4)
    assert (fs.mnt / "f").read_bytes() == b"head"


def test_copy_file_range(fs):
    data = os.urandom(3 << 20)
    (fs.mnt / "a").write_bytes(data)
    with open(fs.mnt / "a", "rb") as a, open(fs.mnt / "b", "w+b") as b:
        done = 0
        while done < len(data):
            n = os.copy_file_range(a.fileno(), b.fileno(), len(data) - done)
            assert n > 0
            done += n
        assert os.copy_file_range(a.fileno(), b.fileno(), 10) == 0
        assert os.pread(b.fileno(), len(data) + 1, 0) == data
        assert os.copy_file_range(a.fileno(), b.fileno(), 1000, 5, len(data) + 5000) == 1000
    assert fs.stats().ops().keys() & {"COPY_FILE_RANGE", "COPY_FILE_RANGE_64"}
    assert (fs.src / "b").read_bytes() == data + bytes(5000) + data[5:1005]


def test_copy_within_a_file(fs):
    with open(fs.mnt / "f", "w+b", buffering=0) as f:
        f.write(b"0123456789")
        assert os.copy_file_range(f.fileno(), f.fileno(), 5, 0, 5) == 5
        assert os.pread(f.fileno(), 20, 0) == b"0123401234"
        with pytest.raises(OSError) as e:
            os.copy_file_range(f.fileno(), f.fileno(), 5, 0, 2)
        assert e.value.errno == errno.EINVAL
