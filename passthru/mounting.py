"""Mount and unmount: by the mount API (fsopen(2) and kin), else by fusermount3(1)."""

from __future__ import annotations

import array
import errno
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

from . import _sys, capabilities
from .errors import MountError, MountpointError, reason
from .options import Options

MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOATIME = 1, 2, 4, 8, 0x10
MOUNT_ATTR_ATIME_MODE = 0x70
MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOSYMFOLLOW = 0x20, 0x80, 0x200000
FUSE_CONF = "/etc/fuse.conf"
SYNC_TIME = 1.0  # seconds, for writing what a busy mount holds
LONGEST_STRING = 255  # of fsconfig(2)
CONTEXTS = ("context", "fscontext", "defcontext", "rootcontext")  # labels, of SELinux
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8


@dataclass(frozen=True)
class MountInfo:
    """A line of /proc/self/mountinfo (proc(5))."""

    mount_id: int
    dev: int
    target: str
    fstype: str
    source: str = ""
    user_id: int | None = None  # of FUSE: whose daemon serves it
    parent: int = 0
    shared: bool = False  # what is mounted on it appears in copies of it
    options: tuple[str, ...] = ()  # of the mount, not of its filesystem


def _unescape(text: str) -> str:
    return text.encode("latin-1", "surrogateescape").decode("unicode_escape").encode("latin-1").decode(
        "utf-8", "surrogateescape")


def parse(lines: Iterable[str]) -> list[MountInfo]:
    """The mounts in lines of a mountinfo, decoded as latin-1."""
    found = []
    for line in lines:
        left, _, right = line.partition(" - ")
        words = left.split()
        major, minor = map(int, words[2].split(":"))
        fstype, source, options = [*right.split(" "), "", ""][:3]
        user = next((o[8:] for o in options.split(",") if o.startswith("user_id=")), "")
        found.append(MountInfo(
            int(words[0]), os.makedev(major, minor), _unescape(words[4]), fstype.strip(), _unescape(source),
            int(user) if user.isdigit() else None, int(words[1]), any(w.startswith("shared:") for w in words[6:]),
            tuple(words[5].split(","))))
    return found


def mounts(pid: int | str = "self") -> list[MountInfo]:
    """The mounts of this process's namespace, or of another's, in mount order. Asks no filesystem."""
    with open(f"/proc/{pid}/mountinfo", encoding="latin-1") as f:
        return parse(f)


def mount_of(table: list[MountInfo], path: str) -> MountInfo | None:
    """The mount on which a real path lies, by its name."""
    return next((m for m in reversed(table) if f"{path.rstrip('/')}/".startswith(f"{m.target.rstrip('/')}/")), None)


def mounted_at(target: str) -> MountInfo | None:
    """The topmost mount at a path, or None."""
    return next((m for m in reversed(mounts()) if m.target == target), None)


def open_mountpoint(path: str, directory: bool = True) -> tuple[str, int]:
    """(real path, O_PATH fd) of a directory, or a regular file, to mount on. Raises MountpointError."""
    real = os.path.realpath(path)
    here = mounted_at(real)
    if here is not None and here.fstype != "autofs":
        raise MountpointError(f"mountpoint {path}: already a mount point ({here.fstype})")
    try:
        # Not O_DIRECTORY: on an automount point that would wait for the mount which is being made here.
        fd = os.open(real, os.O_PATH | os.O_CLOEXEC)
    except OSError as e:
        raise MountpointError(f"mountpoint {path}: {reason(e)}") from None
    mode = os.fstat(fd).st_mode
    wrong = ""
    if directory and not stat.S_ISDIR(mode):
        wrong = "not a directory, as the source is"
    elif not directory and stat.S_ISDIR(mode):
        wrong = "a directory, but the source is a file, and is mounted on a file"
    elif not directory and not stat.S_ISREG(mode):
        wrong = "not a regular file, on which a source that is a file is mounted"
    if wrong:
        os.close(fd)
        raise MountpointError(f"mountpoint {path}: {wrong}")
    return real, fd


def allow_other(options: Options) -> bool:
    """Are other users let in? Root's mounts are for all, like any other mount of root's."""
    if options.allow_root:  # the daemon checks the callers, if the kernel cannot
        return options.checks_callers
    return os.geteuid() == 0 if options.allow_other is None else options.allow_other


