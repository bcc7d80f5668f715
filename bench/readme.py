"""Draws docs/speed.svg, the README's picture, from the first table of bench/RESULTS.md.

`python bench/readme.py` writes it; with --check it only says whether it is current. Like is compared with like: a
mount as it comes with passthrough_hp's as that comes (both with kernel passthrough), and both over io_uring without it.
Text is text, in the reader's colours.
"""

from __future__ import annotations

import argparse
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PICTURE = ROOT / "bench" / "RESULTS.md", ROOT / "docs" / "speed.svg"
# Rows of the table in plain words; among them the one that we do worst, which check() sees to.
ROWS = {
    "read-4k-rand-direct-j1": "small random reads, one program",
    "read-4k-rand-direct-qd16": "the same, 16 at a time",
    "write-1m-seq-buffered-j1": "writing a large file",
    "stat-j1": "looking at a file (stat)",
    "open-j1": "opening and closing a file",
    "create-j1": "making and removing a file",
    "readdir-j1": "listing one large directory",
    "list-j1": "ls -l of a directory",
    "untar": "unpacking a tar",
    "git-status": "git status",
}
PAIRS = (("default", "hp", "with kernel passthrough"), ("ring", "hp-ring", "over io_uring, without it"))
LEFT, WIDTH, ROW, TOP, BAR = 230, 420, 40, 74, 13
STYLE = """
text { font: 13px sans-serif; fill: #1f2328 } .grey { fill: #656d76 } .line { stroke: #656d76 }
.a { fill: #2f6fb3 } .b { fill: #c9772b } .less { fill: #c0392b; font-weight: bold }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .grey { fill: #9198a1 } .line { stroke: #9198a1 } .a { fill: #5a9be0 } .b { fill: #e39a52 }
.less { fill: #ff7b72 } }
"""


def table() -> dict[str, dict[str, float]]:
    """{row: {target: ratio to hp-ring, of pairs measured side by side}} of the first such table."""
    text = RESULTS.read_text().partition("ratio to hp-ring: median (least..most)\n\n")[2].partition("\n\n")[0]
    head, _, *lines = ([c.strip() for c in line.strip("|").split("|")] for line in text.splitlines())
    return {name: {target: float(cell.split()[0]) for target, cell in zip(head[1:], cells, strict=True) if cell != "-"}
            for name, *cells in lines if name != "geometric mean"}


def ratios(of: dict[str, float]) -> list[float | None]:
    """For each of PAIRS ours as a multiple of theirs."""
    of = {**of, "hp-ring": 1.0}
    return [of[ours] / of[theirs] if ours in of and theirs in of else None for ours, theirs, _ in PAIRS]


def worst(rows: dict[str, dict[str, float]]) -> str:
    """The row in which we do worst of all."""
    return min(rows, key=lambda name: min((r for r in ratios(rows[name]) if r is not None), default=9e9))


def svg(rows: dict[str, dict[str, float]]) -> str:
    most = max(r for name in ROWS for r in ratios(rows[name]) if r is not None)
    scale = WIDTH / most
    height = TOP + ROW * len(ROWS) + 30
    out = ['<svg xmlns="http://www.w3.org/2000/svg" role="img" '
           f'width="720" height="{height}" viewBox="0 0 720 {height}">',
           "<title>Speed of passthru as a multiple of passthrough_hp's</title>", f"<style>{STYLE}</style>",
           '<text x="10" y="20">How many times as fast as libfuse\'s passthrough_hp, like with like</text>']
    for n, (_, _, text) in enumerate(PAIRS):
        out += [f'<rect class="{"ab"[n]}" x="{10 + n * 230}" y="34" width="{BAR}" height="{BAR}"/>',
                f'<text class="grey" x="{30 + n * 230}" y="45">both {escape(text)}</text>']
    bottom = TOP + ROW * len(ROWS)
    out += [f'<line class="line" x1="{LEFT + scale:.1f}" y1="{TOP - 8}" x2="{LEFT + scale:.1f}" y2="{bottom}" '
            'stroke-dasharray="3 3"/>',
            f'<text class="grey" x="{LEFT + scale:.1f}" y="{bottom + 16}" text-anchor="middle">1: as fast</text>']
    for n, (name, text) in enumerate(ROWS.items()):
        y = TOP + n * ROW
        out.append(f'<text x="{LEFT - 10}" y="{y + 20}" text-anchor="end">{escape(text)}</text>')
        for m, ratio in enumerate(ratios(rows[name])):
            at = y + m * (BAR + 2)
            if ratio is None:
                out.append(f'<text class="grey" x="{LEFT + 4}" y="{at + 11}">the kernel does it in both</text>')
                continue
            out += [f'<rect class="{"ab"[m]}" x="{LEFT}" y="{at}" width="{ratio * scale:.1f}" height="{BAR}"/>',
                    f'<text class="{"less" if ratio < 0.995 else "grey"}" x="{LEFT + ratio * scale + 6:.1f}" '
                    f'y="{at + 11}">{ratio:.2f}</text>']
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--check", action="store_true", help="only say whether it is current")
    given = p.parse_args()
    rows = table()
    assert worst(rows) in ROWS, f"{worst(rows)}, in which we do worst, is not in the picture"
    if not given.check:
        PICTURE.write_text(svg(rows))
        return 0
    if PICTURE.read_text() != svg(rows):
        print(f"{PICTURE}: not current; run: python bench/readme.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
