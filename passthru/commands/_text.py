"""What the subcommands have in common: their arguments' parser, and their output."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import NoReturn

from ..errors import UsageError
from ..stdio import quiet


class Parser(argparse.ArgumentParser):
    """A subcommand's arguments; what is wrong with them is a UsageError."""

    def __init__(self, name: str, description: str):
        super().__init__(prog=f"passthru {name}", description=description, allow_abbrev=False)

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
