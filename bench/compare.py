#!/usr/bin/env python3
"""Compare passthrough filesystems side by side.

    python bench/compare.py --list
    python bench/compare.py --rows '*-4k-rand-direct-*' --rows 'stat-*' --rounds 5
    python bench/compare.py --source /mnt/disk --rows core --json out.json --plot out.svg \\
        --target bare --target ring --target 'deep=python -m passthru -f --queue-depth 64 {src} {mnt}' \\
        --target other='some-daemon --foreground {src} {mnt}' --claim other=dev --baseline other
    python bench/compare.py --load tmpfs.json --load ext4.json --plot out.svg --show ring --baseline other

A target is a command that mounts {src} at {mnt} and stays in the foreground. These need no command: `bare` is the
source itself; `default`, `ring` and `dev` are this tree's daemon with its claim; `null` is the ring with --null-io,
a server that does no I/O, which runs in the rows of file data only. Without --target: bare, default, ring, dev.

In each round the rows come in a new order, and in each row the targets do. A cell has a fresh mount, so
nothing is cached from the cell before. A ratio is that of two cells of the same row and round; shown are the
median over the rounds and (least..most). Above 1 is faster than the baseline.

No ratio is shown for a target with a claim that it does not fulfil; before and after each cell it is put to
the proof (what is verified how is said in target.py). The exit code is then 3.

Rows
  {read,write}-{4k,128k,1m}-{seq,rand}-direct-{j1,j2,j4,qd1,qd16,qd64}
        fio: O_DIRECT on a file per job for --seconds; jN: N jobs of pread/pwrite, qdN: io_uring of that depth
  ...-direct-{j2,j4}-one      all jobs on one file, which they had open before
  ...-buffered-...            each block once, at the most 4 * --seconds. Reads find the source in memory but
                              the mount's own page cache empty; writes end with fsync, which counts
  read-...-cold-...           buffered reads with all page caches dropped before (root only)
  stat, restat, negative, open, create, readdir, list (-j1, -j4), stream-{4k,1m}
        storms of one operation: see storm.c. stat and list meet names that the mount has not seen yet
  untar, git-status, find, compile        one run of the tool on a fresh mount, in files/s
`--rows core` is a short list of telling rows, `--rows aims` those of aims.py for the kind of source; how the aims
are met is shown for targets of the names default, ring, null, bare, hp-ring and hp (the peer).
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import math
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aims
import storm
import target as targets
from target import Daemon, Target, TargetError

SIZES = {"4k": 4096, "128k": 128 << 10, "1m": 1 << 20}
LOADS = ("j1", "j2", "j4", "qd1", "qd16", "qd64")
JOBS = 4
STAT_FILES, LIST_FILES, TREE_FILES, C_FILES = 10_000, 10_000, 3_000, 24
CORE = [
    "read-4k-rand-direct-j1", "read-4k-rand-direct-j4", "read-4k-rand-direct-qd16",
    "write-4k-rand-direct-j1", "write-4k-rand-direct-j4", "write-4k-rand-direct-qd16",
    "read-1m-seq-direct-j1", "write-1m-seq-direct-j1",
    "read-4k-rand-buffered-j1", "write-4k-rand-buffered-j1",
    "read-1m-seq-buffered-j1", "write-1m-seq-buffered-j1",
    "stat-j1", "restat-j1", "negative-j1", "open-j1", "create-j1", "readdir-j1", "list-j1",
    "stream-4k", "stream-1m", "untar", "git-status", "find", "compile",
]
SILENT = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}


class RowError(Exception):
    """A cell's load failed."""


@dataclass
class Bench:
    """What all cells share."""

    source: Path            # the directory that the daemons mount
    work: Path              # programs and archives, on neither filesystem under test
    seconds: float
    size: int
    program: Path
    keep: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cell:
    """One measurement."""

    bench: Bench
    place: Path             # the mount, or the source itself
    bare: bool


