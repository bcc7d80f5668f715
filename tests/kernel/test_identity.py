"""What an unprivileged user makes belongs to that user, by the source's own rules."""
import contextlib
import os
import stat

import pytest
from _modes import DATA_TOO
from _users import NOBODY, as_user

pytestmark = DATA_TOO

UID, GID, TEAM = 12345, 12346, 12347


def as_ann(act, groups=(), umask: int = 0o022):
    return as_user(UID, GID, groups, act, umask)


@pytest.fixture
def fs(mount, place):
    """The mount of a source in which everybody may write."""
    (place / "src").mkdir()
    (place / "src").chmod(0o1777)
    return mount()


def write(path, data: bytes = b"", flags: int = os.O_CREAT | os.O_WRONLY, mode: int = 0o666) -> None:
    fd = os.open(path, flags, mode)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


MAKERS = {
    "file": lambda top: write(os.path.join(top, "x")),
    "directory": lambda top: os.mkdir(os.path.join(top, "x")),
    "fifo": lambda top: os.mkfifo(os.path.join(top, "x")),
    "symlink": lambda top: os.symlink("target", os.path.join(top, "x")),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_owner(fs, kind):
    as_ann(lambda: MAKERS[kind](fs.mnt))
    for where in (fs.src, fs.mnt):
        st = os.lstat(where / "x")
        assert (st.st_uid, st.st_gid) == (UID, GID)
    if kind != "symlink":
        assert stat.S_IMODE(os.lstat(fs.src / "x").st_mode) == (0o755 if kind == "directory" else 0o644)


@pytest.mark.parametrize("kind", MAKERS)
def test_setgid_directory(fs, kind):
    """Whoever makes something in a setgid directory, it gets the directory's group."""
    (fs.src / "team").mkdir()
    os.chown(fs.src / "team", 0, TEAM)
    (fs.src / "team").chmod(0o2775)
    as_ann(lambda: MAKERS[kind](fs.mnt / "team"), groups=[TEAM])
    st = os.lstat(fs.src / "team" / "x")
    assert (st.st_uid, st.st_gid) == (UID, TEAM)
    assert bool(st.st_mode & stat.S_ISGID) == (kind == "directory")


def test_tmpfile(fs):
    def act():
        fd = os.open(fs.mnt, os.O_TMPFILE | os.O_RDWR, 0o666)
        st = os.fstat(fd)
        return st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)
    assert as_ann(act) == (UID, GID, 0o644)


