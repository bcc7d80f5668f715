"""passthru.mount(): a mount of a program's own, and what becomes of it when either side ends."""
import errno
import gc
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from _daemon import ROOT, detach, forget_pages, left_pages, mounted, until

import passthru

pytestmark = pytest.mark.release_only("the Python around the compiled modules")


@pytest.fixture
def ends(place):
    (place / "src").mkdir()
    (place / "src" / "f").write_text("here")
    (place / "mnt").mkdir()
    gc.collect()  # what another test has left to it
    before = set(os.listdir("/proc/self/fd")), set(psutil.Process().children())
    yield place / "src", place / "mnt"
    left = mounted(place / "mnt")
    if left:
        detach(str(place / "mnt"))
    assert not left, "the mount is still there"
    assert set(os.listdir("/proc/self/fd")) == before[0], "file descriptors left"
    assert set(psutil.Process().children()) <= before[1], "a process, perhaps a zombie, is left"


def gone(pid: int) -> bool:
    """Has the daemon ended, and taken its page away? It may be a zombie that nobody waits for."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            state = f.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        state = "Z"
    return state == "Z" and not left_pages(pid)


def test_context(ends, transport):
    src, mnt = ends
    with passthru.mount(*ends, transport=transport, passthrough=False) as m:
        assert (mnt / "f").read_text() == "here"
        s = m.stats()
        assert s.transport == transport and s.ops()["OPEN"] == 1
        assert int(s.header["pid"]) == m.pid != os.getpid()
        assert (m.source, m.mountpoint) == (str(src), str(mnt)) and m.alive
        assert {"ring": "ring", "dev": "/dev/fuse"}[transport] + " transport" in m.summary
    assert not m.alive and m.wait() == 0 and gone(m.pid)
    with pytest.raises(LookupError):
        m.stats()
    m.unmount()  # once more is no error


def test_an_error_in_the_block(ends):
    with pytest.raises(ZeroDivisionError), passthru.mount(*ends):
        assert 1 / 0
    assert not mounted(ends[1])


def test_paths(ends, monkeypatch, transport):
    """Relative ones, and a link."""
    monkeypatch.chdir(ends[0].parent)
    os.symlink("mnt", "link")
    with passthru.mount("src", "link", transport=transport) as m:
        assert (m.source, m.mountpoint) == (str(ends[0]), str(ends[1]))
        assert (ends[1] / "f").read_text() == "here"


@pytest.mark.parametrize("change, error", [
    (lambda src, mnt: src.rename(src.parent / "away"), passthru.SourceError),
    (lambda src, mnt: mnt.rename(mnt.parent / "away"), passthru.MountpointError),
])
def test_errors(ends, change, error):
    change(*ends)
    with pytest.raises(error, match="No such file"):
        passthru.mount(*ends)


def test_mountpoint_taken(ends):
    with passthru.mount(*ends), pytest.raises(passthru.MountpointError, match="already a mount point"):
        passthru.mount(*ends)


def test_transport_refused(ends):
    with pytest.raises(passthru.UsageError, match="--transport dev"):
        passthru.mount(*ends, transport="dev", dialect="per-entry")


def test_busy(ends):
    """Files that are open: an error and no change, unless by force."""
    m = passthru.mount(*ends)
    fd = os.open(ends[1] / "f", os.O_RDONLY)
    with pytest.raises(OSError) as caught:
        m.unmount()
    assert caught.value.errno == errno.EBUSY
    assert m.alive and os.read(fd, 10) == b"here"
    m.unmount(force=True, timeout=20)
    assert not mounted(ends[1])
    with pytest.raises(OSError):
        os.close(fd)  # FLUSH gets no answer


def test_unmounted_by_another(ends):
    m = passthru.mount(*ends)
    with pytest.raises(TimeoutError):
        m.wait(0.1)
    subprocess.run(["umount", ends[1]], check=True)
    assert m.wait(20) == 0
    m.unmount()


@pytest.mark.parametrize("force", [False, True])
def test_killed(ends, force):
    """The dead mount is taken away, and the caller told."""
    m = passthru.mount(*ends)
    os.kill(m.pid, signal.SIGKILL)
    assert m.wait(20) == -signal.SIGKILL
    with pytest.raises(passthru.PassthruError, match="SIGKILL"):
        m.unmount(force=force)
    assert not mounted(ends[1])
    forget_pages(m.pid)


def test_two_at_once(ends):
    (ends[0].parent / "second").mkdir()
    with passthru.mount(*ends) as a, passthru.mount(ends[1], ends[0].parent / "second") as b:
        assert a.pid != b.pid and a.stats().header["pid"] == a.pid and b.stats().header["pid"] == b.pid
        assert (ends[0].parent / "second" / "f").read_text() == "here"


def test_the_thread_that_mounts_ends(ends):
    """A mount is the process's, not the thread's."""
    made = []
    thread = threading.Thread(target=lambda: made.append(passthru.mount(*ends)))
    thread.start()
    thread.join()
    until(lambda: not os.path.exists(f"/proc/self/task/{thread.native_id}"), "the thread has gone")
    with made[0] as m:
        with pytest.raises(TimeoutError):
            m.wait(0.5)
        assert (ends[1] / "f").read_text() == "here"


def test_signals_of_the_caller(ends):
    """Ctrl-C is the caller's affair, and signals that it blocks are not blocked in the daemon."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        with passthru.mount(*ends) as m:
            assert os.getsid(m.pid) == m.pid
            assert os.readlink(f"/proc/{m.pid}/cwd") == "/"
        assert m.wait(0) == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def test_fork(ends):
    """The mount is its maker's: a child made by fork(2) may look, and ends nothing."""
    with passthru.mount(*ends) as m:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with m:
                    m.stats()
                for call in (m.unmount, m.wait, m.detach):
                    with pytest.raises(RuntimeError, match="belongs to process"):
                        call()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert m.alive and (ends[1] / "f").read_text() == "here"


