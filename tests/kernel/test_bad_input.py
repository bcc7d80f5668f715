"""What cannot be mounted: one line on stderr, a documented exit code, nothing mounted."""
import os
import socket
import subprocess

import pytest
from _daemon import mounts_below, run

from passthru.errors import EXIT_CODES

pytestmark = pytest.mark.release_only("the Python around the compiled modules")

USAGE, SOURCE, MOUNTPOINT = 2, 3, 4

BAD_OPTIONS = [
    ["--unknown"], ["-Z"], ["-o", "unknown"], ["-o", "ro,unknown=1"], ["-o", "ro=1"], ["-o", "fsname"],
    ["-o", "fsname="], ["-o", "queue_depth=x"], ["-o", "max_write=1"], ["-o"],
    ["--queue-depth", "0"], ["--queue-depth", "-1"], ["--queue-depth", "99999"], ["--queue-depth", "many"],
    ["--queue-depth", ""], ["--queue-depth"],
    ["--max-write", "0"], ["--max-write", "4097"], ["--max-write", "1"], ["--max-write", "1t"],
    ["--max-write", "99999999999999999999"], ["--max-write", "128m"], ["--max-write", "k"],
    ["--attr-timeout", "-1"], ["--attr-timeout", "nan"], ["--entry-timeout", "inf"],
    ["--transport", "tcp"], ["--transport", ""], ["--threads", "-1"], ["--max-background", "0"],
    ["--spin-us", "-5"],
]


@pytest.fixture
def ends(place):
    (place / "src").mkdir()
    (place / "mnt").mkdir()
    return place / "src", place / "mnt"


def refused(place, code: int, *args) -> str:
    """Run, and see that it is refused as it must be. What it said."""
    done = run(*args, timeout=10)
    assert not mounts_below(place)
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("passthru: "), done.stderr
    assert done.stdout == ""
    assert done.returncode == code, lines
    assert code in [c for c, _ in EXIT_CODES]
    return lines[0]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=" ".join)
def test_option(place, ends, options):
    rest = () if options[-1] in ("-o", "--queue-depth") else ends
    refused(place, USAGE, "-f", *options, *rest)


def test_missing_arguments(place, ends):
    refused(place, USAGE)
    refused(place, USAGE, ends[0])
    refused(place, USAGE, *ends, "third")
    refused(place, SOURCE, "-f", "", ends[1])


@pytest.mark.parametrize("where", [("-f",), ()], ids=["foreground", "background"])
class TestPlaces:
    def test_missing_source(self, place, ends, where):
        assert f"{place}/none" in refused(place, SOURCE, *where, place / "none", ends[1])

    def test_file_on_a_directory(self, place, ends, where):
        (place / "file").touch()
        assert "the source is a file" in refused(place, MOUNTPOINT, *where, place / "file", ends[1])

    def test_directory_on_a_file(self, place, ends, where):
        (place / "file").touch()
        assert "not a directory" in refused(place, MOUNTPOINT, *where, ends[0], place / "file")

    def test_file_on_a_fifo(self, place, ends, where):
        (place / "file").touch()
        os.mkfifo(place / "fifo")
        assert "regular file" in refused(place, MOUNTPOINT, *where, place / "file", place / "fifo")

    @pytest.mark.parametrize("source", ["/dev/null", "fifo", "socket"])
    def test_source_of_no_use(self, place, ends, where, source):
        (place / "file").touch()
        os.mkfifo(place / "fifo")
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(place / "socket"))
            assert "block device" in refused(place, SOURCE, *where, place / source, place / "file")

    def test_fixed_size(self, place, ends, where):
        (place / "a").touch()
        (place / "b").touch()
        assert "directory" in refused(place, USAGE, *where, "--fixed-size", *ends)
        assert "--writeback" in refused(place, USAGE, *where, "--fixed-size", "--writeback", place / "a", place / "b")

    def test_source_is_a_loop(self, place, ends, where):
        os.symlink("loop", place / "loop")
        refused(place, SOURCE, *where, place / "loop", ends[1])

    def test_missing_mountpoint(self, place, ends, where):
        assert f"{place}/none" in refused(place, MOUNTPOINT, *where, ends[0], place / "none")

    def test_mountpoint_in_use(self, place, ends, where):
        subprocess.run(["mount", "-t", "tmpfs", "none", ends[1]], check=True)
        try:
            done = run(*where, *ends)
        finally:
            subprocess.run(["umount", ends[1]], check=True)
        assert done.returncode == MOUNTPOINT
        assert len(done.stderr.splitlines()) == 1 and "mount point" in done.stderr
        assert not mounts_below(place)


def test_mounted_twice(fs):
    """The second is refused, the first goes on."""
    (fs.mnt / "f").write_text("x")
    done = run("-f", fs.src, fs.mnt)
    assert done.returncode == MOUNTPOINT
    assert len(done.stderr.splitlines()) == 1
    assert (fs.mnt / "f").read_text() == "x"


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_told(word):
    done = run(word)
    assert (done.returncode, done.stderr) == (0, "")
    assert "passthru" in done.stdout
