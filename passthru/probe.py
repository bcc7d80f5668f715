"""What this machine can do, and how a mount would come out, found by trying; nothing is mounted or changed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import _mounts, _sys, init, mounting, supervision
from .capabilities import (
    CAP_DAC_READ_SEARCH,
    CAP_IPC_LOCK,
    CAP_SYS_ADMIN,
    CAP_SYS_RESOURCE,
    can_act_as_caller,
    capable,
    capable_of_all,
)
from .errors import MountError, PassthruError, SourceError, TransportError, by_exit_code, reason
from .options import Options
from .passing import regular_file
from .session import Session
from .source import open_source
from .stdio import quiet
from .transport import PARAMETER, ring_parameter

UNLIMITED = resource.RLIM_INFINITY


@dataclass(frozen=True)
class Check:
    """One thing. state: 'ok', 'missing' (and `cure` says how to get it), or 'note'."""

    name: str
    state: str
    value: str
    cure: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a mount would end: the command's exit code, and the error or what would serve it."""

    exit_code: int
    text: str


def has_acl(source_fd: int) -> bool:
    """Does the source's filesystem know POSIX ACLs?"""
    try:
        os.getxattr(source_fd, "system.posix_acl_access")
    except OSError as e:
        return e.errno == errno.ENODATA
    return True


def in_child(act: Callable[[], Any]) -> Any:
    """What act() returns, run in a process of its own, quietly; it comes as by JSON. Raises PassthruError, OSError."""
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            quiet()
            try:
                said = {"value": act()}
            except PassthruError as e:
                said = {"code": e.exit_code, "text": str(e)}
            except OSError as e:
                said = {"errno": e.errno or errno.EIO}
            except Exception as e:
                said = {"code": 1, "text": f"{type(e).__name__}: {e}"}
            with os.fdopen(write_end, "w") as f:
                json.dump(said, f)
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as f:
        text = f.read()
    os.waitpid(child, 0)
    said = json.loads(text) if text else {"code": 1, "text": "the process that tried it was killed"}
    if "errno" in said:
        raise OSError(said["errno"], os.strerror(said["errno"]))
    if "code" in said:
        raise by_exit_code(said["code"])(said["text"])
    return said["value"]


def _ask_init() -> tuple[int, int, int]:
    if not capable(CAP_SYS_ADMIN):
        uid, gid = os.geteuid(), os.getegid()
        _sys.new_user_namespace()
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as f:
                f.write(text)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    superblock = mounting.KernelMount(Options(), "probe", fd, stat.S_IFDIR)
    superblock.create()
    request = init.parse(os.read(fd, 8192))
    return request.major, request.minor, request.flags


def fuse_init() -> init.Init:
    """The kernel's INIT request, from a superblock that is never seen. Raises OSError if that may not be made."""
    major, minor, flags = in_child(_ask_init)
    return init.Init(0, major, minor, 0, flags)


class _Rehearsed(BaseException):
    """Ends a rehearsal where the mount would appear."""


class _Rehearsal(Session):
    """A session that does everything but appear. asked: the kernel's INIT, for a mount by fusermount3."""

    asked: init.Init | None = None

    def _mount(self) -> None:
        if self._connection.by_fusermount:
            mounting.check_fusermount(self.options, self._connection.target)
            if self.asked is not None:
                self._agree(self.asked)
            raise _Rehearsed
        super()._mount()

    def _attach(self) -> None:
        raise _Rehearsed

    def rehearse(self) -> str:
        try:
            return self.start()
        except _Rehearsed:
            if not self._connection.by_fusermount:
                return self.summary()
            how = "ring" if self.transport.ring else "/dev/fuse"
            why = f" ({self.transport.why})" if self.transport.why else ""
            return f"{self.options.source} on {self._connection.target}: {how} transport, by fusermount3{why}"


def _rehearsed(options: Options, asked: init.Init | None) -> str:
    rehearsal = _Rehearsal(options)
    rehearsal.asked = asked
    return rehearsal.rehearse()


