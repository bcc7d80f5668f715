"""How many requests it takes: what the kernel may keep, it is told to keep."""
import mmap
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


@pytest.fixture
def passing(mount, transport):
    """A mount that passes files through, whose kernel may keep everything for long."""
    fs = mount("--passthrough", *LONG)
    if not fs.stats().header["passthrough"]:
        pytest.skip("no kernel passthrough here")
    (fs.src / "f").write_bytes(b"x" * 4096)
    os.stat(fs.mnt / "f")
    return fs


def test_open_for_writing_that_writes_nothing(passing):
    """What was known before the open is still known after close(2)."""
    def work() -> None:
        os.close(os.open(passing.mnt / "f", os.O_RDWR))
        os.stat(passing.mnt / "f")

    assert "GETATTR" not in requests(passing, work)


def test_attributes_that_were_set_last(passing):
    """As archivers do it: what SETATTR has told is known after close(2)."""
    path = passing.mnt / "new"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 100)
    os.fchmod(fd, 0o640)
    os.utime(fd, (1, 2))
    os.stat(passing.mnt)  # a name was made there

    def work() -> None:
        os.close(fd)
        st = os.stat(path)
        assert (st.st_size, st.st_mtime, st.st_mode & 0o777) == (100, 2, 0o640)

    assert "GETATTR" not in requests(passing, work)


@pytest.mark.parametrize("when", ["opened", "set", "closed"])
def test_stores_to_a_mapping_are_seen_after_close(passing, when):
    """The kernel knows nothing of them, whatever it was told before them."""
    path = passing.mnt / "f"
    fd = os.open(path, os.O_RDWR)
    other = os.open(path, os.O_RDWR)
    if when == "set":
        os.utime(fd, (1, 2))
    elif when == "closed":  # which told of what is so far
        os.pwrite(other, b"y", 0)
        os.close(os.dup(fd))
    with mmap.mmap(fd, 4096) as m:
        before = os.stat(path).st_mtime_ns  # mmap(2) itself has the kernel ask for the access time
        m[0:1] = b"z"
    os.close(fd)
    assert os.stat(path).st_mtime_ns == os.stat(passing.src / "f").st_mtime_ns != before
    os.close(other)
