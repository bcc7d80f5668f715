"""--inotify: who watches the mount hears of changes beside it as if the source were watched."""
from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _daemon import KERNEL, ROOT, Daemon, run, until
from _stalling import Server

sys.path.insert(0, str(ROOT / "tests"))
import contextlib

from inotify import NAMED, Event, Watcher, squeezed

pytestmark = [
    pytest.mark.skipif(KERNEL < (6, 2), reason="names cannot be made old without taking mounts away"),
    pytest.mark.release_only("a repeater has a directory open to the end: opens and releases are not level"),
]
ON = ("--inotify", "on")
CHANGES = int(os.environ.get("PASSTHRU_TEST_CHANGES", "750"))
RENAME_EXCHANGE = 2
SELF = 0x400 | 0x800
LIBC = ctypes.CDLL(None, use_errno=True)
LIST_INTO_A_PAGE_THAT_NEVER_COMES = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
page = libc.mmap(None, 4096, 3, 2, os.open(sys.argv[2], os.O_RDONLY), 0)
libc.syscall(217, os.open(sys.argv[1], os.O_RDONLY), ctypes.c_void_p(page), 4096)
"""  # getdents64 on x86-64


@pytest.fixture(params=["tmpfs", "ext4"])
def source(request: pytest.FixtureRequest, place: Path) -> Iterator[Path]:
    """A filesystem of the test's own."""
    src = place / "src"
    src.mkdir()
    if request.param == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", src], check=True)
    else:
        with open(place / "image", "wb") as f:
            f.truncate(64 << 20)
        if subprocess.run(["mkfs.ext4", "-q", place / "image"], check=False).returncode:
            pytest.skip("no mkfs.ext4")
        subprocess.run(["mount", "-o", "loop", place / "image", src], check=True)
    yield src
    subprocess.run(["umount", "-l", src], check=True)


@pytest.fixture
def watch() -> Iterator[Callable[..., Watcher]]:
    """watch({key: directory}): a watcher that is closed after the test."""
    watchers: list[Watcher] = []

    def start(directories: dict[str, Path], mask: int = NAMED) -> Watcher:
        watchers.append(Watcher(directories, mask))
        return watchers[-1]

    yield start
    for watcher in watchers:
        watcher.close()


def exchange(a: Path, b: Path) -> None:
    assert LIBC.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), RENAME_EXCHANGE) == 0


def both(fs: Daemon, watch: Callable[..., Watcher], *names: str) -> tuple[Watcher, Watcher]:
    """Watchers of directories of the source, and of the same of the mount."""
    return tuple(watch({name: top / name for name in ("", *names)}) for top in (fs.src, fs.mnt))


def settled(fs: Daemon) -> None:
    """All that was changed so far has been repeated."""
    watcher = Watcher({"": fs.mnt})
    name = f"mark{time.monotonic_ns()}"
    (fs.src / name).mkdir()
    watcher.until(name)
    watcher.close()


KINDS = {
    "create": lambda d: (d / "new").touch(),
    "write": lambda d: (d / "file").write_text("text"),
    "append": lambda d: os.close(os.write(fd := os.open(d / "file", os.O_WRONLY | os.O_APPEND), b"x") and fd),
    "truncate": lambda d: os.truncate(d / "file", 100),
    "chmod": lambda d: os.chmod(d / "file", 0o600),
    "chmod-directory": lambda d: os.chmod(d / "dir", 0o700),
    "utime": lambda d: os.utime(d / "file", (1, 1)),
    "setxattr": lambda d: os.setxattr(d / "file", "trusted.n", b"v"),
    "unlink": lambda d: (d / "file").unlink(),
    "mkdir": lambda d: (d / "newdir").mkdir(),
    "rmdir": lambda d: (d / "dir").rmdir(),
    "symlink": lambda d: (d / "link").symlink_to("file"),
    "link": lambda d: os.link(d / "file", d / "hard"),
    "fifo": lambda d: os.mkfifo(d / "fifo"),
    "rename": lambda d: (d / "file").rename(d / "renamed"),
    "rename-directory": lambda d: (d / "dir").rename(d / "renamed"),
    "replace": lambda d: (d / "file").rename(d / "other"),
    "move": lambda d: (d / "file").rename(d / "to/file"),
    "move-in": lambda d: (d / "unseen/inside").rename(d / "arrived"),
    "move-out": lambda d: (d / "file").rename(d / "unseen/gone"),
    "exchange": lambda d: exchange(d / "file", d / "other"),
    "exchange-directories": lambda d: exchange(d / "dir", d / "to"),
}