def rehearse(options: Options, asked: init.Init | None = None) -> Outcome:
    """How a mount with these options would end. asked: the kernel's INIT, if that is known."""
    quiet = replace(options, auto_unmount=False, enable_uring=False)
    if options.supervise:
        try:
            supervision.check(options)
        except PassthruError as e:
            return Outcome(e.exit_code, str(e))
        quiet = replace(quiet, transport="dev")
    switched = options.enable_uring and options.transport != "dev" and ring_parameter() == "N"
    if switched:
        if not os.access(PARAMETER, os.W_OK):
            return Outcome(TransportError.exit_code, f"--enable-uring: {PARAMETER}: Permission denied")
        quiet = replace(quiet, transport="dev", dialect="auto", zero_copy="auto")
    try:
        text = in_child(lambda: _rehearsed(quiet, asked))
    except PassthruError as e:
        return Outcome(e.exit_code, str(e))
    except OSError as e:
        return Outcome(1, reason(e))
    return Outcome(0, text + (" (the ring is off now; --enable-uring would switch it on)" if switched else ""))


def _tried(act: Callable[[], object]) -> OSError | None:
    try:
        act()
    except OSError as e:
        return e
    return None


def _limit(value: int) -> str:
    return "unlimited" if value == UNLIMITED else str(value)


def kernel_checks() -> list[Check]:
    """The kernel: protocol, ring, dialects, passthrough."""
    found = [Check("kernel", "note", f"{os.uname().sysname} {os.uname().release}")]
    error = _tried(lambda: os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)))
    cure = "modprobe fuse; in a container: --device /dev/fuse"
    if error is not None and error.errno == errno.EACCES:
        cure = "as root: chmod 666 /dev/fuse, as is usual"
    found.append(Check("/dev/fuse", "ok", "yes") if error is None else Check(
        "/dev/fuse", "missing", reason(error), cure))
    asked: init.Init | None = None
    try:
        asked = fuse_init()
    except (OSError, PassthruError) as e:
        why = reason(e) if isinstance(e, OSError) else str(e)
        found.append(Check("FUSE protocol", "note", f"cannot be asked for: {why}; root's check says more"))
    else:
        refused = init.too_old(asked)
        found.append(Check(
            "FUSE protocol", "missing" if refused else "ok",
            f"{asked.major}.{asked.minor} (spoken: {init.MAJOR}.{init.MIN_MINOR} to {init.MAJOR}.{init.MINOR})",
            refused))
    found.append(ring_check())
    found.append(uring_check())
    if asked is not None:
        found += offered_checks(asked)
    return found


def ring_check() -> Check:
    """The kernel's parameter for FUSE over io_uring."""
    value = ring_parameter()
    if value == "Y":
        return Check("FUSE over io_uring", "ok", "switched on")
    if value == "N":
        return Check("FUSE over io_uring", "missing", "switched off",
                     f"as root: --enable-uring, or echo Y >{PARAMETER}; for good: options fuse enable_uring=Y in "
                     "/etc/modprobe.d, or fuse.enable_uring=Y on the kernel's command line")
    return Check(
        "FUSE over io_uring", "missing", "this kernel has none", "Linux 6.14 or newer, with CONFIG_FUSE_IO_URING")


def uring_check() -> Check:
    """May this process make io_urings?"""
    error = _tried(_sys.try_io_uring)
    if error is None:
        return Check("io_uring", "ok", "allowed")
    try:
        with open("/proc/sys/kernel/io_uring_disabled", encoding="ascii") as f:
            disabled = f.read().strip()
    except OSError:
        disabled = "0"
    if disabled != "0":
        return Check("io_uring", "missing", f"{reason(error)}: kernel.io_uring_disabled is {disabled}",
                     "as root: sysctl kernel.io_uring_disabled=0")
    return Check("io_uring", "missing", reason(error), "a container's system call filter (seccomp) must allow it")


def offered_checks(asked: init.Init) -> list[Check]:
    """Of what INIT offers, what makes a difference."""
    found = []
    shared = len(asked.dialects) > 1
    if asked.offers("OVER_IO_URING"):
        found.append(Check("dialects", "ok", ", ".join(asked.dialects),
                           "" if shared else "shared buffers (bufpool): Linux 7.3"))
    root = capable_of_all(CAP_SYS_ADMIN)
    if not shared:
        found.append(Check("zero-copy", "missing", "this kernel has none", "Linux 7.3"))
    else:
        found.append(Check("zero-copy", "ok", "yes") if root else Check(
            "zero-copy", "missing", "only with CAP_SYS_ADMIN", "mount as root"))
    if not asked.offers("PASSTHROUGH"):
        found.append(Check(
            "kernel passthrough", "missing", "this kernel has none",
            "Linux 6.9 or newer, with CONFIG_FUSE_PASSTHROUGH"))
    else:
        found.append(Check("kernel passthrough", "ok", "yes") if root else Check(
            "kernel passthrough", "missing", "only with CAP_SYS_ADMIN", "mount as root"))
    return found


