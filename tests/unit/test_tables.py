"""What is said in more than one place says the same: names and numbers of abi.h, of the tables, and of Python."""
import re
from pathlib import Path

import pytest

from passthru import _ops, init, status_page

PACKAGE = Path(__file__).resolve().parents[2] / "passthru"
ABI = (PACKAGE / "abi.h").read_text()
# Opcodes whose requests the kernel sends by itself or by an open file: -o allow_root does not refuse them.
BY_OPEN_FILE = set(
    "FORGET BATCH_FORGET INTERRUPT DESTROY READ WRITE FLUSH FSYNC RELEASE READDIR READDIRPLUS FSYNCDIR RELEASEDIR LSEEK"
    " FALLOCATE COPY_FILE_RANGE COPY_FILE_RANGE_64 GETLK SETLK SETLKW SYNCFS".split())
GIVES = {
    "gives_entry": "LOOKUP SYMLINK MKNOD MKDIR LINK CREATE TMPFILE", "gives_handle": "OPEN OPENDIR CREATE TMPFILE",
    "gives_list": "READDIRPLUS"}


def enumerators(name: str) -> dict[str, int]:
    """{enumerator: number} of an enum in abi.h whose numbers are written out."""
    body = re.search(rf"enum {name} {{(.*?)}};", ABI, re.DOTALL)
    assert body is not None
    return {n: int(v, 0) for n, v in re.findall(r"(\w+) = (\w+)", body[1])}


def test_every_opcode_has_a_row():
    numbers = {n.removeprefix("FUSE_"): v for n, v in enumerators("fuse_opcode").items() if n != "FUSE_OPCODES"}
    assert {name: row["opcode"] for name, row in _ops.operations().items()} == numbers
    assert status_page.OPCODES == {v: n for n, v in numbers.items()}
    assert max(numbers.values()) < enumerators("fuse_opcode")["FUSE_OPCODES"]


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
    assert not [name for name, row in rows.items() if row["op_in"] and not row["served"]]
    assert not [name for name, row in rows.items() if row["op_in"] % 8 or row["op_in"] > 128]
