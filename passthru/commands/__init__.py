"""The command's subcommands. Each is a module here: main(argv) with its own name first returns the exit code."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

# name: (module, what it does). A source directory of such a name is given as ./NAME.
COMMANDS: dict[str, tuple[str, str]] = {
    "list": ("list", "list mounts"),
    "status": ("status", "show what serves a mount, and how it is doing"),
    "set": ("set", "change options of a live mount"),
    "stats": ("stats", "show the counters of a mount: text, JSON, Prometheus, a plot"),
    "top": ("top", "show what mounts do just now: rates, latencies, load"),
    "check": ("check", "show what this machine can do, and whether a mount would work"),
    "help": ("help", "show this, or what a subcommand takes: passthru help SUBCOMMAND"),
    "install-helper": ("install_helper", "install mount(8)'s helpers and a systemd unit template"),
}


def run(name: str, argv: Sequence[str]) -> int:
    """Run a subcommand with its arguments; the exit code. Raises PassthruError."""
    module = importlib.import_module(f".{COMMANDS[name][0]}", __name__)
    code: int = module.main([name, *argv])
    return code


def summary() -> str:
    """The subcommands, a line each, for --help."""
    return "subcommands:\n" + "".join(f"  {name:16}{what}\n" for name, (_, what) in COMMANDS.items())
