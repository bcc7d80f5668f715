"""The pieces of a request's way: the trip through the ring, the parser, the handlers, the inode table."""

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
CALLS = 100_000
FUSE_LOOKUP = 1
FUSE_GETATTR = 3
FUSE_OPEN = 14
FUSE_READ = 15
FUSE_WRITE = 16
# (mask, scale, buffers) of a request's location: see _dialect.pyx
DIALECTS = {"per-entry": (0, 0, 1), "bufring": (0xFFFF, 65536, 16), "bufpool": (0xFFFFFFFF, 1, 16)}


@pytest.fixture
def core(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_server.ServerCore]:
    """A server of a directory with a file "f" that nobody asks."""
    (source / "f").write_bytes(bytes(4096))
    fd = os.open(source, os.O_RDONLY)
    monkeypatch.chdir("/proc/self/fd")  # as in a daemon: _fdpath.pxd
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


def request(opcode: int, nodeid: int, argument: bytes, payload: int) -> bytes:
    header = struct.pack("=IIQQIIIHH", 40 + len(argument) + payload, opcode, 9, nodeid, 0, 0, 1, 0, 0)
    return header.ljust(128, b"\0") + argument.ljust(128, b"\0") + struct.pack("=QQIIQ", 0, 9, payload, 0, 0)


@pytest.mark.parametrize("what", ["lookup", "getattr", "read", "write"])
def test_handler(what: str, core: _server.ServerCore, piece: Callable[..., None]) -> None:
    """What its thread does for a request, the source's system calls included: of a known name, of 4 KiB in memory."""
    with ThreadPoolExecutor(1) as thread:
        requests = thread.submit(_testing.Requests, core, 65536).result()

    def ask(opcode: int, nodeid: int, argument: bytes, payload: bytes = b"") -> int:
        assert requests.parse(request(opcode, nodeid, argument, len(payload)), payload)[0] == 0
        result, reply = requests.serve()
        assert result > 0
        return int(struct.unpack_from("=Q", reply)[0])

    nodeid = ask(FUSE_LOOKUP, 1, b"", b"f\0")
    fh = ask(FUSE_OPEN, nodeid, struct.pack("=II", os.O_RDWR, 0))
    data = struct.pack("=QQIIQII", fh, 0, 4096, 0, 0, os.O_RDWR, 0)
    slot, payload = {
        "lookup": (request(FUSE_LOOKUP, 1, b"", 2), b"f\0"),
        "getattr": (request(FUSE_GETATTR, nodeid, bytes(16), 0), b""),
        "read": (request(FUSE_READ, nodeid, data, 0), b""),
        "write": (request(FUSE_WRITE, nodeid, data, 4096), bytes(4096)),
    }[what]
    piece(f"handler of a {what}", lambda n: requests.serve_many(slot, payload, n), CALLS)
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
