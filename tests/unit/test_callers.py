"""Who may ask, and as whom: requests served without a kernel, each in a process of its own."""
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import passthru

ENV = {**os.environ, "PYTHONPATH": str(Path(passthru.__file__).parent.parent)}
SERVE = """
import os, tempfile
from passthru import _server, _testing, sandbox, serving
from passthru.options import Options
with tempfile.TemporaryDirectory() as source:
    os.chmod(source, 0o777)
    open(source + "/f", "w").close()
    fd = os.open(source, os.O_RDONLY)
    sandbox.fd_directory()
    core = _server.ServerCore(fd, bytearray(_server.stats_size(8)), 8, 1, 16, payload_size=8192, max_write=8192,
        fixed_budget=0, identity={identity}, locks=True, xattr=True,
        writeback=False, **{options!r})
    serving.configure(core, Options(spin_us=0), passthrough=False)
    if {maps!r}:
        core.map_ids(*{maps!r})
    core.negotiated({flags}, 46, -1, False)
    q = _testing.Requests(core, 8192)
    for slot, payload in {requests!r}:
        refused = q.parse(slot, payload)[0]
        result, reply = (refused, b"") if refused else q.serve()
        print([result, sorted(os.listdir(source)), *([reply] if {reply} else []),
               *([os.stat(source).st_uid] if {owner} else [])])
    q.close()
    core.close()
"""
GETATTR, MKDIR, READ = 3, 9, 15
SECURITY_CTX = 1 << 32
EACCES, EINVAL = -13, -22


def request(opcode: int, first: bytes, payload: bytes = b"", uid: int = 0, ext: bytes = b"") -> tuple[bytes, bytes]:
    """(header slot, payload) of a request on the root directory."""
    assert len(ext) % 8 == 0
    payload += ext
    header = struct.pack(
        "=IIQQIIIHH", 40 + len(first) + len(payload), opcode, 9, 1, uid, uid, 1, len(ext) // 8, 0)
    slot = header.ljust(128, b"\0") + first.ljust(128, b"\0")
    return slot + struct.pack("=QQIIQ", 0, 9, len(payload), 0, 0), payload


def serve(
    *requests: tuple[bytes, bytes], identity: bool = False, flags: int = 0, maps: object = None, reply: bool = False,
    owner: bool = False, **options: object
) -> list:
    """What is answered to each: result, names then there, and if asked for the reply and the directory's owner."""
    code = SERVE.format(
        requests=requests, identity=identity, flags=flags, options=options, maps=maps, reply=reply, owner=owner)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=ENV)
    assert done.returncode == 0, done.stderr
    return [eval(line) for line in done.stdout.splitlines()]  # of our own making


def getattr_of(uid: int) -> tuple[bytes, bytes]:
    return request(GETATTR, bytes(16), uid=uid)


def test_only_owner_and_root_are_let_in():
    me, stranger = os.geteuid(), 54321
    results = serve(
        getattr_of(me), getattr_of(0), getattr_of(stranger), request(READ, bytes(40), uid=stranger),
        own_and_root=True)
    assert [n for n, _ in results] == [104, 104, EACCES, -9]  # READ: no such handle, but not refused


def test_everybody_is_let_in():
    assert [n for n, _ in serve(getattr_of(54321))] == [104]


def context(name: bytes, label: bytes, size: int | None = None) -> bytes:
    return struct.pack("=II", len(label) if size is None else size, 0) + name + b"\0" + label


def contexts(*each: bytes, number: int | None = None) -> bytes:
    """A request extension with security contexts."""
    body = b"".join(each)
    body += bytes(-len(body) % 8)
    return struct.pack("=II", 8 + len(body), len(each) if number is None else number) + body


def mkdir(ext: bytes) -> tuple[bytes, bytes]:
    return request(MKDIR, struct.pack("=II", 0o755, 0), b"new\0", ext=ext)


root = pytest.mark.skipif(os.geteuid() != 0, reason="only root acts as its callers")


@root
@pytest.mark.parametrize("ext", [contexts(), contexts(context(b"security.other", b"l")), b""])
def test_nothing_to_label(ext):
    (result, names), = serve(mkdir(ext), identity=True, flags=SECURITY_CTX)
    assert result > 0 and names == ["f", "new"]


@root
@pytest.mark.parametrize("ext", [
    contexts(number=1), contexts(context(b"security.selinux", b"label", 99)), contexts(b"\1\0\0\0\0\0\0\0" + b"x" * 8),
    contexts(context(b"security.other", b"label", 99)),
], ids=["none there", "too long", "no end of name", "another too long"])
def test_malformed_contexts(ext):
    (result, names), = serve(mkdir(ext), identity=True, flags=SECURITY_CTX)
    assert result == EINVAL and names == ["f"]


@root
def test_what_cannot_be_labelled_is_not_made():
    """No policy has this label, and without SELinux there is none at all."""
    ext = contexts(context(b"security.other", b"l"), context(b"security.selinux", b"no such label\0"))
    (result, names), = serve(mkdir(ext), identity=True, flags=SECURITY_CTX)
    assert result < 0 and names == ["f"]


@root
def test_labels_are_an_option():
    ext = contexts(context(b"security.selinux", b"no such label\0"))
    (result, names), = serve(mkdir(ext), identity=True)
    assert result > 0 and names == ["f", "new"]
