"""Making what is not a plain file: devices, fifos, links, files without a name."""
import errno
import os
import stat
import threading

import pytest


def link_open_file(fd: int, path) -> None:
    """linkat(2) with AT_SYMLINK_FOLLOW, which os.link() uses only if it is given a directory."""
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def test_fifo(fs):
    os.mkfifo(fs.mnt / "fifo", 0o640)
    assert stat.S_ISFIFO(os.lstat(fs.src / "fifo").st_mode)
    writer = threading.Thread(target=(fs.mnt / "fifo").write_text, args=("through",))
    writer.start()
    assert (fs.mnt / "fifo").read_text() == "through"
    writer.join()


@pytest.mark.parametrize("major, minor", [(1, 3), (259, 70000), (4095, 1048575)])
def test_device(fs, major, minor):
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        path = f"dev{kind}"
        os.mknod(fs.mnt / path, kind | 0o600, os.makedev(major, minor))
        for where in (fs.mnt, fs.src):
            st = os.lstat(where / path)
            assert stat.S_IFMT(st.st_mode) == kind
            assert (os.major(st.st_rdev), os.minor(st.st_rdev)) == (major, minor)


def test_null_device_works(fs):
    os.mknod(fs.mnt / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (fs.mnt / "null").write_bytes(b"gone")
    assert (fs.mnt / "null").read_bytes() == b""


def test_hard_links(fs):
    (fs.mnt / "a").write_text("one")
    os.link(fs.mnt / "a", fs.mnt / "b")
    os.symlink("a", fs.mnt / "s")
    os.link(fs.mnt / "s", fs.mnt / "s2", follow_symlinks=False)
    assert os.stat(fs.mnt / "a").st_nlink == os.stat(fs.mnt / "b").st_nlink == 2
    assert os.stat(fs.mnt / "a").st_ino == os.stat(fs.mnt / "b").st_ino
    assert os.readlink(fs.mnt / "s2") == "a" and os.lstat(fs.mnt / "s").st_nlink == 2
    (fs.mnt / "b").write_text("two, longer")
    assert (fs.mnt / "a").read_text() == "two, longer"
    os.unlink(fs.mnt / "a")
    assert os.stat(fs.mnt / "b").st_nlink == 1
    with pytest.raises(PermissionError):
        os.link(fs.mnt, fs.mnt / "loop")


def test_tmpfile(fs):
    fd = os.open(fs.mnt, os.O_TMPFILE | os.O_RDWR, 0o640)
    try:
        os.write(fd, b"nameless")
        assert os.listdir(fs.mnt) == []
        assert os.fstat(fd).st_nlink == 0
        link_open_file(fd, fs.mnt / "named")
        assert os.fstat(fd).st_nlink == 1
        os.write(fd, b", then named")
    finally:
        os.close(fd)
    assert (fs.src / "named").read_bytes() == b"nameless, then named"
    assert stat.S_IMODE(os.stat(fs.src / "named").st_mode) == 0o640


def test_tmpfile_excl_cannot_be_linked(fs):
    fd = os.open(fs.mnt, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    try:
        with pytest.raises(FileNotFoundError):
            link_open_file(fd, fs.mnt / "named")
    finally:
        os.close(fd)


def test_create_exclusive(fs):
    os.close(os.open(fs.mnt / "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with pytest.raises(FileExistsError):
        os.open(fs.mnt / "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    (fs.src / "beside").touch()
    with pytest.raises(FileExistsError):
        os.open(fs.mnt / "beside", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    (fs.mnt / "dir").mkdir()
    for flags, want in ((os.O_WRONLY, errno.EISDIR), (os.O_CREAT | os.O_RDWR, errno.EISDIR)):
        with pytest.raises(OSError) as e:
            os.open(fs.mnt / "dir", flags)
        assert e.value.errno == want


def test_missing_things(fs):
    (fs.mnt / "f").touch()
    (fs.mnt / "full").mkdir()
    (fs.mnt / "full" / "f").touch()
    for act, want in (
        (lambda: os.unlink(fs.mnt / "none"), errno.ENOENT),
        (lambda: os.rmdir(fs.mnt / "f"), errno.ENOTDIR),
        (lambda: os.rmdir(fs.mnt / "full"), errno.ENOTEMPTY),
        (lambda: os.unlink(fs.mnt / "full"), errno.EISDIR),
        (lambda: os.stat(fs.mnt / "f" / "g"), errno.ENOTDIR),
        (lambda: os.mkdir(fs.mnt / "f"), errno.EEXIST),
        (lambda: os.readlink(fs.mnt / "f"), errno.EINVAL),
        (lambda: os.listdir(fs.mnt / "f"), errno.ENOTDIR),
    ):
        with pytest.raises(OSError) as e:
            act()
        assert e.value.errno == want
