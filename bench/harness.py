"""What measures rows side by side: cells on fresh mounts, in mixed order, with the targets' claims put to the proof.

compare.py and jobs.py give the rows; target.py has the daemons. A result is operations per second; beside it a cell has
its Cost: requests by opcode and latencies by passthru's status page, CPU time of whatever daemon it is.
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
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import target as targets
from target import Daemon, Target, TargetError, stats

SILENT = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
SETTLE_SECONDS = 0.05  # RELEASE and FORGET come after the call that caused them


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
    scale: float = 1.0      # of what has a number of files
    keep: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cell:
    """One measurement."""

    bench: Bench
    place: Path             # the mount, or the source itself
    bare: bool
    latencies: list[float] = field(default_factory=list)  # seconds, if the load knows of its operations'


def nothing(_: Any) -> None:
    pass


@dataclass(frozen=True)
class Row:
    """A kind of load. run() gives operations per second; ready() comes before the mount, warm() after it, untimed."""

    name: str
    run: Callable[[Cell], float]
    ready: Callable[[Bench], None] = nothing
    data: bool = False      # of file data
    cold: bool = False      # page caches are dropped after the mount has been proved, too
    warm: Callable[[Cell], None] = nothing
    after: Callable[[Cell], None] = nothing  # whatever came of it
    unit: str = "operations"


# ----------------------------------------------------------------- processes

def run(words: list[Any], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a load; RowError with its last words if it fails. It is gone when this returns or raises."""
    try:
        p = subprocess.Popen([str(w) for w in words], stderr=subprocess.PIPE, text=True, errors="replace",
                             start_new_session=True, **kwargs)
    except FileNotFoundError:
        raise RowError(f"{words[0]} is not installed") from None
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


class Rate(float):
    """Operations per second, of a load that knows how many they were."""

    operations: float

    def __new__(cls, operations: float, seconds: float) -> Rate:
        self = super().__new__(cls, operations / seconds)
        self.operations = operations
        return self


def timed(files: float, words: list[Any], **kwargs: Any) -> Rate:
    begin = time.perf_counter()
    run(words, **{**SILENT, **kwargs})
    return Rate(files, time.perf_counter() - begin)


def fresh(bench: Bench, name: str) -> None:
    shutil.rmtree(bench.source / name, ignore_errors=True)
    (bench.source / name).mkdir()


