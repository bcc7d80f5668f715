#!/usr/bin/env python3
"""What whole jobs cost on a mount: one command, one page, a picture for each question.

    python bench/jobs.py --list
    python bench/jobs.py --source /mnt/disk --page bench/JOBS.md --json jobs.json
    python bench/jobs.py --jobs 'untar' --jobs 'mdtest-*' --scale 0.2 --rounds 5
    python bench/jobs.py --target bare --target default --target ring --target dev \\
        --target hp='passthrough_hp -o allow_other {src} {mnt} --foreground' --claim hp=passthrough+dev \\
        --target bindfs='bindfs -f {src} {mnt}' --target mergerfs='mergerfs -f -o allow_other {src} {mnt}'
    python bench/jobs.py --load ext4.json --load tmpfs.json --page bench/JOBS.md
    python bench/jobs.py --senders --jobs untar

Targets and claims are those of compare.py, and so is how a ratio is made: fresh mounts, rounds in mixed order,
medians of the rounds' ratios (least..most); above 1 is faster than the baseline. A job whose program is missing is
refused with the reason, and so is a target whose daemon does not do what it claims. --scale is of the number of files.

Beside the speed a page has, where the daemon tells it: requests by opcode (its status page), CPU time of the daemon for
each operation (any daemon), the 99th percentile of requests in the daemon and of the job's own operations, and how long
start and end of a mount took.

--senders measures nothing: it runs the jobs once on our default mount under perf(1) and prints which function of the
kernel sent the requests that somebody waited for, and for which system call.

Jobs
  untar, cp-a, rm-rf, rsync           a tree of sources
  git-status, find, grep              a tree that the mount knows: 10, 10 and 3 times
  tar                                 the same tree, all caches cold
  git-commit, compile, kernel-build   one commit of the tree; 24 C files by a script; 120 in 12 directories by make -j2
  sqlite, mail                        100 transactions; 150 messages, each with fsync, rename, and read again
  dd                                  --size in blocks of 1 MiB, and fsync
  pip-install, npm-unpack             ten wheels, made here; 20,000 small files in 2,000 directories
  postmark, dbench, bonnie, fs_mark   the programs of these names, small
  mdtest-{create,stat,open}-{1,2,4}   storms of one operation by so many clients (storm.c)
  pgbench                             PostgreSQL, two clients, for --seconds
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import fnmatch
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pictures
import storm
import target as targets
from harness import SILENT, Bench, Cell, Cost, Rate, Results, Row, RowError, fresh, grid, number, run, timed
from pictures import Point
from trees import C_FILES, git, project, sources_tree

TREE = 1_000
COMMITS, MESSAGES = 100, 150
WHEELS, MODULES = 10, 40
MD_FILES = 4_000
PG_SECONDS = 60  # for starting and ending a server
OPCODES_SHOWN = 9


def tool(name: str, package: str = "") -> str:
    """A program's path; RowError if it is not there."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise RowError(f"{name} is not installed (package {package or name})")
    return found


def scaled(bench: Bench, n: int) -> int:
    return max(10, round(n * bench.scale))


def tree(bench: Bench) -> int:
    return sources_tree(bench, scaled(bench, TREE))


def unpack(bench: Bench, name: str) -> None:
    """The tree, in a directory of that name in the source, as new."""
    tree(bench)
    fresh(bench, name)
    run(["tar", "xf", bench.work / "tree.tar", "-C", bench.source / name], **SILENT)


def known(name: str) -> Callable[[Cell], None]:
    """Has the mount look at all of it."""
    def warm(c: Cell) -> None:
        run(["find", c.place / name, "-size", "+999999"], **SILENT)
    return warm


def many_times(n: int, words: Callable[[Cell], list[Any]]) -> Callable[[Cell], float]:
    """n runs of a command; files a second."""
    def load(c: Cell) -> float:
        begin = time.perf_counter()
        for _ in range(n):
            run(words(c), **SILENT)
        return Rate(n * tree(c.bench), time.perf_counter() - begin)
    return load


