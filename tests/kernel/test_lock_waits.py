"""Waits for locks: many of them, ended by signals, by closes, and by the limit."""
from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from _daemon import until

pytestmark = pytest.mark.release_only("takes long on a build with sanitizers")

FLOCK = struct.Struct("hhqqi4x")
OFD_SETLK, OFD_SETLKW = 37, 38

# Waits for a lock on CPU 0 when it is let go; its end tells how that went.
WAITER = """\
import fcntl, os, sys
path, kind, ready, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.sched_setaffinity(0, {0})
for _ in range(count):
    if os.fork():
        continue
    f = os.open(path, os.O_RDWR)
    os.read(ready, 1)
    lock = fcntl.flock if kind == "flock" else fcntl.lockf
    try:
        lock(f, fcntl.LOCK_EX)
        lock(f, fcntl.LOCK_UN)
    except OSError as e:
        os._exit(e.errno)
    os._exit(0)
print("made", flush=True)
for _ in range(count):
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def held(path: Path, kind: str) -> Callable[[], None]:
    """Take a lock; what gives it up."""
    lock = fcntl.flock if kind == "flock" else fcntl.lockf
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    lock(fd, fcntl.LOCK_EX)

    def give_up() -> None:
        try:
            lock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    return give_up


def waiting(path: Path) -> int:
    """Waits for locks of a file of the source, in the source."""
    number = f":{os.stat(path).st_ino} "
    with open("/proc/locks", encoding="ascii") as f:
        return sum("->" in line and number in line for line in f)


def threads(fs) -> int:
    return len(os.listdir(f"/proc/{fs.pid}/task"))


def on_cpu_0(act: Callable[[], object]) -> object:
    """The result of an act on that CPU, which takes no longer than it may."""
    def bound() -> object:
        os.sched_setaffinity(0, {0})
        return act()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(bound).result(timeout=10)


@contextmanager
def waiters(path: Path, kind: str, count: int) -> Iterator[Callable[[], list[int]]]:
    """That many processes of one CPU ask for the lock at once; yields what collects their exit codes."""
    ready, go = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", WAITER, path, kind, str(ready), str(count)], stdout=subprocess.PIPE, text=True,
        pass_fds=(ready,), start_new_session=True)
    try:
        assert process.stdout.readline() == "made\n"
        os.write(go, b"x" * count)
        yield lambda: [int(process.stdout.readline()) for _ in range(count)]
    finally:
        os.close(ready)
        os.close(go)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("kind", ["flock", "lockf"])
@pytest.mark.parametrize("depth, count", [(64, 150), (4, 150), (1, 30)])
def test_many_waiters(mount, transport, kind, depth, count):
    """More than a queue has entries, all at once: others of that CPU are served, and the unlock gets through."""
    if transport == "dev" and depth != 64:
        pytest.skip("of the ring")
    fs = mount("--queue-depth", str(depth))
    (fs.src / "other").write_bytes(b"o")
    before = len(os.listdir(f"/proc/{fs.pid}/fd"))
    give_up = held(fs.mnt / "lock", kind)
    with waiters(fs.mnt / "lock", kind, count) as codes:
        until(lambda: waiting(fs.src / "lock") >= count, "waited for")
        assert on_cpu_0(lambda: (fs.mnt / "other").read_bytes()) == b"o"
        on_cpu_0(give_up)
        assert codes() == [0] * count
    until(lambda: len(os.listdir(f"/proc/{fs.pid}/fd")) <= before + 4, "fds given back")
    if (kind, depth) == ("flock", 64):
        until(lambda: threads(fs) < 20, "threads ended", 40)


def test_waiters_at_the_end(mount, transport):
    """An unmount with waiters there ends them, and the daemon."""
    fs = mount()
    give_up = held(fs.mnt / "lock", "flock")
    with waiters(fs.mnt / "lock", "flock", 100):
        until(lambda: waiting(fs.src / "lock") >= 100, "waited for")
        fs.expected_lines.append("is busy: detached")
        fs.signal(signal.SIGTERM)
        fs.wait(10)
    with contextlib.suppress(OSError):
        give_up()


@pytest.mark.timeout(180)
def test_too_many(fs, transport):
    """ENOLCK at the limit; unlocks get through, and those who waited get the lock."""
    give_up = held(fs.mnt / "lock", "flock")
    threading.stack_size(128 * 1024)
    results: list[int] = []

    def wait() -> None:
        os.sched_setaffinity(0, {0})
        fd = os.open(fs.mnt / "lock", os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            results.append(0)
        except OSError as e:
            results.append(e.errno)
        os.close(fd)

    limit = 960 if transport == "ring" else 1024
    many = [threading.Thread(target=wait) for _ in range(limit + 20)]
    threading.stack_size(0)
    for t in many:
        t.start()
    until(lambda: len(results) >= 20, "refused", 60)
    until(lambda: waiting(fs.src / "lock") >= limit, "waited for", 60)
    assert results == [errno.ENOLCK] * 20
    on_cpu_0(lambda: os.stat(fs.mnt))
    on_cpu_0(give_up)
    for t in many:
        t.join(60)
    assert sorted(results) == [0] * limit + [errno.ENOLCK] * 20


# ------------------------------------------------------------- close(2)

TRY = """\
import fcntl, os, sys
f = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("got")
except BlockingIOError:
    print("refused")