class KernelMount:
    """A mount made with the mount API: visible only when attach() is called."""

    def __init__(self, options: Options, source: str, fuse_fd: int, root_mode: int):
        """root_mode: st_mode of the root. Raises OSError (EPERM, ENOSYS) if this is not allowed or not known here."""
        self.sb = _sys.fsopen(b"fuse")
        try:
            strings = {
                "source": options.fsname or source, "fd": str(fuse_fd),
                "rootmode": f"{root_mode:o}", "user_id": str(os.geteuid()), "group_id": str(os.getegid()),
            }
            if options.max_read:
                strings["max_read"] = str(options.max_read)
            if options.subtype:
                strings["subtype"] = options.subtype
            for name in CONTEXTS:
                if getattr(options, name):
                    strings[name] = getattr(options, name)
            for key, value in strings.items():
                # Only shown, so a long one may lose its end.
                try:
                    _sys.fsconfig_string(self.sb, key.encode(), os.fsencode(value)[:LONGEST_STRING])
                except OSError as e:
                    if key in CONTEXTS and e.errno == errno.EINVAL:
                        raise MountError(f"-o {key}: the kernel does not take it: is SELinux on?") from None
                    raise
            if allow_other(options):
                _sys.fsconfig_flag(self.sb, b"allow_other")
            if options.default_permissions:
                _sys.fsconfig_flag(self.sb, b"default_permissions")
            if options.read_only:
                _sys.fsconfig_flag(self.sb, b"ro")
        except (OSError, MountError):
            self.close()
            raise

    def create(self) -> None:
        """Make the superblock; the kernel sends INIT. May wait for its answer (SYNC_INIT)."""
        _sys.fsconfig_create(self.sb)

    def attach(self, options: Options, place: Callable[[int, int], object]) -> tuple[int, int]:
        """Have `place` put the mount somewhere, by an fd of it and its st_dev. (st_dev, mount id) of the mount."""
        o = options
        attributes = (
            MOUNT_ATTR_RDONLY * o.read_only | MOUNT_ATTR_NOSUID * o.nosuid | MOUNT_ATTR_NODEV * o.nodev
            | MOUNT_ATTR_NOEXEC * o.noexec | MOUNT_ATTR_NOATIME * o.noatime
            | MOUNT_ATTR_STRICTATIME * (o.strictatime and not o.noatime) | MOUNT_ATTR_NODIRATIME * o.nodiratime
            | MOUNT_ATTR_NOSYMFOLLOW * o.nosymfollow)
        fd = _sys.fsmount(self.sb, attributes)
        try:
            identity = _sys.mount_identity(fd)
            place(fd, identity[0])
        finally:
            os.close(fd)  # it would keep the mount busy
        return identity

    def close(self) -> None:
        if self.sb >= 0:
            os.close(self.sb)
            self.sb = -1


def fusermount_program() -> str:
    """The path of fusermount3(1). Raises MountError."""
    program = shutil.which("fusermount3")
    if program is None:
        raise MountError("fusermount3 is not installed (Debian: apt-get install fuse3), and only root mounts without")
    return program


def user_allow_other() -> bool:
    """May users other than root give -o allow_other?"""
    try:
        with open(FUSE_CONF, encoding="utf-8", errors="replace") as f:
            return any(line.split("#")[0].strip() == "user_allow_other" for line in f)
    except OSError:
        return False


def check_fusermount(options: Options, target: str) -> None:
    """Raises MountError for what fusermount3 would refuse, as far as it can be known before.

    target: '' if there is none yet.
    """
    program = fusermount_program()
    for f in fields(options):
        if f.metadata.get("root") and getattr(options, f.name):
            raise MountError(f"-o {f.metadata['o']}: only root can have that")
    st, status = os.stat(program), capabilities.status()
    if not status["CapBnd"] >> capabilities.CAP_SYS_ADMIN & 1:
        raise MountError("fusermount3: CAP_SYS_ADMIN is out of bounds for all programs here, as in most containers")
    if os.getuid() != 0 and not status["CapEff"] >> capabilities.CAP_SYS_ADMIN & 1:
        if status["NoNewPrivs"]:
            raise MountError("fusermount3: no program can gain rights here (no_new_privs)")
        setuid = st.st_mode & stat.S_ISUID and st.st_uid == 0
        if not setuid and "security.capability" not in os.listxattr(program):
            raise MountError(f"fusermount3: {program} is not set-user-ID root: chmod u+s, as root")
        if os.statvfs(program).f_flag & os.ST_NOSUID:
            raise MountError(f"fusermount3: {program} lies on a filesystem that is mounted nosuid")
    if os.getuid() == 0:
        return
    if allow_other(options) and not user_allow_other():
        raise MountError(f"fusermount3: option allow_other only allowed if 'user_allow_other' is set in {FUSE_CONF}")
    if not target:
        return
    here = os.stat(target)
    if not os.access(target, os.W_OK) or (
            stat.S_ISDIR(here.st_mode) and here.st_mode & stat.S_ISVTX and here.st_uid != os.getuid()):
        raise MountError(f"fusermount3: user has no write access to mountpoint {target}")