@pytest.mark.parametrize("looked", [True, False], ids=["known", "unknown"])
def test_each_kind(mount, source, watch, looked):
    """The same events as in the source, whether the kernel knows what changes or not."""
    fs = mount(*ON, source=source)
    wrong = []
    for kind, change in KINDS.items():
        for name in ("dir", "to", "unseen"):
            (source / kind / name).mkdir(parents=True)
        for name in ("file", "other", "unseen/inside"):
            (source / kind / name).write_text("text")
        settled(fs)
        if looked:
            for name in ("file", "other", "dir"):
                (fs.mnt / kind / name).stat()
        (there, here) = both(fs, watch, kind, f"{kind}/to")
        change(source / kind)
        (source / f"last-{kind}").touch()
        told, asked = here.until(f"last-{kind}"), there.until(f"last-{kind}")
        if squeezed(told) != squeezed(asked):
            wrong.append((kind, asked, told))
        assert sorted(os.listdir(fs.mnt / kind)) == sorted(os.listdir(source / kind))
    assert not wrong, "\n".join(f"{kind}:\n  {asked}\n  {told}" for kind, asked, told in wrong)
    assert fs.stats().total("repeat_dropped") == 0


class Changer:
    """Changes the source at random: what inotify(7) tells depends on nothing but the changes."""

    def __init__(self, top: Path, seed: int):
        self.top, self.rng = top, random.Random(seed)

    def name(self) -> Path:
        return self.top / f"d{self.rng.randrange(3)}" / f"n{self.rng.randrange(8)}"

    def step(self) -> None:
        a, b = self.name(), self.name()
        how = self.rng.choice((
            lambda: a.touch(), lambda: a.touch(), lambda: a.write_text("text"), a.unlink, a.mkdir, a.rmdir,
            lambda: a.rename(b), lambda: a.rename(b), lambda: os.truncate(a, self.rng.randrange(100)),
            lambda: os.chmod(a, self.rng.choice((0o600, 0o644, 0o755))), lambda: a.symlink_to("x"),
            lambda: exchange(a, b) if a.exists() and b.exists() and a != b else None,
            lambda: os.setxattr(a, "trusted.n", os.urandom(3)), lambda: os.link(a, b)))
        with contextlib.suppress(OSError):
            how()


@pytest.mark.timeout(200)
def test_random_stream(mount, source, watch):
    """One change after the other, each when the one before was read: the two streams of events are equal."""
    for n in range(3):
        (source / f"d{n}").mkdir()
    fs = mount(*ON, source=source)
    there, here = both(fs, watch, "d0", "d1", "d2")
    rng = random.Random(1)
    changer = Changer(source, 1)
    told: list[Event] = []
    asked: list[Event] = []
    for n in range(CHANGES):
        changer.step()
        asked = squeezed(asked + there.events())
        end = time.monotonic() + 10
        while len(told := squeezed(told + here.events())) < len(asked) and time.monotonic() < end:
            time.sleep(0.0005)
        assert told == asked, f"after {n} changes: {asked[-5:]} became {told[-5:]}"
        if rng.random() < 0.3:
            with contextlib.suppress(FileNotFoundError):
                (fs.mnt / changer.name().relative_to(source)).lstat()
        if rng.random() < 0.02:
            os.listdir(fs.mnt / "d0")
    assert len(told) > CHANGES // 2
    assert fs.stats().total("repeat_dropped") == 0
    for n in range(3):
        assert sorted(os.listdir(fs.mnt / f"d{n}")) == sorted(os.listdir(source / f"d{n}"))


