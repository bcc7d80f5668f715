"""What waits for a slow source does not hold up what need not wait."""
import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from _daemon import Daemon, until

WAITERS = min(14, 4 * len(os.sched_getaffinity(0)) + 2)  # more than io_uring by default has workers for


def copy(fd: int) -> None:
    os.copy_file_range(fd, fd, 10, 0, 100)


ACTS = {
    "read": lambda fd: os.pread(fd, 4096, 8192),
    "write": lambda fd: os.pwrite(fd, b"x" * 100, 0),
    "fsync": os.fsync,
    "setattr": lambda fd: os.fchmod(fd, 0o640),
    "getxattr": lambda fd: os.getxattr(fd, "user.a"),
    "copy": copy,
}


@pytest.fixture
def slow(mount, place, transport):
    """(mount, stop, go): of the mount, what is below `slow` is served by a daemon that can be stopped."""
    (place / "src" / "slow").mkdir(parents=True)
    (place / "src" / "fast").write_bytes(b"f" * 100_000)
    (place / "far").mkdir()
    for n in range(WAITERS):
        (place / "far" / f"{n}").write_bytes(b"s" * 100_000)
        os.setxattr(place / "far" / f"{n}", "user.a", b"1")
    far: Daemon = mount(source=place / "far", mountpoint=place / "src" / "slow")
    # A waiting request keeps its payload buffer. Where entries share those there have to be enough for all waiters.
    near: Daemon = mount("--attr-timeout", "1000", "--entry-timeout", "1000", "--payload-buffers", "16")

    def stopped() -> None:
        os.kill(far.pid, signal.SIGSTOP)

    try:
        yield near, stopped, lambda: os.kill(far.pid, signal.SIGCONT)
    finally:
        os.kill(far.pid, signal.SIGCONT)


@pytest.mark.parametrize("act", ACTS)
def test_others_go_on(slow, act):
    fs, stop, go = slow
    with contextlib.ExitStack() as stack:
        def opened(path) -> int:
            return stack.enter_context(open(path, "r+b", buffering=0)).fileno()

        fds = [opened(fs.mnt / "slow" / f"{n}") for n in range(WAITERS)]
        fast = opened(fs.mnt / "fast")
        copy(fast)  # there is an idle pool thread now, one
        pool = stack.enter_context(ThreadPoolExecutor(WAITERS + 1))
        stop()
        try:
            start = threading.Barrier(WAITERS)
            waiting = [pool.submit(lambda fd=fd: (start.wait(), ACTS[act](fd))) for fd in fds]
            time.sleep(0.2)  # nothing tells that a request waits, but for its not being done

            doing = ""

            def quick() -> None:
                nonlocal doing
                for cpu in sorted(os.sched_getaffinity(0)):  # each has its queue
                    os.sched_setaffinity(0, {cpu})  # this thread only, which ends soon
                    doing = "read"
                    os.posix_fadvise(fast, 0, 0, os.POSIX_FADV_DONTNEED)
                    assert os.pread(fast, 10, 5000) == b"f" * 10
                    doing = "write"
                    os.pwrite(fast, b"g", 0)
                    doing = "fsync"
                    os.fsync(fast)
                    doing = "copy_file_range"
                    copy(fast)
                    doing = "create"
                    (fs.mnt / f"by {cpu}").touch()

            try:
                pool.submit(quick).result(timeout=5)
            except TimeoutError:
                raise AssertionError(f"{doing} of another file held up by {act}") from None
        finally:
            go()
        for w in waiting:
            w.result(timeout=20)


def test_parallel_fsync_and_reads(mount):
    fs = mount("--payload-buffers", "16")  # one for each of these, where entries share them
    (fs.src / "data").write_bytes(os.urandom(4 << 20))
    done = threading.Event()
    reads = 0
    end = time.monotonic() + 10

    def sync(n: int) -> None:
        """Until something else was done beside it."""
        with open(fs.mnt / f"f{n}", "wb", buffering=0) as f:
            rounds = 0
            while rounds < 8 or (reads <= 5 and time.monotonic() < end):
                f.write(b"x" * 200_000)
                os.fsync(f.fileno())
                rounds += 1

    def read() -> None:
        nonlocal reads
        with open(fs.mnt / "data", "rb", buffering=0) as f:
            while not done.is_set():
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert len(os.pread(f.fileno(), 1 << 20, reads % 4 << 20)) == 1 << 20
                reads += 1

    with ThreadPoolExecutor(9) as pool:
        reader = pool.submit(read)
        list(pool.map(sync, range(8)))
        done.set()
        reader.result()
    assert reads > 5


