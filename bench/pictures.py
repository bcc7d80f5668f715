"""Pictures of results as SVG, without a library: a row for each label, and in it dots with spread, or a stacked bar."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

COLORS = ("#1b6ca8", "#e07b39", "#4c9f70", "#b33951", "#7d5ba6", "#8a8d91", "#c9a227", "#3aa6b9", "#d46a9f", "#5d6d7e")
INK, GREY, LINE = "#222", "#777", "#ddd"
LABELS, PLOT, RIGHT, TOP = 150, 620, 90, 74
SQUEEZE = 14  # pixels for each target in a row


@dataclass(frozen=True)
class Point:
    """A value with its spread."""

    value: float
    least: float
    most: float


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = INK, size: int = 12) -> str:
    style = f'text-anchor="{anchor}" fill="{color}" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _rect(x: float, y: float, w: float, h: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0.3):.1f}" height="{h:.1f}" fill="{color}"/>'


def _line(x: float, y: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"/>'


def _legend(names: list[str]) -> list[str]:
    out, x = [], float(LABELS)
    for n, name in enumerate(names):
        out += [_rect(x, 46, 10, 10, COLORS[n % len(COLORS)]), _text(x + 14, 55, name, color=GREY)]
        x += 24 + 7 * len(name)
    return out


def _page(title: str, names: list[str], height: float, body: list[str]) -> str:
    width = LABELS + PLOT + RIGHT
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" '
        f'viewBox="0 0 {width} {height:.0f}" font-family="sans-serif">', _rect(0, 0, width, height, "white"),
        _text(10, 24, title, size=16), *_legend(names), *body, "</svg>"]) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """Of a logarithmic scale: 1, 2, 5 of each power; only the powers if there are many."""
    steps = (1, 2, 5) if high / low < 300 else (1,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    return [t for t in (s * 10.0 ** p for p in powers for s in steps) if low <= t <= high]


def dots(title: str, axis: str, names: list[str], rows: dict[str, dict[str, Point]],
         shown: Callable[[float], str] = "{:g}".format, rule: float | None = None) -> str:
    """rows[label][name]: a dot with its spread on a logarithmic scale; rule: where a line is drawn."""
    found = [p for row in rows.values() for p in row.values()]
    low = min([p.least for p in found] + ([rule] if rule else []), default=1.0) / 1.1
    high = max([p.most for p in found] + ([rule] if rule else []), default=1.0) * 1.1

    def at(v: float) -> float:
        return LABELS + PLOT * math.log(v / low) / math.log(high / low)

    tall = max(20, SQUEEZE * len(names) // 2 + 8)
    bottom = TOP + tall * len(rows)
    out = []
    for t in _ticks(low, high):
        out += [_line(at(t), TOP, at(t), bottom, LINE), _text(at(t), bottom + 15, shown(t), "middle", GREY, 11)]
    if rule:
        out.append(_line(at(rule), TOP - 4, at(rule), bottom, INK, 1.5))
    for n, (label, row) in enumerate(rows.items()):
        y = TOP + n * tall
        out += [_line(10, y, LABELS + PLOT, y, LINE), _text(LABELS - 8, y + tall / 2 + 4, label, "end")]
        for k, name in enumerate(names):
            if name in row:
                p, color = row[name], COLORS[k % len(COLORS)]
                mid = y + 4 + (k + 0.5) * (tall - 8) / len(names)
                out += [_line(at(p.least), mid, at(p.most), mid, color, 1.5),
                        f'<circle cx="{at(p.value):.1f}" cy="{mid:.1f}" r="3.5" fill="{color}"/>']
    out.append(_text(LABELS + PLOT / 2, bottom + 34, axis, "middle", GREY))
    return _page(title, names, bottom + 46, out)


def stacks(title: str, axis: str, names: list[str], rows: dict[str, dict[str, float]]) -> str:
    """rows[label][name]: a bar of that length, one behind the other; the sum stands behind them."""
    most = max((sum(row.values()) for row in rows.values()), default=1.0) or 1.0
    tall, bottom, out = 22, TOP + 22 * len(rows), []
    for n, (label, row) in enumerate(rows.items()):
        x, y = float(LABELS), TOP + n * tall
        out.append(_text(LABELS - 8, y + 15, label, "end"))
        for k, name in enumerate(names):
            if row.get(name):
                width = PLOT * row[name] / most
                out.append(_rect(x, y + 4, width, tall - 8, COLORS[k % len(COLORS)]))
                x += width
        out.append(_text(x + 5, y + 15, f"{sum(row.values()):.3g}", color=GREY))
    out.append(_text(LABELS + PLOT / 2, bottom + 20, axis, "middle", GREY))
    return _page(title, names, bottom + 32, out)
