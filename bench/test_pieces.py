"""The pieces of a request's way: the trip through the ring, the parser, the inode table."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import storm
from conftest import Place

from passthru import _server, _testing

TRIPS = 10_000
LOOPS = 2_000_000
FUSE_GETATTR = 3
# (mask, scale, buffers) of a request's location: see _dialect.pyx
DIALECTS = {"per-entry": (0, 0, 1), "bufring": (0xFFFF, 65536, 16), "bufpool": (0xFFFFFFFF, 1, 16)}


@pytest.fixture
def core(tmp_path: Path) -> Iterator[_server.ServerCore]:
    """A server of an empty directory that nobody asks."""
    fd = os.open(tmp_path, os.O_RDONLY)
    core = _server.ServerCore(
        fd, bytearray(_server.stats_size(8)), 8, 1, 16, payload_size=65536, max_write=65536, fixed_budget=0,
        identity=False, locks=False, xattr=False, writeback=False)
    yield core
    core.close()
    os.close(fd)


@pytest.fixture(scope="module")
def file(source: Path) -> Path:
    (source / "trips").mkdir()
    (source / "trips" / "data").write_bytes(os.urandom(16 << 20))
    return Path("trips")


@pytest.mark.parametrize("what", ["read", "write"])
def test_round_trip(
    what: str, mounts: Callable[[str], Place], file: Path, library: storm.Library, piece: Callable[..., None],
) -> None:
    """4 KiB, O_DIRECT, by a mount that does no I/O: the system call, the kernel, the ring, and back."""
    place = mounts("null")

    def trips(times: int) -> int:
        return library.run(what, place.path / file, 0, times, block=4096, direct=True)

    before = place.counters()["ring_requests"]
    piece(f"round trip of a {what}, no I/O", trips, TRIPS)
    assert place.counters()["ring_requests"] >= before + TRIPS


@pytest.mark.parametrize("dialect", DIALECTS)
def test_parser(dialect: str, core: _server.ServerCore, piece: Callable[..., None]) -> None:
    """From header slot and location to Request."""
    mask, scale, buffers = DIALECTS[dialect]
    # The one who makes it becomes a serving thread, without signals and with a umask of its own.
    with ThreadPoolExecutor(1) as thread:
        requests = thread.submit(_testing.Requests, core, 65536, buffers, mask, scale).result()
    slot = struct.pack("=IIQQIIIHH", 56, FUSE_GETATTR, 9, 1, 0, 0, 1, 0, 0).ljust(256, b"\0")
    slot += struct.pack("=QQIIQ", 0, 9, 4096, 0, 0)
    piece(f"header slot and payload of a request, {dialect}", lambda n: requests.parse_many(slot, n), LOOPS)
    requests.close()


@pytest.mark.parametrize("count", [1_000, 1_000_000])
def test_inodes(count: int, core: _server.ServerCore, piece: Callable[..., None]) -> None:
    inodes = _testing.Inodes(core, count)
    piece(f"inode by nodeid, {count:,} known", inodes.by_nodeid, LOOPS)
    inodes.close()


@pytest.mark.parametrize("count", [1_000, 1_000_000])
def test_inodes_by_stat(count: int, core: _server.ServerCore, piece: Callable[..., None]) -> None:
    """Hash, compare inode number, birth time and file handle, raise nlookup."""
    inodes = _testing.Inodes(core, count)
    piece(f"inode by statx and handle, {count:,} known", inodes.by_stat, LOOPS)
    inodes.close()
