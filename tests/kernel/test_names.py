"""Names at the limits of what a name can be."""
import errno
import os

import pytest

NAMES = [
    b"x" * 255,
    bytes(range(1, 47)) + bytes(range(48, 256)),  # all but NUL and the slash
    b"\xff\xfe not UTF-8 \x80",
    "é" .encode() * 127,
    b"new\nline",
    b"back\\slash, comma",
    b"...",
    b" ",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_name(fs, name):
    path = os.path.join(os.fsencode(fs.mnt), name)
    there = os.path.join(os.fsencode(fs.src), name)
    with open(path, "wb") as f:
        f.write(name)
    assert os.listdir(os.fsencode(fs.mnt)) == [name] == os.listdir(os.fsencode(fs.src))
    with open(there, "rb") as f:
        assert f.read() == name
    os.rename(path, path[:-1] + b"2")
    os.rename(path[:-1] + b"2", path)
    os.symlink(name, path[:-1] + b"3")
    assert os.readlink(path[:-1] + b"3") == name
    os.unlink(path[:-1] + b"3")
    os.setxattr(path, "user.a", name[:200])
    assert os.getxattr(there, "user.a") == name[:200]
    os.unlink(path)
    os.mkdir(path)
    os.rmdir(path)
    assert os.listdir(fs.src) == []


def test_too_long(fs):
    with pytest.raises(OSError) as e:
        (fs.mnt / ("x" * 256)).touch()
    assert e.value.errno == errno.ENAMETOOLONG


def test_long_symlink(fs):
    target = "/".join(["t" * 200] * 20)
    os.symlink(target, fs.mnt / "link")
    assert os.readlink(fs.mnt / "link") == os.readlink(fs.src / "link") == target
    assert os.lstat(fs.mnt / "link").st_size == len(target)


def test_deep_path(fs):
    """Deeper than PATH_MAX, walked step by step."""
    depth = 300
    fd = os.open(fs.mnt, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 20, dir_fd=fd)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    assert os.listdir(fd) == ["bottom"]
    os.close(fd)
    found = sum(1 for _ in os.fwalk(fs.mnt))
    assert found == depth + 1
