"""fsync(2) and fdatasync(2) come to the source as what they are: its journal tells."""
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from _loop import commits, small_ext4
from _modes import DATA_TOO

pytestmark = DATA_TOO


@pytest.fixture
def small(mount, place) -> Iterator[tuple[object, str]]:
    """(mount, the source's device)."""
    (place / "src").mkdir()
    with small_ext4(place / "image", place / "src") as device:
        yield mount(), device


def test_attributes_are_not_data(small):
    """fsync writes a change of the mode, fdatasync does not."""
    fs, device = small
    (fs.mnt / "f").write_bytes(b"x" * 4096)
    fd = os.open(fs.mnt / "f", os.O_RDWR)
    try:
        os.fsync(fd)
        before = commits(device)
        os.chmod(fs.mnt / "f", 0o700)
        os.fdatasync(fd)
        assert commits(device) == before, "fdatasync wrote more than data"
        os.fsync(fd)
        assert commits(device) > before, "fsync wrote nothing"
    finally:
        os.close(fd)
    assert fs.stats().ops()["FSYNC"] == 3


def test_names_are_synced(small):
    """fsync of a directory."""
    fs, device = small
    fd = os.open(fs.mnt, os.O_RDONLY)
    try:
        before = commits(device)
        os.rename(fs.src / "lost+found", fs.src / "found")
        os.fsync(fd)
        assert commits(device) > before
    finally:
        os.close(fd)
    assert fs.stats().ops()["FSYNCDIR"] == 1


def test_size_is_data(small):
    """fdatasync writes what it takes to find the data again."""
    fs, device = small
    fd = os.open(fs.mnt / "f", os.O_RDWR | os.O_CREAT)
    try:
        os.fsync(fd)
        before = commits(device)
        os.write(fd, b"x" * 10000)
        os.fdatasync(fd)
        assert commits(device) > before
    finally:
        os.close(fd)
