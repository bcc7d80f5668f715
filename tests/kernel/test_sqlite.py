"""SQLite in its journal modes, with concurrent writers."""
import contextlib
import os
import sqlite3
import subprocess
import sys
import time

import pytest
from _modes import DATA_TOO

pytestmark = DATA_TOO

WRITERS, ROUNDS = 3, 25
WRITER = """
import sqlite3, sys

path, who, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
db = sqlite3.connect(path, timeout=60, isolation_level=None)
for n in range(rounds):
    db.execute("begin immediate")
    db.executemany("insert into t values (?, ?, randomblob(300))", [(who, n * 20 + k) for k in range(20)])
    db.execute("update meta set n = n + 20")
    db.execute("commit")
"""


def made(path, mode: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
        db.executescript("""
            create table t(who, n, v blob, primary key (who, n)); create index v on t(v);
            create table meta(n); insert into meta values (0);""")


def values(path, *queries: str) -> list[object]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [db.execute(q).fetchone()[0] for q in queries]


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_concurrent_writers(fs, mode):
    path = fs.mnt / "db"
    made(path, mode)
    command = [sys.executable, "-c", WRITER, path]
    writers = [subprocess.Popen([*command, str(n), str(ROUNDS)]) for n in range(WRITERS)]
    assert [w.wait() for w in writers] == [0] * WRITERS
    total = WRITERS * ROUNDS * 20
    queries = ("select count(*) from t", "select n from meta", "pragma integrity_check")
    assert values(path, *queries) == [total, total, "ok"]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("delete from t where n % 3 = 0")
        db.execute("vacuum")
    assert values(path, "pragma integrity_check") == ["ok"]
    # no other than the mount's own users see its locks, so look from the source when all is done
    assert values(fs.src / "db", "pragma integrity_check") == ["ok"]


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_killed_writer(fs, mode):
    """A transaction that a killed writer left is rolled back whole."""
    path = fs.mnt / "db"
    made(path, mode)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path, "0", "100000"])
    end = time.monotonic() + 30
    while values(path, "select n from meta")[0] < 200:
        assert time.monotonic() < end and writer.poll() is None
    os.kill(writer.pid, 9)
    writer.wait()
    rows, counted, check = values(
        path, "select count(*) from t", "select n from meta", "pragma integrity_check")
    assert (rows, check) == (counted, "ok")
