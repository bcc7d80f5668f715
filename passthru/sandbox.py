"""What the daemon gives up when its mount is up (--sandbox): capabilities, system calls, all files but the source.

It goes in steps, since a thread has a mount namespace of its own and keeps that of its maker: begin() and source()
before there is any other thread, confine() when nothing has to be opened by a path any more.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import _confine, _sys, capabilities, mounting, seccomp, stdio
from .errors import MountError, SourceError, reason
from .options import SANDBOX, Options
from .source import Source, reopen

LEVELS = SANDBOX[1:]
NONE, CAPS, SECCOMP, NAMESPACE = LEVELS
SMACK = "/sys/fs/smackfs"
PATIENCE = 2.0  # seconds, until each thread has done its part
CODECS = ("ascii", "latin-1", "utf-8", "unicode_escape")
NULL, FUSE = "dev/null", "dev/fuse"

# What a daemon that acts for others needs; why, is in docs/security.md.
KEPT = (
    capabilities.CAP_CHOWN, capabilities.CAP_DAC_OVERRIDE, capabilities.CAP_DAC_READ_SEARCH, capabilities.CAP_FOWNER,
    capabilities.CAP_FSETID, capabilities.CAP_SETGID, capabilities.CAP_SETUID, capabilities.CAP_LINUX_IMMUTABLE,
    capabilities.CAP_SYS_ADMIN, capabilities.CAP_MKNOD, capabilities.CAP_SETFCAP)
# What threads need until they serve: pinned memory is not counted; the bounding set.
AT_START = (capabilities.CAP_IPC_LOCK, capabilities.CAP_SETPCAP)


def mask(*which: int) -> int:
    """Capabilities as bits."""
    return sum(1 << n for n in which)


def fd_directory() -> int:
    """Make /proc/self/fd the working directory, where _fdpath.pxd looks for fds; an fd of it, of a mount that nothing
    leads out of, if that may be made.

    /proc itself is fd PROC_FD from now on, to ask what callers are: read-only, and no link in it leads anywhere.
    """
    try:
        fd = _confine.open_tree(b"/proc/self/fd")
        proc = _confine.open_tree(b"/proc")
        _confine.change_mount(proc, 15 | mounting.MOUNT_ATTR_NOSYMFOLLOW, 0)  # RDONLY, NOSUID, NODEV, NOEXEC
    except OSError:
        fd = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.dup2(proc, _confine.PROC, inheritable=False)
    os.close(proc)
    os.fchdir(fd)
    return fd


class Sandbox:
    """level: how far it goes, at last how far it went; why: why that is less than what was tried."""

    def __init__(self, options: Options):
        self._options = options
        wanted = options.sandbox
        self._strict = wanted != "auto"
        self.level, self.why = wanted if self._strict else NAMESPACE, ""
        self.fds = -1              # /proc/self/fd
        self.mountinfo = -1        # of the namespace in which requests are served
        self._proc = self._outside = self._root = self._devices = self._null = -1
        self._under = -1
        self._known: list[int] = []
        self._before: set[int] = set()
        self._served: set[int] = set()  # mounts of a single file's source
        if self.level in (SECCOMP, NAMESPACE) and not _confine.ARCH:
            self.limit(CAPS, f"no filter for {os.uname().machine}")
        if self.level == NAMESPACE and options.selinux:
            self.limit(SECCOMP, "labels for --selinux are written in /proc")
        if self.level == NAMESPACE and not capabilities.capable(capabilities.CAP_SYS_ADMIN):
            self.limit(SECCOMP, "a mount namespace takes CAP_SYS_ADMIN")

    @property
    def text(self) -> str:
        return self.level + (f" ({self.why})" if self.why else "")

    def limit(self, level: str, why: str) -> None:
        """It goes no further than that. Raises MountError if more was asked for."""
        if LEVELS.index(level) < LEVELS.index(self.level):
            if self._strict:
                raise MountError(f"--sandbox {self.level}: {why}")
            self.level, self.why = level, why

    def know(self, fd: int) -> None:
        """This fd stays open, though the daemon has no path to it."""
        self._known.append(fd)

    # ------------------------------------------------------------- before there are threads

    def begin(self) -> None:
        """What is needed later and will have no path. Raises OSError."""
        self._proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.know(self._proc)
        if self.level == NAMESPACE:
            self._before = {m.mount_id for m in mounting.mounts()}
            with contextlib.suppress(OSError):  # some containers let nobody make device files
                self._devices = self._own_devices()
        if self.level != NONE:
            self._null = self._device(NULL)
            self.know(self._null)
            stdio.use_null(self._null)

    @staticmethod
    def _own_devices() -> int:
        """A filesystem with nothing but the two devices: by an fd of /dev/null, and a handle, all of /dev is opened."""
        sb = _sys.fsopen(b"tmpfs")
        try:
            _sys.fsconfig_create(sb)
            fd: int = _sys.fsmount(sb, mounting.MOUNT_ATTR_NOSUID | mounting.MOUNT_ATTR_NOEXEC)
        finally:
            os.close(sb)
        try:
            os.mkdir("dev", 0o700, dir_fd=fd)
            for name in (NULL, FUSE):
                os.mknod(name, stat.S_IFCHR | 0o600, os.stat(f"/{name}").st_rdev, dir_fd=fd)
                os.close(os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=fd))
        except OSError:
            os.close(fd)
            raise
        return fd

    def _device(self, name: str) -> int:
        if self._devices >= 0:
            return os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._devices)
        return os.open(f"/{name}", os.O_RDWR | os.O_CLOEXEC)

    def open_fuse(self) -> int:
        """A new fd of /dev/fuse. Raises OSError."""
        return self._device(FUSE)

    def source(self, source: Source) -> int:
        """An fd of the source, opened O_RDONLY, in the namespace where it is served. Raises SourceError."""
        o = self._options
        fd = source.fd
        # Access times are kept by the source, so their mode is that of a mount of it.
        mode = mounting.MOUNT_ATTR_NOATIME * o.noatime or mounting.MOUNT_ATTR_STRICTATIME * o.strictatime
        directories = mounting.MOUNT_ATTR_NODIRATIME * o.nodiratime
        own = (o.one_file_system and source.directory) or (
            (mode or directories) and capabilities.capable(capabilities.CAP_SYS_ADMIN))
        if self.level == NAMESPACE:
            self._check_mounts(source)
        if self.level == NAMESPACE:
            home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fd = self._separate(source)
            except OSError as e:
                self.limit(SECCOMP, f"a mount namespace: {reason(e)}")
                with contextlib.suppress(OSError):  # it was the first step that failed
                    _sys.enter_mount_namespace(home)
            finally:
                os.close(home)
        try:
            if own or (self.level == NAMESPACE and source.directory):
                tree = _sys.clone_mount(
                    fd, mounting.MOUNT_ATTR_ATIME_MODE if mode else 0, mode | directories, not o.one_file_system,
                    bool(own))
                if self.level == NAMESPACE and source.directory:
                    _sys.move_mount(tree, fd)
                    self._root = tree
                served = reopen(tree, os.O_RDONLY)
                if tree != self._root:
                    self.know(tree)
                os.close(fd)
                fd = served
        except OSError as e:
            raise SourceError(f"source {o.source}: a mount of its own for it: {reason(e)}") from None
        if self.level == NAMESPACE:
            try:
                self._look()
            except OSError as e:
                self.limit(SECCOMP, f"a root of its own: {reason(e)}")
        self.fds = fd_directory()
        self.know(self.fds)
        self.know(_confine.PROC)
        if not source.directory:
            self._served.add(_sys.mount_identity(fd)[1])
        return fd

    def _check_mounts(self, source: Source) -> None:
        """Is a namespace of our own as good as this one? Else limit()."""
        table = mounting.mounts()
        root = mounting.mount_of(table, "/")
        if root is None or root.parent == root.mount_id:
            self.limit(SECCOMP, "the root cannot be changed: it is the first one, or not a mount")
        o = self._options
        if self._strict or not source.directory or o.one_file_system or o.noatime or o.strictatime or o.nodiratime:
            return  # nothing that is mounted later would be shown anyway
        top = os.path.realpath(o.source)
        below = [m for m in table if m.target.startswith(top.rstrip("/") + "/")]
        here = mounting.mount_of(table, top)
        if here is None or not all(m.shared for m in [here, *below]):
            self.limit(SECCOMP, "what is mounted below the source later would not be seen: its mount is private")

    def _separate(self, source: Source) -> int:
        """A namespace of our own; the source by its name there."""
        if not source.directory:  # by the mount where it lies all of this namespace could be reached
            tree = _sys.clone_mount(source.fd, 0, 0, False)
            self.know(tree)
            own = reopen(tree, os.O_RDONLY)
            os.dup2(own, source.fd, inheritable=False)
            os.close(own)
        _confine.own_mounts()
        # Copies of what others serve would keep that from ending, if it is not told to them when it is unmounted.
        top = os.path.realpath(self._options.source) + "/"
        for m in reversed(mounting.mounts()):
            if m.fstype.partition(".")[0] == "fuse" and not f"{m.target}/".startswith(top) and not top.startswith(
                    f"{m.target}/"):
                with contextlib.suppress(OSError):
                    _sys.umount(os.fsencode(m.target), mounting.MNT_DETACH | mounting.UMOUNT_NOFOLLOW)
        if not source.directory:
            sb = _sys.fsopen(b"tmpfs")
            try:
                _sys.fsconfig_create(sb)
                self._root = _sys.fsmount(sb, 15)  # MOUNT_ATTR_RDONLY, NOSUID, NODEV, NOEXEC
            finally:
                os.close(sb)
            slash = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _sys.move_mount(self._root, slash)
            finally:
                os.close(slash)
            return source.fd
        fd = os.open(self._options.source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if not os.path.sameopenfile(fd, source.fd):
            os.close(fd)
            raise SourceError(f"source {self._options.source}: another one is there now")
        os.close(source.fd)
        return fd

    def _look(self) -> None:
        """The mount table as it is seen from the new root."""
        self._outside = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with self.inside():
            self.mountinfo = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        self.know(self.mountinfo)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The root is for a while what it will be."""
        if self._outside >= 0:
            _confine.change_root(self._root)
        try:
            yield
        finally:
            if self._outside >= 0:
                _confine.change_root(self._outside)

    def below(self, source: str, target: str, target_fd: int) -> int:
        """An fd of the mountpoint as it is in the namespace, if it lies below the source; else of what it is here."""
        if self.level != NAMESPACE:
            return os.dup(target_fd)
        top = os.path.realpath(source)
        if os.path.commonpath([top, target]) == top and top != target:
            with contextlib.suppress(OSError), self.inside():
                fd = os.open(os.path.relpath(target, top), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)
                if os.path.sameopenfile(fd, target_fd):
                    self._under = os.dup(fd)
                    return fd
                os.close(fd)
        return os.dup(target_fd)

    def before_threads(self) -> None:
        """Threads that are started from now on have little more than they will keep. Raises OSError."""
        if self.level == NONE:
            return
        self._kept = mask(*KEPT)
        self._bounds = capabilities.capable(capabilities.CAP_SETPCAP)
        self._name = Path("/proc/self/comm").read_text().strip()
        if os.path.isdir(SMACK):  # its labels are extended attributes, and it has a say in each access
            self._kept |= mask(capabilities.CAP_MAC_OVERRIDE, capabilities.CAP_MAC_ADMIN)
        _confine.keep_capabilities(self._kept)
        _confine.cut_capabilities(self._kept | mask(*AT_START))

    def renew(self) -> None:
        """For a process that was made by spawn(): /proc/self is another one."""
        self._proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.know(self._proc)
        self.fds = fd_directory()
        self.know(self.fds)

    # ------------------------------------------------------------- when the mount is up

    def confine(self, fuse_dev: int, alone: Callable[[], object], closed: Callable[[], object]) -> None:
        """Give up what is to be given up, in all threads. Raises MountError, OSError.

        fuse_dev: st_dev of the mount. alone: called when the mount is not to be seen in this namespace; closed: when
        there is no way to a new socket any more.
        """
        if self.level == NAMESPACE:
            try:
                self._leave(fuse_dev, alone)
            except OSError as e:
                self.limit(SECCOMP, f"a root of its own: {reason(e)}")
                os.fchdir(self.fds)
        if self._devices >= 0:
            os.close(self._devices)
        if self.level != NONE:
            self._cut(closed)
        os.close(self._proc)

    def _leave(self, fuse_dev: int, alone: Callable[[], object]) -> None:
        left = self._before | {m.mount_id for m in mounting.mounts()}
        _confine.pivot(self._root)
        os.fchdir(self.fds)
        os.close(self._outside)
        with open(os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc), encoding="latin-1") as f:
            table = mounting.parse(f)
        # A copy of the mount that is being served would keep it from ending, when nobody else has it mounted any more.
        for m in table:
            if m.dev == fuse_dev:
                with contextlib.suppress(OSError):
                    _sys.umount(os.fsencode(m.target), mounting.MNT_DETACH | mounting.UMOUNT_NOFOLLOW)
        if self._under >= 0:
            # Nobody removes or renames a mountpoint: here it is one by a mount of what lies under the other.
            tree = _sys.clone_mount(self._under, 0, 0, False)
            _sys.move_mount(tree, self._under)
            os.close(tree)
            os.close(self._under)
        else:
            alone()
        for m in table:
            self._no_devices(m)
        os.close(self._root)
        here = {m.mount_id for m in table} | self._served
        for name in os.listdir("."):
            fd = int(name)
            with contextlib.suppress(OSError):  # that of the listing
                # By an fd of a filesystem that is not served all of it can be reached. Its number is somebody's still.
                number = _sys.mount_identity(fd)[1]
                if fd not in (1, 2, *self._known) and number in left - here:
                    os.dup2(self._null, fd, inheritable=False)

    @staticmethod
    def _no_devices(m: mounting.MountInfo) -> None:
        """No device file opens there any more.

        nosymfollow, which means nothing to a daemon that follows no link, says of a mount's nodev that it is ours,
        and not that of the mount it was copied from (_mounts.pyx).
        """
        theirs, marked = "nodev" in m.options, "nosymfollow" in m.options
        if theirs and not marked:
            return
        fd = os.open(m.target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if _sys.mount_identity(fd)[1] != m.mount_id:
                return  # another one lies over it
            if theirs:
                _confine.change_mount(fd, 0, mounting.MOUNT_ATTR_NOSYMFOLLOW)
            else:
                _confine.change_mount(fd, mounting.MOUNT_ATTR_NODEV | mounting.MOUNT_ATTR_NOSYMFOLLOW, 0)
        finally:
            os.close(fd)

    def _cut(self, closed: Callable[[], object]) -> None:
        pid = os.getpid()
        filtered = self.level in (SECCOMP, NAMESPACE)
        if filtered:
            self._settle()
            closed()
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _confine.undumpable()
        _confine.cut_thread()
        _confine.no_new_privileges()
        self._verify(filtered=False)
        if filtered:
            try:
                _confine.install_filter(seccomp.program(_confine.ARCH, _confine.CALLS, seccomp.rules(pid)))
            except OSError as e:
                self.limit(CAPS, f"the filter: {reason(e)}")
            self._verify(filtered=self.level != CAPS)

    @staticmethod
    def _settle() -> None:
        """Python and the C library open nothing by itself any more: a path could lead into the source."""
        for name in CODECS:
            codecs.lookup(name)
        os.environ.setdefault("TZ", ":/etc/localtime")  # is read now, and not again
        time.tzset()
        sys.path[:] = []
        sys.path_hooks[:] = []
        built_in = ("BuiltinImporter", "FrozenImporter")
        sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") in built_in]

    def _verify(self, *, filtered: bool) -> None:
        """Raises MountError if a thread has more than it is to have."""
        end = time.monotonic() + PATIENCE
        while wrong := self._wrong(filtered):
            if time.monotonic() > end:
                raise MountError(f"--sandbox: {wrong}")
            time.sleep(0.001)

    def _wrong(self, filtered: bool) -> str:
        """What a thread has too much of, or ''."""
        wanted = {"NoNewPrivs": "1", **({"Seccomp": "2"} if filtered else {})}
        task = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc)
        try:
            for tid in os.listdir(task):
                try:
                    with open(os.open(f"{tid}/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=task), "rb") as f:
                        fields = dict(line.split(b":\t", 1) for line in f.read().splitlines() if b":\t" in line)
                except OSError:  # it has just ended
                    continue
                said = {k.decode(): v.decode().strip() for k, v in fields.items()}
                if _confine.SANITIZED and said["Name"] == self._name and int(tid) != os.getpid():
                    continue
                for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                    if int(said[name], 16) & ~self._kept:
                        return f"thread {tid} ({said['Name']}) has {name} {said[name]}"
                # Without CAP_SETPCAP the bounding set stays as it is; no_new_privs makes it void.
                if self._bounds and int(said["CapPrm"], 16) and int(said["CapBnd"], 16) & ~self._kept:
                    return f"thread {tid} ({said['Name']}) has CapBnd {said['CapBnd']}"
                for name, value in wanted.items():
                    if said[name] != value:
                        return f"thread {tid} ({said['Name']}) has {name} {said[name]}"
        finally:
            os.close(task)
        return ""
