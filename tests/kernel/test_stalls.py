"""What stalls in the source holds up who asks for it, nobody else.

Below the source (or as the source) is a server that leaves one kind of request unanswered (_stalling.py). Clients ask
for just that, while another on the same CPU, and so of the same queue, works on local files.
"""
from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from _daemon import Daemon, mounted, until
from _operations import _fallocate
from _stalling import Server

pytestmark = [pytest.mark.release_only("takes long on a build with sanitizers"), pytest.mark.timeout(100)]

CPU = min(os.sched_getaffinity(0))
MANY = 70  # more than a queue has entries, and than a pool has threads
LONGEST = int(os.environ.get("PASSTHRU_STALL_MS", "50")) / 1000  # of what others do meanwhile: s
SECONDS = 0.4  # of work that is measured
LARGE = 70 << 20  # bytes: more than a thread of a queue frees, see BIG_CUT


# ------------------------------------------------------------ processes

@dataclass
class Child:
    """A process on CPU 0. It says when it is ready, waits to be told to go, and says how it went."""
    pid: int
    said: int  # to read from
    go: int  # to write to

    def heard(self, seconds: float) -> str:
        """What it has said, or "" in that time."""
        os.set_blocking(self.said, False)
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(BlockingIOError):
                return os.read(self.said, 1000).decode()
            if time.monotonic() > end:
                return ""
            time.sleep(0.005)

    def start(self) -> None:
        if self.go >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self.go, b"!")  # to close it would not do: those made later have it too
            os.close(self.go)
            self.go = -1

    def end(self, seconds: float = 10) -> None:
        """What it waits for must have ended before."""
        self.start()
        os.close(self.said)
        os.kill(self.pid, signal.SIGKILL)
        limit = time.monotonic() + seconds
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            assert time.monotonic() < limit, f"process {self.pid} cannot be killed"
            time.sleep(0.01)


def child(prepare: Callable[[], Any], act: Callable[[Any], object]) -> Child:
    said, tell = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(said)
            os.close(go)
            os.sched_setaffinity(0, {CPU})
            ready = prepare()
            os.write(tell, b"ready")
            os.read(wait, 1)
            os.write(tell, str(act(ready)).encode() or b"done")
        except BaseException as e:
            os.write(tell, f"{type(e).__name__}: {e}".encode())
        finally:
            os._exit(0)
    os.close(tell)
    os.close(wait)
    return Child(pid, said, go)


class Children:
    """All of a test's, ended with it: after the server that they wait for."""

    def __init__(self) -> None:
        self.all: list[Child] = []

    def ready(self, prepare: Callable[[], Any], act: Callable[[Any], object]) -> Child:
        """One that has prepared itself."""
        c = child(prepare, act)
        self.all.append(c)
        heard = c.heard(10)
        assert heard == "ready", f"preparing: {heard or 'hangs'}"
        return c

    def end(self) -> None:
        problems = []
        for c in self.all:
            try:
                c.end()
            except AssertionError as e:
                problems.append(str(e))
        assert not problems, problems


# ------------------------------------------------------------ the work that must go on

Work = dict[str, Callable[[str, int], object]]


def _write(top: str, n: int) -> None:
    with open(f"{top}/w{n % 10}", "wb", buffering=0) as f:
        f.write(b"x" * 5000)


def _read(top: str, n: int) -> None:
    with open(f"{top}/data", "rb", buffering=0) as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert len(f.read(5000)) == 5000


def _copy(top: str, n: int) -> None:
    with open(f"{top}/data", "rb", buffering=0) as a, open(f"{top}/copy", "wb", buffering=0) as b:
        os.copy_file_range(a.fileno(), b.fileno(), 5000)


def _lock(top: str, n: int) -> None:
    with open(f"{top}/lock", "wb", buffering=0) as f:
        fcntl.flock(f, fcntl.LOCK_EX)


def _sync(top: str, n: int) -> None:
    with open(f"{top}/data", "rb", buffering=0) as f:
        os.fsync(f.fileno())