def mounted_files_open(fs) -> bool:
    """Has anybody files open there?"""
    s = fs.stats()
    return s.total("opens") > s.total("releases")


def test_stopped_caller(fs):
    """A caller that is stopped or killed in the middle keeps nothing from the others."""
    script = "while :; do dd if=/dev/zero of=$0/$$ bs=64k count=20 2>/dev/null; cat $0/$$ >/dev/null; done"
    callers = [subprocess.Popen(["sh", "-c", script, fs.mnt], start_new_session=True) for _ in range(4)]
    try:
        for _ in range(20):
            time.sleep(0.02)
            for c in callers[:2]:
                os.killpg(c.pid, signal.SIGSTOP)
            (fs.mnt / "mine").write_bytes(b"x" * 100_000)
            assert (fs.mnt / "mine").read_bytes() == b"x" * 100_000
            for c in callers[:2]:
                os.killpg(c.pid, signal.SIGCONT)
    finally:
        for c in callers:
            os.killpg(c.pid, signal.SIGKILL)
            c.wait()
        until(lambda: not mounted_files_open(fs), "the last of them gone")


def test_open_under_a_lease(mount):
    """open(2) waits until a lease is given up; each queue and reader serves others meanwhile."""
    fs = mount("--payload-buffers", "16")  # where entries share them, each that waits keeps one
    (fs.src / "leased").write_bytes(b"l")
    (fs.src / "fast").write_bytes(b"f")
    holder = os.open(fs.src / "leased", os.O_RDONLY)
    fcntl.fcntl(holder, fcntl.F_SETSIG, signal.SIGURG)  # ignored by default, as SIGIO is not
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        with ThreadPoolExecutor(WAITERS) as pool:
            opening = [pool.submit(os.open, fs.mnt / "leased", os.O_WRONLY) for _ in range(WAITERS)]
            until(lambda: fs.stats().ops().get("OPEN", 0) >= WAITERS, "asked for")
            for _ in range(20):
                assert (fs.mnt / "fast").read_bytes() == b"f"
            assert not any(f.done() for f in opening)
            with pytest.raises(BlockingIOError):
                os.open(fs.mnt / "leased", os.O_WRONLY | os.O_NONBLOCK)
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            for f in opening:
                os.close(f.result(10))
    finally:
        os.close(holder)


def test_big_files_go_beside_the_queues(fs):
    """Freeing much space is for the pool: truncation at open, removal, replacement, the last close."""
    size = 65 << 20

    def big(name: str) -> None:
        fd = os.open(fs.src / name, os.O_WRONLY | os.O_CREAT, 0o644)
        os.posix_fallocate(fd, 0, size)
        os.close(fd)

    for name in ("truncated", "removed", "replaced", "small"):
        big(name) if name != "small" else (fs.src / name).touch()
    acts = [
        lambda: os.close(os.open(fs.mnt / "truncated", os.O_WRONLY | os.O_TRUNC)),
        lambda: os.unlink(fs.mnt / "removed"),
        lambda: os.rename(fs.mnt / "small", fs.mnt / "replaced"),
    ]
    for act in acts:
        before = fs.stats().total("io_pool")
        act()
        assert fs.stats().total("io_pool") == before + 1
    assert sorted(os.listdir(fs.src)) == ["replaced", "truncated"]
    assert [os.stat(fs.src / n).st_size for n in ("replaced", "truncated")] == [0, 0]


FIFREEZE, FITHAW = 0xc0045877, 0xc0045878


@pytest.fixture
def freezable(mount, place):
    """A mount of a filesystem that can be frozen: writes wait in it then, and reads do not."""
    if shutil.which("mkfs.ext4") is None or not os.path.exists("/dev/loop-control"):
        pytest.skip("wants loop devices and mkfs.ext4 (e2fsprogs)")
    image = place / "image"
    with image.open("wb") as f:
        f.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    (place / "src").mkdir()
    subprocess.run(["mount", "-o", "loop", image, place / "src"], check=True)
    try:
        yield mount()
    finally:
        subprocess.run(["umount", "-l", place / "src"], check=True)


def copies_asked(fs) -> int:
    return sum(n for name, n in fs.stats().ops().items() if name.startswith("COPY_FILE_RANGE"))


