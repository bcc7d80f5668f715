"""How many requests it takes: what the kernel may keep, it is told to keep."""
import os
from collections.abc import Callable

import pytest
from _daemon import Daemon
from _modes import DATA_TOO

LONG = ("--attr-timeout=60", "--entry-timeout=60")


def requests(fs: Daemon, work: Callable[[], object]) -> dict[str, int]:
    """The requests that some work takes, by operation."""
    before = fs.stats().ops()
    work()
    return {name: n - before.get(name, 0) for name, n in fs.stats().ops().items() if n != before.get(name, 0)}


@DATA_TOO
def test_writes_ask_for_no_attributes(fs, transport):
    """Without HANDLE_KILLPRIV_V2 the kernel asks for security.capability at each write."""
    path = fs.mnt / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, b"x" * 4096, 0)
        asked = requests(fs, lambda: [os.pwrite(fd, b"x" * 4096, n * 4096) for n in range(100)])
        assert asked == ({} if transport == "passthrough" else {"WRITE": 100})
        asked = requests(fs, lambda: [os.pread(fd, 4096, n * 4096) for n in range(100)])
        assert sum(asked.values()) <= (0 if transport == "passthrough" else 100)
        assert "GETXATTR" not in asked
    finally:
        os.close(fd)


@pytest.fixture
def kept(mount):
    """A mount whose kernel may keep everything for long, and has the root's attributes."""
    fs = mount(*LONG)
    os.stat(fs.mnt)
    return fs


def test_known_names_and_attributes(kept):
    fs = kept
    (fs.src / "d").mkdir()
    for n in range(20):
        (fs.src / "d" / f"f{n}").write_bytes(b"x")
    paths = [fs.mnt / "d" / f"f{n}" for n in range(20)]
    first = requests(fs, lambda: [os.stat(p) for p in paths])
    assert first == {"LOOKUP": 21}, "one request for a name and its attributes"
    assert requests(fs, lambda: [os.stat(p) for p in paths]) == {}


def test_known_absence(kept):
    fs = kept
    assert requests(fs, lambda: os.path.exists(fs.mnt / "none")) == {"LOOKUP": 1}
    assert requests(fs, lambda: [os.path.exists(fs.mnt / "none") for _ in range(10)]) == {}


def test_symlink_is_read_once(kept):
    fs = kept
    os.symlink("somewhere", fs.src / "l")
    assert requests(fs, lambda: os.readlink(fs.mnt / "l")) == {"LOOKUP": 1, "READLINK": 1}
    assert requests(fs, lambda: [os.readlink(fs.mnt / "l") for _ in range(10)]) == {}


def test_listing_is_kept(mount):
    fs = mount(*LONG)
    for n in range(100):
        (fs.src / f"f{n}").touch()
    os.utime(fs.src, (1, 1))  # well before now: no later change can hide in the same tick
    os.listdir(fs.mnt)
    asked = requests(fs, lambda: os.listdir(fs.mnt))
    assert not {"READDIR", "READDIRPLUS"} & set(asked), asked


def test_listing_with_attributes(kept):
    """READDIRPLUS where attributes are used: a listing with them takes no LOOKUP for each name."""
    fs = kept
    for n in range(200):
        (fs.src / f"f{n}").touch()
    asked = requests(fs, lambda: [e.stat() for e in os.scandir(fs.mnt)])
    assert asked.get("LOOKUP", 0) + asked.get("GETATTR", 0) < 20, asked
    assert asked["READDIRPLUS"] >= 1


@pytest.mark.parametrize("locks, flushes", [("--local-locks", 0), ("-onolocal_locks", 10)])
def test_close(mount, locks, flushes):
    """Where no lock of the source can hang on it, close(2) waits for nothing."""
    fs = mount(locks, *LONG)
    (fs.src / "f").write_bytes(b"x")

    def work() -> None:
        for _ in range(10):
            os.close(os.open(fs.mnt / "f", os.O_RDONLY))

    work()
    asked = requests(fs, work)
    assert (asked.get("OPEN", 0), asked.get("FLUSH", 0), asked.get("GETATTR", 0)) == (10, flushes, 0)
