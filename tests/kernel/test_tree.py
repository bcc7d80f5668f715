"""Real trees copied in and out: content, modes, times, xattrs, links."""
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from _modes import DATA_TOO
from _tree import differences, tree

pytestmark = DATA_TOO

STDLIB = Path(sysconfig.get_paths()["stdlib"])
LEFT_OUT = ("site-packages", "test", "__pycache__")


@pytest.fixture(scope="module")
def real_tree(tmp_path_factory) -> Path:
    """The standard library of this Python, and some of each kind of thing that it has none of."""
    top = tmp_path_factory.mktemp("tree") / "real"
    shutil.copytree(STDLIB, top / "stdlib", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    odd = top / "odd"
    odd.mkdir(mode=0o750)
    (odd / "empty").touch()
    (odd / "sealed").write_bytes(b"x" * 5000)
    (odd / "sealed").chmod(0)
    (odd / "program").write_bytes(b"#!/bin/sh\n")
    (odd / "program").chmod(0o4755)
    (odd / "sticky").mkdir()
    (odd / "sticky").chmod(0o3777)
    os.link(odd / "sealed", odd / "sticky" / "another name")
    os.symlink("sealed", odd / "link")
    os.symlink("/no/such/place", odd / "dangling")
    os.mkfifo(odd / "fifo")
    os.mknod(odd / "null", 0o020666, os.makedev(1, 3))
    os.chown(odd / "empty", 12345, 54321)
    os.setxattr(odd / "empty", "user.greeting", b"hello\0world")
    os.setxattr(odd, "trusted.note", b"of a directory")
    os.utime(odd / "empty", ns=(1, 1_234_567_890_123_456_789))
    os.utime(odd / "program", ns=(0, -86_400_000_000_000))
    with open(odd / "sparse", "wb") as f:
        f.truncate(10 << 20)
        f.seek(5 << 20)
        f.write(b"island")
    return top


def test_cp(real_tree, fs, place):
    want = tree(real_tree)
    subprocess.run(["cp", "-a", real_tree, fs.mnt / "in"], check=True)
    assert not differences(want, tree(fs.mnt / "in"))
    assert not differences(want, tree(fs.src / "in"))
    subprocess.run(["cp", "-a", fs.mnt / "in", place / "out"], check=True)
    assert not differences(want, tree(place / "out"))


def test_tar(real_tree, fs, place):
    want = tree(real_tree)
    keep = ["--xattrs", "--xattrs-include=*", "--format=posix", "--sparse"]
    subprocess.run(["tar", "-C", real_tree, *keep, "-cf", fs.mnt / "a.tar", "."], check=True)
    (fs.mnt / "in").mkdir()
    subprocess.run(["tar", "-C", fs.mnt / "in", *keep, "-xpf", fs.mnt / "a.tar"], check=True)
    subprocess.run(["tar", "-C", fs.mnt / "in", *keep, "-df", fs.mnt / "a.tar"], check=True)
    assert not differences(want, tree(fs.mnt / "in"))
    (place / "out").mkdir()
    packed = subprocess.Popen(["tar", "-C", fs.mnt / "in", *keep, "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(["tar", "-C", place / "out", *keep, "-xp"], stdin=packed.stdout, check=True)
    packed.stdout.close()
    assert packed.wait() == 0
    assert not differences(want, tree(place / "out"))


def test_mount_tells_what_source_tells(real_tree, fs):
    subprocess.run(["cp", "-a", real_tree, fs.src / "in"], check=True)
    os.sync()  # delayed allocation changes st_blocks
    assert not differences(tree(fs.src / "in", exact=True), tree(fs.mnt / "in", exact=True))
    shutil.rmtree(fs.mnt / "in")
    assert os.listdir(fs.src) == []
