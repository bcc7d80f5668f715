"""--cache coherent: what changes beside the mount shows at once, although names and attributes are kept for long."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _daemon import KERNEL, ROOT, environment, run, until
from _stalling import Server

from passthru.watching import FILES_KEPT, NAMES_KEPT

pytestmark = pytest.mark.skipif(KERNEL < (6, 2), reason="names cannot be made old without taking mounts away")
COHERENT = ("--cache", "coherent")
CHANGES = int(os.environ.get("PASSTHRU_TEST_CHANGES", "750"))  # in each of eight mounts
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
        image = place / "image"
        with open(image, "wb") as f:
            f.truncate(64 << 20)
        if subprocess.run(["mkfs.ext4", "-q", image], check=False).returncode:
            pytest.skip("no mkfs.ext4")
        subprocess.run(["mount", "-o", "loop", image, src], check=True)
    yield src
    subprocess.run(["umount", "-l", src], check=True)


def shown(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def old(path: Path) -> None:
    """Of a file that has just been written the kernel keeps no attributes for long."""
    os.utime(path, (1, 1))


@pytest.mark.timeout(170 + CHANGES // 20)
@pytest.mark.parametrize("options", [(), ("--passthrough",)], ids=["requests", "passthrough"])
def test_random_changes(mount, source, options):
    """Of random changes none is missed."""
    fs = mount(*COHERENT, *options, source=source)
    done = subprocess.run([sys.executable, ROOT / "tests/coherent.py", source, fs.mnt, str(CHANGES)], env=environment(),
                          capture_output=True, text=True, check=False, timeout=140 + CHANGES // 20)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert fs.stats().total("watch_events") > CHANGES // 2
    assert fs.stats().total("watch_overflows") == 0


def test_kept(mount, source):
    """What is looked at twice is asked for once, also after the time for which the kernel keeps it elsewhere."""
    for n in range(20):
        (source / f"f{n}").touch()
        old(source / f"f{n}")
    fs = mount(*COHERENT, source=source)
    paths = [*(fs.mnt / f"f{n}" for n in range(20)), *(fs.mnt / f"none{n}" for n in range(20))]
    for _ in range(5):  # somebody may have all caches of the machine dropped meanwhile
        for path in paths:
            shown(path)
        before = fs.stats()
        time.sleep(1.5)
        for path in paths:
            shown(path)
        after = fs.stats()
        if after.total("forgets") == before.total("forgets"):
            break
    assert after.ops().get("LOOKUP") == before.ops().get("LOOKUP")
    assert after.ops().get("GETATTR", 0) - before.ops().get("GETATTR", 0) <= 1  # the check's own
    assert min(NAMES_KEPT, FILES_KEPT) > 10


def test_own_changes(mount, source):
    """What is changed through the mount is told by events as well, which are not acted on."""
    fs = mount(*COHERENT, "--no-passthrough", source=source)
    for n in range(100):
        (fs.mnt / f"f{n}").write_text("x")
        (fs.mnt / f"f{n}").rename(fs.mnt / f"g{n}")
    until(lambda: fs.stats().total("watch_own") >= 300, "told of our own changes")
    assert fs.stats().total("watch_notified") == 0
    assert sorted(os.listdir(fs.mnt)) == sorted(os.listdir(source))


def test_what_is_mounted_in_the_mount_stays(mount, source):
    """A name that is made old is not taken away."""
    (source / "d").mkdir()
    fs = mount(*COHERENT, source=source)
    shown(fs.mnt / "d")
    subprocess.run(["mount", "-t", "tmpfs", "inner", fs.mnt / "d"], check=True)
    try:
        (fs.mnt / "d/inside").touch()
        for n in range(50):
            os.chmod(source / "d", 0o700 + n % 8)
            (source / f"e{n}").touch()
            os.rename(source / "d", source / "d2")
            os.rename(source / "d2", source / "d")
        time.sleep(0.1)
        assert (fs.mnt / "d/inside").exists()
    finally:
        subprocess.run(["umount", fs.mnt / "d"], check=True)


def test_open_file_shows_what_is_written(mount, source):
    """Pages of an open file are read anew, also those that are mapped."""
    import mmap
    (source / "f").write_bytes(b"a" * 4096)
    fs = mount(*COHERENT, source=source)
    fd = os.open(fs.mnt / "f", os.O_RDONLY)
    with mmap.mmap(fd, 4096, prot=mmap.PROT_READ) as m:
        assert m[0] == ord("a")
        for letter in b"bcdefgh":
            with open(source / "f", "r+b") as f:
                f.write(bytes([letter]) * 4096)
            until(lambda letter=letter: os.pread(fd, 1, 0)[0] == letter and m[0] == letter, "new data", 2)
    os.close(fd)


def test_not_for_a_stacked_source(transport, place):
    """What is written under an overlay nobody tells."""
    for name in ("lower", "upper", "work", "src", "mnt"):
        (place / name).mkdir()
    what = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
    if subprocess.run(["mount", "-t", "overlay", "-o", what, "overlay", place / "src"], check=False).returncode:
        pytest.skip("no overlayfs here")
    try:
        done = run("--transport", transport, *COHERENT, place / "src", place / "mnt")
        assert done.returncode != 0
        assert "does not tell of all changes" in done.stderr
    finally:
        subprocess.run(["umount", place / "src"], check=True)


def test_mounts_come_and_go(mount, source):
    """No event tells of a mount."""
    (source / "d").mkdir()
    (source / "d/under").touch()
    subprocess.run(["mount", "--make-private", source], check=True)
    fs = mount(*COHERENT, "--sandbox", "seccomp", source=source)
    assert (fs.mnt / "d/under").exists()
    for _ in range(3):
        subprocess.run(["mount", "-t", "tmpfs", "inner", source / "d"], check=True)
        (source / "d/inside").touch()
        until(lambda: os.listdir(fs.mnt / "d") == ["inside"], "the new mount", 3)
        (source / "d/more").touch()
        until(lambda: shown(fs.mnt / "d/more"), "a change there", 3)
        subprocess.run(["umount", "-l", source / "d"], check=True)
        until(lambda: os.listdir(fs.mnt / "d") == ["under"], "what lies under it", 3)


def test_a_change_in_a_filesystem_below(mount, source):
    """It is watched from the moment it is found, by a daemon that is confined by then."""
    (source / "d").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "inner", source / "d"], check=True)
    fs = mount(*COHERENT, source=source)
    for n in range(20):
        assert not shown(fs.mnt / f"d/f{n}")
        (source / f"d/f{n}").touch()
        until(lambda n=n: shown(fs.mnt / f"d/f{n}"), "what was made", 0.5)
    subprocess.run(["umount", "-l", source / "d"], check=True)


def test_a_directory_that_somebody_locks(mount, source):
    """Who holds a directory's lock holds up the news of that directory only."""
    (source / "locked").mkdir()
    (source / "free").mkdir()
    for n in range(2000):
        (source / f"locked/f{n}").touch()
    fs = mount(*COHERENT, source=source)
    hung = fs.mnt.parent / "hung"
    hung.mkdir()
    with Server(hung) as server:
        server.tell("silent", "READ")
        lister = subprocess.Popen(
            [sys.executable, "-c", LIST_INTO_A_PAGE_THAT_NEVER_COMES, fs.mnt / "locked", hung / "f"])
        server.asked("READ")
        (source / "locked/new").touch()
        for n in range(50):
            assert not shown(fs.mnt / f"free/f{n}")
            (source / f"free/f{n}").touch()
            until(lambda n=n: shown(fs.mnt / f"free/f{n}"), "what was made elsewhere", 2)
        until(lambda: fs.stats().total("watch_stuck") == 1, "one directory is stuck", 5)
    lister.wait(10)
    until(lambda: shown(fs.mnt / "locked/new"), "what was made there", 5)


