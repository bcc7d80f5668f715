"""What the ring's parser refuses, and that no request reaches beyond its buffers. In a process of their own:
the one who serves requests gives up its signals, groups and umask."""
import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import passthru

TESTS = Path(__file__).parent.parent
ENV = {**os.environ, "PYTHONPATH": str(Path(passthru.__file__).parent.parent)}
PARSE = """
import os, tempfile
from passthru import _server, _testing, sandbox, serving
from passthru.options import Options
with tempfile.TemporaryDirectory() as source:
    if {file}:
        source += "/file"
        open(source, "w").close()
    fd = os.open(source, os.O_RDONLY)
    sandbox.fd_directory()
    core = _server.ServerCore(fd, bytearray(_server.stats_size(8)), 8, 1, 16, payload_size=8192, max_write=8192,
        fixed_budget=0, identity=False, locks=True, xattr=True, writeback=False)
    serving.configure(core, Options(spin_us=0), passthrough=False)
    q = _testing.Requests(core, 8192, {buffers}, {mask}, {scale}, {zero_copy})
    print((q.parse(bytes.fromhex({slot!r}), {payload!r}), q.serve()[0] if {serve} else None))
    q.close()
    core.close()
"""
EIO = -5
PER_ENTRY = {"buffers": 1, "mask": 0, "scale": 0}
BUFRING = {"buffers": 4, "mask": 0xFFFF, "scale": 8192}
BUFPOOL = {"buffers": 4, "mask": 0xFFFFFFFF, "scale": 1}


def slot(length=41, opcode=1, flags=0, commit_id=9, payload=1, location=0) -> str:
    header = struct.pack("=IIQQIIIHH", length, opcode, 9, 1, 0, 0, 1, 0, 0).ljust(256, b"\0")
    return (header + struct.pack("=QQIIQ", flags, commit_id, payload, location, 0)).hex()


def parse(dialect: dict, text: str, zero_copy: bool = False, payload: bytes = b"", file=False, serve=False):
    """((what the parser made of it, the handler's result), stderr)."""
    code = PARSE.format(slot=text, zero_copy=zero_copy, payload=payload, file=file, serve=serve, **dialect)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=ENV)
    assert done.returncode == 0, done.stderr
    return eval(done.stdout), done.stderr  # of our own making


@pytest.mark.parametrize("dialect,text,at", [
    (PER_ENTRY, slot(), 0),
    (PER_ENTRY, slot(location=77), 0),  # means nothing there
    (BUFRING, slot(location=3), 3 * 8192),
    (BUFRING, slot(location=3 | 0x50000), 3 * 8192),  # buf_id is 16 bits
    (BUFPOOL, slot(location=16384), 16384),
])
def test_taken(dialect, text, at):
    ((result, place, length, room, zero_copy), _), said = parse(dialect, text)
    assert (result, place, length, room, zero_copy) == (0, at, 1, 8192, False)
    assert not said


@pytest.mark.parametrize("dialect,text", [
    (PER_ENTRY, slot(flags=2)),
    (PER_ENTRY, slot(flags=1)),  # zero-copy that was not set up
    (PER_ENTRY, slot(payload=8193)),
    (PER_ENTRY, slot(payload=0xFFFFFFFF)),
    (PER_ENTRY, slot(length=39)),
    (PER_ENTRY, slot(commit_id=0)),
    (BUFPOOL, slot(flags=1 << 63)),
    (BUFRING, slot(flags=3)),
    (BUFRING, slot(location=4)),
    (BUFRING, slot(location=0xFFFF)),
    (BUFPOOL, slot(location=3 * 8192 + 1)),
    (BUFPOOL, slot(location=4)),
    (BUFPOOL, slot(location=4096)),  # between two buffers
    (BUFPOOL, slot(location=4 * 8192)),
    (BUFPOOL, slot(location=0xFFFFFFFF)),
])
def test_refused(dialect, text):
    ((result, *_), _), said = parse(dialect, text)
    assert result == EIO
    assert said.count("malformed request refused") == 1


