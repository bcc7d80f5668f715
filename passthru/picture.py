"""A mount's operations and their latencies as an SVG picture."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from .monitor import PASSTHROUGH_NOTE, seconds_text, shown

MOST = 20  # operations shown
ROW, TOP, NAMES, COUNTS, TIMES, GAP = 22, 74, 130, 260, 420, 90
INK, GREY, BAR, BAD = "#222", "#888", "#4a7ab5", "#c0392b"


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = INK, size: int = 12) -> str:
    text = "".join(c if c.isprintable() else "\ufffd" for c in text.encode("utf-8", "replace").decode())
    style = f'text-anchor="{anchor}" fill="{color}" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _rect(x: float, y: float, w: float, h: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0.5):.1f}" height="{h:.1f}" fill="{color}"/>'


def _line(x: float, y: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"/>'


def svg(s: dict[str, Any]) -> str:
    """Of monitor.status(): a row for each operation, with its count, errors, and p50 to p99.9 on a log scale."""
    rows = [(name, o) for name, o in s["operations"].items()][:MOST]
    times = [o[q] for _, o in rows for q in ("p50", "p999") if o[q]]
    low = math.floor(math.log10(min(times, default=1e-6)))
    high = max(math.ceil(math.log10(max(times, default=1e-3))), low + 1)
    most = max((o["count"] for _, o in rows), default=1)
    width = NAMES + COUNTS + GAP + TIMES + 30
    bottom = TOP + ROW * max(1, len(rows))
    height = bottom + 44
    left = NAMES + COUNTS + GAP

    def at(seconds: float) -> float:
        return left + TIMES * (math.log10(seconds) - low) / (high - low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif">', _rect(0, 0, width, height, "white"),
        _text(10, 22, f"{shown(s['source'])} on {shown(s['mountpoint'])}", size=15),
        _text(10, 40, f"{s['transport']} transport" + (f", {s['dialect']} dialect" if s["dialect"] else "")
              + f", up {s['uptime']} s", color=GREY),
        _text(NAMES, TOP - 10, "requests (red: answered with an error)", color=GREY),
        _text(left, TOP - 10, "latency in the daemon: p50 to p99, tick: p99.9", color=GREY)]
    for power in range(low, high + 1):
        x = at(10.0 ** power)
        out += [_line(x, TOP, x, bottom, "#ddd"), _text(x, bottom + 16, seconds_text(10.0 ** power), "middle", GREY)]
    for n, (name, o) in enumerate(rows):
        y = TOP + n * ROW
        length = (COUNTS - 20) * o["count"] / most
        out += [_text(NAMES - 8, y + 15, name, "end"), _rect(NAMES, y + 4, length, ROW - 8, BAR)]
        if o["errors"]:
            out.append(_rect(NAMES, y + 4, length * o["errors"] / o["count"], ROW - 8, BAD))
        out.append(_text(NAMES + length + 5, y + 15, str(o["count"]), color=GREY))
        if o["p50"]:
            out += [_rect(at(o["p50"]), y + 6, at(o["p99"]) - at(o["p50"]), ROW - 12, BAR),
                    _line(at(o["p50"]), y + 3, at(o["p50"]), y + ROW - 3, INK, 2),
                    _line(at(o["p99"]), y + ROW / 2, at(o["p999"]), y + ROW / 2, GREY),
                    _line(at(o["p999"]), y + 5, at(o["p999"]), y + ROW - 5, GREY, 1.5)]
    if not rows:
        out.append(_text(NAMES, TOP + 15, "no requests yet", color=GREY))
    if s["passthrough"]:
        out.append(_text(10, height - 8, PASSTHROUGH_NOTE, color=GREY, size=11))
    return "\n".join([*out, "</svg>"]) + "\n"
