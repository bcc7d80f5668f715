"""What is said in more than one place says the same: names and numbers of abi.h, of the tables, and of Python."""
import ast
import re
from pathlib import Path

import pytest

from passthru import (
    _confine,
    _dialect,
    _mounts,
    _ops,
    capabilities,
    init,
    mounting,
    options,
    seccomp,
    status_page,
)

PACKAGE = Path(__file__).resolve().parents[2] / "passthru"
ABI, CYTHON_ABI, LIBC = ((PACKAGE / name).read_text() for name in ("abi.h", "_abi.pxd", "_libc.pxd"))
KERNEL = Path("/usr/include/linux")
SOURCES = sorted([*PACKAGE.glob("*.pyx"), *PACKAGE.glob("*.pxd")])
# System calls of functions of the C library, where they are called otherwise; () has what it needs by itself.
CALLS_OF = {
    "open": ["openat"], "fstatvfs": ["fstatfs"], "pread": ["pread64"], "pwrite": ["pwrite64"],
    "eventfd": ["eventfd2"], "usleep": ["clock_nanosleep"], "sched_getcpu": ["getcpu"], "poll": ["poll", "ppoll"],
    "pthread_sigmask": ["rt_sigprocmask"], "sigaction": ["rt_sigaction"], "faccessat": ["faccessat", "faccessat2"],
    "fchmodat": ["fchmodat", "fchmodat2"]}
# abi.h's own system calls of the start, which end a confined daemon.
STARTING = set("io_uring_setup mount_setattr fsopen fsconfig fsmount move_mount".split())
# Opcodes whose requests the kernel sends by itself or by an open file: -o allow_root does not refuse them.
BY_OPEN_FILE = set(
    "FORGET BATCH_FORGET INTERRUPT DESTROY READ WRITE FLUSH FSYNC RELEASE READDIR READDIRPLUS FSYNCDIR RELEASEDIR LSEEK"
    " FALLOCATE COPY_FILE_RANGE COPY_FILE_RANGE_64 GETLK SETLK SETLKW SYNCFS".split())
GIVES = {
    "gives_entry": "LOOKUP SYMLINK MKNOD MKDIR LINK CREATE TMPFILE", "gives_file": "OPEN OPENDIR CREATE TMPFILE",
    "gives_list": "READDIRPLUS"}


def enumerators(name: str) -> dict[str, int]:
    """{enumerator: number} of an enum in abi.h whose numbers are written out."""
    body = re.search(rf"enum {name} {{(.*?)}};", ABI, re.DOTALL)
    assert body is not None
    return {n: int(v, 0) for n, v in re.findall(r"(\w+) = (\w+)", body[1])}


def test_every_opcode_has_a_row():
    numbers = {n.removeprefix("FUSE_"): v for n, v in enumerators("fuse_opcode").items() if n != "FUSE_OPCODES"}
    assert {name: row["opcode"] for name, row in _ops.operations().items()} == numbers
    assert {v: n for n, v in numbers.items()} == status_page.OPCODES
    assert max(numbers.values()) < enumerators("fuse_opcode")["FUSE_OPCODES"]


def test_the_server_of_tests():
    """It is a program of its own, which imports nothing of ours."""
    text = (PACKAGE.parent / "tests" / "kernel" / "_stalling.py").read_text()
    numbers = ast.literal_eval(re.search(r"^OPCODES = (\{.*?\})", text, re.DOTALL | re.MULTILINE)[1])
    assert numbers == {name: row["opcode"] for name, row in _ops.operations().items() if name in numbers}


def test_opcode_of_init():
    assert status_page.OPCODES[init.OP_INIT] == "INIT"


def test_who_is_not_refused():
    assert {name for name, row in _ops.operations().items() if row["by_open_file"]} == BY_OPEN_FILE


@pytest.mark.parametrize("flag", GIVES)
def test_what_replies_hand_out(flag):
    assert [name for name, row in _ops.operations().items() if row[flag]] == sorted(
        GIVES[flag].split(), key=lambda name: _ops.operations()[name]["opcode"])


def test_first_arguments():
    """They fit into a header slot; what is not served has none that anybody looks at."""
    rows = _ops.operations()
    assert not [name for name, row in rows.items() if row["op_in_size"] and not row["served"]]
    assert not [name for name, row in rows.items() if row["op_in_size"] % 8 or row["op_in_size"] > 128]


def test_capabilities_of_init():
    """Those that C code asks for have init.py's numbers."""
    found = {name: int(bit) for name, bit in re.findall(r"#define FUSE_(\w+) \(1ull << (\d+)\)", ABI)
             if name != "UNIQUE_RESEND"}
    assert found and found == {name: bit for bit, name, _, _ in init.CAPABILITIES if name in found}


def test_bits_are_asked_for_by_name():
    assert not [path.name for path in SOURCES if re.search(r"flags\w* >> \d+ & 1", path.read_text())]


CONSTANT = re.compile(
    r"(?:#define\s+|^\s+)(\w+)\s*=?\s*\(?(\d+|0x[0-9a-fA-F]+)[uUlL]*(?:\s*<<\s*(\d+))?\)?[,\s](?!\s*<<)", re.MULTILINE)


def constants(text: str) -> dict[str, int]:
    """{name: number} of what is defined, or enumerated, as N or N << M."""
    return {name: int(n, 0) << int(shift or 0) for name, n, shift in CONSTANT.findall(text)}


