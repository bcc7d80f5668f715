"""What all threads of a daemon have in common: each is opened, serves, is woken to end, and is joined.

Queues, readers of /dev/fuse and the housekeeper (serving.py) are kinds of it, and the log's thread (log.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from . import _sys
from .errors import PassthruError, unexpected

STEP = 0.01  # seconds that end() waits for a thread before it wakes it again


class ServingThread(threading.Thread):
    """A thread that serves. A kind of it overrides open(), serve(), close() and wake().

    error: what open() raised; then it does not serve. on_end: called by the thread as its last act.
    """

    def __init__(self, name: str, on_end: Callable[[], object] = lambda: None):
        super().__init__(name=name, daemon=True)
        self._on_end = on_end
        self.opened = threading.Event()
        self.error: OSError | None = None
        self.done = False  # is_alive() is still true for a moment after `on_end` was called

    def open(self) -> None:
        """Make what is needed to serve. Raises OSError."""

    def serve(self) -> None:
        """Serve until there is nothing more to serve, or until it is to end."""

    def close(self) -> None:
        """Give up what open() has made, wholly or in part."""

    def wake(self) -> None:
        """For other threads: have serve() look whether it is to end. A call may be lost."""

    def start(self) -> None:
        """Raises PassthruError."""
        try:
            super().start()
        except RuntimeError as e:
            raise PassthruError(f"{self.name}: {unexpected(e)}") from None

    def run(self) -> None:
        _sys.thread_name(self.name.encode())
        try:
            self.open()
        except OSError as e:
            self.error = e
        self.opened.set()
        try:
            if self.error is None:
                self.serve()
        finally:
            self.close()
            self.done = True
            self._on_end()


def join(threads: Iterable[threading.Thread], by: float) -> None:
    """Wait until the threads have ended by themselves, or until `by` (time.monotonic())."""
    for thread in (t for t in threads if t.ident is not None):
        thread.join(max(0.0, by - time.monotonic()))


def end(threads: Iterable[ServingThread], by: float) -> None:
    """Wake the threads, once at least, until they have ended or until `by` (time.monotonic())."""
    left = [thread for thread in threads if thread.ident is not None]  # others could not be started
    while left:
        for thread in left:
            thread.wake()
            thread.join(STEP)
        left = [thread for thread in left if thread.is_alive()] if time.monotonic() < by else []
