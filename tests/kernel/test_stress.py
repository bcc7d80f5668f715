"""Several processes at once, each checking what it wrote."""
import hashlib
import mmap
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from _modes import DATA_TOO

pytestmark = DATA_TOO

SECONDS = 2.5
WORKER = """
import hashlib, os, random, sys, time

top, who, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
rng = random.Random(who)
mine = {}
end = time.monotonic() + seconds
while time.monotonic() < end:
    act = rng.random()
    if act < 0.4 or not mine:
        name = f"{top}/{rng.randrange(4)}/w{who} {rng.randrange(10**9)}"
        data = rng.randbytes(rng.randrange(60000))
        with open(name, "wb") as f:
            f.write(data)
        mine[name] = data
    elif act < 0.6:
        old = rng.choice(list(mine))
        new = f"{top}/{rng.randrange(4)}/r{who} {rng.randrange(10**9)}"
        os.rename(old, new)
        mine[new] = mine.pop(old)
    elif act < 0.7:
        name = rng.choice(list(mine))
        with open(name, "ab") as f:
            f.write(b"tail")
        mine[name] += b"tail"
    elif act < 0.8:
        name = rng.choice(list(mine))
        os.truncate(name, len(mine[name]) // 2)
        mine[name] = mine[name][:len(mine[name]) // 2]
    elif act < 0.9:
        name = rng.choice(list(mine))
        with open(name, "rb") as f:
            assert f.read() == mine[name], name
        os.listdir(os.path.dirname(name))
    else:
        name = rng.choice(list(mine))
        os.unlink(name)
        del mine[name]
for name, data in mine.items():
    print(hashlib.sha256(data).hexdigest(), os.path.relpath(name, top))
"""


@pytest.mark.parametrize("option", ["", "--queue-depth=1", "--max-write=4096", "--spin-us=0"])
def test_workers(mount, option):
    fs = mount(*filter(None, [option]))
    for n in range(4):
        (fs.mnt / f"{n}").mkdir()
    command = [sys.executable, "-c", WORKER, fs.mnt]
    workers = [
        subprocess.Popen([*command, str(n), str(SECONDS)], stdout=subprocess.PIPE, text=True)
        for n in range(5)]
    said = [w.communicate()[0] for w in workers]
    assert [w.returncode for w in workers] == [0] * 5
    lines = [line.split(" ", 1) for text in said for line in text.splitlines()]
    want = {name: digest for digest, name in lines}
    for where in (fs.src, fs.mnt):
        found = {}
        for n in range(4):
            for name in os.listdir(where / f"{n}"):
                found[f"{n}/{name}"] = hashlib.sha256((where / f"{n}" / name).read_bytes()).hexdigest()
        assert found == want


CHANGER = """
import os, random, sys, time
top, who, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
rng, end = random.Random(who), time.monotonic() + seconds
while time.monotonic() < end:
    a, b = (f"{top}/{rng.randrange(20)}" for _ in range(2))
    try:
        act = rng.randrange(7)
        if act == 0: os.close(os.open(a, os.O_CREAT | os.O_RDWR))
        elif act == 1: os.rename(a, b)
        elif act == 2: os.unlink(a)
        elif act == 3: os.link(a, b)
        elif act == 4: os.mkdir(a)
        elif act == 5: os.rmdir(a)
        else: [e.stat() for e in os.scandir(top)]
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError):
        pass
"""


def test_same_names(fs):
    """All over the same names, through the mount and in the source: no other errors than the source gives."""
    tops = [fs.mnt, fs.mnt, fs.mnt, fs.src]
    command = [sys.executable, "-c", CHANGER]
    workers = [
        subprocess.Popen([*command, top, str(n), str(SECONDS)], stderr=subprocess.PIPE, text=True)
        for n, top in enumerate(tops)]
    errors = [w.communicate()[1] for w in workers]
    assert [w.returncode for w in workers] == [0] * 4, errors


def test_many_readers(fs):
    """Parallel reads of one file by many threads each get their own place."""
    size = 1 << 22
    data = random.Random(3).randbytes(size)
    (fs.src / "f").write_bytes(data)
    fd = os.open(fs.mnt / "f", os.O_RDONLY | os.O_DIRECT)
    try:
        def read(n: int) -> bool:
            at = n * 7919 % (size // 4096) * 4096
            with mmap.mmap(-1, 8192) as m:
                got = os.preadv(fd, [m], at)
                return m[:got] == data[at:at + 8192]
        with ThreadPoolExecutor(32) as pool:
            assert all(pool.map(read, range(3000)))
    finally:
        os.close(fd)
