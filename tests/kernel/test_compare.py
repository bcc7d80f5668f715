"""The same operation by the same caller on the bare source and on the mount: the same result, the same left behind.

The cases are generated (_operations.py): operations with their flags, kinds of files, directories that they are in,
callers. PASSTHRU_COMPARE_CASES: how many for each mount; PASSTHRU_COMPARE_SEED: which ones.
"""
from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _operations as ops
import pytest
from _daemon import Daemon, detach
from _modes import DATA_TOO
from _operations import CALLERS, Case, Worker

pytestmark = [pytest.mark.release_only("takes long on a build with sanitizers"), DATA_TOO, pytest.mark.timeout(300)]

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
            if what == "after":
                shape += values
            elif what == "result":
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
        elif what not in ("result", "lstat afterwards") and not what.startswith("mtime"):
            return False
    return True


def _marked(d: Difference) -> bool:
    """Only set-group-ID is there that the bare source has taken, where the group may not execute."""
    modes = [(int(bare, 8), int(mount, 8)) for what, (bare, mount) in d.said.items() if what.startswith("mode")]
    return all(what in ("result", "lstat afterwards") or what.startswith("mode") for what in d.said) and \
        all(mount == bare | 0o2000 and not bare & 0o010 for bare, mount in modes)


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
    ("stores through a mapping are written back in nobody's name: the source clears what a stranger's write does",
     lambda d: "mmap store" in d.case.operation.name and _less(d)),
    ("read-ahead is a READ like others, which touches the access time",
     lambda d: d.case.operation.name.startswith("readahead") and _times_only(d, "atime")),
    ("what is past the known end is not asked for, so the access time stays",
     lambda d: (d.case.operation.name.startswith("pread at 4,990") or d.case.kind.name.startswith("empty"))
     and _times_only(d, "atime") and "now" not in [mount for _, mount in d.said.values()]),
    ("requests do not name supplementary groups: set-group-ID goes where the group may not execute",
     lambda d: d.case.kind.mode & 0o2010 == 0o2000 and d.case.kind.gid in d.case.caller.groups and _less(d)),
    ("FALLOCATE and COPY_FILE_RANGE do not say, as WRITE does, whether the caller has CAP_FSETID",
     lambda d: d.case.caller.uid != 0 and bool(d.case.caller.caps >> ops.CAP_FSETID & 1) and _less(d)
     and ("fallocate" in d.case.operation.name or "copy_file_range" in d.case.operation.name)),
    ("chown(2) with nothing to set arrives as what precedes a write(2) to a file with suid or capabilities does",
     lambda d: d.case.operation.name in ("chown to nothing", "lchown to nothing") or "fchown to itself" in
     d.case.operation.name),
    ("a member's write takes set-group-ID away where the group may not execute: it is made in nobody's name",
     lambda d: d.case.kind.mode & 0o2010 == 0o2000 and d.case.kind.gid == d.case.caller.gid and _less(d)),
    ("fuse_file_fallocate() has capabilities removed before it asks",
     lambda d: "fallocate" in d.case.operation.name and d.case.kind.xattrs != () and _less(d)),
    ("set-group-ID without group execute is a mark, no right: chown(2) as root leaves it",
     lambda d: "chown" in d.case.operation.name and _marked(d)),
    ("a truncate(2) to the size that it has is an ftruncate(2) in the source, which tmpfs dates",
     lambda d: d.case.operation.name.startswith("truncate to") and _times_only(d, "mtime")),
    ("requests do not name capabilities but root's: what is made by others with CAP_FSETID loses set-group-ID",
     lambda d: d.case.caller.uid != 0 and bool(d.case.caller.caps >> ops.CAP_FSETID & 1) and _less(d)
     and "make" in d.case.operation.name),
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
        lines += [f"    after: {bare} ({mount})" if what == "after" else
                  f"    {what}: bare {short(bare)}, mount {short(mount)}" for what, (bare, mount) in one.said.items()]
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


