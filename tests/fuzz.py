#!/usr/bin/env python3
"""Random and half-valid requests through the ring's parser, loop and handlers, without FUSE's kernel side.

    python tests/fuzz.py [--seconds N] [--seed N] [--root directory|file|fixed] [DIR]

Each dialect's set-up, with zero-copy and without, has a queue whose entries get requests as that dialect's kernel
would send them, and such as none would. A crash, a sanitizer's report, memory touched outside of the request's own
and a reply that breaks the protocol are faults; each error reply is right. The source is a new directory below
DIR, at best on a small filesystem: the requests really make, fill and remove files there. On tmpfs all data is
copied at once; on others reads and writes go by the queue's ring as well. By --root it is one file instead, which
is to keep its size if "fixed". DIR may also be a block device: then that is the source, and what it holds is lost.
"""
from __future__ import annotations

import argparse
import os
import random
import shutil
import stat
import struct
import tempfile
import time

from passthru import _ops, _server, _testing, sandbox, serving
from passthru.options import Options

OPERATIONS = _ops.operations()
NUMBERS = {name: row["opcode"] for name, row in OPERATIONS.items()}
SIZE, BUFFERS = 1 << 17, 4
ENTRY_SIZE = 128  # of struct fuse_entry_out


def opcodes(names: str) -> list[int]:
    return [NUMBERS[name] for name in names.split()]


def giving(flag: str) -> list[int]:
    """The opcodes whose replies hand something out."""
    return [row["opcode"] for row in OPERATIONS.values() if row[flag]]


# The sizes of first arguments, so that requests get beyond the length check.
OP_IN = {row["opcode"]: row["op_in_size"] for row in OPERATIONS.values()}
SERVED = [row["opcode"] for row in OPERATIONS.values() if row["served"]]
READ, WRITE, SETXATTR, BATCH_FORGET, IOCTL = opcodes("READ WRITE SETXATTR BATCH_FORGET IOCTL")
OPEN, SETATTR, SETLK, SETLKW = opcodes("OPEN SETATTR SETLK SETLKW")
# What the first argument begins with, or has next.
BY_FH = opcodes("READ WRITE RELEASE FSYNC FLUSH READDIR RELEASEDIR FSYNCDIR GETLK SETLK IOCTL FALLOCATE READDIRPLUS"
                " LSEEK COPY_FILE_RANGE COPY_FILE_RANGE_64")
NODEID = opcodes("RENAME LINK RENAME2")
MODE = opcodes("MKNOD MKDIR")
FLAGS_AND_MODE = opcodes("CREATE TMPFILE")
PLACE_AND_SIZE = opcodes("READ WRITE READDIR READDIRPLUS")
COPY = opcodes("COPY_FILE_RANGE COPY_FILE_RANGE_64")
PLACES = [*opcodes("FALLOCATE"), *COPY]
PAGES_TO_FILL = opcodes("READDIR READDIRPLUS READLINK IOCTL")
ENTRY, FILE = giving("gives_entry"), giving("gives_file")
NAMES = [b"a\0", b"b\0", b"c\0", b"d\0", b"..\0", b".\0", b"\0", b"a/b\0", b"x" * 255 + b"\0", b"y" * 300 + b"\0",
         b"no end", b"\xff\xfe\0", b"user.x\0", b"system.posix_acl_access\0", b"system.nfs4_acl\0"]
WORDS = [0, 1, 2, 3, 4, 5, 7, 8, 100, 4095, 4096, 65536, SIZE - 1, SIZE, SIZE + 1, 0x7FFFFFFF, 0x80000000,
         0xFFFFFFFF]
# What makes inodes and open files, and what uses them, comes more often than what takes them away.
OPCODES = [*SERVED, *5 * opcodes("CREATE OPEN"), *4 * opcodes("LOOKUP"), *3 * opcodes("OPENDIR"),
           *opcodes("LOOKUP READLINK SYMLINK UNLINK RMDIR STATFS REMOVEXATTR MKDIR LINK TMPFILE READ WRITE READDIR"
                    " READDIRPLUS")]
# Of each set-up: buffers, mask, scale (see _testing.Loop), zero-copy.
QUEUES = {
    "per-entry": (1, 0, 0, False),
    "bufring": (BUFFERS, 0xFFFF, SIZE, False),
    "bufring zero-copy": (BUFFERS, 0xFFFF, SIZE, True),
    "bufpool": (BUFFERS, 0xFFFFFFFF, 1, False),
    "bufpool zero-copy": (BUFFERS, 0xFFFFFFFF, 1, True),
}
MODES = [0o100644, 0o40755, 0o10644, 0o120777, 0o104755, 0o102644]


