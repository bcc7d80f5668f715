"""Cache policies: what the kernel keeps, seen by the requests that come."""
import mmap
import os
import re

import pytest

KERNEL = tuple(int(n) for n in re.findall(r"\d+", os.uname().release)[:2])
POLICIES = ("never", "open", "auto", "always")


def requests(fs, *names: str) -> int:
    counts = fs.stats().ops()
    return sum(counts.get(name, 0) for name in names)


def during(fs, act, *names: str) -> int:
    before = requests(fs, *names)
    act()
    return requests(fs, *names) - before


def old_file(fs, name: str, data: bytes) -> None:
    """A file whose content is older than the clock's tick."""
    (fs.src / name).write_bytes(data)
    os.utime(fs.src / name, (1e9, 1e9))


@pytest.mark.parametrize("policy", POLICIES)
def test_pages(mount, policy):
    fs = mount("--cache", policy)
    old_file(fs, "f", b"x" * 65536)
    with open(fs.mnt / "f", "rb", buffering=0) as f:
        f.read()
        again = during(fs, lambda: (f.seek(0), f.read()), "READ")
    assert (again > 0) == (policy == "never")
    reopened = during(fs, (fs.mnt / "f").read_bytes, "READ")
    assert (reopened > 0) == (policy in ("never", "open"))


@pytest.mark.parametrize("policy", POLICIES)
def test_names_and_attributes(mount, policy):
    fs = mount("--cache", policy)
    old_file(fs, "f", b"x")
    os.stat(fs.mnt / "f")
    asked = during(fs, lambda: os.stat(fs.mnt / "f"), "LOOKUP", "GETATTR", "STATX")
    if policy in ("never", "open"):
        assert asked > 0
    if policy == "always":
        assert asked == 0
    # A name that is not there
    assert not (fs.mnt / "new").exists()
    (fs.src / "new").write_text("x")
    if policy in ("never", "open"):
        assert (fs.mnt / "new").exists()
    if policy == "always":
        assert not (fs.mnt / "new").exists()


@pytest.mark.parametrize("policy", ["never", "open"])
def test_change_beside_the_mount(mount, policy):
    fs = mount("--cache", policy)
    old_file(fs, "f", b"old")
    assert (fs.mnt / "f").read_bytes() == b"old"
    (fs.src / "f").write_bytes(b"new")
    assert (fs.mnt / "f").read_bytes() == b"new"


@pytest.mark.parametrize("policy", POLICIES)
def test_listings(mount, policy):
    fs = mount("--cache", policy)
    old_file(fs, "f", b"")
    os.utime(fs.src, (1e9, 1e9))
    names = lambda: os.listdir(fs.mnt)  # noqa: E731
    names()
    names()
    asked = during(fs, names, "READDIR", "READDIRPLUS")
    assert (asked > 0) == (policy in ("never", "open"))
    if policy == "never":
        (fs.src / "g").touch()
        assert sorted(names()) == ["f", "g"]


def test_single_timeouts_go_before_the_policy(mount):
    fs = mount("--cache", "never", "--attr-timeout", "100", "--entry-timeout", "100", "--negative-timeout", "0")
    old_file(fs, "f", b"x")
    os.stat(fs.mnt / "f")
    assert during(fs, lambda: os.stat(fs.mnt / "f"), "LOOKUP", "GETATTR", "STATX") == 0
    assert not (fs.mnt / "new").exists()
    (fs.src / "new").touch()
    assert (fs.mnt / "new").exists()


@pytest.mark.parametrize("option", ["--direct-io", "--cache=never"])
def test_direct_io(mount, option):
    """Reads and writes of any size come as they are, and shared memory maps still work."""
    fs = mount(option)
    path = fs.mnt / "f"
    with open(path, "w+b", buffering=0) as f:
        assert during(fs, lambda: [f.write(b"abc") for _ in range(4)], "WRITE") == 4
        assert (fs.src / "f").read_bytes() == b"abc" * 4
        assert os.pread(f.fileno(), 5, 2) == b"cabca"
        f.truncate(mmap.PAGESIZE)
        if KERNEL >= (6, 6):
            with mmap.mmap(f.fileno(), mmap.PAGESIZE) as m:
                m[:3] = b"xyz"
                m.flush()
    assert path.read_bytes()[:3] in (b"xyz", b"abc")


def test_direct_io_goes_before_kernel_passthrough(mount):
    fs = mount("--passthrough", "--direct-io")
    (fs.mnt / "f").write_bytes(b"x" * 5000)
    assert requests(fs, "WRITE") > 0
    assert ", kernel passthrough" not in fs.stderr()


def test_never_keeps_kernel_passthrough(mount):
    """Files passed through have no pages of their own in the mount."""
    fs = mount("--passthrough", "--cache", "never")
    if ", kernel passthrough" not in fs.stderr():
        pytest.skip("no kernel passthrough here")
    (fs.mnt / "f").write_bytes(b"x" * 5000)
    (fs.src / "f").write_bytes(b"y" * 5000)
    assert (fs.mnt / "f").read_bytes() == b"y" * 5000
    assert requests(fs, "READ", "WRITE") == 0


def test_max_read(mount):
    fs = mount("--direct-io", "-o", "max_read=8192")
    old_file(fs, "f", b"x" * 65536)
    with open(fs.mnt / "f", "rb", buffering=0) as f:
        assert during(fs, lambda: f.read(65536), "READ") == 8
