"""What the status page says of a live mount: latencies, errors, what is in use."""
import fcntl
import os
import subprocess
import sys
import time

import pytest
from _daemon import Daemon, until

from passthru import stats


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
    queues = s.threads[s.threads["kind"] == next(n for n, name in stats.KINDS.items() if name == "queue")]
    if fs.transport == "ring":
        assert sorted(bytes(q).decode() for q in queues["queues"])[0].startswith("0")
    else:
        assert len(queues) == 0 and s.header["readers"] >= 4