def of_names(events: list[Event]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for directory, what, name, _ in events:
        if what != "ATTRIB|ISDIR":  # who the parent of a directory was that is gone by now, nobody knows
            found.setdefault(f"{directory}/{name}", set()).add(what)
    return found


@pytest.mark.timeout(200)
def test_fast_stream(mount, source, watch):
    """Faster than they are read, changes of one name may be merged; none is lost, and what they leave shows."""
    for n in range(3):
        (source / f"d{n}").mkdir()
    fs = mount(*ON, source=source)
    there, here = both(fs, watch, "d0", "d1", "d2")
    changer = Changer(source, 2)
    for _ in range(4 * CHANGES):
        changer.step()
    (source / "last").touch()
    told, asked = of_names(here.until("last", 120)), of_names(there.until("last"))
    assert told == asked
    for n in range(3):
        for name in os.listdir(source / f"d{n}"):
            a, b = (source / f"d{n}/{name}").lstat(), (fs.mnt / f"d{n}/{name}").lstat()
            assert (a.st_ino, a.st_mode, a.st_size) == (b.st_ino, b.st_mode, b.st_size)
        assert sorted(os.listdir(fs.mnt / f"d{n}")) == sorted(os.listdir(source / f"d{n}"))


def test_own_changes_are_told_once(mount, source, watch):
    """What is changed through the mount its own kernel tells; it is not repeated."""
    (source / "d").mkdir()
    fs = mount(*ON, source=source)
    _, here = both(fs, watch, "d")
    for n in range(50):
        (fs.mnt / f"d/f{n}").write_text("x")
        os.chmod(fs.mnt / f"d/f{n}", 0o600)
        (fs.mnt / f"d/f{n}").rename(fs.mnt / f"g{n}")
        if n % 2:
            (fs.mnt / f"g{n}").unlink()
    (fs.mnt / "last").touch()
    time.sleep(0.5)
    told = squeezed(here.until("last"))
    kinds = [what for _, what, _, _ in told]
    assert [kinds.count(what) for what in ("CREATE", "CLOSE_WRITE", "MOVED_FROM", "MOVED_TO")] == [50] * 4
    assert kinds.count("DELETE") == 25
    assert fs.stats().total("repeat_told") == 0


def test_a_told_name_is_found(mount, source, watch):
    fs = mount(*ON, source=source)
    here = watch({"": fs.mnt})
    for n in range(200):
        (source / f"f{n}").write_text("text")
        end = time.monotonic() + 10
        while not any(name == f"f{n}" and what == "CLOSE_WRITE" for _, what, name, _ in here.events()):
            assert time.monotonic() < end
        assert (fs.mnt / f"f{n}").read_text() == "text"


def test_told_data_is_read(mount, source, watch):
    """Who hears of a change reads it, though its pages are kept and the size is the same."""
    (source / "f").write_bytes(b"old!")
    fs = mount(*ON, source=source)
    fd = os.open(fs.mnt / "f", os.O_RDONLY)
    try:
        watcher = watch({"": fs.mnt})
        for n in range(50):
            os.pread(fd, 4, 0)
            watcher.events()
            data = b"%04d" % n
            with open(source / "f", "r+b") as f:
                f.write(data)
            until(lambda: any(what == "MODIFY" for _, what, _, _ in watcher.events()), "told")
            assert os.pread(fd, 4, 0) == data
            settled(fs)
    finally:
        os.close(fd)


def test_one_of_two_names_goes(mount, source, watch):
    """Who watches a file goes on to hear of it when one of its names is removed, and it can be linked again."""
    (source / "f").write_text("x")
    os.link(source / "f", source / "g")
    fs = mount(*ON, source=source)
    (fs.mnt / "f").stat()
    (fs.mnt / "g").stat()
    watcher = watch({"f": fs.mnt / "f"}, NAMED | SELF)
    (source / "g").unlink()
    settled(fs)
    os.link(fs.mnt / "f", fs.mnt / "h")
    os.chmod(source / "f", 0o600)
    settled(fs)
    told = {what for _, what, _, _ in watcher.events()}
    assert "ATTRIB" in told and "DELETE_SELF" not in told


def test_who_watches_a_file(mount, source, watch):
    """Of what happens to itself a watched file or directory is told as well."""
    (source / "d").mkdir()
    for name in ("f", "g"):
        (source / name).touch()
    fs = mount(*ON, source=source)
    here = watch({name: fs.mnt / name for name in ("d", "f", "g")}, NAMED | SELF)
    (source / "f").rename(source / "f2")
    (source / "d").rename(source / "d2")
    (source / "g").unlink()
    (source / "d2").rmdir()
    settled(fs)
    told = [(key, what) for key, what, _, _ in here.events() if "SELF" in what]
    assert told == [("f", "MOVE_SELF"), ("d", "MOVE_SELF"), ("g", "DELETE_SELF"), ("d", "DELETE_SELF")]


def test_only_while_somebody_watches(mount, source, watch):
    fs = mount("--inotify", "auto", source=source)
    for n in range(50):
        (source / f"a{n}").touch()
    time.sleep(0.3)
    assert fs.stats().total("repeat_told") == 0
    here = watch({"": fs.mnt})
    time.sleep(4)
    (source / "b").touch()
    until(lambda: any(name == "b" for _, _, name, _ in here.events()), "an event", 5)


def test_a_filesystem_below(mount, source, watch):
    (source / "d").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "inner", source / "d"], check=True)
    fs = mount(*ON, source=source)
    here = watch({"": fs.mnt / "d"})
    (source / "d/f").touch()
    until(lambda: any(name == "f" for _, _, name, _ in here.events()), "an event", 5)
    subprocess.run(["umount", "-l", source / "d"], check=True)


