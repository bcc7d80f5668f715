"""One mount from start to end: INIT, threads, signals, teardown.

Order matters. The queues' threads have their rings before INIT's reply offers the ring,
entries are registered before the mount is visible, and memory goes after the last CQE.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from . import _confine, _server, _sys, init, keeper, log, status_page
from . import mounting as mount
from .capabilities import CAP_FSETID, CAP_SYS_ADMIN, can_act_as_caller, capable, capable_of_all
from .control import Control, socket_path
from .cpus import Hotplug, Share, entries, possible_cpus, queue_plan
from .errors import MountError, PassthruError, SourceError, TransportError, UsageError, reason
from .options import PAGE, Options, changes, live_options, value_text
from .sandbox import NAMESPACE, NONE, SECCOMP, Sandbox
from .source import Source, open_source

PARAMETER = "/sys/module/fuse/parameters/enable_uring"
POOL_THREADS = 64
SWEEP = 2.0  # seconds
LEAST_FDS = 128
HANGING = 5.0  # seconds that threads may take to end which the source does not answer
ELSEWHERE = 2.0  # seconds that the connection may outlive the mount that a signal has ended
NUMBERS = {name: n for n, name in status_page.DIALECTS.items()}
PER_ENTRY, BUFRING, BUFPOOL = (NUMBERS[name] for name in ("per-entry", "bufring", "bufpool"))
KEEP = {"never": 0, "open": 0, "auto": 1, "always": 2}  # _request.Config.keep_cache
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ring_parameter() -> str:
    """'Y', 'N', or '' if the kernel has no such parameter."""
    try:
        with open(PARAMETER, encoding="ascii") as f:
            return f.read().strip()
    except OSError:
        return ""


def memory() -> int:
    """The machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def raise_fd_limit() -> None:
    """As many fds as may be had: each file that a caller opens is one here. Root goes beyond the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/proc/sys/fs/nr_open", encoding="ascii") as f:
        most = int(f.read())
    for limit in (most, hard):
        if limit > soft:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
                return


def fd_cache_size() -> int:
    """How many known inodes have an open fd at the most."""
    return max(16, min(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


def grow_fd_table(fd: int, room: int) -> None:
    """Have the kernel make room for so many fds, while there is one thread only.

    Of a table that threads share it grows each time by waiting for all CPUs (synchronize_rcu), for
    milliseconds, in the open(2) of a request.
    """
    with contextlib.suppress(OSError):
        os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, room - 1))


class Queue(threading.Thread):
    """The thread of some queues: open, [register], serve, close, each on the word of the session."""

    def __init__(self, session: Session, share: Share):
        super().__init__(name=f"queue-{share.cpus[0]}", daemon=True)
        self.session, self.share = session, share
        self.thread = _server.QueueThread(session.core)
        self.opened, self.registered, self.go = threading.Event(), threading.Event(), threading.Event()
        self.error: OSError | None = None
        self.done = False
        self.fuse_fd = -1

    def run(self) -> None:
        _sys.thread_name(self.name.encode())
        try:
            self.bind()
            cpus = self.share.cpus
            self.thread.open(
                self.share.qids, self.session.depth, *self.session.pool, cpus[0] if len(cpus) == 1 else -1)
        except OSError as e:
            self.error = e
        self.opened.set()
        self.go.wait()
        try:
            if self.fuse_fd >= 0 and self.error is None:
                s = self.session
                self.thread.register(
                    self.fuse_fd, s.dialect, s.options.dialect != "auto", s.zero_copy, s.pin,
                    s.options.pin_headers)
                self.registered.set()
                left = self.thread.serve()
                log.debug(f"{self.name} ends, the kernel has {left} of its entries")
        except OSError as e:
            self.thread.spoil()  # the kernel must know that the ring does not come
            self.error = e
            self.registered.set()
            self.thread.serve()  # entries that were registered before the failing one still end here
        finally:
            self.registered.set()
            self.thread.close()
            self.done = True
            self.session.thread_ended()

    def bind(self) -> None:
        """Have the thread run on its CPUs. If they are gone, the kernel lets it run elsewhere."""
        if self.native_id is not None and not self.done:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self.native_id, self.share.cpus)


class Reader(threading.Thread):
    """A reader of /dev/fuse."""

    def __init__(self, session: Session, fd: int):
        super().__init__(name="dev", daemon=True)
        self.session, self.fd = session, fd
        self.thread = _server.ReaderThread(session.core)
        self.error: OSError | None = None
        self.opened = threading.Event()
        self.ended_by = 0
        self.done = False  # is_alive() is still true for a moment after the session was told

    def run(self) -> None:
        _sys.thread_name(b"dev")
        try:
            self.thread.open(self.fd)
        except OSError as e:
            self.error = e
        self.opened.set()
        try:
            if self.error is None:
                self.ended_by = self.thread.serve()
        finally:
            self.thread.close()
            self.done = True
            self.session.thread_ended()


class Housekeeper(threading.Thread):
    """Lets go of what the mount has not used for a while: removed files' space, submounts."""

    def __init__(self, session: Session):
        super().__init__(name="housekeeper", daemon=True)
        self.session = session
        self.over = threading.Event()

    def run(self) -> None:
        _sys.thread_name(b"housekeeper")
        _confine.cut_thread()
        while not self.over.wait(SWEEP):
            self.session.core.sweep()


