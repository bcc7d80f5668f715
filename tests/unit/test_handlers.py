"""What the handlers do with one request after the other: what they count, keep, tell and give back."""
from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import signal
import stat
import struct
import threading
import time

import pytest
from _served import ATTR, ENTRY, KEEP_CACHE, Queue, apart, groups, root, served, until

from passthru import _testing

TO_THE_END = (1 << 63) - 1
WRITE_CACHE, KILL_SUIDGID, OPEN_KILL = 1, 4, 1
GROUPS = 32  # FUSE_EXT_GROUPS


@pytest.fixture
def source(tmp_path):
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    src = tmp_path / "src"
    src.mkdir()
    src.chmod(0o777)
    return src


def entry(reply: bytes, at: int = 0) -> dict[str, int]:
    names = ("node", "generation", "entry_valid", "attr_valid", "entry_nsec", "attr_nsec")
    return dict(zip(names, struct.unpack_from("=QQQQII", reply, at), strict=True)) | attr(reply, at + 40)


def attr(reply: bytes, at: int = 16) -> dict[str, int]:
    names = ("ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags")
    return dict(zip(names.split(), struct.unpack_from("=6Q10I", reply, at), strict=True))


# --------------------------------------------------------------- lookups

def lookup(q: Queue, name: bytes) -> int:
    return q.lookup(name)[0]


def listed(q: Queue, name: bytes) -> int:
    """By READDIRPLUS: the entry of that name."""
    handle, _ = q.open(1, os.O_RDONLY, name="OPENDIR")
    at = 0
    try:
        while True:  # one at a time
            size = (128 + 24 + 255) & ~7
            result, reply = q.ask("READDIRPLUS", 1, struct.pack("=QQI20x", handle, at, 160))
            assert 0 < result <= size
            node, (_, at, length) = struct.unpack_from("=Q", reply)[0], struct.unpack_from("=QQI", reply, 128)
            if reply[152:152 + length] == name:
                return node
            if node:
                q.forget(node)
    finally:
        q.release(1, handle, "RELEASEDIR")


def linked(q: Queue, name: bytes) -> int:
    node, _ = q.lookup(name)
    result, reply = q.ask("LINK", 1, struct.pack("=Q", node), b"other\0")
    assert result == ENTRY and entry(reply)["node"] == node
    q.forget(node)
    return node


@apart
@pytest.mark.parametrize("way", [lookup, listed, linked])
def test_each_answer_is_a_lookup(source, way):
    """As many FORGETs as answers, whatever the answers were to; not one less."""
    (source / "f").write_text("x")
    with served(source) as m:
        q = m.first
        first, _ = q.lookup(b"f")
        assert way(q, b"f") == first == q.lookup(b"f")[0]
        q.forget(first, 2)
        assert q.known(first)
        q.forget(first)
        assert not q.known(first)
        assert m.core.live == (1, 0)


@apart
@pytest.mark.parametrize("kind", ["CREATE", "MKDIR", "MKNOD", "SYMLINK", "TMPFILE"])
def test_what_is_made_is_looked_up_once(source, kind):
    first = {"CREATE": struct.pack("=IIII", os.O_RDWR, 0o644, 0, 0), "MKDIR": struct.pack("=II", 0o755, 0),
             "MKNOD": struct.pack("=IIII", stat.S_IFREG | 0o644, 0, 0, 0), "SYMLINK": b"",
             "TMPFILE": struct.pack("=IIII", os.O_RDWR, 0o644, 0, 0)}[kind]
    with served(source) as m:
        q = m.first
        result, reply = q.ask(kind, 1, first, b"f\0" + (b"target\0" if kind == "SYMLINK" else b""))
        assert result >= ENTRY
        node = entry(reply)["node"]
        if result > ENTRY:
            q.release(node, struct.unpack_from("=Q", reply, ENTRY)[0])
        assert m.core.live == (2, 0)
        q.forget(node)
        assert m.core.live == (1, 0)


@apart
def test_many_forgotten_at_once(source):
    """BATCH_FORGET: each by as much as it says."""
    for name in ("f", "g"):
        (source / name).touch()
    with served(source) as m:
        q = m.first
        f, g = q.lookup(b"f")[0], q.lookup(b"g")[0]
        for _ in range(3):
            q.lookup(b"f")
        q.ask("BATCH_FORGET", 0, struct.pack("=II", 2, 0), struct.pack("=QQQQ", g, 1, f, 2))
        # The second of these is not there; in its place is what the request before has left.
        q.ask("BATCH_FORGET", 0, struct.pack("=II", 2, 0), struct.pack("=QQ", g, 1))
        assert q.known(f) and not q.known(g)
        q.forget(f, 2)
        assert m.core.live == (1, 0)


