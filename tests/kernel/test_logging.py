"""Where messages of a daemon go, and --debug-fuse."""
import contextlib
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from _daemon import command, environment, is_keeper, run, until

# In a mount namespace of its own, with our sockets in place of the log daemons'.
JOURNAL = """
mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind "$LOGS" /run/systemd/journal && exec "$@"
"""
SYSLOG = """
mount -t tmpfs none /run && cp -a /dev/fuse /dev/null /dev/zero /dev/urandom "$LOGS" && mount --bind "$LOGS" /dev &&
ln -s "$LOGS/socket" /dev/log && exec "$@"
"""


@pytest.fixture
def logged(place, transport):
    """logged(setting, *options) runs the command in the background; (its process, the log daemon's socket)."""
    for name in ("src", "mnt", "logs"):
        (place / name).mkdir()
    pids = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(place / "logs" / "socket"))
        s.settimeout(20)

        def start(setting: str, *options: str) -> tuple[subprocess.CompletedProcess[str], socket.socket]:
            ran = subprocess.run(
                ["unshare", "-m", "--propagation", "private", "sh", "-c", setting, "sh",
                 *command("--transport", transport, *options, place / "src", place / "mnt")],
                env={**environment(), "LOGS": str(place / "logs")}, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, timeout=30, check=False)
            pids.extend(
                int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and os.fsencode(place / "mnt") in
                cmdline(p) and not is_keeper(int(p.name)))
            return ran, s

        start.pids = pids
        yield start
        for pid in pids:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGTERM)
                until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "end")


