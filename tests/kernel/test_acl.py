"""POSIX ACLs of the source are in force through the mount."""
import os
import shutil
import stat
import subprocess

import pytest
from _users import as_user

pytestmark = pytest.mark.skipif(shutil.which("setfacl") is None, reason="setfacl is not installed (acl)")
UID, GID, TEAM = 12345, 12346, 12347


def setfacl(*words) -> None:
    subprocess.run(["setfacl", *words], check=True)


def getfacl(path) -> list[str]:
    out = subprocess.run(["getfacl", "-cpnE", path], check=True, capture_output=True, text=True).stdout
    return [line for line in out.splitlines() if line]


@pytest.fixture
def fs(fs):
    """The mount, if the source's filesystem has ACLs."""
    probe = subprocess.run(["setfacl", "-m", "u:1:r", fs.src], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("the source's filesystem has no ACLs")
    setfacl("-b", fs.src)
    return fs


def as_ann(act, groups=(), umask: int = 0o022):
    return as_user(UID, GID, groups, act, umask)


def test_set_and_get(fs):
    (fs.mnt / "f").touch(mode=0o640)
    setfacl("-m", f"u:{UID}:rw,g:{TEAM}:r", fs.mnt / "f")
    assert getfacl(fs.mnt / "f") == getfacl(fs.src / "f")
    assert f"user:{UID}:rw-" in getfacl(fs.src / "f")
    assert stat.S_IMODE(os.stat(fs.mnt / "f").st_mode) == 0o660, "the mask shows as the group's bits"
    os.chmod(fs.mnt / "f", 0o600)
    assert "mask::---" in getfacl(fs.src / "f")
    setfacl("-b", fs.mnt / "f")
    assert not any("mask" in line for line in getfacl(fs.src / "f"))


def test_named_user(fs):
    (fs.src / "f").write_text("data")
    (fs.src / "f").chmod(0o600)
    with pytest.raises(PermissionError):
        as_ann((fs.mnt / "f").read_text)
    setfacl("-m", f"u:{UID}:rw", fs.mnt / "f")
    assert as_ann((fs.mnt / "f").read_text) == "data"
    as_ann(lambda: (fs.mnt / "f").write_text("new"))
    assert (fs.src / "f").read_text() == "new"


def test_named_group_of_a_file(fs):
    """A group of the caller's that is not the file's own, for each way of writing."""
    (fs.src / "f").write_text("data")
    (fs.src / "f").chmod(0o600)
    setfacl("-m", f"g:{TEAM}:rw", fs.src / "f")
    assert as_ann((fs.mnt / "f").read_text, groups=[TEAM]) == "data"
    as_ann(lambda: os.close(os.open(fs.mnt / "f", os.O_RDWR)), groups=[TEAM])
    as_ann(lambda: (fs.mnt / "f").write_text("new"), groups=[TEAM])
    as_ann(lambda: os.truncate(fs.mnt / "f", 1), groups=[TEAM])
    assert (fs.src / "f").read_text() == "n"


def test_named_group_of_a_directory(fs):
    """Names made by who is let in only by a named group."""
    (fs.src / "d").mkdir(mode=0o700)
    setfacl("-m", f"g:{TEAM}:rwx", fs.src / "d")
    as_ann(lambda: (fs.mnt / "d" / "f").touch(), groups=[TEAM])
    as_ann(lambda: (fs.mnt / "d" / "d").mkdir(), groups=[TEAM])
    assert sorted(os.listdir(fs.src / "d")) == ["d", "f"]
    assert os.stat(fs.src / "d" / "f").st_uid == UID


def test_default_acl(fs):
    """A default ACL takes the umask's place."""
    made = []
    for top in (fs.src, fs.mnt):
        (top / "d").mkdir()
        (top / "d").chmod(0o777)
        setfacl("-d", "-m", f"u:{UID}:rwx,g:{TEAM}:rx,o::-", top / "d")

        def act(top=top):
            (top / "d" / "f").touch(mode=0o666)
            (top / "d" / "sub").mkdir(mode=0o777)
        as_ann(act, umask=0o077)
        made.append([getfacl(fs.src / "d" / name) for name in ("f", "sub")])
        shutil.rmtree(fs.src / "d")
        if top == fs.src:
            os.listdir(fs.mnt)
    assert made[0] == made[1]
    assert f"user:{UID}:rwx" in made[1][0] and f"default:user:{UID}:rwx" in made[1][1]


def test_sgid_goes_with_an_acl(fs):
    """An owner outside the file's group who sets an ACL loses the setgid bit."""
    (fs.src / "f").touch()
    os.chown(fs.src / "f", UID, TEAM)
    (fs.src / "f").chmod(0o2755)
    as_ann(lambda: setfacl("-m", f"u:{UID}:rwx", fs.mnt / "f"))
    assert not os.stat(fs.src / "f").st_mode & stat.S_ISGID