@apart
def test_open_files_outlive_their_names(source):
    """Forgotten and removed, a file is there until its last handle is closed."""
    (source / "f").write_text("content")
    with served(source) as m:
        q = m.first
        node, _ = q.lookup(b"f")
        handles = [q.open(node)[0] for _ in range(2)]
        q.forget(node)
        os.unlink(source / "f")
        q.release(node, handles[0])
        assert q.read(node, handles[1], 0, 100) == (7, b"content")
        assert q.known(node)
        q.release(node, handles[1])
        assert not q.known(node)
        assert m.core.live == (1, 0)


@apart
def test_many_inodes_are_found_again(source):
    """The table grows, and all are in it."""
    with served(source) as m:
        many = _testing.Inodes(m.core, 20000)
        assert many.by_nodeid(50000) == 50000
        assert many.by_stat(50000) == 50000
        many.close()


@apart
def test_generation_tells_reused_nodeids(source):
    """The same nodeid is never given out again with the same generation: the kernel would take one file for another."""
    seen = set()
    with served(source) as m:
        q = m.first
        for n in range(5):
            (source / f"f{n}").touch()
            node, reply = q.lookup(f"f{n}".encode())
            assert (node, entry(reply)["generation"]) not in seen
            seen.add((node, entry(reply)["generation"]))
            q.forget(node)
        assert len({node for node, _ in seen}) < 5, "no nodeid was used again: this tests nothing"


@apart
@pytest.mark.parametrize("opcode, first", [
    (14, struct.pack("=II", os.O_RDONLY, 0)), (27, bytes(8)), (51, struct.pack("=IIII", os.O_RDWR, 0o644, 0, 0)),
], ids=["OPEN", "OPENDIR", "TMPFILE"])
def test_what_cannot_be_delivered_is_taken_back(source, opcode, first):
    """The lookups and handles of a reply for which the kernel has given no room."""
    (source / "f").touch()
    with served(source) as m:
        node = m.first.lookup(b"f")[0] if opcode == 14 else 1
        before = m.core.live
        q = _testing.Requests(m.core, 8192, 4, 0xFFFFFFFF, 1)  # where a request may be without a payload
        header = struct.pack("=IIQQIIIHH", 40 + len(first), opcode, 9, node, 0, 0, 1, 0, 0)
        slot = header.ljust(128, b"\0") + first.ljust(128, b"\0")
        assert q.parse(slot + struct.pack("=QQIIQ", 0, 9, 0, 0xFFFFFFFF, 0), b"")[0] == 0
        assert q.serve()[0] == -errno.EIO
        assert m.core.live == before


# -------------------------------------------------------------- timeouts

@apart
def test_timeouts_each_for_its_own(source):
    """Attributes, names, and names that are not there."""
    (source / "f").touch()
    with served(source, attr_timeout=11.25, entry_timeout=22.5, negative_timeout=33.75) as m:
        e = entry(m.first.lookup(b"f")[1])
        assert (e["attr_valid"], e["attr_nsec"], e["entry_valid"], e["entry_nsec"]) == (11, 25 * 10**7, 22, 5 * 10**8)
        e = entry(m.first.lookup(b"none")[1])
        assert (e["node"], e["entry_valid"], e["entry_nsec"]) == (0, 33, 75 * 10**7)
        result, reply = m.first.ask("GETATTR", 1, bytes(16))
        assert (result, struct.unpack_from("=QI", reply)) == (ATTR, (11, 25 * 10**7))


@apart
def test_absence_is_not_kept_if_it_is_not_to_be(source):
    with served(source, entry_timeout=22.5, negative_timeout=0) as m:
        assert m.first.ask("LOOKUP", 1, payload=b"none\0")[0] == -errno.ENOENT


@apart
def test_rights_of_programs_are_not_kept(source):
    """What has suid or sgid is asked for each time."""
    (source / "f").touch()
    with served(source, attr_timeout=10) as m:
        for mode, kept in ((0o755, 10), (0o4755, 0), (0o2755, 0), (0o1755, 10)):
            (source / "f").chmod(mode)
            assert entry(m.first.lookup(b"f")[1])["attr_valid"] == kept


# ----------------------------------------------------------------- pages

@apart
@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("age, kept", [(1000, True), (-1000, False)], ids=["old", "younger than a tick"])
def test_pages_are_kept_of_what_is_unchanged(source, kind, age, kept):
    """Of what has just been changed a further change may not show in its times."""
    path = source / "f"
    path.write_text("x") if kind == "file" else path.mkdir()
    how = {} if kind == "file" else {"name": "OPENDIR"}
    with served(source) as m:
        q = m.first
        node, _ = q.lookup(b"f")
        when = time.time() - age
        os.utime(path, (when, when))
        assert not q.open(node, os.O_RDONLY, **how)[1] & KEEP_CACHE, "nobody knows what its pages are of"
        assert bool(q.open(node, os.O_RDONLY, **how)[1] & KEEP_CACHE) == kept
        os.utime(path, (when + 1, when + 1))
        assert not q.open(node, os.O_RDONLY, **how)[1] & KEEP_CACHE, "it has changed"
        assert bool(q.open(node, os.O_RDONLY, **how)[1] & KEEP_CACHE) == kept


