"""Options of a mount. Each is declared once, here; command line, -o and man page follow from it."""

from __future__ import annotations

import argparse
import difflib
import grp
import os
import pwd
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, NoReturn

from . import idmap, log
from ._version import VERSION
from .errors import UsageError
from .stdio import say

PAGE = 4096
POOL = 15 << 18  # bytes: with a ring and what else a queue's thread takes, below 4 MiB for each CPU
SUBMOUNTS = ("data", "all")
TRANSPORTS = ("auto", "ring", "dev")
DIALECTS = ("auto", "per-entry", "bufring", "bufpool")
SWITCH = ("auto", "on", "off")
SANDBOX = ("auto", "none", "caps", "seccomp", "namespace")
YES, NO = ("yes", "on", "true", "1"), ("no", "off", "false", "0")


class CachePolicy(NamedTuple):
    """What the kernel keeps. timeout: seconds, of attributes and names; keep: of what it has of a file, when that is
    closed (_server.KEEP); direct_io: files are open for it."""

    timeout: float
    keep: str
    direct_io: bool = False


CACHE = {
    "never": CachePolicy(0.0, "nothing", direct_io=True), "open": CachePolicy(0.0, "nothing"),
    "auto": CachePolicy(1.0, "unchanged"), "coherent": CachePolicy(1.0, "unchanged"),
    "always": CachePolicy(86400.0, "all"),
}


def _int(text: str, low: int, high: int, unit: str = "") -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise UsageError(f"{text!r} is not a number") from None
    if not low <= value <= high:
        raise UsageError(f"{text} is out of range ({low} to {high}{unit})")
    return value


@dataclass(frozen=True)
class _Whole:
    """Parses a whole number; `said`: which ones, for those who read."""

    low: int
    high: int

    def __call__(self, text: str) -> int:
        return _int(text, self.low, self.high)

    @property
    def said(self) -> str:
        return f"{self.low} to {self.high}"


@dataclass(frozen=True)
class _Bytes:
    """Parses a size; a multiple of `unit`."""

    low: int
    high: int
    unit: int = 1

    def __call__(self, text: str) -> int:
        value = _size(text, self.low, self.high)
        if value % self.unit:
            raise UsageError(f"{text} is not a multiple of {self.unit}")
        return value

    @property
    def said(self) -> str:
        return f"{_short(self.low)} to {_short(self.high)}; k, m, g: times 1024, 1024^2, 1024^3"


def _short(value: int) -> str:
    """Bytes as _size() takes them, with the largest suffix."""
    shift, suffix = next((s for s in ((30, "g"), (20, "m"), (10, "k")) if value and not value % (1 << s[0])), (0, ""))
    return f"{value >> shift}{suffix}"


def _size(text: str, low: int, high: int) -> int:
    """Bytes, with a suffix k, m or g (powers of 1024) if wanted."""
    shift = {"k": 10, "m": 20, "g": 30}.get(text[-1:].lower())
    value = _int(text[:-1] if shift else text, 0, 1 << 40) << (shift or 0)
    if not low <= value <= high:
        raise UsageError(f"{text} is out of range ({low} to {high} bytes)")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a number of seconds") from None
    if not 0 <= value <= 1e9:
        raise UsageError(f"{text} is out of range (0 to 1e9 seconds)")
    return value


_RANGES = {_seconds: "0 to 1e9"}  # of parsers that are functions


def _choice(text: str, words: Sequence[str]) -> str:
    if text not in words:
        raise UsageError(f"{text!r} is none of {', '.join(words)}")
    return text


def _name(text: str) -> str:
    if not text or "\0" in text or "\n" in text:
        raise UsageError("the name is empty, or has a line break in it")
    return text


def _word(text: str) -> str:
    if not all(c.isalnum() or c in "-_" for c in text):
        raise UsageError(f"{text!r} is not a word")
    return text


