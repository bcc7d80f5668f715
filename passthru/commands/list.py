"""`passthru list`: the mounts of this user, or of all users for root."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .. import monitor, stats
from ._text import Parser, emit


def main(argv: Sequence[str]) -> int:
    p = Parser(argv[0], "List mounts: this user's, or all users' for root.")
    p.add_argument("--json", action="store_true", help="as a JSON array")
    o = p.parse_args(list(argv[1:]))
    found = [monitor.summary(m) for m in monitor.find_all()]
    emit([json.dumps(found, indent=2)] if o.json else text(found, stats.pages(everybody=True)[1]))
    return 0


def text(found: list[dict[str, Any]], strange: list[str]) -> list[str]:
    rows = []
    for s in found:
        up = monitor.uptime_text(s["uptime"]) if "uptime" in s else "-"
        how = monitor.served_by(s) if "transport" in s and s["state"] != monitor.DEAD else "-"
        state = "" if s["state"] == monitor.MOUNTED else f" ({s['state']})"
        rows.append([monitor.shown(s["mountpoint"]) + state, monitor.shown(s["source"]), how, s["user"],
                     str(s.get("pid", "-")), up])
    lines = monitor.table(["MOUNTPOINT", "SOURCE", "SERVED BY", "USER", "PID", "UP"], rows, left=4) if rows else []
    return lines + [f"not shown: {monitor.shown(s)}" for s in strange]
