"""Making what is not a plain file: devices, fifos, links, files without a name."""
import contextlib
import ctypes
import errno
import os
import resource
import stat
import struct
import subprocess
import threading
import time

import pytest
from _daemon import mounted
from conftest import KERNEL

LIBC = ctypes.CDLL(None, use_errno=True)


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


def node_of(fd: int) -> bytes:
    """The FUSE client's handle of an open file: nodeid and generation (AT_HANDLE_FID, Linux 6.6)."""
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    if LIBC.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount_id), 0x1000 | 0x200) < 0:
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return buffer.raw[8:8 + struct.unpack_from("=I", buffer.raw)[0]]


@pytest.mark.skipif(KERNEL < (6, 6), reason="no AT_HANDLE_FID")
def test_one_node_for_one_inode(mount):
    """Also while names are exchanged between a look at a name's attributes and one at its handle."""
    fs = mount("--entry-timeout", "0", "--attr-timeout", "0")
    names = [fs.src / n for n in ("a", "b")]
    for name in names:
        name.write_text(name.name)
    fds = [os.open(fs.mnt / name.name, os.O_RDONLY) for name in names]
    by_inode = {os.fstat(fd).st_ino: node_of(fd) for fd in fds}
    over = threading.Event()

    def exchange() -> None:
        while not over.is_set():
            LIBC.renameat2(-100, os.fsencode(names[0]), -100, os.fsencode(names[1]), 2)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            for name in names:
                path_fd = os.open(fs.mnt / name.name, os.O_PATH)
                try:
                    assert node_of(path_fd) == by_inode[os.fstat(path_fd).st_ino]
                finally:
                    os.close(path_fd)
    finally:
        over.set()
        thread.join()
        for fd in fds:
            os.close(fd)


def test_mounts_stay_when_fds_run_out(mount, place):
    """A look-up that fails for want of an fd is not the end of the name, nor of what is mounted on it."""
    fs = mount("--entry-timeout", "0", "--attr-timeout", "0")
    (fs.src / "dir").mkdir()
    (fs.src / "held").mkdir()
    for n in range(40):
        (fs.src / "held" / str(n)).touch()
    subprocess.run(["mount", "-t", "tmpfs", "test", fs.mnt / "dir"], check=True)
    files = []
    limit = resource.prlimit(fs.pid, resource.RLIMIT_NOFILE)
    try:
        most = len(os.listdir(f"/proc/{fs.pid}/fd")) + 20
        resource.prlimit(fs.pid, resource.RLIMIT_NOFILE, (most, limit[1]))
        refused = 0
        for n in range(40):
            try:
                files.append(open(fs.mnt / "held" / str(n), "r+"))
            except OSError:
                refused += 1
        for _ in range(20):
            with contextlib.suppress(OSError):
                os.stat(fs.mnt / "dir" / ".." / "none")
            with contextlib.suppress(OSError):
                os.stat(fs.mnt / "dir")
        assert refused
        assert mounted(fs.mnt / "dir")
    finally:
        resource.prlimit(fs.pid, resource.RLIMIT_NOFILE, limit)
        for f in files:
            f.close()
        subprocess.run(["umount", fs.mnt / "dir"], check=True)
