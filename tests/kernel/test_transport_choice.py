"""Which transport serves when the kernel's parameter says no, and who is told."""
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from _daemon import Daemon, mounted, run

from passthru import stats
from passthru.transport import PARAMETER, ring_parameter

pytestmark = pytest.mark.release_only("the Python around the compiled modules")


@pytest.fixture(autouse=True)
def has_ring(kernel_ready):
    if not ring_parameter():
        pytest.skip("this kernel has no FUSE over io_uring")


@pytest.fixture
def transport() -> str:
    """Not by each: these tests choose."""
    return "auto"


@contextmanager
def parameter(value: str) -> Iterator[None]:
    """Set the kernel's parameter for a moment."""
    before = ring_parameter()
    Path(PARAMETER).write_text(value)
    try:
        yield
    finally:
        Path(PARAMETER).write_text(before)


def served_by(fs: Daemon, transport: str) -> None:
    fs.transport = transport
    fs.served = True
    (fs.mnt / "f").touch()
    fs.check_transport()


def launched(fs: Daemon) -> Daemon:
    """Start without the fixture's own expectation of a transport."""
    fs.transport = "ring" if ring_parameter() == "Y" else "dev"
    return fs.start()


def test_ring_refused(place):
    (place / "src").mkdir()
    (place / "mnt").mkdir()
    with parameter("N"):
        done = run("-f", "--transport", "ring", place / "src", place / "mnt")
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert PARAMETER in done.stderr and "--enable-uring" in done.stderr
    assert not mounted(place / "mnt")


def test_ring_refused_in_the_background(place):
    (place / "src").mkdir()
    (place / "mnt").mkdir()
    with parameter("N"):
        done = run("--transport", "ring", place / "src", place / "mnt")
    assert done.returncode == 5 and PARAMETER in done.stderr
    assert not mounted(place / "mnt")


def test_auto_takes_dev_and_says_why(mount):
    fs = mount(started=False)
    with parameter("N"):
        launched(fs)
    served_by(fs, "dev")
    assert "/dev/fuse transport" in fs.stderr() and PARAMETER in fs.stderr()
    assert len(fs.stderr().splitlines()) == 1


def test_auto_takes_the_ring(mount):
    fs = mount(started=False)
    with parameter("Y"):
        launched(fs)
    served_by(fs, "ring")
    assert "ring transport" in fs.stderr()


@pytest.mark.parametrize("option", ["--enable-uring", "-oenable_uring"])
def test_enable(mount, option):
    fs = mount(option, started=False)
    with parameter("N"):
        fs.transport = "ring"
        fs.start()
        assert ring_parameter() == "Y"
    served_by(fs, "ring")


def test_dev_leaves_the_parameter(mount):
    fs = mount("--enable-uring", "-o", "transport=dev", started=False)
    at = fs.command.index("--transport")
    del fs.command[at:at + 2]
    with parameter("N"):
        fs.transport = "dev"
        fs.start()
        assert ring_parameter() == "N"
    assert stats.of(fs.mnt).transport == "dev"


@pytest.mark.parametrize("options, said", [
    (["--queue-depth", "1"], "x 1 entries"),
    (["--queue-depth", "64"], "x 64 entries"),
    (["-o", "queue_depth=3,max_write=64k"], "x 3 entries"),
])
def test_queue_depth(mount, options, said):
    fs = mount(*options, started=False)
    launched(fs)
    assert said in fs.stderr()
    (fs.mnt / "f").write_bytes(b"x" * 1_000_000)
    assert (fs.src / "f").read_bytes() == b"x" * 1_000_000


@pytest.mark.parametrize("threads", [1, 7])
def test_threads(mount, threads):
    fs = mount("--threads", str(threads), "-o", "debug", started=False)
    fs.command[fs.command.index("auto")] = fs.transport = "dev"
    fs.start()
    assert f"{threads} threads" in fs.stderr()
    (fs.mnt / "f").write_text("x")
    assert (fs.mnt / "f").read_text() == "x"
    fs.expected_lines += ["INIT.*offered", "INIT: taken"]
