"""Reads and writes of 4 KiB at mixed offsets, and of 1 MiB in order."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import storm
from conftest import Place

FILE = 64 << 20
ROWS = [
    (f"{what} {name} {mode}", what if size == 4096 else f"seq{what}", size, mode == "O_DIRECT")
    for what in ("read", "write") for name, size in (("4k", 4096), ("1M", 1 << 20))
    for mode in ("buffered", "O_DIRECT")
]


@pytest.fixture(scope="module")
def directory(source: Path) -> Path:
    """A file full of data."""
    (source / "io").mkdir()
    with open(source / "io/data", "wb") as f:
        for _ in range(FILE >> 20):
            f.write(os.urandom(1 << 20))
        os.fsync(f.fileno())
    return Path("io")


def forget(path: Path) -> None:
    """Empty the page cache of one file."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.mark.parametrize(("row", "mode", "block", "direct"), ROWS, ids=[r[0].replace(" ", "-") for r in ROWS])
def test_io(
    row: str, mode: str, block: int, direct: bool, place: Place, directory: Path, library: storm.Library,
    measure: Callable[..., None],
) -> None:
    where = place.path / directory
    if direct:
        try:
            os.close(os.open(where / "data", os.O_RDONLY | os.O_DIRECT))
        except OSError:
            pytest.skip("the source has no O_DIRECT")
    count = 5000 if block == 4096 else FILE // block

    def before(n: int) -> None:
        if place.daemon and not direct:  # the mount's page cache; the source's own stays as it is
            forget(where / "data")

    measure(row, lambda n: library.run(mode, where, n, count, block=block, direct=direct), before)
