"""The end of a mount in each dialect: nothing hangs, the kernel does not warn, what was pinned is given back.

They run by the dialect of PASSTHRU_TEST_RING, or by the best that the kernel has (docs/testing-kernels.md).
"""
from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _daemon import Daemon, detach, mounted, until, user_mode_linux
from test_dialects import FIO, MIB, PATTERN, drop_caches, opened, pinned_buffers, read_at, start_line

from passthru.capabilities import CAP_SYS_RESOURCE, capable
from passthru.transport import ring_parameter


@pytest.fixture
def transport() -> str:
    """By the ring only."""
    if not ring_parameter():
        pytest.skip("this kernel has no FUSE over io_uring")
    return "ring"


@pytest.fixture
def load(place) -> Iterator[Callable[[Daemon], None]]:
    """load(fs): readers, writers and name changers at work, that end by themselves when the mount does."""
    jobs: list[subprocess.Popen[bytes]] = []
    stop = place / "stop"
    names = "while [ ! -e $1 ]; do touch $0/n$2; mv $0/n$2 $0/m$2; ls -l $0; rm $0/m$2; done"

    def start(fs: Daemon) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        for n in range(2):
            jobs.append(subprocess.Popen(["sh", "-c", names, fs.mnt, stop, f"{n}"], **quiet))
        for rw, direct in (("randread", 1), ("randwrite", 1), ("randrw", 0)):
            jobs.append(subprocess.Popen(
                ["fio", f"--name={rw}{direct}", f"--directory={fs.mnt}", "--size=8m", f"--rw={rw}",
                 "--bsrange=4k-512k", "--ioengine=libaio", f"--direct={direct}", "--iodepth=32", "--time_based",
                 "--runtime=30", f"--aux-path={place}"], **quiet))

        def busy() -> bool:
            ops = fs.stats().ops()
            return ops.get("READ", 0) > 200 and ops.get("WRITE", 0) > 200

        until(busy, "busy", 30)

    yield start
    stop.touch()
    for job in jobs:
        job.terminate()  # fio ends its jobs
    for job in jobs:
        try:
            job.wait(30)
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait(10)


@FIO
def test_detached_under_load(mount, load):
    """umount -l, and a signal to the daemon while requests are out."""
    fs = mount()
    load(fs)
    fs.umount("-l")
    time.sleep(0.5)
    fs.signal(signal.SIGTERM)
    # Whatever is still open gets errors.
    fs.expected_code = fs.wait(30)
    assert fs.expected_code in (0, 1)
    fs.log.write_text(start_line(fs) + "\n")


@FIO
def test_signal_under_load(mount, load):
    fs = mount()
    load(fs)
    fs.signal(signal.SIGTERM)
    assert fs.wait(30) == 0
    assert not mounted(fs.mnt)
    fs.log.write_text(start_line(fs) + "\n")


@FIO
def test_killed_under_load(mount, load):
    """SIGKILL: users get errors, umount works, and the next daemon too."""
    fs = mount()
    load(fs)
    fs.signal(signal.SIGKILL)
    fs.expected_code = fs.wait(30)
    assert fs.expected_code == -signal.SIGKILL
    with pytest.raises(OSError):
        os.listdir(fs.mnt)
    detach(str(fs.mnt))
    again = mount()
    (again.mnt / "after").write_bytes(PATTERN)
    assert (again.src / "after").read_bytes() == PATTERN


@pytest.fixture
def abort(place) -> Iterator[Callable[[Daemon], None]]:
    """abort(fs): by the kernel's control file. The daemon ends and leaves no mount."""
    connections = place / "connections"
    connections.mkdir()
    if subprocess.run(["mount", "-t", "fusectl", "none", connections], capture_output=True, check=False).returncode:
        pytest.skip("no fusectl filesystem")

    def act(fs: Daemon) -> None:
        (connections / f"{os.minor(os.stat(fs.mnt).st_dev)}" / "abort").write_text("1")
        fs.expected_code = fs.wait(30)
        until(lambda: not mounted(fs.mnt), "unmounted")

    yield act
    subprocess.run(["umount", connections], check=True)


@FIO
def test_aborted_under_load(mount, abort, load):
    fs = mount()
    load(fs)
    abort(fs)
    fs.log.write_text(start_line(fs) + "\n")


def end(fs: Daemon, how: str, abort: Callable[[Daemon], None]) -> None:
    """Have the daemon end: by a signal (a mount in use is detached then), SIGKILL, or an abort."""
    if how == "abort":
        abort(fs)
        return
    fs.signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
    fs.expected_code = fs.wait(30)
    assert fs.expected_code == (-signal.SIGKILL if how == "kill" else 0)
    if how == "kill":
        detach(str(fs.mnt))
    assert not mounted(fs.mnt)


ENDS = pytest.mark.parametrize("how", ["signal", "kill", "abort"])


