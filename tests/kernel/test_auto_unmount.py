"""-o auto_unmount: the mount goes with its daemon, however that ends."""
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from _daemon import left_pages, mounted, run, until

pytestmark = pytest.mark.release_only("the Python around the compiled modules")


def watchers(daemon: int) -> list[int]:
    """Processes whose parent is the daemon."""
    return [p.pid for p in psutil.Process(daemon).children()]


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_killed(mount):
    fs = mount("-o", "auto_unmount")
    (watcher,) = watchers(fs.pid)
    (fs.mnt / "f").write_text("x")
    fs.expected_code = -signal.SIGKILL
    fs.signal(signal.SIGKILL)
    until(lambda: not mounted(fs.mnt), "unmounted")
    assert os.listdir(fs.mnt) == []
    until(lambda: gone(watcher), "the watcher's end")


def test_killed_while_in_use(mount):
    fs = mount("-o", "auto_unmount")
    fd = os.open(fs.mnt / "f", os.O_CREAT | os.O_WRONLY)
    fs.expected_code = -signal.SIGKILL
    fs.signal(signal.SIGKILL)
    until(lambda: not mounted(fs.mnt), "unmounted")
    with contextlib.suppress(OSError):
        os.close(fd)


def test_its_signals_are_not_the_watchers(mount):
    """What ends the daemon's process group does not end the watcher first."""
    fs = mount("-o", "auto_unmount")
    (watcher,) = watchers(fs.pid)
    assert os.getpgid(watcher) != os.getpgid(fs.pid)
    os.kill(watcher, signal.SIGTERM)
    time.sleep(0.1)
    assert not gone(watcher)
    fds = os.listdir(f"/proc/{watcher}/fd")
    assert len(fds) <= 4 and not any("fuse" in os.readlink(f"/proc/{watcher}/fd/{n}") for n in fds)


def test_regular_end(mount):
    """The watcher goes too, and takes away nothing that is mounted there afterwards."""
    fs = mount("-o", "auto_unmount")
    (watcher,) = watchers(fs.pid)
    fs.umount()
    assert fs.wait() == 0
    assert gone(watcher)


def test_somebody_elses_mount_stays(mount):
    fs = mount("-o", "auto_unmount")
    fs.umount()
    assert fs.wait() == 0
    subprocess.run(["mount", "-t", "tmpfs", "none", fs.mnt], check=True)
    time.sleep(0.1)
    assert mounted(fs.mnt)
    subprocess.run(["umount", fs.mnt], check=True)


def test_background(place, transport):
    """The command returns: nothing of it waits for the watcher."""
    for name in ("src", "mnt"):
        (place / name).mkdir()
    done = run("--transport", transport, "-o", "auto_unmount", place / "src", place / "mnt")
    assert done.returncode == 0 and not done.stderr
    mine = [p for p in Path("/proc").iterdir() if p.name.isdigit() and os.fsencode(place / "mnt") in cmdline(p)]
    assert len(mine) == 2
    daemon = next(int(p.name) for p in mine if watchers(int(p.name)))
    os.kill(daemon, signal.SIGKILL)
    until(lambda: not mounted(place / "mnt"), "unmounted")
    until(lambda: all(gone(int(p.name)) for p in mine), "both processes' end")
    assert not left_pages(daemon)


def cmdline(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
