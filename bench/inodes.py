#!/usr/bin/env python3
"""A million known inodes: what they cost the daemon, and that it is given back.

    python bench/inodes.py [--files N] [--keep] [DIR]

Makes N files below DIR (default: a new directory in /var/tmp), walks them through a mount, has the kernel
forget them, and prints the daemon's memory and open fds at each step, and the time of each walk beside that of
the bare source. Root only (drop_caches).
"""
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PER_DIRECTORY = 5000


def make(top: Path, files: int) -> None:
    for d in range(0, files, PER_DIRECTORY):
        where = top / f"d{d // PER_DIRECTORY}"
        where.mkdir(exist_ok=True)
        fd = os.open(where, os.O_RDONLY)
        for n in range(min(PER_DIRECTORY, files - d)):
            os.close(os.open(f"f{n}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)


def walk(top: Path) -> tuple[int, float]:
    """Files whose attributes find(1) has asked for, and the seconds it took."""
    start = time.monotonic()
    found = subprocess.run(["find", top, "-type", "f", "-size", "0", "-printf", "."], capture_output=True, check=True)
    return len(found.stdout), time.monotonic() - start


def cost(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    rss = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return f"{int(rss) / 1024:8.1f} MiB  {len(os.listdir(f'/proc/{pid}/fd')):6d} fds"


def drop() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    time.sleep(1)  # forgets come in batches, by themselves


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--files", type=int, default=1_000_000)
    p.add_argument("--keep", action="store_true", help="leave the files for another run")
    p.add_argument("directory", nargs="?", type=Path)
    a = p.parse_args()
    top = a.directory or Path(tempfile.mkdtemp(prefix="passthru-inodes-", dir="/var/tmp"))
    mnt = Path(tempfile.mkdtemp(prefix="passthru-inodes-mnt-"))
    make(top, a.files)
    daemon = subprocess.Popen([sys.executable, "-m", "passthru", "-f", top, mnt], stderr=subprocess.PIPE, text=True)
    try:
        print(daemon.stderr.readline().strip())
        print(f"at start        {cost(daemon.pid)}")
        drop()
        found, seconds = walk(mnt)
        print(f"{found} known   {cost(daemon.pid)}  {seconds:6.1f} s")
        found, seconds = walk(mnt)
        print(f"walked again    {cost(daemon.pid)}  {seconds:6.1f} s")
        drop()
        print(f"forgotten       {cost(daemon.pid)}")
        drop()
        print(f"bare source, cold                             {walk(top)[1]:6.1f} s")
        print(f"bare source, again                            {walk(top)[1]:6.1f} s")
    finally:
        subprocess.run(["umount", mnt], check=False)
        daemon.wait(30)
        mnt.rmdir()
        if not a.keep:
            shutil.rmtree(top)


if __name__ == "__main__":
    main()