# ------------------------------------------------------------- trees of files

def untar(c: Cell) -> float:
    return timed(tree(c.bench), ["tar", "xf", c.bench.work / "tree.tar", "-C", c.place / "untar"])


def ready_untar(bench: Bench) -> None:
    tree(bench)
    fresh(bench, "untar")


def ready_tree(bench: Bench) -> None:
    unpack(bench, "job")
    shutil.rmtree(bench.source / "copy", ignore_errors=True)


def once(*words: str) -> Callable[[Cell], float]:
    """A command on the tree "job"; {} is the place."""
    def load(c: Cell) -> float:
        return timed(tree(c.bench), [w.replace("{}", str(c.place)) for w in words])
    return load


def tar_cold(c: Cell) -> float:
    with open(c.bench.work / "out.tar", "wb") as out:
        return timed(tree(c.bench), ["tar", "cf", "-", "-C", c.place / "job", "tree"], stdout=out)


def ready_git(bench: Bench) -> None:
    where = bench.source / "job"
    unpack(bench, "job")
    for p in where.rglob("*"):
        os.utime(p, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    run(git(where, "init", "-q"), **SILENT)
    run(git(where, "add", "."), **SILENT)
    run(git(where, "commit", "-q", "-m", "bench"), **SILENT)
    run(git(where, "status"), **SILENT)


def ready_git_new(bench: Bench) -> None:
    unpack(bench, "job")
    run(git(bench.source / "job", "init", "-q"), **SILENT)


def git_commit(c: Cell) -> float:
    begin = time.perf_counter()
    run(git(c.place / "job", "add", "."), **SILENT)
    run(git(c.place / "job", "commit", "-q", "-m", "bench"), **SILENT)
    return Rate(tree(c.bench), time.perf_counter() - begin)


def warm_git(c: Cell) -> None:
    run(git(c.place / "job", "status", "--porcelain"), **SILENT)


def npm_archive(bench: Bench) -> int:
    """Small files in many directories, as package managers unpack them; how many."""
    files, archive = scaled(bench, 20_000), bench.work / "npm.tar"
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=bench.work) as t:
            for n in range(files):
                at = Path(t) / "node_modules" / f"package-{n // 40}" / f"lib{n // 10 % 4}"
                at.mkdir(parents=True, exist_ok=True)
                (at / f"index{n % 10}.js").write_text(f"module.exports = {n};\n" * (1 + n % 40))
            run(["tar", "cf", archive, "-C", t, "node_modules"], **SILENT)
    return files


def npm_unpack(c: Cell) -> float:
    return timed(npm_archive(c.bench), ["tar", "xf", c.bench.work / "npm.tar", "-C", c.place / "npm",
                                        "--no-same-owner", "--no-same-permissions"])


def ready_npm(bench: Bench) -> None:
    npm_archive(bench)
    fresh(bench, "npm")