def process_checks() -> list[Check]:
    """Privileges, limits, programs."""
    found = []
    uid = os.geteuid()
    if can_act_as_caller() and capable(CAP_SYS_ADMIN):
        found.append(Check("privileges", "ok", "root: for all users, each as itself"))
    elif capable(CAP_SYS_ADMIN):
        found.append(Check("privileges", "note", f"uid {uid} with CAP_SYS_ADMIN, but without all ids (user namespace)"))
    else:
        found.append(Check(
            "privileges", "note", f"uid {uid} without CAP_SYS_ADMIN: mounts by fusermount3, all done as this user"))
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    free = capable(CAP_IPC_LOCK)
    found.append(Check(
        "locked memory", "note", "no limit for this process" if free else f"{_limit(soft)} bytes (hard {_limit(hard)})",
        "" if free or soft == UNLIMITED else "more pinned buffers: ulimit -l, LimitMEMLOCK="))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/proc/sys/fs/nr_open", encoding="ascii") as f:
        most = int(f.read()) if capable(CAP_SYS_RESOURCE) else hard
    raised = f", raised to {_limit(most)}" if most != soft else ""
    found.append(Check("open files", "note", _limit(soft) + raised,
                       "" if most == UNLIMITED or most >= 65536 else "more: ulimit -n, LimitNOFILE="))
    program = shutil.which("fusermount3")
    if program is None:
        found.append(Check("fusermount3", "note" if capable(CAP_SYS_ADMIN) else "missing", "not installed",
                           "users other than root need it: apt-get install fuse3"))
    else:
        setuid = os.stat(program).st_mode & stat.S_ISUID
        found.append(Check("fusermount3", "ok" if setuid else "note", program + ("" if setuid else ", not setuid"),
                           "" if setuid else f"users other than root need it: chmod u+s {program}"))
    found.append(Check("user_allow_other", "ok", "yes") if mounting.user_allow_other() else Check(
        "user_allow_other", "note", f"not in {mounting.FUSE_CONF}",
        "-o allow_other of users other than root needs it there"))
    helper = os.path.exists("/sbin/mount.passthru")
    found.append(Check("mount(8), fstab", "ok" if helper else "note", "mount.passthru is installed" if helper else
                       "no mount.passthru", "" if helper else "as root: passthru install-helper"))
    return found


def _nowait(directory: int) -> str:
    """Does the filesystem read what it has at hand without waiting? By a file of the directory, if there is one."""
    fd = regular_file(directory, os.O_RDONLY)
    if fd < 0:
        return "no file there to try"
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as e:
        return "no" if e.errno == errno.EOPNOTSUPP else "yes"
    finally:
        os.close(fd)
    return "yes"


def _type_of(real: str) -> str:
    """The type of the filesystem that a real path lies on, or 'unknown'."""
    here = mounting.mount_of(mounting.mounts(), real)
    return here.fstype if here is not None else "unknown"


def _family(kind: str) -> str:
    return kind.partition(".")[0]  # fuse.subtype


def source_checks(path: str) -> list[Check]:
    """The source and its filesystem; [] if it cannot be opened."""
    try:
        source = open_source(path)
    except SourceError as e:
        return [Check("source", "missing", str(e).removeprefix("source "))]
    fd = source.fd
    try:
        real = os.path.realpath(path)
        kind = _type_of(real)
        checks = [Check("source", "ok", f"{real}, on {kind}")]
        handles = _tried(lambda: _sys.try_file_handle(fd)) is None
        if handles and capable(CAP_DAC_READ_SEARCH):
            checks.append(Check("  file handles", "ok", "yes: inodes take no open file each"))
        else:
            checks.append(Check("  file handles", "note", "only for root: each known inode is an open file" if handles
                                else "none: each known inode is an open file"))
        nowait = _nowait(fd) if source.directory else "not tried"
        checks.append(Check("  NOWAIT reads", "ok" if nowait == "yes" else "note", nowait))
        checks.append(Check("  POSIX ACLs", "ok", "yes") if has_acl(fd) else Check(
            "  POSIX ACLs", "note", "none", "mount the source with -o acl, where its filesystem has that"))
        error = _tried(lambda: os.listxattr(fd))
        checks.append(Check("  xattrs", "ok", "yes") if error is None else Check("  xattrs", "note", reason(error)))
        error = _tried(lambda: _sys.try_fanotify(fd))
        checks.append(Check("  fanotify", "ok", "yes") if error is None else Check("  fanotify", "note", reason(error)))
        if _family(kind) in _mounts.STACKED:
            checks.append(Check("  passthrough", "note", f"not on {kind}: the daemon reads and writes"))
        if _family(kind) in _mounts.REMOTE:
            checks.append(Check("  remote", "note", f"{kind}: requests may wait for a network or another daemon"))
        return checks
    finally:
        os.close(fd)