class Maker:
    """Requests that are right in most parts, for inodes and open files that are there in most cases."""

    def __init__(self, seed: int):
        self.r = random.Random(seed)
        self.nodes, self.fhs = [1], [1]

    def number(self, bits: int) -> int:
        r = self.r
        return (r.choice(WORDS) if r.random() < 0.7 else r.getrandbits(bits)) & ((1 << bits) - 1)

    def node(self) -> int:
        return self.r.choice(self.nodes[-40:]) if self.r.random() < 0.95 else self.number(64)

    def fh(self) -> int:
        return self.r.choice(self.fhs[-40:]) if self.r.random() < 0.95 else self.number(64)

    def argument(self, opcode: int) -> bytes:
        """op_in: 128 bytes, fields of 4 and 8 bytes at random, an fh or nodeid first where one belongs."""
        r = self.r
        words = b"".join(struct.pack("=I", self.number(32)) for _ in range(32))
        if opcode in BY_FH and r.random() < 0.95:
            words = struct.pack("=Q", self.fh()) + words[8:]
        if opcode in PLACE_AND_SIZE and r.random() < 0.9:
            words = words[:8] + struct.pack("=QI", r.choice([0, 1, 4096, 100000]), r.choice([0, 1, 100, 4096, SIZE])) \
                + words[20:]
        if opcode in NODEID and r.random() < 0.95:
            words = struct.pack("=Q", self.node()) + words[8:]
        if opcode in MODE + FLAGS_AND_MODE and r.random() < 0.9:
            mode = r.choice(MODES)
            flags = r.choice([0, 1, 2, 0o100, 0o300, 0o2000, 0o40000 | 2])
            words = (struct.pack("=II", flags, mode) if opcode in FLAGS_AND_MODE else
                     struct.pack("=I", mode) + words[4:8]) + words[8:]
        if opcode == OPEN and r.random() < 0.9:
            words = struct.pack("=II", r.choice([0, 1, 2, 0o1000, 0o2001, 0o40002]), r.choice([0, 1])) + words[8:]
        if opcode == SETATTR and r.random() < 0.9:
            size = r.choice([0, 1, 5000, 1 << 20])
            words = struct.pack("=IIQQ", r.getrandbits(12), 0, self.fh(), size) + words[24:]
        if opcode in PLACES:  # not to fill the disk
            places = [r.choice([0, 1, 4096, 1 << 18]) for _ in range(6)]
            words = words[:8] + struct.pack("=6Q", *places) + words[56:]
            if opcode in COPY:
                words = words[:24] + struct.pack("=Q", self.fh()) + words[32:]
        return words[:128]

    def request(self, queue: str) -> tuple[bytes, bytes, int, int, int]:
        """(header slot, payload, its place, bytes of zero-copied pages, opcode)"""
        r = self.r
        opcode = r.choice(OPCODES) if r.random() < 0.98 else self.number(32)
        if opcode == SETLKW:
            opcode = SETLK  # nobody would end the wait
        zero_copy = queue.endswith("zero-copy") and r.random() < 0.5
        if zero_copy and r.random() < 0.8:
            opcode = r.choice([READ, READ, WRITE, WRITE, *PAGES_TO_FILL])
        payload = b"".join(r.choice(NAMES) for _ in range(r.choice([0, 1, 1, 2, 3])))
        if opcode in (WRITE, SETXATTR, IOCTL, BATCH_FORGET) or r.random() < 0.1:
            payload += r.randbytes(r.choice([0, 8, 100, 5000]))
        argument = self.argument(opcode)
        pages = 0
        if zero_copy:
            asked = struct.unpack_from("=I", argument, 16)[0]
            pages = min(asked, SIZE) if r.random() < 0.9 else r.choice([0, 1, 4096, SIZE])
            if opcode in (WRITE, NUMBERS["READLINK"], IOCTL):
                pages = max(pages, 1)
            payload = b""
        size = len(payload) + (pages if zero_copy and opcode == WRITE else 0)
        if r.random() > 0.97:
            size = self.number(32)
        length = 40 + OP_IN.get(opcode, 0) + len(payload)
        if r.random() > 0.97:
            length = self.number(32)
        extensions = 0 if r.random() < 0.95 else self.number(16)
        uid, gid = (0, 0) if r.random() < 0.7 else (r.choice([1000, 65534, 0xFFFFFFFF]), r.choice([1000, 0xFFFFFFFF]))
        header = struct.pack(
            "=IIQQIIIHH", length, opcode, r.getrandbits(63), self.node(), uid, gid, 1, extensions, 0)
        flags = int(zero_copy)
        if r.random() < 0.01:
            flags = r.choice([1, 2, 3, 1 << 63, 1 << 16, self.number(64)])
        commit = r.getrandbits(63) | 1 if r.random() < 0.99 else 0
        location, at = self.location(queue)
        ring = struct.pack("=QQIIQ", flags, commit, size, location, 0)
        return header.ljust(128, b"\0") + argument + ring, payload, at, pages, opcode

    def location(self, queue: str) -> tuple[int, int]:
        """Where the kernel says that the payload is, and where it is."""
        r = self.r
        if QUEUES[queue][0] == 1:
            return self.number(32), 0
        n = r.randrange(BUFFERS)
        unit = 1 if queue.startswith("bufring") else SIZE
        if r.random() < 0.95:
            return n * unit, n * SIZE
        wrong = [BUFFERS * unit, (BUFFERS - 1) * unit + 1, BUFFERS * unit - 1, self.number(32)]
        if queue.startswith("bufring"):
            wrong += [n | r.getrandbits(16) << 16, self.number(16)]
        return r.choice(wrong), n * SIZE

    def learn(self, opcode: int, result: int, reply: bytes) -> None:
        """Take up what a reply gives out."""
        if result <= 0:
            return
        if opcode in ENTRY:
            self.nodes.append(struct.unpack_from("=Q", reply)[0])
        if opcode in FILE:
            self.fhs.append(struct.unpack_from("=Q", reply, ENTRY_SIZE if opcode in ENTRY else 0)[0])


