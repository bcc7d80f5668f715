"""What rows of whole tools work on: a tree of sources, a repository, a C project."""

from __future__ import annotations

import os
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

from harness import SILENT, Bench, fresh, run

TREE_FILES, C_FILES = 3_000, 24


def sources_tree(bench: Bench, most: int = TREE_FILES) -> int:
    """A copy of Python's own library (or a part of it) as an archive; the number of its files."""
    archive = bench.work / "tree.tar"
    if not archive.exists():
        top = Path(sysconfig.get_path("stdlib"))
        paths = sorted(p for p in top.rglob("*") if p.is_file() and not p.is_symlink() and not {
            "__pycache__", "site-packages", "dist-packages"} & set(p.parts) and p.stat().st_size < 1 << 20)
        with tarfile.open(archive, "w") as tar:
            for p in paths[:most]:
                tar.add(p, f"tree/{p.relative_to(top)}")
        bench.keep["files"] = len(paths[:most])
    return int(bench.keep["files"])


def git(where: Path, *words: str) -> list[Any]:
    return ["env", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_OPTIONAL_LOCKS=0",
            "git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-C", where, *words]


def repository(bench: Bench) -> None:
    """The tree, committed; older than its index, or git would read all files again."""
    where = bench.source / "repository"
    sources_tree(bench)
    if not where.exists():
        where.mkdir()
        run(["tar", "xf", bench.work / "tree.tar", "-C", where], **SILENT)
        for p in where.rglob("*"):
            os.utime(p, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
        run(git(where, "init", "-q"), **SILENT)
        run(git(where, "add", "."), **SILENT)
        run(git(where, "commit", "-q", "-m", "bench"), **SILENT)
    run(git(where, "status"), **SILENT)


def project(bench: Bench) -> None:
    """A small C project with a header for each file."""
    fresh(bench, "project")
    where = bench.source / "project"
    (where / "common.h").write_text("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n")
    for n in range(C_FILES):
        (where / f"m{n}.h").write_text(f"int m{n}(int);\n")
        body = "\n".join(f"static int f{k}(int x) {{ return x * {k} + {n}; }}" for k in range(20))
        (where / f"m{n}.c").write_text(
            f'#include "common.h"\n#include "m{n}.h"\n{body}\nint m{n}(int x) {{ return f1(x) + f19(x); }}\n')
    (where / "build.sh").write_text(
        "set -e\nls m*.c | xargs -P 2 -n 4 cc -O0 -c\nar rc libm.a m*.o\n")
