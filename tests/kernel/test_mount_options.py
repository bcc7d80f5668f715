"""-o options, and names of sources and mountpoints that need care."""
import errno
import os
import subprocess

import pytest

from passthru.mounting import mounted_at

pytestmark = pytest.mark.release_only("the Python around the compiled modules")


def words_of(mnt) -> tuple[list[str], str, str]:
    """(options, type, source) of a mount as the kernel shows them."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        line = next(line for line in f if line.split()[4] == str(mnt))
    left, _, right = line.partition(" - ")
    return left.split()[5].split(",") + right.split()[2].split(","), right.split()[0], right.split()[1]


def test_defaults(fs):
    options, kind, source = words_of(fs.mnt)
    assert kind == "fuse.passthru" and source == str(fs.src)
    assert {"rw", "default_permissions", "allow_other"} <= set(options)


def test_read_only(mount, place):
    (place / "src").mkdir()
    (place / "src" / "f").write_text("x")
    fs = mount("-o", "ro")
    assert (fs.mnt / "f").read_text() == "x"
    for act in ((fs.mnt / "g").touch, (fs.mnt / "f").unlink, lambda: (fs.mnt / "f").write_text("y")):
        with pytest.raises(OSError) as e:
            act()
        assert e.value.errno == errno.EROFS
    assert "ro" in words_of(fs.mnt)[0]


def test_fsname_and_flags(mount):
    fs = mount("-o", r"fsname=a\,b,nosuid,nodev", "-o", "noexec,noatime,x-systemd.automount")
    options, _, source = words_of(fs.mnt)
    assert {"nosuid", "nodev", "noexec", "noatime"} <= set(options)
    assert source == "a,b"
    (fs.mnt / "program").write_text("#!/bin/sh\n")
    (fs.mnt / "program").chmod(0o755)
    with pytest.raises(PermissionError):
        subprocess.run([fs.mnt / "program"], check=False)


@pytest.mark.parametrize("option, shown, hidden", [
    ("nodiratime", {"nodiratime", "relatime"}, {"noatime"}), ("noatime", {"noatime"}, {"relatime"}),
    ("strictatime", set(), {"relatime", "noatime"}), ("nosymfollow", {"nosymfollow"}, set()),
    ("nosuid", {"nosuid"}, {"nodev", "noexec"}), ("nodev", {"nodev"}, {"nosuid"}), ("noexec", {"noexec"}, {"nosuid"}),
])
def test_each_flag(mount, option, shown, hidden):
    """What is asked for is what the kernel has, and nothing else."""
    options, _, _ = words_of(mount("-o", option).mnt)
    assert shown <= set(options) and not hidden & set(options)


@pytest.mark.parametrize("name", ["with space", "tab\tand \\ back", "comma,and=", "é", "x" * 240])
def test_odd_names(mount, place, name):
    fs = mount(source=place / f"s {name}"[:255], mountpoint=place / name)
    (fs.mnt / "f").write_text("x")
    assert (fs.src / "f").read_text() == "x"
    found = mounted_at(str(fs.mnt))
    assert found is not None and found.fstype == "fuse.passthru"


def test_long_source_path(mount, place):
    """A path longer than the name of a filesystem may be."""
    source = place / ("l" * 200) / ("m" * 200)
    source.mkdir(parents=True)
    fs = mount(source=source)
    (fs.mnt / "f").write_text("x")
    assert (source / "f").read_text() == "x"


def test_by_symlinks(mount, place):
    """Source and mountpoint named by symlinks are what these lead to."""
    (place / "src").mkdir()
    (place / "real").mkdir()
    os.symlink("src", place / "to source")
    fs = mount(source=place / "to source", mountpoint=place / "real")
    (fs.mnt / "f").write_text("x")
    assert (place / "src" / "f").read_text() == "x"


def test_statfs(fs):
    (fs.mnt / "f").touch()
    a, b = os.statvfs(fs.mnt / "f"), os.statvfs(fs.src / "f")
    for name in ("f_bsize", "f_frsize", "f_blocks", "f_namemax"):
        assert getattr(a, name) == getattr(b, name)
    assert abs(a.f_bavail - b.f_bavail) < b.f_blocks / 20


@pytest.mark.parametrize("words, kept", [("nodiratime", {"d"}), ("noatime", {"d", "f"}), ("strictatime", set())])
def test_whose_access_times_change_in_the_source(mount, place, words, kept):
    """The source's own mount has other rules: the daemon works on a private copy of it."""
    (place / "src").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "strictatime", "tmpfs", place / "src"], check=True)
    try:
        (place / "src" / "d").mkdir()
        (place / "src" / "f").write_text("x")
        for name in ("d", "f"):
            os.utime(place / "src" / name, (1e9, 1e9))
        fs = mount("-o", words)
        os.listdir(fs.mnt / "d")
        (fs.mnt / "f").read_text()
        assert {name for name in ("d", "f") if os.stat(place / "src" / name).st_atime == 1e9} == kept
    finally:
        subprocess.run(["umount", "-l", place / "src"], check=True)
