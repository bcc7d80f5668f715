"""What is special of the ring's dialects: shared payload buffers, pinned memory, zero-copy, FORGET by the ring.

They run by the dialect of PASSTHRU_TEST_RING, or by the best that the kernel has (docs/testing-kernels.md).
"""
from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from _daemon import Daemon, asked, detach, forgets_by_ring, mounted, run, until
from test_transport_choice import parameter

from passthru import stats
from passthru.transport import PARAMETER, ring_parameter

FIO = pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
RW_ONLY = Path(PARAMETER).parent / "uring_zc_rw_only"
REFUSED = 5
MIB = 1 << 20
PATTERN = random.Random(11).randbytes(4 * MIB + 12345)


@pytest.fixture
def transport() -> str:
    """By the ring only."""
    if not ring_parameter():
        pytest.skip("this kernel has no FUSE over io_uring")
    return "ring"


@pytest.fixture(scope="module")
def best(kernel_ready, tmp_path_factory) -> str:
    """The dialect that a daemon chooses by itself here."""
    if not ring_parameter():
        pytest.skip("this kernel has no FUSE over io_uring")
    base = Path(os.environ.get("PASSTHRU_TEST_DIR", "/var/tmp")) / f"passthru-best-{os.getpid()}"
    src, mnt = base / "src", base / "mnt"
    src.mkdir(parents=True)
    mnt.mkdir()
    try:
        done = run("--transport", "ring", src, mnt)
        assert done.returncode == 0, done.stderr
        return stats.of(mnt).dialect
    finally:
        subprocess.run(["umount", mnt], check=False)
        shutil.rmtree(base)


def start_line(fs: Daemon) -> str:
    return fs.stderr().splitlines()[0]


def zero_copies(fs: Daemon) -> bool:
    return ", zero-copy" in start_line(fs)


def pinned_buffers(fs: Daemon) -> tuple[int, bool]:
    """How many payload buffers a queue has, and whether they are pinned, by the start line."""
    found = re.search(r"\((\d+) (pinned )?buffers each\)", start_line(fs))
    return (int(found[1]), bool(found[2])) if found else (0, False)


@pytest.fixture
def data(mount) -> Iterator[Daemon]:
    """A mount for file data. With zero-copy for all files some of it has to have gone that way."""
    fs = mount()
    yield fs
    if zero_copies(fs) and asked(fs.command, "--zero-copy") == "on":
        assert fs.stats().total("io_zero_copy") > 0


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def read_at(fd: int, size: int, at: int) -> bytes:
    """pread(2) into page-aligned memory, as O_DIRECT wants it."""
    with mmap.mmap(-1, max(size, 1)) as m:
        got = os.preadv(fd, [memoryview(m)[:size]], at)
        return m[:got]


def write_at(fd: int, content: bytes, at: int) -> int:
    """pwrite(2) from page-aligned memory."""
    with mmap.mmap(-1, len(content)) as m:
        m[:] = content
        return os.pwritev(fd, [m], at)


def memory(fs: Daemon, what: str) -> int:
    """Bytes, by a line of /proc/PID/status."""
    return int(re.search(rf"{what}:\s*(\d+)", Path(f"/proc/{fs.pid}/status").read_text())[1]) << 10


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


# ------------------------------------------------- fewer buffers than entries

