"""Nothing leads out of the source, and the source is what it was at the start."""
import os
import subprocess

import pytest
from _daemon import until


@pytest.fixture
def outside(place):
    (place / "outside").mkdir()
    (place / "outside" / "secret").write_text("secret")
    return place / "outside"


def test_symlinks_are_the_callers(fs, outside):
    """A link that leads out is read by the caller, from the caller's own root; the daemon follows none."""
    os.symlink("../../outside", fs.src / "up")
    os.symlink(outside, fs.src / "away")
    assert os.readlink(fs.mnt / "up") == "../../outside"
    assert (fs.mnt / "away" / "secret").read_text() == "secret"
    with pytest.raises(OSError):
        os.open(fs.mnt / "away", os.O_RDONLY | os.O_NOFOLLOW)
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.chroot(fs.mnt)
            os.chdir("/")
            found = [path for path in ("/away/secret", "/up/secret") if os.path.exists(path)]
            os.write(write_end, repr(found).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as f:
        assert f.read() == b"[]"


def test_file_replaced_by_symlink(fs, outside):
    """A name that becomes a symlink beside the mount does not take an open for it out of the source."""
    (fs.mnt / "f").write_text("inside")
    assert (fs.mnt / "f").read_text() == "inside"
    os.unlink(fs.src / "f")
    os.symlink(outside / "secret", fs.src / "f")
    try:
        fd = os.open(fs.mnt / "f", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        pass  # the kernel has asked again, or the daemon knows it to be gone
    else:
        assert os.read(fd, 100) == b"inside"
        os.close(fd)
    until(lambda: os.path.islink(fs.mnt / "f"), "the symlink is seen", 3)


def test_dotdot_of_the_root(fs):
    fd = os.open(fs.mnt, os.O_RDONLY)
    try:
        assert os.stat("..", dir_fd=fd).st_ino == os.stat(fs.mnt.parent).st_ino
        assert os.stat("../..", dir_fd=fd).st_ino == os.stat(fs.mnt.parent.parent).st_ino
    finally:
        os.close(fd)


def test_source_renamed(fs, place):
    (fs.mnt / "f").write_text("before")
    os.rename(fs.src, place / "elsewhere")
    (place / "src").mkdir()
    (place / "src" / "other").touch()
    (fs.mnt / "g").write_text("after")
    assert sorted(os.listdir(fs.mnt)) == ["f", "g"]
    assert (place / "elsewhere" / "g").read_text() == "after"


def test_source_overmounted(fs):
    (fs.src / "f").write_text("below")
    subprocess.run(["mount", "-t", "tmpfs", "none", fs.src], check=True)
    try:
        (fs.src / "above").touch()
        assert os.listdir(fs.mnt) == ["f"]
        (fs.mnt / "g").write_text("below too")
        assert os.listdir(fs.src) == ["above"]
    finally:
        subprocess.run(["umount", fs.src], check=True)
    assert (fs.src / "g").read_text() == "below too"


def test_filesystem_below_the_source(fs):
    """What is mounted below the source is there, and an other filesystem still."""
    (fs.src / "sub").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", fs.src / "sub"], check=True)
    try:
        (fs.src / "sub" / "f").write_text("of another filesystem")
        assert (fs.mnt / "sub" / "f").read_text() == "of another filesystem"
        (fs.mnt / "sub" / "g").write_text("x")
        (fs.mnt / "here").touch()
        with pytest.raises(OSError) as e:
            os.rename(fs.mnt / "here", fs.mnt / "sub" / "here")
        assert e.value.strerror == os.strerror(18)  # EXDEV
        (fs.mnt / "sub" / "g").unlink()
    finally:
        subprocess.run(["umount", "-l", fs.src / "sub"], check=True)