@pytest.mark.parametrize("umask", [0, 0o027, 0o777])
def test_umask(fs, umask):
    as_ann(lambda: write(fs.mnt / "f"), umask=umask)
    as_ann(lambda: os.mkdir(fs.mnt / "d"), umask=umask)
    assert stat.S_IMODE(os.stat(fs.src / "f").st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(os.stat(fs.src / "d").st_mode) == 0o777 & ~umask


def test_not_allowed(fs):
    (fs.src / "roots").write_text("secret")
    (fs.src / "roots").chmod(0o600)
    (fs.src / "closed").mkdir(mode=0o700)
    (fs.src / "closed" / "f").touch()
    for act in (
        lambda: (fs.mnt / "roots").read_text(),
        lambda: write(fs.mnt / "roots", b"x", os.O_WRONLY),
        lambda: os.listdir(fs.mnt / "closed"),
        lambda: os.stat(fs.mnt / "closed" / "f"),
        lambda: write(fs.mnt / "closed" / "g"),
        lambda: os.chmod(fs.mnt / "roots", 0o666),
        lambda: os.chown(fs.mnt / "roots", UID, GID),
        lambda: os.utime(fs.mnt / "roots", ns=(1, 1)),
        lambda: os.unlink(fs.mnt / "roots"),  # sticky
        lambda: os.rename(fs.mnt / "roots", fs.mnt / "mine"),
        lambda: os.truncate(fs.mnt / "roots", 0),
        lambda: os.setxattr(fs.mnt / "roots", "user.a", b""),
        lambda: os.mknod(fs.mnt / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    ):
        with pytest.raises(PermissionError):
            as_ann(act)
    assert (fs.src / "roots").read_text() == "secret"


def test_group_member(fs):
    """A supplementary group opens what it opens in the source: each way of writing, and truncation."""
    path = fs.mnt / "shared"
    (fs.src / "shared").write_text("0123456789")
    os.chown(fs.src / "shared", 0, TEAM)
    (fs.src / "shared").chmod(0o664)
    ways = {
        "write": lambda: write(path, b"x", os.O_WRONLY),
        "append": lambda: write(path, b"x", os.O_WRONLY | os.O_APPEND),
        "open to truncate": lambda: write(path, b"12345678", os.O_WRONLY | os.O_TRUNC),
        "truncate": lambda: os.truncate(path, 4),
    }
    refused = []
    for name, act in ways.items():
        try:
            as_ann(act, groups=[TEAM])
        except PermissionError:
            refused.append(name)
        with pytest.raises(PermissionError):
            as_ann(act)
    assert not refused
    assert (fs.src / "shared").read_text() == "1234"


def test_group_member_makes_names(fs):
    """In a directory of a supplementary group, not setgid."""
    (fs.src / "d").mkdir()
    os.chown(fs.src / "d", 0, TEAM)
    (fs.src / "d").chmod(0o770)

    def act():
        for make in MAKERS.values():
            make(fs.mnt / "d")
            os.rename(fs.mnt / "d" / "x", fs.mnt / "d" / "y")
            with contextlib.suppress(IsADirectoryError):
                os.unlink(fs.mnt / "d" / "y")
                continue
            os.rmdir(fs.mnt / "d" / "y")
    as_ann(act, groups=[1, TEAM, 2])
    with pytest.raises(PermissionError):
        as_ann(act, groups=[1, 2])


@pytest.mark.parametrize("how", ["write", "truncate", "open to truncate", "only open to truncate", "chown", "append"])
def test_suid_and_sgid_go(fs, how):
    """A write by who may not keep them clears both bits, as in the source."""
    acts = {
        "write": lambda path: write(path, b"x", os.O_WRONLY),
        "append": lambda path: write(path, b"x", os.O_WRONLY | os.O_APPEND),
        "truncate": lambda path: os.truncate(path, 1),
        "open to truncate": lambda path: write(path, b"x", os.O_WRONLY | os.O_TRUNC),
        "only open to truncate": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
        "chown": lambda path: os.chown(path, -1, GID),
    }
    modes = []
    for name, top in (("beside", fs.src), ("f", fs.mnt)):
        (fs.src / name).write_bytes(b"program")
        os.chown(fs.src / name, UID, GID)
        (fs.src / name).chmod(0o6777)
        as_ann(lambda path=top / name: acts[how](path))
        modes.append(stat.S_IMODE(os.stat(fs.src / name).st_mode))
    modes.append(stat.S_IMODE(os.stat(fs.mnt / "f").st_mode))
    assert modes == [0o777] * 3


def test_root_keeps_suid(fs):
    (fs.src / "f").write_bytes(b"program")
    (fs.src / "f").chmod(0o6755)
    write(fs.mnt / "f", b"x", os.O_WRONLY)
    os.truncate(fs.mnt / "f", 3)
    assert stat.S_IMODE(os.stat(fs.src / "f").st_mode) == 0o6755


def test_many_users_at_once(fs):
    """Identities of requests served at the same time do not mix."""
    children = []
    for n in range(6):
        uid = 20000 + n
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
                for k in range(150):
                    write(fs.mnt / f"{uid} {k}")
                    os.mkdir(fs.mnt / f"{uid} dir {k}")
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(c, 0)[1] for c in children] == [0] * 6
    names = os.listdir(fs.src)
    assert len(names) == 6 * 300
    for name in names:
        st = os.stat(fs.src / name)
        assert st.st_uid == st.st_gid == int(name.split()[0])


def test_others_stay_out(mount, place):
    """Without allow_other even the mode bits for all let nobody else in."""
    (place / "src").mkdir()
    (place / "src").chmod(0o777)
    fs = mount("-o", "noallow_other")
    (fs.mnt / "f").touch()
    with pytest.raises(PermissionError):
        as_user(NOBODY, NOBODY, [], lambda: os.listdir(fs.mnt))