@FIO
@pytest.mark.parametrize("engine", ["io_uring", "libaio"])
@pytest.mark.parametrize("buffers", [1, 2, 8])
def test_fewer_buffers_than_entries(mount, place, buffers, engine):
    """64 requests at once and a few buffers: none waits for ever, all data is right, memory is that of the buffers."""
    fs = mount("--queue-depth=64", f"--payload-buffers={buffers}")
    if fs.stats().dialect == "per-entry":
        pytest.skip("each entry has its own buffer in this dialect")
    assert pinned_buffers(fs)[0] == buffers
    before = memory(fs, "VmRSS")
    done = subprocess.run(
        ["fio", f"--name={engine}", f"--directory={fs.mnt}", "--size=8m", "--numjobs=2", "--rw=randrw", "--direct=1",
         "--bsrange=4k-256k", f"--ioengine={engine}", "--iodepth=64", "--verify=crc32c", "--verify_fatal=1",
         "--do_verify=1", "--randseed=5", "--group_reporting", f"--aux-path={place}"],
        capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # Besides the buffers: stacks, and tables that grow.
    assert memory(fs, "VmRSS") - before < (buffers * int(fs.stats().header["queues"]) + 8) * MIB


def test_waiting_without_a_payload(mount):
    """Who waits for a lock holds no payload buffer: the others go on, with a single one."""
    fs = mount("--payload-buffers=1")
    (fs.mnt / "lock").touch()
    waiter = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)"
    with open(fs.mnt / "lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiters = [subprocess.Popen([sys.executable, "-c", waiter, fs.mnt / "lock"]) for _ in range(6)]
        try:
            until(lambda: fs.stats().ops().get("SETLKW", 0) >= 6, "all wait", 30)
            (fs.mnt / "f").write_bytes(PATTERN)
            drop_caches()
            assert (fs.mnt / "f").read_bytes() == PATTERN
            assert sorted(os.listdir(fs.mnt)) == ["f", "lock"]
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)
            assert [w.wait(30) for w in waiters] == [0] * 6


def test_remote_source(mount, place):
    """Who reads a source that may be slow keeps a buffer meanwhile: there is one for each entry, unless a number is
    given."""
    far = mount(source=place / "far", mountpoint=place / "src")
    fs = mount("--queue-depth=8", "--zero-copy=auto", source=far.mnt, mountpoint=place / "mnt")
    if fs.stats().dialect == "per-entry":
        pytest.skip("each entry has its own buffer in this dialect")
    assert pinned_buffers(fs) == (8, False)
    (fs.mnt / "f").write_bytes(PATTERN)
    assert (far.src / "f").read_bytes() == PATTERN
    fs.umount()
    assert fs.wait() == 0
    fs = mount("--queue-depth=8", "--payload-buffers=2", source=far.mnt, mountpoint=place / "mnt")
    assert pinned_buffers(fs)[0] == 2


# ------------------------------------------------------------ forced in vain

@pytest.mark.parametrize("wanted", ["--dialect=bufring", "--dialect=bufpool", "--zero-copy=on",
                                    "--dialect=per-entry --zero-copy=on"])
@pytest.mark.parametrize("transport_option", ["ring", "auto"])
def test_not_to_be_had(best, place, wanted, transport_option):
    """What this kernel lacks and the user insists on is an error, before anything is mounted."""
    if wanted == f"--dialect={best}" or (wanted == "--zero-copy=on" and best != "per-entry"):
        pytest.skip("this kernel has it")
    refused(place, "--transport", transport_option, *wanted.split())


@pytest.mark.parametrize("wanted", ["--dialect={}", "--zero-copy=on"])
def test_not_to_be_had_without_the_ring(best, place, wanted):
    """The parameter that turns the ring off counts as well."""
    with parameter("N"):
        refused(place, wanted.format(best))


def refused(place: Path, *options: str) -> None:
    (place / "src").mkdir()
    (place / "mnt").mkdir()
    done = run(*options, place / "src", place / "mnt")
    if done.returncode == 0:
        detach(str(place / "mnt"))
    assert done.returncode == REFUSED, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not mounted(place / "mnt")


# -------------------------------------------------------------------- data