LOOP = r"""
import os, struct, tempfile
from passthru import _server, _testing, sandbox, serving
from passthru.options import Options
with tempfile.TemporaryDirectory() as source:
    open(source + "/f", "wb").write(b"x" * 100)
    os.symlink("t" * 500, source + "/l")
    fd = os.open(source, os.O_RDONLY)
    sandbox.fd_directory()
    core = _server.ServerCore(fd, bytearray(_server.stats_size(8)), 8, 1, 16, payload_size=8192, max_write=8192,
        fixed_budget=0, identity=False, locks=True, xattr=True, writeback=False)
    serving.configure(core, Options(spin_us=0), passthrough=False)
    q = _testing.Loop(core, 8192, 4, 0xFFFF, 8192, True)
    def ask(opcode, node=1, argument=b"", payload=b"", pages=0, flags=0, commit=7, size=None, location=2):
        h = struct.pack("=IIQQIIIHH", 168 + len(payload), opcode, 99, node, 0, 0, 1, 0, 0).ljust(128, b"\0")
        io = struct.pack("=QQIIQ", flags | bool(pages), commit, len(payload) if size is None else size, location, 0)
        return q.request(h + argument.ljust(128, b"\0") + io, payload, 2 * 8192, pages)
    def node(name):
        error, out = ask(1, payload=name + b"\0")
        assert not error
        return struct.unpack_from("=Q", out)[0]
{body}
    print(q.counts)
    core.stop()
    q.close()
    core.close()
"""


def loop(body: str) -> tuple[tuple[int, int, int, int], str]:
    """Run it with ask(), node() and q, a queue whose kernel zero-copies. (its counts, stderr)"""
    code = LOOP.replace("{body}", "".join(f"    {line}\n" for line in body.splitlines()))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=ENV)
    if "Operation not permitted" in done.stderr or "Function not implemented" in done.stderr:
        pytest.skip("no io_uring here")
    assert done.returncode == 0, done.stderr
    return eval(done.stdout), done.stderr  # of our own making


def test_zero_copied_replies():
    """READLINK and READDIRPLUS into the kernel's pages, again and again from the same place; errors as they are."""
    counts, said = loop(r"""
l, f = node(b"l"), node(b"f")
for _ in range(20):
    assert ask(5, node=l, pages=4096) == (0, (b"t" * 500)[:160])
    error, out = ask(27)
    assert not error
    handle = out[:8]
    error, out = ask(44, argument=handle + struct.pack("=QI", 0, 4096), pages=4096)
    assert not error and b"t" not in out
    error, out = ask(28, argument=handle + struct.pack("=QI", 0, 4096), pages=4096)
    assert not error and b"t" not in out
    assert ask(29, argument=handle)[0] == 0
    assert ask(5, node=f, pages=4096)[0] < 0
    assert ask(28, argument=b"\xff" * 16 + struct.pack("=I", 4096), pages=4096)[0] == -9
""")
    assert counts == (0, 60, 60, 0)
    assert not said


def test_zero_copied_nonsense():
    """Requests that have no pages in any kernel, and pages that are fewer than the request says: an error each."""
    counts, said = loop(r"""
f = node(b"f")
assert ask(1, payload=b"f\0", pages=4096)[0] == -5
assert ask(3, pages=4096)[0] == -5
assert ask(63, pages=4096)[0] == -5
assert ask(4096, pages=4096)[0] == -5
assert ask(39, argument=struct.pack("=QIIQII", 1, 0, 1, 0, 8, 8), pages=4096)[0] == -25
error, out = ask(14, node=f, argument=struct.pack("=II", 2, 0))
assert not error
assert ask(15, node=f, argument=out[:8] + struct.pack("=QI", 0, 8192), pages=64)[0] == -14
assert ask(16, node=f, argument=out[:8] + struct.pack("=QI", 0, 0xffffffff), pages=64)[0] == -14
""")
    assert counts[0] == 0
    assert not said


PIPE = r"""
import fcntl, threading, time
f = node(b"f")
error, out = ask(14, node=f, argument=struct.pack("=II", os.O_RDWR, 0))
assert not error
def place(end):
    for n in os.listdir("/proc/self/fd"):
        try:
            path, how = os.readlink("/proc/self/fd/" + n), fcntl.fcntl(int(n), fcntl.F_GETFL)
            if path == source + "/f" and not how & os.O_PATH:
                return os.dup2(end, int(n))
        except OSError:
            continue
    raise AssertionError("no fd of the file")
a, b = os.pipe()
fcntl.fcntl(a, fcntl.F_SETPIPE_SZ, 4096)
"""


