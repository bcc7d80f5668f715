"""`passthru set`: options of a live mount, all or none, by whom it may."""
import os
import re
import signal
from pathlib import Path

import pytest
from _daemon import Daemon, run
from _users import NOBODY, as_user

from passthru import control


def values(mnt: Path) -> dict[str, str]:
    """What `set` shows without assignments."""
    done = run("set", mnt)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def set_(fs: Daemon, *words: str, **follow: str) -> None:
    """Set options and see that they, and those that follow, and no others are as they should be."""
    before = values(fs.mnt)
    done = run("set", fs.mnt, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wanted = dict(w.split("=") for w in words) | follow
    assert values(fs.mnt) == before | wanted
    said = run("status", fs.mnt).stdout.replace("\n", " ")
    assert all(re.search(rf"[ ]{w}\b", said) for w in words)
    fs.expected_lines += [f"{k} is {v} now, was {re.escape(before[k])} .set by uid 0." for k, v in wanted.items()
                          if before[k] != v]


def asked(fs: Daemon, name: str) -> int:
    return fs.stats().ops().get(name, 0)


def test_timeouts(fs: Daemon):
    """0: the kernel asks at each use; long: it does not ask."""
    (fs.mnt / "file").touch()
    set_(fs, "attr_timeout=0", "entry_timeout=0", negative_timeout="0")
    os.stat(fs.mnt / "file")  # brings the new timeouts
    before = asked(fs, "LOOKUP") + asked(fs, "GETATTR")
    for _ in range(10):
        os.stat(fs.mnt / "file")
    assert asked(fs, "LOOKUP") + asked(fs, "GETATTR") >= before + 10
    set_(fs, "attr_timeout=1000", "entry_timeout=1000", negative_timeout="1000")
    os.stat(fs.mnt / "file")
    before = asked(fs, "LOOKUP") + asked(fs, "GETATTR")
    for _ in range(10):
        os.stat(fs.mnt / "file")
    assert asked(fs, "LOOKUP") + asked(fs, "GETATTR") == before


def test_cache_policy(fs: Daemon):
    """never: each read comes to the daemon, also of what it has just read; auto: it does not."""
    (fs.mnt / "file").write_bytes(b"x" * 100)
    with open(fs.mnt / "file", "rb") as f:
        f.read()
    set_(fs, "cache=never", attr_timeout="0", entry_timeout="0", negative_timeout="0")
    before = asked(fs, "READ")
    with open(fs.mnt / "file", "rb", buffering=0) as f:
        for _ in range(5):
            assert os.pread(f.fileno(), 100, 0) == b"x" * 100
    assert asked(fs, "READ") == before + 5
    set_(fs, "cache=auto", attr_timeout="1", entry_timeout="1", negative_timeout="1")
    before = asked(fs, "READ")
    with open(fs.mnt / "file", "rb", buffering=0) as f:
        for _ in range(5):
            assert os.pread(f.fileno(), 100, 0) == b"x" * 100
    assert asked(fs, "READ") <= before + 2


def test_passthrough(mount, transport):
    """Switched off, data of files opened from then on comes through the daemon, and is counted."""
    fs = mount("--passthrough")
    if not fs.stats().header["passthrough"]:
        pytest.skip("no kernel passthrough here")
    (fs.src / "file").write_bytes(b"x" * 100)
    assert (fs.mnt / "file").read_bytes() == b"x" * 100
    assert asked(fs, "READ") == 0
    opened = fs.stats().total("opens_passthrough")
    assert opened == 1 and fs.stats().header["backings"] == 1
    set_(fs, "passthrough=no")
    assert not fs.stats().header["passthrough"]
    assert (fs.mnt / "file").read_bytes() == b"x" * 100
    assert asked(fs, "READ") >= 1 and fs.stats().total("opens_passthrough") == opened
    set_(fs, "passthrough=yes")
    (fs.mnt / "file").read_bytes()
    assert fs.stats().total("opens_passthrough") == opened + 1


def test_max_background(fs: Daemon):
    where = Path(f"/sys/fs/fuse/connections/{os.minor(int(fs.stats().header['fuse_dev']))}/max_background")
    if not where.exists():
        pytest.skip("no /sys/fs/fuse/connections here")
    set_(fs, "max_background=17", "spin_us=0")
    assert where.read_text().strip() == "17"


@pytest.mark.parametrize("word, text", [
    ("spin_us=x", "spin_us: 'x' is not a number"), ("queue_depth=3", "queue_depth cannot be changed"),
    ("foo=1", "no option 'foo'"), ("passthrough=yes", "passthrough: it was not agreed upon")])
def test_all_or_none(fs: Daemon, word: str, text: str):
    before = values(fs.mnt)
    done = run("set", fs.mnt, "attr_timeout=77", word, "entry_timeout=77")
    assert (done.returncode, done.stdout) == (2, "") and text in done.stderr and done.stderr.count("\n") == 1
    assert values(fs.mnt) == before


def test_others_may_not(fs: Daemon):
    """Nor connect, even if they could reach the socket."""
    page = fs.stats()
    with pytest.raises((OSError, RuntimeError)):
        as_user(NOBODY, NOBODY, [], lambda: control.ask_set(page, ["spin_us=1"]))
    where = control.socket_path(page.path)
    assert where.stat().st_mode & 0o777 == 0o600
    where.parent.chmod(0o711)
    where.chmod(0o666)
    try:
        with pytest.raises((OSError, RuntimeError)):
            as_user(NOBODY, NOBODY, [], lambda: _ask(where))
    finally:
        where.parent.chmod(0o700)
    assert values(fs.mnt)["spin_us"] == "50"


def _ask(where: Path) -> bytes:
    """Connect as control.ask_set() does, without its checks; what is answered."""
    import socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.settimeout(10)
        s.connect(str(where))
        s.send(b'{"set": ["spin_us=1"]}')
        answer = s.recv(1000)
    if not answer:
        raise PermissionError(13, "hung up")
    return answer


def test_a_daemon_that_hangs(fs: Daemon, monkeypatch):
    monkeypatch.setattr(control, "PATIENCE", 0.2)
    fs.signal(signal.SIGSTOP)
    try:
        with pytest.raises(Exception, match="does not answer"):
            control.ask_set(fs.stats(), ["spin_us=1"])
    finally:
        fs.signal(signal.SIGCONT)
    fs.expected_lines.append("spin_us is 1 now")  # it had been asked


def test_socket_goes_with_the_daemon(fs: Daemon):
    where = control.socket_path(fs.stats().path)
    assert where.is_socket()
    fs.umount()
    fs.wait()
    assert not where.exists()
    done = run("set", fs.mnt, "spin_us=1")
    assert done.returncode == 4 and "no passthru mount" in done.stderr