def _fresh(top: str, n: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.stat(f"{top}/n {os.getpid()} {time.monotonic_ns()}")


LOCAL: Work = {
    "stat of a fresh name": _fresh, "write": _write, "read": _read, "copy_file_range": _copy, "flock": _lock,
    "fsync": _sync, "listdir": lambda top, n: os.listdir(top),
    "listdir of what the stalled one is in": lambda top, n: os.listdir(os.path.dirname(top)),
    "mkdir": lambda top, n: (os.mkdir(f"{top}/d"), os.rmdir(f"{top}/d")),
    "setxattr": lambda top, n: os.setxattr(f"{top}/data", "user.a", b"1"),
}


def measured(top: Path, children: Children, work: Work) -> tuple[float, str]:
    """The longest of many operations, and which it was; it is killed when it hangs."""
    def loop(_: object) -> str:
        worst, which, n = 0.0, "", 0
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for name, do in work.items():
                start = time.monotonic()
                do(str(top), n)
                took = time.monotonic() - start
                os.write(doing[1], b".")
                if took > worst:
                    worst, which = took, name
                n += 1
        return f"{worst} {which}"

    doing = os.pipe2(os.O_NONBLOCK)
    try:
        c = children.ready(lambda: None, loop)
        c.start()
        heard = c.heard(SECONDS + 5)
        if not heard:
            done = len(os.read(doing[0], 1 << 20)) if _readable(doing[0]) else 0
            return float("inf"), f"{list(work)[done % len(work)]} hangs"
        assert heard[0].isdigit(), heard
        worst, _, which = heard.partition(" ")
        return float(worst), which
    finally:
        for fd in doing:
            os.close(fd)


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def goes_on(top: Path, children: Children, before: float, when: str, work: Work = LOCAL) -> list[str]:
    """What is wrong with the others' work. A machine that was busy itself is given another chance."""
    allowed = max(LONGEST, 3 * before)
    for _ in range(2):
        took, which = measured(top, children, work)
        if took <= allowed:
            return []
        if took == float("inf"):
            return [f"{when}: {which} for more than 5 s"]
    return [f"{when}: {which} took {took * 1000:.0f} ms ({before * 1000:.1f} ms before)"]


def ends(fs: Daemon, server: Server | None) -> list[str]:
    """SIGTERM takes the mount away within seconds; the process goes as soon as the kernel lets its threads go."""
    problems = []
    fs.signal(signal.SIGTERM)
    try:
        until(lambda: not mounted(fs.mnt), "unmounted", 5)
    except AssertionError as e:
        problems.append(f"SIGTERM: {e}")
    if server is not None:
        server.end()
    try:
        fs.wait(12)  # each step of the end has a deadline of its own
    except AssertionError as e:
        problems.append(f"SIGTERM: {e}" + ("" if server is None else ", with the stalled server gone"))
    # It has open files, or gives up what waits.
    fs.expected_lines += [said for said in ("is busy: detached", "the source does not answer") if said in fs.stderr()]
    return problems


# ------------------------------------------------------------ a server that does not answer

@dataclass(frozen=True)
class Ask:
    """How a client has the daemon ask the server for something: prepare, then do it."""
    prepare: Callable[[str, int], Any]
    act: Callable[[Any], object]


def _path(name: str) -> Callable[[str, int], str]:
    return lambda top, n: f"{top}/{name}{n}"


def _opened(flags: int, name: str = "f") -> Callable[[str, int], int]:
    return lambda top, n: os.open(f"{top}/{name}{n}", flags)


def _known(name: str) -> Callable[[str, int], str]:
    """A path that was looked up."""
    def prepare(top: str, n: int) -> str:
        os.lstat(f"{top}/{name}{n}")
        return f"{top}/{name}{n}"
    return prepare


def _two(top: str, n: int) -> tuple[int, int]:
    return os.open(f"{top}/f{n}", os.O_RDONLY), os.open(f"{top}/fcopy{n}", os.O_WRONLY)


ASKS = {
    "LOOKUP": Ask(_path("f"), os.stat),
    "GETATTR": Ask(_opened(os.O_RDONLY), os.fstat),
    "SETATTR": Ask(_opened(os.O_RDWR), lambda fd: os.fchmod(fd, 0o600)),
    "truncate": Ask(_known("f"), lambda path: os.truncate(path, 10)),
    "utimens": Ask(_known("f"), lambda path: os.utime(path)),
    "OPEN": Ask(_known("f"), lambda path: os.open(path, os.O_RDONLY)),
    "READ": Ask(_opened(os.O_RDONLY), lambda fd: os.pread(fd, 100, 5000)),
    "WRITE": Ask(_opened(os.O_WRONLY), lambda fd: os.pwrite(fd, b"new", 0)),
    "FSYNC": Ask(_opened(os.O_WRONLY), os.fsync),
    "FSYNCDIR": Ask(_opened(os.O_RDONLY, "d"), os.fsync),
    "FLUSH": Ask(_opened(os.O_WRONLY), os.close),
    "RELEASE": Ask(_opened(os.O_RDONLY), os.close),
    "GETXATTR": Ask(_known("f"), lambda path: os.getxattr(path, "user.a")),
    "SETXATTR": Ask(_known("f"), lambda path: os.setxattr(path, "user.a", b"v")),
    "LISTXATTR": Ask(_known("f"), os.listxattr),
    "REMOVEXATTR": Ask(_known("f"), lambda path: os.removexattr(path, "user.a")),
    "OPENDIR": Ask(_known("d"), os.listdir),
    "READDIR": Ask(_opened(os.O_RDONLY, "d"), os.listdir),
    "STATFS": Ask(_known("f"), os.statvfs),
    "CREATE": Ask(_path("new"), lambda path: os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    "MKNOD": Ask(_path("new"), os.mkfifo),
    "MKDIR": Ask(_path("new"), os.mkdir),
    "SYMLINK": Ask(_path("new"), lambda path: os.symlink("x", path)),
    "LINK": Ask(_known("f"), lambda path: os.link(path, f"{path}.new".replace("/f", "/l"))),
    "UNLINK": Ask(_known("f"), os.unlink),
    "RMDIR": Ask(_known("d"), os.rmdir),
    "RENAME": Ask(_known("f"), lambda path: os.rename(path, f"{path}.other")),
    "READLINK": Ask(_known("s"), os.readlink),
    "LSEEK": Ask(_opened(os.O_RDONLY), lambda fd: os.lseek(fd, 5, os.SEEK_DATA)),
    "FALLOCATE": Ask(_opened(os.O_WRONLY), lambda fd: _fallocate(fd, 1, 0, 4096)),
    "COPY_FILE_RANGE": Ask(_two, lambda fds: os.copy_file_range(*fds, 100, 0, 0)),
    "IOCTL": Ask(_opened(os.O_RDONLY), lambda fd: fcntl.ioctl(fd, 0x80086601, bytes(4))),
    "SETLKW": Ask(_opened(os.O_WRONLY), lambda fd: fcntl.flock(fd, fcntl.LOCK_EX)),
    "record lock": Ask(_opened(os.O_WRONLY), lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX)),
    "SETLK": Ask(_opened(os.O_WRONLY), lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)),
    "GETLK": Ask(_opened(os.O_WRONLY), lambda fd: fcntl.fcntl(fd, fcntl.F_GETLK, bytes(32))),
}
OPCODE = {"truncate": "SETATTR", "utimens": "SETATTR", "record lock": "SETLKW"}
NOT_WAITED_FOR = ("RELEASE",)  # by close(2)


