"""A small ext4 of a test's own, on a loop device: few inodes, and its journal's counters."""
from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def run(*words: str | os.PathLike[str]) -> str:
    done = subprocess.run([*map(os.fspath, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr.strip()}"
    return done.stdout


@contextmanager
def small_ext4(image: Path, where: Path, *options: str) -> Iterator[str]:
    """Mount it there; yields the device's name. options: of mkfs. Nothing is committed by a clock.

    It is detached at the end: a daemon that ends later still has it.
    """
    if not all(map(shutil.which, ("mkfs.ext4", "losetup"))) or not os.path.exists("/dev/loop-control"):
        pytest.skip("no mkfs.ext4 or loop devices here")
    with open(image, "wb") as f:
        f.truncate(8 << 20)
    run("mkfs.ext4", "-q", "-F", *options, image)
    device = run("losetup", "--find", "--show", image).strip()
    try:
        run("mount", "-o", "commit=900", device, where)
        try:
            yield Path(device).name
        finally:
            run("umount", "-l", where)
    finally:
        run("losetup", "--detach", device)


def commits(device: str) -> int:
    """How many transactions the journal has written."""
    if not os.path.exists("/proc/fs/jbd2"):
        pytest.skip("this kernel does not tell of journals")
    journal = next(p for p in Path("/proc/fs/jbd2").iterdir() if p.name.startswith(f"{device}-"))
    return int((journal / "info").read_text().split()[0])
