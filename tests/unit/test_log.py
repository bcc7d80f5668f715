"""Messages: form, levels, targets, and the way of those that come from serving threads."""
import os
import re
import socket
import subprocess
import sys

import pytest

from passthru import _log, log
from passthru.errors import PassthruError


@pytest.fixture(autouse=True)
def as_before():
    yield
    log.setup("stderr", "info", False, {})


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """A log daemon's socket, in place of the journal's and of syslog's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.settimeout(10)
        s.bind(str(tmp_path / "log"))
        monkeypatch.setattr(log, "JOURNAL", str(tmp_path / "log"))
        monkeypatch.setattr(log, "SYSLOG", str(tmp_path / "log"))
        yield s


def fields(record: bytes) -> dict[str, str]:
    """A record of the journal's native protocol."""
    found = {}
    while record:
        line, _, record = record.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(record[:8], "little")
            value, record = record[8:8 + size], record[9 + size:]
        found[name.decode()] = os.fsdecode(value)
    return found


def test_levels(capsys):
    for level, shown in (("error", 1), ("warning", 2), ("info", 3), ("debug", 4)):
        log.setup("stderr", level, False, {})
        for say in (log.error, log.warning, log.info, log.debug):
            say("text")
        assert capsys.readouterr().err == "passthru: text\n" * shown


def test_one_line_for_an_event(capsys):
    log.error("a\nb\tc\x7f")
    assert capsys.readouterr().err == "passthru: a\\x0ab\\x09c\\x7f\n"


def test_journal(daemon):
    log.setup("journal", "info", True, {"PASSTHRU_MOUNTPOINT": "/m\nn", "PASSTHRU_SOURCE": "/s"})
    log.warning("a \udcff message=1")
    got = fields(daemon.recv(65536))
    assert got == {
        "MESSAGE": "a \udcff message=1", "PRIORITY": "4", "SYSLOG_IDENTIFIER": "passthru", "SYSLOG_FACILITY": "3",
        "SYSLOG_PID": str(os.getpid()), "PASSTHRU_MOUNTPOINT": "/m\nn", "PASSTHRU_SOURCE": "/s"}


def test_syslog(daemon):
    log.setup("syslog", "info", True, {})
    log.error("a message")
    assert re.fullmatch(
        rf"<27>[A-Z][a-z]{{2}} [ 0-9]\d \d\d:\d\d:\d\d passthru\[{os.getpid()}\]: a message",
        daemon.recv(65536).decode())


def test_restarted_log_daemon(daemon, tmp_path):
    log.setup("syslog", "info", True, {})
    os.unlink(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as another:
        another.bind(str(tmp_path / "log"))
        another.settimeout(10)
        daemon.close()
        log.error("after")
        assert another.recv(65536).endswith(b": after")


@pytest.mark.parametrize("target", ["journal", "syslog"])
def test_no_log_daemon(monkeypatch, tmp_path, target):
    monkeypatch.setattr(log, target.upper(), str(tmp_path / "absent"))
    with pytest.raises(PassthruError, match=f"^--log {target}: {tmp_path}/absent: No such file or directory$"):
        log.setup(target, "info", True, {})


def test_what_auto_is(monkeypatch, tmp_path, daemon):
    assert log.choose("auto", True) == "journal"
    assert log.choose("auto", False) == "stderr"
    assert log.choose("syslog", False) == "syslog"
    monkeypatch.setattr(log, "JOURNAL", str(tmp_path / "absent"))
    assert log.choose("auto", True) == "syslog"
    monkeypatch.setattr(log, "SYSLOG", str(tmp_path))  # no socket
    assert log.choose("auto", True) == ""


def test_stderr_that_is_the_journal(monkeypatch, daemon):
    st = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{st.st_dev}:{st.st_ino}")
    assert log.choose("auto", False) == "journal"
    assert log.choose("stderr", False) == "stderr"


SERVING = """
import os, sys
from passthru import _log, log
log.setup("stderr", "warning", False, {{}})
_log.emit(3, b"before")
log.start()
{code}
log.stop()
_log.emit(4, b"after")
"""


def served(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SERVING.format(code=code)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_messages_of_serving_threads():
    lines = served("for n in range(1000): _log.emit(4, b'%d' % n)\n_log.emit(6, b'not wanted')")
    assert lines == ["passthru: before", *(f"passthru: {n}" for n in range(1000)), "passthru: after"]


def test_long_messages_are_cut():
    line = served("_log.emit(3, b'x' * 5000)")[1]
    assert line.startswith("passthru: xxx") and 400 < len(line) < 600


def test_nobody_waits_for_the_log():
    """Where the reader does not come, messages are lost and counted."""
    lines = served("""
log._lock.acquire()
for n in range(100000): _log.emit(4, b"x" * 100)
log._lock.release()
""")
    lost = [re.search(r"(\d+) messages lost: they came faster", line) for line in lines]
    lost = sum(int(m.group(1)) for m in lost if m)
    assert lost > 0 and lines.count("passthru: " + "x" * 100) + lost == 100000


def test_lost_is_taken_once():
    assert _log.take_lost() == 0
