"""git inside the mount."""
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from _tree import differences, tree

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
FILES = 2000


def git(where: Path, *args: str) -> str:
    """Run git without anybody's configuration."""
    env = {**os.environ, "HOME": "/none", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    for who in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{who}_NAME": "a", f"GIT_{who}_EMAIL": "a@example.com"}
    return subprocess.run(
        ["git", "-C", str(where), *args], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A repository of some thousand files, two branches."""
    top = tmp_path_factory.mktemp("git") / "repository"
    top.mkdir()
    git(top, "init", "-q", "-b", "main")
    rng = random.Random(1)
    for n in range(FILES):
        path = top / f"d{n % 40}" / f"e{n % 7}" / f"file{n}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(2000)) + b"\n")
    git(top, "add", ".")
    git(top, "commit", "-q", "-m", "first")
    git(top, "checkout", "-q", "-b", "other")
    for path in sorted(top.glob("d1*/e*/*")):
        path.write_bytes(b"changed\n" + path.read_bytes())
    for path in sorted(top.glob("d2*/e*/*")):
        path.unlink()
    git(top, "commit", "-q", "-a", "-m", "second")
    git(top, "checkout", "-q", "main")
    return top


def test_clone_fsck_gc_checkout(repository, fs):
    git(fs.mnt, "clone", "-q", "--no-local", str(repository), "clone")
    clone = fs.mnt / "clone"
    git(clone, "fsck", "--full", "--strict")
    assert git(clone, "status", "--porcelain") == ""
    git(clone, "gc", "-q", "--prune=now")
    git(clone, "fsck", "--full")
    for branch in ("other", "main", "other"):
        git(clone, "checkout", "-q", branch)
        assert git(clone, "status", "--porcelain") == ""
    git(repository, "worktree", "add", "-q", "--detach", str(fs.mnt / "tree"), "other")
    try:
        # Without mtimes: they are those of the checkouts.
        a, b = (
            {path: (what[0], *what[4:]) for path, what in tree(top).items() if not path.startswith(b"/.git")}
            for top in (clone, fs.mnt / "tree"))
        assert not differences(a, b)
    finally:
        git(repository, "worktree", "remove", "--force", str(fs.mnt / "tree"))


def test_commit_and_reset(repository, fs):
    subprocess.run(["cp", "-a", repository, fs.mnt / "r"], check=True)
    where = fs.mnt / "r"
    assert git(where, "status", "--porcelain") == ""
    (where / "new").mkdir()
    for n in range(200):
        (where / "new" / str(n)).write_text(f"{n}\n")
    git(where, "add", ".")
    git(where, "commit", "-q", "-m", "new")
    git(where, "reset", "-q", "--hard", "HEAD~1")
    assert not (where / "new").exists()
    git(where, "fsck")
