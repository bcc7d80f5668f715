"""--map-uid and --map-gid on a live mount: what is shown, who owns what is made, who may do what."""
import errno
import os
import shutil
import struct
import subprocess

import pytest
from _users import as_user

ALICE, BOB, CAROL = 54001, 54002, 54003
NOBODY = 65534  # as which an id without a counterpart shows
PAIRS = ("--map-uid", f"{ALICE}:{BOB}", "--map-gid", f"{ALICE}:{BOB}")


@pytest.fixture
def open_dir(place):
    """A source in which everybody may make things."""
    (place / "src").mkdir()
    (place / "src").chmod(0o777)
    return place / "src"


def owners(path) -> tuple[int, int]:
    st = os.lstat(path)
    return st.st_uid, st.st_gid


def test_pairs(mount, open_dir):
    """Alice in the mount is Bob in the source; Bob in the mount is nobody there."""
    fs = mount(*PAIRS)
    made = {
        "file": lambda p: p.write_text("x"), "dir": lambda p: p.mkdir(), "link": lambda p: p.symlink_to("to"),
        "fifo": os.mkfifo,
    }
    for name, make in made.items():
        as_user(ALICE, ALICE, [], lambda make=make, name=name: make(fs.mnt / name))
        assert owners(open_dir / name) == (BOB, BOB), name
        assert owners(fs.mnt / name) == (ALICE, ALICE), name
    assert {e.name: e.stat(follow_symlinks=False).st_uid for e in os.scandir(fs.mnt)} == dict.fromkeys(made, ALICE)
    with pytest.raises(OSError) as e:
        as_user(BOB, BOB, [], lambda: (fs.mnt / "bobs").touch())
    assert e.value.errno == errno.EOVERFLOW
    assert not (open_dir / "bobs").exists()
    # The owner as the kernel sees it is the one who may.
    as_user(ALICE, ALICE, [], lambda: (fs.mnt / "file").chmod(0o600))
    assert as_user(ALICE, ALICE, [], (fs.mnt / "file").read_text) == "x"
    for user in (BOB, CAROL):
        with pytest.raises(PermissionError):
            as_user(user, user, [], (fs.mnt / "file").read_text)
    as_user(ALICE, ALICE, [], lambda: (fs.mnt / "file").chmod(0o640))
    assert (open_dir / "file").stat().st_mode & 0o777 == 0o640


def test_others_are_themselves(mount, open_dir):
    fs = mount(*PAIRS)
    as_user(CAROL, CAROL, [], lambda: (fs.mnt / "f").touch())
    assert owners(open_dir / "f") == owners(fs.mnt / "f") == (CAROL, CAROL)


def test_owner_without_counterpart(mount, open_dir):
    """The source's Alice is nobody in the mount: above all not the mount's Alice, and not the user nobody."""
    (open_dir / "f").write_text("x")
    os.chown(open_dir / "f", ALICE, ALICE)
    (open_dir / "f").chmod(0o600)
    fs = mount(*PAIRS)
    assert owners(fs.mnt / "f") == (NOBODY, NOBODY)
    for user in (ALICE, BOB, NOBODY):
        for act in ((fs.mnt / "f").read_text, lambda: (fs.mnt / "f").chmod(0o666)):
            with pytest.raises(OSError):
                as_user(user, user, [], act)
    assert (open_dir / "f").stat().st_mode & 0o777 == 0o600


def test_chown(mount, open_dir):
    fs = mount(*PAIRS)
    (fs.mnt / "f").touch()
    os.chown(fs.mnt / "f", ALICE, ALICE)
    assert owners(open_dir / "f") == (BOB, BOB)
    assert owners(fs.mnt / "f") == (ALICE, ALICE)
    with pytest.raises(OSError) as e:
        os.chown(fs.mnt / "f", BOB, -1)
    assert e.value.errno == errno.EOVERFLOW
    os.chown(fs.mnt / "f", -1, CAROL)
    assert owners(open_dir / "f") == (BOB, CAROL)


def test_ranges_and_swapped(mount, open_dir):
    fs = mount("--map-uid", "54100:55100:10", "--map-uid", f"0:{CAROL}", "--map-uid", f"{CAROL}:0")
    as_user(54109, 0, [], lambda: (fs.mnt / "f").touch())
    assert owners(open_dir / "f")[0] == 55109 and owners(fs.mnt / "f")[0] == 54109
    (fs.mnt / "roots").touch()
    assert owners(open_dir / "roots")[0] == CAROL and owners(fs.mnt / "roots")[0] == 0


