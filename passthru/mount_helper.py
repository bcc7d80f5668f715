"""mount.passthru and mount.fuse.passthru: what mount(8) calls for these types (mount(8), EXTERNAL HELPERS).

    mount.passthru SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE.SUBTYPE]

The exit codes are mount(8)'s, which hands them on.
"""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from . import _sys, log, remount
from . import options as opts
from ._version import VERSION
from .cli import background, foreground
from .errors import PassthruError, UsageError
from .stdio import close_inherited, standard_files

USAGE = "usage: mount.passthru SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE] [--foreground]"
SWITCHES = (
    (("-o OPTIONS",), "mount options, separated by commas; may be given more than once"),
    (("-f",), "mount nothing: only see whether the options are right"),
    (("-s",), "ignore mount options that do not exist"),
    (("-v",), "say what serves the mount, when it is usable"),
    (("-N NAMESPACE",), "mount in the mount namespace of that file, as /proc/PID/ns/mnt is one"),
    (("-n", "-t TYPE"), "accepted, and change nothing"),
    (("--foreground",), "stay in the foreground, as a service of systemd does"),
    (("-h", "--help"), "show how the helper is called"),
    (("-V", "--version"), "show the version"),
)
SUCCESS, EX_USAGE, EX_SYSERR, EX_SOFTWARE, EX_FAIL = 0, 1, 2, 4, 32  # mount(8), EXIT STATUS
EXIT_CODES = (
    (SUCCESS, "success: the mount is usable, or remounted"),
    (EX_USAGE, "unknown option, bad value, missing argument, or a remount by others than root"),
    (EX_SYSERR, "out of memory, or the installation of passthru has gone"),
    (EX_SOFTWARE, "an error that was not expected"),
    (EX_FAIL, "the mount or the remount failed"),
)


@dataclass
class Call:
    """What mount(8) asks for."""

    source: str
    target: str
    words: list[str] = field(default_factory=list)
    sloppy: bool = False
    fake: bool = False
    verbose: bool = False
    foreground: bool = False
    namespace: str = ""


def parse(argv: Sequence[str]) -> Call | None:
    """The arguments without the helper's name; None: help or version was asked for and given."""
    try:
        pairs, ends = getopt.gnu_getopt(list(argv), "sfnvN:o:t:hV", ["foreground", "help", "version"])
    except getopt.GetoptError as e:
        raise UsageError(f"{e.msg}; {USAGE}") from None
    given = dict(pairs)
    if "-h" in given or "--help" in given:
        print(USAGE)
        return None
    if "-V" in given or "--version" in given:
        print(f"mount.passthru (passthru {VERSION})")
        return None
    if len(ends) != 2:
        raise UsageError(USAGE)
    for what, name in zip(("source", "mountpoint"), ends, strict=True):
        if not name:
            raise UsageError(f"{what} '': an empty name")
    call = Call(
        ends[0], ends[1], sloppy="-s" in given, fake="-f" in given, verbose="-v" in given,
        foreground="--foreground" in given, namespace=given.get("-N", ""))
    for key, text in pairs:
        if key == "-o":
            call.words += words(text)
    return call


def words(text: str) -> list[str]:
    """The words of -o. A value in double quotes may have commas, as in fstab(5)."""
    parts, quoted = [""], False
    for before, c in zip(" " + text, text, strict=False):
        if c == '"' and (quoted or before == "="):
            quoted = not quoted
        else:
            parts[-1] += "\\" + c if quoted and c in ",\\" else c
    return opts.split_mount_options("".join(parts))


def joined(parts: Sequence[str]) -> str:
    """The opposite of split_mount_options()."""
    return ",".join(w.replace("\\", "\\\\").replace(",", "\\,") for w in parts)


def enter_namespace(path: str) -> None:
    """Go on in another mount namespace; in a process of one thread."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _sys.enter_mount_namespace(fd)
        finally:
            os.close(fd)
    except OSError as e:
        raise PassthruError(f"-N {path}: {os.strerror(e.errno or 0)}") from None


def in_namespace(path: str, act: Callable[[], None]) -> int:
    """Act, if a path is given in a child process in that mount namespace; the exit code. Raises PassthruError."""
    if not path:
        act()
        return 0
    child = os.fork()
    if child == 0:
        code = 1
        try:
            enter_namespace(path)
            act()
            code = 0
        except PassthruError as e:
            log.error(str(e))
            code = e.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def options_of(call: Call) -> opts.Options:
    """The mount's options. Raises UsageError."""
    wanted = [w for w in call.words if not call.sloppy or opts.is_mount_option(w)]
    more = ["-f"] if call.foreground else []
    return opts.parse([
        *more, "-o", joined(wanted), "--", os.path.abspath(call.source), os.path.abspath(call.target)])


def run(call: Call) -> int:
    """The exit code as of passthru. Raises PassthruError."""
    if "remount" in call.words:
        return in_namespace(call.namespace, lambda: remount.run(
            call.target, [w for w in call.words if w != "remount"], sloppy=call.sloppy, fake=call.fake))
    options = options_of(call)
    if call.fake:
        return 0
    if call.foreground:
        return foreground(options)
    close_inherited()
    enter = (lambda: enter_namespace(call.namespace)) if call.namespace else None
    return background(options, before=enter, told=log.info if call.verbose else None)


def main(argv: Sequence[str]) -> int:
    """The exit code, one of mount(8)'s, for the arguments without the helper's name."""
    try:
        call = parse(argv)
        code = run(call) if call is not None else 0
    except PassthruError as e:
        log.error(str(e))
        code = e.exit_code
    except MemoryError:
        return EX_SYSERR
    except Exception as e:
        log.error(f"{type(e).__name__}: {e}")
        return EX_SOFTWARE
    if code == UsageError.exit_code:
        return EX_USAGE
    return EX_FAIL if code else SUCCESS


def script() -> None:
    """The helpers' entry point; argv: '-c', the helper's path, its arguments."""
    standard_files()
    code = main(sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
