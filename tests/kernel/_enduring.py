"""Programs that use a mount and know what each call must give, whatever becomes of its daemon meanwhile.

    python _enduring.py ROLE DIRECTORY SEED     until a byte comes, or the end of standard input

One line of JSON comes out: {"role", "rounds", "wrong": [...], "longest": seconds of the longest round}.
"""
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import select
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

BLOCK = 4096
MANY = 3000  # names, more than one reply holds


class Data:
    """Reads and writes files, and knows what is in them."""

    def __init__(self, at: Path, r: random.Random):
        self.r, self.at = r, at
        self.fds = [os.open(at / f"f{n}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644) for n in range(4)]
        self.there = [bytearray() for _ in self.fds]

    def round(self) -> None:
        n = self.r.randrange(len(self.fds))
        fd, there = self.fds[n], self.there[n]
        offset, length = self.r.randrange(64) * 1000, self.r.choice((1, 100, BLOCK, 70000))
        data = self.r.randbytes(length)
        if len(there) < offset:
            there.extend(bytes(offset - len(there)))
        assert os.pwrite(fd, data, offset) == length, "short write"
        there[offset:offset + length] = data
        start = self.r.randrange(len(there))
        assert os.pread(fd, 50000, start) == there[start:start + 50000], f"f{n}: other data at {start}"
        if self.r.random() < 0.05:
            size = self.r.randrange(len(there) + 1)
            os.truncate(self.at / f"f{n}", size)
            del there[size:]
        assert os.fstat(fd).st_size == len(there), f"f{n}: size {os.fstat(fd).st_size}, not {len(there)}"

    def end(self) -> None:
        for n, there in enumerate(self.there):
            assert (self.at / f"f{n}").read_bytes() == there, f"f{n}: other data at the end"


class Names:
    """Makes, renames, links and removes names, and knows which there are."""

    def __init__(self, at: Path, r: random.Random):
        self.r, self.at = r, at
        self.there: dict[str, str] = {}  # name: what it is, or a file's content
        self.count = 0

    def fresh(self) -> str:
        self.count += 1
        return f"n{self.count}"

    def round(self) -> None:
        name, what = self.fresh(), self.r.randrange(8)
        old = self.r.choice(sorted(self.there)) if self.there else ""
        kind = self.there.get(old, "")
        path, old_path = self.at / name, self.at / old
        if len(self.there) > 40 and what < 5:
            what = 7
        if what == 0:
            os.mkdir(path)
            self.there[name] = "dir"
        elif what in (1, 2):
            mode = 0o400 if what == 2 else 0o600
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            os.write(fd, name.encode())
            os.close(fd)
            self.there[name] = name
        elif what == 3:
            os.symlink("to", path)
            self.there[name] = "link"
        elif what == 4:
            os.mknod(path, 0o600)
            self.there[name] = ""
        elif what == 5 and old:
            os.rename(old_path, path)
            self.there[name] = self.there.pop(old)
        elif what == 6 and old and kind not in ("dir", "link"):
            os.link(old_path, path)
            self.there[name] = kind
        elif old:
            if kind == "dir":
                os.rmdir(old_path)
            else:
                os.unlink(old_path)
            del self.there[old]
        if self.r.random() < 0.1:
            self.end()

    def end(self) -> None:
        found = set(os.listdir(self.at))
        assert found == set(self.there), f"names: {sorted(found ^ set(self.there))}"
        for name, kind in self.there.items():
            if kind not in ("dir", "link"):
                assert (self.at / name).read_text() == kind, f"{name}: other content"


class Appender:
    """Appends lines, each of which must be there once, in order."""

    def __init__(self, at: Path, r: random.Random):
        self.path, self.r = at / "lines", r
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.count = 0

    def round(self) -> None:
        line = f"{self.count:08} ".encode() + b"x" * self.r.choice((1, 500, 9000)) + b"\n"
        assert os.write(self.fd, line) == len(line), "short write"
        self.count += 1

    def end(self) -> None:
        numbers = [int(line[:8]) for line in self.path.read_bytes().splitlines()]
        wrong = [(n, at) for at, n in enumerate(numbers) if n != at][:5]
        assert not wrong and len(numbers) == self.count, f"lines: {len(numbers)} of {self.count}, wrong from {wrong}"


class Counter:
    """Several of these add to a number under a lock, which they wait for: the sum must be right."""

    shared = True

    def __init__(self, at: Path, r: random.Random):
        self.at, self.r, self.own = at, r, 0
        self.fd = os.open(at / "number", os.O_RDWR | os.O_CREAT, 0o644)
        self.lock: Callable[[int, int], object] = fcntl.lockf if at.name == "record" else fcntl.flock

    def round(self) -> None:
        self.lock(self.fd, fcntl.LOCK_EX)
        data = os.pread(self.fd, 8, 0)
        value = struct.unpack("<q", data)[0] if data else 0
        time.sleep(self.r.random() * 0.002)
        os.pwrite(self.fd, struct.pack("<q", value + 1), 0)
        self.own += 1
        self.lock(self.fd, fcntl.LOCK_UN)

    def end(self) -> None:
        pass


class Holder:
    """Keeps a lock of each kind that another process must never get."""

    def __init__(self, at: Path, r: random.Random):
        self.path = at / "held"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.lockf(self.fd, fcntl.LOCK_EX, 10)
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def round(self) -> None:
        child = os.fork()
        if child == 0:
            code = 0
            try:
                fd = os.open(self.path, os.O_RDWR)
                for lock in (lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10),
                             lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)):
                    try:
                        lock()
                        code = 3
                    except BlockingIOError:
                        pass
            except OSError as e:
                code = 100 + (e.errno or 0)
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        assert status == 0, f"lock: {os.waitstatus_to_exitcode(status)}"

    def end(self) -> None:
        self.round()


