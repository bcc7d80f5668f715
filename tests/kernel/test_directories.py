"""Large directories, and positions within them."""
import ctypes
import os

import pytest

COUNT = 10_000
libc = ctypes.CDLL(None, use_errno=True)


class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_uint16),
                ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]


libc.opendir.restype = ctypes.c_void_p
libc.opendir.argtypes = [ctypes.c_char_p]
libc.readdir64.restype = ctypes.POINTER(Dirent)
for name in ("readdir64", "rewinddir", "closedir", "telldir"):
    getattr(libc, name).argtypes = [ctypes.c_void_p]
libc.telldir.restype = ctypes.c_long
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


def rest(stream) -> list[bytes]:
    """The names from here to the end."""
    names = []
    while entry := libc.readdir64(stream):
        names.append(entry.contents.name)
    return names


@pytest.fixture
def stream(fs):
    """An open listing of a directory of 2,000 names."""
    for n in range(2000):
        (fs.src / f"name {n}").touch()
    stream = libc.opendir(os.fsencode(fs.mnt))
    assert stream
    yield stream
    assert libc.closedir(stream) == 0


def test_ten_thousand_files(fs):
    names = {f"file {n:05}" for n in range(COUNT)}
    for name in names:
        os.close(os.open(fs.mnt / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    assert set(os.listdir(fs.mnt)) == names
    assert len(os.listdir(fs.mnt)) == COUNT
    with os.scandir(fs.mnt) as entries:
        found = {e.name: (e.inode(), e.stat(follow_symlinks=False)) for e in entries}
    assert found.keys() == names
    assert all(ino == st.st_ino for ino, st in found.values())
    for name in names:
        os.unlink(fs.mnt / name)
    assert os.listdir(fs.mnt) == []
    assert os.listdir(fs.src) == []


def test_tell_and_seek(stream):
    start = libc.telldir(stream)
    positions, names = [], []
    while True:
        positions.append(libc.telldir(stream))
        entry = libc.readdir64(stream)
        if not entry:
            break
        names.append(entry.contents.name)
    assert len(names) == 2002  # "." and ".." too
    assert sorted(names)[:2] == [b".", b".."]
    for n in (1500, 3, 700, 701, 2001, 0):
        libc.seekdir(stream, positions[n])
        assert rest(stream) == names[n:]
    libc.seekdir(stream, start)
    assert rest(stream) == names


def test_rewind_sees_changes(fs, stream):
    assert len(rest(stream)) == 2002
    (fs.mnt / "one more").touch()
    libc.rewinddir(stream)
    assert b"one more" in rest(stream)


def test_removed_while_listed(fs):
    """Each name that stays is listed once, whatever is removed meanwhile."""
    for n in range(3000):
        (fs.mnt / f"{n}").touch()
    seen = []
    with os.scandir(fs.mnt) as entries:
        for entry in entries:
            seen.append(entry.name)
            if int(entry.name) % 2:
                os.unlink(entry.path)
    assert len(seen) == len(set(seen))
    assert {n for n in seen if not int(n) % 2} == {str(n) for n in range(0, 3000, 2)}
    assert set(os.listdir(fs.src)) == {str(n) for n in range(0, 3000, 2)}


def test_dot_and_dotdot(fs):
    (fs.mnt / "a" / "b").mkdir(parents=True)
    here = os.open(fs.mnt / "a" / "b", os.O_RDONLY)
    try:
        assert os.stat("..", dir_fd=here).st_ino == os.stat(fs.src / "a").st_ino
        assert os.stat(".", dir_fd=here).st_ino == os.stat(fs.src / "a" / "b").st_ino
        assert os.stat(here).st_nlink == 2
    finally:
        os.close(here)
    assert os.stat(fs.mnt / "a").st_nlink == 3
    assert os.stat(fs.mnt / "..").st_ino == os.stat(fs.mnt.parent).st_ino
