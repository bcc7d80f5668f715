"""Changes beside the mount (--cache coherent): whether they are told, and for how long the kernel keeps what."""

from __future__ import annotations

import os
import time

from . import _server, _watch, init
from .errors import MountError, reason
from .mount_changes import MountChanges
from .options import CACHE, Options
from .threads import STEP, ServingThread

NAMES_KEPT = 3600  # seconds that names and attributes are kept of which changes are told, ...
FILES_KEPT = 60    # ... but a file's attributes, which stores by mmap change: nobody tells of these


class Watcher(ServingThread):
    """Has the kernel told of what changes beside the mount. To be made before anything is served."""

    def __init__(self, core: _server.ServerCore):
        """Raises MountError: not all changes would be told."""
        super().__init__("watch")
        self._core = core
        self._epochs = False  # the kernel can be told to forget all names
        self._mounts: MountChanges | None = None
        try:
            self._watch = _watch.Watch(core)
        except OSError as e:
            raise MountError(f"--cache coherent: {e.filename}: {reason(e)}") from None
        if not self._watch.source_told:
            raise MountError("--cache coherent: the source's filesystem does not tell of all changes")

    def agree(self, request: init.Init, o: Options) -> None:
        """What the kernel can be told. Raises MountError."""
        if not request.offers("HAS_EXPIRE_ONLY"):
            raise MountError("--cache coherent: this kernel makes no names old (Linux 6.2)")
        self._epochs = request.minor >= init.EPOCHS
        self.configure(o)

    def configure(self, o: Options) -> None:
        """How long the kernel keeps what it would be told of. Timeouts that are given go before that."""
        on, usual = o.cache == "coherent", CACHE["coherent"].timeout
        kept = NAMES_KEPT if self._epochs else FILES_KEPT  # else lost events can be made up for by time alone
        attributes = on and o.attr_timeout == usual
        self._core.keep(
            kept if on and o.entry_timeout == usual else 0, kept if on and o.negative_timeout == usual else 0,
            NAMES_KEPT if attributes else 0, FILES_KEPT if attributes else 0)

    def serve(self) -> None:
        self._watch.serve()

    def wake(self) -> None:
        self._watch.stop()

    def look_at_mounts(self, mountinfo: int, source: str) -> None:
        """What is mounted below the source has perhaps changed. source: where it is in the table `mountinfo`."""
        if self._mounts is None:
            self._mounts = MountChanges(mountinfo, source, self._watch.expire)
        else:
            self._mounts.look()

    def ended(self, by: float) -> bool:
        """After the thread: until `by` (time.monotonic()), have those ended that wait for locks of the mount's?"""
        while not self._watch.close() and time.monotonic() < by:
            time.sleep(STEP)
        return self._watch.close()


def where(fd: int, fds: int) -> str:
    """The path of an open file in the mount table's words. fds: of /proc/self/fd."""
    return os.readlink(str(fd), dir_fd=fds)
