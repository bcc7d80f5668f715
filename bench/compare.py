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
import fnmatch
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aims
import harness
import storm
from harness import Bench, Cell, Results, Row, RowError, drop_caches, fresh, grid, run, timed
from trees import C_FILES, git, project, repository, sources_tree

SIZES = {"4k": 4096, "128k": 128 << 10, "1m": 1 << 20}
LOADS = ("j1", "j2", "j4", "qd1", "qd16", "qd64")
JOBS = 4
STAT_FILES, LIST_FILES = 10_000, 10_000
CORE = [
    "read-4k-rand-direct-j1", "read-4k-rand-direct-j4", "read-4k-rand-direct-qd16",
    "write-4k-rand-direct-j1", "write-4k-rand-direct-j4", "write-4k-rand-direct-qd16",
    "read-1m-seq-direct-j1", "write-1m-seq-direct-j1",
    "read-4k-rand-buffered-j1", "write-4k-rand-buffered-j1",
    "read-1m-seq-buffered-j1", "write-1m-seq-buffered-j1",
    "stat-j1", "restat-j1", "negative-j1", "open-j1", "create-j1", "readdir-j1", "list-j1",
    "stream-4k", "stream-1m", "untar", "git-status", "find", "compile",
]

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
    drop_caches()


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
                            yield Row(name, cell, ready, data=True, cold=mode == "cold")


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


# ------------------------------------------------------------------- showing

def table(results: Results, baselines: list[str]) -> str:
    """All tables: operations per second, the ratios to each baseline, and how the aims are met."""
    parts = [harness.heading(results), "operations per second, medians\n\n" + harness.speeds(results)]
    parts += [f"ratio to {base}: median (least..most)\n\n" + harness.ratios(results, base) for base in baselines]
    parts += share_tables(results, baselines)
    met = list(aim_lines(results))
    if met:
        parts.append("aims: the mean of the ratios and the lowest of them\n\n" + grid([
            ["what", "against", "aim", "mean", "lowest", "rows", "met"], *met]))
    if why := harness.refusals(results):
        parts.append("refused:\n" + why)
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

def parse(argv: list[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", action="append", default=[], metavar="GLOB",
                   help="rows to run, or 'core' or 'aims'; may be repeated; default: all")
    harness.add_arguments(p, 2.0, 256 << 20)
    p.add_argument("--plot", type=Path, metavar="FILE", help="an SVG or PNG picture (needs matplotlib)")
    p.add_argument("--show", action="append", default=[], metavar="NAME",
                   help="a target that --plot shows; may be repeated; default: all")
    args = p.parse_args(argv)
    harness.finish_arguments(p, args)
    return args


def need_tools(chosen: list[Row]) -> None:
    need = {"fio": ["-direct-", "-buffered-", "-cold-"], "git": ["git-status", "find"], "cc": ["compile"],
            "tar": ["untar", "git-status", "find"]}
    for tool, parts in need.items():
        used = [r.name for r in chosen if any(part in r.name for part in parts)]
        if used and not shutil.which(tool):
            raise SystemExit(f"compare.py: {used[0]} needs {tool}, which is not installed")


def main(argv: list[str]) -> int:
    args = parse(argv)
    if args.list:
        print("\n".join(r.name for r in rows()))
        return 0
    plt = plotter() if args.plot else None
    if args.load:
        results, baselines = harness.loaded(args)
    else:
        chosen, baselines = select(args.rows or ["*"], harness.filesystem(args.source)), args.baseline
        need_tools(chosen)
        with harness.workplace(args.source) as (source, work):
            try:
                program = storm.build(work)
            except storm.NoCompiler as e:
                raise SystemExit(f"compare.py: {e}") from None
            bench = Bench(source, work, args.seconds, args.size, program)
            results = Results(harness.environment(source, args), [t.name for t in args.targets])
            harness.compare(chosen, args.targets, bench, args.rounds, results, args.seed, args.only)
    print(table(results, baselines))
    if args.json:
        args.json.write_text(json.dumps(harness.as_json(results, baselines), indent=1) + "\n")
    if plt is not None:
        plot(plt, results, baselines, args.show, args.plot)
    return 3 if any(results.problems.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
