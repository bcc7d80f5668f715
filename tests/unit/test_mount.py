"""Mount points as /proc/self/mountinfo tells them."""
import builtins
import io
import os

import pytest

from passthru import mounting
from passthru.errors import MountpointError

INFO = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /a\040b\011c\134d rw shared:5 master:1 - fuse.passthru /s rw,user_id=0
31 22 0:41 / /caf""" + "é".encode().decode("latin-1") + r""" rw - tmpfs none rw
32 22 0:42 /sub /twice rw - ext4 a rw
33 32 0:43 / /twice rw - fuse.passthru b\040c rw
34 22 0:300 / /raw""" + "\xff" + """ rw - tmpfs none rw
"""


@pytest.fixture
def info(monkeypatch):
    real = builtins.open

    def opened(path, *args, **kw):
        return io.StringIO(INFO) if path == "/proc/self/mountinfo" else real(path, *args, **kw)
    monkeypatch.setattr(builtins, "open", opened)


def test_unescaped(info):
    found = mounting.mounts()
    assert [m.mount_id for m in found] == [22, 30, 31, 32, 33, 34]
    assert found[1].target == "/a b\tc\\d"
    assert found[2].target == "/café"
    assert os.fsencode(found[5].target) == b"/raw\xff"
    assert found[1].dev == os.makedev(0, 40) and found[5].dev == os.makedev(0, 300)
    assert [m.fstype for m in found[:2]] == ["ext4", "fuse.passthru"]


def test_topmost(info):
    assert mounting.mounted_at("/twice").mount_id == 33
    assert mounting.mounted_at("/a b\tc\\d").mount_id == 30
    assert mounting.mounted_at("/nothing") is None


def test_really_mounted():
    assert mounting.mounted_at("/proc").fstype == "proc"


def test_mountpoint(tmp_path):
    real, fd = mounting.open_mountpoint(str(tmp_path))
    try:
        assert real == str(tmp_path.resolve())
        assert os.path.samestat(os.fstat(fd), os.stat(tmp_path))
    finally:
        os.close(fd)


def test_bad_mountpoints(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file", "/proc"):
        with pytest.raises(MountpointError, match=str(path)):
            mounting.open_mountpoint(str(path))
