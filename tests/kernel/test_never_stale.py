"""What one process has made, every other finds at once; what it has removed, nobody finds any more.

Processes on each CPU make, rename and remove names in shared directories, others look at these names, while the kernel
and the daemon forget what they know as fast as they can. PASSTHRU_NEVER_STALE_SECONDS: how long.
"""
from __future__ import annotations

import mmap
import os
import pickle
import random
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from _modes import DATA_TOO

SECONDS = float(os.environ.get("PASSTHRU_NEVER_STALE_SECONDS", "4"))
pytestmark = [
    pytest.mark.release_only("takes long on a build with sanitizers"), DATA_TOO, pytest.mark.timeout(SECONDS + 100)]

DIRECTORIES = 5
SLOTS = 60  # of each process
OWNERS = 4
LOOKERS = 4
ENTRY = struct.Struct("qqq")  # changes (odd: one is under way), how often it was made, whether it is there
NOTHING, FILE, DIRECTORY = range(3)


class Table:
    """What should be there, in memory that all processes share: each entry is one process's to change."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, ENTRY.size * SLOTS * OWNERS)

    def get(self, slot: int) -> tuple[int, int, int]:
        return ENTRY.unpack_from(self.memory, ENTRY.size * slot)  # type: ignore[return-value]

    def set(self, slot: int, changes: int, made: int, what: int) -> None:
        # The count last when a change begins, and when it ends: each in a store of its own.
        at = ENTRY.size * slot
        if changes & 1:
            struct.pack_into("q", self.memory, at, changes)
            struct.pack_into("qq", self.memory, at + 8, made, what)
        else:
            struct.pack_into("qq", self.memory, at + 8, made, what)
            struct.pack_into("q", self.memory, at, changes)


def name_of(top: str, slot: int, made: int) -> str:
    """Some names come back, others are new each time."""
    fresh = made if slot % 2 else 0
    return f"{top}/{(slot + made) % DIRECTORIES}/name {slot} {fresh}"


def own(top: str, table: Table, who: int, end: float) -> list[str]:
    """Make and remove."""
    chance, wrong, mine = random.Random(who * 7 + time.time_ns()), [], range(who * SLOTS, (who + 1) * SLOTS)

    def check(slot: int, after: str) -> None:
        _, made, what = table.get(slot)
        for said in look(name_of(top, slot, made), what, chance):
            wrong.append(f"{said}, by who did {after}")

    while time.monotonic() < end:
        slot = chance.choice(mine)
        changes, made, what = table.get(slot)
        path = name_of(top, slot, made)
        table.set(slot, changes + 1, made, what)
        done = ""
        if what == NOTHING:
            made += 1
            path = name_of(top, slot, made)
            what = FILE if chance.random() < 0.8 else DIRECTORY
            others = [n for n in mine if n != slot and table.get(n)[2] == what]
            if others and chance.random() < 0.3:
                other = chance.choice(others)
                c, m, _ = table.get(other)
                table.set(other, c + 1, m, what)
                os.rename(name_of(top, other, m), path)
                table.set(other, c + 2, m, NOTHING)
                done = "rename"
            elif what == DIRECTORY:
                os.mkdir(path)
                done = "mkdir"
            else:
                fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
                if chance.random() < 0.5:
                    os.write(fd, b"x" * 100)
                os.close(fd)
                done = "create"
        else:
            os.unlink(path) if what == FILE else os.rmdir(path)
            what, done = NOTHING, "remove"
        table.set(slot, changes + 2, made, what)
        if chance.random() < 0.5:
            check(slot, done)
    return wrong


def look(path: str, what: int, chance: random.Random) -> list[str]:
    """What is wrong with a name."""
    def opened(path: str) -> None:
        os.close(os.open(path, os.O_RDONLY))

    def listed(path: str) -> None:
        folder, name = os.path.split(path)
        if name not in os.listdir(folder):
            raise FileNotFoundError(2, "not listed")

    def asked(path: str) -> None:
        if not os.access(path, os.R_OK):
            raise FileNotFoundError(2, "no access")

    acts: dict[str, Callable[[str], Any]] = {
        "stat": os.stat, "open": opened, "access": asked, "listdir": listed,
        "open for write": lambda p: os.close(os.open(p, os.O_RDWR)) if what == FILE else opened(p),
        "chmod": lambda p: os.chmod(p, 0o755 if what == DIRECTORY else 0o644)}
    act = chance.choice(list(acts))
    try:
        acts[act](path)
    except OSError as e:
        if what != NOTHING:
            return [f"{act} of {os.path.basename(path)!r}: {e.strerror}, and it is there"]
        return [] if isinstance(e, FileNotFoundError) else [f"{act} of a removed name: {e.strerror}"]
    return [f"{act} of {os.path.basename(path)!r}: found, and it was removed"] if what == NOTHING else []


def watch(top: str, table: Table, who: int, end: float) -> list[str]:
    """Look at others' names; only what did not change meanwhile counts."""
    chance, wrong, looked = random.Random(who * 11 + time.time_ns()), [], 0
    while time.monotonic() < end:
        slot = chance.randrange(SLOTS * OWNERS)
        before = table.get(slot)
        if before[0] & 1 or before[1] == 0:
            continue
        path = name_of(top, slot, before[1])
        said = look(path, before[2], chance)
        if said and table.get(slot) == before:
            again = "still so a moment later" if look(path, before[2], chance) and table.get(slot) == before else "once"
            wrong += [f"{s} ({again})" for s in said]
        looked += 1
    assert looked > 100 * min(SECONDS, 1), "hardly anything was looked at"
    return wrong


