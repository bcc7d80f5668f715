"""What serves a mount: its server's tables, and the threads of the queues, of /dev/fuse, and the housekeeper."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Sequence

from . import _confine, _server, log, resources, threads
from .cpus import Share
from .errors import PassthruError, reason
from .options import CACHE, Options
from .repeating import Repeating
from .status_page import Page
from .threads import ServingThread
from .transport import Form, Outcome
from .watching import Watcher

SWEEP = 2.0  # seconds
POOL_THREADS = 64


def configure(core: _server.ServerCore, o: Options, *, passthrough: bool) -> None:
    """Tell the serving threads what they read of options that may change. passthrough: agreed upon with the kernel."""
    policy = CACHE[o.cache]
    core.configure(
        attr_timeout=o.attr_timeout, entry_timeout=o.entry_timeout, negative_timeout=o.negative_timeout,
        direct_io=o.direct_io or policy.direct_io, keep_cache=policy.keep, spin_us=o.spin_us,
        parallel_writes=o.parallel_direct_writes, passthrough=passthrough and o.passthrough is not False)


def _blocks(threads: int) -> int:
    """How many threads have counters of their own, with so many threads of queues."""
    return threads + 256 + POOL_THREADS


def stats_size(threads: int) -> int:
    """Bytes of the status page, with so many threads of queues."""
    return _server.stats_size(_blocks(threads))


def make_core(
    o: Options, source_fd: int, page: Page, threads: int, entries: int, *, identity: bool, fixed_size: bool,
    mountinfo: int, arena: int = 0,
) -> _server.ServerCore:
    """The server of a mount, before INIT, with so many threads of queues and entries in all. Raises OSError.

    arena: see ServerCore.
    """
    core = _server.ServerCore(
        source_fd, page.memory, _blocks(threads), POOL_THREADS, resources.fd_cache_size(),
        payload_size=o.payload_size, max_write=o.max_write, own_and_root=o.checks_callers,
        fixed_budget=min(entries * o.payload_size, resources.memory() // 64),
        identity=identity, locks=not o.local_locks, xattr=o.xattr, writeback=o.writeback, null_io=o.null_io,
        fixed_size=fixed_size, all_submounts=o.submounts == "all", trust_modes=o.trust_modes, mountinfo=mountinfo,
        stats_fd=page.fd, arena=arena)
    configure(core, o, passthrough=False)  # that comes with INIT
    return core


def check_level(core: _server.ServerCore, page: Page) -> None:
    """Debug builds: what was taken has been given back. Raises PassthruError."""
    from . import stats  # numpy, for debug builds only

    if page.path is None:
        return
    s = stats.of_memory(page.memory, page.path)
    asked, answered = s.total("ring_requests"), s.total("commits")
    lost = s.total("entries_lost")
    bad = []
    if asked != answered or lost:
        bad.append(f"{asked} ring requests, {answered} commits, {lost} entries lost")
    if s.total("opens") - s.total("releases") != core.live[1]:
        bad.append(f"{s.total('opens')} opens, {s.total('releases')} releases, {core.live[1]} open files live")
    if s.total("forgets") > s.total("lookups"):
        bad.append(f"{s.total('lookups')} lookups, {s.total('forgets')} forgets")
    if bad:
        raise PassthruError("counters not level: " + "; ".join(bad))


class Queue(ServingThread):
    """Serves some queues. Opened, it waits for register() or skip()."""

    def __init__(
        self, core: _server.ServerCore, share: Share, depth: int, buffers: tuple[int, int],
        on_end: Callable[[], object],
    ):
        """depth: entries of each queue; buffers: payload buffers of each, pinned and not (QueueThread.open())."""
        super().__init__(f"queue-{share.cpus[0]}", on_end)
        self.thread = _server.QueueThread(core)
        self._share, self._depth, self._buffers = share, depth, buffers
        self._go, self.registered = threading.Event(), threading.Event()
        self._fuse_fd, self._form = -1, Form()

    def open(self) -> None:
        self.bind()
        cpus = self._share.cpus
        self.thread.open(self._share.qids, self._depth, *self._buffers, cpus[0] if len(cpus) == 1 else -1)

    def register(self, fuse_fd: int, form: Form) -> None:
        """Have the thread hand its entries to the kernel, and serve; `registered` is set when it has, or has failed."""
        self._fuse_fd, self._form = fuse_fd, form
        self._go.set()

    def skip(self) -> None:
        """Have the thread end, if it has not been told to register."""
        self._go.set()

    def serve(self) -> None:
        self._go.wait()
        if self._fuse_fd < 0:
            return
        f = self._form
        try:
            self.thread.register(self._fuse_fd, f.dialect, f.forced, f.zero_copy, f.pin_buffers, f.pin_headers)
        except OSError as e:
            self.thread.spoil()  # the kernel must know that the ring does not come
            self.error = e
        self.registered.set()
        left = self.thread.serve()  # entries that were registered before a failing one end here as well
        if self.error is None:
            log.debug(f"{self.name} ends, the kernel has {left} of its entries")

    def close(self) -> None:
        self.registered.set()
        self.thread.close()

    def wake(self) -> None:
        self.thread.wake()

    def bind(self) -> None:
        """Have the thread run on its CPUs. If they are gone, the kernel lets it run elsewhere."""
        if self.native_id is not None and not self.done:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self.native_id, self._share.cpus)


class Reader(ServingThread):
    """Reads /dev/fuse."""

    def __init__(self, core: _server.ServerCore, fd: int, on_end: Callable[[], object]):
        """fd: of /dev/fuse; it is the thread's from now on."""
        super().__init__("dev", on_end)
        self._thread, self._fd = _server.ReaderThread(core), fd
        self.ended_by = 0  # errno

    def open(self) -> None:
        self._thread.open(self._fd)

    def serve(self) -> None:
        self.ended_by = self._thread.serve()

    def close(self) -> None:
        self._thread.close()

    def wake(self) -> None:
        self._thread.wake()  # a signal is lost if read(2) has not begun


