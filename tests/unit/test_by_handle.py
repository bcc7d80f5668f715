"""The inode table asked by file handle. In a process of its own: who serves requests gives up its signals and umask."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

import passthru
from passthru import _sys

ENV = {**os.environ, "PYTHONPATH": str(Path(passthru.__file__).parent.parent)}
ASK = """
import os, struct, sys
from passthru import _server, _testing, sandbox, serving, status_page
from passthru.options import Options
NUMBERS = {name: n for n, name in status_page.OPCODES.items()}
source = os.open(sys.argv[1], os.O_RDONLY)
fds = {name: os.open(name, os.O_PATH, dir_fd=source) for name in sorted(os.listdir(source))}
sandbox.fd_directory()
core = _server.ServerCore(source, bytearray(_server.stats_size(8)), 8, 1, 16, payload_size=8192, max_write=8192,
    fixed_budget=0, identity=False, locks=True, xattr=True, writeback=False)
serving.configure(core, Options(spin_us=0), passthrough=False)
q = _testing.Requests(core, 8192)

def request(name, nodeid, argument=b"", payload=b""):
    header = struct.pack("=IIQQIIIHH", 40 + len(argument) + len(payload), NUMBERS[name], 9, nodeid, 0, 0, 1, 0, 0)
    ring = struct.pack("=QQIIQ", 0, 9, len(payload), 0, 0)
    q.parse(header.ljust(128, b"\\0") + argument.ljust(128, b"\\0") + ring, payload)
    return q.serve()

def lookup(name):
    return struct.unpack_from("=Q", request("LOOKUP", 1, payload=os.fsencode(name) + b"\\0")[1])[0]

assert _testing.inode_of(core, source) == 1
assert {_testing.inode_of(core, fd) for fd in fds.values()} == {0}  # none is known, and none is by being asked for
assert core.live == (1, 0)
nodes = {name: lookup(name) for name in fds}
assert len(set(nodes.values())) == len(fds) == 60  # more than the cache has fds
for _ in range(2):
    for name, node in nodes.items():
        assert _testing.inode_of(core, fds[name]) == node, name
        assert _testing.lookups(core, node) == 1
assert lookup("0") == nodes["0"] and _testing.lookups(core, nodes["0"]) == 2
os.rename("0", "another name", src_dir_fd=source, dst_dir_fd=source)
assert _testing.inode_of(core, fds["0"]) == nodes["0"]
for left in (1, None):
    request("FORGET", nodes["0"], struct.pack("=Q", 1))
    assert _testing.lookups(core, nodes["0"]) == left
    assert _testing.inode_of(core, fds["0"]) == (nodes["0"] if left else 0)
assert _testing.inode_of(core, fds["1"]) == nodes["1"]
with open("/proc/self/stat") as elsewhere:
    try:
        print("found", _testing.inode_of(core, elsewhere.fileno()))
    except OSError as e:
        print("refused")
q.close()
core.close()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="open_by_handle_at(2) needs CAP_DAC_READ_SEARCH")
def test_by_handle(tmp_path):
    for n in range(60):
        (tmp_path / str(n)).mkdir() if n % 7 == 0 else (tmp_path / str(n)).touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        _sys.try_file_handle(fd)
    except OSError as e:
        pytest.skip(f"no file handles here: {e.strerror}")
    finally:
        os.close(fd)
    done = subprocess.run([sys.executable, "-c", ASK, tmp_path], capture_output=True, text=True, timeout=60, env=ENV)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "refused\n"
