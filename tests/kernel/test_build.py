"""Software built inside the mount."""
import importlib.util
import os
import shutil
import subprocess
import sys

import pytest
from _modes import DATA_TOO

pytestmark = [pytest.mark.release_only("takes long on a build with sanitizers"), DATA_TOO]

MAKEFILE = """\
OBJECTS := $(patsubst %.c,%.o,$(wildcard part*.c)) main.o
all: program libparts.a
program: $(OBJECTS)
\tcc -g -o $@ $^
libparts.a: $(OBJECTS)
\tar rcs $@ $^
%.o: %.c parts.h
\tcc -g -O1 -c -o $@ $<
"""


def make(where, *args: str) -> str:
    return subprocess.run(["make", "-C", where, *args], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not (shutil.which("make") and shutil.which("cc")), reason="no make or no C compiler")
def test_c_project(fs):
    where = fs.mnt / "project"
    where.mkdir()
    count = 20
    (where / "Makefile").write_text(MAKEFILE)
    (where / "parts.h").write_text("".join(f"int part{n}(int);\n" for n in range(count)))
    for n in range(count):
        (where / f"part{n}.c").write_text(f'#include "parts.h"\nint part{n}(int x) {{ return x + {n}; }}\n')
    calls = " + ".join(f"part{n}(0)" for n in range(count))
    (where / "main.c").write_text(
        f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{ printf("%d\\n", {calls}); }}\n')
    make(where, "-j4")
    out = subprocess.run([where / "program"], check=True, capture_output=True, text=True).stdout
    assert int(out) == sum(range(count))
    assert "cc" not in make(where), "times are such that make builds again"
    os.utime(where / "part3.c")
    again = make(where)
    assert again.count("cc -g -O1 -c") == 1


@pytest.mark.timeout(180)
@pytest.mark.skipif(importlib.util.find_spec("Cython") is None, reason="Cython is not installed")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_cython_module(fs):
    where = fs.mnt / "project"
    where.mkdir()
    (where / "answer.pyx").write_text("def answer(int x):\n    cdef int n = x * 2\n    return n\n")
    (where / "setup.py").write_text(
        "from Cython.Build import cythonize\nfrom setuptools import setup\n"
        'setup(name="answer", ext_modules=cythonize("answer.pyx", language_level=3))\n')
    build = [sys.executable, "setup.py", "-q", "build_ext", "-i"]
    subprocess.run(build, cwd=where, check=True, capture_output=True)
    said = subprocess.run(
        [sys.executable, "-c", "import answer; print(answer.answer(21))"], cwd=where, check=True,
        capture_output=True, text=True).stdout
    assert said == "42\n"
