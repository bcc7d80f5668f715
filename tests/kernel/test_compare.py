"""The same operation by the same caller on the bare source and on the mount: the same result, the same left behind.

The cases are generated (_operations.py): operations with their flags, kinds of files, directories that they are in,
callers. PASSTHRU_COMPARE_CASES: how many for each mount; PASSTHRU_COMPARE_SEED: which ones.
"""
from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _operations as ops
import pytest
from _daemon import Daemon
from _modes import DATA_TOO
from _operations import CALLERS, Case, Worker

pytestmark = [DATA_TOO, pytest.mark.timeout(300)]

COUNT = int(os.environ.get("PASSTHRU_COMPARE_CASES", "3000"))
SEED = int(os.environ.get("PASSTHRU_COMPARE_SEED", "1"))
SHOWN = 60  # ways in which cases differ
BATCH = 1000


@dataclass(frozen=True)
class Difference:
    """What is not the same in one case: {what: (bare, mount)}."""
    case: Case
    said: dict[str, tuple[Any, Any]]

    @property
    def group(self) -> tuple[object, ...]:
        """Those that show the same have this in common."""
        shape: list[object] = [self.case.operation.family]
        for what, values in self.said.items():
            if what == "result":
                shape.append(tuple(v if isinstance(v, str) and v.isupper() else "done" for v in values))
            elif what.startswith("mode"):
                shape.append((what, *(int(v, 8) & 0o7000 for v in values)))
            elif what != "lstat afterwards":
                shape.append(what)
        return (*shape, "lstat afterwards") if len(shape) == 1 else tuple(shape)

    @property
    def results(self) -> tuple[Any, Any]:
        return self.said.get("result", ("same", "same"))


def _refused(d: Difference) -> bool:
    """By both, with different error codes."""
    return list(d.said) == ["result"] and all(isinstance(v, str) and v.isupper() for v in d.results)


def _less(d: Difference) -> bool:
    """Only rights are gone that the bare source has left: bits of the mode, file capabilities."""
    for what, (bare, mount) in d.said.items():
        if what.startswith("mode"):
            if int(mount, 8) & int(bare, 8) != int(mount, 8) or (int(bare, 8) ^ int(mount, 8)) & 0o777:
                return False
        elif what.startswith("xattrs"):
            if mount != {name: value for name, value in bare.items() if name != ops.CAPS}:
                return False
        elif what not in ("result", "lstat afterwards"):
            return False
    return True


def _times_only(d: Difference, which: str) -> bool:
    return all(what.startswith(which) or what == "lstat afterwards" for what in d.said)


# What FUSE itself makes different, whatever the server does: (why, what it is about).
KNOWN: Sequence[tuple[str, Callable[[Difference], bool]]] = (
    ("fuse_file_fallocate() knows KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE; no request is sent for others",
     lambda d: d.case.operation.name.startswith("fallocate(") and d.results[1] == "ENOTSUP" and any(
         mode in d.case.operation.name for mode in ("COLLAPSE", "INSERT", "UNSHARE", "WRITE_ZEROES"))),
    ("with default_permissions access(2) is answered from the mode and ACL: FUSE's inodes have no immutable flag",
     lambda d: "access" in d.case.operation.name and bool(d.case.kind.flags) and d.results == (False, True)),
    ("FUSE's inodes have no immutable and append-only flags: the VFS finds another reason to refuse before it asks",
     lambda d: bool(d.case.kind.flags) and _refused(d) and d.results[0] == "EPERM"),
    ("to take a default ACL away from what is no directory is nothing to do: the VFS does not ask",
     lambda d: bool(d.case.kind.flags) and ops.DEFAULT in d.case.operation.name and d.results == ("EPERM", None)),
    ("a directory's offsets are the filesystem's own, and fuse_dir_operations has no SEEK_DATA and SEEK_HOLE",
     lambda d: d.case.operation.name.startswith("SEEK_") and "directory" in d.case.kind.name
     and list(d.said) == ["result"]),
    ("what was stored through a mapping is written back in nobody's name: the source clears what a stranger's write does",
     lambda d: "mmap store" in d.case.operation.name and _less(d)),
    ("read-ahead is a READ like others, which touches the access time",
     lambda d: d.case.operation.name.startswith("readahead") and _times_only(d, "atime")),
    ("what is behind the known end is not asked for, so the access time stays",
     lambda d: (d.case.operation.name.startswith("pread at 4,990") or d.case.kind.name.startswith("empty"))
     and _times_only(d, "atime") and "now" not in [mount for _, mount in d.said.values()]),
    ("a FIFO's data is the kernel's own: it tells no server of writes",
     lambda d: "fifo" in d.case.kind.name and _times_only(d, "mtime")),
)