def fusermount(options: Options, source: str, target: str) -> int:
    """Mount as an ordinary user; the /dev/fuse fd. The mount is visible at once, waiting for INIT."""
    check_fusermount(options, target)
    program = fusermount_program()
    words = [f"subtype={options.subtype}"] if options.subtype else []
    words += ["fsname=" + (options.fsname or source).replace("\\", "\\\\").replace(",", "\\,")]
    words += ["ro"] if options.read_only else []
    words += ["allow_other"] if allow_other(options) else []
    words += ["default_permissions"] if options.default_permissions else []
    words += [f"max_read={options.max_read}"] if options.max_read else []
    words += ["noexec"] if options.noexec else []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        child = subprocess.Popen(
            [program, "-o", ",".join(words), "--", target], pass_fds=[theirs.fileno()],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}, stderr=subprocess.PIPE)
        theirs.close()
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
        _, err = child.communicate()
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[:4])
    if child.returncode or not fds:
        text = err.decode(errors="replace").strip().splitlines()
        said = text[-1].removeprefix(os.path.dirname(program) + "/") if text else ""
        raise MountError(said or f"fusermount3 failed ({child.returncode})")
    os.set_inheritable(fds[0], False)
    return fds[0]


def _umount(target: str, mount_id: int, flags: int) -> bool:
    """umount2(2) of what is mounted there, if it is still that mount. Raises OSError.

    By the name in a directory that is held open, and looked at just before: what whoever may rename the directories
    above does meanwhile has no effect; who may mount or unmount there can still come between.
    """
    above, name = os.path.split(target)
    try:
        parent = os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if _sys.mount_of_name(parent, os.fsencode(name)) != mount_id:
            return False
        _sys.umount(os.fsencode(f"/proc/self/fd/{parent}/{name}"), flags)
    finally:
        os.close(parent)
    return True


def detach(target: str, mount_id: int, root: bool) -> None:
    """Take the mount of a daemon that has gone away from `target`, busy or not. Raises OSError."""
    here = mounted_at(target)
    if here is None or here.mount_id != mount_id or not here.fstype.startswith("fuse"):
        return
    if root:
        _umount(target, mount_id, UMOUNT_NOFOLLOW | MNT_DETACH)
    else:
        subprocess.run(
            [shutil.which("fusermount3") or "fusermount3", "-u", "-z", "-q", "--", target], check=False)


def _sync(target: str) -> None:
    """Have what the mount's page cache holds written, as far as the source answers."""
    thread = threading.Thread(target=_sys.sync_mount, args=(os.fsencode(target),), daemon=True)
    thread.start()
    thread.join(SYNC_TIME)


UNMOUNTED, DETACHED, NOT_THERE = "unmounted", "detached", "not there"


def unmount(target: str, mount_id: int, root: bool, *, lazy: bool = True) -> str:
    """Unmount `target` if what is mounted there is still ours.

    DETACHED: it was busy, and lives until its files are closed; not lazy: this is OSError (EBUSY), and
    nothing is done. NOT_THERE: unmounted, moved or covered by somebody else. Raises OSError.
    """
    here = mounted_at(target)
    # Numbers are used again: what is no FUSE mount is not ours.
    if here is None or here.mount_id != mount_id or not here.fstype.startswith("fuse"):
        return NOT_THERE
    if root:
        try:
            return UNMOUNTED if _umount(target, mount_id, UMOUNT_NOFOLLOW) else NOT_THERE
        except OSError as e:
            if e.errno == errno.EINVAL:  # somebody else has just done it
                return NOT_THERE
            if e.errno != errno.EBUSY or not lazy:
                raise
        _sync(target)
        return DETACHED if _umount(target, mount_id, UMOUNT_NOFOLLOW | MNT_DETACH) else NOT_THERE
    program = shutil.which("fusermount3") or "fusermount3"
    if subprocess.run([program, "-u", "-q", "--", target], check=False).returncode == 0:
        return UNMOUNTED
    here = mounted_at(target)
    if here is None or here.mount_id != mount_id:
        return NOT_THERE
    if not lazy:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), target)
    _sync(target)
    subprocess.run([program, "-u", "-z", "-q", "--", target], check=False)
    return DETACHED
