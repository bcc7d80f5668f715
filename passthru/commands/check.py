"""`passthru check`: what this machine can do, and whether a mount would work."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence

from .. import options as opts
from .. import probe
from ..errors import UsageError
from ._text import Parser, emit

MARKS = {"ok": "+", "missing": "-", "note": " "}


def main(argv: Sequence[str]) -> int:
    """The exit code that the mount would end with. Raises UsageError."""
    p = Parser(argv[0], "Show what this machine can do and, if SOURCE and MOUNTPOINT are given, how that mount would "
                        "come out; nothing is mounted. The exit code is the one that the mount would end with.")
    p.add_argument("source", metavar="SOURCE", nargs="?")
    p.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    p.add_argument(
        "-o", metavar="OPTIONS", action="append", default=[], dest="words", help="mount options, as for a mount")
    p.add_argument("--json", action="store_true", help="as a JSON object")
    given = p.parse_args(list(argv[1:]))
    if given.source is not None and not given.mountpoint:
        raise UsageError("check: SOURCE without MOUNTPOINT")
    ends = [os.path.abspath(given.source), os.path.abspath(given.mountpoint)] if given.source is not None else ["", ""]
    words = [w for text in given.words for w in ("-o", text)]
    checks, outcome = probe.check(opts.parse([*words, "--", *ends]))
    emit([json.dumps(probe.as_json(checks, outcome), indent=2)] if given.json else table(checks, outcome))
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