@dataclass(frozen=True)
class Row:
    """A kind of load. run() gives operations per second; ready() comes before the mount, untimed."""

    name: str
    run: Callable[[Cell], float]
    ready: Callable[[Bench], None] = lambda bench: None
    data: bool = False      # of file data


# ----------------------------------------------------------------- processes

def run(words: list[Any], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a load; RowError with its last words if it fails. It is gone when this returns or raises."""
    p = subprocess.Popen([str(w) for w in words], stderr=subprocess.PIPE, text=True, errors="replace",
                         start_new_session=True, **kwargs)
    try:
        out, err = p.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(p.pid, signal.SIGKILL)
        p.wait()
        raise
    if p.returncode:
        said = (err or out or "").strip().splitlines()
        raise RowError(f"{words[0]} ended with {p.returncode}: {said[-1] if said else ''}")
    return subprocess.CompletedProcess(words, 0, out, err)


def timed(files: int, words: list[Any], **kwargs: Any) -> float:
    begin = time.perf_counter()
    run(words, **{**SILENT, **kwargs})
    return files / (time.perf_counter() - begin)


# ----------------------------------------------------------------- data rows

def data_files(bench: Bench) -> None:
    """A file per job with data in all blocks: holes would be a different load."""
    chunk = os.urandom(1 << 20)
    for n in range(JOBS):
        path = bench.source / f"data.{n}"
        if not path.exists():
            with open(path, "wb") as f:
                for _ in range(bench.size >> 20):
                    f.write(chunk)
                f.flush()
                os.fsync(f.fileno())


def warm(bench: Bench) -> None:
    """Bring the data files to the source's page cache."""
    data_files(bench)
    for n in range(JOBS):
        with open(bench.source / f"data.{n}", "rb", buffering=0) as f:
            while f.read(1 << 20):
                pass


def cold(bench: Bench) -> None:
    """Empty the page caches."""
    data_files(bench)
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except PermissionError:
        raise RowError("only root drops page caches") from None


def fio(cell: Cell, what: str, block: int, order: str, mode: str, load: str, one: bool) -> float:
    b = cell.bench
    jobs = int(load[1:]) if load[0] == "j" else 1
    words = [
        "fio", "--name=row", f"--rw={'rand' if order == 'rand' else ''}{what}", f"--bs={block}",
        f"--size={b.size}", f"--numjobs={jobs}", "--group_reporting", "--thread", "--output-format=json",
        "--fallocate=none", "--randrepeat=1", f"--direct={int(mode == 'direct')}",
        "--ioengine=psync" if load[0] == "j" else "--ioengine=io_uring",
        f"--iodepth={load[2:] if load[0] == 'q' else 1}",
        # What the source holds stays there; what a mount has cached goes.
        f"--invalidate={int(not cell.bare)}",
    ]
    if one:
        words += [f"--filename={cell.place / 'data.0'}"]
        if order == "seq":
            words += [f"--offset_increment={b.size // jobs}", f"--size={b.size // jobs}"]
    else:
        words += [f"--directory={cell.place}", "--filename_format=data.$jobnum"]
    if mode == "direct":
        words += ["--time_based", f"--runtime={b.seconds}", "--ramp_time=0.2", "--norandommap"]
    else:
        words += [f"--runtime={4 * b.seconds}", "--end_fsync=1"]
    if one and mode == "direct":
        # How a file is served best may be known from the last time that it was open.
        run([*words, "--runtime=0.1", "--ramp_time=0"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    out = run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout
    result = json.loads(out[out.index("{"):])["jobs"][0]
    if result["error"]:
        raise RowError(f"fio: {os.strerror(result['error'])}")
    return float(result[what]["iops"])


def data_rows() -> Iterator[Row]:
    for mode in ("direct", "buffered", "cold"):
        ready = {"direct": data_files, "buffered": warm, "cold": cold}[mode]
        for what in ("read", "write") if mode != "cold" else ("read",):
            for size, block in SIZES.items():
                for order in ("seq", "rand"):
                    for load in LOADS:
                        for one in (False, True) if mode == "direct" and load in ("j2", "j4") else (False,):
                            def cell(c: Cell, what: str = what, block: int = block, order: str = order,
                                     mode: str = mode, load: str = load, one: bool = one) -> float:
                                return fio(c, what, block, order, mode, load, one)
                            name = f"{what}-{size}-{order}-{mode}-{load}" + "-one" * one
                            yield Row(name, cell, ready, data=True)


# ------------------------------------------------------------- metadata rows

def many(bench: Bench, name: str, count: int) -> None:
    """A directory of `count` empty files, known to the source's caches."""
    where = bench.source / name
    if not where.exists():
        where.mkdir()
        for n in range(count):
            os.close(os.open(where / f"f{n:06}", os.O_CREAT | os.O_WRONLY, 0o644))
    for entry in os.scandir(where):
        entry.stat()


def storm_row(
    name: str, mode: str, directory: str, files: int, jobs: int, count: int, block: int = 4096,
) -> Row:
    def ready(bench: Bench) -> None:
        if files:
            many(bench, directory, files)
        else:
            fresh(bench, directory)

    def cell(c: Cell) -> float:
        where = c.place / directory
        if mode == "readdir":
            os.listdir(where)  # what is measured is the second time and on
        out = run([c.bench.program, mode, where, jobs, 0, count, c.bench.seconds, block],
                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout.split()
        return int(out[0]) / float(out[1])

    return Row(name, cell, ready)


def fresh(bench: Bench, name: str) -> None:
    shutil.rmtree(bench.source / name, ignore_errors=True)
    (bench.source / name).mkdir()


def metadata_rows() -> Iterator[Row]:
    for jobs in (1, 4):
        for mode, directory, files, count in (
            ("stat", "many", STAT_FILES, STAT_FILES), ("restat", "many", STAT_FILES, 1000),
            ("negative", "many", STAT_FILES, 0), ("open", "many", STAT_FILES, 200), ("create", "new", 0, 0),
            ("readdir", "list", LIST_FILES, 0), ("list", "list", LIST_FILES, 0),
        ):
            yield storm_row(f"{mode}-j{jobs}", mode, directory, files, jobs, count)
    for size in ("4k", "1m"):
        yield storm_row(f"stream-{size}", "stream", "new", 0, 1, (16 << 20) // SIZES[size], SIZES[size])


# ---------------------------------------------------------------- tools' rows

def sources_tree(bench: Bench) -> int:
    """A copy of Python's own library (or a part of it) as an archive; the number of its files."""
    archive = bench.work / "tree.tar"
    if not archive.exists():
        top = Path(sysconfig.get_path("stdlib"))
        paths = sorted(p for p in top.rglob("*") if p.is_file() and not p.is_symlink() and not {
            "__pycache__", "site-packages", "dist-packages"} & set(p.parts) and p.stat().st_size < 1 << 20)
        with tarfile.open(archive, "w") as tar:
            for p in paths[:TREE_FILES]:
                tar.add(p, f"tree/{p.relative_to(top)}")
        bench.keep["files"] = len(paths[:TREE_FILES])
    return int(bench.keep["files"])


def git(where: Path, *words: str) -> list[Any]:
    return ["env", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_OPTIONAL_LOCKS=0",
            "git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-C", where, *words]


def repository(bench: Bench) -> None:
    """The tree, committed; older than its index, or git would read all files again."""
    where = bench.source / "repository"
    sources_tree(bench)
    if not where.exists():
        where.mkdir()
        run(["tar", "xf", bench.work / "tree.tar", "-C", where], **SILENT)
        for p in where.rglob("*"):
            os.utime(p, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
        run(git(where, "init", "-q"), **SILENT)
        run(git(where, "add", "."), **SILENT)
        run(git(where, "commit", "-q", "-m", "bench"), **SILENT)
    run(git(where, "status"), **SILENT)


def project(bench: Bench) -> None:
    """A small C project with a header for each file."""
    fresh(bench, "project")
    where = bench.source / "project"
    (where / "common.h").write_text("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n")
    for n in range(C_FILES):
        (where / f"m{n}.h").write_text(f"int m{n}(int);\n")
        body = "\n".join(f"static int f{k}(int x) {{ return x * {k} + {n}; }}" for k in range(20))
        (where / f"m{n}.c").write_text(
            f'#include "common.h"\n#include "m{n}.h"\n{body}\nint m{n}(int x) {{ return f1(x) + f19(x); }}\n')
    (where / "build.sh").write_text(
        "set -e\nls m*.c | xargs -P 2 -n 4 cc -O0 -c\nar rc libm.a m*.o\n")


def untar(c: Cell) -> float:
    return timed(sources_tree(c.bench), ["tar", "xf", c.bench.work / "tree.tar", "-C", c.place / "untar"])


def git_status(c: Cell) -> float:
    return timed(c.bench.keep["files"], git(c.place / "repository", "status", "--porcelain"))


def find(c: Cell) -> float:
    return timed(c.bench.keep["files"], ["find", c.place / "repository" / "tree", "-size", "+1"])


def compile_project(c: Cell) -> float:
    return timed(C_FILES, ["sh", "build.sh"], cwd=c.place / "project")


def prepare_untar(bench: Bench) -> None:
    sources_tree(bench)
    fresh(bench, "untar")


def rows() -> list[Row]:
    return [
        *data_rows(), *metadata_rows(),
        Row("untar", untar, prepare_untar), Row("git-status", git_status, repository),
        Row("find", find, repository), Row("compile", compile_project, project),
    ]


def select(patterns: list[str], fstype: str) -> list[Row]:
    """The rows that a pattern names, in their own order; `core` and `aims` are lists."""
    every = rows()
    wanted: set[str] = set()
    for pattern in patterns:
        names = [n.name for n in every]
        lists = {"core": CORE, "aims": aims.rows(fstype)}
        found = lists[pattern] if pattern in lists else fnmatch.filter(names, pattern)
        if not found:
            raise SystemExit(f"compare.py: no row is named {pattern!r} (--list shows them)")
        wanted.update(found)
    return [r for r in every if r.name in wanted]


# ------------------------------------------------------------------ measuring

@dataclass
class Results:
    """values[row][target]: one number per round, None where there is none; and why.

    shares: in the same way, what part of the time our daemons' handlers took, in rows of names with one job.
    """

    environment: dict[str, Any]
    names: list[str]
    values: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    problems: dict[str, dict[str, str]] = field(default_factory=dict)
    shares: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def refuse(self, row: str, name: str, why: str) -> None:
        if not any(why in known.values() for known in self.problems.values()):
            print(f"\n{why}", file=sys.stderr)
        self.problems[row][name] = why

    def ratio(self, row: str, name: str, baseline: str) -> tuple[float, float, float] | None:
        """(median, least, most) of the rounds' ratios; None if the target is refused or has none."""
        if name in self.problems.get(row, {}) or baseline in self.problems.get(row, {}):
            return None
        pairs = zip(self.values[row][name], self.values[row][baseline], strict=True)
        r = [a / b for a, b in pairs if a and b]
        return (statistics.median(r), min(r), max(r)) if r else None

    def median(self, row: str, name: str) -> float | None:
        if name in self.problems.get(row, {}):
            return None
        v = [x for x in self.values[row][name] if x]
        return statistics.median(v) if v else None


def measure(row: Row, target: Target, bench: Bench, mountpoint: Path) -> tuple[float, float | None]:
    """Operations per second, and what part of the time our handlers took (None: not ours)."""
    row.ready(bench)
    with targets.running(target, bench.source, mountpoint) as (place, daemon):
        check(daemon, ready=True)
        if row.ready is cold and daemon is not None:
            cold(bench)  # the proof has read the source's directories
        before = daemon and daemon.handler_ns()
        began = time.monotonic_ns()
        value = row.run(Cell(bench, place, daemon is None))
        took = time.monotonic_ns() - began
        after = daemon and daemon.handler_ns()
        check(daemon)
    return value, None if before is None or after is None else (after - before) / took


def check(daemon: Daemon | None, ready: bool = False) -> None:
    if daemon is None:
        return
    if daemon.process.poll() is not None:
        raise TargetError(f"{daemon.target.name}: died with {daemon.process.returncode}: {daemon.said()}")
    if ready:
        daemon.prove_ready()
    else:
        daemon.prove()


def runs(row: Row, target: Target, only: dict[str, list[str]]) -> bool:
    """Is this target to be measured in this row?"""
    patterns = only.get(target.name)
    if patterns is None:
        return row.data or not target.null
    return any(not row.data if p == "names" else fnmatch.fnmatchcase(row.name, p) for p in patterns)


def compare(
    chosen: list[Row], wanted: list[Target], bench: Bench, rounds: int, results: Results, seed: int,
    only: dict[str, list[str]],
) -> None:
    """Fill `results`; upon Ctrl-C as far as it came."""
    order = random.Random(seed)
    mountpoint = Path(tempfile.mkdtemp(prefix="passthru-bench-mnt-"))
    total, n, began = rounds * len(chosen) * len(wanted), 0, time.monotonic()
    for row in chosen:
        results.values[row.name] = {t.name: [None] * rounds for t in wanted}
        results.problems[row.name] = {}
    try:
        for k in range(rounds):
            for row in order.sample(chosen, len(chosen)):
                for target in order.sample(wanted, len(wanted)):
                    n += 1
                    if not runs(row, target, only):
                        continue
                    try:
                        value, share = measure(row, target, bench, mountpoint)
                        results.values[row.name][target.name][k] = value
                        if share is not None and not row.data and not row.name.endswith("-j4"):
                            results.shares.setdefault(row.name, {}).setdefault(target.name, []).append(share)
                    except TargetError as e:
                        results.refuse(row.name, target.name, str(e))
                    except (RowError, OSError) as e:
                        results.refuse(row.name, target.name, f"{target.name}: {row.name}: {e}")
                    if sys.stderr.isatty():
                        left = (time.monotonic() - began) / n * (total - n)
                        print(f"\r\033[K{n}/{total} {left / 60:.0f} min left: {row.name} {target.name}",
                              end="", file=sys.stderr, flush=True)
            results.environment["load"].append(os.getloadavg()[0])
    except KeyboardInterrupt:
        print("\ninterrupted: what has been measured follows", file=sys.stderr)
        results.environment["interrupted"] = True
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        with contextlib.suppress(OSError):
            mountpoint.with_name(mountpoint.name + ".log").unlink()
            mountpoint.rmdir()


def filesystem(where: Path) -> str:
    """The type of filesystem that a directory is on."""
    return run(["df", "--output=fstype", where], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout.split()[-1]


def environment(source: Path, args: argparse.Namespace) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as f:
        cpu = next(line for line in f if line.startswith("model name")).partition(": ")[2].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return {
        "kernel": platform.release(), "cpu": cpu, "cpus": os.cpu_count(), "memory_gib": memory,
        "source": filesystem(source), "rounds": args.rounds, "seconds": args.seconds, "size": args.size,
        "seed": args.seed,
        "targets": {t.name: {"command": t.command, "claim": t.claim} for t in args.targets}, "load": [],
    }


# ------------------------------------------------------------------- showing

def number(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}"


def grid(lines: list[list[str]]) -> str:
    """Aligned columns; the text is a Markdown table as well."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]

    def show(line: list[str]) -> str:
        return "| " + " | ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(
            zip(line, widths, strict=True))) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if k == 0 else ":") for k, w in enumerate(widths)) + "|"
    return "\n".join([show(lines[0]), rule, *map(show, lines[1:])])


def table(results: Results, baselines: list[str]) -> str:
    """All tables: operations per second, the ratios to each baseline, and how the aims are met."""
    e = results.environment
    load = f"{min(e['load']):.1f}..{max(e['load']):.1f}" if e["load"] else ""
    parts = [
        f"Linux {e['kernel']}, {e['cpus']} x {e['cpu']}, {e['memory_gib']} GiB; source on {e['source']}; "
        f"{e['rounds']} rounds of {e['seconds']:g} s; load average {load or '-'}",
        "operations per second, medians\n\n" + grid([["row", *results.names], *(
            [row, *(number(results.median(row, n)) for n in results.names)] for row in results.values)]),
    ]
    for base in baselines:
        others = [n for n in results.names if n != base]
        lines = [["row", *others]]
        means: dict[str, list[float]] = {n: [] for n in others}
        for row in results.values:
            line = [row]
            for n in others:
                r = results.ratio(row, n, base)
                if r:
                    means[n].append(r[0])
                    line.append(f"{r[0]:.2f} ({r[1]:.2f}..{r[2]:.2f})")
                else:
                    line.append("refused" if n in results.problems[row] else "-")
            lines.append(line)
        lines.append(["geometric mean", *(
            f"{math.exp(statistics.fmean(map(math.log, v))):.2f}" if v else "-" for v in means.values())])
        parts.append(f"ratio to {base}: median (least..most)\n\n" + grid(lines))
    parts += share_tables(results, baselines)
    met = list(aim_lines(results))
    if met:
        parts.append("aims: the mean of the ratios and the lowest of them\n\n" + grid([
            ["what", "against", "aim", "mean", "lowest", "rows", "met"], *met]))
    why = sorted({text for row in results.problems.values() for text in row.values()})
    if why:
        parts.append("refused:\n" + "\n".join(f"  {text}" for text in why))
    return "\n\n".join(parts)


def share_tables(results: Results, baselines: list[str]) -> Iterator[str]:
    """What part of the time handlers take, and so how fast a daemon could be whose handlers took none."""
    names = [n for n in results.names if any(n in found for found in results.shares.values())]
    others = [b for b in baselines if b not in names]
    if not names:
        return
    lines = [["row", *(head for n in names for head in (n, *(f"to {b} without" for b in others)))]]
    for row, found in results.shares.items():
        line = [row]
        for n in names:
            share = statistics.median(found[n]) if n in found else None
            line.append("-" if share is None else f"{share:.2f}")
            for b in others:
                r = results.ratio(row, n, b)
                line.append(f"{r[0] / (1 - share):.2f}" if r and share is not None and share < 1 else "-")
        lines.append(line)
    yield ("part of the time that our handlers took (median), and the ratio if they took none: the rest is the "
           "kernel's and the client's\n\n" + grid(lines))


def aim_lines(results: Results) -> Iterator[list[str]]:
    def median(row: str, name: str, base: str) -> float | None:
        r = results.ratio(row, name, base)
        return r[0] if r else None

    return aims.lines(results.environment["source"], list(results.values), results.names, median)


def as_json(results: Results, baselines: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in results.values:
        found[row] = {
            "values": results.values[row], "problems": results.problems[row], "shares": results.shares.get(row, {}),
            "ratios": {b: {n: dict(zip(("median", "min", "max"), r, strict=True)) for n in results.names
                           if n != b and (r := results.ratio(row, n, b))} for b in baselines}}
    return {"environment": results.environment, "targets": results.names, "baselines": baselines,
            "rows": found}


def from_json(data: dict[str, Any]) -> Results:
    return Results(data["environment"], data["targets"], {r: v["values"] for r, v in data["rows"].items()},
                   {r: v["problems"] for r, v in data["rows"].items()},
                   {r: v["shares"] for r, v in data["rows"].items() if v.get("shares")})


def merged(parts: list[Results]) -> Results:
    """Several runs as one, each row with the filesystem of its source."""
    if len(parts) == 1:
        return parts[0]
    names = [n for n in parts[0].names if all(n in p.names for p in parts)]
    sources = [p.environment["source"] for p in parts]
    if len(set(sources)) < len(sources):
        raise SystemExit("compare.py: --load: two runs with a source on the same filesystem")
    whole = Results({**parts[0].environment, "source": ", ".join(sources),
                     "load": [x for p in parts for x in p.environment["load"]]}, names)
    for p in parts:
        for row in p.values:
            name = f"{row} ({p.environment['source']})"
            whole.values[name], whole.problems[name] = p.values[row], p.problems[row]
            if row in p.shares:
                whole.shares[name] = p.shares[row]
    return whole


def plotter() -> Any:
    """matplotlib.pyplot without a display. SystemExit if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("compare.py: --plot needs matplotlib (pip install matplotlib)") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt


def plot(plt: Any, results: Results, baselines: list[str], shown: list[str], path: Path) -> None:
    """A panel per baseline, a line per row: the median of each target and its spread. shown: targets, none: all."""
    names = [row for row in results.values if any(
        results.ratio(row, n, b) for b in baselines for n in shown or results.names if n != b)]
    figure, axes = plt.subplots(
        1, len(baselines), figsize=(6 + 4 * len(baselines), 1.5 + 0.32 * len(names)),
        sharey=True, squeeze=False)
    for axis, base in zip(axes[0], baselines, strict=True):
        others = [n for n in shown or results.names if n != base]
        for k, n in enumerate(others):
            points = [(y, r) for y, row in enumerate(names) if (r := results.ratio(row, n, base))]
            if points:
                shift = (k - (len(others) - 1) / 2) * 0.6 / len(others)
                axis.errorbar(
                    [r[0] for _, r in points], [y + shift for y, _ in points], fmt="o", markersize=4, label=n,
                    color=f"C{results.names.index(n)}",  # the same in each panel
                    xerr=[[r[0] - r[1] for _, r in points], [r[2] - r[0] for _, r in points]], elinewidth=1)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(f"ratio to {base} (right is faster)")
        axis.grid(axis="x", alpha=0.3)
        axis.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    e = results.environment
    figure.suptitle(f"source on {e['source']}, Linux {e['kernel']}, {e['cpus']} CPUs", fontsize="medium")
    figure.tight_layout()
    figure.savefig(path)


# -------------------------------------------------------------------- command

def size(text: str) -> int:
    shift = {"k": 10, "m": 20, "g": 30}.get(text[-1:].lower())
    return int(text[:-1] if shift else text) << (shift or 0)


def parse(argv: list[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", action="append", default=[], metavar="NAME='CMD {src} {mnt}'",
                   help="a filesystem to measure; 'bare': the source itself")
    p.add_argument("--claim", action="append", default=[], metavar=f"NAME={'|'.join(targets.CLAIMS)}",
                   help="what a target must be proved to use")
    p.add_argument("--baseline", action="append", default=[], metavar="NAME",
                   help="what ratios are to; may be repeated; default: the first target")
    p.add_argument("--rows", action="append", default=[], metavar="GLOB",
                   help="rows to run, or 'core' or 'aims'; may be repeated; default: all")
    p.add_argument("--only", action="append", default=[], metavar="NAME=GLOB",
                   help="measure this target in these rows only ('names': all but those of file data); may be repeated")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=2.0, help="length of a cell")
    p.add_argument("--size", type=size, default=256 << 20, help="bytes of each data file (suffixes k, m, g)")
    p.add_argument("--source", type=Path, default=Path("/dev/shm"), metavar="DIR",
                   help="where the source directory is made: decides what lies below; default: /dev/shm")
    p.add_argument("--seed", type=int, default=None, help="of the order of the cells")
    p.add_argument("--json", type=Path, metavar="FILE")
    p.add_argument("--plot", type=Path, metavar="FILE", help="an SVG or PNG picture (needs matplotlib)")
    p.add_argument("--show", action="append", default=[], metavar="NAME",
                   help="a target that --plot shows; may be repeated; default: all")
    p.add_argument("--load", type=Path, action="append", default=[], metavar="FILE",
                   help="measure nothing: show the results in a --json file; may be repeated")
    p.add_argument("--list", action="store_true", help="name the rows")
    args = p.parse_args(argv)
    args.targets = []
    for text in args.target:
        name, has, command = text.partition("=")
        if not has and name in {**targets.OURS, **targets.NULL}:
            args.targets.append(targets.ours(name))
            continue
        if not has and name != "bare":
            p.error(f"--target {text}: NAME=COMMAND is wanted")
        if has and not ("{src}" in command and "{mnt}" in command):
            p.error(f"--target {name}: the command needs {{src}} and {{mnt}}")
        args.targets.append(Target(name, command))
    if not args.targets:
        args.targets = [Target("bare"), *map(targets.ours, targets.OURS)]
    by_name = {t.name: t for t in args.targets}
    if len(by_name) < len(args.targets):
        p.error("two targets have the same name")
    for text in args.claim:
        name, _, claim = text.partition("=")
        if name not in by_name or by_name[name].bare or claim not in targets.CLAIMS:
            p.error(f"--claim {text}: not a daemon among the targets, or none of {', '.join(targets.CLAIMS)}")
        by_name[name].claim = claim
    only: dict[str, list[str]] = {}
    for text in args.only:
        name, _, pattern = text.partition("=")
        if name not in by_name or not pattern:
            p.error(f"--only {text}: NAME=GLOB is wanted, and a target of that name")
        only.setdefault(name, []).append(pattern)
    args.only = only
    if not args.load:
        args.baseline = args.baseline or [args.targets[0].name]
        for name in args.baseline:
            if name not in by_name:
                p.error(f"--baseline {name}: not among the targets")
    if args.rounds < 1 or args.seconds <= 0 or args.size < 1 << 20 or args.size % (1 << 20):
        p.error("--rounds and --seconds must be positive, --size whole MiB")
    if args.seed is None:
        args.seed = random.randrange(1 << 32)
    return args


def need_tools(chosen: list[Row]) -> None:
    need = {"fio": ["-direct-", "-buffered-", "-cold-"], "git": ["git-status", "find"], "cc": ["compile"],
            "tar": ["untar", "git-status", "find"]}
    for tool, parts in need.items():
        used = [r.name for r in chosen if any(part in r.name for part in parts)]
        if used and not shutil.which(tool):
            raise SystemExit(f"compare.py: {used[0]} needs {tool}, which is not installed")


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    args = parse(argv)
    if args.list:
        print("\n".join(r.name for r in rows()))
        return 0
    plt = plotter() if args.plot else None
    if args.load:
        data = [json.loads(path.read_text()) for path in args.load]
        results, baselines = merged([from_json(d) for d in data]), args.baseline or data[0]["baselines"]
        for name in [*baselines, *args.show]:
            if name not in results.names:
                raise SystemExit(f"compare.py: {name}: no such target in {', '.join(map(str, args.load))}")
    else:
        chosen, baselines = select(args.rows or ["*"], filesystem(args.source)), args.baseline
        need_tools(chosen)
        for s in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs have SIGINT ignored
            signal.signal(s, interrupt)
        targets.raise_fd_limit()
        with tempfile.TemporaryDirectory(prefix="passthru-bench-", dir=args.source) as below, \
                tempfile.TemporaryDirectory(prefix="passthru-bench-work-") as work:
            source = Path(below)
            source.chmod(0o755)
            targets.make_probe_file(source)
            try:
                program = storm.build(Path(work))
            except storm.NoCompiler as e:
                raise SystemExit(f"compare.py: {e}") from None
            bench = Bench(source, Path(work), args.seconds, args.size, program)
            results = Results(environment(source, args), [t.name for t in args.targets])
            compare(chosen, args.targets, bench, args.rounds, results, args.seed, args.only)
    print(table(results, baselines))
    if args.json:
        args.json.write_text(json.dumps(as_json(results, baselines), indent=1) + "\n")
    if plt is not None:
        plot(plt, results, baselines, args.show, args.plot)
    return 3 if any(results.problems.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