def forget(end: float) -> list[str]:
    """The kernel gives up names and inodes, and at times its pages."""
    n = 0
    while time.monotonic() < end:
        Path("/proc/sys/vm/drop_caches").write_text("3" if n % 10 == 0 else "2")
        n += 1
        time.sleep(0.02)
    return []


def in_process(cpu: int, act: Callable[[], list[str]]) -> tuple[int, int]:
    """(process id, where it says what was wrong)."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(r)
            os.sched_setaffinity(0, {cpu})
            try:
                said = act()
            except BaseException as e:
                said = [f"{type(e).__name__}: {e}"]
            with os.fdopen(w, "wb") as f:
                f.write(pickle.dumps(said))
        finally:
            os._exit(0)
    os.close(w)
    return pid, r


@pytest.mark.parametrize("option", [(), ("--entry-timeout", "0"), ("--cache", "always")],
                         ids=["", "no names kept", "cache always"])
@pytest.mark.parametrize("files", [0, 200], ids=["", "few fds"])
def test_names_are_seen_at_once(mount, option, files):
    fs = mount(*option, started=False)
    if files:  # the daemon has to close and open again what it knows
        fs.command[:0] = ["prlimit", f"--nofile={files}:{files}", "--"]
    fs.start()
    table = Table()
    for n in range(DIRECTORIES):
        (fs.mnt / f"{n}").mkdir()
    cpus = sorted(os.sched_getaffinity(0))
    end = time.monotonic() + SECONDS
    top = str(fs.mnt)
    children = [in_process(cpus[n % len(cpus)], lambda n=n: own(top, table, n, end)) for n in range(OWNERS)]
    children += [in_process(cpus[n % len(cpus)], lambda n=n: watch(top, table, n, end)) for n in range(LOOKERS)]
    children.append(in_process(cpus[0], lambda: forget(end)))
    wrong: list[str] = []
    try:
        for _, pipe in children:
            with os.fdopen(pipe, "rb") as f:
                wrong += pickle.loads(f.read())
    finally:
        for pid, _ in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert not wrong, f"{len(wrong)}: " + "; ".join(wrong[:10])
    want = {name_of("", slot, made) for slot in range(SLOTS * OWNERS)
            for _, made, what in [table.get(slot)] if what != NOTHING}
    for where in (fs.src, fs.mnt):
        assert {f"/{n}/{name}" for n in range(DIRECTORIES) for name in os.listdir(where / f"{n}")} == want
