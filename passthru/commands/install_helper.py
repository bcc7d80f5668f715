"""`passthru install-helper`: what mount(8) and systemd need to call this installation."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import PassthruError, reason
from ._text import Parser

MARK = "Made by passthru install-helper"
HELPERS = ("mount.passthru", "mount.fuse.passthru")
UNIT = "passthru@.service"
UNIT_DIRECTORY = Path("lib/systemd/system")

# The interpreter is isolated (-I): root's mounts must not depend on the caller's PYTHONPATH or directory.
SCRIPT = f"""\
#!/bin/sh
# {MARK}; 'passthru install-helper --remove' takes it away.
python=@PYTHON@
if [ ! -x "$python" ]; then
    echo "${{0##*/}}: $python is gone: install passthru again, and run 'passthru install-helper'" >&2
    [ "$(id -u)" = 0 ] || echo "${{0##*/}}: or it is where only other users may run it, as below /root" >&2
    exit 2
fi
exec "$python" -I -c @PROGRAM@ "$0" "$@"
"""

SERVICE = f"""\
# {MARK}; 'passthru install-helper --remove' takes it away.
#
# passthru@NAME.service is the mount that /etc/passthru/NAME.conf describes, by lines
# SOURCE=, MOUNTPOINT= and, if wanted, OPTIONS= as for mount -o; see mount.passthru(8).
[Unit]
Description=passthru mount %i
Documentation=man:passthru(8) man:mount.passthru(8)
After=local-fs.target remote-fs.target
AssertPathExists=/etc/passthru/%i.conf

[Service]
Type=notify
EnvironmentFile=/etc/passthru/%i.conf
ExecStart=@HELPER@ --foreground ${{SOURCE}} ${{MOUNTPOINT}} -o ${{OPTIONS}}
KillMode=mixed
OOMPolicy=continue
# The daemon confines itself when its mount is up (--sandbox, docs/security.md); this holds from the start. What takes a
# mount namespace (ProtectSystem=, PrivateTmp=, PrivateDevices=, ...) cannot be used: the mount would be in that, where
# nobody else sees it. No RestrictSUIDSGID=: callers may set these bits.
NoNewPrivileges=yes
CapabilityBoundingSet=@CAPABILITIES@
AmbientCapabilities=
RestrictNamespaces=mnt
RestrictAddressFamilies=AF_UNIX AF_NETLINK
RestrictRealtime=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @debug @module @obsolete @raw-io @reboot @swap
LimitCORE=0

