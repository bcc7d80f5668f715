"""Memory is taken with use, and an idle daemon takes no CPU time."""
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _daemon import environment

from passthru import _server

pytestmark = pytest.mark.release_only("a build with sanitizers needs more memory")

CPUS = len(os.sched_getaffinity(0))
MIB = 1 << 20
PER_CPU = 4 * MIB
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def resident(pid: int) -> int:
    """Bytes in memory."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Rss: +(\d+) kB", text, re.MULTILINE)[1]) * 1024


@pytest.fixture(scope="module")
def interpreter() -> int:
    """What a Python takes that has loaded all that the daemon is made of."""
    code = "import passthru.session, sys; print(); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], env=environment(), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as p:
        p.stdout.readline()
        size = resident(p.pid)
        p.communicate(b"")
    return size


def test_at_start(fs, interpreter):
    assert resident(fs.pid) - interpreter <= CPUS * PER_CPU


@pytest.mark.skipif(_server.DEBUG, reason="debug builds compare their counters with it")
def test_no_library_for_looking_at_mounts(fs):
    """Only what is imported at the start could be: later the daemon opens no file by a path."""
    os.listdir(fs.mnt)
    mapped = Path(f"/proc/{fs.pid}/maps").read_text()
    assert "/passthru/_server." in mapped
    assert not [name for name in ("numpy", "psutil") if f"/{name}/" in mapped]


def test_deep_queues_cost_no_payload_memory_at_start(mount, transport, interpreter):
    fs = mount("--queue-depth", "64")
    assert resident(fs.pid) - interpreter <= CPUS * PER_CPU


def test_grows_with_use_and_no_further(mount, transport):
    """Small requests take a page or two of a payload each, not all of it."""
    fs = mount("--queue-depth", "8")
    (fs.src / "f").write_bytes(os.urandom(4 * MIB))

    def read(block: int) -> int:
        fd = os.open(fs.mnt / "f", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(3):
            for at in range(0, 4 * MIB, block):
                assert len(os.pread(fd, block, at)) == block
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        return resident(fs.pid)

    before = resident(fs.pid)
    small = read(4096)
    if "[always]" not in (THP.read_text() if THP.exists() else ""):
        assert small - before < 2 * MIB
    large = read(MIB)
    limit = CPUS * 8 * MIB if transport == "ring" else 2 * len(os.listdir(f"/proc/{fs.pid}/task")) * MIB
    assert large - before < limit + 2 * MIB


def test_room_for_fds_from_the_start(fs):
    """Where threads share the table, the kernel grows it by waiting for all CPUs, in some request's open(2)."""
    def room() -> int:
        return int(re.search(r"^FDSize:\s+(\d+)", Path(f"/proc/{fs.pid}/status").read_text(), re.MULTILINE)[1])

    before = room()
    for n in range(600):
        (fs.src / f"f{n}").touch()
    assert sum(e.stat().st_size for e in os.scandir(fs.mnt)) == 0
    assert len(os.listdir(f"/proc/{fs.pid}/fd")) > 600
    assert room() == before


@pytest.mark.skipif(not THP.exists(), reason="this kernel has no transparent huge pages")
def test_large_payloads_lie_on_huge_pages(mount, transport):
    """Once they have been used; those that are pinned stay as they are."""
    if transport != "ring":
        pytest.skip("/dev/fuse has one buffer for each thread, not a payload for each entry")
    fs = mount("--queue-depth", "8", "--max-write", "1M")

    def huge() -> int:
        text = Path(f"/proc/{fs.pid}/smaps_rollup").read_text()
        return int(re.search(r"^AnonHugePages: +(\d+) kB", text, re.MULTILINE)[1])

    def write(block: int) -> None:
        data = os.urandom(4 * MIB)
        with open(fs.mnt / "f", "wb", buffering=0) as f:
            for at in range(0, len(data), block):
                assert f.write(data[at:at + block]) == block
        assert (fs.src / "f").read_bytes() == data

    write(65536)
    before = huge()
    write(MIB)
    assert huge() > before
    write(MIB)


def test_idle(fs):
    """No clock tick of CPU time in seconds, after work as well."""
    (fs.mnt / "f").write_bytes(b"x" * 100_000)
    assert (fs.mnt / "f").read_bytes()
    time.sleep(0.2)

    def ticks() -> int:
        fields = Path(f"/proc/{fs.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(3)
    assert ticks() == before