STORM = """
import os, sys
while True:
    for n in range(50):
        for step in (lambda a: os.close(os.open(a, os.O_CREAT | os.O_EXCL)), lambda a: os.rename(a, a + "x"),
                     lambda a: os.truncate(a + "x", 5), lambda a: os.unlink(a + "x")):
            try:
                step(f"{sys.argv[1]}/n{n}")
            except FileNotFoundError:
                pass
            except FileExistsError:
                pass
"""


@pytest.fixture
def storm(place: Path) -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """storm(directory): a process that makes, renames, cuts and removes names there without end."""
    running = []

    def start(where: Path) -> subprocess.Popen[bytes]:
        running.append(subprocess.Popen([sys.executable, "-c", STORM, where], stderr=subprocess.DEVNULL))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait(10)


def test_storms_from_both_sides(mount, source, storm):
    """Notifications and requests for the same directory do not wait for each other."""
    fs = mount(*COHERENT, source=source)
    storms = [storm(where) for where in (source, fs.mnt, source, fs.mnt)]
    for _ in range(40):
        before = fs.stats().total("watch_events")
        until(lambda before=before: fs.stats().total("watch_events") > before, "events", 10)
        os.listdir(fs.mnt)
        time.sleep(0.05)
    assert all(process.poll() is None for process in storms)
    for process in storms:
        process.kill()
        process.wait(10)
    until(lambda: sorted(os.listdir(fs.mnt)) == sorted(os.listdir(source)), "the same names", 3)


@pytest.mark.skipif(KERNEL < (6, 10), reason="rings in the program's own memory have to lie in one piece")
def test_no_ring_outlives_its_files(mount, source):
    """What is mapped of a ring's file would keep the ring while one thread of a killed daemon waits for a lock."""
    fs = mount(*COHERENT, source=source)
    shown(fs.mnt / "none")
    assert "io_uring" not in Path(f"/proc/{fs.process.pid}/maps").read_text(encoding="utf-8")


def test_killed_in_a_storm(mount, source, storm):
    """The daemon ends although one of its threads waits for a lock whose holder waits for the daemon."""
    fs = mount(*COHERENT, source=source)
    inside = [storm(where) for where in (source, fs.mnt, source, fs.mnt)][1::2]
    time.sleep(1)
    fs.signal(signal.SIGKILL)
    fs.expected_code = -signal.SIGKILL
    fs.wait(10)
    for process in inside:
        process.wait(10)  # with an error
    fs.umount("-l")