@contextlib.contextmanager
def stalling(mount: Callable[..., Daemon], place: Path, whole: bool = False) -> Iterator[
        tuple[Daemon, Server, Children, str]]:
    """(mount, server, processes, where in the mount the server's files are); nothing waits for it afterwards."""
    source = place / "src"
    local, slow = source / "local", source if whole else source / "slow"
    slow.mkdir(parents=True)
    if not whole:
        local.mkdir()
        (local / "data").write_bytes(bytes(100_000))
    children = Children()
    server = Server(slow)
    try:
        fs = mount("--attr-timeout", "0", "--entry-timeout", "0", source=source)
        yield fs, server, children, str(fs.mnt if whole else fs.mnt / "slow")
    finally:
        if server.process.poll() is None:
            server.end()
        children.end()


def hang(server: Server, children: Children, name: str, ask: Ask, top: str, count: int) -> list[Child]:
    """Clients that are prepared; the server answers everything so far."""
    return [children.ready(lambda n=n: ask.prepare(top, n), ask.act) for n in range(count)]


@pytest.mark.parametrize("name", ASKS)
def test_others_go_on(mount, place, name):
    """One client hangs, then 70, all on the CPU of the one who works on local files."""
    op, ask = OPCODE.get(name, name), ASKS[name]
    problems: list[str] = []
    with stalling(mount, place) as (fs, server, children, slow):
        local = fs.mnt / "local"
        before, _ = measured(local, children, LOCAL)
        clients = hang(server, children, name, ask, slow, MANY)
        server.tell("silent", op)
        clients[0].start()
        server.asked(op)
        problems += goes_on(local, children, before, f"one waits for {op}")
        if not problems:
            for c in clients[1:]:
                c.start()
            time.sleep(0.3)  # nothing tells that all of them have asked
            problems += goes_on(local, children, before, f"{MANY} wait for {op}")
        if name not in NOT_WAITED_FOR:
            assert not clients[0].heard(0), "it did not wait"
        problems += ends(fs, server)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.mark.parametrize("name", [
    "GETATTR", "SETATTR", "OPEN", "READ", "WRITE", "FSYNC", "GETXATTR", "OPENDIR", "READDIR", "STATFS",
    "LSEEK", "FALLOCATE", "COPY_FILE_RANGE", "IOCTL", "SETLKW", "FLUSH"])
