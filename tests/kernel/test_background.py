"""In the background: the parent ends with 0 when the mount is usable, and not before."""
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest
from _daemon import detach, left_pages, mounted, run, until

from passthru import stats

pytestmark = pytest.mark.release_only("the Python around the compiled modules")


class Background:
    """A daemon that is nobody's child; its pid is in its status page."""

    def __init__(self, mnt: Path):
        self.mnt = mnt
        self.pid = int(stats.of(mnt).header["pid"])
        self.pidfd = os.pidfd_open(self.pid)

    def wait(self) -> None:
        """Until it has ended, or fail."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        assert poll.poll(10_000), "the daemon did not end within 10 seconds"

    def close(self) -> None:
        if mounted(self.mnt):
            detach(str(self.mnt))
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(10_000):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.close(self.pidfd)


@pytest.fixture
def ends(place):
    (place / "src").mkdir()
    (place / "src" / "f").write_text("here")
    (place / "mnt").mkdir()
    return place / "src", place / "mnt"


@pytest.fixture
def daemon(ends, transport):
    src, mnt = ends
    done = run("--transport", transport, src, mnt)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    daemon = Background(mnt)
    yield daemon
    daemon.close()


def test_usable_at_once(daemon, transport):
    assert (daemon.mnt / "f").read_text() == "here"
    assert stats.of(daemon.mnt).transport == transport
    assert stats.of(daemon.mnt).total(f"{transport}_requests") > 0
    subprocess.run(["umount", daemon.mnt], check=True)
    daemon.wait()
    assert not left_pages(daemon.pid)


def test_signal(daemon):
    signal.pidfd_send_signal(daemon.pidfd, signal.SIGTERM)
    daemon.wait()
    assert not mounted(daemon.mnt)


def test_detached_from_its_parent(daemon):
    """A session of its own, no terminal's files, no directory kept busy."""
    assert os.getsid(daemon.pid) == daemon.pid
    assert os.readlink(f"/proc/{daemon.pid}/cwd") == "/"
    for fd in (0, 1, 2):
        assert os.readlink(f"/proc/{daemon.pid}/fd/{fd}") == "/dev/null"
    subprocess.run(["umount", daemon.mnt], check=True)
    daemon.wait()


def test_relative_paths(ends, transport, monkeypatch):
    monkeypatch.chdir(ends[0].parent)
    done = run("--transport", transport, "src", "mnt")
    assert done.returncode == 0, done.stderr
    daemon = Background(ends[1])
    assert (ends[1] / "f").read_text() == "here"
    daemon.close()


@pytest.mark.parametrize("missing, code", [(0, 3), (1, 4)], ids=["source", "mountpoint"])
def test_error_reaches_the_caller(ends, transport, missing, code):
    ends[missing].rename(ends[missing].parent / "away")
    done = run("--transport", transport, *ends)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert not mounted(ends[1])


def test_error_with_an_odd_name(ends):
    """A name that is no UTF-8 does not get in the message's way."""
    done = run(os.fsencode(ends[0]) + b"/\xff\xfe", ends[1])
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1 and "No such file" in done.stderr


def test_parent_waits_no_longer_than_the_mount(ends, transport):
    """Whoever reads the command's output to its end is not kept waiting by the daemon."""
    done = run("--transport", transport, *ends, timeout=10)
    daemon = Background(ends[1])
    daemon.close()
    assert done.returncode == 0
    until(lambda: not os.path.exists(f"/proc/{daemon.pid}/exe"), "ended")
