"""What the status page says of a live mount: latencies, errors, what is in use."""
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _daemon import Daemon, forget_pages, mounted, run, until
from _users import NOBODY, as_user

from passthru import _sys, control, monitor, status_page
from passthru.errors import MountpointError

pytestmark = pytest.mark.release_only("the Python around the compiled modules")


def test_latencies(fs: Daemon):
    """Every request that was answered is in the histogram of its opcode, and takes no longer than the test."""
    before = time.monotonic()
    (fs.mnt / "file").write_bytes(b"x" * 100)
    for _ in range(20):
        assert (fs.mnt / "file").read_bytes() == b"x" * 100
        os.utime(fs.mnt / "file")
        with pytest.raises(OSError):
            os.getxattr(fs.mnt / "file", "user.none")
    s = fs.stats()
    spent = time.monotonic() - before
    ops, latencies = s.ops(), s.latencies()
    for name in ("LOOKUP", "OPEN", "SETATTR", "CREATE", "WRITE"):
        assert latencies[name].count == ops[name] > 0
        assert 0 < latencies[name].quantile(0.5) <= latencies[name].quantile(0.999) < spent
        assert latencies[name].ns < spent * 1e9
    assert latencies["SETATTR"].count == 20
    assert sum(s.op_errors().values()) == s.total("errors") and s.op_errors()["GETXATTR"] >= 20
    assert s.in_flight == 0


def test_slow_requests_are_seen(fs: Daemon):
    """A lock that is waited for half a second: in flight meanwhile, and half a second in the histogram after."""
    with open(fs.mnt / "file", "w") as one:
        fcntl.flock(one, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            [sys.executable, "-c", "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)", fs.mnt / "file"])
        try:
            until(lambda: fs.stats().in_flight == 1 and fs.stats().ops()["SETLKW"] == 2, "waiting for the lock")
            time.sleep(0.5)
            assert fs.stats().latencies()["SETLKW"].count == 1
            fcntl.flock(one, fcntl.LOCK_UN)
            assert waiting.wait(10) == 0
        finally:
            waiting.kill()
            waiting.wait()
    latency = fs.stats().latencies()["SETLKW"]
    assert latency.count == fs.stats().ops()["SETLKW"] >= 2  # one more gives up the lock, on some kernels
    assert latency.ns * 1e-9 >= 0.5 and latency.quantile(0.999) >= 0.47


def test_what_is_in_use(fs: Daemon):
    """Handles, inodes, buffers, settings."""
    first = fs.stats()
    files = [open(fs.mnt / f"f{n}", "w") for n in range(10)]
    s = fs.stats()
    assert s.header["handles"] - first.header["handles"] == 10 == s.total("opens") - s.total("releases")
    assert s.header["inodes"] >= 11
    assert s.total("buffers_taken") == s.total("buffers_given")
    for f in files:
        f.close()
    assert s.settings["spin_us"] == 50 and s.settings["transport"] == fs.transport
    assert s.alive() and s.pid == fs.pid and s.source == str(fs.src) and s.mountpoint == str(fs.mnt)
    queues = s.threads[s.threads["kind"] == next(n for n, name in status_page.KINDS.items() if name == "queue")]
    if fs.transport == "ring":
        assert sorted(bytes(q).decode() for q in queues["queues"])[0].startswith("0")
    else:
        assert len(queues) == 0 and s.header["readers"] >= 4


