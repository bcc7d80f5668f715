"""Mounts for the benchmarks, proof of the transport, and the table at the end.

    python -m pytest bench -q --benchmark-quiet [--bench-source DIR]

Each row is measured on the bare source, and through a mount as it is by default (data by the kernel's
passthrough), by the ring and by /dev/fuse, one right after the other.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import storm
import target as targets

TARGETS = ("bare", *targets.OURS)
ROUNDS = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bench-source", type=Path, default=Path("/dev/shm"), metavar="DIR",
        help="where the source directory is made: decides what lies below (default: /dev/shm)")


class Place:
    """Where a row works: the source itself, or the mount of it that a daemon serves."""

    def __init__(self, name: str, path: Path, source: Path, daemon: targets.Daemon | None):
        self.name, self.path, self.source, self.daemon = name, path, source, daemon

    def counters(self) -> dict[str, int]:
        found = self.daemon.counters() if self.daemon else None
        assert found is not None, f"{self.name}: no counters of passthru: which daemon is this?"
        return found


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> storm.Library:
    """The load generator."""
    try:
        return storm.Library(tmp_path_factory.mktemp("storm"))
    except storm.NoCompiler as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def source(request: pytest.FixtureRequest) -> Iterator[Path]:
    where = Path(tempfile.mkdtemp(prefix="passthru-bench-", dir=request.config.getoption("--bench-source")))
    where.chmod(0o755)
    targets.make_probe_file(where)
    yield where
    shutil.rmtree(where)


@pytest.fixture(scope="session")
def mounts(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """Place of a target; its daemon runs from its first row to the end of the session."""
    running: dict[str, Place] = {"bare": Place("bare", source, source, None)}

    def place(name: str) -> Place:
        if name in running:
            return running[name]
        if name != "dev":
            try:
                enabled = Path("/sys/module/fuse/parameters/enable_uring").read_text().strip()
            except OSError:
                enabled = "missing"
            if enabled != "Y":
                pytest.skip(f"the kernel's parameter fuse.enable_uring is {enabled}, not Y")
        daemon = targets.Daemon(targets.ours(name), source, tmp_path_factory.mktemp(name))
        running[name] = Place(name, daemon.mountpoint, source, daemon)
        daemon.wait_mounted()
        daemon.prove_ready()
        return running[name]

    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    targets.raise_fd_limit()
    try:
        yield place
    finally:
        for p in running.values():
            if p.daemon is not None:
                p.daemon.end()


@pytest.fixture(params=TARGETS)
def place(request: pytest.FixtureRequest, mounts: Callable[[str], Place]) -> Place:
    return mounts(request.param)


@pytest.fixture
def measure(place: Place, benchmark: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """measure(row, work, before): time work(round) which gives the operations that it did.

    before(round) is not timed. The counters must say that the transport served what reached the daemon.
    """
    def go(row: str, work: Callable[[int], int], before: Callable[[int], Any] | None = None) -> None:
        operations: list[int] = []

        def setup() -> tuple[tuple[int], dict[str, Any]]:
            n = len(operations)
            if before is not None:
                before(n)
            return (n,), {}

        def timed(n: int) -> None:
            operations.append(work(n))

        start = place.counters() if place.daemon else {}
        benchmark.group = row
        benchmark.pedantic(timed, setup=setup, rounds=ROUNDS, warmup_rounds=1)
        if place.daemon:
            end = place.counters()
            used, other = ("dev", "ring") if place.name == "dev" else ("ring", "dev")
            assert end[f"{used}_requests"] > start[f"{used}_requests"], f"nothing came by {used}"
            assert end[f"{other}_requests"] == 0, f"{end[f'{other}_requests']} requests came by {other}"
        if benchmark.stats is None:  # --benchmark-disable
            return
        # The first run was the warm-up, which pytest-benchmark did not time.
        rates = [n / t for n, t in zip(operations[1:], benchmark.stats.stats.data, strict=True)]
        rates.sort()
        rate = rates[len(rates) // 2]
        table: dict[str, dict[str, float]] = request.config.stash.setdefault(TABLE, {})
        table.setdefault(row, {})[place.name] = rate
        benchmark.extra_info["ops_per_second"] = round(rate)
        if "bare" in table[row]:
            benchmark.extra_info["ratio_to_bare"] = round(rate / table[row]["bare"], 3)

    yield go


TABLE: pytest.StashKey[dict[str, dict[str, float]]] = pytest.StashKey()
PIECES: pytest.StashKey[dict[str, float]] = pytest.StashKey()


@pytest.fixture
def piece(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """piece(name, work, times): time work(times), which does so many operations; the fastest round counts."""
    def go(name: str, work: Callable[[int], int], times: int) -> None:
        assert work(times) == times  # warm, and proved
        benchmark.group = "pieces"
        benchmark.pedantic(work, args=(times,), rounds=2 * ROUNDS)
        if benchmark.stats is not None:
            ns = benchmark.stats.stats.min / times * 1e9
            benchmark.extra_info["ns_per_operation"] = round(ns, 2)
            request.config.stash.setdefault(PIECES, {})[name] = ns
    return go


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    pieces = config.stash.get(PIECES, {})
    if pieces:
        terminalreporter.section("nanoseconds per operation, least of all rounds")
        for name, ns in pieces.items():
            terminalreporter.line(f"{name:48}{ns:>12,.1f}")
    table = config.stash.get(TABLE, {})
    if not table:
        return
    terminalreporter.section("operations per second (ratio to the bare source)")
    width = max(map(len, table))
    terminalreporter.line(f"{'':{width}}" + "".join(f"{name:>20}" for name in TARGETS))
    for row, rates in table.items():
        line = f"{row:{width}}"
        for name in TARGETS:
            text = "-"
            if name in rates:
                text = f"{rates[name]:,.0f}"
                if name != "bare" and "bare" in rates:
                    text += f" ({rates[name] / rates['bare']:.3f})"
            line += f"{text:>20}"
        terminalreporter.line(line)
