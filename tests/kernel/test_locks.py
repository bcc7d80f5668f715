"""Record locks between processes: conflicts, holders, waits and deadlocks."""
from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _daemon import until

# Serves lines of "file how start length": lock, and say "got" or the error's number.
LOCKER = """\
import fcntl, os, sys
fds = [os.open(p, os.O_RDWR) for p in sys.argv[1:]]
how = {"w": fcntl.LOCK_EX, "r": fcntl.LOCK_SH, "u": fcntl.LOCK_UN}
for line in sys.stdin:
    file, what, start, length = line.split()
    try:
        fcntl.lockf(fds[int(file)], how[what[0]] | (fcntl.LOCK_NB if "n" in what else 0), int(length), int(start))
        print("got", flush=True)
    except OSError as e:
        print(e.errno, flush=True)
"""


class Locker:
    """A process that locks what it is told."""

    def __init__(self, *paths: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOCKER, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str, start: int, length: int = 1, file: int = 0) -> None:
        """w, r, u: wait for a write or read lock, unlock; wn, rn: do not wait."""
        print(file, what, start, length, file=self.process.stdin, flush=True)

    def answer(self) -> str:
        return self.process.stdout.readline().strip()

    def do(self, *args, **more) -> str:
        self.ask(*args, **more)
        return self.answer()

    def waits(self, fs, *args, **more) -> None:
        """Ask for a lock that another has, and see that the daemon waits for it."""
        before = waiting(fs)
        self.ask(*args, **more)
        until(lambda: waiting(fs) == before + 1, "waited for")

    def end(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            self.process.stdout.close()


def waiting(fs) -> int:
    """Locks that the daemon's threads wait for in the source."""
    with open("/proc/locks", encoding="ascii") as f:
        return sum("->" in line and "OFDLCK" in line for line in f)


@pytest.fixture
def lockers(fs) -> Iterator[Callable[[int], list[Locker]]]:
    made: list[Locker] = []
    paths = [fs.mnt / "a", fs.mnt / "b"]
    for path in paths:
        path.write_bytes(b"x" * 100)

    def make(count: int) -> list[Locker]:
        made.extend(Locker(*paths) for _ in range(count))
        return made

    yield make
    for locker in made:
        locker.process.stdin.close()
    for locker in made:
        locker.process.wait(20)
        locker.process.stdout.close()


EDEADLK, EAGAIN = str(errno.EDEADLK), str(errno.EAGAIN)


def test_conflicts(lockers):
    one, two = lockers(2)
    assert one.do("w", 0, 10) == two.do("w", 10, 10) == one.do("r", 30, 10) == two.do("r", 35, 10) == "got"
    assert two.do("wn", 5, 1) == two.do("rn", 9, 5) == one.do("wn", 35, 1) == EAGAIN
    assert one.do("u", 5, 5) == two.do("wn", 5, 1) == "got"


def test_holder_is_told(fs, lockers):
    one, two = lockers(2)
    assert one.do("w", 0, 10) == two.do("r", 20, 10) == "got"
    ask = struct.Struct("hhqqi4x")
    with open(fs.mnt / "a", "r+b") as f:
        for at, pid in ((3, one.process.pid), (25, two.process.pid), (50, 0)):
            got = ask.unpack(fcntl.fcntl(f, fcntl.F_GETLK, ask.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)))
            assert got[4] == pid
            assert (got[0] == fcntl.F_UNLCK) == (pid == 0)


def test_wait(fs, lockers):
    one, two = lockers(2)
    assert one.do("w", 0, 10) == "got"
    two.waits(fs, "w", 5)
    assert one.do("u", 5, 5) == two.answer() == "got"


@pytest.mark.parametrize("second", [0, 1], ids=["one-file", "two-files"])
def test_deadlock(fs, lockers, second):
    """As fcntl(2) has it: who would close the cycle gets EDEADLK, and the other goes on waiting."""
    one, two = lockers(2)
    assert one.do("w", 0) == two.do("w", 1, file=second) == "got"
    one.waits(fs, "w", 1, file=second)
    assert two.do("w", 0) == EDEADLK
    assert two.do("u", 1, file=second) == one.answer() == "got"
    two.waits(fs, "r", 0)
    assert one.do("u", 0) == two.answer() == "got"