"""


def tried(path: Path) -> str:
    """What another process gets that asks for the lock."""
    return subprocess.run([sys.executable, "-c", TRY, path], capture_output=True, text=True, check=True).stdout.strip()


HOLD = """\
import fcntl, os, sys
f = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(f, fcntl.LOCK_EX, 10)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("by", ["same", "other", "closed"])
def test_close_beside_a_wait(fs, by):
    """Another fd of the file is closed while a thread waits: what it then gets is a lock, until the right close."""
    path = fs.mnt / "f"
    path.write_bytes(b"x" * 10)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    first = os.open(path, os.O_RDWR)
    fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 100)  # by another handle than that which waits
    fd = first if by == "same" else os.open(path, os.O_RDWR)
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(fcntl.lockf, fd, fcntl.LOCK_EX)
        until(lambda: waiting(fs.src / "f") >= 1, "waited for")
        if by == "closed":
            os.close(first)
        else:
            os.close(os.open(path, os.O_RDONLY))
        time.sleep(0.1)  # the RELEASE of that is not waited for
        assert not got.done()
        holder.stdin.close()
        holder.wait()
        got.result(10)
    assert tried(path) == "refused"
    os.close(fd)
    assert tried(path) == "got"
    if by == "other":
        os.close(first)
    holder.stdout.close()


def test_fd_closed_under_its_wait(fs):
    """The very fd that is waited by is closed: as in the source, no lock stays."""
    path = fs.mnt / "f"
    path.write_bytes(b"x" * 10)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    fd = os.open(path, os.O_RDWR)

    def wait() -> None:
        with pytest.raises(OSError, match="Bad file"):
            fcntl.lockf(fd, fcntl.LOCK_EX)

    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(wait)
        until(lambda: waiting(fs.src / "f") >= 1, "waited for")
        os.close(fd)
        holder.stdin.close()
        holder.wait()
        got.result(10)
    holder.stdout.close()
    assert tried(path) == "got"


@pytest.mark.parametrize("rounds", [200])
def test_flock_of_the_exited(fs, rounds):
    """A holder that has exited is in nobody's way, though its RELEASE is not waited for."""
    path = fs.mnt / "lock"
    path.touch()
    fd = os.open(path, os.O_RDWR)
    refused = 0
    cpus = sorted(os.sched_getaffinity(0))
    try:
        for _ in range(rounds):
            pid = os.fork()
            if not pid:
                os.sched_setaffinity(0, {cpus[0]})
                fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX)
                os._exit(0)
            os.sched_setaffinity(0, {cpus[-1]})
            os.waitpid(pid, 0)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refused += 1
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.sched_setaffinity(0, cpus)
        os.close(fd)
    assert refused <= rounds // 100


