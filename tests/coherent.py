"""Changes a mount's source at random, and waits until they show: coherent.py SOURCE MOUNTPOINT [CHANGES] [SEED].

The mount has been looked at before each change, so that its caches hold what was; other processes look at random names
all the while. A change is missed if the mount does not show it within PATIENCE seconds, or not any more afterwards.
Prints the seed, how long changes took to show (from the return of the system call that made them), and what was missed.
"""
from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

PATIENCE = 5.0  # seconds
DIRECTORIES, NAMES = 4, 12
READERS = 2
SETTLE = 250  # changes after which the whole tree is compared
RENAME_EXCHANGE = 2
LIBC = ctypes.CDLL(None, use_errno=True)

State = tuple[int, ...] | None
STALE: list[str] = []


def state(path: str) -> State:
    """What stat(2) says of a name, but for access times and blocks, which change unasked."""
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as e:
        if e.errno != errno.ESTALE:
            raise
        STALE.append(path)  # what had the name has gone, and the kernel has looked twice: not what the source says
        return ()
    return (st.st_ino, st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns, st.st_ctime_ns)


def content(path: str) -> bytes | str | None:
    """A file's bytes, a link's target, or a directory's names."""
    try:
        if os.path.islink(path):
            return os.readlink(path)
        if os.path.isdir(path):
            return " ".join(sorted(os.listdir(path)))
        with open(path, "rb") as f:
            return f.read()
    except (FileNotFoundError, OSError):
        return None


def read_on(mount: str, seed: int) -> None:
    """A reader's life: look at names at random, until killed."""
    rng = random.Random(seed)
    while True:
        d = f"{mount}/d{rng.randrange(DIRECTORIES)}"
        with contextlib.suppress(OSError):
            how = rng.random()
            if how < 0.1:
                os.listdir(d)
            elif how < 0.2:
                with os.scandir(d) as entries:
                    for e in entries:
                        e.stat(follow_symlinks=False)
            elif how < 0.3:
                content(f"{d}/n{rng.randrange(NAMES)}")
            else:
                state(f"{d}/n{rng.randrange(NAMES)}")


