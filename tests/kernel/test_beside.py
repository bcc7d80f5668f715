"""Changes made in the source, beside the mount, are seen within the timeout."""
import os
import time

import pytest
from _daemon import until
from _loop import small_ext4
from _modes import DATA_TOO

pytestmark = DATA_TOO

TIMEOUT = 0.3


@pytest.fixture
def fs(mount):
    return mount("--attr-timeout", str(TIMEOUT), "--entry-timeout", str(TIMEOUT))


def soon(condition, what: str) -> None:
    until(condition, what, TIMEOUT + 1)


def test_created_and_removed(fs):
    assert not (fs.mnt / "f").exists()
    (fs.src / "f").write_text("x")
    soon((fs.mnt / "f").exists, "the new file is seen")
    os.unlink(fs.src / "f")
    soon(lambda: not (fs.mnt / "f").exists(), "the file is gone")


def test_renamed(fs):
    (fs.src / "d").mkdir()
    (fs.src / "d" / "f").write_text("x")
    assert (fs.mnt / "d" / "f").read_text() == "x"
    os.rename(fs.src / "d", fs.src / "e")
    soon(lambda: not (fs.mnt / "d").exists(), "the old name is gone")
    soon((fs.mnt / "e" / "f").exists, "the new name is seen")
    assert (fs.mnt / "e" / "f").read_text() == "x"


def test_content(fs):
    (fs.src / "f").write_text("old")
    assert (fs.mnt / "f").read_text() == "old"
    (fs.src / "f").write_text("new")  # as long as before
    soon(lambda: (fs.mnt / "f").read_text() == "new", "the new content is seen")
    with open(fs.mnt / "f") as f:
        assert f.read() == "new"
        (fs.src / "f").write_text("newer and longer")
        soon(lambda: os.pread(f.fileno(), 100, 0) == b"newer and longer", "seen by an open file")
    os.truncate(fs.src / "f", 2)
    soon(lambda: os.stat(fs.mnt / "f").st_size == 2, "the new size is seen")
    assert (fs.mnt / "f").read_text() == "ne"


def test_replaced(fs):
    (fs.src / "f").write_text("old")
    assert (fs.mnt / "f").read_text() == "old"
    ino = os.stat(fs.mnt / "f").st_ino
    (fs.src / "g").write_text("new")
    os.rename(fs.src / "g", fs.src / "f")
    soon(lambda: (fs.mnt / "f").read_text() == "new", "the new file is seen")
    assert os.stat(fs.mnt / "f").st_ino != ino


def test_kind_changed(fs):
    (fs.src / "x").write_text("file")
    assert (fs.mnt / "x").is_file()
    os.unlink(fs.src / "x")
    (fs.src / "x").mkdir()
    (fs.src / "x" / "y").touch()
    soon((fs.mnt / "x").is_dir, "now a directory")
    assert os.listdir(fs.mnt / "x") == ["y"]


def test_inode_number_reused(mount, place, transport):
    """A number that the source gives to another file does not make it the old one.

    Of a file that the mount has made and closed, the daemon has a handle and no fd, so the number is free when it is
    removed beside. Here inodes tell no birth: the handles alone differ.
    """
    if transport == "passthrough":
        pytest.skip("it keeps an fd of its files for a while")
    (place / "src").mkdir()
    with small_ext4(place / "image", place / "src", "-I", "128", "-N", "16"):
        fs = mount("--attr-timeout", "100", "--entry-timeout", "0")  # asked for attributes, it opens an fd
        for n in range(os.statvfs(fs.src).f_favail - 1):
            (fs.src / f"filler{n}").touch()  # so that there is but one number to give
        reused = 0
        for n in range(5):
            os.close(os.open(fs.mnt / "old", os.O_CREAT | os.O_WRONLY))
            until(lambda: not fs.stats().header["handles"], "closed")
            number = os.stat(fs.src / "old").st_ino
            os.unlink(fs.src / "old")
            (fs.src / "new").write_text(f"new content {n}")
            reused += os.stat(fs.src / "new").st_ino == number
            assert (fs.mnt / "new").read_text() == f"new content {n}"
            os.unlink(fs.mnt / "new")
            until(lambda: os.statvfs(fs.src).f_ffree, "forgotten")
    assert reused, "no number was given again: this tests nothing"


def test_mode_and_owner(fs):
    (fs.src / "f").touch()
    os.stat(fs.mnt / "f")
    os.chmod(fs.src / "f", 0o4711)
    os.chown(fs.src / "f", 1, 2)
    soon(lambda: os.stat(fs.mnt / "f")[:6] == os.stat(fs.src / "f")[:2] + os.stat(fs.mnt / "f")[2:3]
         + os.stat(fs.src / "f")[3:6], "the new mode and owner are seen")


def test_listing(fs):
    (fs.src / "a").touch()
    assert os.listdir(fs.mnt) == ["a"]
    (fs.src / "b").touch()
    assert sorted(os.listdir(fs.mnt)) == ["a", "b"]


def test_no_timeout_at_all(mount):
    fs = mount("--attr-timeout", "0", "--entry-timeout", "0")
    for n in range(50):
        (fs.src / "f").write_text(f"{n:04}")
        assert (fs.mnt / "f").read_text() == f"{n:04}"
        os.unlink(fs.src / "f")
        assert not (fs.mnt / "f").exists()


def test_written_while_known(mount):
    """What the mount writes is seen in the source at once, whatever the timeouts."""
    fs = mount("--attr-timeout", "100", "--entry-timeout", "100")
    start = time.monotonic()
    for n in range(50):
        (fs.mnt / "f").write_text(f"{n}")
        assert (fs.src / "f").read_text() == f"{n}"
    assert time.monotonic() - start < 30
