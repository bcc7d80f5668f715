"""--map-uid and --map-gid: which id of the mount is which of the source.

Text: MOUNT:SOURCE[:COUNT] for a pair of ids, or of ranges; all:SOURCE for all other users of the mount, MOUNT:all
for all other owners in the source. Several are joined by '+'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .errors import UsageError

NO_ID = 0xFFFFFFFF  # the kernel's (uid_t) -1
MOST = 64  # pairs


class Pair(NamedTuple):
    """`number` ids from `mount` on are those from `source` on."""

    mount: int
    source: int
    number: int


class IdMap(NamedTuple):
    """pairs, and what others of the mount's users act as, and others of the source's owners show as (or NO_ID)."""

    pairs: tuple[Pair, ...]
    others_act_as: int = NO_ID
    others_show_as: int = NO_ID


def _id(text: str, lookup: Callable[[str], int]) -> int:
    try:
        value = int(text)
    except ValueError:
        try:
            return lookup(text)
        except KeyError:
            raise UsageError(f"{text!r} is neither an id nor a name") from None
    if not 0 <= value < NO_ID:
        raise UsageError(f"{text} is out of range (0 to {NO_ID - 1})")
    return value


def _overlap(a: int, b: int, pairs: list[Pair], side: str) -> bool:
    return any(a < getattr(p, side) + p.number and getattr(p, side) < b for p in pairs)


def parse(text: str, lookup: Callable[[str], int]) -> IdMap:
    """The map of an option's text; lookup: from a name to its id, or KeyError. Raises UsageError."""
    pairs: list[Pair] = []
    act = show = NO_ID
    for word in text.split("+") if text else []:
        left, _, rest = word.partition(":")
        right, has_count, count_text = rest.partition(":")
        if not left or not right or (left == right == "all"):
            raise UsageError(f"{word!r} is not MOUNT:SOURCE[:COUNT], all:SOURCE or MOUNT:all")
        if "all" in (left, right) and has_count:
            raise UsageError(f"{word!r}: 'all' has no count")
        if left == "all":
            if act != NO_ID:
                raise UsageError(f"{word!r}: there is an all:SOURCE already")
            act = _id(right, lookup)
            continue
        if right == "all":
            if show != NO_ID:
                raise UsageError(f"{word!r}: there is a MOUNT:all already")
            show = _id(left, lookup)
            continue
        pair = Pair(_id(left, lookup), _id(right, lookup), 1)
        if has_count:
            if not count_text.isascii() or not count_text.isdigit() or not 1 <= int(count_text) < NO_ID:
                raise UsageError(f"{word!r}: {count_text!r} is not a count")
            pair = pair._replace(number=int(count_text))
        for start, side in ((pair.mount, "mount"), (pair.source, "source")):
            if start + pair.number > NO_ID:
                raise UsageError(f"{word!r} goes beyond the last id, {NO_ID - 1}")
            if _overlap(start, start + pair.number, pairs, side):
                raise UsageError(f"{word!r}: another pair already has some of these ids of the {side}")
        pairs.append(pair)
    if len(pairs) > MOST:
        raise UsageError(f"more than {MOST} pairs")
    return IdMap(tuple(pairs), act, show)


def text_of(m: IdMap) -> str:
    """The option's text of a map, with numbers."""
    words = [f"{p.mount}:{p.source}" + (f":{p.number}" if p.number != 1 else "") for p in m.pairs]
    words += [f"all:{m.others_act_as}"] if m.others_act_as != NO_ID else []
    words += [f"{m.others_show_as}:all"] if m.others_show_as != NO_ID else []
    return "+".join(words)