def _user(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _group(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _id_map(text: str, lookup: Callable[[str], int]) -> str:
    if not text:
        raise UsageError("no ids")
    return idmap.text_of(idmap.parse(text, lookup))


def option(
    default: Any,
    help: str,
    *flags: str,
    parse: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    o: str | None = None,
    no: str | None = None,
    no_flags: tuple[str, ...] = (),
    hidden: bool = False,
    live: bool = False,
    repeat: bool = False,
    group: str = "",
    root: bool = False,
) -> Any:
    """Declare an option. flags: its long and short forms; o: its name in -o; no, no_flags: those of its opposite.

    Without `parse` it is a switch. hidden: for developers, in neither --help nor the manual page.
    repeat: if it is given more than once, the values are joined by '+'.
    live: `passthru set` may change it while the mount serves (Session.set_options() has to see to it).
    group: the heading under which --help has it and what follows, up to the next one that says so.
    root: fusermount3 cannot do it, so it is refused in mounts by that.
    """
    meta = {"help": help, "flags": flags, "parse": parse, "metavar": metavar, "o": o, "no": no,
            "no_flags": no_flags, "hidden": hidden, "live": live, "repeat": repeat, "group": group, "root": root}
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Options:
    """All options of one mount."""

    source: str = ""
    mountpoint: str = ""
    _: KW_ONLY

    foreground: bool = option(False, "stay in the foreground", "-f", "--foreground", group="process and messages")
    debug: bool = option(False, "log what the daemon does; implies -f", "-d", "--debug", o="debug")

    debug_fuse: bool = option(
        False, "log each request and its reply; implies -f", "--debug-fuse", o="debug_fuse",
        live=True)
    log: Literal["auto", "stderr", "journal", "syslog"] = option(
        "auto", "where messages go; 'auto': with -f standard error, else the journal or syslog, whichever is there",
        "--log", parse=lambda t: _choice(t, log.TARGETS), metavar="auto|stderr|journal|syslog", o="log")
    log_level: Literal["error", "warning", "info", "debug"] = option(
        "info", "log messages of this level and graver ones; -d: debug", "--log-level",
        parse=lambda t: _choice(t, tuple(log.LEVELS)), metavar="error|warning|info|debug", o="log_level",
        live=True)

    read_only: bool = option(
        False, "mount read-only; so is what lies on a read-only filesystem in any case", "-r", "--read-only", o="ro",
        no="rw", group="the mount")
    allow_other: bool | None = option(
        None, "let all users in; the default for root", "--allow-other", o="allow_other", no="noallow_other")
    default_permissions: bool = option(
        True, "have the kernel check permissions; the default",
        o="default_permissions", no="nodefault_permissions")
    allow_root: bool = option(
        False, "let root in beside the one who mounts; root's own mounts then are for root alone", "--allow-root",
        o="allow_root", no="noallow_root")
    auto_unmount: bool = option(
        False, "unmount also when the daemon is killed: a second process sees to that", "--auto-unmount",
        o="auto_unmount", no="noauto_unmount")
    fsname: str | None = option(
        None, "what mount(8) shows as the source; default: the source", "--fsname", parse=_name, metavar="NAME",
        o="fsname")
    subtype: str = option(
        "passthru", "the filesystem's type is shown as fuse.NAME; empty: as fuse", parse=_word, metavar="NAME",
        o="subtype")
    nosuid: bool = option(False, "ignore set-user-ID and set-group-ID bits", o="nosuid", no="suid")
    nodev: bool = option(False, "ignore device special files", o="nodev", no="dev")
    noexec: bool = option(False, "let no program be executed", o="noexec", no="exec")
    noatime: bool = option(False, "update no access times (root only)", o="noatime", no="atime", root=True)
    strictatime: bool = option(
        False, "update access times at each access (root only)", o="strictatime", no="nostrictatime", root=True)
    nodiratime: bool = option(
        False, "update no access times of directories (root only)", o="nodiratime", no="diratime", root=True)
    fixed_size: bool = option(
        False, "SOURCE is a file that keeps its size: no write goes past its end", "--fixed-size", o="fixed_size",
        no="nofixed_size")

    nosymfollow: bool = option(
        False, "follow no symbolic links below the mount (root only)", o="nosymfollow", root=True)
    context: str | None = option(
        None, "the SELinux label of everything in the mount (root only)", parse=_name, metavar="LABEL", o="context",
        root=True)
    fscontext: str | None = option(
        None, "that of the filesystem (root only)", parse=_name, metavar="LABEL", o="fscontext", root=True)
    defcontext: str | None = option(
        None, "that of what has none (root only)", parse=_name, metavar="LABEL", o="defcontext", root=True)
    rootcontext: str | None = option(
        None, "that of the mount's root (root only)", parse=_name, metavar="LABEL", o="rootcontext", root=True)

    transport: Literal["auto", "ring", "dev"] = option(
        "auto", "how requests come: 'ring' (io_uring), 'dev' (/dev/fuse), or 'auto': the ring if it can be had",
        "--transport", parse=lambda t: _choice(t, TRANSPORTS), metavar="auto|ring|dev", o="transport",
        group="transport and memory")
    enable_uring: bool = option(
        False, "set the kernel's parameter fuse.enable_uring to Y first (root only)",
        "--enable-uring", o="enable_uring")
    queue_depth: int = option(
        64, "ring entries per queue", "--queue-depth",
        parse=_Whole(1, 1024), metavar="N", o="queue_depth")
    dialect: Literal["auto", "per-entry", "bufring", "bufpool"] = option(
        "auto", "the form of the ring's protocol; 'auto': the best that the kernel offers", "--dialect",
        parse=lambda t: _choice(t, DIALECTS), metavar="auto|per-entry|bufring|bufpool", o="dialect")
    zero_copy: Literal["auto", "on", "off"] = option(
        "auto", "READ and WRITE by the kernel's own pages (root, Linux 7.3); 'auto': for files opened with "
        "O_DIRECT or of 1 MiB and more, 'on': for all", "--zero-copy",
        parse=lambda t: _choice(t, SWITCH), metavar="auto|on|off", o="zero_copy")
    payload_buffers: int = option(
        0, "payload buffers per queue, where entries share them; 0: as many as 3.75 MiB hold if "
        "pinned, else one for each entry", "--payload-buffers",
        parse=_Whole(0, 1024), metavar="N", o="payload_buffers")
    pin_buffers: bool | None = option(
        None, "register shared payload buffers with the kernel, which pins them; the default for a local source",
        "--pin-buffers",
        o="pin_buffers", no="nopin_buffers", no_flags=("--no-pin-buffers",))
    pin_headers: bool = option(
        True, "have the kernel pin header slots (dialect bufring); the default", "--pin-headers",
        o="pin_headers", no="nopin_headers", no_flags=("--no-pin-headers",))
    threads: int = option(
        0, "threads that serve the ring's queues, at the most one for each CPU, or read /dev/fuse; 0: by the "
        "number of CPUs", "--threads",
        parse=_Whole(0, 256), metavar="N", o="threads")
    max_write: int = option(
        1 << 20, "largest READ or WRITE in bytes, a multiple of 4096; the kernel may allow less", "--max-write",
        parse=_Bytes(PAGE, 1 << 27, PAGE), metavar="BYTES", o="max_write")
    max_background: int = option(
        256, "asynchronous requests that the kernel may have out at one time", "--max-background",
        parse=_Whole(1, 65535), metavar="N", o="max_background", live=True)
    max_read: int = option(
        0, "largest READ in bytes, 4096 at least; 0: as large as --max-write allows", "--max-read",
        parse=_Bytes(0, 1 << 30), metavar="BYTES", o="max_read")
    spin_us: int = option(
        50, "microseconds that a queue's thread yields to others before it sleeps", "--spin-us",
        parse=_Whole(0, 1000), metavar="US", o="spin_us", live=True)

    cache: Literal["never", "open", "auto", "coherent", "always"] = option(
        "auto", "what the kernel keeps of what it has seen; 'never': nothing, files are open for direct I/O, "
        "'open': a file's pages while it is open, 'auto': also what is unchanged in the source, names and "
        "attributes for 1 second, 'coherent': as 'auto', but names and attributes until the source tells of a change "
        "(root), 'always': all of it, for a day: nobody changes the source beside the mount",
        "--cache", parse=lambda t: _choice(t, tuple(CACHE)), metavar="never|open|auto|coherent|always", o="cache",
        live=True, group="caches and file data")
    inotify: Literal["auto", "on", "off"] = option(
        "off", "experimental: tell who watches the mount (inotify(7)) of changes beside it; 'auto': while somebody "
        "watches, 'on': always; with --cache coherent and without kernel passthrough, which follow from it (root)",
        "--inotify", parse=lambda t: _choice(t, SWITCH), metavar="auto|on|off", o="inotify",
        group="caches and file data")
    attr_timeout: float = option(
        None, "seconds that the kernel may keep attributes; default: by --cache", "--attr-timeout",
        parse=_seconds, metavar="SECONDS", o="attr_timeout", live=True)
    entry_timeout: float = option(
        None, "seconds that the kernel may keep names; default: by --cache", "--entry-timeout",
        parse=_seconds, metavar="SECONDS", o="entry_timeout", live=True)
    negative_timeout: float = option(
        None, "seconds that the kernel may take a name for missing without asking; default: that of --entry-timeout",
        "--negative-timeout", parse=_seconds, metavar="SECONDS", o="negative_timeout", live=True)
    direct_io: bool = option(
        False, "open all files for direct I/O: each read and write comes to the daemon, and the kernel caches none",
        "--direct-io", o="direct_io", no="nodirect_io", live=True)
    writeback: bool = option(
        False, "let the kernel collect writes in its page cache", "--writeback", o="writeback", no="nowriteback")
    passthrough: bool | None = option(
        None, "let the kernel read and write the source's files itself where it can; the default for root",
        "--passthrough", o="passthrough", no="nopassthrough", no_flags=("--no-passthrough", "--nopassthrough"),
        live=True)
    parallel_direct_writes: Literal["auto", "on", "off"] = option(
        "auto", "which files that are first opened with O_DIRECT for writing are not passed through: kernel "
        "passthrough lets only one write(2) at a time into a file; 'on': all, 'auto': those that several had open so "
        "at a time when they were last open, unless the source is memory, 'off': none", "--parallel-direct-writes",
        parse=lambda t: _choice(t, SWITCH), metavar="auto|on|off", o="parallel_direct_writes", live=True)
    local_locks: bool = option(
        False, "leave file locks to the kernel: they hold within the mount only, and close is faster",
        "--local-locks", o="local_locks", no="nolocal_locks")
    one_file_system: bool = option(
        False, "show no filesystems that are mounted below the source, but what lies under them (root only)",
        "-x", "--one-file-system", o="one_file_system", group="rights, ids, filesystems below the source")
    submounts: Literal["data", "all"] = option(
        "data", "which filesystems below the source are shown by root's mounts; 'data': those that hold data, 'all': "
        "also the kernel's own (/proc and kin) and what users have mounted, all with root's rights, so only with "
        "-o noallow_other", "--submounts", parse=lambda t: _choice(t, SUBMOUNTS), metavar="data|all", o="submounts")
    trust_modes: bool = option(
        False, "also serve filesystems on which a server decides who may do what (NFSv4, SMB, AFS), by what their mode "
        "bits say (root only)", "--trust-modes", o="trust_modes", no="notrust_modes")
    xattr: bool = option(True, "serve extended attributes; the default", o="xattr", no="noxattr")
    map_uid: str = option(
        "", "users that differ in mount and source; 'all': all others; may be given more than once",
        "--map-uid", parse=lambda t: _id_map(t, _user),
        metavar="MOUNT:SOURCE[:COUNT]", o="map_uid", repeat=True)
    map_gid: str = option(
        "", "the same for groups", "--map-gid", parse=lambda t: _id_map(t, _group),
        metavar="MOUNT:SOURCE[:COUNT]", o="map_gid", repeat=True)
    selinux: bool = option(
        False, "give what is made the label that SELinux wants for the caller (root only)", "--selinux",
        o="selinux", no="noselinux")
    idmapped: bool = option(
        False, "let the mount be idmapped (mount -o X-mount.idmap; root only): then requests do not tell who asks, and "
        "where that matters root is served as others are", "--idmapped", o="idmapped", no="noidmapped")

    sandbox: Literal["auto", "none", "caps", "seccomp", "namespace"] = option(
        "auto", "what the daemon gives up when its mount is up; 'caps': capabilities that it has no use for, "
        "'seccomp': system calls too, 'namespace': all files but the source too, 'auto': the most that can be had; "
        "see docs/security.md", "--sandbox", parse=lambda t: _choice(t, SANDBOX),
        metavar="auto|none|caps|seccomp|namespace", o="sandbox")

    supervise: bool = option(
        False, "experimental: when the daemon dies a successor takes the mount over, and programs go on (root only, "
        "/dev/fuse, Linux 6.9)", "--supervise", o="supervise", no="nosupervise")

    null_io: bool = option(
        False, "answer READ, WRITE and FSYNC without the source: for benchmarks", "--null-io", hidden=True)

    def __post_init__(self) -> None:
        """Timeouts that are not given follow from the cache policy."""
        kept = CACHE[self.cache].timeout
        self._default("attr_timeout", kept)
        # Of a walk through names that it keeps, the kernel tells nobody who could refuse it.
        self._default("entry_timeout", 0.0 if self.checks_callers else kept)
        self._default("negative_timeout", self.entry_timeout)

    def _default(self, name: str, value: float) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def with_values(self, values: Mapping[str, Any]) -> Options:
        """These options with other values of some. Timeouts that are as they are by default follow the policy.

        Raises UsageError.
        """
        derived: dict[str, Any] = dict.fromkeys(("attr_timeout", "entry_timeout", "negative_timeout"))
        default = replace(self, **derived)
        follow: dict[str, Any] = {
            name: None for name in ("attr_timeout", "entry_timeout") if getattr(self, name) == getattr(default, name)}
        if self.negative_timeout == self.entry_timeout:
            follow["negative_timeout"] = None
        new: Options = replace(self, **{**follow, **values})
        new.check()
        return new

    def check(self) -> None:
        """Raises UsageError for what contradicts itself."""
        if os.geteuid() == 0 and not self.default_permissions and self.allow_other is not False and not self.allow_root:
            raise UsageError(
                "-o nodefault_permissions with allow_other would let everybody do as root does; add -o noallow_other")
        for name, value, lookup in (("--map-uid", self.map_uid, _user), ("--map-gid", self.map_gid, _group)):
            try:
                idmap.parse(value, lookup)
            except UsageError as e:
                raise UsageError(f"{name}: {e}") from None
        if self.allow_root and self.allow_other:
            raise UsageError("-o allow_root and allow_other exclude each other")
        if self.submounts == "all" and os.geteuid() == 0 and self.allow_other is not False and not self.allow_root:
            raise UsageError(
                "--submounts all with allow_other would let all users into /proc and kin as root; add -o noallow_other")
        if self.writeback and (self.direct_io or CACHE[self.cache].direct_io):
            raise UsageError("--writeback needs the page cache: not with --direct-io or --cache never")
        if self.writeback and self.cache == "coherent":
            raise UsageError("--writeback: the kernel then has sizes and times of its own: not with --cache coherent")

        if self.inotify != "off":
            if self.cache != "coherent":
                raise UsageError("--inotify tells of changes that --cache coherent hears of: not with another --cache")
            if self.passthrough:
                raise UsageError("--inotify: what the kernel itself writes to the source would be told twice: "
                                 "not with --passthrough")
            if self.read_only:
                raise UsageError("--inotify: nothing can be repeated in a mount that is read-only: not with -o ro")

    @property
    def uid_map(self) -> idmap.IdMap:
        """Which users of the mount are which of the source."""
        return idmap.parse(self.map_uid, _user)

    @property
    def gid_map(self) -> idmap.IdMap:
        """Which groups of the mount are which of the source."""
        return idmap.parse(self.map_gid, _group)

    @property
    def checks_callers(self) -> bool:
        """Does the daemon refuse other users than its own and root? (The kernel has no such option.)"""
        return self.allow_root and os.geteuid() != 0

    @property
    def max_pages(self) -> int:
        """Pages per request, as INIT wants it; by no less than 32 the kernel also sizes what is no write."""
        return max(32, self.max_write // PAGE)

    @property
    def buffers(self) -> int:
        """Payload buffers per queue of a pool that is pinned, and so in memory from the start."""
        return self.payload_buffers or max(1, min(self.queue_depth, POOL // self.payload_size))

    def unpinned_buffers(self, queues: int, depth: int, memory: int) -> int:
        """The same of one that is not, and takes memory with use: by so many queues of so many entries, at most 1/64
        of the machine's `memory` (bytes). A request that waits in the daemon keeps its buffer, so there is one for
        each entry if they are not too many."""
        share = memory // 64 // max(1, queues) // self.payload_size
        return self.payload_buffers or max(self.buffers, min(depth, share))

    @property
    def payload_size(self) -> int:
        """Bytes of one payload buffer: max(8192, max_write, max_pages * page size)."""
        return self.max_pages * PAGE


@dataclass(frozen=True)
class Alias:
    """Another name for what options do: those of others' programs.

    flags, o: as of option(). It sets `sets`, and if it takes a value, the options `value_of`, to what `form` makes of
    it. whose: the program's.
    """

    help: str
    flags: tuple[str, ...] = ()
    o: str | None = None
    sets: Mapping[str, Any] = field(default_factory=dict)
    value_of: str | None = None  # or two, with a space between
    form: str = "{}"
    whose: str = "libfuse"

    @property
    def metavar(self) -> str:
        """What its value is called; '' if it has none."""
        if self.value_of is None:
            return ""
        return str(named(self.value_of.split()[0]).metadata["metavar"]) if self.form == "{}" else "NAME"

    def values(self, typed: str, text: str) -> dict[str, Any]:
        """{field of Options: value}. typed: its name as it was given. Raises UsageError."""
        if self.value_of is None:
            return dict(self.sets)
        return {name: _parsed(named(name), typed, self.form.format(text)) for name in self.value_of.split()}


ALIASES = (
    Alias("keep a file's pages while it is open, and nothing else: --cache open", ("--nocache",),
          sets={"cache": "open"}),
    Alias("one thread: --threads 1", ("-s", "--single"), sets={"threads": 1}),
    Alias("the same as --threads", ("--num-threads",), o="max_threads", value_of="threads"),
    Alias("--debug-fuse without -f", ("--bg-debug-fuse",), sets={"debug_fuse": True, "background": True}),
    Alias("the ring if it can be had, as is the default: --transport auto", o="io_uring",
          sets={"transport": "auto"}),
    Alias("the same as --queue-depth", o="io_uring_q_depth", value_of="queue_depth"),
    Alias("the same as --writeback", o="writeback_cache", sets={"writeback": True}),
    Alias("the same as --local-locks", o="no_remote_lock", sets={"local_locks": True}),
    Alias("accepted, there is nothing to switch off: data is not spliced", ("--nosplice",)),
    Alias("accepted, each thread has an fd of its own always", ("--clone-fd",), o="clone_fd"),
    Alias("attributes and names: --attr-timeout and --entry-timeout", o="timeout",
          value_of="attr_timeout entry_timeout"),
    Alias("the opposite of --writeback", o="no_writeback", sets={"writeback": False}),
    Alias("the same as noxattr", o="no_xattr", sets={"xattr": False}),
    Alias("all belongs to that user: --map-uid NAME:all", ("--force-user",), o="force-user", value_of="map_uid",
          form="{}:all", whose="bindfs"),
    Alias("all belongs to that group: --map-gid NAME:all", ("--force-group",), o="force-group", value_of="map_gid",
          form="{}:all", whose="bindfs"),
    Alias("what others make belongs to that user: --map-uid all:NAME", ("--create-for-user",), o="create-for-user",
          value_of="map_uid", form="all:{}", whose="bindfs"),
    Alias("what others make belongs to that group: --map-gid all:NAME", ("--create-for-group",), o="create-for-group",
          value_of="map_gid", form="all:{}", whose="bindfs"),
    Alias("the same as -o noallow_other", ("--no-allow-other",), o="no-allow-other", sets={"allow_other": False},
          whose="bindfs"),
    Alias("the same as --attr-timeout", o="cache.attr", value_of="attr_timeout", whose="mergerfs"),
    Alias("the same as --entry-timeout", o="cache.entry", value_of="entry_timeout", whose="mergerfs"),
    Alias("the same as --negative-timeout", o="cache.negative_entry", value_of="negative_timeout", whose="mergerfs"),
)
# The word of -o that names the source, as with libfuse's passthrough_ll: then MOUNTPOINT alone is given.
SOURCE_WORD = "source"


# mount(8) options that mean something to mount(8), fstab or systemd only.
IGNORED = frozenset(
    "defaults auto noauto user nouser users nousers owner noowner group nogroup nofail _netdev async relatime"
    " norelatime nonempty symfollow lazytime nolazytime iversion noiversion mand nomand silent loud"
    " bg fg"
    # libfuse's and mergerfs's, for what is done anyway or not at all
    " use_ino readdir_ino hard_remove"
    " async_read async_dio atomic_o_trunc auto_cache auto_inval_data big_writes large_read"
    " no_splice_read no_splice_write no_splice_move splice_read splice_write splice_move".split())
# mount(8) options that promise what would not be so.
REFUSED = {
    "sync": "writes would not wait for the source's device: leave it out, and use O_SYNC or fsync(2), which are "
            "carried",
    "dirsync": "changes of directories would not wait for the source's device: leave it out, and use fsync(2) of the "
               "directory, which is carried",
    "iocharset": "names are bytes here, as in the source: leave it out",
}
# The same as IGNORED, with a value.
IGNORED_VALUES = frozenset(("comment", "user", "helper", "uhelper", "max_idle_threads"))


class MissingError(UsageError):
    """SOURCE or MOUNTPOINT was not given."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise (MissingError if message.startswith("the following arguments are required") else UsageError)(message)

    def _print_message(self, message: str, file: Any = None) -> None:  # the original hides what went wrong
        say(message, file or sys.stderr)


def _declared() -> list[Any]:
    return [f for f in fields(Options) if f.metadata]


def groups() -> dict[str, list[Any]]:
    """{heading: declarations of options}, in their order; those for developers are left out."""
    found: dict[str, list[Any]] = {}
    heading = ""
    for f in _declared():
        heading = f.metadata["group"] or heading
        if not f.metadata["hidden"]:
            found.setdefault(heading, []).append(f)
    return found


def facts(f: Any) -> list[str]:
    """Which values an option takes, and its default, where its text does not say so: ["1 to 1024", "default: 64"]."""
    parse = f.metadata["parse"]
    if parse is None:
        return []
    found = [parse.said] if hasattr(parse, "said") else [_RANGES[parse]] if parse in _RANGES else []
    if f.default is not None and f.default != "":
        found.append(f"default: {_short(f.default) if isinstance(parse, _Bytes) else value_text(f.default)}")
    return found


def help_text(f: Any) -> str:
    """What --help says of an option."""
    more = "; ".join(facts(f))
    return str(f.metadata["help"]) + (f" ({more})" if more else "")


def named(name: str) -> Any:
    """The declaration of an option."""
    return next(f for f in _declared() if f.name == name)


class _Value(argparse.Action):
    """Parses the value of an option, under the name that was typed."""

    def __call__(self, _parser: Any, into: argparse.Namespace, text: Any, typed: str | None = None) -> None:
        f = named(self.dest)
        value = _parsed(f, typed or self.dest, text)
        before = getattr(into, self.dest, "") if f.metadata["repeat"] else ""
        setattr(into, self.dest, f"{before}+{value}" if before else value)


class _Alias(argparse.Action):
    """An alias that takes a value; const: which one."""

    def __call__(self, _parser: Any, into: argparse.Namespace, text: Any, typed: str | None = None) -> None:
        for name, value in self.const.values(typed, text).items():
            before = getattr(into, name, "") if named(name).metadata["repeat"] else ""
            setattr(into, name, f"{before}+{value}" if before else value)


class _Sets(argparse.Action):
    """A switch that sets several options, or none."""

    def __call__(self, _parser: Any, into: argparse.Namespace, _text: Any, _typed: str | None = None) -> None:
        for name, value in self.const.items():
            setattr(into, name, value)


DESCRIPTION = ("Mirror the directory SOURCE at the directory MOUNTPOINT, or the file or block device SOURCE at the "
               "file MOUNTPOINT.")
ENDS = ("source", "mountpoint")


def parser(ends: Sequence[str] = ENDS, before: str = "") -> argparse.ArgumentParser:
    """The command line's parser, made from the declarations.

    ends: which of ENDS are to be given. before: what --help is to say before the options.
    """
    p = _Parser(
        prog="passthru", usage="passthru [options] SOURCE MOUNTPOINT", allow_abbrev=False,
        description=f"{textwrap.fill(DESCRIPTION, 79)}\n\n{before}".rstrip(), argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ends:
        p.add_argument(name, metavar=name.upper(), help={
            "source": "a directory, regular file or block device",
            "mountpoint": "a directory; for a source that is a file or device, a file"}[name])
    declare(p)
    p.add_argument("-V", "--version", action="version", version=f"passthru {VERSION}")
    return p


def declare(p: argparse.ArgumentParser) -> None:
    """Add the options of a mount to a parser, by groups. Those actions have the attribute `of_mount`."""
    before = set(p._actions)
    for heading, declared in groups().items():
        group = p.add_argument_group(heading)
        words = [_o_forms(f) for f in declared if f.metadata["o"]]
        for f in declared:
            if f.metadata["flags"]:
                _declare(group, f)
        if words:
            group.description = textwrap.fill(f"of -o: {', '.join(words)}", 77, break_on_hyphens=False)
    for f in _declared():
        if f.metadata["hidden"]:
            _declare(p, f)
    p.add_argument_group("any of them, and more").add_argument(
        "-o", dest="mount_options", action="append", metavar="OPT[,OPT...]",
        help="mount options, by the words above: each long option is one, as queue_depth=16")
    others = p.add_argument_group("names of libfuse, bindfs, mergerfs")
    for a in ALIASES:
        if a.flags and a.value_of:
            others.add_argument(*a.flags, dest="alias", action=_Alias, const=a, metavar=a.metavar, help=a.help)
        elif a.flags:
            others.add_argument(*a.flags, dest="alias", action=_Sets, nargs=0, const=a.sets, help=a.help)
    for action in set(p._actions) - before:
        action.of_mount = True  # type: ignore[attr-defined]


def _declare(group: Any, f: Any) -> None:
    m = f.metadata
    text = argparse.SUPPRESS if m["hidden"] else help_text(f).replace("%", "%%")
    if m["parse"]:
        group.add_argument(*m["flags"], dest=f.name, action=_Value, metavar=m["metavar"], help=text)
    else:
        group.add_argument(*m["flags"], dest=f.name, action="store_const", const=True, help=text)
    if m["no_flags"]:
        group.add_argument(*m["no_flags"], dest=f.name, action="store_const", const=False,
                           help=f"the opposite of {m['flags'][-1]}")


def _o_forms(f: Any) -> str:
    m = f.metadata
    return str(m["o"]) + (f"={m['metavar']}" if m["parse"] else "") + (f"|{m['no']}" if m["no"] else "")


def split_mount_options(text: str) -> list[str]:
    """The words of a -o string; '\\,' is a comma within one."""
    words, word, chars = [], "", iter(text)
    for c in chars:
        if c == "\\":
            word += next(chars, "\\")
        elif c == ",":
            words.append(word)
            word = ""
        else:
            word += c
    return [w for w in [*words, word] if w]


def is_mount_option(word: str) -> bool:
    """Is it a word of -o, known or ignored, whatever its value?"""
    name = word.partition("=")[0]
    return (name in IGNORED or name in IGNORED_VALUES or name in REFUSED or name.startswith(("x-", "X-"))
            or name == SOURCE_WORD or any(name in (f.metadata["o"], f.metadata["no"]) for f in _declared())
            or any(name == a.o for a in ALIASES))


def word_of(name: str) -> str:
    """The word of -o for a field of Options, or the field's name."""
    return str(named(name).metadata["o"] or name)


def mount_option(word: str) -> dict[str, Any]:
    """{field of Options: value} of a word of -o; {} for one that changes nothing. Raises UsageError."""
    name, has_value, value = word.partition("=")
    if (name in IGNORED and not has_value) or name.startswith(("x-", "X-")) or name in IGNORED_VALUES:
        return {}
    for f in _declared():
        m = f.metadata
        if name == m["o"]:
            if bool(m["parse"]) != bool(has_value):
                raise UsageError(f"-o {name} takes {'a' if m['parse'] else 'no'} value")
            return {f.name: _parsed(f, f"-o {name}", value) if m["parse"] else True}
        if name == m["no"] and not has_value:
            return {f.name: False}
    for a in ALIASES:
        if name == a.o:
            if bool(a.value_of) != bool(has_value):
                raise UsageError(f"-o {name} takes {'a' if a.value_of else 'no'} value")
            return a.values(f"-o {name}", value)
    if name == SOURCE_WORD and value:
        return {SOURCE_WORD: value}
    if name in REFUSED:
        raise UsageError(f"-o {name}: {REFUSED[name]}")
    near = difflib.get_close_matches(name, known_words(), 1)
    raise UsageError(f"unknown mount option {word!r}" + (f"; did you mean {near[0]}?" if near else ""))


def known_words() -> list[str]:
    """The words of -o that do something, without their values."""
    declared = [w for f in _declared() for w in (f.metadata["o"], f.metadata["no"]) if w and not f.metadata["hidden"]]
    return [*declared, *(a.o for a in ALIASES if a.o)]


def _parsed(f: Any, shown: str, text: str) -> Any:
    try:
        return f.metadata["parse"](text)
    except UsageError as e:
        raise UsageError(f"{shown}: {e}") from None


def live_options() -> dict[str, str]:
    """{name, as `passthru set` takes it: field} of the options that may be changed while a mount serves."""
    return {f.metadata["o"] or f.name: f.name for f in _declared() if f.metadata["live"]}


def live_values(words: Sequence[str]) -> dict[str, Any]:
    """{field: value} of `name=value` words for a live mount. Raises UsageError."""
    values: dict[str, Any] = {}
    declared = {f.metadata["o"] or f.name: f for f in _declared()}
    for word in words:
        name, has_value, text = word.partition("=")
        f = declared.get(name.replace("-", "_"))
        if f is None:
            raise UsageError(f"no option {name!r}; those of a live mount: {', '.join(live_options())}")
        if not f.metadata["live"]:
            raise UsageError(f"{name} cannot be changed while the mount serves; {', '.join(live_options())} can")
        if not has_value:
            raise UsageError(f"{name} needs a value: {name}=...")
        values[f.name] = _parsed(f, name, text) if f.metadata["parse"] else _parsed_switch(f, name, text)
    return values


def _parsed_switch(f: Any, name: str, text: str) -> bool | None:
    if text == "default" and f.default is None:
        return None
    if text not in YES + NO:
        raise UsageError(f"{name}: {text!r} is neither yes nor no")
    return text in YES


def value_text(value: Any) -> str:
    """A value of an option as it is shown, and as live_values() takes it."""
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "default"}[value]
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)


def arguments(values: dict[str, Any]) -> list[str]:
    """The command line's words for values of Options' fields by name; the inverse of parse().

    A value of an option that is parsed from text may be that text. TypeError for a value of another type.
    """
    out = []
    for f in _declared():
        if f.name not in values or values[f.name] is None is f.default or (f.metadata["repeat"] and not values[f.name]):
            continue
        m, value = f.metadata, values[f.name]
        if m["parse"]:
            kinds = (str, int, float) if m["parse"] is _seconds else (str, type(f.default))
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise TypeError(f"{f.name}: {value!r} is of type {type(value).__name__}")
            text = str(value)
            if m["o"]:
                escaped = text.replace("\\", "\\\\").replace(",", "\\,")
                out += ["-o", f"{m['o']}={escaped}"]
            else:
                out.append(f"{m['flags'][-1]}={text}")
        elif not isinstance(value, bool):
            raise TypeError(f"{f.name}: {value!r} is of type {type(value).__name__}, not bool")
        elif value and m["o"]:
            out += ["-o", m["o"]]
        elif value:
            out.append(m["flags"][-1])
        elif m["no"]:
            out += ["-o", m["no"]]
        elif m["no_flags"]:
            out.append(m["no_flags"][0])
        elif f.default:
            raise TypeError(f"{f.name}: this cannot be switched off")
    return out


def _given(argv: list[str], before: str, ends: bool) -> dict[str, Any]:
    """What was typed, by argparse's names; without `ends`, SOURCE and MOUNTPOINT may both be left out."""
    try:
        return vars(parser(before=before).parse_args(argv))
    except MissingError as e:
        missing = e
    for names in (("mountpoint",), ()) if not ends else (("mountpoint",),):
        try:
            found = vars(parser(names).parse_args(argv))
        except UsageError:
            continue
        words = [w for text in found.get("mount_options", []) for w in split_mount_options(text)]
        if not names or any(w.startswith(f"{SOURCE_WORD}=") for w in words):
            return found
    raise missing


def parse(argv: Sequence[str], *, before: str = "", ends: bool = True) -> Options:
    """Options of a command line without the program's name. Raises UsageError.

    before: what --help says first. ends: SOURCE and MOUNTPOINT have to be given; otherwise they may be ''.
    """
    given = _given(list(argv), before, ends)
    values: dict[str, Any] = {}
    for text in given.pop("mount_options", []):
        for word in split_mount_options(text):
            for name, value in mount_option(word).items():
                repeats = name != SOURCE_WORD and named(name).metadata["repeat"]
                before_it = values.get(name) if repeats else ""
                values[name] = f"{before_it}+{value}" if before_it else value
    if SOURCE_WORD in values and SOURCE_WORD in given:
        raise UsageError("SOURCE, and -o source= too: one of them")
    for name, value in given.items():
        repeated = name in values and name not in ENDS and named(name).metadata["repeat"]
        values[name] = f"{values[name]}+{value}" if repeated else value
    background = values.pop("background", False)
    if values.get("debug") or (values.get("debug_fuse") and not background):
        values["foreground"] = True
    if values.get("debug"):
        values.setdefault("log_level", "debug")
    if values.get("null_io"):
        values.update(passthrough=False, zero_copy="off")  # the kernel would do the I/O
    if values.get("inotify", "off") != "off":
        values.setdefault("cache", "coherent")
        values.setdefault("passthrough", False)
    options = Options(**values)
    options.check()
    return options


def open_log(options: Options) -> None:
    """Messages go where the options say from now on. Raises PassthruError."""
    about = {"PASSTHRU_SOURCE": options.source, "PASSTHRU_MOUNTPOINT": options.mountpoint}
    log.setup(options.log, options.log_level, not options.foreground, about)
