"""A mountpoint inside the source, or the source itself, or above it."""
import os
import subprocess

import pytest


@pytest.fixture
def inside(mount, place):
    """The source with its own mount at a/mnt."""
    where = place / "src" / "a" / "mnt"
    where.mkdir(parents=True)
    (where / "below").write_text("lies under")
    (place / "src" / "f").write_text("file")
    return mount(mountpoint=where)


def test_lists_what_lies_under(inside):
    assert sorted(os.listdir(inside.mnt)) == ["a", "f"]
    assert os.listdir(inside.mnt / "a") == ["mnt"]
    assert os.listdir(inside.mnt / "a" / "mnt") == ["below"]
    assert (inside.mnt / "a" / "mnt" / "below").read_text() == "lies under"


def test_walks_end(inside):
    for walk in (["ls", "-lR"], ["find"], ["du", "-s"]):
        done = subprocess.run([*walk, inside.mnt], capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
    names = subprocess.run(["find", inside.src, "-name", "f"], capture_output=True, timeout=30, check=True)
    assert len(names.stdout.splitlines()) == 2


def test_writes_both_ways(inside):
    (inside.mnt / "a" / "mnt" / "new").write_text("under")
    (inside.mnt / "g").write_text("beside")
    assert (inside.src / "g").read_text() == "beside"
    assert sorted(os.listdir(inside.mnt / "a" / "mnt")) == ["below", "new"]
    os.rename(inside.mnt / "a" / "mnt" / "new", inside.mnt / "h")
    assert (inside.src / "h").read_text() == "under"
    for act in (
        lambda: os.rmdir(inside.mnt / "a" / "mnt"),
        lambda: os.rename(inside.mnt / "a" / "mnt", inside.mnt / "moved"),
        lambda: os.mkdir(inside.mnt / "a" / "mnt"),
    ):
        with pytest.raises(OSError):
            act()


def test_over_the_source_itself(mount, place):
    (place / "src").mkdir()
    (place / "src" / "f").write_text("x")
    fs = mount(mountpoint=place / "src")
    assert os.listdir(fs.mnt) == ["f"]
    (fs.mnt / "g").write_text("y")
    fs.umount()
    assert fs.wait() == 0
    assert sorted(os.listdir(place / "src")) == ["f", "g"]


def test_above_the_source(mount, place):
    (place / "top" / "src").mkdir(parents=True)
    (place / "top" / "src" / "f").write_text("x")
    fs = mount(source=place / "top" / "src", mountpoint=place / "top")
    assert os.listdir(place / "top") == ["f"]
    (place / "top" / "g").write_text("y")
    fs.umount()
    assert fs.wait() == 0
    assert sorted(os.listdir(place / "top" / "src")) == ["f", "g"]


def test_mount_of_a_mount(mount, place):
    """A mount is a source like any other."""
    lower = mount()
    upper = mount(source=lower.mnt, mountpoint=place / "upper")
    (upper.mnt / "f").write_bytes(b"x" * 3_000_000)
    assert (lower.src / "f").read_bytes() == b"x" * 3_000_000
    os.rename(upper.mnt / "f", upper.mnt / "g")
    assert os.listdir(lower.src) == ["g"]
    upper.umount()
    assert upper.wait() == 0
