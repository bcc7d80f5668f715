"""Who may act for others by a capability, or by one of many groups, gets through the mount what the source gives."""
import ctypes
import errno
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from _users import as_user

LIBC = ctypes.CDLL(None, use_errno=True)
ANN, BEN, CEM = 12345, 200001, 200002  # Ben and Cem are Ann's subordinate ids
CAP_DAC_OVERRIDE, CAP_FOWNER = 1, 3
PR_SET_KEEPCAPS, PR_SET_DUMPABLE, CLONE_NEWUSER = 8, 4, 0x10000000
NET_RAW = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


def with_capability(cap: int, act: Callable[[], object]) -> object:
    """act() as Ann with that capability."""
    def child() -> object:
        LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresgid(ANN, ANN, ANN)
        os.setresuid(ANN, ANN, ANN)
        bits = struct.pack("6I", 1 << cap, 1 << cap, 0, 0, 0, 0)
        assert LIBC.capset(struct.pack("Ii", 0x20080522, 0), bits) == 0
        return act()
    return as_user(0, 0, [], child)


def as_namespace_root(act: Callable[[], object]) -> object:
    """act() as root of a user namespace of Ann's that has her and her subordinate ids."""
    ready, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # writes the maps
        os.close(ready[1])
        pid = int(os.read(ready[0], 20) or b"0")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 {ANN} 1\n1 200000 65536")
        os.write(mapped[1], b"x")
        os._exit(0)

    def inside() -> object:
        LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        assert LIBC.unshare(CLONE_NEWUSER) == 0, os.strerror(ctypes.get_errno())
        os.write(ready[1], str(os.getpid()).encode())
        os.read(mapped[0], 1)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        return act()
    try:
        return as_user(ANN, ANN, [], inside)
    finally:
        os.close(ready[1])
        os.waitpid(child, 0)
        for fd in (ready[0], *mapped):
            os.close(fd)


WHO = {
    "root of a user namespace": as_namespace_root,
    "CAP_FOWNER": lambda act: with_capability(CAP_FOWNER, act),
}


@pytest.fixture
def fs(mount, place):
    (place / "src").mkdir()
    (place / "src").chmod(0o1777)
    return mount()


def owned(path: Path, owner: int, mode: int, *, directory: bool = False) -> Path:
    if directory:
        path.mkdir()
    else:
        path.touch()
    os.chown(path, owner, owner)
    path.chmod(mode)
    return path


def outcome(who: Callable[[Callable[[], object]], object], act: Callable[[], object]) -> object:
    try:
        return who(act)
    except OSError as e:
        return errno.errorcode[e.errno or 0]


def both(fs, prepare, who, act) -> tuple[object, object]:
    """What comes of act(directory) in the source, and in the mount, each in a directory of its own."""
    found = []
    for name, top in (("bare", fs.src), ("mount", fs.mnt)):
        prepare(owned(fs.src / name, ANN, 0o777, directory=True))
        found.append(outcome(who, lambda where=top / name: act(where)))
    return found[0], found[1]


def sticky(where: Path) -> None:
    s = owned(where / "s", BEN, 0o1777, directory=True)
    owned(s / "f", CEM, 0o644)
    owned(s / "g", CEM, 0o644)
    owned(s / "program", CEM, 0o4755)


ACTS = {
    "unlink": lambda where: os.unlink(where / "s" / "f"),
    "rename": lambda where: os.rename(where / "s" / "f", where / "s" / "h"),
    "rename over": lambda where: os.rename(where / "s" / "f", where / "s" / "g"),
    "link": lambda where: os.link(where / "s" / "f", where / "l"),
    "link of a program": lambda where: os.link(where / "s" / "program", where / "l"),
}


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("act", ACTS)
def test_sticky_directory(fs, who, act):
    bare, mount = both(fs, sticky, WHO[who], ACTS[act])
    assert (bare, mount) == (None, None)


@pytest.mark.parametrize("act", ACTS)
def test_sticky_directory_of_strangers(fs, act):
    bare, mount = both(fs, sticky, lambda do: as_user(ANN, ANN, [], do), ACTS[act])
    assert (bare, mount) == ("EPERM", "EPERM")


def two_places(where: Path) -> None:
    for name in "ab":
        owned(where / name, BEN, 0o777, directory=True)
    owned(where / "a" / "d", CEM, 0o755, directory=True)


def move(where: Path) -> None:
    os.rename(where / "a" / "d", where / "b" / "d")


@pytest.mark.parametrize("who", [as_namespace_root, lambda act: with_capability(CAP_DAC_OVERRIDE, act)])
def test_moving_a_directory_by_capability(fs, who):
    assert both(fs, two_places, who, move) == (None, None)


@pytest.mark.parametrize("group", [5000, 5001])
def test_moving_a_directory_by_an_acl(fs, group):
    """A directory that goes elsewhere must be writable; which of the mover's groups makes it so does not matter."""
    def prepare(where: Path) -> None:
        two_places(where)
        subprocess.run(["setfacl", "-m", "g:5000:rwx", where / "a" / "d"], check=True)
    expected = None if group == 5000 else "EACCES"
    assert both(fs, prepare, lambda act: as_user(ANN, ANN, [4000, group], act), move) == (expected, expected)


@pytest.mark.parametrize("owner", [ANN, CEM, 0])
def test_capabilities_given_by_a_namespaces_root(fs, owner):
    """They are of the form that counts in that namespace only."""
    def give(where: Path) -> None:
        os.setxattr(where / "f", "security.capability", NET_RAW)
    bare, mount = both(fs, lambda where: owned(where / "f", owner, 0o755), as_namespace_root, give)
    assert (bare, mount) == ((None, None) if owner else ("EPERM", "EPERM"))
    if owner:
        assert os.getxattr(fs.src / "mount" / "f", "security.capability") == \
            os.getxattr(fs.src / "bare" / "f", "security.capability")


def test_link_of_what_was_ones_own(mount, place):
    """fs.protected_hardlinks asks for the owner that a file has now, not for the one that the kernel was told of."""
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        pytest.skip("fs.protected_hardlinks is off")
    (place / "src").mkdir()
    (place / "src").chmod(0o777)
    fs = mount("--cache", "always")
    for mode in (0o4755, 0o644):
        owned(fs.src / f"f{mode}", ANN, 0o644)
        os.stat(fs.mnt / f"f{mode}")
        os.chown(fs.src / f"f{mode}", 0, 0)
        (fs.src / f"f{mode}").chmod(mode)
    # That a file may be read and written, for which others may be linked as well, may be as old as its attributes.
    with pytest.raises(PermissionError):
        as_user(ANN, ANN, [], lambda: os.link(fs.mnt / "f2541", fs.mnt / "l"))
    as_user(ANN, ANN, [], lambda: os.link(fs.mnt / "f420", fs.mnt / "m"))
