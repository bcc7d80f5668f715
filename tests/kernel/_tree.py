"""What a directory tree consists of, for comparison."""
from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

Tree = dict[bytes, tuple[object, ...]]


def _content(path: bytes, st: os.stat_result) -> object:
    if stat.S_ISLNK(st.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(st.st_mode):
        with open(path, "rb", buffering=0) as f:
            return st.st_size, hashlib.file_digest(f, "sha256").digest()
    return st.st_rdev if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode) else None


def _xattrs(path: bytes) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False)
            for name in sorted(os.listxattr(path, follow_symlinks=False))}


def tree(root: Path, exact: bool = False) -> Tree:
    """{path: all of its metadata and content}; exact: with what only the same file has in common."""
    top = os.fsencode(root)
    found: Tree = {}
    first_name: dict[tuple[int, int], bytes] = {}
    waiting = [top]
    while waiting:
        path = waiting.pop()
        st = os.lstat(path)
        link_of = b""
        if not stat.S_ISDIR(st.st_mode) and st.st_nlink > 1:
            link_of = first_name.setdefault((st.st_dev, st.st_ino), path[len(top):])
        same = (st.st_ino, st.st_nlink, st.st_blocks, st.st_ctime_ns) if exact else ()
        found[path[len(top):]] = (
            st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, _content(path, st), _xattrs(path), link_of,
            *same)
        if stat.S_ISDIR(st.st_mode):
            waiting += sorted((e.path for e in os.scandir(path)), reverse=True)
    return found


def differences(a: Tree, b: Tree) -> list[str]:
    """The first differences, to be shown; empty if the trees are equal."""
    found = []
    for path in sorted(a.keys() | b.keys()):
        if a.get(path) != b.get(path):
            found.append(f"{path!r}: {a.get(path)} / {b.get(path)}")
        if len(found) == 10:
            break
    return found
