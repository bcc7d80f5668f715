"""`passthru set`: change options of a live mount."""

from __future__ import annotations

from collections.abc import Sequence

from .. import control, monitor
from ..options import live_options, value_text
from ._text import Parser, emit


def main(argv: Sequence[str]) -> int:
    names = ", ".join(live_options())
    p = Parser(argv[0], "Change options of a live mount: all that are given, or none if one of them is wrong. "
               "Without any, show those that can be changed.")
    p.add_argument("mountpoint", metavar="MOUNTPOINT")
    p.add_argument("words", metavar="OPTION=VALUE", nargs="*", help=f"one of {names}")
    o = p.parse_args(list(argv[1:]))
    page = monitor.find(o.mountpoint).live()
    if o.words:
        control.ask_set(page, o.words)
    else:
        emit(f"{name}={monitor.shown(value_text(page.settings[field]))}"
             for name, field in live_options().items() if field in page.settings)
    return 0