def test_squash(mount, open_dir):
    """All make things as one, and all things are shown as one user's."""
    (open_dir / "old").touch()
    fs = mount("--map-uid", f"all:{BOB}", "--map-gid", f"all:{BOB}", "-o", f"map_uid={CAROL}:all")
    for user in (ALICE, CAROL, 0):
        as_user(user, user, [], lambda user=user: (fs.mnt / str(user)).touch())
        assert owners(open_dir / str(user)) == (BOB, BOB)
        assert owners(fs.mnt / str(user)) == (CAROL, BOB)
    assert owners(fs.mnt / "old")[0] == CAROL
    assert "mapped ids" in fs.stderr()


def test_supplementary_group(mount, open_dir):
    """In a directory with the setgid bit its members make things for its group."""
    fs = mount("--map-gid", f"{ALICE}:{BOB}")
    (open_dir / "d").mkdir()
    os.chown(open_dir / "d", 0, BOB)
    (open_dir / "d").chmod(0o2775)
    assert owners(fs.mnt / "d")[1] == ALICE
    as_user(CAROL, CAROL, [ALICE], lambda: (fs.mnt / "d" / "f").touch())
    assert owners(open_dir / "d" / "f") == (CAROL, BOB)
    with pytest.raises(PermissionError):
        as_user(CAROL, CAROL, [BOB], lambda: (fs.mnt / "d" / "g").touch())


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


def with_user(uid: int) -> bytes:
    no = 0xFFFFFFFF
    return acl((1, 6, no), (2, 4, uid), (4, 0, no), (16, 4, no), (32, 0, no))


ACL = "system.posix_acl_access"


def test_acl(mount, open_dir):
    fs = mount(*PAIRS)
    (open_dir / "f").write_text("x")
    try:
        os.setxattr(open_dir / "f", ACL, with_user(BOB))
    except OSError:
        pytest.skip("no ACLs in the source")
    assert os.getxattr(fs.mnt / "f", ACL) == with_user(ALICE)
    assert as_user(ALICE, ALICE, [], (fs.mnt / "f").read_text) == "x"
    with pytest.raises(PermissionError):
        as_user(BOB, BOB, [], (fs.mnt / "f").read_text)
    (fs.mnt / "g").write_text("y")
    os.setxattr(fs.mnt / "g", ACL, with_user(ALICE))
    assert os.getxattr(open_dir / "g", ACL) == with_user(BOB)
    with pytest.raises(OSError) as e:
        os.setxattr(fs.mnt / "g", ACL, with_user(BOB))
    assert e.value.errno == errno.EOVERFLOW


def test_acl_that_the_mount_cannot_show(mount, open_dir):
    """It is not lost by setting what is shown of it."""
    fs = mount(*PAIRS)
    (open_dir / "f").touch()
    try:
        os.setxattr(open_dir / "f", ACL, with_user(ALICE))
    except OSError:
        pytest.skip("no ACLs in the source")
    shown = os.getxattr(fs.mnt / "f", ACL)
    assert struct.pack("<I", ALICE) not in shown
    with pytest.raises(OSError) as e:
        os.setxattr(fs.mnt / "f", ACL, shown)
    assert e.value.errno == errno.EOVERFLOW
    assert os.getxattr(open_dir / "f", ACL) == with_user(ALICE)


@pytest.mark.skipif(not shutil.which("tar"), reason="no tar")
def test_read_only_bind(mount, open_dir):
    """A source shown to others as theirs, and only to read."""
    (open_dir / "f").write_text("x")
    fs = mount("-o", f"ro,map_uid={ALICE}:all,map_gid={ALICE}:all")
    said = subprocess.run(
        ["tar", "-C", fs.mnt, "-cf", "-", "--numeric-owner", "."], capture_output=True, check=True).stdout
    listed = subprocess.run(["tar", "--numeric-owner", "-tvf", "-"], input=said, capture_output=True, check=True).stdout
    assert f"{ALICE}/{ALICE}".encode() in listed and b" 0/0 " not in listed
    with pytest.raises(OSError) as e:
        (fs.mnt / "g").touch()
    assert e.value.errno == errno.EROFS
