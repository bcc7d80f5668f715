"""Timestamps: set, now, omitted, and those of birth."""
import ctypes
import os
import subprocess
import time

import pytest
from _daemon import KERNEL

libc = ctypes.CDLL(None, use_errno=True)
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2


class Timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_int64), ("nsec", ctypes.c_int64)]


def utimensat(path, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    both = (Timespec * 2)(atime, mtime)
    if libc.utimensat(-100, os.fsencode(path), both, flags) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def both(fs, name: str) -> tuple[int, int]:
    st, there = os.lstat(fs.mnt / name), os.lstat(fs.src / name)
    assert (st.st_atime_ns, st.st_mtime_ns) == (there.st_atime_ns, there.st_mtime_ns)
    return st.st_atime_ns, st.st_mtime_ns


def test_set_now_omit(fs):
    (fs.mnt / "f").touch()
    utimensat(fs.mnt / "f", (1000, 1), (2000, 999_999_999))
    assert both(fs, "f") == (1000_000_000_001, 2000_999_999_999)
    utimensat(fs.mnt / "f", (0, OMIT), (3000, 5))
    assert both(fs, "f") == (1000_000_000_001, 3000_000_000_005)
    before = time.time_ns() - 20_000_000  # the kernel's clock ticks coarsely
    utimensat(fs.mnt / "f", (0, NOW), (0, OMIT))
    assert before <= both(fs, "f")[0] <= time.time_ns() and both(fs, "f")[1] == 3000_000_000_005
    ctime = os.stat(fs.mnt / "f").st_ctime_ns
    utimensat(fs.mnt / "f", (0, OMIT), (0, OMIT))
    assert os.stat(fs.mnt / "f").st_ctime_ns == ctime


@pytest.mark.parametrize("when", [-1_500_000_001, 0, 1 << 32, 4_000_000_000])
def test_far_times(fs, when):
    (fs.mnt / "f").touch()
    os.utime(fs.mnt / "f", ns=(when * 1_000_000_000 + 7, when * 1_000_000_000 + 9))
    assert both(fs, "f") == (when * 1_000_000_000 + 7, when * 1_000_000_000 + 9)


def test_symlink(fs):
    (fs.mnt / "f").touch()
    os.symlink("f", fs.mnt / "link")
    before = both(fs, "f")
    os.utime(fs.mnt / "link", ns=(5, 6), follow_symlinks=False)
    assert both(fs, "link")[1] == 6
    assert both(fs, "f") == before


def test_open_file(fs):
    with open(fs.mnt / "f", "w") as f:
        os.utime(f.fileno(), ns=(11, 12))
    assert both(fs, "f") == (11, 12)


def test_write_changes_mtime(fs):
    with open(fs.mnt / "f", "wb", buffering=0) as f:
        os.utime(f.fileno(), ns=(1, 1))
        assert os.fstat(f.fileno()).st_mtime_ns == 1
        before = time.time_ns() - 20_000_000
        f.write(b"x")
        assert os.fstat(f.fileno()).st_mtime_ns > before
    assert both(fs, "f")[1] > before


@pytest.mark.skipif(KERNEL < (6, 6), reason="FUSE carries no time of birth before Linux 6.6")
def test_birth(fs):
    """stat(1) asks statx(2)."""
    (fs.mnt / "f").touch()
    born = [subprocess.run(["stat", "-c", "%W %w", where / "f"], check=True, capture_output=True).stdout
            for where in (fs.src, fs.mnt)]
    if born[0].startswith(b"0"):
        pytest.skip("the source's filesystem keeps no time of birth")
    assert born[0] == born[1]
