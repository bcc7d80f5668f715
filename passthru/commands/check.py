"""`passthru check`: what this machine can do, and whether a mount would work."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import replace

from .. import options as opts
from .. import probe
from ..errors import UsageError
from ._text import Parser, emit

MARKS = {"ok": "+", "missing": "-", "note": " "}


def main(argv: Sequence[str]) -> int:
    """The exit code that the mount would end with. Raises UsageError."""
    p = Parser(argv[0], "Show what this machine can do and, if SOURCE and MOUNTPOINT are given, how that mount would "
                        "come out; nothing is mounted. The exit code is the one that the mount would end with.")
    p.usage = "passthru check [--json] [options of a mount] [SOURCE MOUNTPOINT]"
    p.add_argument("source", metavar="SOURCE", nargs="?")
    p.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    p.add_argument("--json", action="store_true", help="as a JSON object")
    opts.declare(p)
    words = list(argv[1:])
    before = words[:words.index("--")] if "--" in words else words
    if "-h" in before or "--help" in before:
        p.parse_args(["--help"])
    try:
        # The mount's own command line, read by what reads the mount's.
        o = opts.parse([w for n, w in enumerate(words) if w != "--json" or n >= len(before)], ends=False)
    except opts.MissingError:
        raise UsageError("check: SOURCE without MOUNTPOINT") from None
    if o.source or o.mountpoint:
        o = replace(o, source=os.path.abspath(o.source), mountpoint=os.path.abspath(o.mountpoint))
    checks, outcome = probe.check(o)
    as_json = "--json" in before
    emit([json.dumps(probe.as_json(checks, outcome), indent=2)] if as_json else table(checks, outcome))
    return outcome.exit_code


def table(checks: Sequence[probe.Check], outcome: probe.Outcome) -> list[str]:
    """A line for each, and one for what is to be done about it."""
    lines = []
    for c in checks:
        lines.append(f"{MARKS[c.state]} {c.name:20} {c.value}")
        if c.cure:
            lines += textwrap.wrap(c.cure, 96, initial_indent=" " * 23 + "> ", subsequent_indent=" " * 25,
                                   break_long_words=False, break_on_hyphens=False)
    word = "works" if outcome.exit_code == 0 else f"fails with exit code {outcome.exit_code}"
    return [*lines, "", f"{word}: {outcome.text}"]