def drop_caches() -> None:
    """Empty the page caches."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        raise RowError("only root drops page caches") from None


# ------------------------------------------------------------------ measuring

@dataclass
class Cost:
    """What a cell cost the daemon. operations: those of the row, so that the rest can be told for each."""

    operations: float
    cpu_ns: int = 0                                # of its threads
    requests: dict[str, int] = field(default_factory=dict)  # by opcode; ours only
    request_p99: float | None = None               # seconds, in the daemon; ours only
    load_p99: float | None = None                  # seconds, as the load sees it
    mounted: float = 0.0                           # seconds from the command to a usable mount
    ended: float = 0.0                             # seconds from umount(8) to the process's end


@dataclass
class Results:
    """values[row][target]: one number per round, None where there is none; and why.

    shares: in the same way, what part of the time our daemons' handlers took, in rows of names with one job.
    costs: in the same way, of each cell with a daemon, and of bare ones what the load knows.
    """

    environment: dict[str, Any]
    names: list[str]
    values: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    problems: dict[str, dict[str, str]] = field(default_factory=dict)
    shares: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    costs: dict[str, dict[str, list[Cost]]] = field(default_factory=dict)

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

    def cost(self, row: str, name: str, what: Callable[[Cost], float | None]) -> float | None:
        """The median over the rounds of something about the cost."""
        v = [x for c in self.costs.get(row, {}).get(name, []) if (x := what(c)) is not None]
        return statistics.median(v) if v and name not in self.problems.get(row, {}) else None


def quantile(values: list[float], q: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else None


def measure(row: Row, target: Target, bench: Bench, mountpoint: Path) -> tuple[float, float | None, Cost]:
    """Operations per second, what part of the time our handlers took (None: not ours), and the cost."""
    row.ready(bench)
    cost = Cost(0)
    with targets.running(target, bench.source, mountpoint) as (place, daemon):
        check(daemon, ready=True)
        cell = Cell(bench, place, daemon is None)
        try:
            row.warm(cell)
            if row.cold:
                drop_caches()  # the proof has read the source's directories
            before, cpu = (daemon.page(), daemon.cpu_ns()) if daemon else (None, 0)
            began = time.monotonic_ns()
            value = row.run(cell)
            took = time.monotonic_ns() - began
            if daemon is not None:
                time.sleep(SETTLE_SECONDS)
                cost.cpu_ns = daemon.cpu_ns() - cpu
            after = daemon.page() if daemon else None
        finally:
            row.after(cell)
        check(daemon)
    cost.operations = value.operations if isinstance(value, Rate) else value * took / 1e9
    cost.load_p99 = quantile(cell.latencies, 0.99)
    if daemon is not None:
        cost.mounted, cost.ended = daemon.mounted_after, daemon.ended_after
    if before is None or after is None:
        return value, None, cost
    told = before.ops()
    cost.requests = {name: n - told.get(name, 0) for name, n in after.ops().items() if n > told.get(name, 0)}
    now, then = after.latencies(), before.latencies()
    served = [one - then[name] if name in then else one for name, one in now.items()]
    if served:
        cost.request_p99 = stats.Latency(sum(one.buckets for one in served), 0).quantile(0.99)
    return value, sum(one.ns for one in served) / took, cost


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
                        value, share, cost = measure(row, target, bench, mountpoint)
                        results.values[row.name][target.name][k] = value
                        results.costs.setdefault(row.name, {}).setdefault(target.name, []).append(cost)
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


def heading(results: Results) -> str:
    e = results.environment
    load = f"{min(e['load']):.1f}..{max(e['load']):.1f}" if e["load"] else ""
    return (f"Linux {e['kernel']}, {e['cpus']} x {e['cpu']}, {e['memory_gib']} GiB; source on {e['source']}; "
            f"{e['rounds']} rounds of {e['seconds']:g} s; load average {load or '-'}")


def speeds(results: Results) -> str:
    return grid([["row", *results.names], *(
        [row, *(number(results.median(row, n)) for n in results.names)] for row in results.values)])


def ratios(results: Results, base: str) -> str:
    """Of all other targets, and their geometric means."""
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
    return grid(lines)


def refusals(results: Results) -> str:
    """Why there is no number, or ''."""
    return "\n".join(f"  {text}" for text in sorted({t for row in results.problems.values() for t in row.values()}))


def as_json(results: Results, baselines: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in results.values:
        found[row] = {
            "values": results.values[row], "problems": results.problems[row], "shares": results.shares.get(row, {}),
            "costs": {n: [vars(c) for c in v] for n, v in results.costs.get(row, {}).items()},
            "ratios": {b: {n: dict(zip(("median", "min", "max"), r, strict=True)) for n in results.names
                           if n != b and (r := results.ratio(row, n, b))} for b in baselines}}
    return {"environment": results.environment, "targets": results.names, "baselines": baselines,
            "rows": found}


def from_json(data: dict[str, Any]) -> Results:
    return Results(data["environment"], data["targets"], {r: v["values"] for r, v in data["rows"].items()},
                   {r: v["problems"] for r, v in data["rows"].items()},
                   {r: v["shares"] for r, v in data["rows"].items() if v.get("shares")},
                   {r: {n: [Cost(**c) for c in costs] for n, costs in v["costs"].items()}
                    for r, v in data["rows"].items() if v.get("costs")})


def merged(parts: list[Results]) -> Results:
    """Several runs as one, each row with the filesystem of its source."""
    if len(parts) == 1:
        return parts[0]
    names = [n for n in parts[0].names if all(n in p.names for p in parts)]
    sources = [p.environment["source"] for p in parts]
    if len(set(sources)) < len(sources):
        raise SystemExit("--load: two runs with a source on the same filesystem")
    whole = Results({**parts[0].environment, "source": ", ".join(sources),
                     "load": [x for p in parts for x in p.environment["load"]]}, names)
    for p in parts:
        for row in p.values:
            name = f"{row} ({p.environment['source']})"
            whole.values[name], whole.problems[name] = p.values[row], p.problems[row]
            if row in p.shares:
                whole.shares[name] = p.shares[row]
            if row in p.costs:
                whole.costs[name] = p.costs[row]
    return whole


# -------------------------------------------------------------------- command

def size(text: str) -> int:
    shift = {"k": 10, "m": 20, "g": 30}.get(text[-1:].lower())
    return int(text[:-1] if shift else text) << (shift or 0)


def add_arguments(p: argparse.ArgumentParser, seconds: float, bytes_: int) -> None:
    """Those that all have who measure."""
    p.add_argument("--target", action="append", default=[], metavar="NAME='CMD {src} {mnt}'",
                   help="a filesystem to measure; 'bare': the source itself")
    p.add_argument("--claim", action="append", default=[], metavar=f"NAME={'|'.join(targets.CLAIMS)}",
                   help="what a target must be proved to use")
    p.add_argument("--baseline", action="append", default=[], metavar="NAME",
                   help="what ratios are to; may be repeated; default: the first target")
    p.add_argument("--only", action="append", default=[], metavar="NAME=GLOB",
                   help="measure this target in these rows only ('names': all but those of file data); may be repeated")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=seconds, help="length of a cell that has no end of its own")
    p.add_argument("--size", type=size, default=bytes_, help="bytes of each data file (suffixes k, m, g)")
    p.add_argument("--source", type=Path, default=Path("/dev/shm"), metavar="DIR",
                   help="where the source directory is made: decides what lies below; default: /dev/shm")
    p.add_argument("--seed", type=int, default=None, help="of the order of the cells")
    p.add_argument("--json", type=Path, metavar="FILE")
    p.add_argument("--load", type=Path, action="append", default=[], metavar="FILE",
                   help="measure nothing: show the results in a --json file; may be repeated")
    p.add_argument("--list", action="store_true", help="name the rows")


def finish_arguments(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Look at what add_arguments() has added; targets, only and seed become what they are used as."""
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


def loaded(args: argparse.Namespace) -> tuple[Results, list[str]]:
    """What the --load files have, and the baselines."""
    data = [json.loads(path.read_text()) for path in args.load]
    results, baselines = merged([from_json(d) for d in data]), args.baseline or data[0]["baselines"]
    for name in [*baselines, *getattr(args, "show", [])]:
        if name not in results.names:
            raise SystemExit(f"{name}: no such target in {', '.join(map(str, args.load))}")
    return results, baselines


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def workplace(source: Path) -> Iterator[tuple[Path, Path]]:
    """(the directory to be mounted, below `source`; one for programs and archives), for a while."""
    for s in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs have SIGINT ignored
        signal.signal(s, interrupt)
    targets.raise_fd_limit()
    with tempfile.TemporaryDirectory(prefix="passthru-bench-", dir=source) as below, \
            tempfile.TemporaryDirectory(prefix="passthru-bench-work-") as work:
        for path in (Path(below), Path(work)):
            path.chmod(0o755)
        targets.make_probe_file(Path(below))
        yield Path(below), Path(work)