@pytest.fixture
def source(where: str, transport: str) -> Iterator[Path]:
    """A source on the tests' filesystem, or a tmpfs, with a directory for each side."""
    base = os.environ.get("PASSTHRU_TEST_DIR", "/var/tmp")
    top = Path(tempfile.mkdtemp(prefix="passthru-compare-", dir=base)).resolve()
    top.chmod(0o755)
    if where == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", top], check=True)
    for side in ("bare", "mount"):
        (top / side).mkdir()
    yield top
    if where == "tmpfs":
        detach(str(top))
    ops.remove(str(top))


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
                ops.remove(top)
    return found


# What the daemon refuses by itself: docs/security.md.
CHOSEN: Sequence[tuple[str, Callable[[Difference], bool]]] = (
    ("a program that has rights of its own, and that others than root may write, is not executed",
     lambda d: d.case.operation.family == "programs" and d.results[1] == "EACCES"
     and isinstance(d.results[0], (list, tuple))
     and all(what.startswith(("result", "lstat", "atime")) for what in d.said)),
)
# With --writeback pages are the kernel's, and it writes them in nobody's name.
KNOWN_WRITEBACK: Sequence[tuple[str, Callable[[Difference], bool]]] = (
    ("a part of a page is written after all of it was read",
     lambda d: _times_only(d, "atime")),
    ("pages are written in nobody's name: the source clears what a stranger's write does",
     lambda d: _less(Difference(d.case, {w: v for w, v in d.said.items() if not w.startswith("atime")}))),
    ("the kernel's own idea of the modification time wins over the source's",
     lambda d: _times_only(d, "mtime")),
)
# The kernel's own file stays as it was opened, and is written in nobody's name.
KNOWN_PASSTHROUGH: Sequence[tuple[str, Callable[[Difference], bool]]] = (
    ("O_NOATIME comes too late", lambda d: "F_SETFL" in d.case.operation.name and _times_only(d, "atime")),
    ("suid and sgid that come later go with anybody's write",
     lambda d: "write" in d.case.operation.name and d.case.caller.uid == 0 and _less(d)),
)
# What the options change does not depend on the source.
PLACES = [pytest.param((), "ext4", id="ext4"), pytest.param((), "tmpfs", id="tmpfs"),
          pytest.param(("--writeback",), "ext4", id="writeback")]


@pytest.mark.parametrize("option, where", PLACES)
def test_same(source, mount, workers, transport, option, where):
    fs = mount(*option, source=source)
    found = run(fs, workers, ops.cases(f"{SEED} {transport} {' '.join(option)} {where}", COUNT))
    known = (*KNOWN, *CHOSEN, *(KNOWN_WRITEBACK if option else ()),
             *(KNOWN_PASSTHROUGH if transport == "passthrough" else ()))
    left = [d for d in found if not any(same(d) for _, same in known)]
    if left:
        pytest.fail(report(left, COUNT), pytrace=False)


# ------------------------------------------------------------ after a change beside the mount

SECRET = b"secret of somebody else"
AT_ONCE = 10  # cases between looking, change and operation: they take much less than the attributes' time


def _replace(path: str, uid: int, gid: int, mode: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, SECRET)
    os.close(fd)
    os.chown(path, uid, gid)
    os.chmod(path, mode)


@dataclass(frozen=True)
class Change:
    """What root does in the source after the caller has looked through the mount."""
    name: str
    fact: str  # what a check rests on that is not so any more
    act: Callable[[str], None]
    kinds: Sequence[ops.Kind] = ops.FILES
    parents: Sequence[ops.Parent] = ops.PARENTS