def test_short_reads_are_gone_on_with():
    """The ring gives less than was asked for: the rest is read. A pipe in the file's place gives what is there."""
    counts, said = loop(PIPE + r"""
place(a)
def feed():
    for _ in range(4):
        os.write(b, b"12345")
        time.sleep(0.1)
thread = threading.Thread(target=feed)
thread.start()
assert ask(15, node=f, argument=out[:8] + struct.pack("=QI", 0, 20), pages=4096) == (0, b"12345" * 4)
thread.join()
""")
    assert counts[2] > 1  # by the ring, more than once
    assert not said


def test_short_writes_are_gone_on_with():
    counts, said = loop(PIPE + r"""
place(b)
taken = []
def drain():
    while sum(taken) < 8192:
        time.sleep(0.1)
        taken.append(len(os.read(a, 4096)))
thread = threading.Thread(target=drain)
thread.start()
error, reply = ask(16, node=f, argument=out[:8] + struct.pack("=QI", 0, 8192), pages=8192)
assert (error, reply[:4]) == (0, struct.pack("=I", 8192)), (error, reply)
thread.join()
""")
    assert counts[2] > 1
    assert not said


def test_refused_and_gone_on():
    """Each of what is refused is counted, the first is said, and the queue goes on."""
    counts, said = loop(r"""
for _ in range(3):
    assert ask(1, payload=b"f\0", flags=2)[0] == -5
    assert ask(1, payload=b"f\0", commit=0)[0] == -5
    assert ask(1, payload=b"f\0", size=8193)[0] == -5
    assert ask(4711)[0] == -38
    node(b"f")
""")
    assert counts[0] == 9
    assert said.count("malformed request refused") == 1


def test_what_finds_no_room_is_taken_back():
    """A request without a payload that opens something: EIO, and no handle is left."""
    _, said = loop(r"""
f = node(b"f")
before = core.live
assert ask(14, node=f, argument=struct.pack("=II", 2, 0), location=0xffff)[0] == -5
assert ask(27, location=0xffff)[0] == -5
assert core.live == before
""")
    assert not said


def test_entries_lost():
    """Commands that fail for good: said once, and without entries the queue's thread ends with the error."""
    _, said = loop("node(b'f')\nassert q.lose(22) == (3, 22)")
    assert said.count("entry lost") == 1


def test_end_of_the_connection():
    """That is no loss."""
    _, said = loop("node(b'f')\nassert q.lose(107) == (0, 0)")
    assert not said


def test_without_payload_the_location_means_nothing():
    ((result, place, length, room, _), _), said = parse(BUFPOOL, slot(payload=0, location=0xFFFFFFFF))
    assert (result, place, length, room) == (0, None, 0, 0)
    assert not said


def test_zero_copied():
    assert parse(BUFPOOL, slot(flags=1, opcode=15, payload=4096, location=0xFFFFFFFF), True)[0][0][-1] is True


@pytest.mark.parametrize("opcode", [1, 6, 8, 9, 10, 11, 12, 13, 27, 28, 30, 35, 44, 45, 51])
def test_a_file_has_no_names(opcode):
    text = slot(length=140, opcode=opcode, payload=4)
    (_, result), _ = parse(PER_ENTRY, text, payload=b"a\0b\0", file=True, serve=True)
    assert result == -errno.ENOTDIR


@pytest.mark.parametrize("file,result", [(False, 128), (True, -errno.ENOTDIR)])
def test_lookup(file, result):
    """By the kind of root: in a directory a name that is not there is a negative entry."""
    assert parse(PER_ENTRY, slot(length=42, payload=2), payload=b"a\0", file=file, serve=True)[0][1] == result


@pytest.mark.parametrize("seed,root", [*enumerate(["directory"] * 4), (5, "file"), (6, "fixed")])
def test_fuzz(seed, root):
    done = subprocess.run([sys.executable, TESTS / "fuzz.py", "--seconds", "3", "--seed", str(seed), "--root", root],
                          capture_output=True, text=True, timeout=100, env=ENV)
    assert done.returncode == 0, done.stderr[-3000:]