[Install]
WantedBy=multi-user.target
"""


# What a daemon keeps, and what it needs before: to pin memory, change its root, cut the bounding set, open many files.
CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_SETGID", "CAP_SETUID",
    "CAP_LINUX_IMMUTABLE", "CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN",
    "CAP_IPC_LOCK", "CAP_SYS_CHROOT", "CAP_SETPCAP", "CAP_SYS_RESOURCE")


def default_prefix() -> Path:
    """The one whose sbin is /sbin, where mount(8) looks for helpers."""
    with contextlib.suppress(OSError):
        if os.path.samefile("/sbin", "/usr/sbin"):
            return Path("/usr")
    return Path("/")


def search_path(python: str) -> list[str]:
    """Directories that an isolated interpreter lacks for the package and what it needs."""
    said = subprocess.run(
        [python, "-I", "-c", "import sys; print('\\0'.join(sys.path))"], capture_output=True, text=True, check=False)
    known = {os.path.realpath(p) for p in said.stdout.rstrip("\n").split("\0") if p}
    wanted = []
    for name in (__name__.partition(".")[0], "numpy", "psutil"):
        spec = find_spec(name)
        if spec is not None and spec.origin:
            wanted.append(str(Path(spec.origin).resolve().parent.parent))
    return [p for p in dict.fromkeys(wanted) if p not in known]


def script(python: str, path: Sequence[str]) -> str:
    """The helper: a shell script, since a path in a '#!' line may be neither long nor have spaces."""
    more = f"sys.path[:0] = {list(path)!r}; " if path else ""
    program = f"import sys; {more}from passthru.mount_helper import script; script()"
    return SCRIPT.replace("@PYTHON@", shlex.quote(python)).replace("@PROGRAM@", shlex.quote(program))


def unit(helper: Path) -> str:
    """The template of services."""
    path = str(helper)
    if any(c in path for c in " \t\"'\\%$"):
        path = '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'
    return SERVICE.replace("@HELPER@", path).replace("@CAPABILITIES@", " ".join(CAPABILITIES))


def files(prefix: Path) -> dict[Path, tuple[str, int]]:
    """What is installed below a prefix: {path: (text, mode)}."""
    text = script(sys.executable, search_path(sys.executable))
    found = {prefix / "sbin" / name: (text, 0o755) for name in HELPERS}
    found[prefix / UNIT_DIRECTORY / UNIT] = (unit(prefix / "sbin" / HELPERS[0]), 0o644)
    return found


def paths(prefix: Path) -> list[Path]:
    return [*(prefix / "sbin" / name for name in HELPERS), prefix / UNIT_DIRECTORY / UNIT]


def ours(path: Path) -> bool | None:
    """Is it a file that install-helper made? None: there is nothing."""
    try:
        mode = path.lstat().st_mode
        return stat.S_ISREG(mode) and MARK in path.read_text(errors="replace")[:400]
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_ours(all_paths: Sequence[Path]) -> None:
    """Raises PassthruError if one of these is there and is not ours."""
    for path in all_paths:
        if ours(path) is False:
            raise PassthruError(f"{path} is there and was not made by install-helper; nothing was changed")


def place(path: Path, text: str, mode: int) -> None:
    """Write a file at once or not at all."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(os.fsencode(text))
            os.fchmod(f.fileno(), mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def take_away(path: Path, prefix: Path) -> None:
    """Remove a file, and the directories below the prefix that are empty then."""
    path.unlink(missing_ok=True)
    for directory in path.parents:
        if directory == prefix or prefix not in directory.parents:
            break
        try:
            directory.rmdir()
        except OSError:
            break


def closed(files: Sequence[str]) -> list[str]:
    """Directories above these files that not all users may enter."""
    found = {str(d) for name in files for d in (*Path(name).parents, *Path(os.path.realpath(name)).parents)
             if not d.stat().st_mode & stat.S_IXOTH}
    return sorted(found)


def install(prefix: Path) -> list[Path]:
    """Put everything in its place; what was made or changed. Raises PassthruError, with nothing changed."""
    wanted = files(prefix)
    check_ours(list(wanted))
    changed: list[Path] = []
    new: list[Path] = []
    for path, (text, mode) in wanted.items():
        was = ours(path)
        if was and path.read_bytes() == os.fsencode(text) and stat.S_IMODE(path.stat().st_mode) == mode:
            continue
        try:
            place(path, text, mode)
        except OSError as e:
            for p in new:
                take_away(p, prefix)
            raise PassthruError(f"{path}: {reason(e)}") from None
        changed.append(path)
        if was is None:
            new.append(path)
    return changed


def remove(prefix: Path) -> list[Path]:
    """Take away what install() made; what was removed. Raises PassthruError, with nothing changed."""
    check_ours(paths(prefix))
    removed = []
    for path in paths(prefix):
        if ours(path):
            try:
                take_away(path, prefix)
            except OSError as e:
                raise PassthruError(f"{path}: {reason(e)}") from None
            removed.append(path)
    return removed


def main(argv: Sequence[str]) -> int:
    """Exit code. Raises PassthruError."""
    p = Parser(argv[0], "Install mount(8)'s helpers for this installation, and a systemd unit template.")
    p.add_argument(
        "--prefix", metavar="DIR", type=Path, default=default_prefix(),
        help="install into DIR/sbin and DIR/lib/systemd/system; default: where mount(8) looks")
    p.add_argument("--remove", action="store_true", help="take away what was installed")
    given = p.parse_args(list(argv[1:]))
    prefix = Path(os.path.abspath(given.prefix))
    if given.remove:
        for path in remove(prefix):
            print(f"removed {path}")
        return 0
    for path in install(prefix):
        print(f"installed {path}")
    for directory in closed([sys.executable, __file__]):
        print(f"note: {directory} is closed to other users: lines of fstab with user or users will fail for them; an "
              "installation below /usr or /opt is open")
    if not (prefix / "sbin").exists() or not os.path.samefile(prefix / "sbin", "/sbin"):
        print(f"passthru: mount(8) looks for helpers in /sbin, not in {prefix / 'sbin'}", file=sys.stderr)
    return 0