_PRIVILEGED = [k for k in ops.PROGRAMS if k.mode & 0o6000 or (k.xattrs and k.xattrs[0][0] == ops.CAPS)]
_WITH_ACL = [k for k in ops.FILES if k.xattrs and k.xattrs[0][0] == ops.ACCESS]
_OPEN = [p for p in ops.PARENTS if not p.mode & 0o1000 and p.mode & 0o777 == 0o777]
_STICKY = [p for p in ops.PARENTS if p.mode & 0o1000]
CHANGES = (
    Change("chmod 0755 of f", "set-user-ID", lambda top: os.chmod(f"{top}/f", 0o755), _PRIVILEGED),
    Change("setcap -r of f", "set-user-ID", lambda top: os.removexattr(f"{top}/f", ops.CAPS),
           [k for k in _PRIVILEGED if k.xattrs and k.xattrs[0][0] == ops.CAPS]),
    Change("write to f by nobody special", "set-user-ID", lambda top: os.chown(f"{top}/f", -1, -1), _PRIVILEGED),
    Change("another's f in a sticky directory", "sticky", lambda top: _replace(
        f"{top}/f", ops.CAPABLE, ops.CAPABLE, 0o600), parents=_STICKY),
    Change("f given away in a sticky directory", "sticky", lambda top: os.chown(
        f"{top}/f", ops.CAPABLE, ops.CAPABLE), parents=_STICKY),
    Change("the directory made sticky", "sticky", lambda top: os.chmod(top, 0o1777), parents=_OPEN),
    Change("new made by another", "new name", lambda top: _replace(f"{top}/n", ops.CAPABLE, ops.CAPABLE, 0o600)),
    Change("new made for others than the group", "new name", lambda top: _replace(
        f"{top}/n", 0, ops.TEAM, 0o606)),
    Change("new is a link", "new name", lambda top: os.symlink("f", f"{top}/n")),
    Change("another's f", "name", lambda top: _replace(f"{top}/f", ops.CAPABLE, ops.CAPABLE, 0o600)),
    Change("setfacl -m on f with an ACL", "ACL", lambda top: os.setxattr(f"{top}/f", ops.ACCESS, ops.acl(
        "rwx", "", "", {ops.NAMED: "", ops.STRANGER: "", ops.OWNER: ""}, {ops.TEAM: "", ops.NAMED_GROUP: ""}, "")),
           _WITH_ACL),
    Change("first ACL on f", "mode", lambda top: os.setxattr(f"{top}/f", ops.ACCESS, ops.acl(
        "rwx", "rwx", "rwx", {ops.STRANGER: ""}, {ops.TEAM: ""}, "rwx"))),
    Change("chmod 0000 of f", "mode", lambda top: os.chmod(f"{top}/f", 0)),
    Change("chown of f", "mode", lambda top: os.chown(f"{top}/f", ops.CAPABLE, ops.CAPABLE)),
    Change("chmod 0700 of the directory", "mode", lambda top: os.chmod(top, 0o700)),
    Change("f made immutable", "flags", lambda top: ops.set_flags(f"{top}/f", ops.FL_IMMUTABLE)),
    Change("f made append-only", "flags", lambda top: ops.set_flags(f"{top}/f", ops.FL_APPEND)),
)
AGED = ("mode", "ACL", "name")  # may be believed as long as attributes and names are: docs/security.md
AFTER = [op for op in ops.OPERATIONS if op.name in (
    "execve", "unlink", "unlink of another's", "rename f to n", "rename f to g", "rename g to f",
    "rename f to g EXCHANGE", "link to new", "truncate to 0", "chmod 0644", "chmod 6755", "chown to the group",
    "utimensat now", "setxattr user.a  value 1", f"setxattr {ops.ACCESS}  value 0", "read (RDONLY)", "read (RDWR)",
    "write (WRONLY)",
    "make file 6777 (umask 022)", "make fifo (umask 022)", "make symlink (umask 022)", "make directory (umask 022)",
    "setflags FL_NODUMP (RDONLY)", "fallocate(0, 0, 4096) (WRONLY)", "copy_file_range to", "statx", "listxattr")
    or (op.family in ("open", "open new") and op.name.partition(", ")[2][:-1] in (
        "RDONLY", "WRONLY", "RDWR", "WRONLY|TRUNC", "RDWR|CREAT", "RDWR|CREAT|TRUNC", "WRONLY|CREAT|EXCL",
        "RDONLY|CREAT", "WRONLY|CREAT|APPEND"))]