def test_three(fs, lockers):
    all_ = lockers(3)
    for n, locker in enumerate(all_):
        assert locker.do("w", n, file=n % 2) == "got"
    all_[0].waits(fs, "w", 1, file=1)
    all_[1].waits(fs, "r", 2)
    assert all_[2].do("r", 0) == EDEADLK
    all_[2].process.stdin.close()  # its end gives up its locks
    assert all_[1].answer() == "got"
    assert all_[1].do("u", 1, file=1) == all_[0].answer() == "got"


def test_no_deadlock(fs, lockers):
    """Chains, and two that wait for the same one, are none; nor is a cycle that was left meanwhile."""
    one, two, three = lockers(3)
    assert one.do("w", 0) == two.do("w", 1) == three.do("r", 2) == "got"
    two.waits(fs, "w", 0)
    three.waits(fs, "w", 1)
    assert one.do("w", 3) == one.do("r", 2) == "got"
    assert one.do("u", 0) == two.answer() == "got"
    assert two.do("u", 1) == three.answer() == "got"


@pytest.mark.parametrize("more", [0, 10])
def test_deadlock_by_read_locks(fs, lockers, more):
    """Both read the same, and both want to write it."""
    one, two = lockers(2)
    assert one.do("r", 0, 10) == two.do("r", 0, 10 + more) == "got"
    one.waits(fs, "w", 0, 10)
    assert two.do("w", 0, 10) == EDEADLK
    assert two.do("u", 0, 100) == one.answer() == "got"


def test_lock_beside_the_mount(fs, lockers):
    """Who holds it there is no part of a deadlock."""
    one, two = lockers(2)
    with open(fs.src / "a", "r+b") as f:
        fcntl.lockf(f, fcntl.LOCK_EX, 1, 5)
        assert one.do("w", 0) == two.do("w", 1) == "got"
        one.waits(fs, "w", 5)
        two.waits(fs, "w", 0)
        fcntl.lockf(f, fcntl.LOCK_UN, 1, 5)
    assert one.answer() == one.do("u", 0) == two.answer() == "got"


def test_to_the_end_of_the_file(lockers):
    """Locks without an end, and unlocks."""
    one, two = lockers(2)
    assert one.do("w", 5, 0) == "got"
    assert two.do("wn", 1 << 40) == EAGAIN
    assert one.do("u", 10, 0) == two.do("wn", 1 << 40) == "got"
    assert two.do("wn", 9) == EAGAIN
    assert one.do("u", 0, 0) == two.do("wn", 0, 0) == "got"


OFD_SETLK = 37


def test_lock_of_an_open_file_ends_with_it(fs, lockers):
    """An open file description's own lock (F_OFD_SETLK): not with the process's other closes, but with its last one."""
    two = lockers(1)[0]
    fd = os.open(fs.mnt / "a", os.O_RDWR)
    fcntl.fcntl(fd, OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    os.close(os.open(fs.mnt / "a", os.O_RDWR))
    copy = os.dup(fd)
    os.close(fd)
    assert two.do("wn", 0) == EAGAIN
    os.close(copy)
    until(lambda: two.do("wn", 0) == "got", "free")  # the RELEASE is not waited for


@pytest.mark.parametrize("where", ["mnt", "src"])
def test_deadlock_when_a_third_lets_go(fs, where):
    """What is in the way of a wait changes, and with it the wait closes a cycle: it ends then, as in the source."""
    path = getattr(fs, where) / "a"
    path.write_bytes(b"x" * 100)
    one, two, three = made = [Locker(path) for _ in range(3)]
    try:
        assert one.do("w", 0, 10) == two.do("w", 10, 10) == three.do("w", 20, 10) == "got"
        two.ask("w", 20, 10)
        until(lambda: all_waits() == 1, "waited for")
        three.ask("w", 0, 20)
        until(lambda: all_waits() == 2, "waited for")
        assert one.do("u", 0, 10) == "got"
        assert three.answer() == EDEADLK
        assert three.do("u", 20, 10) == two.answer() == "got"
    finally:
        for locker in made:
            locker.process.stdin.close()
            locker.process.wait(20)
            locker.process.stdout.close()


def all_waits() -> int:
    with open("/proc/locks", encoding="ascii") as f:
        return sum("->" in line for line in f)