@apart
@pytest.mark.parametrize("policy, kept", [("never", False), ("always", True)])
def test_cache_policy(source, policy, kept):
    (source / "f").touch()
    os.utime(source / "f", (1e9, 1e9))
    with served(source, cache=policy) as m:
        node, _ = m.first.lookup(b"f")
        for _ in range(2):
            assert bool(m.first.open(node)[1] & KEEP_CACHE) == kept


# ------------------------------------------------------------------ data

@apart
def test_pages_of_an_append_only_handle_go_where_they_belong(source):
    """What the page cache writes of an mmap has a place, though the file is open with O_APPEND; what write(2) brings
    goes to the end."""
    (source / "f").write_bytes(b"0123456789")
    with served(source) as m:
        q = m.first
        node, _ = q.lookup(b"f")
        handle, _ = q.open(node, os.O_RDWR | os.O_APPEND)
        assert q.write(node, handle, 2, b"abc", WRITE_CACHE, os.O_RDWR | os.O_APPEND) == 8
        assert (source / "f").read_bytes() == b"01abc56789"
        assert q.write(node, handle, 2, b"end", 0, os.O_RDWR | os.O_APPEND) == 8
        assert (source / "f").read_bytes() == b"01abc56789end"


@apart
def test_flags_of_an_open_file_follow(source):
    """fcntl(F_SETFL): O_APPEND taken away and set again."""
    (source / "f").write_bytes(b"0123456789")
    with served(source) as m:
        q = m.first
        node, _ = q.lookup(b"f")
        handle, _ = q.open(node, os.O_RDWR | os.O_APPEND)
        assert q.write(node, handle, 1, b"A", 0, os.O_RDWR) == 8
        assert q.write(node, handle, 1, b"B", 0, os.O_RDWR | os.O_APPEND) == 8
        assert (source / "f").read_bytes() == b"0A23456789B"


@apart
def test_handles_are_of_their_kind(source):
    """A directory's is none of a file, and what is closed is none at all."""
    (source / "f").write_text("x")
    with served(source) as m:
        q = m.first
        node, _ = q.lookup(b"f")
        handle, _ = q.open(node)
        listing, _ = q.open(1, os.O_RDONLY, name="OPENDIR")
        assert q.read(1, listing, 0, 10)[0] == -errno.EBADF
        assert q.ask("READDIR", node, struct.pack("=QQI20x", handle, 0, 1000))[0] == -errno.EBADF
        q.release(node, handle)
        assert q.read(node, handle, 0, 10)[0] == -errno.EBADF
        assert q.ask("RELEASE", node, struct.pack("=QIIQ", handle, 0, 0, 0))[0] == -errno.EBADF


@apart
def test_sizes_are_checked(source):
    """A WRITE that says more than it brings, and a READ for which there is no room."""
    (source / "f").write_text("x")
    with served(source) as m:
        q = m.first
        node, _ = q.lookup(b"f")
        handle, _ = q.open(node)
        first = struct.pack("=QQIIQII", handle, 0, 9, 0, 0, 0, 0)
        assert q.ask("WRITE", node, first, b"12345678")[0] == -errno.EINVAL
        assert q.read(node, handle, 0, 1 << 20)[0] == -errno.EINVAL
        assert q.ask("GETATTR", 1, bytes(15))[0] == -errno.EINVAL, "shorter than its argument"
        assert (source / "f").read_text() == "x"


# ------------------------------------------------------- suid and sgid

@root
@apart
@pytest.mark.parametrize("kill", [True, False])
def test_opening_to_truncate_takes_suid(source, kill):
    """Who may not keep suid does not, by O_TRUNC alone; nor is the file opened before it is cut."""
    path = source / "f"
    path.write_text("program")
    path.chmod(0o6777)
    with served(source, identity=True) as m:
        node, _ = m.first.lookup(b"f")
        m.first.open(node, os.O_WRONLY | os.O_TRUNC, OPEN_KILL if kill else 0, uid=1234, gid=1234)
        assert path.stat().st_size == 0
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if kill else 0o6777)


@root
@apart
@pytest.mark.parametrize("how, mode", [(0, 0o6777), (KILL_SUIDGID, 0o777), (WRITE_CACHE, 0o777)])
def test_writing_takes_suid(source, how, mode):
    """Of who may not keep it, and pages that nobody knows the writer of; and the next write is its own caller's."""
    for name in "fg":
        (source / name).write_text("program")
        (source / name).chmod(0o6777)
    with served(source, identity=True) as m:
        q = m.first
        f, g = (q.lookup(name)[0] for name in (b"f", b"g"))
        first, second = q.open(f)[0], q.open(g)[0]
        assert q.write(f, first, 0, b"x", how) == 8
        assert q.write(g, second, 0, b"x") == 8
        assert [stat.S_IMODE(os.stat(source / name).st_mode) for name in "fg"] == [mode, 0o6777]


