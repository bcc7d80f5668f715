"""What the subcommands have in common: their arguments' parser, and their output."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from ..errors import PassthruError, UsageError, reason
from ..stdio import quiet, say


class Parser(argparse.ArgumentParser):
    """A subcommand's arguments; what is wrong with them is a UsageError."""

    def __init__(self, name: str, description: str):
        super().__init__(prog=f"passthru {name}", description=description, allow_abbrev=False)

    def _print_message(self, message: str, file: Any = None) -> None:  # the original hides what went wrong
        say(message, file or sys.stderr)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.partition(' ')[2]}: {message}")


def emit(lines: Iterable[str]) -> bool:
    """Lines to stdout. False: whoever read them does so no more."""
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
        return True
    except BrokenPipeError:
        quiet([sys.stdout.fileno()])
        return False
    except OSError as e:
        quiet([sys.stdout.fileno()])  # else what is left of it would fail again
        raise PassthruError(f"standard output: {reason(e)}") from None
