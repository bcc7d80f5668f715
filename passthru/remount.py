"""mount -o remount of a live mount: what can change, changes; all else must be as it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from . import _sys, mounting, stats
from . import options as opts
from .errors import MountError, UsageError, reason

# Fields of Options that are flags of the mount: {name: its MS_ bit of mount(2)}.
FLAGS = {
    "read_only": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "nosymfollow": 256, "noatime": 1024, "nodiratime": 2048,
    "strictatime": 1 << 24,
}
# Their times are kept by the source's mount, or its private copy, which was made at the start.
FIXED_FLAGS = ("noatime", "nodiratime", "strictatime")
# Words by which /proc/self/mountinfo, from which mount(8) takes them, shows a FUSE mount.
SHOWN = frozenset("user_id group_id blksize rootmode fd".split())


def settings(here: mounting.MountInfo) -> dict[str, Any]:
    """The options in effect of a mount; {} if this user cannot know them."""
    for snapshot in stats.pages(everybody=True)[0]:
        # A mount id alone may be that of a mount which has just gone.
        if (int(snapshot.header["mount_id"]), snapshot.mountpoint) == (here.mount_id, here.target) and snapshot.alive():
            return snapshot.settings
    return {}


def wanted(words: Sequence[str], *, sloppy: bool) -> dict[str, Any]:
    """{field of Options: value} of a remount's words. Raises UsageError."""
    values: dict[str, Any] = {}
    for word in words:
        name = word.partition("=")[0]
        if name not in SHOWN and not (sloppy and not opts.is_mount_option(word)):
            values.update(opts.mount_option(word))
    return values


def refused(values: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Of the values wanted, the words of those that differ and cannot change while the mount serves."""
    found = []
    for name, value in values.items():
        if (name in FLAGS and name not in FIXED_FLAGS) or name not in now:
            continue
        same = now[name] == value or (name == "allow_other" and now[name] is None and value == (os.geteuid() == 0))
        if not same:
            found.append(opts.word_of(name))
    return found


def flags(values: dict[str, Any]) -> int:
    """MS_ bits of mount(2): as by the kernel's own remount, a flag that is not given is off."""
    return sum(bit for name, bit in FLAGS.items() if values.get(name))


def run(target: str, words: Sequence[str], *, sloppy: bool = False, fake: bool = False) -> None:
    """Remount. Raises PassthruError, with nothing changed."""
    values = wanted(words, sloppy=sloppy)
    if fake:
        return
    real = os.path.realpath(target)
    here = mounting.mounted_at(real)
    if here is None:
        raise MountError(f"remount {target}: not mounted")
    bad = refused(values, settings(here))
    if bad:
        raise MountError(f"remount {target}: {', '.join(bad)} cannot be changed; unmount, and mount again")
    try:
        _sys.remount(os.fsencode(real), flags(values))
    except PermissionError:
        raise UsageError(f"remount {target}: only root can do that") from None
    except OSError as e:
        raise MountError(f"remount {target}: {reason(e)}") from None
