"""Where kernel passthrough happens, by what the server knows of its filesystems and the mount table."""
import os

import pytest

from passthru import passing
from passthru.passing import Passing

TABLE = """\
20 1 8:1 / /src rw - ext4 /dev/sda1 rw
21 20 0:50 / /src/a rw - overlay overlay rw
22 20 0:51 / /src/b/c rw - fuse.passthru /x rw,user_id=0,group_id=0
"""


class Core:
    def __init__(self, *rows):
        self.filesystems = list(rows)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "mountinfo"
    path.write_text(TABLE)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("rows, expected, text", [
    ([(20, 8, 1, True)], Passing(True), "kernel passthrough"),
    ([(20, 8, 1, False)], Passing(False, "ext4"), "no kernel passthrough on ext4: the daemon reads and writes"),
    ([(20, 8, 1, True), (21, 0, 50, False), (22, 0, 51, False)], Passing(True, "overlay at a, fuse.passthru at b/c"),
     "kernel passthrough (not on overlay at a, fuse.passthru at b/c: there the daemon reads and writes)"),
    # overlayfs has another device for files that are not in one layer; private copies have mounts' numbers of their own
    ([(20, 8, 1, False), (20, 0, 52, False)], Passing(False, "ext4"), None),
    ([(99, 0, 50, False), (20, 8, 1, True)], Passing(True, "overlay"), None),
    ([(99, 7, 7, False)], Passing(False, "7:7"), None),
    ([(n, 9, n, False) for n in range(30, 36)], Passing(False, "9:30, 9:31, 9:32, 9:33, 2 more"), None),
    ([], Passing(False), ""),
])
def test_look(table, rows, expected, text):
    found = passing.look(Core(*rows), table, "/src", submounts=False)
    assert found == expected
    assert text is None or found.text == text


def test_a_submount_that_nobody_uses_is_known_by_its_type(table):
    found = passing.look(Core((20, 8, 1, True)), table, "/src")
    assert found == Passing(True, "overlay at a")  # of FUSE nobody has tried
    assert passing.look(Core((20, 8, 1, True), (21, 0, 50, False)), table, "/src") == found
    assert passing.look(Core((21, 0, 50, False)), table, "/src/a").happens is False