@pytest.mark.parametrize("header", ["fuse.h", "io_uring.h"])
def test_as_in_the_kernels_headers(header):
    """What this machine's headers know as well has the same number there, and INIT's capabilities the same bits."""
    if not (KERNEL / header).exists():
        pytest.skip("no kernel headers")
    theirs, ours = constants((KERNEL / header).read_text()), constants(ABI)
    ours.update({f"FUSE_{name}": 1 << bit for bit, name, _, _ in init.CAPABILITIES})
    common = theirs.keys() & ours.keys()
    assert len(common) > 20
    assert not {name: (ours[name], theirs[name]) for name in common if ours[name] != theirs[name]}


def test_names_are_declared_once():
    """Cython's view of abi.h names nothing that is not there."""
    words = set(re.findall(r"\w+", ABI))
    named = set(re.findall(r"\b(?:FUSE|FATTR|FOPEN|IORING|IOSQE)_\w+", CYTHON_ABI))
    assert named and not named - words


def test_c_is_declared_in_two_places():
    """The C library in _libc.pxd, the kernel in _abi.pxd; _confine, _spawn have C, _request names others' structs."""
    found = {path.name for path in SOURCES if re.search(r"^cdef extern from", path.read_text(), re.MULTILINE)}
    assert found == {"_abi.pxd", "_libc.pxd", "_confine.pyx", "_spawn.pyx", "_request.pxd"}


def library(part: str) -> set[str]:
    """The C names of the functions in a part of _libc.pxd."""
    text = re.split(r"^    # ---- ", LIBC, flags=re.MULTILINE)
    body = next(p for p in text if p.startswith(part))
    return {c or name for name, c in re.findall(r"^    [\w *]*?(\w+)(?: \"(\w+)\")?\(", body, re.MULTILINE)}


def test_what_the_daemon_calls_is_allowed():
    """Each function of the C library that serving threads may call, and each system call of abi.h."""
    allowed, functions = seccomp.rules(1).keys(), library("System calls of the daemon at work")
    assert {"open", "statx", "sigaction", "madvise"} <= functions
    missing = {f: call for f in functions for call in CALLS_OF.get(f, [f]) if call not in allowed}
    assert not missing, "allow it in seccomp.py, or declare it among those of the start"
    own = set(re.findall(r"syscall\(CALL_(\w+)", ABI))
    assert own - STARTING <= allowed and not own & STARTING & allowed


def test_what_only_the_start_calls_is_not_allowed():
    assert {"mount", "umount2", "setns"} <= library("Those of the start")
    assert not library("Those of the start") & seccomp.rules(1).keys()


def test_system_calls_have_names():
    """A number stands in syscalls.h only."""
    assert not re.findall(r"syscall\((?!CALL_)\w+", ABI + (PACKAGE / "_confine.pyx").read_text())
    assert {"read", "openat2", "io_uring_enter"} <= _confine.CALLS.keys()


def test_dialects():
    assert status_page.DIALECTS == {0: "", **_dialect.DIALECTS}
    assert ("auto", *_dialect.DIALECTS.values()) == options.DIALECTS
    offers = [init.Init(0, 7, minor, 0, flags).dialects for minor, flags in (
        (45, 0), (46, 0), (46, init.flag("HAS_IO_URING_BUFPOOL")))]
    assert [o[-1] for o in offers] == list(_dialect.DIALECTS.values())


def test_filesystems():
    """What a check says of a filesystem is what the daemon goes by."""
    assert {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "fuse", "lustre"} <= _mounts.REMOTE
    assert {"overlay", "ecryptfs"} == _mounts.STACKED
    assert not _mounts.REMOTE & _mounts.STACKED


@pytest.mark.parametrize(("header", "module", "prefix"), [
    ("capability.h", capabilities, "CAP_"), ("mount.h", mounting, "MOUNT_ATTR_"),
    ("prctl.h", seccomp, "PR_"), ("sched.h", seccomp, "CLONE_FS")])
def test_python_has_the_kernels_numbers(header, module, prefix):
    if not (KERNEL / header).exists():
        pytest.skip("no kernel headers")
    theirs = constants((KERNEL / header).read_text())
    ours = {name: n for name, n in vars(module).items() if name.startswith(prefix) and name in theirs}
    assert ours
    assert ours == {name: theirs[name] for name in ours}


def members(struct: str) -> list[str]:
    """The names of a struct's members in _stats.pxd."""
    body = (PACKAGE / "_stats.pxd").read_text().partition(f"cdef struct {struct}:")[2].partition("\n\n")[0]
    return re.findall(r"^    \w+ (\w+)", body, re.MULTILINE)


def test_layout_of_the_status_page():
    """Names, in their order; that sizes are the same is seen when a page is read (test_stats.py)."""
    text = (PACKAGE / "_stats.pxd").read_text()
    assert [name for name, _ in status_page.HEADER_FIELDS] == members("StatsHeader")
    assert [field[0] for field in status_page.BLOCK_FIELDS] == members("ThreadStats")
    for name in ("MAGIC", "VERSION", "HEADER"):
        assert int(re.search(rf"STATS_{name} = (\w+)", text)[1], 0) == getattr(status_page, name)
    kinds = {int(n): name.lower() for name, n in re.findall(r"T_(\w+) = (\d)", text)}
    assert {0: "", **kinds} == status_page.KINDS
    assert len(status_page.COUNTERS) + int(re.search(r"spare\[(\d+)\]", text)[1]) == 38