def wheel(where: Path, name: str) -> None:
    """A wheel (PEP 427) of pure Python."""
    info = f"{name}-1.0.dist-info"
    files = {f"{name}/m{n}.py": f"def f{n}(x):\n    return x + {n}\n" * 20 for n in range(MODULES)}
    files[f"{name}/__init__.py"] = ""
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(where / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as z:
        for path, text in files.items():
            z.writestr(path, text)


def ready_pip(bench: Bench) -> None:
    wheels = bench.work / "wheels"
    if not wheels.exists():
        wheels.mkdir()
        for n in range(WHEELS):
            wheel(wheels, f"benchpkg{n}")
    fresh(bench, "site")


def pip_install(c: Cell) -> float:
    return timed(WHEELS * MODULES, [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "-q", "install", "--no-index",
        "--root-user-action=ignore", "--target", c.place / "site", *sorted((c.bench.work / "wheels").iterdir())])


# -------------------------------------------------------------------- building

def compile_project(c: Cell) -> float:
    return timed(C_FILES, ["sh", "build.sh"], cwd=c.place / "project")


DIRECTORIES, C_EACH, HEADERS = 12, 10, 60


def ready_build(bench: Bench) -> None:
    """A project as a kernel's: directories with objects of their own, headers that all of them include."""
    fresh(bench, "build")
    top = bench.source / "build"
    (top / "include").mkdir()
    for n in range(HEADERS):
        (top / "include" / f"h{n}.h").write_text("".join(f"int h{n}_{k}(int, const char *);\n" for k in range(50)))
    rules = ["OBJ :=", "CFLAGS := -O1 -Iinclude -MMD -MP", "all: built"]
    for d in range(DIRECTORIES):
        (top / f"d{d}").mkdir()
        for n in range(C_EACH):
            used = "".join(f'#include "h{(7 * n + 5 * d + k) % HEADERS}.h"\n' for k in range(20))
            body = "".join(f"int f{d}_{n}_{k}(int x) {{ return x * {k + 1} + {n}; }}\n" for k in range(10))
            (top / f"d{d}" / f"c{n}.c").write_text(used + body)
        rules.append(f"OBJ{d} := " + " ".join(f"d{d}/c{n}.o" for n in range(C_EACH)))
        rules.append(f"d{d}/built-in.a: $(OBJ{d})\n\t$(AR) rcs $@ $^")
    rules.append("ALL := " + " ".join(f"d{d}/built-in.a" for d in range(DIRECTORIES)))
    rules.append("built: $(ALL)\n\t$(LD) -r -o $@ --whole-archive $(ALL)")
    rules.append("-include $(wildcard d*/*.d)")
    (top / "Makefile").write_text("\n".join(rules) + "\n")


def kernel_build(c: Cell) -> float:
    return timed(DIRECTORIES * C_EACH, [tool("make"), "-s", "-j2"], cwd=c.place / "build")


# --------------------------------------------------- databases, mail, one file

def script(c: Cell, code: str, *words: Any) -> float:
    """A Python program that prints its operations' latencies, in seconds, as JSON; operations a second."""
    out = run([sys.executable, "-c", code, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout
    c.latencies += json.loads(out)
    return Rate(len(c.latencies), sum(c.latencies))


SQLITE = """
import json, sqlite3, sys, time
db = sqlite3.connect(sys.argv[1])
db.execute("create table t (a integer primary key, b text)"); db.commit()
took = []
for n in range(int(sys.argv[2])):
    begin = time.perf_counter()
    db.execute("insert into t (b) values (?)", ("x" * 200,)); db.commit()
    took.append(time.perf_counter() - begin)
print(json.dumps(took))
"""
MAIL = """
import json, os, sys, time
os.chdir(sys.argv[1])
took = []
for n in range(int(sys.argv[2])):
    begin = time.perf_counter()
    with open(f"tmp/{n}", "wb") as f:
        f.write(b"Subject: x\\n" * 300); f.flush(); os.fsync(f.fileno())
    os.rename(f"tmp/{n}", f"new/{n}")
    with open(f"new/{n}", "rb") as f:
        f.read()
    os.rename(f"new/{n}", f"cur/{n}:2,S")
    took.append(time.perf_counter() - begin)
print(json.dumps(took))
"""


def ready_mail(bench: Bench) -> None:
    fresh(bench, "mail")
    for name in ("tmp", "new", "cur"):
        (bench.source / "mail" / name).mkdir()


def dd(c: Cell) -> float:
    blocks = c.bench.size >> 20
    return timed(blocks, ["dd", "if=/dev/zero", f"of={c.place}/dd/file", "bs=1M", f"count={blocks}", "conv=fsync"])


def pg(name: str) -> str:
    """A program of PostgreSQL's."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else tool(name, "postgresql")


def as_postgres(*words: Any) -> list[Any]:
    """PostgreSQL does not run as root."""
    if os.geteuid():
        return list(words)
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        raise RowError("there is no user postgres (package postgresql)") from None
    return [tool("setpriv", "util-linux"), "--reuid=postgres", "--regid=postgres", "--clear-groups", *words]


def pg_start(bench: Bench, where: Path) -> None:
    """Start a server on a cluster; pg_stop() ends it."""
    work = bench.work / "pg"
    with open(work / "log", "ab") as log:
        server = subprocess.Popen(
            list(map(str, as_postgres(pg("postgres"), "-D", where, "-k", work, "-c", "listen_addresses=", "-c",
                                      "autovacuum=off"))),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True)
    bench.keep["postgres"] = server
    end = time.monotonic() + PG_SECONDS
    while subprocess.run([pg("pg_isready"), "-q", "-h", work], check=False).returncode:
        if server.poll() is not None or time.monotonic() > end:
            raise RowError("postgres does not start: " + (work / "log").read_text().strip().splitlines()[-1])
        time.sleep(0.05)


def pg_stop(bench: Bench) -> None:
    server = bench.keep.pop("postgres", None)
    for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate
        if server is not None and server.poll() is None:
            server.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(PG_SECONDS)


def ready_pg(bench: Bench) -> None:
    """A cluster with pgbench's tables, copied from one that is made once."""
    made = bench.work / "pg" / "data"
    if not made.exists():
        made.parent.mkdir(exist_ok=True)
        if not os.geteuid():
            shutil.chown(made.parent, "postgres", "postgres")
        run(as_postgres(pg("initdb"), "-D", made, "-A", "trust", "-U", "bench", "--no-sync"), **SILENT, cwd="/")
        try:
            pg_start(bench, made)
            run(as_postgres(pg("pgbench"), "-h", made.parent, "-U", "bench", "-i", "-q", "-s", "2", "postgres"),
                **SILENT, cwd="/")
        finally:
            pg_stop(bench)
    shutil.rmtree(bench.source / "pg", ignore_errors=True)
    run(["cp", "-a", made, bench.source / "pg"], **SILENT)


def pgbench(c: Cell) -> float:
    log = c.bench.work / "pg" / "latency"
    for old in log.parent.glob("latency.*"):
        old.unlink()
    out = run(as_postgres(pg("pgbench"), "-h", log.parent, "-U", "bench", "-n", "-c", "2", "-j", "2", "-T",
                          max(1, round(c.bench.seconds)), "-l", f"--log-prefix={log}", "postgres"),
              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/").stdout
    for path in log.parent.glob("latency.*"):
        c.latencies += [int(line.split()[2]) / 1e6 for line in path.read_text().splitlines()]
    found = re.search(r"^tps = ([0-9.]+)", out, re.MULTILINE)
    if not found:
        raise RowError("pgbench told no tps")
    return Rate(len(c.latencies), len(c.latencies) / float(found[1]))


# -------------------------------------------------- programs made to measure

def postmark(c: Cell) -> float:
    files = scaled(c.bench, 500)
    told = (f"set location {c.place}/postmark\nset number {files}\nset transactions {4 * files}\n"
            "set size 500 10000\nset report terse\nrun\nquit\n")
    begin = time.perf_counter()
    run(["sh", "-c", 'printf "%s" "$2" | "$1"', "sh", tool("postmark"), told], **SILENT)
    return Rate(4 * files, time.perf_counter() - begin)


def dbench(c: Cell) -> float:
    load = Path("/usr/share/dbench/client.txt")
    if not load.exists():
        raise RowError(f"{load} is not there (package dbench)")
    out = run([tool("dbench"), "-c", load, "-D", c.place / "dbench", "-t", max(2, round(c.bench.seconds)), 2],
              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout
    found = re.search(r"^Throughput ([0-9.]+) MB/sec", out, re.MULTILINE)
    if not found:
        raise RowError("dbench told no throughput")
    return float(found[1])


def bonnie(c: Cell) -> float:
    size = max(16, c.bench.size >> 21)
    return timed(1, [tool("bonnie++"), "-d", c.place / "bonnie", "-s", size, "-r", size // 2, "-n", "1", "-f", "-q",
                     "-u", str(os.geteuid()), "-g", str(os.getegid())])


def fs_mark(c: Cell) -> float:
    files = scaled(c.bench, 1_000)
    # It knows no names of 40 bytes or more.
    return timed(2 * files, [tool("fs_mark", "fsmark"), "-d", "fs_mark", "-n", files, "-s", 4096, "-t", 2, "-S", 0,
                             "-L", 1, "-l", c.bench.work / "fs_mark.log"], cwd=c.place)


def mdtest(mode: str, clients: int) -> Row:
    """A storm on files that the mount has not seen, or of new ones."""
    def ready(bench: Bench) -> None:
        fresh(bench, "md")
        for n in range(scaled(bench, MD_FILES) if mode != "create" else 0):
            os.close(os.open(bench.source / "md" / f"f{n:06}", os.O_CREAT | os.O_WRONLY, 0o644))

    def load(c: Cell) -> float:
        count = 0 if mode == "create" else scaled(c.bench, MD_FILES)
        out = run([c.bench.program, mode, c.place / "md", clients, 0, count, c.bench.seconds],
                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout.split()
        return Rate(int(out[0]), float(out[1]))

    return Row(f"mdtest-{mode}-{clients}", load, ready)


def jobs() -> list[Row]:
    return [
        Row("untar", untar, ready_untar, unit="files"),
        Row("cp-a", once("cp", "-a", "{}/job", "{}/copy"), ready_tree, unit="files"),
        Row("rm-rf", once("rm", "-rf", "{}/job"), ready_tree, unit="files"),
        Row("rsync", once("rsync", "-a", "{}/job", "{}/copy"), ready_tree, unit="files"),
        Row("git-status", many_times(10, lambda c: git(c.place / "job", "status", "--porcelain")), ready_git,
            warm=warm_git, unit="files"),
        Row("find", many_times(10, lambda c: ["find", c.place / "job", "-size", "+1"]), ready_tree,
            warm=known("job"), unit="files"),
        Row("grep", many_times(3, lambda c: ["sh", "-c", 'grep -rc "no such words" "$1" || test $? = 1', "sh",
                                             c.place / "job"]), ready_tree, warm=known("job"), unit="files"),
        Row("tar", tar_cold, ready_tree, cold=True, unit="files"),
        Row("git-commit", git_commit, ready_git_new, unit="files"),
        Row("compile", compile_project, project, unit="C files"),
        Row("kernel-build", kernel_build, ready_build, unit="C files"),
        Row("sqlite", lambda c: script(c, SQLITE, c.place / "sqlite" / "db", COMMITS), lambda b: fresh(b, "sqlite"),
            unit="commits"),
        Row("mail", lambda c: script(c, MAIL, c.place / "mail", MESSAGES), ready_mail, unit="messages"),
        Row("dd", dd, lambda b: fresh(b, "dd"), unit="MiB"),
        Row("pip-install", pip_install, ready_pip, unit="modules"),
        Row("npm-unpack", npm_unpack, ready_npm, unit="files"),
        Row("postmark", postmark, lambda b: fresh(b, "postmark"), unit="transactions"),
        Row("dbench", dbench, lambda b: fresh(b, "dbench"), unit="MB"),
        Row("bonnie", bonnie, lambda b: fresh(b, "bonnie"), unit="runs"),
        Row("fs_mark", fs_mark, lambda b: fresh(b, "fs_mark"), unit="files"),
        *(mdtest(mode, n) for mode in ("create", "stat", "open") for n in (1, 2, 4)),
        Row("pgbench", pgbench, ready_pg, warm=lambda c: pg_start(c.bench, c.place / "pg"),
            after=lambda c: pg_stop(c.bench), unit="transactions"),
    ]


def select(patterns: list[str]) -> list[Row]:
    every = jobs()
    for pattern in patterns:
        if not fnmatch.filter([r.name for r in every], pattern):
            raise SystemExit(f"jobs.py: no job is named {pattern!r} (--list shows them)")
    return [r for r in every if any(fnmatch.fnmatchcase(r.name, p) for p in patterns)]


# ---------------------------------------------------------------- who sends it

OURS_IN_KERNEL = re.compile(r"^(?:__)?fuse_|^(?:create_new_entry|process_init)")
MIDDLE = {"schedule", "__schedule", "request_wait_answer", "__fuse_simple_request", "__fuse_request_send"}


def sent_for(stack: list[str]) -> str | None:
    """'function of fs/fuse < its callers' of a stack in which somebody waits for an answer; None: of another one."""
    if not any(f.startswith(("request_wait_answer", "__fuse_simple_request")) for f in stack):
        return None
    kernel = [f for f in stack[:next((n for n, f in enumerate(stack) if f.startswith("do_syscall")), len(stack))]
              if f.split(".")[0] not in MIDDLE]
    return " < ".join(kernel[:6])


def senders(row: Row, bench: Bench) -> str:
    """A table of the functions that sent what somebody waited for, by context switches."""
    data = bench.work / "perf.data"
    row.ready(bench)
    mountpoint = Path(tempfile.mkdtemp(prefix="passthru-bench-mnt-"))
    with targets.running(targets.ours("default"), bench.source, mountpoint) as (place, daemon):
        cell = Cell(bench, place, False)
        try:
            row.warm(cell)
            assert daemon is not None
            before = daemon.page()
            asks, answers = os.pipe(), os.pipe()
            perf = subprocess.Popen([
                tool("perf", "linux-perf"), "record", "-q", "-o", data, "-g", "-e", "context-switches", "-c", "1",
                "-p", str(os.getpid()), "--delay=-1", f"--control=fd:{asks[0]},{answers[1]}"],
                stdin=subprocess.DEVNULL, pass_fds=(asks[0], answers[1]))
            os.write(asks[1], b"enable\n")
            os.read(answers[0], 16)  # it records from now on
            row.run(cell)
            time.sleep(harness.SETTLE_SECONDS)
            perf.send_signal(signal.SIGINT)
            perf.wait()
            for fd in (*asks, *answers):
                os.close(fd)
            after = daemon.page()
        finally:
            row.after(cell)
    with contextlib.suppress(OSError):
        mountpoint.with_name(mountpoint.name + ".log").unlink()
        mountpoint.rmdir()
    assert before is not None and after is not None
    found: collections.Counter[str] = collections.Counter()
    script = ["perf", "script", "-i", str(data), "-F", "comm,ip,sym"]
    for sample in subprocess.run(script, capture_output=True, text=True, check=True).stdout.split("\n\n"):
        stack = [re.sub(r"\+0x[0-9a-f]+$", "", line.split(None, 1)[1]) for line in sample.splitlines()[1:]
                 if len(line.split(None, 1)) == 2]
        if who := sent_for(stack):
            found[who] += 1
    told = before.ops()
    asked = {k: v - told.get(k, 0) for k, v in after.ops().items() if v > told.get(k, 0)}
    lines = [["sent by, for", "waits"], *([who, str(n)] for who, n in found.most_common(30))]
    return f"{row.name}: " + ", ".join(f"{k} {v:,}" for k, v in sorted(asked.items(), key=lambda x: -x[1])) + \
        "\n\n" + grid(lines)


# --------------------------------------------------------------------- a page

def each(what: Callable[[Cost], float | None]) -> Callable[[Cost], float | None]:
    """Something for each operation."""
    def value(c: Cost) -> float | None:
        x = what(c)
        return None if x is None or not c.operations else x / c.operations
    return value


def table_of(results: Results, what: Callable[[Cost], float | None], scale: float) -> str:
    names = [n for n in results.names if any(results.cost(row, n, what) is not None for row in results.values)]
    lines = [["job", *names]]
    for row in results.values:
        found = [results.cost(row, n, what) for n in names]
        if any(x is not None for x in found):
            lines.append([row, *("-" if x is None else f"{x * scale:,.3g}" for x in found)])
    return grid(lines)


def points_of(results: Results, what: Callable[[Cost], float | None], scale: float) -> dict[str, dict[str, Point]]:
    found: dict[str, dict[str, Point]] = {}
    for row in results.values:
        for n in results.names:
            v = [x * scale for c in results.costs.get(row, {}).get(n, []) if (x := what(c))]
            if v and n not in results.problems[row]:
                found.setdefault(row, {})[n] = Point(statistics.median(v), min(v), max(v))
    return found


def requests_of(results: Results, name: str) -> dict[str, dict[str, float]]:
    """Requests for each operation, medians, by job and opcode."""
    found: dict[str, dict[str, float]] = {}
    for row in results.values:
        costs = [c for c in results.costs.get(row, {}).get(name, []) if c.requests and c.operations]
        codes = {code for c in costs for code in c.requests}
        if costs and name not in results.problems[row]:
            found[row] = {code: statistics.median(c.requests.get(code, 0) / c.operations for c in costs)
                          for code in codes}
    return found


def request_section(results: Results, name: str) -> tuple[str, str] | None:
    """(tables, picture) of what a target's daemon is asked; None: it does not tell."""
    found = requests_of(results, name)
    if not found:
        return None
    sums: dict[str, float] = {}
    for row in found.values():
        for code, n in row.items():
            sums[code] = sums.get(code, 0.0) + n / (sum(row.values()) or 1)
    names = sorted(sums, key=lambda code: -sums[code])[:OPCODES_SHOWN]
    shown = {job: {**{c: row[c] for c in names if c in row},
                   "others": sum(n for c, n in row.items() if c not in names)} for job, row in found.items()}
    # A run of bonnie++ is one operation, and so is a megabyte: shares can be compared, lengths cannot.
    shares = {f"{job} ({sum(row.values()):.3g})": {c: n / (sum(row.values()) or 1) for c, n in row.items()}
              for job, row in shown.items()}
    lines = [["job", "for each operation", "requests in all"]]
    for job, row in found.items():
        last = results.costs[job][name][-1].requests
        asked = ", ".join(f"{code} {k:,}" for code, k in sorted(last.items(), key=lambda x: -x[1]))
        lines.append([job, f"{sum(row.values()):.3g}", asked])
    picture = pictures.stacks(f"What is the daemon asked? ({name})", "parts; in brackets: requests for each operation",
                              [*names, "others"], shares)
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], ["---", "---:", "---"], *lines[1:]]), picture


def plain(text: str) -> str:
    """A command without the paths of one machine."""
    return re.sub(r"(?<![\w{}])/(?:[\w.+-]+/)*([\w.+-]+)", r"\1", text)


def page(results: Results, baselines: list[str], where: Path, name: str, command: str) -> None:
    """Write the page, and its pictures beside it."""
    parts = ["# Jobs", f"`{plain(command)}`", harness.heading(results),
             "Targets:\n\n" + "\n".join(
                 f"- `{n}`: " + (f"`{plain(t['command'])}`" if t["command"] else "the source itself")
                 + (f", claim {t['claim']}" if t["claim"] else "")
                 for n, t in results.environment["targets"].items())]

    def section(title: str, key: str, text: str, svg: str) -> None:
        path = where.with_name(f"{where.stem.lower()}-{key}.svg")
        path.write_text(svg)
        parts.append(f"## {title}\n\n![{title}]({path.name})\n\n{text}")

    for base in baselines:
        others = [n for n in results.names if n != base]
        rows = {row: {n: Point(*r) for n in others if (r := results.ratio(row, n, base))} for row in results.values}
        section(f"How fast is it, to {base}?", f"to-{base}", harness.ratios(results, base),
                pictures.dots(f"How fast is it, to {base}?", "right is faster", others, rows, rule=1.0))
    units = {r.name: r.unit for r in jobs()}
    parts.append("Operations per second, medians:\n\n" + grid([["job", "operation", *results.names], *(
        [row, units.get(row.split(" ")[0], ""), *(number(results.median(row, n)) for n in results.names)]
        for row in results.values)]))
    if found := request_section(results, name):
        section("What is the daemon asked?", "requests", *found)
    for title, key, what, scale, unit in (
            ("What does it cost in CPU time?", "cpu", each(lambda c: c.cpu_ns or None), 1e-3,
             "microseconds of the daemon's CPU time for each operation"),
            ("How long does the slowest hundredth of requests take?", "requests-p99", lambda c: c.request_p99, 1e6,
             "microseconds in the daemon"),
            ("How long does the slowest hundredth of operations take?", "p99", lambda c: c.load_p99, 1e3,
             "milliseconds, as the job sees it"),
            ("How long until a mount is usable?", "start", lambda c: c.mounted or None, 1e3, "milliseconds"),
            ("How long until it has ended?", "end", lambda c: c.ended or None, 1e3, "milliseconds from umount(8) on")):
        points = points_of(results, what, scale)
        if points:
            if key in ("start", "end"):  # the job does not matter
                points = {"all jobs": {n: Point(statistics.median(v), min(v), max(v)) for n in results.names
                                       if (v := [row[n].value for row in points.values() if n in row])}}
                found_all = points["all jobs"]
                text = grid([["", *found_all], [unit, *(f"{p.value:.3g}" for p in found_all.values())]])
            else:
                text = unit + "\n\n" + table_of(results, what, scale)
            section(title, key, text, pictures.dots(title, unit, list(results.names), points))
    if why := harness.refusals(results):
        parts.append("## What was refused\n\n" + plain(why))
    where.write_text("\n\n".join(parts) + "\n")


# -------------------------------------------------------------------- command

def parse(argv: list[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="jobs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--jobs", action="append", default=[], metavar="GLOB", help="may be repeated; default: all")
    p.add_argument("--scale", type=float, default=1.0, help="of the numbers of files")
    p.add_argument("--page", type=Path, metavar="FILE.md", help="write a page, and its pictures beside it")
    p.add_argument("--requests-of", default="default", metavar="NAME", help="whose requests the page shows")
    p.add_argument("--senders", action="store_true", help="print who sent the requests (needs perf)")
    harness.add_arguments(p, 3.0, 256 << 20)
    args = p.parse_args(argv)
    harness.finish_arguments(p, args)
    if args.scale <= 0:
        p.error("--scale must be positive")
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    if args.list:
        print("\n".join(r.name for r in jobs()))
        return 0
    if args.load:
        results, baselines = harness.loaded(args)
    else:
        chosen, baselines = select(args.jobs or ["*"]), args.baseline
        with harness.workplace(args.source) as (source, work):
            try:
                program = storm.build(work)
            except storm.NoCompiler as e:
                raise SystemExit(f"jobs.py: {e}") from None
            bench = Bench(source, work, args.seconds, args.size, program, args.scale)
            if args.senders:
                for row in chosen:
                    print(senders(row, bench) + "\n", flush=True)
                return 0
            results = Results(harness.environment(source, args), [t.name for t in args.targets])
            results.environment["command"] = "python bench/jobs.py " + " ".join(
                w for w in argv if w not in ("--page", "--json", str(args.page), str(args.json)))
            harness.compare(chosen, args.targets, bench, args.rounds, results, args.seed, args.only)
    print(harness.heading(results))
    for base in baselines:
        print(f"\nratio to {base}: median (least..most)\n\n" + harness.ratios(results, base))
    if why := harness.refusals(results):
        print("\nrefused:\n" + why)
    if args.json:
        args.json.write_text(json.dumps(harness.as_json(results, baselines), indent=1) + "\n")
    if args.page:
        page(results, baselines, args.page, args.requests_of, results.environment.get("command", ""))
    return 3 if any(results.problems.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