@ENDS
def test_requests_out(mount, abort, how):
    """Entries whose requests the daemon has not answered, for certain: their callers get errors, and nothing hangs."""
    fs = mount("--queue-depth=8")
    (fs.mnt / "lock").touch()
    waiter = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)"
    with open(fs.src / "lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiters = [subprocess.Popen([sys.executable, "-c", waiter, fs.mnt / "lock"], stderr=subprocess.DEVNULL)
                   for _ in range(5)]
        try:
            until(lambda: fs.stats().ops().get("SETLKW", 0) >= 5, "all wait", 60)
            end(fs, how, abort)
            assert [w.wait(30) for w in waiters] == [1] * 5
        finally:
            for w in waiters:
                w.kill()
                w.wait(10)
    fs.log.write_text(start_line(fs) + "\n")
    again = mount()
    (again.mnt / "after").write_bytes(PATTERN)
    assert (again.src / "after").read_bytes() == PATTERN


def pins() -> int:
    """Pages that are pinned now, by all processes."""
    lines = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(lines["nr_foll_pin_acquired"]) - int(lines["nr_foll_pin_released"])


@ENDS
def test_pins_are_given_back(mount, abort, how):
    """Payload buffers, header slots and what was registered for I/O, after requests of all kinds."""
    if not user_mode_linux():
        pytest.skip("here, other processes may pin memory meanwhile")
    before = -1
    while before != pins():  # rings of daemons that have ended go in the background
        before = pins()
        time.sleep(0.5)
    fs = mount("--payload-buffers=2")
    buffers, pinned = pinned_buffers(fs)
    if pinned:
        want = buffers * MIB // 4096 * int(fs.stats().header["queues"])
        until(lambda: pins() - before >= want, "pinned")  # the kernel sums up once a second
    (fs.mnt / "f").write_bytes(PATTERN)
    drop_caches()
    with opened(fs.mnt / "f", os.O_RDWR | os.O_DIRECT) as fd:
        assert read_at(fd, MIB, MIB) == PATTERN[MIB:2 * MIB]
    assert os.listdir(fs.mnt) == ["f"]
    end(fs, how, abort)
    until(lambda: pins() == before, "given back")
    fs.log.write_text(start_line(fs) + "\n")


# ---------------------------------------------------------- locked memory

def limited(fs: Daemon, size: int) -> Daemon:
    """Without CAP_IPC_LOCK, and with so many bytes of memory that may be locked."""
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if resource.RLIM_INFINITY != hard < size and not capable(CAP_SYS_RESOURCE):
        pytest.skip(f"no more than {hard} bytes may be locked here")
    fs.command = ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "prlimit", f"--memlock={size}:{size}",
                  *fs.command]
    fs.limited = True
    try:
        return fs.start()
    except AssertionError:
        if "io_uring: Cannot allocate memory" in fs.stderr():
            pytest.skip(f"this kernel counts the rings themselves as locked memory: more than {size} bytes")
        raise


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed (util-linux)")
@pytest.mark.parametrize("size", [0, 65536, 3 * MIB // 2, 3 * MIB, 6 * MIB])
def test_little_locked_memory(mount, size):
    """What may not be pinned is left unpinned, or made smaller: the mount works all the same."""
    fs = limited(mount("--zero-copy=auto", started=False), size)
    buffers, pinned = pinned_buffers(fs)
    if pinned and fs.stats().dialect != "per-entry":
        assert buffers * MIB <= size
    (fs.mnt / "f").write_bytes(PATTERN)
    assert (fs.src / "f").read_bytes() == PATTERN
    drop_caches()
    assert (fs.mnt / "f").read_bytes() == PATTERN
    with opened(fs.mnt / "f", os.O_RDONLY | os.O_DIRECT) as fd:
        assert read_at(fd, MIB, MIB) == PATTERN[MIB:2 * MIB]


@FIO
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed (util-linux)")
@pytest.mark.parametrize("end", ["umount", "kill"])
def test_locked_memory_is_given_back(mount, end):
    """One daemon after the other can pin as much as the first."""
    queues = len(os.sched_getaffinity(0))
    found = []
    for _ in range(3):
        fs = limited(mount("--payload-buffers=1", started=False), (2 * queues + 1) * MIB)
        found.append(start_line(fs).partition(": ")[2].partition(" on ")[2].partition(": ")[2])
        (fs.mnt / "f").write_bytes(PATTERN)
        with opened(fs.mnt / "f", os.O_RDONLY | os.O_DIRECT) as fd:
            assert read_at(fd, MIB, 0) == PATTERN[:MIB]
        if end == "umount":
            fs.umount()
            assert fs.wait() == 0
        else:
            fs.signal(signal.SIGKILL)
            fs.expected_code = fs.wait(30)
            detach(str(fs.mnt))
    assert found[0] == found[1] == found[2], found
