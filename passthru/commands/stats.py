"""`passthru stats`: a mount's counters, for people and programs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import exposition, monitor, picture
from ..errors import PassthruError, UsageError, reason
from ..stats import BOUNDS
from ._text import Parser, emit


def main(argv: Sequence[str]) -> int:
    p = Parser(argv[0], "Show the counters of a mount since its start.")
    p.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?", help="with --json or --prometheus: default all")
    form = p.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON, with the latency histograms")
    form.add_argument("--prometheus", action="store_true", help="in Prometheus's text format")
    form.add_argument("--plot", metavar="FILE.svg", help="draw operations and their latencies; '-': to stdout")
    o = p.parse_args(list(argv[1:]))
    if o.plot and o.plot != "-" and Path(o.plot).suffix.lower() not in (".svg", ""):
        raise UsageError(f"{argv[0]}: --plot draws SVG: {Path(o.plot).with_suffix('.svg')}, say")
    if o.mountpoint is None:
        if not (o.json or o.prometheus):
            raise UsageError(f"{argv[0]}: which MOUNTPOINT? 'passthru list' shows them")
        found = [m for m in monitor.find_all() if m.page is not None and m.state != monitor.DEAD]
    else:
        found = [monitor.find(o.mountpoint)]
    if o.json:
        said = [counters(m) for m in found]
        emit([json.dumps(said if o.mountpoint is None else said[0], indent=1)])
    elif o.prometheus:
        emit(exposition.text([(m, m.live()) for m in found]))
    elif o.plot:
        save(o.plot, picture.svg(monitor.status(found[0])))
    else:
        emit(plain(monitor.status(found[0])))
    return 0


def counters(m: monitor.Mount) -> dict[str, Any]:
    """status(), and the histograms: {opcode: [[lower bound in seconds, count], ...]}, empty buckets left out."""
    page = m.live()
    histograms = {name: [[BOUNDS[n].item() * 1e-9, int(c)] for n, c in enumerate(latency.buckets) if c]
                  for name, latency in page.latencies().items()}
    return {"time": time.time(), **monitor.status(m), "latency": histograms}


def plain(s: dict[str, Any]) -> Iterator[str]:
    """One `name value` in a line."""
    yield from (f"{name} {s[name]}" for name in ("inodes", "handles", "backing_files", "in_flight"))
    yield f"buffers_in_use {s['buffers']['in_use']}"
    yield from (f"{name} {value}" for name, value in s["totals"].items())
    for name, o in s["operations"].items():
        yield f"{name}.count {o['count']}"
        yield f"{name}.errors {o['errors']}"
        yield from (f"{name}.{q} {o[q]:.9f}" for q in ("seconds", "p50", "p99", "p999") if o[q] is not None)
    if s["passthrough"]:
        yield f"# {monitor.PASSTHROUGH_NOTE}"


def save(where: str, text: str) -> None:
    """Write a file as a whole, or not at all."""
    if where == "-":
        emit([text.rstrip("\n")])
        return
    path = Path(where)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            part.write_text(text)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as e:
        raise PassthruError(f"--plot {where}: {reason(e)}") from None
