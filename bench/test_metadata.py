"""Names, attributes, opening and listing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import storm
from conftest import ROUNDS, Place

EACH = 2000     # operations of a round
LISTED = 10_000


@pytest.fixture(scope="module")
def files(source: Path) -> Path:
    """Files enough for each round to meet new ones."""
    where = source / "files"
    where.mkdir()
    for n in range(EACH * (ROUNDS + 1)):
        (where / f"f{n:06}").touch()
    return Path("files")


@pytest.fixture(scope="module")
def listed(source: Path) -> Path:
    """A big directory."""
    where = source / "listed"
    where.mkdir()
    for n in range(LISTED):
        (where / f"f{n:06}").touch()
    return Path("listed")


def test_stat(place: Place, files: Path, library: storm.Library, measure: Callable[..., None]) -> None:
    """Of names that the mount has not seen."""
    measure("stat", lambda n: library.run("stat", place.path / files, n * EACH, EACH))


def test_negative(place: Place, files: Path, library: storm.Library, measure: Callable[..., None]) -> None:
    """Of names that there are not."""
    measure("stat, no such name", lambda n: library.run("negative", place.path / files, n, EACH))


def test_open(place: Place, files: Path, library: storm.Library, measure: Callable[..., None]) -> None:
    measure("open, close", lambda n: library.run("open", place.path / files, 0, 200, seconds=0.2))


def test_create(place: Place, source: Path, library: storm.Library, measure: Callable[..., None]) -> None:
    (source / "new").mkdir(exist_ok=True)
    measure("create, unlink", lambda n: library.run("create", place.path / "new", n, EACH))


def test_readdir(place: Place, listed: Path, library: storm.Library, measure: Callable[..., None]) -> None:
    """Entries of a directory of 10,000."""
    measure("readdir, entries", lambda n: library.run("readdir", place.path / listed, seconds=0.2))
