"""Which files that several write to with O_DIRECT are passed through."""
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from _daemon import Daemon, run, until

DIRECT = os.O_RDWR | os.O_DIRECT


@pytest.fixture
def page():
    with mmap.mmap(-1, 4096) as m:
        m[:] = os.urandom(4096)
        yield m


def passed(fs: Daemon, page: mmap.mmap, writers: int, flags: int = DIRECT) -> bool:
    """Open the file so many times at once, write and read by each. Did the kernel do that by itself?"""
    name = fs.mnt / "file"
    before = fs.stats()
    with ExitStack() as closed:
        fds = []
        for _ in range(writers):
            fds.append(os.open(name, flags))
            closed.callback(os.close, fds[-1])
        for n, fd in enumerate(fds):
            assert os.pwrite(fd, page, n * 4096) == 4096
        into = mmap.mmap(-1, 4096)
        for n, fd in enumerate(fds):
            assert os.preadv(fd, [into], n * 4096) == 4096
            assert into[:] == page[:]
    assert (fs.src / "file").read_bytes()[:4096 * writers] == page[:] * writers
    until(lambda: not fs.stats().header["handles"], "released")  # which comes after close(2)
    after = fs.stats()
    opens = after.total("opens_passthrough") - before.total("opens_passthrough")
    writes = after.ops().get("WRITE", 0) - before.ops().get("WRITE", 0)
    assert (opens, writes) in ((writers, 0), (0, writers))
    return not writes


@pytest.fixture
def fs(mount, transport) -> Daemon:
    found: Daemon = mount("--passthrough")
    if not found.stats().header["passthrough"]:
        pytest.skip("no kernel passthrough here")
    (found.src / "file").write_bytes(bytes(64 * 4096))
    return found


def test_known_from_the_last_time(fs, page):
    assert passed(fs, page, 1) and passed(fs, page, 1)
    assert passed(fs, page, 3)
    assert not passed(fs, page, 2)
    assert passed(fs, page, 1, os.O_RDWR)  # no direct writer: others' ways say nothing about it,
    assert not passed(fs, page, 1)         # nor it about them
    assert passed(fs, page, 1)
    assert passed(fs, page, 2, os.O_RDWR) and passed(fs, page, 1)


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as where:
        yield Path(where)


def test_memory_is_always_passed_through(memory, mount, transport, page):
    """It lets one write in at a time itself: requests would only be slower, before and after."""
    fs = mount("--passthrough", source=memory)
    if not fs.stats().header["passthrough"]:
        pytest.skip("no kernel passthrough here")
    (memory / "file").write_bytes(bytes(64 * 4096))
    for writers in (1, 3, 1, 2, 1):
        assert passed(fs, page, writers)


def test_one_after_the_other_is_not_at_a_time(fs, page):
    held = os.open(fs.mnt / "file", os.O_RDONLY)
    for _ in range(3):
        os.close(os.open(fs.mnt / "file", DIRECT))
        until(lambda: fs.stats().header["handles"] == 1, "released")
    os.close(held)
    assert passed(fs, page, 1)


def test_while_it_is_open_nothing_changes(fs, page):
    """The kernel would refuse to map a file that is open both ways."""
    assert passed(fs, page, 2)
    held = os.open(fs.mnt / "file", os.O_RDONLY)
    opened = fs.stats().total("opens_passthrough")
    with ExitStack() as closed:
        for _ in range(3):
            fd = os.open(fs.mnt / "file", DIRECT)
            closed.callback(os.close, fd)
            closed.enter_context(mmap.mmap(fd, 4096))
    assert fs.stats().total("opens_passthrough") == opened + 3
    os.close(held)


def test_switched(fs, page):
    fs.expected_lines += ["parallel_direct_writes is .*"] * 3
    assert run("set", fs.mnt, "parallel_direct_writes=on").returncode == 0
    assert not passed(fs, page, 1) and not passed(fs, page, 2) and passed(fs, page, 1, os.O_RDWR)
    assert run("set", fs.mnt, "parallel_direct_writes=off").returncode == 0
    assert passed(fs, page, 1) and passed(fs, page, 3) and passed(fs, page, 2)
    assert run("set", fs.mnt, "parallel_direct_writes=auto").returncode == 0
    assert not passed(fs, page, 2)