# A program that mounts, says the daemon's pid, and ends in some way. The package is on its own path only.
PROGRAM = """\
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import passthru
m = passthru.mount(sys.argv[2], sys.argv[3])
print(m.pid, flush=True)
"""
WAYS = {
    "end": "",
    "sys.exit": "sys.exit(3)",
    "exception": "1 / 0",
    "os._exit": "os._exit(0)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "forked": "if os.fork() == 0: __import__('time').sleep(30); os._exit(0)\nos._exit(0)",
    "file open": "f = open(sys.argv[3] + '/f')",
}


def program(ends, way: str) -> int:
    """Run it; the daemon's pid."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + way, str(ROOT), *map(str, ends)], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, timeout=60, cwd="/", check=False) if "fork" not in way else None
    if done is not None:
        return int(done.stdout)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + way, str(ROOT), *map(str, ends)], stdout=subprocess.PIPE,
        start_new_session=True, cwd="/")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.stdout.close()
    process.wait(20)
    try:
        until(lambda: not mounted(ends[1]), "unmounted, though a child of the maker still runs")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    return pid


@pytest.mark.parametrize("way", WAYS)
def test_end_of_the_program(ends, way):
    """However it ends, the mount does not outlive it."""
    pid = program(ends, WAYS[way])
    until(lambda: not mounted(ends[1]), "unmounted")
    until(lambda: gone(pid), "the daemon's end")


def test_detach(ends):
    """The mount stays when the block and the program end, and ends like any."""
    pid = program(ends, "with m: m.detach()\nos.kill(os.getpid(), signal.SIGKILL)")
    try:
        assert (ends[1] / "f").read_text() == "here"
        for fd in (0, 1, 2):
            assert os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/null"
    finally:
        subprocess.run(["umount", ends[1]], check=True)
    until(lambda: gone(pid), "the daemon's end")


def test_detach_too_late(ends):
    m = passthru.mount(*ends)
    subprocess.run(["umount", ends[1]], check=True)
    m.wait(20)
    with pytest.raises(passthru.PassthruError, match="has ended"):
        m.detach()