def short(value: Any) -> str:
    said = repr(value)
    return said if len(said) < 120 else f"{said[:60]}... ({len(said)} characters)"


def compare(case: Case, bare: ops.Said, mount: ops.Said, left: ops.Found, right: ops.Found) -> Difference | None:
    said: dict[str, tuple[Any, Any]] = {}
    if bare[0] != mount[0]:
        said["result"] = bare[0], mount[0]
    if bare[1] != mount[1]:
        said["lstat afterwards"] = bare[1], mount[1]
    for name in sorted(left.keys() | right.keys()):
        a, b = left.get(name), right.get(name)
        where = name or "the directory"
        if a is None or b is None:
            said[where] = "is there" if a else "is not there", "is there" if b else "is not there"
            continue
        for what in sorted(a.keys() | b.keys()):
            if a.get(what) != b.get(what):
                said[f"{what} of {where}"] = a.get(what), b.get(what)
    return Difference(case, said) if said else None


def report(differences: Sequence[Difference], count: int) -> str:
    """Grouped, each group with its plainest case."""
    groups: dict[tuple[object, ...], list[Difference]] = {}
    for d in differences:
        groups.setdefault(d.group, []).append(d)
    lines = [f"{len(differences)} of {count} cases differ, in {len(groups)} ways"]
    for same in sorted(groups.values(), key=len, reverse=True)[:SHOWN]:
        one = min(same, key=lambda d: d.case.rank)
        lines.append(f"\n{len(same)} x {one.case}")
        lines += [f"    {what}: bare {short(bare)}, mount {short(mount)}" for what, (bare, mount) in one.said.items()]
        for title, names in (("operations", {d.case.operation.name for d in same}),
                             ("files", {d.case.kind.name for d in same}),
                             ("callers", {d.case.caller.name for d in same}),
                             ("directories", {d.case.parent.name for d in same})):
            some = sorted(names)
            if len(some) > 1:
                lines.append(f"    {title}: {', '.join(some[:12])}{', ...' if len(some) > 12 else ''}")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def workers() -> Iterator[dict[ops.Caller, Worker]]:
    found = {who: Worker(who) for who in CALLERS}
    yield found
    for w in found.values():
        w.end()


def enter(place: Path, where: str) -> Path:
    """The source: a directory on the tests' filesystem, or a tmpfs."""
    source = place / "src"
    source.mkdir()
    if where == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", source], check=True)
    for side in ("bare", "mount"):
        (source / side).mkdir()
    return source


def run(fs: Daemon, workers: dict[ops.Caller, Worker], chosen: Sequence[Case]) -> list[Difference]:
    program = Path(ops.PROGRAM).read_bytes()
    found: list[Difference] = []
    for start in range(0, len(chosen), BATCH):
        batch = list(enumerate(chosen[start:start + BATCH], start))
        for n, case in batch:
            for side in ("bare", "mount"):
                ops.make(f"{fs.src}/{side}/{n}", case, program)
        mine = {who: [(n, c) for n, c in batch if c.caller == who] for who in CALLERS}
        for who, some in mine.items():
            workers[who].start([ops.job(c, f"{fs.src}/bare/{n}", f"{fs.mnt}/mount/{n}") for n, c in some])
        said = {n: answer for who, some in mine.items()
                for (n, _), answer in zip(some, workers[who].answers(60), strict=True)}
        for n, case in batch:
            tops = [f"{fs.src}/{side}/{n}" for side in ("bare", "mount")]
            left, right = map(ops.look, tops)
            different = compare(case, *said[n], left, right)
            if different:
                found.append(different)
            for top in tops:
                if case.kind.flags or "flags" in case.operation.name:
                    ops.unprotect(top)
                shutil.rmtree(top)
    return found


@pytest.mark.parametrize("where", ["ext4", "tmpfs"])
@pytest.mark.parametrize("option", ["", "--writeback"])
def test_same(mount, place, workers, transport, option, where):
    if where == "tmpfs" and option:
        pytest.skip("what --writeback changes does not depend on the source")
    fs = mount(*filter(None, [option]), source=enter(place, where))
    try:
        found = run(fs, workers, ops.cases(f"{SEED} {transport} {option} {where}", COUNT))
    except BaseException:
        ops.unprotect(str(fs.src))
        raise
    left = [d for d in found if not any(same(d) for _, same in KNOWN)]
    if left:
        pytest.fail(report(left, COUNT), pytrace=False)