def test_whole_source(mount, place, name):
    """The source itself stalls in one kind of request: what asks for others goes on.

    Not CREATE, UNLINK and kin: the kernel holds the directory's lock meanwhile, and a fresh name of it waits in the
    bare source too.
    """
    op, ask = OPCODE.get(name, name), ASKS[name]
    needs: dict[str, tuple[Callable[[str, int], object], Sequence[str]]] = {
        "stat of a fresh name": (_fresh, ("LOOKUP",)),
        "readlink": (lambda top, n: os.readlink(f"{top}/sym{n}"), ("LOOKUP", "READLINK")),
        "getxattr": (lambda top, n: os.getxattr(f"{top}/fother", "user.a"), ("LOOKUP", "GETXATTR")),
        "mkdir": (lambda top, n: os.mkdir(f"{top}/made {time.monotonic_ns()}"), ("LOOKUP", "MKDIR")),
    }
    work = {what: do for what, (do, ops) in needs.items() if op not in ops and op != "GETATTR"}
    work = work or {"stat of a fresh name": _fresh}
    problems: list[str] = []
    with stalling(mount, place, whole=True) as (fs, server, children, slow):
        before, _ = measured(fs.mnt, children, work)
        client = hang(server, children, name, ask, slow, 1)[0]
        server.tell("silent", op)
        client.start()
        server.asked(op)
        if op != "GETATTR":  # with which every walk through names begins
            problems += goes_on(fs.mnt, children, before, f"one waits for {op}", work)
        problems += ends(fs, server)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.mark.xfail(reason="the process stays until the server has gone; its mount and all clients are rid of it before")
@pytest.mark.parametrize("name", ["the mountpoint", "LOOKUP", "GETATTR", "OPEN", "READ", "FSYNC", "SETLKW", "STATFS"])
def test_server_that_reads_nothing(mount, place, name):
    """It has been stopped: who waits for it can be killed, and so the daemon goes while it is still stopped."""
    ask = ASKS.get(name, Ask(lambda top, n: top, os.stat))
    problems: list[str] = []
    with stalling(mount, place) as (fs, server, children, slow):
        local = fs.mnt / "local"
        before, _ = measured(local, children, LOCAL)
        clients = hang(server, children, name, ask, slow, MANY)
        server.tell("stop")
        clients[0].start()
        time.sleep(0.2)
        problems += goes_on(local, children, before, "one waits")
        if not problems:
            for c in clients[1:]:
                c.start()
            time.sleep(0.3)
            problems += goes_on(local, children, before, f"{MANY} wait")
        problems += ends(fs, None)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


# ------------------------------------------------------------ what local files wait for

