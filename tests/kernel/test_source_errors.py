"""Errors of the source come through as they are, and what lies before them too: EIO of a device with bad blocks, and
ENOSPC. The device is a loop device, its blocks a memory file which is cut off: what is past that can neither be read
nor written."""
from __future__ import annotations

import array
import errno
import fcntl
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _daemon import Daemon, asked
from _modes import DATA_TOO
from test_dialects import drop_caches, opened, read_at, write_at, zero_copies

LOOP_SET_FD, LOOP_CLR_FD, LOOP_CTL_GET_FREE, FIBMAP = 0x4C00, 0x4C01, 0x4C82, 1
KIB, MIB = 1 << 10, 1 << 20
BAD = 3 * MIB + 20 * KIB  # of the file, from here on
CONTENT = random.Random(7).randbytes(6 * MIB)
FLAGS = pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])


class Device:
    """A small ext4 on a loop device, mounted at `path`."""

    def __init__(self, size: int):
        self.path = Path(tempfile.mkdtemp(prefix="passthru-", dir=os.environ.get("PASSTHRU_TEST_DIR", "/var/tmp")))
        self.blocks = os.memfd_create("blocks", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.blocks, size)
        self.mounted = False
        with open("/dev/loop-control") as control:
            self.node = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
        self.loop = os.open(self.node, os.O_RDWR)
        fcntl.ioctl(self.loop, LOOP_SET_FD, self.blocks)

    def make(self) -> None:
        for command in (["mkfs.ext4", "-qF", "-b4096", "-O^has_journal", "-m0", "-Elazy_itable_init=0", self.node],
                        ["mount", self.node, self.path]):
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        self.mounted = True

    def cut(self, file: Path, at: int) -> None:
        """From `at` on, the file's blocks are bad."""
        os.sync()
        with opened(file, os.O_RDONLY) as fd:
            def block(n: int) -> int:
                a = array.array("i", [n])
                fcntl.ioctl(fd, FIBMAP, a)
                return a[0]

            places = [block(n) for n in range(os.fstat(fd).st_size // 4096)]
        assert places == sorted(places)
        drop_caches()
        os.ftruncate(self.blocks, places[at // 4096] * 4096)
        fcntl.fcntl(self.blocks, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", self.path], check=True)  # nothing of an ended daemon keeps it
        fcntl.ioctl(self.loop, LOOP_CLR_FD)
        os.close(self.loop)
        os.close(self.blocks)
        self.path.rmdir()


@pytest.fixture
def device(transport) -> Iterator[Callable[[int], Device]]:
    """device(size): a new filesystem. To be asked for before `mount`, since the daemon ends first."""
    if not os.path.exists("/dev/loop-control") or shutil.which("mkfs.ext4") is None:
        pytest.skip("wants loop devices and mkfs.ext4 (e2fsprogs)")
    devices = []

    def make(size: int) -> Device:
        devices.append(Device(size))
        devices[-1].make()
        return devices[-1]

    yield make
    for d in devices:
        d.close()


@pytest.fixture
def bad(device) -> Path:
    """A source with a file whose blocks are bad from BAD on."""
    d = device(64 * MIB)
    (d.path / "f").write_bytes(CONTENT)
    d.cut(d.path / "f", BAD)
    return d.path


def wants_bad_reads(path: Path) -> None:
    """Older kernels' loop devices read zeros past the end of their file, and refuse writes only."""
    with opened(path / "f", os.O_RDONLY | os.O_DIRECT) as fd:
        if outcome(lambda: read_at(fd, 4 * KIB, BAD)) != "EIO":
            pytest.skip("this kernel's loop device reads zeros where it has no blocks")


@pytest.fixture
def small(device) -> Path:
    """A source of 16 MiB."""
    return device(16 * MIB).path


@pytest.fixture
def fs(bad, mount) -> Iterator[Daemon]:
    """A mount of it. With zero-copy for all files, data has to have gone that way."""
    fs = mount(source=bad)
    yield fs
    if asked(fs.command, "--zero-copy") == "on" and zero_copies(fs):
        assert fs.stats().total("io_zero_copy") > 0


def outcome(act: Callable[[], object]) -> object:
    try:
        return act()
    except OSError as e:
        return errno.errorcode[e.errno]


@DATA_TOO
@FLAGS
def test_reads(fs, flags):
    """Each read gives what the source gives."""
    wants_bad_reads(fs.src)
    with opened(fs.src / "f", os.O_RDONLY | flags) as there, opened(fs.mnt / "f", os.O_RDONLY | flags) as here:
        for fd in (there, here):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        steps = [(at, 4 * KIB) for at in range(BAD - 40 * KIB, BAD + 40 * KIB, 4 * KIB)]
        if flags or "--no-passthrough" not in fs.command:
            rng = random.Random(1)
            steps += [(rng.randrange(BAD - MIB, BAD + MIB) & -4096, rng.choice([4, 64, 200, 512, 1024]) * KIB)
                      for _ in range(60)]
        for at, size in steps:
            want = outcome(lambda at=at, size=size: read_at(there, size, at))
            got = outcome(lambda at=at, size=size: read_at(here, size, at))
            assert got == want, f"{size} at {at}"
            assert want == "EIO" or at < BAD
        assert outcome(lambda: read_at(here, 4096, BAD)) == "EIO"


@DATA_TOO
def test_readahead(fs):
    """One byte after the other until the error: only right bytes, and in the end the error, never an early end of file.

    How many, the page cache decides, which may keep pages together.
    """
    wants_bad_reads(fs.src)
    for size in (1000, 4096, 64 * KIB, MIB):
        drop_caches()
        with open(fs.mnt / "f", "rb", buffering=0) as f:
            got = b""
            with pytest.raises(OSError) as e:
                while part := f.read(size):
                    got += part
            assert e.value.errno == errno.EIO
            assert CONTENT[:BAD].startswith(got)
            assert len(got) > BAD - MIB


@DATA_TOO
def test_direct_writes(fs):
    """A write that the device refuses is an error at once; one before it is done."""
    for n, path in enumerate((fs.src / "f", fs.mnt / "f")):
        new = random.Random(n).randbytes(256 * KIB)
        with opened(path, os.O_WRONLY | os.O_DIRECT) as fd:
            with pytest.raises(OSError, match="Input/output error"):
                write_at(fd, new, BAD)
            assert write_at(fd, new, BAD - len(new)) == len(new)
        with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
            assert read_at(fd, len(new), BAD - len(new)) == new


@DATA_TOO
@pytest.mark.parametrize("options", [(), ("--writeback",)], ids=["through", "writeback"])
def test_buffered_writes(bad, mount, options, transport):
    """What the source's cache has taken and the device refuses: fsync(2) says so, once, as in the source."""
    wants_bad_reads(bad)
    fs = mount(*options, source=bad)
    for path in (fs.src / "f", fs.mnt / "f"):
        with opened(path, os.O_WRONLY) as fd:
            assert os.pwrite(fd, CONTENT[:96 * KIB], BAD + 4096) == 96 * KIB
            # Of the last page a part would have to be read.
            assert os.pwrite(fd, CONTENT[:100_000], BAD + MIB) == 96 * KIB, path
            assert outcome(lambda fd=fd: os.pwrite(fd, CONTENT[:10], BAD + 2 * MIB)) == "EIO", path
            assert outcome(lambda fd=fd: os.fsync(fd)) == "EIO", path
            assert outcome(lambda fd=fd: os.fsync(fd)) is None, path
        with opened(path, os.O_WRONLY | os.O_SYNC) as fd:
            assert outcome(lambda fd=fd: os.pwrite(fd, CONTENT[:10_000], BAD + MIB)) == "EIO", path
            assert os.pwrite(fd, CONTENT[:10_000], 4096) == 10_000


@DATA_TOO
@FLAGS
def test_no_space(small, mount, flags):
    """A full ext4: what was reported as written is there, and the error is ENOSPC."""
    fs = mount(source=small)
    size = 300 * KIB
    at = 0
    with opened(fs.mnt / "f", os.O_WRONLY | os.O_CREAT | flags) as fd:
        with pytest.raises(OSError) as e:
            while at < 40 * MIB:
                n = write_at(fd, CONTENT[at % MIB:][:size], at)
                assert 0 < n <= size
                at += n - n % 4096
        assert e.value.errno == errno.ENOSPC
        if not flags:
            os.fsync(fd)
    got = (small / "f").read_bytes()
    assert 8 * MIB < at <= len(got)
    for start in range(0, at, size):
        end = min(start + size, at)
        assert got[start:end] == CONTENT[start % MIB:][:end - start], start
