"""`passthru help`: what --help says, of the command or of a subcommand."""

from __future__ import annotations

from collections.abc import Sequence

from .. import options
from ..errors import UsageError
from . import COMMANDS, run, summary
from ._text import Parser, emit


def main(argv: Sequence[str]) -> int:
    p = Parser(argv[0], "Show the options of a mount and the subcommands, or what a subcommand takes.")
    p.add_argument("command", metavar="SUBCOMMAND", nargs="?")
    o = p.parse_args(list(argv[1:]))
    if o.command is None:
        emit([options.parser(before=summary()).format_help().rstrip("\n")])
        return 0
    if o.command not in COMMANDS:
        raise UsageError(f"help: no subcommand {o.command!r}; there are {', '.join(COMMANDS)}")
    return run(o.command, ["--help"])
