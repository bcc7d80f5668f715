"""-o allow_root: for root's mounts the kernel sees to it, for others' the daemon."""
import os

import pytest
from _users import NOBODY, as_user


def test_roots_mount_is_roots(mount):
    fs = mount("-o", "allow_root")
    (fs.mnt / "f").write_text("x")
    with pytest.raises(PermissionError):
        as_user(NOBODY, NOBODY, [], lambda: os.listdir(fs.mnt))