@root
@apart
@pytest.mark.parametrize("kill, mode", [(0, 0o6777), (1 << 11, 0o777)])
def test_truncation_takes_suid(source, kill, mode):
    path = source / "f"
    path.write_text("program")
    path.chmod(0o6777)
    with served(source, identity=True) as m:
        node, _ = m.first.lookup(b"f")
        first = struct.pack("=IIQQQQQQIIIIIIII", 1 << 3 | kill, 0, 0, 3, *[0] * 4, *[0] * 8)
        assert m.first.ask("SETATTR", node, first, uid=1234, gid=1234)[0] == ATTR
        assert path.stat().st_size == 3
        assert stat.S_IMODE(path.stat().st_mode) == mode


# -------------------------------------------------------------- identity

def group(gid: int) -> bytes:
    """FUSE_EXT_GROUPS."""
    return struct.pack("=IIII", 16, GROUPS, 1, gid)


def mkdir(q: Queue, name: bytes, **who) -> int:
    return q.ask("MKDIR", 1, struct.pack("=II", 0o755, 0), name + b"\0", **who)[0]


@root
@apart
def test_groups_are_of_one_caller_only(source):
    """A supplementary group that a request brings is not the next caller's, nor that of data that is written."""
    (source / "f").touch()
    with served(source, identity=True) as m:
        q = m.first
        assert mkdir(q, b"a", uid=1234, gid=1235, ext=group(4321)) == ENTRY
        assert mkdir(q, b"b", uid=1236, gid=1237) == ENTRY
        assert groups() == []
        assert mkdir(q, b"c", uid=1234, gid=1235, ext=group(4321)) == ENTRY
        node, _ = q.lookup(b"f")
        handle, _ = q.open(node)
        q.write(node, handle, 0, b"x", KILL_SUIDGID)
        assert groups() == []
        assert [os.stat(source / name)[4:6] for name in "abc"] == [(1234, 1235), (1236, 1237), (1234, 1235)]


@root
@apart
def test_identity_ends_with_the_request(source):
    """Whatever the request came to, the thread is the daemon again, with its rights and under its label."""
    (source / "closed").mkdir(mode=0o700)
    (source / "f").touch()

    def mine() -> list[str]:
        with open("/proc/thread-self/status", encoding="ascii") as f:
            return [line for line in f if line.startswith(("Uid:", "Gid:", "Groups:", "CapEff:"))]

    with served(source, identity=True) as m:
        q = m.first
        before = mine()
        closed, node = q.lookup(b"closed")[0], q.lookup(b"f")[0]
        for act in (
            lambda: mkdir(q, b"made", uid=1234, gid=1235),
            lambda: mkdir(q, b"made", uid=1234, gid=1235),  # EEXIST
            lambda: q.ask("MKDIR", closed, struct.pack("=II", 0o755, 0), b"x\0", uid=1234, gid=1235),
            lambda: q.ask("SYMLINK", 1, b"", b"l\0target\0", uid=1234, gid=1235),
            lambda: q.ask("CREATE", 1, struct.pack("=IIII", 2, 0o644, 0, 0), b"n\0", uid=1234, gid=1235),
            lambda: q.ask("ACCESS", closed, struct.pack("=II", 4, 0), uid=1234, gid=1235),
            lambda: q.ask("SETATTR", node, struct.pack("=I84x", 0), uid=1234, gid=1235),
            lambda: q.ask("UNLINK", 1, payload=b"none\0", uid=1234, gid=1235),
        ):
            act()
            assert mine() == before


@root
@apart
def test_data_is_written_as_nobody_and_nothing_else(source):
    """What follows a write that takes suid is done by the daemon again: no other way into this directory."""
    (source / "closed").mkdir(mode=0o700)
    (source / "f").touch()
    with served(source, identity=True) as m:
        q = m.first
        closed, node = q.lookup(b"closed")[0], q.lookup(b"f")[0]
        handle, _ = q.open(node)
        for name in (b"a", b"b"):
            assert q.write(node, handle, 0, b"x", KILL_SUIDGID) == 8
            assert q.ask("MKDIR", closed, struct.pack("=II", 0o755, 0), name + b"\0")[0] == ENTRY
            assert os.stat(source / "closed" / name.decode()).st_uid == 0


@root
@apart
@pytest.mark.parametrize("ext", [struct.pack("=IIII", 1000, GROUPS, 1, 4321), struct.pack("=IIII", 4, GROUPS, 1, 4321)],
                         ids=["longer than it is", "shorter than its header"])
def test_malformed_groups(source, ext):
    with served(source, identity=True) as m:
        assert mkdir(m.first, b"a", uid=1234, gid=1235, ext=ext) == -errno.EINVAL
        assert os.listdir(source) == []