def test_counters_are_what_they_say(mount):
    fs = mount("--attr-timeout=100", "--entry-timeout=100", "--direct-io")
    names = "lookups forgets opens releases read_bytes write_bytes errors".split()
    for n in range(5):
        (fs.src / f"f{n}").write_bytes(b"x" * 100)
    os.stat(fs.mnt)

    def counted(act) -> dict[str, int]:
        first = fs.stats()
        act()
        s = fs.stats()
        return {n: s.total(n) - first.total(n) for n in names if s.total(n) != first.total(n)}

    assert counted(lambda: [os.stat(fs.mnt / f"f{n}") for n in range(5)]) == {"lookups": 5}
    assert counted(lambda: os.path.exists(fs.mnt / "none")) in ({}, {"errors": 1})
    fds: list[int] = []
    for _ in range(2):
        assert counted(lambda: fds.append(os.open(fs.mnt / "f0", os.O_RDWR))) == {"opens": 1}
    fd = fds[0]
    assert counted(lambda: os.pread(fd, 60, 0)) == {"read_bytes": 60}
    assert counted(lambda: os.pwrite(fd, b"x" * 70, 0)) == {"write_bytes": 70}
    before = fs.stats()
    for fd in fds:
        os.close(fd)
    until(lambda: fs.stats().total("releases") - before.total("releases") == 2, "released")
    os.unlink(fs.mnt / "f1")
    until(lambda: fs.stats().total("forgets") - before.total("forgets") == 1, "forgotten")


def shown(*command: str | Path) -> dict:
    """What a subcommand says as JSON."""
    done = run(*command, "--json")
    assert done.returncode == 0 and not done.stderr, done.stderr
    return json.loads(done.stdout)


def test_commands(fs: Daemon):
    """list, status and stats of a live mount say what the daemon's own page says."""
    (fs.mnt / "file").write_bytes(b"x" * 5000)
    mine = next(m for m in shown("list") if m["pid"] == fs.pid)
    assert (mine["source"], mine["mountpoint"], mine["state"]) == (str(fs.src), str(fs.mnt), "mounted")
    assert mine["transport"] == fs.transport and mine["user"] == "root" and not mine["passthrough"]
    s = shown("status", fs.mnt)
    assert s["totals"]["write_bytes"] == 5000 == fs.stats().total("write_bytes")
    assert s["operations"]["CREATE"]["count"] == 1 and 0 < s["operations"]["CREATE"]["p50"] < 10
    assert s["options"]["attr_timeout"] == 1 and s["process"]["rss"] > 1 << 20
    assert sum(t["ring_requests"] + t["dev_requests"] for t in s["threads"]) > 0
    line = run("status", fs.mnt).stdout
    assert ("ring, " if fs.transport == "ring" else "/dev/fuse, ") in line and str(fs.src) in line
    assert f"CREATE.count {fs.stats().ops()['CREATE']}" in run("stats", fs.mnt).stdout.splitlines()
    text = run("stats", fs.mnt, "--prometheus").stdout
    assert f'passthru_requests_total{{mountpoint="{fs.mnt}",operation="CREATE"}} 1\n' in text


def test_by_link_and_bind(fs: Daemon, place: Path):
    """A mount is found by a symbolic link to it, from within, and where it is bound, and not by what is in it."""
    (place / "link").symlink_to(fs.mnt)
    assert shown("status", place / "link")["pid"] == fs.pid
    (fs.mnt / "inside").mkdir()
    done = run("status", fs.mnt / "inside")
    assert done.returncode == 4 and done.stderr == f"passthru: {fs.mnt}/inside: no passthru mount\n"
    (place / "bound").mkdir()
    subprocess.run(["mount", "--bind", fs.mnt, place / "bound"], check=True)
    try:
        assert shown("status", place / "bound")["pid"] == fs.pid
    finally:
        subprocess.run(["umount", place / "bound"], check=True)


def test_daemon_that_was_killed(mount, place: Path):
    """Its mount is shown as dead as long as it is there; a new daemon's start does not make it forgotten."""
    dead = mount(started=False)
    dead.launch()
    until(lambda: mounted(dead.mnt) and run("status", dead.mnt).returncode == 0, "mounted")
    dead.process.kill()
    dead.process.wait()
    live = mount()
    for _ in range(2):
        states = {m["mountpoint"]: m["state"] for m in shown("list")}
        assert states[str(dead.mnt)] == "dead" and states[str(live.mnt)] == "mounted"
    done = run("status", dead.mnt)
    assert done.returncode == 1 and "ended without unmounting" in done.stderr and done.stderr.count("\n") == 1
    subprocess.run(["umount", "-l", dead.mnt], check=True)
    assert str(dead.mnt) not in {m["mountpoint"] for m in shown("list")}
    forget_pages(dead.pid)