class Housekeeper(ServingThread):
    """Lets go of what the mount has not used for a while: removed files' space, submounts.

    changed: called when other filesystems are shown than at the last sweep, or not passed through any more.
    """

    def __init__(self, core: _server.ServerCore, changed: Callable[[], object]):
        super().__init__("housekeeper")
        self._core, self._changed = core, changed
        self._seen = core.fs_changes
        self._over = threading.Event()

    def open(self) -> None:
        _confine.cut_thread()

    def serve(self) -> None:
        while not self._over.wait(SWEEP):
            self._core.sweep()
            if self._core.fs_changes != self._seen:
                self._seen = self._core.fs_changes
                self._changed()

    def wake(self) -> None:
        self._over.set()


class Serving:
    """The threads of one mount, from their start to their end. on_end: called by each that ends, as its last act."""

    def __init__(self, core: _server.ServerCore, on_end: Callable[[], object]):
        self.core = core
        self.queues: list[Queue] = []
        self.readers: list[Reader] = []
        self._housekeeper: Housekeeper | None = None
        self._watcher: Watcher | None = None
        self._repeating: Repeating | None = None
        self._on_end = on_end

    def open_queues(self, plan: Sequence[Share], depth: int, buffers: tuple[int, int]) -> OSError | None:
        """Start a thread for each share; the first error of those that could not be opened."""
        for share in plan:
            queue = Queue(self.core, share, depth, buffers, self._on_end)
            self.queues.append(queue)
            queue.start()
        for queue in self.queues:
            queue.opened.wait()
        return self._error()

    def register(self, fuse_fd: int, form: Form) -> OSError | list[Outcome]:
        """Have the queues' threads hand their entries over: what it came to for each, or the first error."""
        for queue in self.queues:
            queue.register(fuse_fd, form)
        for queue in self.queues:
            queue.registered.wait()
        return self._error() or [Outcome(*queue.thread.outcome) for queue in self.queues]

    def skip_queues(self) -> None:
        """There is no ring: the queues' threads that wait for it end."""
        for queue in self.queues:
            queue.skip()

    def _error(self) -> OSError | None:
        return next((queue.error for queue in self.queues if queue.error is not None), None)

    def add_reader(self, fd: int) -> None:
        """Start a reader of an fd of /dev/fuse, which is its own from now on. Raises PassthruError."""
        reader = Reader(self.core, fd, self._on_end)
        self.readers.append(reader)
        reader.start()
        reader.opened.wait()
        if reader.error is not None:
            raise PassthruError(f"/dev/fuse reader: {reason(reader.error)}")

    def keep_house(self, changed: Callable[[], object]) -> None:
        """changed: called when `ServerCore.filesystems` has changed, by a thread of its own."""
        self._housekeeper = Housekeeper(self.core, changed)
        self._housekeeper.start()

    def watch(self, watcher: Watcher) -> None:
        """Have the kernel told of changes from now on."""
        self._watcher = watcher
        watcher.start()

    def repeat(self, repeating: Repeating) -> None:
        """Have who watches the mount told of changes from now on."""
        self._repeating = repeating
        repeating.start()

    def bind_queues(self) -> None:
        """CPUs have come or gone."""
        for queue in self.queues:
            queue.bind()

    @property
    def over(self) -> bool:
        """Has the connection ended? All readers have."""
        return all(reader.done for reader in self.readers)

    @property
    def broken(self) -> Queue | None:
        """A queue that has ended with an error."""
        return next((queue for queue in self.queues if queue.done and queue.thread.error), None)

    def _all(self) -> Iterable[ServingThread]:
        yield from self.readers
        yield from self.queues
        if self._housekeeper is not None:
            yield self._housekeeper
        if self._watcher is not None:
            yield self._watcher
        if self._repeating is not None:
            yield self._repeating

    def stop(self, by: float) -> None:
        """Ask all to end when they have nothing in flight, and wait for the readers until `by` (time.monotonic())."""
        self.core.stop()
        for queue in self.queues:
            queue.wake()
        threads.end(self.readers, by)

    def join_readers(self, by: float) -> None:
        """The connection ends: wait for its readers until `by`. What is left is then to end as well."""
        threads.join(self.readers, by)
        self.core.stop()

    @property
    def unmounted(self) -> bool:
        """Have all readers ended by an unmount, and not by an abort, or by stop()?"""
        return all(reader.ended_by == errno.ENODEV for reader in self.readers)

    def end(self, by: float) -> bool:
        """End the others, and wait for them until `by`. Have all threads ended?"""
        self.skip_queues()
        threads.end(self.queues, by)
        if self._housekeeper is not None:
            threads.end([self._housekeeper], by)
        if self._repeating is not None:
            threads.end([self._repeating], by)
        if self._watcher is not None:
            threads.end([self._watcher], by)
        return not any(thread.is_alive() for thread in self._all())

    def release(self) -> None:
        """Nobody wakes a queue any more: all threads and pools have ended, or are given up."""
        for queue in self.queues:
            queue.thread.release()

    def give_up(self) -> None:
        """Have all end that a start that failed has made; nothing is waited for."""
        self.core.stop()
        self.skip_queues()
        if self._housekeeper is not None:
            self._housekeeper.wake()
        if self._watcher is not None:
            self._watcher.wake()
        if self._repeating is not None:
            self._repeating.wake()