def test_set_user_id_files_are_seen_beside_copies(freezable):
    """Copies, of whomever and however many, are not what a look at a program with rights of its own waits for, nor
    what else the source is asked."""
    fs = freezable
    (fs.src / "su").touch()
    (fs.src / "su").chmod(0o4755)
    (fs.src / "from").write_bytes(b"x" * 100_000)
    (fs.src / "cold").write_bytes(b"c" * 100_000)
    cold = os.open(fs.src / "cold", os.O_RDONLY)
    os.fsync(cold)
    os.posix_fadvise(cold, 0, 0, os.POSIX_FADV_DONTNEED)  # by /dev/fuse a thread of the pool reads it then
    os.close(cold)
    copies = 100
    source = os.open(fs.mnt / "from", os.O_RDONLY)
    targets = [os.open(fs.mnt / f"to{n}", os.O_RDWR | os.O_CREAT) for n in range(copies)]
    root = os.open(fs.src, os.O_RDONLY)
    fcntl.ioctl(root, FIFREEZE, 0)
    try:
        with ThreadPoolExecutor(copies + 2) as pool:
            done = [pool.submit(os.copy_file_range, source, fd, 100_000, 0, 0) for fd in targets]
            try:
                until(lambda: copies_asked(fs) >= copies, "all have come")
                assert pool.submit(os.stat, fs.mnt / "su").result(10).st_mode & stat.S_ISUID
                assert pool.submit((fs.mnt / "cold").read_bytes).result(10) == b"c" * 100_000
            finally:
                fcntl.ioctl(root, FITHAW, 0)
            assert [d.result() for d in done] == [100_000] * copies
    finally:
        for fd in (root, source, *targets):
            os.close(fd)


def stuck(pid: int) -> bool:
    """Has a process a thread that waits in the kernel whatever signal comes?"""
    return any(stat.read_text().rpartition(")")[2].split()[0] == "D"
               for stat in Path(f"/proc/{pid}/task").glob("*/stat"))


@pytest.mark.parametrize("transport", ["passthrough"], indirect=True)
def test_open_beside_a_change(freezable, transport):
    """Who would read by kernel passthrough what is being changed waits: it might keep the lock that is wanted."""
    fs = freezable
    (fs.src / "from").write_bytes(b"x" * 100_000)
    (fs.src / "to").touch()
    source, target = os.open(fs.mnt / "from", os.O_RDONLY), os.open(fs.mnt / "to", os.O_WRONLY)
    root = os.open(fs.src, os.O_RDONLY)
    fcntl.ioctl(root, FIFREEZE, 0)
    try:
        with ThreadPoolExecutor(2) as pool:
            try:
                copying = pool.submit(os.copy_file_range, source, target, 100_000, 0, 0)
                until(lambda: copies_asked(fs) and stuck(fs.pid), "the change is under way")
                before = fs.stats().ops()["OPEN"]
                opening = pool.submit(os.open, fs.mnt / "to", os.O_RDONLY)
                until(lambda: fs.stats().ops()["OPEN"] > before, "it has come")
                assert os.stat(fs.mnt / "from").st_size == 100_000
                time.sleep(0.2)
                assert not opening.done()
            finally:
                fcntl.ioctl(root, FITHAW, 0)
            assert copying.result(10) == 100_000
            os.close(opening.result(10))
    finally:
        for fd in (root, source, target):
            os.close(fd)


def there_and_back(path: Path) -> None:
    os.rename(path, path.with_name("other"))
    os.rename(path.with_name("other"), path)


CHANGES = {
    "mode": lambda path: os.chmod(path, 0o640), "size": lambda path: os.truncate(path, 10),
    "link": lambda path: os.link(path, path.with_name("link")),
    "unlink": lambda path: os.unlink(path.with_name("link too")), "rename": there_and_back}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("transport", ["passthrough"], indirect=True)
def test_open_after_a_change(fs, transport, name):
    """A change of an open file that is passed through ends: who opens it after that does not wait."""
    fd = os.open(fs.mnt / "f", os.O_WRONLY | os.O_CREAT)  # by no reader, who might keep its lock
    os.link(fs.src / "f", fs.src / "link too")
    try:
        CHANGES[name](fs.mnt / "f")
        assert subprocess.run(["cat", fs.mnt / "f"], stdout=subprocess.DEVNULL, timeout=20).returncode == 0
    finally:
        os.close(fd)
