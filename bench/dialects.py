#!/usr/bin/env python3
"""The ring's dialects against each other, on a kernel that has them (Linux 7.3), and against the source.

    python bench/dialects.py [--rounds N] [--seconds N] [--source DIR] [--size MIB]

Each round runs every row by every way in a new order; shown are medians of per-round ratios to per-entry
(least..most), and the throughput of per-entry. Ways that the kernel does not have are left out. The way is proved
by the status page. Root only.
"""
from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from passthru import stats

WAYS = {
    "per-entry": ["--dialect", "per-entry"],
    "pool": ["--dialect", "POOL", "--zero-copy", "off", "--no-pin-buffers", "--no-pin-headers"],
    "pinned": ["--dialect", "POOL", "--zero-copy", "off"],
    "zero-copy": ["--dialect", "POOL", "--zero-copy", "on"],
    "source": None,
}
ROWS = {
    "1M rand read, direct": ["--rw=randread", "--bs=1m", "--direct=1"],
    "1M seq read, direct": ["--rw=read", "--bs=1m", "--direct=1"],
    "1M seq write, direct": ["--rw=write", "--bs=1m", "--direct=1"],
    "1M rand read, buffered": ["--rw=randread", "--bs=1m", "--direct=0", "--invalidate=1"],
    "1M seq read, buffered": ["--rw=read", "--bs=1m", "--direct=0", "--invalidate=1"],
    "4k rand read, direct": ["--rw=randread", "--bs=4k", "--direct=1"],
    "4k rand write, direct": ["--rw=randwrite", "--bs=4k", "--direct=1"],
}


def fio(where: Path, row: list[str], a: argparse.Namespace) -> float:
    """MiB/s of two jobs."""
    done = subprocess.run(
        ["fio", "--name=j", f"--directory={where}", "--filename_format=f$jobnum", "--numjobs=2", f"--size={a.size}m",
         f"--runtime={a.seconds}", "--ioengine=psync", "--group_reporting", "--output-format=json", "--fallocate=none",
         "--thread", "--time_based", *row],
        capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    return (job["read"]["bw_bytes"] + job["write"]["bw_bytes"]) / (1 << 20)


def cell(way: str, row: list[str], source: Path, mnt: Path, a: argparse.Namespace, pool: str) -> float | None:
    options = WAYS[way]
    if options is None:
        return fio(source, row, a)
    command = [sys.executable, "-m", "passthru", "-f", "--transport", "ring", "--no-passthrough", *a.option,
               *[pool if o == "POOL" else o for o in options], source, mnt]
    daemon = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = daemon.stderr.readline()
    if "dialect" not in said:
        daemon.wait()
        print(f"{way}: {said.strip()}", file=sys.stderr)
        return None
    try:
        speed = fio(mnt, row, a)
        s = stats.of(mnt)
        wanted = "per-entry" if way == "per-entry" else pool
        if s.dialect != wanted or (s.total("io_zero_copy") > 0) != (way == "zero-copy"):
            raise SystemExit(f"{way} was not served as such")
        return speed
    finally:
        subprocess.run(["umount", mnt], check=True)
        daemon.wait(30)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=int, default=2)
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--pool", default="bufpool", help="the pooled dialect: bufpool or bufring")
    p.add_argument("--option", action="append", default=[], help="of the daemon, for all ways: --option=--spin-us=0")
    p.add_argument("--row", action="append", help="only rows that contain this")
    p.add_argument("--source", type=Path, default=None)
    a = p.parse_args()
    rows = {name: row for name, row in ROWS.items() if not a.row or any(r in name for r in a.row)}
    top = Path(tempfile.mkdtemp(prefix="passthru-dialects-"))
    source = a.source or top / "source"
    mnt = top / "mnt"
    source.mkdir(exist_ok=True)
    mnt.mkdir()
    for n in range(2):
        with open(source / f"f{n}", "wb") as f:
            for _ in range(a.size):
                f.write(random.randbytes(1 << 20))
    results: dict[str, dict[str, list[float]]] = {row: {way: [] for way in WAYS} for row in rows}
    missing: set[str] = set()
    for _ in range(a.rounds):
        for row in random.sample(list(rows), len(rows)):
            for way in random.sample(list(WAYS), len(WAYS)):
                speed = None if way in missing else cell(way, ROWS[row], source, mnt, a, a.pool)
                if speed is None:
                    missing.add(way)
                else:
                    results[row][way].append(speed)
    ways = [w for w in WAYS if w not in missing and w != "per-entry"]
    print("| row | per-entry MiB/s | " + " | ".join(ways) + " |")
    print("|---" * (len(ways) + 2) + "|")
    for row, by in results.items():
        base = by["per-entry"]
        cells = []
        for way in ways:
            ratios = [x / b for x, b in zip(by[way], base, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})")
        print(f"| {row} | {statistics.median(base):.0f} | " + " | ".join(cells) + " |")
    shutil.rmtree(top)


if __name__ == "__main__":
    main()