class Session:
    """A mount being made, served and ended by this process."""

    def __init__(self, options: Options):
        self.options = options
        self.fuse_fd = -1
        self.source: Source
        self.source_fd = -1
        self.kernel_mount: mount.KernelMount | None = None
        self.target, self.mount_id, self.fuse_dev = "", 0, 0
        self.queues: list[Queue] = []
        self.readers: list[Reader] = []
        self.stopping: Callable[[], object] | None = None
        self.ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.transport, self.why = "", ""
        self.visible = False
        self.passthrough = False
        self.broken = False
        self.fixed = False  # nothing may be written past the source's end
        self.dialect, self.buffers, self.pinned, self.zero_copy = PER_ENTRY, 0, False, False
        self.wake_read = -1
        self.depth = options.queue_depth
        self.pool, self.pin = (0, 0), False
        self.page: status_page.Page | None = None
        self.sandbox = Sandbox(options)
        self.keeper: keeper.Keeper | None = None
        self.hotplug: Hotplug | None = None
        self.background_fds: tuple[int, ...] = ()  # the kernel's files of what set_max_background() changes
        self.control: Control | None = None
        self.mountinfo = -1
        self.end_by: float | None = None
        self.elsewhere = False
        self.abort_fd = -1
        self.housekeeper: Housekeeper | None = None
        self.core: _server.ServerCore

    # ------------------------------------------------------------ bring-up

    def start(self) -> str:
        """Make the mount usable; a line that says what serves it. Raises PassthruError, nothing mounted."""
        try:
            self._open()
            self._start()
            self._confine()
            return self.summary()
        except BaseException:
            self._abandon()
            raise

    def summary(self) -> str:
        o = self.options
        if self.transport == "ring":
            how = f"ring transport, {status_page.DIALECTS[self.dialect]} dialect"
            if self.dialect != PER_ENTRY:
                how += f" ({self.buffers} {'pinned ' if self.pinned else ''}buffers each)"
            how += f", {self.possible} queues x {self.depth} entries"
            if len(self.queues) < self.possible:
                how += f" by {len(self.queues)} thread{'s' * (len(self.queues) > 1)}"
            if self.zero_copy:
                how += ", zero-copy"
        else:
            how = f"/dev/fuse transport, {len(self.readers)} threads"
        if self.passthrough:
            how += ", kernel passthrough"
        if not self.source.directory:
            how += f", {self.source.kind}" + (f" kept at {self.source.size} bytes" if self.fixed else "")
        if o.map_uid or o.map_gid:
            how += ", mapped ids"
        how += f", sandbox {self.sandbox.level}"
        if o.null_io:
            how += ", NO DATA IS READ OR WRITTEN"
        if not self.identity:
            how += f", as uid {os.geteuid()}: what is made belongs to it, and it is checked as it"
        why = f" ({self.why})" if self.why else ""
        return f"{o.source} on {self.target}: {how}{why}"

    def _open(self) -> None:
        o = self.options
        self.source = open_source(o.source)
        self.source_fd = self.source.fd
        self.target, self.target_fd = mount.open_mountpoint(o.mountpoint, self.source.directory)
        if self.source.read_only:
            self.options = o = replace(o, read_only=True)
        self._check_size()
        self._check_max_write()
        raise_fd_limit()
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < LEAST_FDS:
            raise PassthruError(f"a limit of fewer than {LEAST_FDS} open files is too low (ulimit -n)")
        self._want_ring()
        self.possible = len(possible_cpus())
        try:
            self.sandbox.begin()
            self.fuse_fd = self.sandbox.open_fuse()
        except OSError as e:
            raise MountError(f"/dev/fuse: {reason(e)}") from None
        try:
            self.kernel_mount = mount.KernelMount(o, o.source, self.fuse_fd, self.source.root_mode)
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.ENOSYS):
                raise MountError(f"mount: {reason(e)}") from None
            self.sandbox.limit(SECCOMP, "the mount is fusermount3's")
        if o.auto_unmount or self.sandbox.level != NONE:
            page = status_page.directory() / str(os.getpid())
            self.keeper = keeper.Keeper(
                self.target, self.target_fd, [page, socket_path(page)], auto_unmount=o.auto_unmount)
        self.source_fd = self.sandbox.source(self.source)

    def _check_size(self) -> None:
        """Options that depend on whether the source is one file, and whether that may grow."""
        o = self.options
        self.fixed = not o.read_only and (self.source.device or o.fixed_size)
        if o.fixed_size and self.source.directory:
            raise UsageError("--fixed-size: the source is a directory")
        if self.fixed and o.writeback:
            raise UsageError("--writeback: the kernel would take writes past the end of a source of fixed size")

    def _check_max_write(self) -> None:
        try:
            with open("/proc/sys/fs/fuse/max_pages_limit", encoding="ascii") as f:
                limit = int(f.read())
        except OSError:
            limit = 256  # FUSE_MAX_MAX_PAGES before 6.13
        if self.options.max_pages > limit:
            raise UsageError(
                f"--max-write: the kernel's limit is {limit * PAGE} bytes (/proc/sys/fs/fuse/max_pages_limit)")

    def _want_ring(self) -> None:
        """Is the ring to be tried? Sets self.transport to 'ring' or 'dev'."""
        o = self.options
        self.transport = "ring" if o.transport != "dev" else "dev"
        if self.transport == "dev" and (o.dialect != "auto" or o.zero_copy == "on"):
            raise UsageError("--dialect and --zero-copy are of the ring, which --transport dev refuses")
        if o.enable_uring and o.transport != "dev" and ring_parameter() == "N":
            try:
                with open(PARAMETER, "w", encoding="ascii") as f:
                    f.write("Y")
            except OSError as e:
                raise TransportError(f"--enable-uring: {PARAMETER}: {reason(e)}") from None
        if self.transport == "ring" and ring_parameter() != "Y":
            if ring_parameter() == "N":
                self._no_ring(f"{PARAMETER} is N; --enable-uring (root) or 'echo Y >' sets it")
            else:
                self._no_ring("this kernel has no FUSE over io_uring (Linux 6.14)")

    def _no_ring(self, why: str) -> None:
        o = self.options
        if o.transport == "ring" or o.dialect != "auto" or o.zero_copy == "on":
            raise TransportError(f"no ring transport: {why}")
        self.transport, self.why = "dev", why

    def _reader_count(self) -> int:
        if self.transport == "ring":
            return 1
        return self.options.threads or max(4, min(16, len(os.sched_getaffinity(0))))

    def _start(self) -> None:
        o = self.options
        plan = queue_plan(o.threads) if self.transport == "ring" else []
        queues = sum(len(share.qids) for share in plan)
        self.depth = entries(plan, o.queue_depth)
        threads = len(plan) + 256 + POOL_THREADS
        self.identity = can_act_as_caller()
        size = _server.stats_size(threads)
        try:
            self.page = status_page.Page(size)
        except OSError as e:
            raise PassthruError(f"status page in {status_page.directory()}: {reason(e)}") from None
        cached = fd_cache_size()
        self.mountinfo = self.sandbox.mountinfo
        if self.mountinfo < 0:
            self.mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        with self.sandbox.inside():
            self.core = _server.ServerCore(
                self.source_fd, self.page.memory, threads, POOL_THREADS, cached,
                payload_size=o.payload_size, max_write=o.max_write, own_and_root=o.checks_callers,
                fixed_budget=min(queues * self.depth * o.payload_size, memory() // 64),
                identity=self.identity, locks=not o.local_locks, xattr=o.xattr, writeback=o.writeback,
                null_io=o.null_io, fixed_size=self.fixed, all_submounts=o.submounts == "all", trust_modes=o.trust_modes,
                mountinfo=self.mountinfo, stats_fd=self.page.fd, **self._live(o))
        self._check_kind()
        grow_fd_table(self.source_fd, 2 * cached)
        if o.map_uid or o.map_gid:
            self.core.map_ids(o.uid_map, o.gid_map)
        self.core.trace(o.debug_fuse)
        self.pool = o.buffers, o.unpinned_buffers(queues, self.depth, memory())
        # Requests to a remote source may wait for long, and keep their buffers: a few will not do.
        self.pin = o.zero_copy == "on" or not self.core.source_remote if o.pin_buffers is None else o.pin_buffers
        below, name = os.path.split(self.target)
        if name and self.source.directory:
            st = os.stat(below)
            self.core.mounted_below(st.st_dev, st.st_ino, os.fsencode(name),
                                    self.sandbox.below(self.options.source, self.target, self.target_fd))
        self.sandbox.before_threads()
        log.start(_confine.cut_thread)
        for share in plan:
            queue = Queue(self, share)
            self.queues.append(queue)
            queue.start()
        for queue in self.queues:
            queue.opened.wait()
            if queue.error is not None and self.transport == "ring":
                self._no_ring(f"io_uring: {reason(queue.error)}")
        self._mount()

    def _check_kind(self) -> None:
        """The source's filesystem and the flags of its mount, which ours then has too."""
        o, kind = self.options, self.core.source_is
        if self.identity and self.source.directory:
            if kind & _server.PSEUDO and o.submounts != "all":
                raise SourceError(
                    f"source {o.source}: not data, but the kernel's own state, which all users would see as root does; "
                    "--submounts all with -o noallow_other serves it to root")
            if kind & _server.SERVER and not o.trust_modes:
                raise SourceError(
                    f"source {o.source}: its server decides who may do what, but here mode bits would, with root's "
                    "rights; --trust-modes if they will do")
        root = os.geteuid() == 0
        self.options = o = replace(
            o, nosuid=o.nosuid or bool(kind & _server.NOSUID), nodev=o.nodev or bool(kind & _server.NODEV),
            noexec=o.noexec or bool(kind & _server.NOEXEC))
        # fusermount3 always has the first two.
        if self.kernel_mount is not None:
            self.kernel_mount.options = o
        self.core.enforced(
            _server.NOSUID * (o.nosuid or not root) | _server.NODEV * (o.nodev or not root) | _server.NOEXEC * o.noexec)

    def _mount(self) -> None:
        """Superblock, INIT, registration, and then the mount at its place."""
        o = self.options
        if self.kernel_mount is None:
            os.close(self.fuse_fd)
            self.fuse_fd = mount.fusermount(o, o.source, self.target)
            self.visible = True
            here = mount.mounted_at(self.target)
            if here is not None:
                self.mount_id, self.fuse_dev = here.mount_id, here.dev
                if self.keeper is not None:
                    self.keeper.mounted(self.mount_id)
            self._handshake()
        elif _sys.sync_init(self.fuse_fd):
            self._create_answering()
        else:
            try:
                self.kernel_mount.create()
            except OSError as e:
                raise MountError(f"mount: {reason(e)}") from None
            self._handshake()
        self._register()
        for _ in range(self._reader_count()):
            self._add_reader()
        self._catch_signals()
        self._attach()
        self.core.mounted(self.fuse_dev)
        self.housekeeper = Housekeeper(self)
        self.housekeeper.start()
        os.close(self.target_fd)
        self.hotplug = self._watch_cpus()
        self._describe()
        assert self.page is not None
        if self.page.path is None:
            return
        try:
            self.control = Control(self.page.path, self.change)
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise PassthruError(f"control socket in {status_page.directory()}: {reason(e)}") from None
            log.warning(
                f"control socket in {status_page.directory()}: {reason(e)}: this mount's options stay as they are")

    def _attach(self) -> None:
        """Put the mount at its place, unless fusermount3 has done so."""
        if self.kernel_mount is not None:
            try:
                self.fuse_dev, self.mount_id = self.kernel_mount.attach(self._place)
            except OSError as e:
                raise MountError(f"mount on {self.target}: {reason(e)}") from None
            self.visible = True
            self.kernel_mount.close()

    def _place(self, mount_fd: int, mount_id: int) -> None:
        if self.keeper is not None:
            self.keeper.attach(mount_fd, mount_id)
        else:
            _sys.move_mount(mount_fd, self.target_fd)

    def _confine(self) -> None:
        """Give up what is not needed any more."""
        if _server.DEBUG:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # it would have threads that we do not know
            from . import stats  # noqa: F401  for _check_level()
        with contextlib.suppress(OSError):  # without it, a source that hangs may keep clients as well
            self.abort_fd = os.open(
                f"/sys/fs/fuse/connections/{os.minor(self.fuse_dev)}/abort", os.O_WRONLY | os.O_CLOEXEC)
            self.sandbox.know(self.abort_fd)
        if self.sandbox.level in (SECCOMP, NAMESPACE):
            with contextlib.suppress(OSError):  # it is said when they are wanted
                self.background_fds = self._open_background()
            for fd in self.background_fds:
                self.sandbox.know(fd)
        try:
            self.sandbox.finish(self.fuse_dev, self.core.mounted_elsewhere, self._use_keeper)
        except OSError as e:
            raise MountError(f"--sandbox: {reason(e)}") from None
        self._say_options()

    def _use_keeper(self) -> None:
        assert self.keeper is not None
        log.connector = self.keeper.connect

    def _describe(self) -> None:
        """Tell the status page what serves this mount."""
        assert self.page is not None
        o, ring = self.options, self.transport == "ring"
        self.page.describe(
            dialect=self.dialect if ring else 0, queues=self.possible if ring else 0,
            depth=self.depth if ring else 0, buffers=self.buffers if ring and self.dialect != PER_ENTRY else 0,
            readers=len(self.readers), pinned=ring and self.pinned, zero_copy=ring and self.zero_copy,
            passthrough=self.passthrough, identity=self.identity, fuse_dev=self.fuse_dev, mount_id=self.mount_id,
            source=os.fsencode(o.source), mountpoint=os.fsencode(self.target))
        self._say_options()
        self.page.describe(transport=1 if ring else 2)  # last: from now on it is complete

    def _say_options(self) -> dict[str, Any]:
        assert self.page is not None
        o = self.options
        values = {f.name: getattr(o, f.name) for f in fields(o) if f.metadata and not f.metadata["hidden"]}
        self.page.describe(passthrough=self.passthrough and o.passthrough)
        self.page.settings(values, self.why, self.sandbox.text)
        return values

    def change(self, words: list[str], uid: int) -> dict[str, Any]:
        """Change options of the live mount, for `uid`: all of them or, raising PassthruError, none."""
        values = changes(words)
        before, o = self.options, self.options.changed(values)
        if values.get("passthrough") and not self.passthrough:
            raise UsageError("passthrough: it was not agreed upon with the kernel when the mount was made")
        if o.max_background != before.max_background:  # the only one that may fail
            self._set_max_background(o.max_background)
        self.core.configure(passthrough=self.passthrough and o.passthrough, **self._live(o))
        self.core.trace(o.debug_fuse)
        log.set_level(o.log_level)
        self.options = o
        for name in live_options().values():
            old, new = value_text(getattr(before, name)), value_text(getattr(o, name))
            if old != new:
                log.info(f"{self.target}: {name} is {new} now, was {old} (set by uid {uid})")
        return self._say_options()

    @staticmethod
    def _live(o: Options) -> dict[str, Any]:
        """What the serving threads read of the options that may change."""
        return {
            "attr_timeout": o.attr_timeout, "entry_timeout": o.entry_timeout, "negative_timeout": o.negative_timeout,
            "direct_io": o.direct_io or o.cache == "never", "keep_cache": KEEP[o.cache], "spin_us": o.spin_us,
            "parallel_writes": ("off", "auto", "on").index(o.parallel_direct_writes)}

    def _open_background(self) -> tuple[int, ...]:
        where = f"/sys/fs/fuse/connections/{os.minor(self.fuse_dev)}"
        return tuple(os.open(f"{where}/{name}", os.O_WRONLY | os.O_CLOEXEC)
                     for name in ("max_background", "congestion_threshold"))

    def _set_max_background(self, n: int) -> None:
        """It is the kernel's; INIT has told the first value."""
        try:
            fds = self.background_fds or self._open_background()
            for fd, value in zip(fds, (n, n * 3 // 4 or 1), strict=True):
                os.pwrite(fd, str(value).encode(), 0)
        except OSError as e:
            raise PassthruError(
                f"max_background: /sys/fs/fuse/connections/{os.minor(self.fuse_dev)}: {reason(e)}") from None
        finally:
            if not self.background_fds:
                for fd in fds:
                    os.close(fd)

    def _create_answering(self) -> None:
        """Make the superblock, which waits for INIT's answer: that is another thread's work."""
        assert self.kernel_mount is not None
        failed: list[BaseException] = []

        def answer() -> None:
            try:
                self._handshake()
            except BaseException as e:
                failed.append(e)
                os.close(self.fuse_fd)  # ends create()
                self.fuse_fd = -1

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            self.kernel_mount.create()
        except OSError as e:
            # If INIT never came, the thread waits in the kernel for good; it ends with the process.
            thread.join(1.0)
            if failed:
                raise failed[0] from None
            raise MountError(f"mount: {reason(e)}") from None
        thread.join()
        if failed:
            raise failed[0]

    def _handshake(self) -> None:
        """Answer INIT."""
        o = self.options
        try:
            data = os.read(self.fuse_fd, max(8192, self.options.max_write + PAGE))
        except OSError as e:
            raise MountError(f"INIT: {reason(e)}") from None
        request = init.parse(data)
        refused = init.too_old(request)
        if refused:
            os.write(self.fuse_fd, init.refusal(request, errno.EPROTO))
            raise MountError(refused)
        if self.transport == "ring" and not request.offers("OVER_IO_URING"):
            try:
                self._no_ring("the kernel did not offer it in INIT")
            except TransportError:
                os.write(self.fuse_fd, init.refusal(request, errno.EOPNOTSUPP))
                raise
        self._choose_dialect(request)
        flags = init.choose(request, init.Situation(
            self.options, self.transport == "ring", self.identity,
            self.core.own_umask, capable(CAP_FSETID),
            o.passthrough and not (o.writeback or o.direct_io or self.fixed or self.source.device)
            and capable_of_all(CAP_SYS_ADMIN)))
        log.debug(f"INIT 7.{request.minor}: offered {' '.join(init.names(request.flags))}")
        log.debug(f"INIT: taken {' '.join(init.names(flags))}")
        self.passthrough = bool(flags & init.flag("PASSTHROUGH"))
        self.core.negotiated(flags, min(init.MINOR, request.minor), self.fuse_fd, self.passthrough)
        reply = init.reply(request, flags, self.options)
        if o.debug_fuse:
            log.trace(f"dev unique: {request.unique}, opcode: INIT (26), nodeid: 0, insize: {len(data)}, pid: 0\n"
                      f"   unique: {request.unique}, success, outsize: {len(reply)}")
        os.write(self.fuse_fd, reply)

    def _choose_dialect(self, request: init.Init) -> None:
        """By what the kernel offers; a form that it does not know ends the connection's ring."""
        o = self.options
        if self.transport != "ring":
            return
        best = NUMBERS[request.dialects[-1]]
        wanted = NUMBERS.get(o.dialect, best)
        # Buffer rings zero-copy with everything pinned or not at all.
        unpinned = wanted == BUFRING and not (self.pin and o.pin_headers)
        self.zero_copy = best != PER_ENTRY and wanted == best and o.zero_copy != "off" and not unpinned \
            and capable_of_all(CAP_SYS_ADMIN)
        if o.zero_copy == "on" and not self.zero_copy:
            if best == PER_ENTRY:
                why = "--zero-copy: this kernel has none (Linux 7.3)"
            elif wanted != best:
                why = f"--zero-copy: not with the {o.dialect} dialect on this kernel"
            elif unpinned:
                why = "--zero-copy: this kernel wants pinned buffers and headers for it"
            else:
                why = "--zero-copy: needs CAP_SYS_ADMIN, not only in a user namespace"
        elif wanted not in (PER_ENTRY, best):
            why = f"this kernel has no {o.dialect} dialect (FUSE 7.{request.minor})"
        else:
            self.dialect = wanted
            return
        os.write(self.fuse_fd, init.refusal(request, errno.EOPNOTSUPP))
        raise TransportError(why)

    def _register(self) -> None:
        """Let the queues' threads hand their entries over, or go."""
        for queue in self.queues:
            queue.fuse_fd = self.fuse_fd if self.transport == "ring" else -1
            queue.go.set()
        for queue in self.queues:
            queue.registered.wait()
        if self.transport == "ring":
            error = next((q.error for q in self.queues if q.error is not None), None)
            if error is not None:
                self._no_ring(f"REGISTER: {reason(error)}")
                return
            dialects, buffers, pinned, zero_copy = zip(*(q.thread.outcome for q in self.queues), strict=True)
            self.dialect, self.buffers = min(dialects), min(buffers)
            self.pinned, self.zero_copy = all(pinned), all(zero_copy)
            if self.options.zero_copy == "on" and not self.zero_copy:
                raise TransportError("--zero-copy: the kernel refused it")
            if self.zero_copy and self.dialect == BUFPOOL:
                self.core.zero_copy(True, 0 if self.options.zero_copy == "on" else 1 << 20)

    def _add_reader(self) -> None:
        try:
            fd = _sys.clone_fuse_fd(self.fuse_fd, self.sandbox.open_fuse())
        except OSError:
            fd = os.dup(self.fuse_fd)
        if not self.readers:
            # The first reads the session's own fd: INTERRUPT and FORGET may come by any.
            os.close(fd)
            fd = os.dup(self.fuse_fd)
        reader = Reader(self, fd)
        self.readers.append(reader)
        reader.start()
        reader.opened.wait()
        if reader.error is not None:
            raise PassthruError(f"/dev/fuse reader: {reason(reader.error)}")

    # ------------------------------------------------------------- serving

    def thread_ended(self) -> None:
        """Called by a serving thread as its last act."""
        os.eventfd_write(self.ended, 1)

    def serve(self) -> None:
        """Wait for the end: an unmount, or a signal, upon which it unmounts."""
        poll = select.poll()
        poll.register(self.wake_read, select.POLLIN)
        poll.register(self.ended, select.POLLIN)
        hotplug = self.hotplug
        if hotplug is not None:
            poll.register(hotplug, select.POLLIN)
        control = self.control
        if control is not None:
            poll.register(control.fd, select.POLLIN)
        poll.register(self.mountinfo, select.POLLPRI)  # and POLLERR: the mount table has changed
        while not all(r.done for r in self.readers):
            left = None if self.end_by is None else max(0, int((self.end_by - time.monotonic()) * 1000))
            ready = poll.poll(left)
            if left is not None and time.monotonic() >= (self.end_by or 0):
                if self.elsewhere:
                    # Told to end, and unmounted; but a copy of the mount lives (mount --bind, another namespace).
                    log.warning(f"{self.target} is mounted elsewhere as well: what is done there gets errors")
                    self.core.stop()
                    self._wake()
                break
            for fd, _ in ready:
                if fd == self.wake_read:
                    os.read(self.wake_read, 64)
                    self.unmount()
                elif control is not None and fd == control.fd:
                    control.ready()
                elif fd == self.mountinfo:
                    self.core.mounts_changed()
                elif hotplug is not None and fd == hotplug.fileno():
                    for queue in self.queues if hotplug.changed() else ():
                        queue.bind()
                else:
                    os.eventfd_read(self.ended)
                    broken = next((q for q in self.queues if q.done and q.thread.error), None)
                    if broken is not None and not self.broken:
                        self.broken = True
                        log.error(f"{broken.name} ended with an error ({os.strerror(broken.thread.error)}): unmounting")
                        self.unmount()
        self.finish()
        if self.broken:
            raise PassthruError("the session ended with an error")

    def _watch_cpus(self) -> Hotplug | None:
        """A thread whose CPU went offline is bound to no CPU any more, also after that has come back."""
        try:
            return Hotplug() if self.queues else None
        except OSError:  # in some containers
            return None

    def _catch_signals(self) -> None:
        """From now on signals unmount: they wake serve()."""
        self.wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for s in STOP_SIGNALS:
            signal.signal(s, lambda *_: None)

    def _stops(self) -> None:
        if self.stopping is not None:
            self.stopping()
            self.stopping = None

    def unmount(self) -> None:
        """Unmount. If files are open, detach, finish what is in flight, and end all the same."""
        self._stops()
        try:
            how = self._take_away()
        except OSError as e:
            log.error(f"unmount {self.target}: {reason(e)}")
            how = mount.NOT_THERE
        if how == mount.UNMOUNTED:
            self.end_by, self.elsewhere = time.monotonic() + ELSEWHERE, True
            return
        if how == mount.DETACHED:
            log.warning(f"{self.target} is busy: detached, what is still open there gets errors")
        self.core.stop()
        self._wake()
        self.end_by, self.elsewhere = time.monotonic() + HANGING, False

    def _take_away(self) -> str:
        if self.keeper is not None:
            return self.keeper.unmount()
        return mount.unmount(self.target, self.mount_id, os.geteuid() == 0)

    def _wake(self) -> None:
        for queue in self.queues:
            queue.thread.wake()
        end = time.monotonic() + HANGING
        while any(r.is_alive() for r in self.readers) and time.monotonic() < end:
            for reader in self.readers:
                reader.thread.wake()  # a signal is lost if read(2) has not begun
                reader.join(0.01)

    def finish(self) -> None:
        """Join all threads, free everything. What the kernel may still write to is left to exit(2)."""
        self._stops()
        end = time.monotonic() + HANGING
        for reader in self.readers:
            reader.join(max(0.0, end - time.monotonic()))
        self.core.stop()
        # After an abort the dead mount is still there. After an unmount it may be somebody else's, of the same number.
        if any(reader.ended_by != errno.ENODEV for reader in self.readers):
            with contextlib.suppress(OSError):
                self._take_away()
        for queue in self.queues:
            queue.go.set()
            while queue.is_alive() and time.monotonic() < end:
                queue.thread.wake()
                queue.join(0.05)
        if self.housekeeper is not None:
            self.housekeeper.over.set()
            self.housekeeper.join(max(0.1, end - time.monotonic()))
        self._abort()
        threads: list[threading.Thread | None] = [*self.readers, *self.queues, self.housekeeper]
        hang = any(thread is not None and thread.is_alive() for thread in threads)
        if _server.DEBUG and not self.core.hangs and not hang:
            self._check_level()
        if hang or not self.core.close():
            log.warning(f"{self.target}: the source does not answer; what waits for it is given up")
        for queue in self.queues:
            queue.thread.release()
        self._leave()

    def _abort(self) -> None:
        """Nobody waits for answers any more: what is closed next may hang, and who has files open here is not to."""
        if self.abort_fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self.abort_fd, b"1")

    def _check_level(self) -> None:
        """Debug builds: what was taken has been given back."""
        from . import stats  # numpy, for debug builds only

        if self.page is None or self.page.path is None:
            return
        s = stats.of_memory(self.page.memory, self.page.path)
        asked, answered = s.total("ring_requests"), s.total("commits")
        lost = s.total("entries_lost")
        bad = []
        if asked != answered or lost:
            bad.append(f"{asked} ring requests, {answered} commits, {lost} entries lost")
        if s.total("opens") - s.total("releases") != self.core.live[1]:
            bad.append(f"{s.total('opens')} opens, {s.total('releases')} releases, {self.core.live[1]} handles live")
        if s.total("forgets") > s.total("lookups"):
            bad.append(f"{s.total('lookups')} lookups, {s.total('forgets')} forgets")
        if bad:
            raise PassthruError("counters not level: " + "; ".join(bad))

    def _leave(self) -> None:
        """From now on nobody is to find this daemon."""
        # With a keeper they are its to remove: here these paths may lead into the source.
        if self.control is not None:
            self.control.close(remove=self.keeper is None)
        if self.keeper is not None:
            self.keeper.dismiss()
        elif self.page is not None:
            self.page.remove()

    def _abandon(self) -> None:
        """Undo a start that failed."""
        if self.visible:
            try:
                self._take_away()
            except OSError as e:
                log.error(f"unmount {self.target}: {reason(e)}")
        if self.kernel_mount is not None:
            self.kernel_mount.close()
        if self.housekeeper is not None:
            self.housekeeper.over.set()
        if hasattr(self, "core"):
            self.core.stop()
        for queue in self.queues:
            queue.go.set()
        self._leave()


def run(
    options: Options, ready: Callable[[str], None], stopping: Callable[[], object] | None = None
) -> None:
    """Mount, tell `ready` what serves it, and serve until the end. Raises PassthruError.

    stopping: called when the end has begun.
    """
    session = Session(options)
    session.stopping = stopping
    try:
        ready(session.start())
        session.serve()
    finally:
        log.stop()