def cmdline(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def keeper_of(daemon: int) -> int:
    """The process that is where the mount is; the daemon itself sees its source only."""
    return int(Path(f"/proc/{daemon}/task/{daemon}/children").read_text())


def test_journal(logged, place):
    done, log = logged(JOURNAL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    record = log.recv(65536).decode()
    (pid,) = logged.pids
    assert f"\nSYSLOG_PID={pid}\n" in record and "\nPRIORITY=6\n" in record
    assert re.search(r"^MESSAGE=.* on .*/mnt: .* transport", record)
    assert f"\nPASSTHRU_MOUNTPOINT={place}/mnt\n" in record
    # An end that leaves something open is told there as well.
    fd = os.open(f"/proc/{keeper_of(pid)}/root{place}/mnt/f", os.O_CREAT | os.O_RDWR)
    os.kill(pid, signal.SIGTERM)
    record = log.recv(65536).decode()
    with contextlib.suppress(OSError):
        os.close(fd)
    assert "is busy: detached" in record and "\nPRIORITY=4\n" in record


def test_syslog(logged):
    done, log = logged(SYSLOG, "--log", "syslog")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert re.match(rb"<30>.* passthru\[\d+\]: .* transport", log.recv(65536))


def test_level_in_the_background(logged):
    done, log = logged(JOURNAL, "--log-level", "warning")
    assert done.returncode == 0
    log.settimeout(0.2)
    with pytest.raises(TimeoutError):
        log.recv(65536)


def test_requests_in_the_background(logged, transport):
    done, log = logged(JOURNAL, "--bg-debug-fuse", "--log-level", "error")
    assert done.returncode == 0
    os.stat(f"/proc/{keeper_of(logged.pids[0])}/root{os.path.dirname(log.getsockname())}/../mnt")
    said = [log.recv(65536).decode().partition("\n")[0] for _ in range(4)]
    assert said[0].startswith("MESSAGE=dev unique: ") and "opcode: INIT (26)" in said[0]
    by = "cqe" if transport == "ring" else "dev"
    assert any(line.startswith(f"MESSAGE={by} unique: ") for line in said[2:])


def test_log_daemon_that_is_not_there(place, transport):
    (place / "src").mkdir()
    (place / "mnt").mkdir()
    for target, path in (("journal", "/run/systemd/journal/socket"), ("syslog", "/dev/log")):
        if os.path.exists(path):
            continue
        done = subprocess.run(
            command("--log", target, place / "src", place / "mnt"), env=environment(), capture_output=True, text=True,
            timeout=30, check=False)
        assert (done.returncode, done.stderr) == (1, f"passthru: --log {target}: {path}: No such file or directory\n")


def test_stderr_in_the_background(place, transport):
    """A file that is given as standard error stays it."""
    (place / "src").mkdir()
    (place / "mnt").mkdir()
    with open(place / "said", "w") as said:
        subprocess.run(
            command("--log", "stderr", "--transport", transport, "--bg-debug-fuse", place / "src", place / "mnt"),
            env=environment(), stdin=subprocess.DEVNULL, stderr=said, timeout=30, check=True)
    os.stat(place / "mnt")
    until(lambda: "GETATTR (3)" in (place / "said").read_text(), "the request in the log")
    subprocess.run(["umount", place / "mnt"], check=True)


def request_lines(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """({unique: opcode} of requests, {unique: reply})."""
    asked = dict(re.findall(
        r"^(?:cqe|dev) unique: (\d+), opcode: (\w+) \(\d+\), nodeid: \d+, insize: \d+, pid: \d+$", text, re.M))
    answered = dict(re.findall(r"^   unique: (\d+), (success|error: .*), outsize: \d+$", text, re.M))
    return asked, answered


def test_debug_fuse(mount, transport):
    """Each request has its line, and each reply, also of what waits."""
    fs = mount("--debug-fuse", "--no-passthrough")
    fs.strange_lines = list
    data = os.urandom(3 << 20)
    (fs.mnt / "f").write_bytes(data)
    fd = os.open(fs.mnt / "f", os.O_RDWR)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    subprocess.run(["sh", "-c", f"echo 3 >/proc/sys/vm/drop_caches; cat {fs.mnt}/f >/dev/null"], check=True)
    os.fsync(fd)
    os.close(fd)
    assert not (fs.mnt / "absent").exists()
    with pytest.raises(FileNotFoundError):
        os.rmdir(fs.mnt / "absent")
    fs.umount_when_idle()
    assert fs.wait() == 0
    asked, answered = request_lines(fs.stderr())
    assert {"LOOKUP", "CREATE", "WRITE", "READ", "FSYNC", "RELEASE", "GETATTR"} <= set(asked.values())
    silent = {"FORGET", "BATCH_FORGET", "INTERRUPT"}
    unanswered = {u: name for u, name in asked.items() if u not in answered and name not in silent}
    assert not unanswered
    assert set(answered) <= set(asked)
    by = "cqe" if transport == "ring" else "dev"
    assert re.search(rf"^{by} unique: \d+, opcode: WRITE \(16\)", fs.stderr(), re.M)


def test_debug_says_what_is_negotiated(mount):
    fs = mount("-d")
    fs.strange_lines = list
    fs.umount_when_idle()
    assert fs.wait() == 0
    said = fs.stderr()
    assert re.search("^passthru: INIT 7.*: offered ", said, re.M) and re.search("^passthru: INIT: taken ", said, re.M)
    assert ("queue-" in said) == (fs.transport == "ring")


def test_set_while_it_serves(mount):
    """debug_fuse and log_level of a live mount."""
    fs = mount()
    fs.strange_lines = list
    os.stat(fs.mnt)
    assert "unique" not in fs.stderr()

    def change(word: str) -> None:
        done = run("set", fs.mnt, word)
        assert done.returncode == 0, done.stderr

    change("debug_fuse=yes")
    assert not (fs.mnt / "absent").exists()
    until(lambda: "LOOKUP" in fs.stderr(), "the request in the log")
    change("debug_fuse=no")
    change("log_level=error")
    before = len(fs.stderr())
    assert not (fs.mnt / "another").exists()
    change("attr_timeout=2")
    assert len(fs.stderr()) == before
