"""What we aim at: rows of compare.py, our target, whom it is held against, and the ratio that is wanted.

An aim is met if the geometric mean over its rows of their median ratios is at least what is wanted, and no row is below
FLOOR (or below what is wanted, if that is less).
Targets are known by their names: default, ring and null are ours (see target.OURS), hp-ring and hp are the peer
with and without its ring, bare is the source.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

FLOOR = 0.95
MEMORY = ("tmpfs", "ramfs")
NAMES = [f"{row}-j1" for row in ("stat", "negative", "open", "create", "readdir", "list")]
TOOLS = ["git-status", "find", "untar"]
SMALL = [f"{what}-4k-rand-direct-{load}" for what in ("read", "write") for load in ("j1", "j2", "j4", "qd16")]
DEEP = [f"{what}-4k-rand-direct-{load}" for what in ("read", "write") for load in ("j4", "qd16", "qd64")]
STREAMS = [f"{what}-1m-seq-{mode}-j1" for what in ("read", "write") for mode in ("direct", "buffered")]
PLAIN = [f"{what}-4k-rand-{mode}-j1" for what in ("read", "write") for mode in ("direct", "buffered")] + STREAMS
ONE_FILE = ["write-4k-rand-direct-j4-one"]

Ratio = Callable[[str, str, str], float | None]  # (row, target, baseline): the median, None if there is none


@dataclass(frozen=True)
class Aim:
    """A line of the table. source: 'memory', 'disk', or '' for both; of several baselines the fastest counts."""

    what: str
    source: str
    rows: list[str]
    target: str
    baselines: tuple[str, ...]
    least: float


AIMS = [
    Aim("4k from memory, ring", "memory", SMALL, "ring", ("hp-ring",), 1.2),
    Aim("4k from memory, ring", "memory", SMALL, "ring", ("null",), 0.85),
    Aim("4k O_DIRECT on a device, ring", "disk", DEEP, "ring", ("hp-ring",), 2.2),
    Aim("4k O_DIRECT on a device, ring", "disk", DEEP, "ring", ("bare",), 0.75),
    Aim("1 MiB streams, ring", "", STREAMS, "ring", ("hp-ring",), 1.15),
    Aim("4k and 1 MiB, default", "disk", PLAIN, "default", ("bare",), 0.9),
    Aim("parallel O_DIRECT writers to one file, default", "disk", ONE_FILE, "default", ("bare",), 0.75),
    Aim("names and tools, default", "", NAMES + TOOLS, "default", ("hp-ring", "hp"), 1.3),
    Aim("names and tools, ring", "", NAMES + TOOLS, "ring", ("hp-ring", "hp"), 1.3),
]


def of(fstype: str) -> list[Aim]:
    """The aims for a source on that filesystem."""
    kind = "memory" if fstype in MEMORY else "disk"
    return [a for a in AIMS if a.source in ("", kind)]


def rows(fstype: str) -> list[str]:
    """The rows that they need."""
    return list(dict.fromkeys(row for a in of(fstype) for row in a.rows))


def lines(fstype: str, measured: list[str], names: list[str], ratio: Ratio) -> Iterator[list[str]]:
    """A table of how the aims are met, for those that something is known of."""
    for a in of(fstype):
        baselines = [b for b in a.baselines if b in names]
        if a.target not in names or not baselines:
            continue
        found: dict[str, float] = {}
        for row in a.rows:
            all_of = [ratio(row, a.target, b) for b in baselines] if row in measured else []
            known = [r for r in all_of if r is not None]
            if known:
                found[row] = min(known)
        if not found:
            continue
        mean = math.exp(statistics.fmean(map(math.log, found.values())))
        worst = min(found, key=found.__getitem__)
        floor = min(FLOOR, a.least)
        met = "yes" if mean >= a.least and found[worst] >= floor else "no"
        yield [a.what, " or ".join(baselines), f"{a.least:g}", f"{mean:.2f}", f"{found[worst]:.2f} {worst}",
               f"{len(found)} of {len(a.rows)}", met]