class Unlinked:
    """Uses a file without a name."""

    def __init__(self, at: Path, r: random.Random):
        self.r = r
        self.fd = os.open(at / "gone", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(at / "gone")
        self.there = bytearray(100000)
        os.pwrite(self.fd, self.there, 0)

    def round(self) -> None:
        at = self.r.randrange(90000)
        data = self.r.randbytes(3000)
        os.pwrite(self.fd, data, at)
        self.there[at:at + 3000] = data
        assert os.pread(self.fd, 100000, 0) == self.there, "unlinked: other data"
        assert os.fstat(self.fd).st_nlink == 0, "unlinked: it has a name"

    end = round


class Lister:
    """Reads a long directory, slowly."""

    def __init__(self, at: Path, r: random.Random):
        self.at = at
        self.names = {f"name-{n:05}" for n in range(MANY)}
        for name in self.names:
            os.close(os.open(at / name, os.O_CREAT, 0o600))

    def round(self) -> None:
        found = []
        with os.scandir(self.at) as entries:
            for n, entry in enumerate(entries):
                found.append(entry.name)
                if n % 500 == 0:
                    time.sleep(0.005)
        assert len(found) == len(set(found)) and set(found) == self.names, f"listing: {len(found)} names"

    end = round


class Attributes:
    """Sets and removes extended attributes, modes and times."""

    def __init__(self, at: Path, r: random.Random):
        self.path, self.r, self.there = at / "file", r, False
        self.path.touch()

    def round(self) -> None:
        if self.there:
            os.removexattr(self.path, "user.a")
        else:
            os.setxattr(self.path, "user.a", b"value", os.XATTR_CREATE)
        self.there = not self.there
        assert ("user.a" in os.listxattr(self.path)) == self.there, "xattr"
        mode = self.r.choice((0o600, 0o644))
        os.chmod(self.path, mode)
        when = self.r.randrange(1 << 30)
        os.utime(self.path, (when, when))
        st = self.path.stat()
        assert st.st_mode & 0o777 == mode and st.st_mtime == when, "attributes"

    end = round


ROLES = {"data": Data, "names": Names, "append": Appender, "record": Counter, "flock": Counter, "holder": Holder,
         "unlinked": Unlinked, "lister": Lister, "attributes": Attributes}


def main(role: str, at: Path, seed: int) -> None:
    r = random.Random(seed)
    at = at / (role if role in ("record", "flock") else f"{role}-{seed}")
    wrong: list[str] = []
    rounds, longest, last = 0, 0.0, time.monotonic()

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except (AssertionError, OSError) as e:
            wrong.append(f"{type(e).__name__}: {e}")

    at.mkdir(exist_ok=True)
    try:
        worker = ROLES[role](at, r)
    except OSError as e:
        print(json.dumps({"role": role, "rounds": 0, "wrong": [str(e)], "longest": 0}))
        return
    print("ready", flush=True)
    pauses: list[float] = []
    while not select.select([0], [], [], 0)[0] and len(wrong) < 10:
        guarded(worker.round)
        rounds += 1
        now = time.monotonic()
        longest = max(longest, now - last)
        if now - last > 0.02:
            pauses.append(round(now - last, 4))
        last = now
    guarded(worker.end)
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"role": role, "rounds": rounds, "wrong": wrong, "longest": longest, "pauses": pauses,
                          "own": getattr(worker, "own", 0)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
