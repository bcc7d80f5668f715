"""One mount from start to end, in the right order: what is done is done elsewhere.

The queues' threads have their rings before INIT's reply offers the ring, entries are registered before the mount is
visible, and memory goes after the last CQE.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from . import _confine, _server, init, log, mounting, passing, report, resources, status_page
from .capabilities import CAP_FSETID, CAP_SYS_ADMIN, can_act_as_caller, capable, capable_of_all
from .connection import Agreement, Connection
from .cpus import Hotplug, Share, entries, possible_cpus, queue_plan
from .errors import MountError, PassthruError, UsageError, reason
from .keeper import Keeper
from .options import Options, live_options, live_values, value_text
from .passing import Passing
from .repeating import Repeaters, Repeating
from .sandbox import NAMESPACE, NONE, SECCOMP, Sandbox
from .serving import Serving, check_level, configure, make_core, stats_size
from .source import Source, keeps_size, open_source, options_for
from .transport import BUFPOOL, Transport
from .watching import Watcher, where

ZERO_COPY_MIN = 1 << 20  # bytes: what is smaller is copied, if it is not to be zero-copied in any case
HANGING = 5.0  # seconds that threads may take to end which the source does not answer
ELSEWHERE = 2.0  # seconds that the connection may outlive the mount that a signal has ended
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Session:
    """A mount being made, served and ended by this process. stopping: called when the end has begun."""

    arena = 0  # bytes of addresses that the tables have in memory for a successor
    holder = -1  # pidfd of the process without which the mount ends
    takeover: report.Takeover | None = None

    def __init__(self, options: Options, stopping: Callable[[], object] | None = None):
        self.options = options
        self._stopping = stopping
        self.sandbox = Sandbox(options)
        self.transport = Transport(options)
        self.source: Source
        self.source_fd = -1
        self.connection: Connection | None = None
        self.core: _server.ServerCore
        self.serving: Serving | None = None
        self.possible = self.depth = 0  # queues, entries of each
        self.pin_buffers = self.identity = self.fixed = False
        self.passthrough = False  # agreed upon with the kernel
        self.hotplug: Hotplug | None = None
        self.mountinfo = -1
        self.watcher: Watcher | None = None
        self.repeaters: Repeaters | None = None
        self.repeating: Repeating | None = None
        self.thread_ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.filesystems_changed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.wake_read = -1
        self.broken = False
        self.end_by: float | None = None
        self.notes: list[str] = []  # what was asked for by name, and is without effect
        self.elsewhere = False

    # ------------------------------------------------------------ start

    def start(self) -> str:
        """Make the mount usable; a line that says what serves it. Raises PassthruError, nothing mounted.

        What more there is to say is in `notes`, and in `transport.advice`.
        """
        try:
            self._open()
            self._prepare()
            self._mount()
            self._confine()
            return self.summary()
        except BaseException:
            self._abandon()
            raise

    def _open(self) -> None:
        """The source, the mountpoint, /dev/fuse; what can be known to be wrong with them and the options."""
        o = self.options
        self.source = open_source(o.source)
        self.source_fd = self.source.fd
        target, target_fd = mounting.open_mountpoint(o.mountpoint, self.source.directory)
        if self.source.read_only:  # nor could it be written to through the mount
            self.options = o = replace(o, read_only=True)
        self.fixed = keeps_size(self.source, o)
        resources.check_max_write(o)
        resources.raise_fd_limit()
        self.transport.prepare()
        self.possible = len(possible_cpus())
        try:
            self.sandbox.begin()
            fuse_fd = self.sandbox.open_fuse()
        except OSError as e:
            raise MountError(f"/dev/fuse: {reason(e)}") from None
        self.connection = Connection.open(fuse_fd, o, target, target_fd, self.source.root_mode)
        if self.connection.by_fusermount:
            self.sandbox.limit(SECCOMP, "the mount is fusermount3's")
        if o.auto_unmount or self.sandbox.level != NONE or o.cache == "coherent":  # before there are threads
            self.connection.keeper = Keeper(
                target, target_fd, status_page.directory(), auto_unmount=o.auto_unmount)
        if o.inotify != "off":
            self._fork_repeaters()
        self.source_fd = self.sandbox.source(self.source)

    def _fork_repeaters(self) -> None:
        """Before there are threads."""
        if self.source.read_only:
            raise MountError("--inotify: nothing can be repeated in a mount that is read-only, as the source is")
        if self._connection.by_fusermount:
            raise MountError("--inotify: changes in the source are told only to root")
        self.repeaters = Repeaters(auto=self.options.inotify == "auto")
        self._connection.placed = self.repeaters.begin

    def _prepare(self) -> None:
        """All that serves stands ready: tables, status page, the threads of the queues with their rings."""
        o = self.options
        plan = queue_plan(o.threads) if self.transport.ring else []
        queues = sum(len(share.qids) for share in plan)
        self.depth = entries(plan, o.queue_depth)
        self._make_core(len(plan), queues)
        if o.cache == "coherent":
            self.watcher = Watcher(self.core)
        if o.map_uid or o.map_gid:
            self.core.map_ids(o.uid_map, o.gid_map)
        if self.repeaters is not None:
            self.repeating = Repeating(self.core, always=o.inotify == "on")
        self.core.trace(o.debug_fuse)
        # Requests to a remote source may wait for long, and keep their buffers: a few will not do.
        self.pin_buffers = (
            o.zero_copy == "on" or not self.core.source_remote if o.pin_buffers is None else o.pin_buffers)
        self._hide_mountpoint()
        self.sandbox.before_threads()
        self._start_log()
        self.serving = Serving(self.core, lambda: os.eventfd_write(self.thread_ended, 1))
        buffers = o.buffers, o.unpinned_buffers(queues, self.depth, resources.memory())
        self._open_queues(plan, buffers)

    def _start_log(self) -> None:
        log.start(_confine.cut_thread)

    def _make_core(self, threads: int, queues: int) -> None:
        o = self.options
        self.identity = can_act_as_caller()
        page = self._connection.make_page(stats_size(threads))
        self.mountinfo = self.sandbox.mountinfo
        if self.mountinfo < 0:
            self.mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        with self.sandbox.inside():
            self.core = make_core(
                o, self.source_fd, page, threads, queues * self.depth, identity=self.identity, fixed_size=self.fixed,
                mountinfo=self.mountinfo, arena=self.arena)
        self.options = o = options_for(
            self.core.source_is, o, all_callers=self.identity and self.source.directory)
        root = os.geteuid() == 0  # fusermount3 always has the first two
        self.core.enforced(
            _server.NOSUID * (o.nosuid or not root) | _server.NODEV * (o.nodev or not root) | _server.NOEXEC * o.noexec)
        resources.grow_fd_table(self.source_fd, 2 * resources.fd_cache_size())

    def _hide_mountpoint(self) -> None:
        """The mountpoint's name in the source is not to lead into the mount."""
        target = self._connection.target
        below, name = os.path.split(target)
        if name and self.source.directory:
            st = os.stat(below)
            self.core.mounted_below(
                st.st_dev, st.st_ino, os.fsencode(name),
                self.sandbox.below(self.options.source, target, self._connection.target_fd))

    def _open_queues(self, plan: list[Share], buffers: tuple[int, int]) -> None:
        error = self._serving.open_queues(plan, self.depth, buffers)
        if error is not None:
            self.transport.no_ring(f"io_uring: {reason(error)}")

    def _mount(self) -> None:
        """Superblock, INIT, registration, readers, and then the mount at its place."""
        connection, serving = self._connection, self._serving
        connection.negotiate(self.options, self._agree)
        if self.passthrough:
            passing.try_source(self.core, self.mountinfo, connection.fuse_fd, self.source_fd, self.source.directory)
        if self.transport.ring:
            self.transport.registered(serving.register(connection.fuse_fd, self.transport.form))
            form = self.transport.outcome
            if form.zero_copy and form.dialect == BUFPOOL:
                self.core.zero_copy(True, 0 if self.options.zero_copy == "on" else ZERO_COPY_MIN)
        else:
            serving.skip_queues()
        self._serve_first()
        self._attach()
        self.core.mounted(connection.dev)
        self._keep_house()
        if self.watcher is not None:
            serving.watch(self.watcher)
        if self.repeating is not None and self.repeaters is not None:
            self.repeating.trust(self.repeaters)
            serving.repeat(self.repeating)
        self.hotplug = self._watch_cpus()
        report.describe(self._served(), connection)
        connection.listen(self.set_options)

    def _serve_first(self) -> None:
        """What serves from before the mount is at its place."""
        self._add_readers()
        self._catch_signals()

    def _keep_house(self) -> None:
        self._serving.keep_house(lambda: os.eventfd_write(self.filesystems_changed, 1))

    def _add_readers(self) -> None:
        connection, serving = self._connection, self._serving
        # The first reads the connection's own fd: INTERRUPT and FORGET may come by any.
        serving.add_reader(connection.copy())
        for _ in range(1, self.transport.readers()):
            serving.add_reader(connection.clone(self.sandbox.open_fuse))

    def _agree(self, request: init.Init) -> Agreement:
        """What INIT is answered. Raises TransportError."""
        o = self.options
        self.transport.choose(request, self.pin_buffers)
        if self.watcher is not None:
            self.watcher.agree(request, o)
        flags = init.choose(request, init.Situation(
            o, self.transport.ring, self.identity, self.core.own_umask, capable(CAP_FSETID),
            o.passthrough is not False and not (o.writeback or o.direct_io or self.fixed or self.source.device)
            and capable_of_all(CAP_SYS_ADMIN)))
        log.debug(f"INIT 7.{request.minor}: offered {' '.join(init.names(request.flags))}")
        log.debug(f"INIT: taken {' '.join(init.names(flags))}")
        agreed = Agreement(min(init.MINOR, request.minor), flags, o.max_write)
        self.passthrough = bool(flags & init.flag("PASSTHROUGH"))
        self._note_idle(request, flags)
        if o.passthrough is None:
            self.options = replace(o, passthrough=self.passthrough)
        self.core.negotiated(flags, agreed.minor, self._connection.fuse_fd, self.passthrough)
        return agreed

    def _note_idle(self, request: init.Init, flags: int) -> None:
        """Options that were given by name and do nothing here: nobody is to believe that they do."""
        o = self.options

        def idle(option: str, capability: str, why: str) -> None:
            if not flags & init.flag(capability):
                if not request.offers(capability):
                    why = "this kernel has none of it"
                self.notes.append(f"{option} does nothing: {why}")

        if o.passthrough and not capable_of_all(CAP_SYS_ADMIN):
            idle("--passthrough", "PASSTHROUGH", "only root's daemon has kernel passthrough (CAP_SYS_ADMIN)")
        if o.selinux:
            idle("--selinux", "SECURITY_CTX", "only root's daemon makes files for others")
        if o.idmapped:
            idle("--idmapped", "ALLOW_IDMAP", "only root's mounts can be idmapped")
        if not self.identity:
            self.notes += [f"{option} does nothing: it is of root's mounts" for option, given in (
                ("--trust-modes", o.trust_modes), ("--submounts all", o.submounts == "all")) if given]

    def _attach(self) -> None:
        """A rehearsal (probe.py) ends here."""
        self._connection.attach(self.options)

    def _catch_signals(self) -> None:
        """From now on signals unmount: they wake serve()."""
        self.wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for s in STOP_SIGNALS:
            signal.signal(s, lambda *_: None)

    def _watch_cpus(self) -> Hotplug | None:
        """A thread whose CPU went offline is bound to no CPU any more, also after that has come back."""
        try:
            return Hotplug() if self._serving.queues else None
        except OSError:  # in some containers
            return None

    def _confine(self) -> None:
        """Give up what is not needed any more."""
        if _server.DEBUG:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # it would have threads that we do not know
            from . import stats  # noqa: F401  for check_level()
        connection = self._connection
        for fd in connection.hold_files(
                background=self.sandbox.level in (SECCOMP, NAMESPACE), aborting=self.watcher is not None):
            self.sandbox.know(fd)
        try:
            self.sandbox.confine(connection.dev, self.core.mounted_elsewhere, self._use_keeper)
        except OSError as e:
            raise MountError(f"--sandbox: {reason(e)}") from None
        report.describe_options(self._served(), connection)

    def _use_keeper(self) -> None:
        assert self._connection.keeper is not None
        log.connector = self._connection.keeper.connect

    @property
    def _connection(self) -> Connection:
        assert self.connection is not None
        return self.connection

    @property
    def _serving(self) -> Serving:
        assert self.serving is not None
        return self.serving

    def _served(self) -> report.Served:
        return report.Served(
            self.options, self.source, self.transport, self.sandbox, self.possible, self.depth,
            len(self._serving.queues), len(self._serving.readers), self._passing(), self.identity, self.fixed,
            self._cached(), self.takeover)

    def _passing(self) -> Passing:
        """Where the kernel reads and writes files itself."""
        if not self.passthrough or self.options.passthrough is False:
            return Passing()
        return passing.look(self.core, self.mountinfo, where(self.source_fd, self.sandbox.fds),
                            submounts=not self.options.one_file_system)

    def _cached(self) -> str:
        """What the kernel keeps of names and attributes."""
        o = self.options
        if self.watcher is not None and o.cache == "coherent":
            return "until the source tells of a change"
        return f"names {o.entry_timeout:g} s, attributes {o.attr_timeout:g} s"

    def summary(self) -> str:
        """A line that says what serves the mount."""
        return report.summary(self._served(), self._connection.target)

    def _abandon(self) -> None:
        """Undo a start that failed."""
        if self.connection is not None:
            self.connection.undo()
        if self.repeaters is not None:
            self.repeaters.dismiss()
        if self.serving is not None:
            self.serving.give_up()
        if self.connection is not None:
            self.connection.hide()

    # ------------------------------------------------------------ serve

    def serve(self) -> None:
        """Wait for the end: an unmount, or a signal, upon which it unmounts."""
        control, hotplug, serving = self._connection.control, self.hotplug, self._serving
        self._look_at_mounts()
        poll = select.poll()
        poll.register(self.wake_read, select.POLLIN)
        poll.register(self.thread_ended, select.POLLIN)
        poll.register(self.filesystems_changed, select.POLLIN)
        if hotplug is not None:
            poll.register(hotplug, select.POLLIN)
        if control is not None:
            poll.register(control.fd, select.POLLIN)
        if self.holder >= 0:
            poll.register(self.holder, select.POLLIN)
        poll.register(self.mountinfo, select.POLLPRI)  # and POLLERR: the mount table has changed
        while not serving.over:
            left = None if self.end_by is None else max(0, int((self.end_by - time.monotonic()) * 1000))
            ready = poll.poll(left)
            if left is not None and time.monotonic() >= (self.end_by or 0):
                if self.elsewhere:
                    # Told to end, and unmounted; but a copy of the mount lives (mount --bind, another namespace).
                    log.warning(
                        f"{self._connection.target} is mounted elsewhere as well: what is done there gets errors")
                    serving.stop(time.monotonic() + HANGING)
                break
            for fd, _ in ready:
                if fd == self.wake_read:
                    os.read(self.wake_read, 64)
                    self.unmount()
                elif control is not None and fd == control.fd:
                    control.ready()
                elif fd == self.mountinfo:
                    self.core.mounts_changed()
                    self._look_at_mounts()
                elif fd == self.filesystems_changed:
                    os.eventfd_read(fd)
                    report.describe_options(self._served(), self._connection)
                elif fd == self.holder:
                    poll.unregister(fd)
                    log.error(f"{self._connection.target}: the holder has ended: unmounting")
                    self.unmount()
                elif hotplug is not None and fd == hotplug.fileno():
                    if hotplug.changed():
                        serving.bind_queues()
                else:
                    os.eventfd_read(self.thread_ended)
                    self._look_for_broken()
        self.end()
        if self.broken:
            raise PassthruError("the session ended with an error")

    def _look_at_mounts(self) -> None:
        if self.watcher is not None:
            self.watcher.look_at_mounts(self.mountinfo, where(self.source_fd, self.sandbox.fds))

    def _look_for_broken(self) -> None:
        """A thread has ended: is a queue without one?"""
        queue = self._serving.broken
        if queue is not None and not self.broken:
            self.broken = True
            log.error(f"{queue.name} ended with an error ({os.strerror(queue.thread.error)}): unmounting")
            self.unmount()

    def set_options(self, words: list[str], uid: int) -> dict[str, Any]:
        """Change options of the live mount, for `uid`: all of them or, raising PassthruError, none."""
        values = live_values(words)
        before, o = self.options, self.options.with_values(values)
        if o.cache == "coherent" and self.watcher is None:
            raise UsageError("cache: coherent is to be said when the mount is made")
        if values.get("passthrough") and not self.passthrough:
            raise UsageError("passthrough: it was not agreed upon with the kernel when the mount was made")
        if o.max_background != before.max_background:  # the only one that may fail
            self._connection.set_max_background(o.max_background)
        configure(self.core, o, passthrough=self.passthrough)
        if self.watcher is not None:
            self.watcher.configure(o)
        self.core.trace(o.debug_fuse)
        log.set_level(o.log_level)
        self.options = o
        for name in live_options().values():
            old, new = value_text(getattr(before, name)), value_text(getattr(o, name))
            if old != new:
                log.info(f"{self._connection.target}: {name} is {new} now, was {old} (set by uid {uid})")
        return report.describe_options(self._served(), self._connection)

    # ------------------------------------------------------------ end

    def _say_stopping(self) -> None:
        if self._stopping is not None:
            self._stopping()
            self._stopping = None

    def unmount(self) -> None:
        """Unmount. If files are open, detach, finish what is in flight, and end all the same."""
        self._say_stopping()
        if self.repeaters is not None:
            self.repeaters.dismiss()
        target = self._connection.target
        try:
            how = self._connection.unmount()
        except OSError as e:
            log.error(f"unmount {target}: {reason(e)}")
            how = mounting.NOT_THERE
        if how == mounting.UNMOUNTED:
            self.end_by, self.elsewhere = time.monotonic() + ELSEWHERE, True
            return
        if how == mounting.DETACHED:
            log.warning(f"{target} is busy: detached, what is still open there gets errors")
        self._serving.stop(time.monotonic() + HANGING)
        self.end_by, self.elsewhere = time.monotonic() + HANGING, False

    def say_notes(self, told: Callable[[Sequence[str], str], None] | None) -> None:
        """What of the options does nothing; told: see run()."""
        if told is not None:
            told(self.notes, self.transport.advice)
            return
        for note in self.notes:
            log.warning(note)

    def end(self) -> None:
        """Join all threads, free everything. What the kernel may still write to is left to exit(2)."""
        self._say_stopping()
        connection, serving = self._connection, self._serving
        by = time.monotonic() + HANGING
        serving.join_readers(by)
        # After an abort the dead mount is still there. After an unmount it may be somebody else's, of the same number.
        if not serving.unmounted:
            with contextlib.suppress(OSError):
                connection.unmount()
        ended = serving.end(by)
        connection.abort()
        if self.repeating is not None:
            ended = self.repeating.ended(by) and ended
        if self.watcher is not None:
            ended = self.watcher.ended(by) and ended
        if _server.DEBUG and not self.takeover and ended and not self.core.hangs and connection.page is not None:
            check_level(self.core, connection.page)
        if not ended or not self.core.close():
            log.warning(f"{connection.target}: the source does not answer; what waits for it is given up")
        if self.repeaters is not None:
            self.repeaters.close()
        serving.release()
        connection.hide()


def run(
    options: Options, ready: Callable[[str], None], stopping: Callable[[], object] | None = None,
    notes: Callable[[Sequence[str], str], None] | None = None,
) -> None:
    """Mount, tell `ready` what serves it, and serve until the end. Raises PassthruError.

    notes: told before of Session.notes and Transport.advice; without it the former are logged.
    stopping: called when the end has begun.
    """
    session = Session(options, stopping)
    try:
        line = session.start()
        session.say_notes(notes)
        ready(line)
        session.serve()
    finally:
        log.stop()
