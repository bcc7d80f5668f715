"""What the mount table says of filesystems, without any."""
import os

import pytest

from passthru import _server, _testing

LINE = "36 35 {device} / /mnt {options} shared:1 - {kind} {source} {more}"
FOREIGN, REMOTE, MEMORY, STACKED, LOCKS_BOTH = 64, 4, 2, 16, 4096


def facts(tmp_path, kind: str, device: str = "0:40", options: str = "rw", more: str = "rw", source="source") -> int:
    table = tmp_path / "mountinfo"
    table.write_text("35 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
                     + LINE.format(device=device, options=options, kind=kind, source=source, more=more) + "\n")
    fd = os.open(table, os.O_RDONLY)
    try:
        return _testing.mount_facts(fd, 36)
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", [
    "proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf", "configfs", "efivarfs", "devpts",
    "pstore", "mqueue", "binfmt_misc", "selinuxfs", "fusectl", "nsfs", "autofs", "a-new-one"])
def test_kernel_state(tmp_path, kind):
    assert facts(tmp_path, kind) & _server.PSEUDO


@pytest.mark.parametrize("kind, device, flags", [
    ("ext4", "8:2", 0), ("a-new-one", "8:2", 0), ("btrfs", "0:40", 0), ("zfs", "0:40", 0), ("xfs", "8:2", LOCKS_BOTH),
    ("tmpfs", "0:40", MEMORY),
    ("overlay", "0:40", STACKED), ("nfs", "0:40", REMOTE), ("nfs4", "0:40", REMOTE | _server.SERVER),
    ("cifs", "0:40", REMOTE | _server.SERVER), ("smb3", "0:40", REMOTE | _server.SERVER),
    ("afs", "0:40", REMOTE | _server.SERVER), ("ceph", "0:40", REMOTE), ("9p", "0:40", REMOTE)])
def test_data(tmp_path, kind, device, flags):
    assert facts(tmp_path, kind, device) == flags


@pytest.mark.parametrize("kind, more, foreign", [
    ("fuse.sshfs", "rw,user_id=1000,group_id=1000", True), ("fuse.glusterfs", "rw,user_id=0,group_id=0", False),
    ("fuse.user_id=0,x", "rw,user_id=1000,group_id=1000", True), ("fuse", "rw", True),
    ("fuseblk", "rw,user_id=0,group_id=0", False)])
def test_whose_fuse(tmp_path, kind, more, foreign):
    assert facts(tmp_path, kind, more=more) == REMOTE | FOREIGN * foreign


@pytest.mark.parametrize("options, flags", [
    ("rw,nosuid,relatime", _server.NOSUID), ("ro,nodev,noexec", _server.NODEV | _server.NOEXEC), ("rw,nosuidx", 0)])
def test_mount_flags(tmp_path, options, flags):
    assert facts(tmp_path, "ext4", "8:2", options=options) == flags


def test_source_says_nothing(tmp_path):
    assert facts(tmp_path, "fuse.x", more="rw,user_id=1000,group_id=1000", source="user_id=0,allow_other") & FOREIGN
