"""`passthru status`: what serves a mount, and how it is doing."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from .. import monitor
from ..options import value_text
from ._text import Parser, emit


def main(argv: Sequence[str]) -> int:
    p = Parser(argv[0], "Show what serves a mount, what it has in use, and its options.")
    p.add_argument("mountpoint", metavar="MOUNTPOINT")
    p.add_argument("--json", action="store_true", help="as a JSON object")
    o = p.parse_args(list(argv[1:]))
    s = monitor.status(monitor.find(o.mountpoint))
    emit([json.dumps(s, indent=2)] if o.json else text(s))
    return 0


def text(s: dict[str, Any]) -> list[str]:
    size, total = monitor.size_text, s["totals"]
    ring = s["transport"] == "ring"
    state = s["state"] + ("" if s["identity"] else f", acts as {s['user']} for everybody")
    where = f"{s['queues']} queues x {s['depth']} entries" if ring else f"{s['readers']} threads"
    shared = ring and s["dialect"] != "per-entry"
    buffers = s["buffers"]
    rows = [
        ("state", f"{state}; daemon {s['pid']} of {s['user']}, up {monitor.uptime_text(s['uptime'])}"),
        ("served by", f"{monitor.served_by(s)}, {where}" + (f" ({s['why']})" if s["why"] else "")),
        ("protocol", f"FUSE 7.{s['fuse']['minor']}, requests of up to {size(s['fuse']['max_write'])}, "
         f"device {s['fuse']['device']}"),
        ("confined", s["sandbox"] or "?"),
        ("cached", s["cached"] + (f"; {total['watch_events']} events, {total['watch_own']} of them our own, "
         f"{total['watch_unknown']} of what nobody knows, {total['watch_notified']} notifications"
                                  if total["watch_events"] else "")),
        *([("inotify", f"{total['repeat_events']} changes beside the mount to be told, {total['repeat_told']} told, "
            f"{total['repeat_dropped']} not")] if total["repeat_events"] else []),
        ("in use", f"{s['inodes']} inodes, {s['handles']} handles, {s['backing_files']} backing files"),
        ("in flight", f"{s['in_flight']} requests; {buffers['in_use']} payload buffers of {size(buffers['size'])}"
         + (f", {buffers['per_queue']} per queue" if ring else "")
         + (", pinned" if shared and buffers["pinned"] else "")),
        ("requests", f"{total['ring_requests']} by the ring, {total['dev_requests']} by /dev/fuse, "
         f"{total['errors']} answered with an error"),
        ("data", f"{size(total['read_bytes'])} read, {size(total['write_bytes'])} written by the daemon"),
        ("backing I/O", f"{total['io_inline']} at once, {total['io_ring']} by the ring ({total['io_fixed']} with "
         f"registered memory), {total['io_pool']} by pool threads, {total['io_zero_copy']} zero-copy"),
    ]
    if t := s["takeover"]:
        rows.append(("supervised", f"by {s['pid']}, daemon {t['daemon']} serves; {t['count']} takeovers" + (
            f", the last after {t['reason']}, {t['pause_ms']:g} ms" if t["count"] else "")))
    if s["process"]:
        p = s["process"]
        rows.append(("process", f"{size(p['rss'])} resident, {size(p['pinned'])} pinned, {p.get('fds', '?')} fds, "
                     f"{p['threads']} threads, CPU {p['cpu_user']:.1f} s user {p['cpu_system']:.1f} s system"))
    if total["watch_overflows"] or total["watch_stuck"]:
        rows.append(("late", f"{total['watch_overflows']} times all names forgotten, "
                     f"{total['watch_stuck']} directories whose lock somebody held"))
    if total["entries_lost"] or total["refused"]:
        rows.append(("trouble", f"{total['entries_lost']} ring entries lost, {total['refused']} requests refused"))
    lines = [f"{monitor.shown(s['source'])} on {monitor.shown(s['mountpoint'])}"]
    lines += [f"  {name:12} {what}" for name, what in rows]
    words = " ".join(f"{k}={monitor.shown(value_text(v))}" for k, v in s["options"].items())
    lines += textwrap.wrap(words, 118, initial_indent=f"  {'options':12} ", subsequent_indent=" " * 15,
                           break_long_words=False, break_on_hyphens=False)
    if s["passthrough"]:
        lines.append(f"  {'note':12} {monitor.PASSTHROUGH_NOTE}")
    return [*lines, "", *thread_lines(s), "", *operation_lines(s["operations"])]


def thread_lines(s: dict[str, Any]) -> list[str]:
    rows = []
    for t in s["threads"]:
        kind = f"queue {t['queues']} on CPU {t['cpu']}" if t["kind"] == "queue" else f"{t['kind']} x {t['threads']}"
        asked = t["ring_requests"] if t["kind"] == "queue" else t["dev_requests"] if t["kind"] == "dev" else None
        rows.append([kind, "-" if asked is None else str(asked), str(t.get("in_flight", "-")), str(t["errors"]),
                     str(t.get("buffers_in_use", "-")), str(t["enters"]), str(t["sleeps"])])
    return monitor.table(["THREAD", "REQUESTS", "IN FLIGHT", "ERRORS", "BUFFERS", "ENTERS", "SLEEPS"], rows)


def operation_lines(operations: dict[str, dict[str, Any]]) -> list[str]:
    rows = [[name, str(o["count"]), str(o["errors"]), *(monitor.seconds_text(o[q]) for q in ("p50", "p99", "p999"))]
            for name, o in operations.items()]
    return monitor.table(["OPERATION", "COUNT", "ERRORS", "P50", "P99", "P99.9"], rows)
