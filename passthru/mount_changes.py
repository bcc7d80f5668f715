"""What is mounted below the source, and what of that has changed: fanotify(7) tells nothing of mounts."""

from __future__ import annotations

import os
from collections.abc import Callable

from . import mounting


def read_table(mountinfo: int) -> list[mounting.MountInfo]:
    """The table of an fd of /proc/self/mountinfo, whose position stays as it is."""
    text = b""
    while part := os.pread(mountinfo, 1 << 16, len(text)):
        text += part
    return mounting.parse(text.decode("latin-1").splitlines())


def below(table: list[mounting.MountInfo], root: str) -> dict[int, str]:
    """What a mount table has below a directory: by the mount's id, its path from there."""
    start = root.rstrip("/") + "/"
    return {m.mount_id: m.target[len(start):] for m in table if m.target.startswith(start)}


class MountChanges:
    """Has the names looked up again on which something was mounted or unmounted.

    mountinfo: an fd of /proc/self/mountinfo; root: where the source is in that table; expire: told of a name, by the
    directory from the source on and the name in it.
    """

    def __init__(self, mountinfo: int, root: str, expire: Callable[[bytes, bytes], None]):
        self._mountinfo, self._root, self._expire = mountinfo, root, expire
        self._before: dict[int, str] = {}
        self.look()

    def look(self) -> None:
        """Compare the table with what it was at the last look."""
        now = below(read_table(self._mountinfo), self._root)
        for path in {path for _, path in now.items() ^ self._before.items()}:
            directory, name = os.path.split(os.fsencode(path))
            self._expire(directory or b".", name)
        self._before = now