class Checker:
    def __init__(self, source: str, mount: str, seed: int):
        self.source, self.mount = source, mount
        self.rng = random.Random(seed)
        self.took: list[tuple[float, str]] = []
        self.missed: list[str] = []
        self.kinds: Counter[str] = Counter()
        for n in range(DIRECTORIES):
            os.makedirs(f"{source}/d{n}", exist_ok=True)
        self.operations: list[tuple[str, Callable[[str, str], object]]] = [
            ("create", self.create), ("unlink", self.unlink), ("rename", self.rename), ("exchange", self.exchange),
            ("truncate", lambda a, b: os.truncate(a, self.rng.randrange(9000))), ("write", self.write),
            ("append", self.append), ("chmod", lambda a, b: os.chmod(a, self.rng.choice((0o600, 0o644, 0o755)))),
            ("setxattr", lambda a, b: os.setxattr(a, "user.n", os.urandom(4))), ("link", os.link),
            ("symlink", lambda a, b: os.symlink(f"t{self.rng.random()}", b)), ("mkdir", lambda a, b: os.mkdir(b)),
            ("rmdir", lambda a, b: os.rmdir(a)), ("utime", self.age), ("age", self.age), ("aged", self.age),
            ("chown", lambda a, b: os.chown(a, self.rng.randrange(3), self.rng.randrange(3), follow_symlinks=False)),
            ("mmap", self.store), ("replace", self.replace),
        ]

    # Each takes two names of the source; OSError: it was not possible.

    def create(self, a: str, b: str) -> None:
        with open(b, "xb") as f:
            f.write(os.urandom(self.rng.randrange(64)))

    def unlink(self, a: str, b: str) -> None:
        os.unlink(a)

    def rename(self, a: str, b: str) -> None:
        os.rename(a, b)

    def replace(self, a: str, b: str) -> None:
        """As editors save."""
        with open(f"{self.source}/new", "wb") as f:
            f.write(os.urandom(16))
        os.rename(f"{self.source}/new", a)

    def exchange(self, a: str, b: str) -> None:
        if LIBC.renameat2(-100, a.encode(), -100, b.encode(), RENAME_EXCHANGE):
            raise OSError(ctypes.get_errno(), "renameat2")

    def write(self, a: str, b: str) -> None:
        with open(a, "r+b", buffering=0) as f:
            f.write(os.urandom(32))

    def append(self, a: str, b: str) -> None:
        with open(a, "ab", buffering=0) as f:
            f.write(os.urandom(8))

    def age(self, a: str, b: str) -> None:
        """A file that has not been written for long: its attributes are kept longer."""
        os.utime(a, ns=(1, self.rng.randrange(10**18)))

    def store(self, a: str, b: str) -> None:
        """By mmap and msync."""
        with open(a, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
            m[self.rng.randrange(len(m))] = self.rng.randrange(256)
            m.flush()

    # ------------------------------------------------------------------------

    def same(self, names: list[str], deep: bool) -> bool:
        """Does the mount show what the source has?"""
        for n in names:
            if state(self.mount + n) != state(self.source + n):
                return False
            if deep and content(self.mount + n) != content(self.source + n):
                return False
        return True

    def step(self) -> None:
        rng = self.rng
        names = [f"/d{rng.randrange(DIRECTORIES)}/n{rng.randrange(NAMES)}" for _ in range(2)]
        a, b = (self.source + n for n in names)
        kind, operation = rng.choice(self.operations)
        watched = [*names, *{os.path.dirname(n) for n in names}]
        deep = rng.random() < 0.3
        for n in watched:
            state(self.mount + n)
            if deep:
                content(self.mount + n)
        before = [state(p) for p in (a, b)]
        try:
            operation(a, b)
        except (OSError, ValueError):
            if [state(p) for p in (a, b)] == before:
                return
        self.kinds[kind] += 1
        start = time.perf_counter()
        while not self.same(watched, deep):
            if time.perf_counter() - start > PATIENCE:
                self.missed.append(f"{kind} {names}: " + self.difference(watched))
                return
        self.took.append((time.perf_counter() - start, kind))

    def difference(self, names: list[str]) -> str:
        return "; ".join(
            f"{n}: source {state(self.source + n)}, mount {state(self.mount + n)}" for n in names
            if state(self.source + n) != state(self.mount + n)) or "content"

    def everything(self) -> list[str]:
        return ["", *(f"/d{d}" for d in range(DIRECTORIES)),
                *(f"/d{d}/n{n}" for d in range(DIRECTORIES) for n in range(NAMES))]

    def settled(self) -> None:
        """Nothing that the mount has shown rightly is wrong afterwards."""
        names = self.everything()
        end = time.perf_counter() + 0.05
        while time.perf_counter() < end:
            time.sleep(0.01)
        for n in names:
            if state(self.mount + n) != state(self.source + n) or content(self.mount + n) != content(self.source + n):
                self.missed.append("afterwards " + self.difference([n]))

    def run(self, changes: int) -> None:
        while sum(self.kinds.values()) < changes and len(self.missed) < 20:
            self.step()
            if sum(self.kinds.values()) % SETTLE == 0:
                self.settled()
        self.settled()


def main() -> int:
    source, mount = sys.argv[1:3]
    changes = int(sys.argv[3]) if len(sys.argv) > 3 else 3000
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else random.SystemRandom().randrange(1 << 32)
    readers = []
    checker = Checker(source, mount, seed)
    for n in range(READERS):
        pid = os.fork()
        if pid == 0:
            try:
                read_on(mount, seed + n)
            finally:
                os._exit(1)
        readers.append(pid)
    try:
        checker.run(changes)
    finally:
        for pid in readers:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    took = sorted(checker.took)
    at = [took[min(len(took) - 1, int(len(took) * q))][0] * 1e3 for q in (0.5, 0.99, 0.999)]
    kinds = ", ".join(f"{n} {kind}" for kind, n in checker.kinds.items())
    print(f"seed {seed}: {sum(checker.kinds.values())} changes ({kinds})")
    print(f"shown after {at[0]:.2f} ms (p50), {at[1]:.2f} (p99), {at[2]:.2f} (p99.9); slowest: " + ", ".join(
        f"{kind} {seconds * 1e3:.2f}" for seconds, kind in took[:-6:-1]))
    if STALE:
        print(f"{len(STALE)} times ESTALE meanwhile")
    for line in checker.missed:
        print(f"MISSED {line}")
    return bool(checker.missed)


if __name__ == "__main__":
    Path(sys.argv[2]).stat()
    sys.exit(main())