@root
@apart
def test_capabilities_of_files_are_roots_to_give(source):
    """The kernel has asked by what it knows of the file's owner; so who asks is asked again."""
    (source / "f").touch()
    value = struct.pack("=IIIII", 0x02000000, 1 << 10, 0, 0, 0)
    with served(source, identity=True) as m:
        node, _ = m.first.lookup(b"f")

        def give(uid: int, pid: int) -> int:
            return m.first.ask("SETXATTR", node, struct.pack("=IIII", len(value), 0, 0, 0),
                               b"security.capability\0" + value, uid=uid, gid=uid, pid=pid)[0]

        assert give(1234, 0) == -errno.EPERM
        assert "security.capability" not in os.listxattr(source / "f")
        assert give(0, os.getpid()) == 0
        assert "security.capability" in os.listxattr(source / "f")


@contextlib.contextmanager
def namespace_root(uid: int, gid: int):
    """A process that is root of a user namespace of that user's. Its pid."""
    libc, (ready, told) = ctypes.CDLL(None, use_errno=True), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, or its maps are root's
            assert libc.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())  # CLONE_NEWUSER
            for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
                with open(f"/proc/self/{name}", "w") as f:
                    f.write(text)
            os.write(told, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(told)
    try:
        assert os.read(ready, 1) == b"x"
        yield child
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@root
@apart
def test_capabilities_of_files_by_a_namespaces_root(source):
    """To files that are its own, and in the form that counts in its namespace only."""
    for name, owner in (("own", 1234), ("other", 4321)):
        (source / name).touch()
        os.chown(source / name, owner, 1235)
    everywhere = struct.pack("=IIIII", 0x02000000, 1 << 10, 0, 0, 0)
    there = struct.pack("=IIIIII", 0x03000000, 1 << 10, 0, 0, 0, 1234)
    with namespace_root(1234, 1235) as pid, served(source, identity=True) as m:

        def give(name: bytes, value: bytes) -> int:
            return m.first.ask("SETXATTR", m.first.lookup(name)[0], struct.pack("=IIII", len(value), 0, 0, 0),
                               b"security.capability\0" + value, uid=1234, gid=1235, pid=pid)[0]

        assert give(b"own", everywhere) == give(b"other", there) == -errno.EPERM
        assert os.listxattr(source / "own") == os.listxattr(source / "other") == []
        assert give(b"own", there) == 0
        assert os.listxattr(source / "own") == ["security.capability"]


@root
@apart
def test_access_is_the_callers(source):
    (source / "d").mkdir(mode=0o700)
    os.chown(source / "d", 1234, 1235)
    with served(source, identity=True) as m:
        node, _ = m.first.lookup(b"d")
        ask = struct.pack("=II", 7, 0)
        assert m.first.ask("ACCESS", node, ask, uid=1234, gid=1235)[0] == 0
        assert m.first.ask("ACCESS", node, ask, uid=1236, gid=1237)[0] == -errno.EACCES


@root
@apart
@pytest.mark.parametrize("sticky", [True, False])
def test_sticky_directories_go_by_the_owner_of_this_moment(source, sticky):
    """Whatever the kernel believes: the source is asked as the caller."""
    for path in (source / "d", source / "e"):
        path.mkdir()
        path.chmod(0o1777 if sticky else 0o777)
        for name in ("f", "g"):
            (path / name).touch()
            os.chown(path / name, 1234, 1234)
    with served(source, identity=True) as m:
        q = m.first
        d, e = q.lookup(b"d")[0], q.lookup(b"e")[0]

        def unlink(uid: int, name: bytes) -> int:
            return q.ask("UNLINK", d, payload=name, uid=uid, gid=uid)[0]

        def rename(uid: int, names: bytes) -> int:
            return q.ask("RENAME", d, struct.pack("=Q", e), names, uid=uid, gid=uid)[0]

        stranger = -errno.EPERM if sticky else 0
        assert rename(4321, b"f\0f\0") == stranger
        assert rename(1234, b"g\0new\0") == 0
        assert unlink(4321, b"f\0") == (stranger or -errno.ENOENT)
        assert unlink(1234, b"f\0") == (0 if sticky else -errno.ENOENT)


@root
@apart
@pytest.mark.parametrize("asked, made", [(0, 0o777), (0o027, 0o750)])
def test_umask_is_the_callers(source, asked, made):
    with served(source, identity=True) as m:
        q = m.first
        for name, mask in ((b"a", asked), (b"b", 0), (b"c", asked)):
            assert q.ask("MKDIR", 1, struct.pack("=II", 0o777, mask), name + b"\0")[0] == ENTRY
        assert [stat.S_IMODE(os.stat(source / n).st_mode) for n in "abc"] == [made, 0o777, made]


@root
@apart
def test_nobody_in_particular_makes_nothing(source):
    """FUSE_INVALID_UIDGID, which has no name on disk."""
    with served(source, identity=True) as m:
        assert mkdir(m.first, b"a", uid=0xFFFFFFFF, gid=0) == -errno.EOVERFLOW
        assert mkdir(m.first, b"a", uid=0, gid=0xFFFFFFFF) == -errno.EOVERFLOW
        assert os.listdir(source) == []


# ----------------------------------------------------------------- locks

@apart
@pytest.mark.parametrize("start", [0, 5])
def test_locks_to_the_end_of_the_file(source, start):
    """Taken, told and given up without an end, as SQLite does."""
    (source / "f").write_text("x")
    with served(source) as m:
        q = m.first
        node, _ = q.lookup(b"f")
        handle, _ = q.open(node)
        assert q.lock(node, handle, fcntl.F_WRLCK, start, TO_THE_END) == 0
        assert q.lock(node, handle, fcntl.F_WRLCK, 1 << 40, 1 << 40, owner=2) == -errno.EAGAIN
        result, reply = q.ask("GETLK", node, struct.pack(
            "=QQQQIIII", handle, 2, 0, TO_THE_END, fcntl.F_WRLCK, 7, 0, 0))
        assert (result, struct.unpack("=QQII", reply)) == (24, (start, TO_THE_END, fcntl.F_WRLCK, 7))
        assert q.lock(node, handle, fcntl.F_UNLCK, 100, TO_THE_END) == 0
        assert q.lock(node, handle, fcntl.F_WRLCK, 1 << 40, 1 << 40, owner=2) == 0
        assert q.lock(node, handle, fcntl.F_WRLCK, 99, 99, owner=2) == -errno.EAGAIN
        assert q.lock(node, handle, fcntl.F_UNLCK, start, TO_THE_END) == 0
        assert q.lock(node, handle, fcntl.F_WRLCK, 0, TO_THE_END, owner=2) == 0


@apart
def test_locks_end_with_their_owner_or_their_file(source):
    """FLUSH gives up what its owner has, and nobody else's; RELEASE what came by that handle only."""
    (source / "f").write_text("x")
    with served(source) as m:
        q = m.first
        node, _ = q.lookup(b"f")
        first, _ = q.open(node)
        second, _ = q.open(node)
        assert q.lock(node, first, fcntl.F_WRLCK, 0, 9, owner=1) == 0
        assert q.lock(node, second, fcntl.F_WRLCK, 10, 19, owner=2) == 0
        assert q.ask("FLUSH", node, struct.pack("=QIIQ", first, 0, 0, 1))[0] == 0
        assert q.lock(node, first, fcntl.F_WRLCK, 0, 9, owner=3) == 0
        assert q.lock(node, first, fcntl.F_WRLCK, 10, 19, owner=3) == -errno.EAGAIN
        q.release(node, second)
        assert q.lock(node, first, fcntl.F_WRLCK, 10, 19, owner=3) == 0


def in_a_thread(m, act) -> tuple[threading.Thread, list]:
    """act(queue) on a serving thread of its own."""
    said: list = []

    def run() -> None:
        said.append(act(m.queue()))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, said


@apart
def test_flock_of_a_holder_that_leaves(source):
    """The RELEASE may be under way after a FLUSH: who asks then, and would not wait, is not refused at once."""
    (source / "f").write_text("x")
    with served(source) as m:
        q = m.first
        node, _ = q.lookup(b"f")
        had = 0
        for _ in range(20):
            holder, _ = q.open(node)
            other, _ = q.open(node)
            assert q.lock(node, holder, fcntl.F_WRLCK, 0, 9, flags=1) == 0
            q.ask("FLUSH", node, struct.pack("=QIIQ", holder, 0, 0, 1))

            def leave(own: Queue, handle: int = holder) -> None:
                time.sleep(0.002)
                own.release(node, handle)

            leaves, _ = in_a_thread(m, leave)
            had += q.lock(node, other, fcntl.F_WRLCK, 0, 9, 2, flags=1) == 0
            leaves.join()
            q.release(node, other)
        assert had > 10


@apart
@pytest.mark.parametrize("before", [True, False], ids=["before", "while it waits"])
def test_interrupt(source, before):
    """It ends the wait for a lock, also if it comes before the request that it is for; and no other one."""
    (source / "f").write_text("x")
    with served(source) as m:
        q = m.first
        node, _ = q.lookup(b"f")
        handle, _ = q.open(node)
        assert q.lock(node, handle, fcntl.F_WRLCK, 0, 9) == 0
        if before:
            q.ask("INTERRUPT", 0, struct.pack("=Q", 222))
        wait = in_a_thread(m, lambda own: own.lock(node, handle, fcntl.F_WRLCK, 0, 9, 2, "SETLKW", unique=222))
        other = in_a_thread(m, lambda own: own.lock(node, handle, fcntl.F_WRLCK, 0, 9, 3, "SETLKW", unique=444))
        if not before:
            until(lambda: waits(source / "f") == 2, "both wait")
            q.ask("INTERRUPT", 0, struct.pack("=Q", 222))
        wait[0].join(5)
        assert wait[1] == [-errno.EINTR]
        assert other[1] == []
        assert q.lock(node, handle, fcntl.F_UNLCK, 0, 9) == 0
        other[0].join(5)
        assert other[1] == [0]


def waits(path) -> int:
    number = f":{os.stat(path).st_ino} "
    with open("/proc/locks", encoding="ascii") as f:
        return sum("->" in line and number in line for line in f)


# ------------------------------------------------------------ directories

def names_of(q: Queue, handle: int, size: int, at: int = 0) -> list[tuple[bytes, int]]:
    """(name, offset behind it) of all entries, by replies of `size` bytes."""
    found = []
    while True:
        result, reply = q.ask("READDIR", 1, struct.pack("=QQI20x", handle, at, size))
        assert result >= 0
        if not result:
            return found
        place = 0
        while place < min(result, 160) and place + 24 <= len(reply):
            _, at, length = struct.unpack_from("=QQI", reply, place)
            found.append((reply[place + 24:place + 24 + length], at))
            place += (24 + length + 7) & ~7
        assert place == result, "more than can be seen here"


@apart
@pytest.mark.parametrize("size", [40, 100, 160])
def test_listing_goes_on_where_it_ended(source, size):
    """Each name once, by replies of any size, and from each offset again the same rest, also out of the middle."""
    names = [f"n{n:02}" + "x" * (n % 9) for n in range(50)]
    for name in names:
        (source / name).touch()
    with served(source) as m:
        q = m.first
        handle, _ = q.open(1, os.O_RDONLY, name="OPENDIR")
        found = names_of(q, handle, size)
        assert sorted(n for n, _ in found) == sorted([b".", b"..", *(name.encode() for name in names)])
        for k in (0, 7, 30):
            assert names_of(q, handle, size, found[k][1]) == found[k + 1:]
            q.ask("READDIR", 1, struct.pack("=QQI20x", handle, 0, size))


@apart
def test_itself_and_above_are_no_lookups(source):
    """Of "." and ".." a listing tells the number and kind only."""
    (source / "f").touch()
    with served(source) as m:
        handle, _ = m.first.open(1, os.O_RDONLY, name="OPENDIR")
        at, nodes = 0, {}
        while True:
            result, reply = m.first.ask("READDIRPLUS", 1, struct.pack("=QQI20x", handle, at, 160))
            if not result:
                break
            _, at, length, kind = struct.unpack_from("=QQII", reply, 128)
            nodes[reply[152:152 + length]] = (struct.unpack_from("=Q", reply)[0] != 0, kind)
        assert nodes == {b".": (False, 4), b"..": (False, 4), b"f": (True, 8)}
        assert m.core.live == (2, 1)


@apart
def test_two_read_one_listing(source):
    """By one handle at once: each has its own position, and each name once."""
    for n in range(200):
        (source / f"n{n:03}").touch()
    with served(source) as m:
        handle, _ = m.first.open(1, os.O_RDONLY, name="OPENDIR")
        whole = names_of(m.first, handle, 160)
        others = [in_a_thread(m, lambda q: [names_of(q, handle, 160) == whole for _ in range(40)]) for _ in range(3)]
        for thread, said in others:
            thread.join()
            assert said == [[True] * 40]


@apart
def test_reply_too_small_for_an_entry(source):
    (source / "f").touch()
    with served(source) as m:
        handle, _ = m.first.open(1, os.O_RDONLY, name="OPENDIR")
        assert m.first.ask("READDIR", 1, struct.pack("=QQI20x", handle, 0, 24))[0] == 0


# ------------------------------------------------------- names and others

@apart
@pytest.mark.parametrize("name", [b"..\0", b".\0", b"a/b\0", b"\0", b"no end", b""])
def test_names_are_one_component(source, name):
    """Whatever the kernel says, nothing leads out of the directory."""
    (source / "a").mkdir()
    with served(source) as m:
        for ask in ("LOOKUP", "UNLINK", "RMDIR", "MKDIR", "MKNOD", "CREATE"):
            assert m.first.ask(ask, 1, bytes(16) if ask not in ("LOOKUP", "UNLINK", "RMDIR") else b"", name)[0] in (
                -errno.EINVAL,)


@apart
@pytest.mark.parametrize("identity", [False, pytest.param(True, marks=root)])
def test_create_that_meets_something(source, identity):
    """The kernel looks again at what it did not check, but open(2) says ESTALE the second time: not for a directory."""
    (source / "d").mkdir()
    os.mkfifo(source / "p")
    os.symlink("d", source / "l")
    create = struct.pack("=IIII", os.O_RDWR | os.O_CREAT, 0o644, 0, 0)
    with served(source, identity=identity) as m:
        for name, says in ((b"d\0", errno.EISDIR), (b"p\0", errno.ESTALE), (b"l\0", errno.ESTALE)):
            assert m.first.ask("CREATE", 1, create, name)[0] == -says
        assert m.core.live == (1, 0)


@apart
def test_symlinks_are_told_and_not_followed(source):
    """Known or not, in a directory of which the names are known."""
    (source / "f").write_text("x")
    os.symlink("f", source / "l")
    with served(source) as m:
        m.first.lookup(b"f")
        for _ in range(3):
            node, reply = m.first.lookup(b"l")
            assert stat.S_ISLNK(entry(reply)["mode"]) and entry(reply)["size"] == 1
        assert m.first.ask("READLINK", node) == (1, b"f")


@apart
def test_want_of_fds_is_no_absence(source):
    """After most errors of a look-up the kernel takes the name for gone, and what is mounted on it away."""
    (source / "f").touch()
    with served(source) as m:
        taken = []
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        assert m.first.ask("LOOKUP", 1, payload=b"f\0")[0] == -errno.ENOMEM
        assert m.first.ask("LOOKUP", 1, payload=b"none\0")[0] == -errno.ENOMEM
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        m.first.lookup(b"f")


@apart
def test_attributes_are_the_sources(source):
    path = source / "f"
    path.write_bytes(b"x" * 5000)
    path.chmod(0o640)
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    if os.geteuid() == 0:
        os.chown(path, 1234, 1235)
    os.link(path, source / "other")
    st = path.stat()
    with served(source) as m:
        _, reply = m.first.lookup(b"f")
        a = entry(reply)
        assert (a["ino"], a["size"], a["blocks"], a["mode"], a["nlink"], a["uid"], a["gid"], a["blksize"]) == (
            st.st_ino, 5000, st.st_blocks, st.st_mode, 2, st.st_uid, st.st_gid, st.st_blksize)
        assert (a["atime"], a["atimensec"], a["mtime"], a["mtimensec"]) == (1, 1, 2, 2)
        assert a["ctime"] * 10**9 + a["ctimensec"] == st.st_ctime_ns
        assert a["flags"] == 0


@root
@apart
@pytest.mark.parametrize("major, minor", [(1, 3), (300, 70000), (4095, 255)])
def test_device_numbers(source, major, minor):
    """In the kernel's 32 bits, both ways."""
    with contextlib.suppress(OSError):
        os.mknod(source / "there", stat.S_IFCHR | 0o600, os.makedev(major, minor))
    number = (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
    with served(source) as m:
        result, reply = m.first.ask(
            "MKNOD", 1, struct.pack("=IIII", stat.S_IFCHR | 0o600, number, 0, 0), b"made\0")
        assert result == ENTRY
        assert os.stat(source / "made").st_rdev == os.makedev(major, minor)
        assert entry(reply)["rdev"] == number == entry(m.first.lookup(b"there")[1])["rdev"]


@apart
def test_values_of_attributes(source):
    """The size if no room is offered, ERANGE for too little; system.* but ACLs are refused, lists are cut to size."""
    (source / "f").touch()
    try:
        os.setxattr(source / "f", "user.name", b"value")
    except OSError:
        pytest.skip("no extended attributes here")
    with served(source) as m:
        q = m.first
        node, _ = q.lookup(b"f")

        def get(size: int, name: bytes = b"user.name\0") -> tuple[int, bytes]:
            return q.ask("GETXATTR", node, struct.pack("=II", size, 0), name)

        assert get(0) == (8, struct.pack("=II", 5, 0))
        assert get(100) == get(5) == (5, b"value")
        assert get(4)[0] == -errno.ERANGE
        assert get(100, b"user.none\0")[0] == -errno.ENODATA
        listed = struct.pack("=II", 0, 0)
        size = struct.unpack("=II", q.ask("LISTXATTR", node, listed)[1])[0]
        assert size >= 10
        assert q.ask("LISTXATTR", node, struct.pack("=II", size - 1, 0))[0] == -errno.ERANGE
        assert b"user.name\0" in q.ask("LISTXATTR", node, struct.pack("=II", size, 0))[1]

        def put(name: bytes, value: bytes, size: int | None = None) -> int:
            said = len(value) if size is None else size
            return q.ask("SETXATTR", node, struct.pack("=IIII", said, 0, 0, 0), name + b"\0" + value)[0]

        assert put(b"user.other", b"12") == 0
        assert put(b"user.other", b"12", 3) == -errno.EINVAL
        assert put(b"system.nfs4_acl", b"12") == -errno.EOPNOTSUPP
        assert q.ask("REMOVEXATTR", node, payload=b"system.nfs4_acl\0")[0] == -errno.EOPNOTSUPP
        assert os.getxattr(source / "f", "user.other") == b"12"


@apart
def test_ioctls_that_are_carried(source):
    """And no others: they would be done with the daemon's rights."""
    (source / "f").touch()
    with served(source) as m:
        q = m.first
        node, _ = q.lookup(b"f")
        handle, _ = q.open(node)

        def ioctl(cmd: int, in_size: int = 0, out_size: int = 0, data: bytes = b"") -> int:
            return q.ask("IOCTL", node, struct.pack("=QIIQII", handle, 0, cmd, 0, in_size, out_size), data)[0]

        for cmd in (0x401C5820 + 1, 0xC0045878, 0x5421, 0x40049409, 0x4020940D):  # FIFREEZE, FIONBIO, FICLONE and kin
            assert ioctl(cmd, 4, 4, bytes(64)) == -errno.ENOTTY
        assert ioctl(0x40086602, 8, 0, b"1234") == -errno.EINVAL, "it brings less than it says"
        assert ioctl(0x80086601, 0, 65) == -errno.EINVAL
