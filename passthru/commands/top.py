"""`passthru top`: what mounts do just now, again and again."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import monitor, rates
from ..errors import UsageError
from ._text import Parser, emit

Looks = dict[int, rates.Look]
MOST_OPERATIONS = 30


def _positive(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 86400:
        raise ValueError
    return value


def main(argv: Sequence[str]) -> int:
    p = Parser(argv[0], "Show rates, latencies and load: of one mount, or of all. q or Ctrl-C ends it.")
    p.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    p.add_argument("-i", "--interval", metavar="SECONDS", default="1", help="time between two looks; default: 1")
    p.add_argument("-n", "--count", metavar="N", help="end after N intervals")
    p.add_argument("-b", "--batch", action="store_true", help="plain text, one after the other, as without a terminal")
    o = p.parse_args(list(argv[1:]))
    try:
        interval = _positive(o.interval)
        count = None if o.count is None else int(o.count)
        if count is not None and count < 1:
            raise ValueError
    except ValueError:
        raise UsageError(f"{argv[0]}: --interval takes 0.05 to 86400 seconds, --count a number from 1 on") from None
    one = monitor.find(o.mountpoint) if o.mountpoint is not None else None
    if one is not None:
        one.live()
    screen = not o.batch and sys.stdout.isatty()
    if screen:
        try:
            from rich.live import Live
        except ImportError:
            sys.stderr.write("passthru: no screen without the Python library rich (Debian: python3-rich): plain text "
                             "follows\n")
            screen = False
    frames = _frames(one, interval, count, _keys() if screen else None)
    with contextlib.suppress(KeyboardInterrupt):
        if screen:
            with _raw(), Live(_rich(None), screen=True, auto_refresh=False) as live:
                for frame in frames:
                    live.update(_rich(frame), refresh=True)
        else:
            for n, frame in enumerate(frames):
                if not emit([*([""] if n else []), *_plain(frame)]):
                    return 0
    if one is not None and monitor.refresh(one.live()) is None:
        sys.stderr.write(f"passthru: {monitor.shown(one.mountpoint)}: the mount has ended\n")
    return 0


def _look(one: monitor.Mount | None) -> Looks:
    """By the daemon's pid."""
    if one is not None:
        page = monitor.refresh(one.live())
        return {page.pid: rates.look(one, page)} if page is not None else {}
    return {m.page.pid: rates.look(m, m.page) for m in monitor.find_all()
            if m.page is not None and m.state != monitor.DEAD}


def _frames(
    one: monitor.Mount | None, interval: float, count: int | None, quit_: Callable[[float], bool] | None
) -> Iterator[rates.Frame | list[list[str]]]:
    """A frame for each interval, until `count`, the end of the one mount, or quit_(seconds to wait) says so."""
    old, shown = _look(one), 0
    next_at = time.monotonic() + interval
    while count is None or shown < count:
        wait = max(0.0, next_at - time.monotonic())
        next_at = max(next_at + interval, time.monotonic())
        if quit_ is None:
            time.sleep(wait)
        elif quit_(wait):
            return
        new = _look(one)
        if one is not None:
            if not new:
                return
            pid, at = next(iter(new.items()))
            yield rates.frame(old.get(pid, at), at)
        else:
            yield [rates.overview(old[pid], at) for pid, at in new.items() if pid in old]
        old, shown = new, shown + 1


def _plain(frame: rates.Frame | list[list[str]]) -> list[str]:
    if isinstance(frame, list):
        return monitor.table(rates.OVERVIEW, frame) if frame else ["no mounts"]
    return [frame.title, *(f"  {fact}" for fact in frame.facts), *monitor.table(rates.OPERATIONS, frame.operations),
            *monitor.table(rates.THREADS, frame.threads)]


def _rich(frame: rates.Frame | list[list[str]] | None) -> Any:
    """The same for rich's screen."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(head: list[str], rows: list[list[str]]) -> Table:
        t = Table(box=None, header_style="bold", pad_edge=False)
        for n, name in enumerate(head):
            # In a narrow terminal the first column gives way: figures that are cut off would be others.
            t.add_column(name, justify="left" if n == 0 else "right", no_wrap=n > 0, overflow="fold", min_width=8)
        bad = [n for n, name in enumerate(head) if name.startswith("ERRORS")]
        for row in rows:
            idle = len(row) > 1 and row[1] == "0"
            t.add_row(*(Text(c, style="bold red" if n in bad and c not in ("0", "-") else "")
                        for n, c in enumerate(row)), style="dim" if idle else "")
        return t

    end = Text("q: quit", style="dim")
    if frame is None:
        return Group(Text("passthru top: looking ..."), end)
    if isinstance(frame, list):
        return Group(Text("passthru mounts", style="bold"), table(rates.OVERVIEW, frame), end)
    room = shutil.get_terminal_size().lines - len(frame.facts) - len(frame.threads) - 6
    return Group(
        Text(frame.title, style="bold"), *(Text(f) for f in frame.facts), Text(),
        table(rates.THREADS, frame.threads), Text(),
        table(rates.OPERATIONS, frame.operations[:max(3, min(MOST_OPERATIONS, room))]), end)


def _keys() -> Callable[[float], bool]:
    """Waits some seconds for a key; True: it was q."""
    fd = sys.stdin.fileno() if sys.stdin.isatty() else -1

    def quit_(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while fd >= 0 and select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            key = os.read(fd, 1)
            if key in (b"q", b"Q", b""):
                return True
        if fd < 0:
            time.sleep(seconds)
        return False

    return quit_


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Keys come at once and are not shown; Ctrl-C goes on to interrupt."""
    if not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