@pytest.fixture
def busy(mount, place) -> Iterator[tuple[Daemon, Children, Path]]:
    """(mount, processes, a directory for the others' work)."""
    (place / "src" / "local").mkdir(parents=True)
    (place / "src" / "local" / "data").write_bytes(bytes(100_000))
    (place / "src" / "file").write_bytes(b"data")
    os.mkfifo(place / "src" / "fifo")
    children = Children()
    try:
        fs = mount("--attr-timeout", "0", "--entry-timeout", "0")
        yield fs, children, fs.mnt / "local"
    finally:
        children.end()


LEASED = {
    "open for write": lambda path: os.open(path, os.O_WRONLY),
    "open to truncate": lambda path: os.open(path, os.O_WRONLY | os.O_TRUNC),
    "open to create": lambda path: os.open(path, os.O_WRONLY | os.O_CREAT),
    "truncate": lambda path: os.truncate(path, 1),
}


@pytest.mark.parametrize("how", LEASED)
@pytest.mark.parametrize("count", [1, MANY])
def test_lease(busy, how, count):
    """The source waits for the holder of a lease, who does not give it up."""
    fs, children, local = busy
    holder = subprocess.Popen(
        ["python3", "-c", "import fcntl, os, signal, sys, time\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\n"
         "f = os.open(sys.argv[1], os.O_RDONLY); fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_RDLCK)\n"
         "print('leased', flush=True); time.sleep(100)", fs.src / "file"], stdout=subprocess.PIPE)
    problems: list[str] = []
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"leased\n"
        before, _ = measured(local, children, LOCAL)
        clients = [children.ready(lambda: str(fs.mnt / "file"), LEASED[how]) for _ in range(count)]
        for c in clients:
            c.start()
        time.sleep(0.3)
        problems += goes_on(local, children, before, f"{count} wait for a lease")
        assert not clients[0].heard(0), "it did not wait"
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    problems += [f"with the lease given up {how}: {heard}" for c in clients
                 if not (heard := c.heard(5) or "still waits")[0].isdigit() and heard != "None"]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.mark.parametrize("kind", ["flock", "record lock"])
def test_lock_waiters(busy, kind):
    """70 wait for a lock: others go on, and its holder can give it up, who then get it in turn."""
    fs, children, local = busy
    take = fcntl.flock if kind == "flock" else fcntl.lockf
    before, _ = measured(local, children, LOCAL)

    def opened() -> int:
        return os.open(fs.mnt / "file", os.O_RDWR)

    def hold(fd: int) -> str:
        take(fd, fcntl.LOCK_UN)
        return "unlocked"

    def held() -> int:
        fd = opened()
        take(fd, fcntl.LOCK_EX)
        return fd

    holder = children.ready(held, hold)
    waiters = [children.ready(opened, lambda fd: (take(fd, fcntl.LOCK_EX), take(fd, fcntl.LOCK_UN)))
               for _ in range(MANY)]
    for w in waiters:
        w.start()
    time.sleep(0.3)
    problems = goes_on(local, children, before, f"{MANY} wait for a {kind}")
    holder.start()
    if holder.heard(5) != "unlocked":
        problems.append("the holder's unlock hangs")
    else:
        left = sum(w.heard(5) != "(None, None)" for w in waiters)
        if left:
            problems.append(f"{left} of {MANY} did not get the {kind}")
    if problems:
        fs.process.kill()  # who waits could not be killed otherwise
        fs.served = False
        pytest.fail("\n".join(problems), pytrace=False)


def test_fifo_openers(busy):
    fs, children, local = busy
    before, _ = measured(local, children, LOCAL)
    openers = [children.ready(lambda: str(fs.mnt / "fifo"), lambda path: os.open(path, os.O_RDONLY))
               for _ in range(MANY)]
    for o in openers:
        o.start()
    time.sleep(0.3)
    problems = goes_on(local, children, before, f"{MANY} open a FIFO")
    assert not problems, problems


# ------------------------------------------------------------ a caller that keeps a file's lock in the source

def _link(path: str) -> None:
    os.link(path, f"{path} too")


def _exchange(path: str) -> None:
    os.rename(path, f"{path} over")


def _over(path: str) -> None:
    Path(f"{path} new").touch()
    os.rename(f"{path} new", path)