def test_detached(fs: Daemon):
    """Unmounted lazily while a file is open: it lives, and is listed until the file is closed."""
    with open(fs.mnt / "file", "w"):
        subprocess.run(["umount", "-l", fs.mnt], check=True)
        assert next(m["state"] for m in shown("list") if m["pid"] == fs.pid) == "detached"
        assert shown("status", fs.mnt)["handles"] == 1
    fs.wait()
    assert fs.pid not in {m.get("pid") for m in shown("list")}


def test_a_daemon_that_hangs_can_be_looked_at(fs: Daemon):
    """No subcommand asks the mount."""
    fs.signal(signal.SIGSTOP)
    try:
        assert fs.pid in {m.get("pid") for m in shown("list")}
        assert shown("status", fs.mnt)["pid"] == fs.pid
        assert run("stats", fs.mnt).returncode == 0
    finally:
        fs.signal(signal.SIGCONT)


def test_others_cannot_look(fs: Daemon):
    """Only the owner and root read a page, whatever its path."""
    path = fs.stats().path
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(PermissionError):
        as_user(NOBODY, NOBODY, [], path.read_bytes)
    assert as_user(NOBODY, NOBODY, [], lambda: [m for m in monitor.find_all() if m.source == str(fs.src)]) == []
    assert "mounted by root, and only they and root" in as_user(NOBODY, NOBODY, [], lambda: problem(fs.mnt))


def problem(mnt: Path) -> str:
    try:
        monitor.find(str(mnt))
    except MountpointError as e:
        return str(e)
    return ""


@pytest.mark.parametrize("command, code, text", [
    (["status"], 2, "the following arguments are required: MOUNTPOINT"),
    (["status", "/proc"], 4, "/proc: no passthru mount"),
    (["status", "/nonexistent/x"], 4, "/nonexistent/x: no passthru mount"),
    (["status", ""], 4, "no passthru mount"),
    (["list", "x"], 2, "unrecognized arguments: x"),
    (["stats"], 2, "which MOUNTPOINT?"),
    (["stats", "/proc", "--json", "--prometheus"], 2, "not allowed with argument"),
])
def test_bad_input(command, code, text):
    done = run(*command)
    assert (done.returncode, done.stdout) == (code, "") and text in done.stderr and done.stderr.count("\n") == 1


def free_number(dev: int) -> list[int]:
    """Make it the one that the kernel gives next: fds of filesystems that have all lower ones."""
    held = []
    for _ in range(1000):
        context = _sys.fsopen(b"tmpfs")
        _sys.fsconfig_create(context)
        fd = _sys.fsmount(context, 0)
        os.close(context)
        if _sys.mount_identity(fd)[0] == dev:
            os.close(fd)
            break
        held.append(fd)
    return held


@pytest.mark.parametrize("sandbox", ["none", "auto"])
def test_page_of_another_mount_with_the_same_number(mount, sandbox):
    """A number is free when its mount has gone; the daemon of the old mount takes its time to end."""
    old = mount("--sandbox", sandbox)
    page, dev = old.stats().path, os.stat(old.mnt).st_dev
    old.signal(signal.SIGSTOP)
    _sys.umount(os.fsencode(old.mnt), 0)  # umount(8) would ask it
    held = free_number(dev)
    new = mount("--sandbox", "none")  # which makes no other filesystem first
    for fd in held:
        os.close(fd)
    old.signal(signal.SIGCONT)
    assert old.wait() == 0
    if new.stats().path != page:
        pytest.skip("the number went to somebody else")
    assert control.ask_set(new.stats(), ["spin_us=3"])["spin_us"] == 3
    new.expected_lines.append("spin_us is 3 now")