SIZES = [0, 1, 511, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 3 * MIB + 17]


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_reads_to_the_end(data, flags):
    """Reads before, across and past the end are as long as the file allows, and of the right bytes."""
    for size in SIZES:
        (data.src / f"{size}").write_bytes(PATTERN[:size])
    for size in SIZES:
        with opened(data.mnt / f"{size}", os.O_RDONLY | flags) as fd:
            for at in {0, 4096, size // 2 & ~4095, max(0, size - 1) & ~4095, (size + 4095) & ~4095, size + MIB & ~4095}:
                for length in (4096, 65536, MIB, 2 * MIB):
                    got = read_at(fd, length, at)
                    assert got == PATTERN[:size][at:at + length], f"{size} bytes, {length} at {at}: {len(got)}"


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_holes(data, flags):
    """Holes are zeros in whatever page a read finds; nothing of an earlier reply shows through."""
    with opened(data.src / "f", os.O_CREAT | os.O_WRONLY) as fd:
        for at in (8192, MIB, 3 * MIB + 4096):
            os.pwrite(fd, PATTERN[:4096], at)
        os.ftruncate(fd, 5 * MIB + 1)
    (data.src / "full").write_bytes(b"\xff" * 4 * MIB)
    want = (data.src / "f").read_bytes()
    with opened(data.mnt / "full", os.O_RDONLY | flags) as full, opened(data.mnt / "f", os.O_RDONLY | flags) as fd:
        for at in range(0, 6 * MIB, MIB // 2):
            assert read_at(full, MIB, 0) == b"\xff" * MIB
            assert read_at(fd, MIB, at) == want[at:at + MIB], at


def test_file_grows_and_shrinks(data):
    """Direct reads meanwhile return a part of the file as it was at some moment: never anything else."""
    top = 2 * MIB
    want = PATTERN[:top]
    ending = threading.Event()
    (data.src / "f").write_bytes(want)

    def change() -> None:
        rng = random.Random(2)
        with opened(data.src / "f", os.O_WRONLY) as fd:
            while not ending.is_set():
                at = rng.randrange(top)
                os.ftruncate(fd, at)
                while at < top and not ending.is_set():
                    at += os.pwrite(fd, want[at:at + rng.randrange(1, 300_000)], at)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        lengths = set()
        end = time.monotonic() + 3
        with opened(data.mnt / "f", os.O_RDONLY | os.O_DIRECT) as fd:
            while time.monotonic() < end:
                at = random.randrange(0, top, 4096)
                got = read_at(fd, MIB, at)
                assert got == want[at:at + len(got)], f"{len(got)} bytes at {at}"
                lengths.add(len(got))
        assert len(lengths) > 3
    finally:
        ending.set()
        changer.join()


def test_file_grows_and_shrinks_in_the_cache(mount):
    """The page cache sees what the source has once it is left alone."""
    fs = mount("--attr-timeout=0")
    path = fs.mnt / "f"
    for size in [3 * MIB, 5, 2 * MIB + 3, 0, MIB, 4 * MIB, 4095]:
        (fs.src / "f").write_bytes(PATTERN[size % 999:][:size])
        assert path.read_bytes() == PATTERN[size % 999:][:size]
        with opened(fs.src / "f", os.O_WRONLY) as fd:
            os.ftruncate(fd, size // 2)
        assert path.read_bytes() == PATTERN[size % 999:][:size // 2]
        os.utime(fs.src / "f", ns=(1, size))


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_appends(data, flags):
    """Appends by several at once all arrive, whole."""
    count, size = 40, 8192
    (data.mnt / "f").touch()

    def append(letter: bytes) -> None:
        with opened(data.mnt / "f", os.O_WRONLY | os.O_APPEND | flags) as fd:
            for n in range(count):
                assert write_at(fd, letter * size, 4096 * n) == size

    threads = [threading.Thread(target=append, args=(b,)) for b in (b"a", b"b", b"c", b"d")]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    got = (data.src / "f").read_bytes()
    blocks = [got[at:at + size] for at in range(0, len(got), size)]
    assert all(len(set(b)) == 1 for b in blocks)
    assert sorted(b[:1] for b in blocks) == sorted([b"a", b"b", b"c", b"d"] * count)


def test_writes_of_odd_sizes(data):
    """Random places and sizes, byte-compared in the source and in the mount."""
    rng = random.Random(4)
    want = bytearray(2 * MIB)
    (data.src / "f").write_bytes(want)
    with opened(data.mnt / "f", os.O_RDWR) as fd:
        for _ in range(200):
            at, size = rng.randrange(len(want) - 1), rng.choice([1, 100, 4096, 70_000, MIB])
            part = rng.randbytes(min(size, len(want) - at))
            assert os.pwrite(fd, part, at) == len(part)
            want[at:at + len(part)] = part
    assert (data.src / "f").read_bytes() == want
    drop_caches()
    assert (data.mnt / "f").read_bytes() == want


def test_mmap(data):
    (data.src / "f").write_bytes(PATTERN)
    want = bytearray(PATTERN)
    with opened(data.mnt / "f", os.O_RDWR) as fd, mmap.mmap(fd, len(want)) as m:
        assert m[:] == want
        for at in (0, 5000, MIB, 2 * MIB + 7, len(want) - 3):
            m[at:at + 3] = want[at:at + 3] = b"new"
        m.flush()
        assert (data.src / "f").read_bytes() == want
    drop_caches()
    assert (data.mnt / "f").read_bytes() == want


def test_which_files_are_zero_copied(mount):
    """By default those opened with O_DIRECT, or large ones; where the kernel knows no choice, all."""
    fs = mount("--zero-copy=auto")
    if not zero_copies(fs):
        pytest.skip("no zero-copy in this dialect, or off")
    (fs.src / "small").write_bytes(PATTERN[:100_000])
    (fs.src / "large").write_bytes(PATTERN)

    def copied(name: str, flags: int = 0) -> bool:
        before = fs.stats().total("io_zero_copy")
        with opened(fs.mnt / name, os.O_RDONLY | flags) as fd:
            assert read_at(fd, 65536, 0) == PATTERN[:65536]
        return fs.stats().total("io_zero_copy") > before

    assert copied("small") == (fs.stats().dialect == "bufring")
    assert copied("small", os.O_DIRECT)
    assert copied("large")


def test_readahead(data):
    (data.src / "f").write_bytes(PATTERN * 4)
    with open(data.mnt / "f", "rb") as f:
        for at in range(0, 4 * len(PATTERN), 5000):
            assert f.read(5000) == (PATTERN[at % len(PATTERN):] + PATTERN)[:5000][:4 * len(PATTERN) - at], at


def test_writeback(mount):
    """Writes collected in the kernel's cache arrive as they would have."""
    fs = mount("--writeback")
    rng = random.Random(9)
    want = bytearray()
    with opened(fs.mnt / "f", os.O_RDWR | os.O_CREAT) as fd:
        for n in range(300):
            at = rng.randrange(len(want) + 1) if n % 3 else len(want)
            part = rng.randbytes(rng.choice([1, 10, 4096, 30_000]))
            os.pwrite(fd, part, at)
            want[at:at + len(part)] = part
            if n % 100 == 50:
                del want[len(want) // 2:]
                os.ftruncate(fd, len(want))
        os.fsync(fd)
        assert (fs.src / "f").read_bytes() == want
        with open(fs.mnt / "f", "ab") as f:
            f.write(b"tail")
    (fs.mnt / "big").write_bytes(PATTERN)
    os.sync()
    assert (fs.src / "f").read_bytes() == want + b"tail"
    assert (fs.src / "big").read_bytes() == PATTERN
    drop_caches()
    assert (fs.mnt / "big").read_bytes() == PATTERN


@pytest.fixture
def small(transport) -> Iterator[Path]:
    """A source of 8 MiB."""
    src = Path(tempfile.mkdtemp(prefix="passthru-", dir=os.environ.get("PASSTHRU_TEST_DIR", "/var/tmp")))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", src], check=True)
    yield src
    subprocess.run(["umount", src], check=True)
    src.rmdir()


# A direct write of which a part fits is EIO by the kernel's own rule for several requests in one write(2).
@pytest.mark.parametrize("flags, size", [(0, 700 << 10), (os.O_DIRECT, MIB // 2)], ids=["buffered", "direct"])
def test_no_space(small, mount, flags, size):
    """A full source: what was reported as written is there, and nothing else; the error is ENOSPC."""
    fs = mount(source=small)
    for _ in range(2):
        at = 0
        with opened(fs.mnt / "f", os.O_WRONLY | os.O_CREAT | flags) as fd, \
                pytest.raises(OSError, match="No space left"):
            while at < 20 * MIB:
                n = write_at(fd, PATTERN[at % MIB:][:size], at)
                assert 0 < n <= size
                assert n % 4096 == 0
                at += n
        got = (small / "f").read_bytes()
        assert 7 * MIB < at <= len(got)
        for start in range(0, at, size):
            end = min(start + size, at)
            assert got[start:end] == PATTERN[start % MIB:][:end - start], start
        (fs.mnt / "f").unlink()
        until(lambda: os.statvfs(small).f_bfree == os.statvfs(small).f_blocks, "given back")  # by FORGET


# --------------------------------------- requests with pages that are no READ

@pytest.fixture(params=["N", "Y"], ids=["all", "rw-only"])
def rw_only(request, transport) -> Iterator[bool]:
    """Zero-copy for all requests with pages, and for READ and WRITE only."""
    if not RW_ONLY.exists():
        pytest.skip(f"this kernel has no {RW_ONLY.name}")
    before = RW_ONLY.read_text().strip()
    RW_ONLY.write_text(request.param)
    yield request.param == "Y"
    RW_ONLY.write_text(before)


def test_listings_and_links(rw_only, mount):
    """READDIR, READDIRPLUS and READLINK by the kernel's own pages, many at once."""
    fs = mount()
    rng = random.Random(6)
    d = fs.src / "d"
    d.mkdir()
    names = {f"{n}" + "x" * rng.randrange(200) for n in range(1500)}
    for name in names:
        (d / name).touch()
    targets = {}
    for n in [1, 2, 100, 1000, 4000, 4095]:
        targets[f"{n}"] = "t" * n
        os.symlink("t" * n, fs.src / f"{n}")
    wrong: list[str] = []

    def look() -> None:
        for _ in range(4):
            if set(os.listdir(fs.mnt / "d")) != names:
                wrong.append("names")
            if {e.name for e in os.scandir(fs.mnt / "d") if e.is_file() and e.stat().st_size == 0} != names:
                wrong.append("entries")
            for name, target in targets.items():
                if os.readlink(fs.mnt / name) != target:
                    wrong.append(name)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    ops = fs.stats().ops()
    assert ops["READLINK"] and ops.get("READDIR", 0) + ops.get("READDIRPLUS", 0)
    if zero_copies(fs):
        assert (fs.stats().total("io_zero_copy") > 0) != rw_only


def test_other_requests_with_pages(rw_only, mount):
    """An ioctl gets an answer, as in the source or that it is none; getdents in small steps goes on."""
    fs = mount()
    (fs.src / "f").touch()
    for n in range(300):
        (fs.src / f"{n}").touch()
    for _ in range(2):
        out = subprocess.run(["lsattr", fs.mnt], capture_output=True, text=True, timeout=20, check=False)
        assert out.returncode >= 0
    fd = os.open(fs.mnt, os.O_RDONLY)
    try:
        assert len(os.listdir(fd)) == 301
    finally:
        os.close(fd)


# ----------------------------------------------------------------- FORGET

def test_forgets(mount):
    """Each lookup is forgotten once, whichever way the FORGETs come."""
    fs = mount()
    for n in range(20):
        (fs.mnt / f"{n}").mkdir()
        for k in range(60):
            (fs.mnt / f"{n}" / f"{k}").touch()
        os.link(fs.mnt / f"{n}" / "1", fs.mnt / f"{n}" / "link")
        (fs.mnt / f"{n}" / "2").rename(fs.mnt / f"{n}" / "renamed")
        (fs.mnt / f"{n}" / "3").unlink()
    for _ in range(3):
        assert sum(len(files) for _, _, files in os.walk(fs.mnt)) == 20 * 60
        drop_caches()
        until(lambda: (fs.mnt / "0" / "1").stat().st_nlink == 2, "forgotten while in use")
    with open(fs.mnt / "5" / "7") as held:
        drop_caches()
        assert fs.stats().total("lookups") > 20 * 60
        assert os.fstat(held.fileno()).st_nlink == 1
    fs.check_level()
    if fs.stats().dialect == "bufring":
        assert forgets_by_ring(fs.stats()) > 1000