def run(base: str, seconds: float, seed: int, root: str) -> dict[str, int]:
    """Fuzz for a time. {what: how often}. This process becomes a serving thread."""
    device = stat.S_ISBLK(os.stat(base).st_mode)
    top = tempfile.mkdtemp(prefix="passthru-fuzz-", dir=None if device else base)
    source = base if device else top if root == "directory" else os.path.join(top, "file")
    if not device and root != "directory":
        with open(source, "wb") as f:
            f.truncate(SIZE)
    fd = os.open(source, os.O_RDONLY)
    sandbox.fd_directory()
    core = _server.ServerCore(
        fd, bytearray(_server.stats_size(80)), 80, 8, 64, payload_size=SIZE, max_write=SIZE,
        fixed_budget=1 << 26, identity=os.geteuid() == 0, locks=True, xattr=True, writeback=False,
        fixed_size=root == "fixed")
    serving.configure(core, Options(spin_us=0), passthrough=False)
    queues = {name: _testing.Loop(core, SIZE, *q) for name, q in QUEUES.items()}
    maker = Maker(seed)
    counts = {"requests": 0, "replies": 0, "errors": 0}
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            name = maker.r.choice(list(queues))
            slot, payload, at, pages, opcode = maker.request(name)
            counts["requests"] += 1
            error, reply = queues[name].request(slot, payload, at, pages)
            counts["errors" if error else "replies"] += 1
            maker.learn(opcode, len(reply), reply)
        totals = zip(*(q.counts for q in queues.values()), strict=True)
        counts.update(zip(("refused", "zero_copied", "by_ring", "fixed"), map(sum, totals), strict=True))
    finally:
        core.stop()
        for q in queues.values():
            q.close()
        core.close()
        size = os.fstat(fd).st_size
        os.close(fd)
        shutil.rmtree(top, ignore_errors=True)
    if root == "fixed" and size != SIZE:
        raise AssertionError(f"a size that was to be kept changed: {size}")
    return counts


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--seed", type=int, default=int(time.time()))
    p.add_argument("--root", choices=("directory", "file", "fixed"), default="directory")
    p.add_argument("directory", nargs="?", default="/dev/shm")
    a = p.parse_args()
    print(f"seed {a.seed}", flush=True)
    print(run(a.directory, a.seconds, a.seed, a.root))


if __name__ == "__main__":
    main()
