"""What a mount did between two looks at its counters."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from . import monitor
from .monitor import seconds_text, size_text
from .stats import Latency, Snapshot


@dataclass(frozen=True)
class Look:
    """A mount's counters, CPU time (seconds) and memory (bytes) at a time (seconds)."""

    mount: monitor.Mount
    page: Snapshot
    at: float
    cpu: float
    rss: int


def look(m: monitor.Mount, page: Snapshot) -> Look:
    p = monitor.process(page)
    return Look(m, page, time.monotonic(), p.get("cpu_user", 0.0) + p.get("cpu_system", 0.0), p.get("rss", 0))


@dataclass(frozen=True)
class Frame:
    """What top shows of one mount: lines above, and rows of tables."""

    title: str
    facts: list[str]
    operations: list[list[str]]
    threads: list[list[str]]


OPERATIONS = ["OPERATION", "PER S", "ERRORS/S", "P50", "P99", "P99.9", "TOTAL"]
THREADS = ["THREAD", "PER S", "IN FLIGHT", "BUFFERS", "ERRORS/S", "SLEEPS/S"]
OVERVIEW = ["MOUNTPOINT", "PER S", "ERRORS/S", "READ/S", "WRITTEN/S", "P50", "P99", "IN FLIGHT", "CPU", "MEMORY"]


def number(n: float) -> str:
    """A rate."""
    return f"{n:.0f}" if n >= 99.95 or n == int(n) else f"{n:.1f}"


def frame(old: Look, new: Look) -> Frame:
    """One mount in detail."""
    a, b, seconds = old.page, new.page, _seconds(old, new)

    def rate(counter: str) -> float:
        return (b.total(counter) - a.total(counter)) / seconds

    requests = rate("ring_requests") + rate("dev_requests")
    h = b.header
    up = monitor.uptime_text(max(0, int(time.time()) - int(h["started"])))
    facts = [
        f"{monitor.served_by(monitor.summary(new.mount))}; up {up}; CPU {_cpu(old, new)}, {size_text(new.rss)}",
        f"{number(requests)} requests/s, {number(rate('errors'))} errors/s, {size_text(rate('read_bytes'))}/s read, "
        f"{size_text(rate('write_bytes'))}/s written, {b.in_flight} in flight",
        f"{int(h['inodes'])} inodes, {int(h['handles'])} handles, {int(h['backings'])} backing files; "
        f"per second {number(rate('enters'))} io_uring_enter, {number(rate('sleeps'))} sleeps"]
    if b.passthrough:
        facts.append(f"note: {monitor.PASSTHROUGH_NOTE}")
    return Frame(f"{monitor.shown(new.mount.source)} on {monitor.shown(new.mount.mountpoint)}", facts,
                 _operations(a, b, seconds), _threads(a, b, seconds))


def overview(old: Look, new: Look) -> list[str]:
    """One mount as a row of OVERVIEW."""
    a, b, seconds = old.page, new.page, _seconds(old, new)

    def rate(counter: str) -> float:
        return (b.total(counter) - a.total(counter)) / seconds

    latency = Latency(b.threads["latency"].sum(axis=(0, 1)) - a.threads["latency"].sum(axis=(0, 1)), 0)
    mark = " (passthrough)" if b.passthrough else ""
    return [
        monitor.shown(new.mount.mountpoint) + mark, number(rate("ring_requests") + rate("dev_requests")),
        number(rate("errors")), size_text(rate("read_bytes")), size_text(rate("write_bytes")),
        *(seconds_text(latency.quantile(q)) for q in (0.5, 0.99)), str(b.in_flight), _cpu(old, new), size_text(new.rss)]


def _seconds(old: Look, new: Look) -> float:
    return max(new.at - old.at, 1e-3)


def _cpu(old: Look, new: Look) -> str:
    return f"{100 * (new.cpu - old.cpu) / _seconds(old, new):.0f} %"


def _operations(a: Snapshot, b: Snapshot, seconds: float) -> list[list[str]]:
    ops, before, errors, errors_before = b.ops(), a.ops(), b.op_errors(), a.op_errors()
    latencies, latencies_before = b.latencies(), a.latencies()
    rows = []
    for name in sorted(ops, key=lambda n: (before.get(n, 0) - ops[n], -ops[n])):
        latency = latencies.get(name)
        if latency and name in latencies_before:
            latency = latency - latencies_before[name]
        rows.append([
            name, number((ops[name] - before.get(name, 0)) / seconds),
            number((errors.get(name, 0) - errors_before.get(name, 0)) / seconds),
            *(seconds_text(latency.quantile(q) if latency else None) for q in (0.5, 0.99, 0.999)), str(ops[name])])
    return rows


def _threads(a: Snapshot, b: Snapshot, seconds: float) -> list[list[str]]:
    before: dict[tuple[Any, ...], dict[str, Any]] = {(t["kind"], t.get("queues")): t for t in monitor.threads(a)}
    rows = []
    for t in monitor.threads(b):
        old = before.get((t["kind"], t.get("queues")), dict.fromkeys(t, 0))

        def rate(name: str, t: dict[str, Any] = t, old: dict[str, Any] = old) -> str:
            return number((t[name] - old[name]) / seconds)

        asked = {"queue": "ring_requests", "dev": "dev_requests"}.get(t["kind"])
        rows.append([
            f"queue {t['queues']} on CPU {t['cpu']}" if t["kind"] == "queue" else f"{t['kind']} x {t['threads']}",
            rate(asked) if asked else "-", str(t.get("in_flight", "-")), str(t.get("buffers_in_use", "-")),
            rate("errors"), rate("sleeps") if t["kind"] == "queue" else "-"])
    return rows