def _truncate_open(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


CHANGES: dict[str, Callable[[str], object]] = {
    "chmod": lambda path: os.chmod(path, 0o640), "utime": os.utime, "truncate": lambda path: os.truncate(path, 10),
    "setxattr": lambda path: os.setxattr(path, "user.a", b"1"), "unlink": os.unlink, "link": _link,
    "rename": _exchange, "rename over": _over, "open to truncate": _truncate_open,
    "fallocate": lambda path: _fallocate_by(path), "seek": lambda path: _seek(path),
    "copy to": lambda path: _copy_to(path), "stat of a program": lambda path: _stat_program(path),
    "append": lambda path: _append(path)}


def _fallocate_by(path: str) -> None:
    with open(path, "r+b") as f:
        os.posix_fallocate(f.fileno(), 0, 300_000)


def _seek(path: str) -> None:
    with open(path, "rb") as f:
        os.lseek(f.fileno(), 0, os.SEEK_HOLE)


def _copy_to(path: str) -> None:
    with open(f"{os.path.dirname(path)}/data", "rb") as f, open(path, "r+b") as to:
        os.copy_file_range(f.fileno(), to.fileno(), 4096, 0, 0)


def _append(path: str) -> None:
    """Such writes come to the daemon, also where all others do not."""
    with open(path, "ab", buffering=0) as f:
        f.write(b"x")


def _stat_program(path: str) -> None:
    os.chmod(path, 0o4755)  # waits for the lock, and those after it wait for that
    os.stat(path)


def _read_into_nothing(given: tuple[int, mmap.mmap]) -> None:
    """O_DIRECT: on ext4 the kernel has the inode's lock for as long as the memory does not come."""
    os.preadv(given[0], [memoryview(given[1])[:4096]], 0)


def _write_from_nothing(given: tuple[int, mmap.mmap]) -> None:
    os.pwritev(given[0], [memoryview(given[1])[:4096]], 0)


@pytest.mark.parametrize("how", ["read", "write"])
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("transport", ["passthrough"], indirect=True)  # else requests bring the data
def test_memory_that_does_not_come(mount, place, transport, name, how):
    """A caller reads or writes with memory that is a file of a server that does not answer; others change that file."""
    source, there = place / "src", place / "server"
    (source / "local").mkdir(parents=True)
    (source / "held").mkdir()
    there.mkdir()
    (source / "local/data").write_bytes(bytes(100_000))
    (source / "held/data").write_bytes(bytes(100_000))
    children = Children()
    problems: list[str] = []
    with Server(there) as server:
        try:
            fs = mount(source=source)
            held = [f"{fs.mnt}/held/{n}" for n in range(MANY)]
            local = fs.mnt / "local"
            before, _ = measured(local, children, LOCAL)

            def prepare(path: str) -> tuple[int, mmap.mmap]:
                Path(path).write_bytes(bytes(100_000))
                memory = os.open(there / f"f{os.getpid()}", os.O_RDWR)
                fd = os.open(path, os.O_RDONLY | os.O_DIRECT if how == "read" else os.O_WRONLY)
                return fd, mmap.mmap(memory, 8192, mmap.MAP_PRIVATE)

            keep = _read_into_nothing if how == "read" else _write_from_nothing
            keepers = [children.ready(lambda path=path: prepare(path), keep) for path in held]
            server.tell("silent", "READ")
            for c in keepers:
                c.start()
            server.asked("READ", len(held))
            changers = [children.ready(lambda path=path: path, CHANGES[name]) for path in held]
            changers[0].start()
            time.sleep(0.1)
            problems += goes_on(local, children, before, f"one waits to {name}")
            for c in changers[1:]:
                c.start()
            time.sleep(0.3)
            if not problems:
                problems += goes_on(local, children, before, f"{MANY} wait to {name}")
            problems += ends(fs, server)
        finally:
            if server.process.poll() is None:
                server.end()
            children.end()
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.mark.skipif(not shutil.which("mkfs.xfs") or "xfs" not in Path("/proc/filesystems").read_text(),
                    reason="no XFS here")
def test_copies_of_what_is_kept(mount, place):
    """On XFS a copy takes the lock of what is copied from as well: that one waits apart from other copies."""
    source, there = place / "src", place / "server"
    source.mkdir()
    there.mkdir()
    with open(place / "image", "wb") as f:
        f.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", place / "image"], check=True)
    subprocess.run(["mount", "-o", "loop", place / "image", source], check=True)
    (source / "local").mkdir()
    (source / "local/data").write_bytes(bytes(100_000))
    many = 20  # more than there are threads for copies
    children = Children()
    problems: list[str] = []
    with Server(there) as server:
        try:
            fs = mount("--passthrough", source=source)
            if "kernel passthrough" not in fs.stderr():
                pytest.skip("no kernel passthrough here")

            def prepare(n: int) -> tuple[int, mmap.mmap]:
                (fs.mnt / f"held {n}").write_bytes(bytes(100_000))
                memory = mmap.mmap(os.open(there / f"f{os.getpid()}", os.O_RDWR), 8192, mmap.MAP_PRIVATE)
                return os.open(fs.mnt / f"held {n}", os.O_RDONLY | os.O_DIRECT), memory

            def two(n: int) -> tuple[int, int]:
                a = os.open(fs.mnt / f"held {n}", os.O_RDONLY)
                return a, os.open(fs.mnt / f"copy {n}", os.O_WRONLY | os.O_CREAT)

            keepers = [children.ready(lambda n=n: prepare(n), _read_into_nothing) for n in range(many)]
            copiers = [children.ready(lambda n=n: two(n), lambda fds: os.copy_file_range(*fds, 8192, 0, 0))
                       for n in range(many)]
            server.tell("silent", "READ")
            for c in keepers:
                c.start()
            server.asked("READ", many)
            for c in copiers:
                c.start()
            time.sleep(0.5)
            assert not copiers[0].heard(0), "it did not wait"
            problems += goes_on(fs.mnt / "local", children, 1, f"{many} wait to copy", {"copy": _copy})
            # Nor do those wait who open what is copied to.
            problems += goes_on(fs.mnt, children, 1, "and open", {
                "open": lambda top, n: os.close(os.open(f"{top}/copy {n % many}", os.O_RDONLY))})
            problems += ends(fs, server)
        finally:
            if server.process.poll() is None:
                server.end()
            children.end()
    subprocess.run(["umount", source], check=True)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def _cut_large(top: str, n: int) -> None:
    """What the source itself takes its time for has a lane of its own, with 64 threads."""
    with open(f"{top}/large", "wb", buffering=0) as f:
        os.posix_fallocate(f.fileno(), 0, LARGE)
        os.ftruncate(f.fileno(), 0)


@pytest.mark.parametrize("name", ["unlink", "rename over"])
def test_large_files_that_cannot_be_removed(mount, place, name):
    """Those whose lock a caller keeps do not wait where the removal of all large files is waited for."""
    source, there = place / "src", place / "server"
    (source / "local").mkdir(parents=True)
    (source / "held").mkdir()
    there.mkdir()
    children = Children()
    problems: list[str] = []
    with Server(there) as server:
        try:
            fs = mount("--passthrough", source=source)
            if "kernel passthrough" not in fs.stderr():
                pytest.skip("no kernel passthrough here")
            held = [f"{fs.mnt}/held/{n}/file" for n in range(MANY)]  # in one directory the kernel removes one at a time

            def prepare(path: str) -> tuple[int, mmap.mmap]:
                os.mkdir(os.path.dirname(path))
                with open(path, "wb") as f:
                    f.write(bytes(8192))
                    os.posix_fallocate(f.fileno(), 0, LARGE)
                memory = os.open(there / f"f{os.getpid()}", os.O_RDWR)
                return os.open(path, os.O_RDONLY | os.O_DIRECT), mmap.mmap(memory, 8192, mmap.MAP_PRIVATE)

            keepers = [children.ready(lambda path=path: prepare(path), _read_into_nothing) for path in held]
            changers = [children.ready(lambda path=path: path, CHANGES[name]) for path in held]
            server.tell("silent", "READ")
            for c in keepers:
                c.start()
            server.asked("READ", len(held))
            for c in changers:
                c.start()
            time.sleep(0.5)
            problems += goes_on(fs.mnt / "local", children, 1, f"{MANY} wait to {name}", {"cut": _cut_large})
            problems += ends(fs, server)
        finally:
            if server.process.poll() is None:
                server.end()
            children.end()
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)
