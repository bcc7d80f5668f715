"""Signals end the daemon cleanly."""
import contextlib
import os
import signal
import subprocess

import pytest
from _daemon import mounted, until

pytestmark = pytest.mark.release_only("the Python around the compiled modules")

STOPPERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", STOPPERS, ids=lambda s: s.name)
def test_ends(fs, number):
    (fs.mnt / "f").write_text("x")
    fs.signal(number)
    assert fs.wait() == 0
    assert not mounted(fs.mnt)
    assert (fs.src / "f").read_text() == "x"


@pytest.mark.parametrize("number", STOPPERS, ids=lambda s: s.name)
def test_file_open(fs, number):
    """The mount goes all the same, and who has files open there gets errors."""
    fs.expected_lines.append("busy: detached")
    fd = os.open(fs.mnt / "f", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(fd, b"written")
        fs.signal(number)
        assert fs.wait() == 0
        assert not mounted(fs.mnt)
        with pytest.raises(OSError):
            os.write(fd, b"lost")
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
    assert (fs.src / "f").read_bytes() == b"written"


def test_right_after_the_mount_is_seen(mount):
    """There is no moment at which a signal leaves the mount behind."""
    for _ in range(8):
        fs = mount(started=False)
        fs.launch()
        while not mounted(fs.mnt) and fs.process.poll() is None:
            pass  # until() would sleep too long
        fs.signal(signal.SIGTERM)
        code = fs.wait()
        assert not mounted(fs.mnt), f"the mount is left, exit code {code}"
        assert code == 0


def test_repeated(fs):
    for _ in range(20):
        if fs.process.poll() is None:
            fs.signal(signal.SIGTERM)
    assert fs.wait() == 0


LOADS = {"dd": "dd if=/dev/zero of=$0/$$ bs=64k count=100", "names": "ls -lR $0; touch $0/$$; rm $0/$$"}


@pytest.mark.parametrize("load", LOADS)
def test_under_load(fs, load):
    script = f"while [ -e /proc/{fs.pid}/exe ]; do {LOADS[load]}; done"
    users = [
        subprocess.Popen(["sh", "-c", script, fs.mnt], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(4)]
    until(lambda: sum(fs.stats().ops().values()) > 2000, "busy")
    fs.signal(signal.SIGTERM)
    code = fs.wait()
    for user in users:
        user.wait(20)
    fs.expected_lines += [line for line in fs.stderr().splitlines() if "busy: detached" in line]
    assert code == 0
    # Between the signal and the end some may have written below the mount already.
    assert not mounted(fs.mnt)


def test_sigkill(fs):
    """A killed daemon leaves a mount of which every use fails, and which umount removes."""
    (fs.mnt / "f").write_text("x")
    fs.process.kill()
    fs.expected_code = fs.wait()
    assert mounted(fs.mnt)
    with pytest.raises(OSError):
        os.listdir(fs.mnt)
    fs.umount()
    assert not mounted(fs.mnt)
