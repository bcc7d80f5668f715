"""rename(2) and renameat2(2)."""
import ctypes
import errno
import os

import pytest

libc = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def renameat2(a, b, flags: int) -> None:
    if libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), flags) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def two(fs):
    (fs.mnt / "a").write_text("A")
    (fs.mnt / "d").mkdir()
    (fs.mnt / "d" / "b").write_text("B")
    return fs.mnt / "a", fs.mnt / "d" / "b"


def test_replace(fs, two):
    a, b = two
    os.rename(a, b)
    assert b.read_text() == "A" and not a.exists()
    assert (fs.src / "d" / "b").read_text() == "A"


def test_noreplace(two):
    a, b = two
    with pytest.raises(FileExistsError):
        renameat2(a, b, NOREPLACE)
    b.unlink()
    renameat2(a, b, NOREPLACE)
    assert b.read_text() == "A" and not a.exists()


def test_exchange(fs, two):
    a, b = two
    renameat2(a, b, EXCHANGE)
    assert (a.read_text(), b.read_text()) == ("B", "A")
    renameat2(a, fs.mnt / "d", EXCHANGE)
    assert a.is_dir() and (fs.src / "d").is_file()


def test_whiteout(fs, two):
    a, b = two
    renameat2(a, b, WHITEOUT)
    assert b.read_text() == "A"
    assert os.lstat(fs.src / "a").st_rdev == 0 and a.is_char_device()


def test_unknown_flag(two):
    with pytest.raises(OSError) as e:
        renameat2(*two, 1 << 10)
    assert e.value.errno == errno.EINVAL


def test_directories(fs):
    (fs.mnt / "x" / "y").mkdir(parents=True)
    with pytest.raises(OSError) as e:
        os.rename(fs.mnt / "x", fs.mnt / "x" / "y" / "z")
    assert e.value.errno == errno.EINVAL
    (fs.mnt / "full").mkdir()
    (fs.mnt / "full" / "f").touch()
    with pytest.raises(OSError) as e:
        os.rename(fs.mnt / "x", fs.mnt / "full")
    assert e.value.errno == errno.ENOTEMPTY
    here = os.open(fs.mnt / "x" / "y", os.O_RDONLY)
    try:
        os.rename(fs.mnt / "x", fs.mnt / "full" / "x")
        (fs.mnt / "full" / "x" / "y" / "later").touch()
        assert os.listdir(here) == ["later"]
        assert os.stat("..", dir_fd=here).st_ino == os.stat(fs.src / "full" / "x").st_ino
    finally:
        os.close(here)


def test_open_file_follows(fs, two):
    a, b = two
    with open(a, "r+") as f:
        os.rename(a, b)
        f.write("more")
    assert (fs.src / "d" / "b").read_text() == "more"
