"""-o auto_unmount: a process of its own that unmounts when the daemon has gone without doing so, even by SIGKILL."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from . import mounting
from .stdio import quiet

_DISMISSED = b"dismissed"


class Watcher:
    """The watching process, as its daemon sees it. To be made before any thread is."""

    def __init__(self) -> None:
        """Raises OSError."""
        # While somebody has the writing end the daemon lives.
        read_end, self._pipe = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            with contextlib.suppress(BaseException):
                _watch(read_end)
            os._exit(0)
        os.close(read_end)

    def watch(self, target: str, mount_id: int) -> None:
        """This is what to unmount. Called once."""
        os.write(self._pipe, b"%d %s\0" % (mount_id, os.fsencode(target)))

    def dismiss(self) -> None:
        """End it: the mount has been taken away, or never came. May be called again."""
        if self._pipe >= 0:
            with contextlib.suppress(OSError):
                os.write(self._pipe, _DISMISSED)
            os.close(self._pipe)
            self._pipe = -1
            os.waitpid(self._pid, 0)


def _watch(pipe: int) -> None:
    """In the child: wait for the daemon's end."""
    os.setsid()  # signals to the daemon's group and terminal are not for us
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    # Not the least /dev/fuse: the connection has to end with the daemon.
    os.dup2(pipe, 3)
    quiet()
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("passthru-watch")
    said = b""
    while data := os.read(3, 4096):
        said += data
    mount, _, rest = said.partition(b"\0")
    if mount and rest != _DISMISSED:
        mount_id, _, target = mount.partition(b" ")
        mounting.detach(os.fsdecode(target), int(mount_id), os.geteuid() == 0)
