"""Extended attributes of files, directories and symlinks."""
import ctypes
import errno
import os

import pytest
from _users import NOBODY, as_user

libc = ctypes.CDLL(None, use_errno=True)


def test_large_value(fs):
    (fs.mnt / "f").touch()
    value = os.urandom(3000)
    os.setxattr(fs.mnt / "f", "user.large", value)
    assert os.getxattr(fs.mnt / "f", "user.large") == os.getxattr(fs.src / "f", "user.large") == value
    os.setxattr(fs.mnt / "f", "user.large", b"")
    assert os.getxattr(fs.mnt / "f", "user.large") == b""


def test_many(fs):
    (fs.mnt / "d").mkdir()
    names = {f"user.{n:03}" for n in range(60)} | {"trusted.t"}
    for name in names:
        os.setxattr(fs.mnt / "d", name, name.encode())
    assert set(os.listxattr(fs.mnt / "d")) >= names
    assert sorted(os.listxattr(fs.mnt / "d")) == sorted(os.listxattr(fs.src / "d"))
    for name in names:
        os.removexattr(fs.mnt / "d", name)
    assert not names & set(os.listxattr(fs.src / "d"))


CLONE_NEWUSER = 0x10000000


@pytest.mark.parametrize("who", ["root", "user", "namespace"])
def test_trusted_names(fs, who):
    """Shown to whom the source shows them."""
    (fs.src / "d").mkdir()
    for name in ("trusted.first", "user.a", "trusted.second", "user.b", "user.c", "trusted.last"):
        os.setxattr(fs.src / "d", name, b"v")

    def listed(path) -> list[str]:
        return sorted(n for n in os.listxattr(path) if not n.startswith("security."))

    def lists() -> tuple[list[str], list[str], int]:
        if who == "namespace" and libc.unshare(CLONE_NEWUSER) < 0:
            raise OSError(ctypes.get_errno(), "unshare")  # with all capabilities, but there only
        return listed(fs.src / "d"), listed(fs.mnt / "d"), libc.listxattr(bytes(fs.mnt / "d"), None, 0)

    uid = NOBODY if who == "user" else 0
    try:
        source, mount, size = as_user(uid, uid, [], lists)
    except OSError as e:
        if who == "namespace" and e.strerror == "unshare":
            pytest.skip("no user namespaces here")
        raise
    assert source == mount
    assert len(mount) == (6 if who == "root" else 3)
    security = [n for n in os.listxattr(fs.src / "d") if n.startswith("security.")]
    assert size == sum(len(n) + 1 for n in mount + security)


def test_symlink(fs):
    (fs.mnt / "f").touch()
    os.symlink("f", fs.mnt / "link")
    os.setxattr(fs.mnt / "link", "trusted.l", b"of the link", follow_symlinks=False)
    assert os.getxattr(fs.src / "link", "trusted.l", follow_symlinks=False) == b"of the link"
    assert "trusted.l" in os.listxattr(fs.mnt / "link", follow_symlinks=False)
    assert "trusted.l" not in os.listxattr(fs.mnt / "f")
    os.removexattr(fs.mnt / "link", "trusted.l", follow_symlinks=False)
    with pytest.raises(OSError) as e:
        os.setxattr(fs.mnt / "link", "user.l", b"", follow_symlinks=False)
    assert e.value.errno == errno.EPERM


def test_flags_and_errors(fs):
    f = fs.mnt / "f"
    f.touch()
    for act, want in (
        (lambda: os.getxattr(f, "user.none"), errno.ENODATA),
        (lambda: os.removexattr(f, "user.none"), errno.ENODATA),
        (lambda: os.setxattr(f, "user.a", b"1", os.XATTR_REPLACE), errno.ENODATA),
        (lambda: os.setxattr(f, "user." + "n" * 251, b"1"), errno.ERANGE),
        (lambda: os.setxattr(f, "unknown.a", b"1"), errno.EOPNOTSUPP),
    ):
        with pytest.raises(OSError) as e:
            act()
        assert e.value.errno == want
    os.setxattr(f, "user.a", b"1", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(f, "user.a", b"2", os.XATTR_CREATE)


def test_small_buffer(fs):
    f = fs.mnt / "f"
    f.touch()
    os.setxattr(f, "user.a", b"0123456789")
    path, buffer = os.fsencode(f), ctypes.create_string_buffer(4)
    assert libc.getxattr(path, b"user.a", None, 0) == 10
    assert libc.getxattr(path, b"user.a", buffer, 4) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.listxattr(path, None, 0) >= 7
    assert libc.listxattr(path, buffer, 4) == -1
    assert ctypes.get_errno() == errno.ERANGE


def test_noxattr(mount):
    fs = mount("-o", "noxattr")
    (fs.mnt / "f").touch()
    with pytest.raises(OSError) as e:
        os.setxattr(fs.mnt / "f", "user.a", b"1")
    assert e.value.errno == errno.EOPNOTSUPP
    with pytest.raises(OSError) as e:
        os.getxattr(fs.mnt / "f", "user.a")
    assert e.value.errno == errno.EOPNOTSUPP
