"""mount -o remount of a live mount: what can change, changes; all else must be as it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import _sys, control, mounting
from . import options as opts
from .capabilities import CAP_SYS_ADMIN, capable
from .errors import MountError, UsageError, reason

if TYPE_CHECKING:
    from . import stats

# Fields of Options that are flags of the mount: {name: its MS_ bit of mount(2)}.
FLAGS = {
    "read_only": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "nosymfollow": 256, "noatime": 1024, "nodiratime": 2048,
    "strictatime": 1 << 24,
}
# Their times are kept by the source's mount, or its private copy, which was made at the start.
FIXED_FLAGS = ("noatime", "nodiratime", "strictatime")
# Words by which /proc/self/mountinfo, from which mount(8) takes them, shows a FUSE mount.
SHOWN = frozenset("user_id group_id blksize rootmode fd".split())


def page_of(here: mounting.MountInfo) -> stats.Snapshot | None:
    """The status page of a live mount, or None."""
    from . import stats  # numpy takes its time, and mounting needs none

    for snapshot in stats.pages(everybody=True)[0]:
        # A mount id alone may be that of a mount which has just gone.
        if (int(snapshot.header["mount_id"]), snapshot.mountpoint) == (here.mount_id, here.target) and snapshot.alive():
            return snapshot
    return None


def wanted(words: Sequence[str], *, sloppy: bool) -> dict[str, Any]:
    """{field of Options: value} of a remount's words. Raises UsageError."""
    values: dict[str, Any] = {}
    for word in words:
        name = word.partition("=")[0]
        if name not in SHOWN and not (sloppy and not opts.is_mount_option(word)):
            values.update(opts.mount_option(word))
    return values


def differing(values: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Of the fields wanted, those that are no flags and whose values are not the ones in effect."""
    found = []
    for name, value in values.items():
        if name in FLAGS and name not in FIXED_FLAGS:
            continue
        same = now.get(name) == value
        if name == "allow_other" and now.get(name) is None:
            same = value == (os.geteuid() == 0)
        if not same:
            found.append(name)
    return found


def _word(name: str, value: Any) -> str:
    """A change of a live mount's option, exactly."""
    return f"{name}={value!r}" if isinstance(value, float) else f"{name}={opts.value_text(value)}"


def flags(values: dict[str, Any]) -> int:
    """MS_ bits of mount(2): as by the kernel's own remount, a flag that is not given is off."""
    return sum(bit for name, bit in FLAGS.items() if values.get(name))


def run(target: str, words: Sequence[str], *, sloppy: bool = False, fake: bool = False) -> None:
    """Remount. Raises PassthruError, with nothing changed."""
    values = wanted(words, sloppy=sloppy)
    if fake:
        return
    if not capable(CAP_SYS_ADMIN):
        raise UsageError(f"remount {target}: only root can do that")
    real = os.path.realpath(target)
    here = mounting.mounted_at(real)
    if here is None:
        raise MountError(f"remount {target}: not mounted")
    page = page_of(here)
    if page is None:
        raise MountError(f"remount {target}: no live passthru mount")
    now, live = page.settings, opts.live_options()
    other = differing(values, now)
    fixed = [opts.word_of(name) for name in other if name not in live.values()]
    if fixed:
        raise MountError(f"remount {target}: {', '.join(fixed)} cannot be changed; unmount, and mount again")
    names = [name for name, field in live.items() if field in other]
    if names:
        control.ask_set(page, [_word(name, values[live[name]]) for name in names])
    try:
        _sys.remount(os.fsencode(real), flags(values))
    except OSError as e:
        if names:
            control.ask_set(page, [_word(name, now[live[name]]) for name in names])
        raise MountError(f"remount {target}: {reason(e)}") from None