def test_a_new_name_is_not_taken_for_removed(mount, source, watch):
    """A directory that has the name of a removed one works, whenever it is looked at."""
    fs = mount(*ON, source=source)
    watch({"": fs.mnt})
    end = time.monotonic() + 5
    while time.monotonic() < end:
        (source / "d").mkdir()
        (source / "d/f").touch()
        until(lambda: (fs.mnt / "d/f").exists(), "the directory's file", 3)
        (source / "d/f").unlink()
        (source / "d").rmdir()
        (source / "d").mkdir()
        (source / "d/g").touch()
        until(lambda: (fs.mnt / "d/g").exists(), "the new directory's file", 3)
        settled(fs)
        (fs.mnt / "d/h").touch()
        shutil.rmtree(source / "d")


def test_a_directory_that_somebody_locks(mount, source, watch):
    """Who holds a directory's lock holds up its own events, and nobody's requests."""
    for name in ("locked", "free"):
        (source / name).mkdir()
    for n in range(2000):
        (source / f"locked/f{n}").touch()
    fs = mount(*ON, source=source)
    here = watch({name: fs.mnt / name for name in ("locked", "free")})
    hung = fs.mnt.parent / "hung"
    hung.mkdir()
    with Server(hung) as server:
        server.tell("silent", "READ")
        lister = subprocess.Popen(
            [sys.executable, "-c", LIST_INTO_A_PAGE_THAT_NEVER_COMES, fs.mnt / "locked", hung / "f"])
        server.asked("READ")
        (source / "locked/new").touch()
        (source / "locked/f0").rename(source / "free/f0")
        time.sleep(0.1)
        began = time.monotonic()
        for n in range(20):
            (fs.mnt / f"free/own{n}").touch()
            (fs.mnt / f"free/own{n}").rename(fs.mnt / f"own{n}")
        assert time.monotonic() - began < 1
        (source / "free/g").touch()
        until(lambda: any(name == "g" for _, _, name, _ in here.events()), "an event elsewhere", 8)
    lister.wait(10)
    until(lambda: any(name == "new" for _, _, name, _ in here.events()), "an event there", 5)


def runs(pid: str) -> bool:
    """Is the process there, and not only its exit code?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


STORM = """
import os, sys
while True:
    for n in range(50):
        a = f"{sys.argv[1]}/n{n}"
        os.close(os.open(a, os.O_CREAT))
        os.rename(a, a + "x")
        os.unlink(a + "x")
"""


@pytest.mark.parametrize("how", ["umount", "SIGTERM", "SIGKILL"])
def test_the_end_while_events_flow(mount, source, watch, how):
    """It comes at once, and nothing is left: no process, no mount."""
    fs = mount(*ON, source=source)
    here = Watcher({"": fs.mnt})
    storm = subprocess.Popen([sys.executable, "-c", STORM, source])
    try:
        until(lambda: len(here.events()) > 20, "events", 10)
        children = Path(f"/proc/{fs.pid}/task/{fs.pid}/children").read_text().split()
        assert len(children) >= 4
        here.close()
        began = time.monotonic()
        if how == "umount":
            subprocess.run(["umount", fs.mnt], check=True)
        elif how == "SIGTERM":
            fs.signal(signal.SIGTERM)
        else:
            fs.signal(signal.SIGKILL)
            fs.expected_code = -signal.SIGKILL
        fs.wait(10)
        assert time.monotonic() - began < 3
        until(lambda: not any(runs(pid) for pid in children), "the end of its processes", 5)
    finally:
        storm.kill()
        storm.wait()
    if how == "SIGKILL":
        fs.umount("-l")


@pytest.mark.parametrize(("options", "why"), [
    (("-o", "ro"), "read-only"), (("--cache", "auto"), "--cache"), (("--passthrough",), "--passthrough"),
    (("--writeback",), "--writeback")])
def test_refused(transport, place, options, why):
    for name in ("src", "mnt"):
        (place / name).mkdir()
    done = run("--transport", transport, *ON, *options, place / "src", place / "mnt")
    assert done.returncode != 0
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
