"""Unmounting from outside ends the daemon."""
import contextlib
import os
import shutil
import signal
import subprocess

import pytest
from _daemon import mounted, until


@pytest.fixture
def connections(place):
    """The kernel's control files of FUSE connections."""
    where = place / "connections"
    where.mkdir()
    if subprocess.run(["mount", "-t", "fusectl", "none", where], capture_output=True, check=False).returncode:
        pytest.skip("no fusectl filesystem")
    yield where
    subprocess.run(["umount", where], check=True)


def test_umount(fs):
    (fs.mnt / "f").write_text("x")
    fs.umount()
    assert fs.wait() == 0
    assert not mounted(fs.mnt)


def test_at_once(fs):
    fs.umount()
    assert fs.wait() == 0


@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="fusermount3 is not installed (fuse3)")
def test_fusermount(fs):
    subprocess.run(["fusermount3", "-u", fs.mnt], check=True)
    assert fs.wait() == 0
    assert not mounted(fs.mnt)


def test_busy(fs):
    """umount refuses while a file is open; the mount stays as it was."""
    with open(fs.mnt / "f", "w") as f:
        refused = subprocess.run(["umount", fs.mnt], capture_output=True, text=True, check=False)
        assert refused.returncode != 0 and "busy" in refused.stderr
        f.write("still")
    assert (fs.mnt / "f").read_text() == "still"


def test_lazy(fs):
    """After umount -l an open file works on until it is closed; then the daemon ends."""
    with open(fs.mnt / "f", "w+b", buffering=0) as f:
        f.write(b"before")
        fs.umount("-l")
        assert not mounted(fs.mnt)
        f.write(b", after")
        os.fsync(f.fileno())
        assert os.pread(f.fileno(), 100, 0) == b"before, after"
        assert os.fstat(f.fileno()).st_size == 13
        assert fs.process.poll() is None
    assert fs.wait() == 0
    assert (fs.src / "f").read_bytes() == b"before, after"


def test_lazy_with_a_working_directory(fs):
    (fs.mnt / "d").mkdir()
    user = subprocess.Popen(["sh", "-c", "read go; echo late >f"], cwd=fs.mnt / "d", stdin=subprocess.PIPE)
    fs.umount("-l")
    user.communicate(b"\n")
    assert user.returncode == 0
    assert fs.wait() == 0
    assert (fs.src / "d" / "f").read_text() == "late\n"


def test_under_load(fs):
    """umount between uses; whoever comes later finds the empty mountpoint."""
    script = "while [ ! -e $1/stop ]; do ls -l $0; stat $0/x; done"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    users = [subprocess.Popen(["sh", "-c", script, fs.mnt, fs.mnt.parent], **quiet) for _ in range(3)]
    try:
        until(lambda: sum(fs.stats().ops().values()) > 300, "busy")
        until(lambda: subprocess.run(["umount", fs.mnt], check=False, **quiet).returncode == 0, "unmounted", 30)
        assert fs.wait() == 0
    finally:
        (fs.mnt.parent / "stop").touch()
        for user in users:
            user.wait(20)


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
def test_lazy_under_fio(fs, place):
    """fio goes on to its end after umount -l."""
    fio = subprocess.Popen(
        ["fio", "--name=x", f"--directory={fs.mnt}", "--size=8m", "--numjobs=2", "--rw=randrw", "--bs=4k",
         "--ioengine=libaio", "--direct=1", "--iodepth=8", "--time_based", "--runtime=2",
         f"--aux-path={place}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until(lambda: fs.stats().ops().get("WRITE", 0) > 100, "fio writes")
    fs.umount("-l")
    out, _ = fio.communicate(timeout=60)
    assert fio.returncode == 0, out.decode()
    assert fs.wait() == 0


def test_aborted(fs, connections):
    """The kernel's own abort ends it too, with a file open, and leaves no dead mount."""
    fd = os.open(fs.mnt / "f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x")
    (connections / f"{os.minor(os.stat(fs.mnt).st_dev)}" / "abort").write_text("1")
    try:
        fs.expected_code = fs.wait()
        with pytest.raises(OSError):
            os.write(fd, b"y")
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
    assert not mounted(fs.mnt)


def test_again_and_again(mount, place):
    """Start and end many times over leaves nothing."""
    for n in range(10):
        fs = mount(mountpoint=place / "mnt")
        (fs.mnt / f"{n}").touch()
        fs.umount()
        assert fs.wait() == 0
    assert len(os.listdir(place / "src")) == 10


def test_anothers_mount_over_it(fs):
    """The daemon's end takes away its own mount only, not what somebody else has put on it."""
    subprocess.run(["mount", "-t", "tmpfs", "none", fs.mnt], check=True)
    (fs.mnt / "anothers").touch()
    try:
        fs.signal(signal.SIGTERM)
        assert fs.wait() == 0
        assert os.listdir(fs.mnt) == ["anothers"]
    finally:
        while mounted(fs.mnt):  # its own is below, where it could not be reached
            subprocess.run(["umount", "-l", fs.mnt], check=True)


def test_many_mounts(mount, place):
    mounts = [mount(mountpoint=place / f"m{n}") for n in range(4)]
    for n, fs in enumerate(mounts):
        (fs.mnt / f"{n}").touch()
    assert sorted(os.listdir(mounts[0].mnt)) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("first", ["umount", "signal"])
def test_told_to_end_with_a_copy(fs, place, first):
    """A mount that is bound elsewhere outlives umount(8), but not the word to end."""
    (place / "copy").mkdir()
    subprocess.run(["mount", "--bind", fs.mnt, place / "copy"], check=True)
    try:
        if first == "umount":
            fs.umount()
            (place / "copy" / "f").write_text("still served")
        else:
            fs.expected_lines = ["is mounted elsewhere as well"]
        fs.signal(signal.SIGTERM)
        assert fs.wait() == 0
    finally:
        subprocess.run(["umount", "-l", place / "copy"], check=True)