REFUSALS = ("EPERM", "EACCES", "EEXIST")


def changed_cases(seed: str, count: int) -> list[tuple[Change, Case]]:
    chance = random.Random(seed)
    found = []
    for n in range(count):
        change = CHANGES[n % len(CHANGES)]
        new = change.fact == "new name"
        some = [op for op in AFTER if (op.family in ("open new", "making") or "to n" in op.name) == new]
        op = chance.choice(some)
        if change.fact == "set-user-ID" and chance.random() < 0.7:
            op = next(op for op in AFTER if op.name == "execve")
        kinds = [k for k in change.kinds if k in op.kinds] or ops.FILES[:1]
        found.append((change, Case(op, chance.choice(kinds), chance.choice(change.parents), chance.choice(CALLERS))))
    return found


def gave_more(d: Difference) -> bool:
    """Was something done, or shown, that the source refuses at that moment?"""
    bare, mount = d.results
    if d.case.operation.name == "execve" and isinstance(bare, list) and isinstance(mount, list):
        return True
    refused = bare in REFUSALS and not (isinstance(mount, str) and mount.isupper())
    left = any(w not in ("result", "lstat afterwards") and not w.startswith(("atime", "mtime")) for w in d.said)
    return refused and (left or SECRET[:10] in repr(mount).encode())


@pytest.mark.parametrize(
    "option, where", [*PLACES, pytest.param(("--cache", "always"), "ext4", id="cache always")])
def test_after_a_change_beside(source, mount, workers, transport, option, where):
    """What the kernel has kept lets nothing through that the source refuses by then, but for what may age."""
    fs = mount(*option, source=source)
    program = Path(ops.PROGRAM).read_bytes()
    found: dict[bool, list[Difference]] = {True: [], False: []}
    chosen = changed_cases(f"{SEED} {transport} {option} {where}", COUNT // 3)
    for start in range(0, len(chosen), AT_ONCE):
        batch = list(enumerate(chosen[start:start + AT_ONCE], start))
        tops = {n: (f"{fs.src}/bare/{n}", f"{fs.src}/mount/{n}") for n, _ in batch}
        for n, (_, case) in batch:
            for top in tops[n]:
                ops.make(top, case, program)
        jobs = {n: ops.job(case, f"{fs.src}/bare/{n}", f"{fs.mnt}/mount/{n}") for n, (_, case) in batch}
        for n, (change, case) in batch:
            how = "created" if change.fact == "new name" else ""
            workers[case.caller].start([(-1, True, how, (f"{fs.mnt}/mount/{n}",))])
            workers[case.caller].answers(60)
        for n, (change, _) in batch:
            for top in tops[n]:
                with suppress(OSError):  # what is immutable already
                    change.act(top)
        said = {}
        for n, (_, case) in batch:
            workers[case.caller].start([jobs[n]])
            said[n] = workers[case.caller].answers(60)[0]
        for n, (change, case) in batch:
            d = compare(case, *said[n], *map(ops.look, tops[n]))
            if d and gave_more(d):
                fact = change.fact
                if fact == "sticky" and not case.operation.name.startswith(("unlink", "rename")):
                    fact = "mode"
                found[fact in AGED].append(Difference(case, {"after": (change.name, fact), **d.said}))
            for top in tops[n]:
                ops.remove(top)
    if found[True]:
        print("believed while it may be:", report(found[True], len(chosen)))
    if found[False]:
        pytest.fail(report(found[False], len(chosen)), pytrace=False)
