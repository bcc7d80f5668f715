"""Prometheus's text exposition format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import monitor
from ._version import VERSION
from .stats import BOUNDS, Snapshot

# Upper bounds of the histogram's buckets: every power of two from 1 us to 17 s, where ours have a bound too.
LE = [int(b) for b in BOUNDS if b >= 1024 and b & (b - 1) == 0 and b <= 1 << 34]
_LE_AT = [int(np.searchsorted(BOUNDS, b)) for b in LE]

COUNTERS = {
    "read_bytes": ("read_bytes", "Bytes read by the daemon; with kernel passthrough most are not read by it."),
    "write_bytes": ("written_bytes", "Bytes written by the daemon; with kernel passthrough most are not."),
    "lookups": ("lookups", "Lookups given to the kernel."),
    "forgets": ("forgets", "Lookups that the kernel has given back."),
    "opens": ("opens", "Files and directories opened."),
    "opens_passthrough": ("passthrough_opens", "Opens whose READ and WRITE the kernel does itself."),
    "releases": ("releases", "Files and directories closed."),
    "enters": ("uring_enters", "Calls of io_uring_enter."),
    "sleeps": ("uring_sleeps", "Calls of io_uring_enter that waited."),
    "entries_lost": ("ring_entries_lost", "Ring entries that ended with an unexpected error."),
    "refused": ("refused_requests", "Requests that contradicted themselves."),
    "watch_events": ("source_events", "Changes in the source that were told."),
    "watch_own": ("source_events_own", "Of these, those made through the mount."),
    "watch_unknown": ("source_events_unknown", "Of these, those of what the kernel does not know."),
    "watch_notified": ("notifications", "Notifications of changes in the source."),
    "watch_overflows": ("source_events_lost", "Times that all names were forgotten, since events had been lost."),
    "watch_stuck": ("notifications_stuck", "Directories whose notifications had to wait for somebody's lock."),
    "repeat_events": ("inotify_changes", "Changes beside the mount that watchers in it may want to hear of."),
    "repeat_told": ("inotify_told", "Of these, those that watchers in the mount have heard of."),
    "repeat_dropped": ("inotify_dropped", "Of these, those that they could not be told of."),
}
GAUGES = {
    "inodes": ("inodes", "Inodes that the kernel knows."),
    "handles": ("handles", "Open files and directories."),
    "backings": ("backing_files", "Backing files registered for kernel passthrough."),
}
WAYS = {"io_inline": "inline", "io_ring": "ring", "io_fixed": "ring_registered", "io_pool": "pool",
        "io_zero_copy": "zero_copy"}


@dataclass
class Family:
    """A metric's lines."""

    kind: str
    help: str
    lines: list[str] = field(default_factory=list)


def escaped(value: str) -> str:
    """A label's value."""
    value = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class _Families:
    def __init__(self) -> None:
        self.found: dict[str, Family] = {}

    def add(self, name: str, kind: str, help: str, labels: dict[str, str], value: float | int, end: str = "") -> None:
        family = self.found.setdefault(f"passthru_{name}", Family(kind, help))
        words = ",".join(f'{k}="{escaped(v)}"' for k, v in labels.items())
        family.lines.append(f"passthru_{name}{end}{{{words}}} {value!r}")

    def text(self) -> Iterator[str]:
        for name, family in self.found.items():
            yield f"# HELP {name} {family.help}"
            yield f"# TYPE {name} {family.kind}"
            yield from family.lines


def text(mounts: Sequence[tuple[monitor.Mount, Snapshot]]) -> Iterator[str]:
    """Lines for all the mounts together, each metric's in one group as the format wants it."""
    families = _Families()
    for m, s in mounts:
        _add(families, m, s)
    return families.text()


def _add(to: _Families, m: monitor.Mount, s: Snapshot) -> None:
    here = {"mountpoint": m.mountpoint}
    facts = {"source": m.source, "pid": str(s.pid), "transport": s.transport, "dialect": s.dialect,
             "zero_copy": str(bool(s.header["zero_copy"])).lower(),
             "passthrough": str(s.passthrough).lower(), "version": VERSION}
    to.add("info", "gauge", "What serves the mount; always 1.", {**here, **facts}, 1)
    to.add("start_time_seconds", "gauge", "When the daemon was started.", here, int(s.header["started"]))
    for counter, (name, help) in COUNTERS.items():
        to.add(f"{name}_total", "counter", help, here, s.total(counter))
    for gauge, (name, help) in GAUGES.items():
        to.add(name, "gauge", help, here, int(s.header[gauge]))
    to.add("requests_in_flight", "gauge", "Requests that are not yet answered.", here, s.in_flight)
    for counter, by in (("ring_requests", "ring"), ("dev_requests", "dev")):
        to.add("transport_requests_total", "counter", "Requests by transport.", {**here, "transport": by},
               s.total(counter))
    for counter, way in WAYS.items():
        to.add("backing_io_total", "counter", "How READ and WRITE were carried out; ring_registered is part of ring.",
               {**here, "way": way}, s.total(counter))
    for name, n in s.ops().items():
        to.add("requests_total", "counter", "Requests by operation; with kernel passthrough few READ and WRITE come.",
               {**here, "operation": name}, n)
    for name, n in s.op_errors().items():
        to.add("request_errors_total", "counter", "Requests answered with an error.", {**here, "operation": name}, n)
    for name, latency in s.latencies().items():
        below = np.concatenate(([0], np.cumsum(latency.buckets)))
        labels = {**here, "operation": name}
        help = "Time from when the daemon saw a request to its answer."
        for bound, at in zip(LE, _LE_AT, strict=True):
            to.add("request_duration_seconds", "histogram", help, {**labels, "le": f"{bound * 1e-9:.9f}"},
                   int(below[at]), "_bucket")
        to.add("request_duration_seconds", "histogram", help, {**labels, "le": "+Inf"}, int(below[-1]), "_bucket")
        to.add("request_duration_seconds", "histogram", help, labels, latency.ns * 1e-9, "_sum")
        to.add("request_duration_seconds", "histogram", help, labels, int(below[-1]), "_count")
    for t in monitor.threads(s):
        if t["kind"] == "queue":
            labels = {**here, "queues": t["queues"], "cpu": str(t["cpu"])}
            to.add("queue_requests_total", "counter", "Requests by queue thread.", labels, t["ring_requests"])
            to.add("queue_errors_total", "counter", "Errors by queue thread.", labels, t["errors"])
            to.add("queue_in_flight", "gauge", "Unanswered requests by queue thread.", labels, t["in_flight"])
            to.add("queue_buffers_in_use", "gauge", "Payload buffers in use by queue thread.", labels,
                   t["buffers_in_use"])
    p = monitor.process(s)
    if p:
        to.add("process_cpu_seconds_total", "counter", "CPU time of the daemon.", here,
               p["cpu_user"] + p["cpu_system"])
        to.add("process_resident_memory_bytes", "gauge", "Memory of the daemon.", here, p["rss"])
        to.add("process_pinned_memory_bytes", "gauge", "Of it, what is pinned or locked.", here, p["pinned"])
        if "fds" in p:
            to.add("process_open_fds", "gauge", "File descriptors of the daemon.", here, p["fds"])
    to.add("snapshot_time_seconds", "gauge", "When these figures were read.", here, time.time())