def test_flock_that_is_held_is_refused_at_once(fs):
    with open(fs.mnt / "lock", "w") as f, open(fs.mnt / "lock") as g:
        fcntl.flock(f, fcntl.LOCK_EX)
        start = time.monotonic()
        for _ in range(50):
            with pytest.raises(BlockingIOError):
                fcntl.flock(g, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert time.monotonic() - start < 2


# -------------------------------------------------------------- signals

class Alarm(Exception):
    pass


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_interrupts(fs, kind):
    """A signal ends a wait, whether it comes before, with, or long after the request."""
    give_up = held(fs.mnt / "lock", "flock" if kind == "flock" else "lockf")
    script = f"""
import fcntl, os, random, signal, sys, time
class Alarm(Exception): pass
def alarm(*_): raise Alarm
signal.signal(signal.SIGALRM, alarm)
lock = fcntl.{kind}
late = 0
for n in range(150):
    f = os.open(sys.argv[1], os.O_RDWR)
    start = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, random.choice((0.001, 0.003, 0.02)) + random.random() / 1000, 1)
        try:
            lock(f, fcntl.LOCK_EX)
            print("got it")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:
        pass
    late += time.monotonic() - start > 0.9
    os.close(f)
print("end", late)
"""
    done = subprocess.run([sys.executable, "-c", script, fs.mnt / "lock"], capture_output=True, text=True, timeout=60)
    # A signal just before the system call ends nothing, also in the source; the next one does.
    assert done.stdout.startswith("end ") and int(done.stdout[4:]) < 5, done.stdout + done.stderr
    give_up()
    assert waiting(fs.src / "lock") == 0


def test_killed_waiters_leave_nothing(fs):
    give_up = held(fs.mnt / "lock", "lockf")
    for _ in range(5):
        with waiters(fs.mnt / "lock", "lockf", 20):
            time.sleep(random.random() / 20)
    until(lambda: waiting(fs.src / "lock") == 0, "ended")
    give_up()
    assert tried(fs.mnt / "lock") == "got"


# ------------------------------------------------------------- deadlocks

@pytest.mark.parametrize("where", ["mnt", "src"])
def test_posix_and_ofd_of_one_process(fs, where):
    """The kernel finds no deadlock there: an open file description is no process."""
    path = getattr(fs, where) / "f"
    path.write_bytes(b"x" * 100)
    script = f"""
import fcntl, os, struct, sys, threading, time
flock = struct.Struct("hhqqi4x")
a, b = (os.open(sys.argv[1], os.O_RDWR) for _ in range(2))
def ofd(cmd, at): fcntl.fcntl(b, cmd, flock.pack(fcntl.F_WRLCK, 0, at, 1, 0))
said = []
def run(act, *args):
    try: act(*args); said.append("got")
    except OSError as e: said.append(e.strerror)
fcntl.lockf(a, fcntl.LOCK_EX, 1, 50)
ofd({OFD_SETLK}, 60)
threading.Thread(target=run, args=(fcntl.lockf, a, fcntl.LOCK_EX, 1, 60), daemon=True).start()
time.sleep(0.2)
threading.Thread(target=run, args=(ofd, {OFD_SETLKW}, 50), daemon=True).start()
time.sleep(0.7)
print(said, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_append_only_file(fs):
    """Write locks as well, on a file that can be opened for appending only."""
    path = fs.src / "log"
    path.touch()
    if subprocess.run(["chattr", "+a", path], capture_output=True, check=False).returncode:
        pytest.skip("the source knows no append-only files")
    try:
        with open(fs.mnt / "log", "ab") as f:
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(f, fcntl.LOCK_UN)
    finally:
        subprocess.run(["chattr", "-a", path], check=True)


# ------------------------------------------------- what hangs in a source

LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def hung(place) -> Iterator[Path]:
    """A directory in which a FUSE server answers for the root only, and no look-up."""
    where = place / "src" / "remote"
    where.mkdir(parents=True)
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    assert LIBC.mount(b"hung", os.fsencode(where), b"fuse", 6, options) == 0, os.strerror(ctypes.get_errno())

    def serve() -> None:
        while True:
            try:
                d = os.read(fd, 1 << 17)
            except OSError:
                return
            op, unique = struct.unpack_from("=IQ", d, 4)
            error, body = 0, b""
            if op == 26:
                body = struct.pack("=IIIIHHIIHHI", 7, 31, 0, 0, 1, 1, 4096, 1, 1, 0, 0) + bytes(28)
            elif op == 3:
                body = struct.pack("=QII", 0, 0, 0) + struct.pack(
                    "=QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
            elif op == 17:
                body = bytes(80)
            elif op in (1, 2, 42):
                continue
            else:
                error = -errno.ENOSYS
            os.write(fd, struct.pack("=IiQ", 16 + len(body), error, unique) + body)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    yield where
    subprocess.run(["umount", "-f", "-l", where], capture_output=True, check=False)
    server.join(10)
    os.close(fd)


@pytest.fixture
def stuck(hung, mount) -> Iterator[object]:
    """A mount of which 70 processes wait for a look-up in what hangs."""
    fs = mount()
    (fs.src / "local").write_bytes(b"l" * 1000)
    os.stat(fs.mnt / "remote")
    askers = [subprocess.Popen(["taskset", "-c", "0", "stat", fs.mnt / "remote" / str(n)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL) for n in range(70)]
    until(lambda: fs.stats().total("io_pool") >= 70, "asked for")
    yield fs
    for asker in askers:
        asker.kill()
    subprocess.run(["umount", "-f", "-l", hung], capture_output=True, check=False)
    for asker in askers:
        asker.wait(20)


def test_hung_submount(stuck):
    """Who does not ask for it is served, also by pool threads; few of those are kept."""
    fs = stuck

    def local() -> bytes:
        with open(fs.mnt / "local", "rb") as f, open(fs.mnt / "copy", "wb+") as g:
            assert os.copy_file_range(f.fileno(), g.fileno(), 1000, 0, 0) == 1000
            os.fsync(g.fileno())
        return (fs.mnt / "copy").read_bytes()

    assert on_cpu_0(local) == b"l" * 1000
    assert threads(fs) < 50


def test_end_beside_a_hung_submount(stuck, hung):
    """The daemon does not wait for it; the kernel lets its last threads go when that ends."""
    fs = stuck
    fs.expected_lines += ["is busy: detached", "the source does not answer"]
    fs.signal(signal.SIGTERM)
    until(lambda: "the source does not answer" in fs.stderr(), "given up", 5)
    subprocess.run(["umount", "-f", "-l", hung], capture_output=True, check=False)
    fs.wait(5)