def mountpoint_check(path: str) -> Check:
    """What is at the mountpoint."""
    real = os.path.realpath(path)
    here = mounting.mounted_at(real)
    if here is not None and here.fstype != "autofs":
        dead = ""
        if here.fstype.startswith("fuse") and (e := _tried(lambda: os.statvfs(real))) and e.errno == errno.ENOTCONN:
            dead = ", and its daemon has gone"
        return Check("mountpoint", "missing", f"{real}: in use by {here.fstype}{dead}", f"umount {real}")
    try:
        kind = "an automount point" if here is not None else (
            "a directory" if stat.S_ISDIR(os.stat(real).st_mode) else "a file")
    except OSError as e:
        cure = f"mkdir {real}" if e.errno == errno.ENOENT else ""
        return Check("mountpoint", "missing", f"{real}: {reason(e)}", cure)
    return Check("mountpoint", "ok", f"{real}: {kind}")


def machine_outcome(checks: list[Check], options: Options) -> Outcome:
    """Could anything be mounted, where no source and mountpoint are given?"""
    by_name = {c.name: c for c in checks}
    if by_name["/dev/fuse"].state != "ok":
        return Outcome(MountError.exit_code, f"/dev/fuse: {by_name['/dev/fuse'].value}")
    if by_name["FUSE protocol"].state == "missing":
        return Outcome(MountError.exit_code, by_name["FUSE protocol"].cure)
    if by_name["fusermount3"].state == "missing":
        return Outcome(MountError.exit_code, "fusermount3 is not installed, and only root mounts without")
    if not capable(CAP_SYS_ADMIN):
        try:
            mounting.check_fusermount(options, "")
        except MountError as e:
            return Outcome(MountError.exit_code, str(e))
    needed = ["io_uring", "FUSE over io_uring"]
    if options.enable_uring and ring_parameter() == "N" and os.access(PARAMETER, os.W_OK):
        del needed[1]
    lacks = next((c for c in checks if c.name in needed and c.state != "ok"), None)
    if lacks is None:
        return Outcome(0, "mounts would be served by the ring" if options.transport != "dev" else
                       "mounts would be served by /dev/fuse")
    why = f"{lacks.name}: {lacks.value}"
    if options.transport == "ring":
        return Outcome(TransportError.exit_code, f"no ring transport: {why}")
    return Outcome(0, f"mounts would be served by /dev/fuse ({why})")


def check(options: Options) -> tuple[list[Check], Outcome]:
    """Everything; of source and mountpoint only if the options name them."""
    checks = kernel_checks() + process_checks()
    if not options.source:
        return checks, machine_outcome(checks, options)
    checks += [*source_checks(options.source), mountpoint_check(options.mountpoint)]
    asked = None
    with contextlib.suppress(OSError, PassthruError):
        asked = fuse_init()
    outcome = rehearse(options, asked if asked is not None and not init.too_old(asked) else None)
    protocol = next(c for c in checks if c.name == "FUSE protocol")
    if outcome.exit_code == 0 and protocol.state == "missing":  # by fusermount3, INIT is not rehearsed
        outcome = Outcome(MountError.exit_code, protocol.cure)
    return checks, outcome


def as_json(checks: list[Check], outcome: Outcome) -> dict[str, Any]:
    """For machines: names are those of the table."""
    return {"checks": [{**asdict(c), "name": c.name.strip()} for c in checks], "works": outcome.exit_code == 0,
            "exit_code": outcome.exit_code, "result": outcome.text}
