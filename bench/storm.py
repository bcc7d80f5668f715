"""storm.c, compiled when it is needed: as a program, and as a library for one job in this process."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("storm.c")


class NoCompiler(Exception):
    """There is no C compiler to build the load generator with."""


def build(directory: Path, library: bool = False) -> Path:
    """Compile storm.c into `directory`; the path of the program or the library."""
    cc = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not cc:
        raise NoCompiler("the load generator (storm.c) needs a C compiler: cc, gcc or clang")
    out = directory / ("storm.so" if library else "storm")
    flags = ["-shared", "-fPIC"] if library else []
    subprocess.run([cc, "-O2", "-Wall", *flags, "-o", str(out), str(SOURCE)], check=True)
    return out


class Library:
    """storm() in this process: nothing is started for a run, and the GIL is not held."""

    def __init__(self, directory: Path):
        self.call = ctypes.CDLL(str(build(directory, library=True))).storm
        self.call.restype = ctypes.c_long
        self.call.argtypes = [
            ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_double, ctypes.c_long,
            ctypes.c_int]

    def run(
        self, mode: str, where: Path, first: int = 0, count: int = 0, seconds: float = 60.0,
        block: int = 4096, direct: bool = False,
    ) -> int:
        """Operations done. OSError if one failed."""
        n = self.call(mode.encode(), os.fsencode(where), first, count, seconds, block, int(direct))
        if n < 0:
            raise OSError(-n, f"storm {mode} {where}: {os.strerror(-n)}")
        return n
