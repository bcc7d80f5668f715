"""The status page's layout: numpy's must be that of the C structs."""
import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from passthru import _server, _testing, stats, status_page
from passthru.mounting import MountInfo


def make_page(path, **header):
    """A page as a daemon leaves it, with one thread."""
    data = bytearray(_server.stats_size(1))
    record = stats.np.zeros((), stats.HEADER_DTYPE)
    record["magic"], record["version"] = status_page.MAGIC, status_page.VERSION
    record["header_size"] = status_page.HEADER
    record["threads"] = record["used"] = 1
    record["block_size"] = stats.THREAD_DTYPE.itemsize
    record["pid"], record["start_ticks"] = os.getpid(), status_page.start_ticks(os.getpid())
    for name, value in header.items():
        record[name] = value
    data[:record.nbytes] = record.tobytes()
    path.write_bytes(data)
    return path


def test_size_of_a_threads_block():
    assert _server.stats_size(1) - _server.stats_size(0) == stats.THREAD_DTYPE.itemsize
    assert _server.stats_size(0) == status_page.HEADER
    assert stats.THREAD_DTYPE.itemsize % 64 == 0, "threads share cache lines"
    assert stats.HEADER_DTYPE.itemsize <= status_page.HEADER


def test_layout_without_numpy():
    """What a daemon writes by struct is read by numpy."""
    assert {name: at for name, (at, _) in status_page._PLACES.items()} == {
        name: field[1] for name, field in stats.HEADER_DTYPE.fields.items()}


@pytest.mark.parametrize("module", ["cli", "mount_helper", "child", "session"])
def test_mounting_needs_no_numpy(module):
    """Nor psutil: a third of a daemon's memory and half the time that a mount takes."""
    code = f"import passthru.{module}, sys; sys.exit(bool({{'numpy', 'psutil'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_core_writes_what_is_read(tmp_path, monkeypatch):
    """A real server's page, with what it says of itself."""
    monkeypatch.chdir("/proc/self/fd")  # as in a daemon: _fdpath.pxd
    source = os.open(tmp_path, os.O_RDONLY)
    memory = bytearray(_server.stats_size(300))
    arguments = {
        "payload_size": 1 << 20, "max_write": 1 << 20, "fixed_budget": 0, "identity": False,
        "xattr": True, "writeback": False,
    }
    while True:
        try:
            core = _server.ServerCore(source, memory, 300, 1, 16, **arguments)
            break
        except TypeError as e:  # an option that came later: off
            missing = str(e).split()[-1]
            assert "needs keyword-only argument" in str(e) and missing not in arguments, e
            arguments[missing] = 0
    try:
        core.negotiated(0x1122334455667788, 46, -1, False)
        (tmp_path / "page").write_bytes(memory)
        h = stats.read(tmp_path / "page").header
        assert (h["pid"], h["threads"], h["used"], h["minor"]) == (os.getpid(), 300, 0, 46)
        assert h["init_flags"] == 0x1122334455667788
        assert (h["max_write"], h["payload_size"]) == (1 << 20, 1 << 20)
        assert (h["inodes"], h["handles"], h["backings"]) == (1, 0, 0) and core.live == (1, 0)
        s = stats.read(tmp_path / "page")
        assert (s.transport, s.dialect, s.total("ring_requests"), s.ops()) == ("none", "", 0, {})
    finally:
        core.close()
        os.close(source)


def test_counts(tmp_path):
    path = make_page(tmp_path / "page", transport=2)
    data = bytearray(path.read_bytes())
    fields = stats.THREAD_DTYPE.fields
    struct.pack_into("=Q", data, status_page.HEADER + fields["dev_requests"][1], 7)
    struct.pack_into("=Q", data, status_page.HEADER + fields["ops"][1] + 8 * 15, 5)
    path.write_bytes(data)
    s = stats.read(path)
    assert (s.transport, s.total("dev_requests"), s.ops()) == ("dev", 7, {"READ": 5})


@pytest.mark.parametrize("header", [
    {"magic": 1}, {"version": 99}, {"block_size": 8}, {"header_size": 4096}, {"threads": 2}, {"threads": 1 << 31}])
def test_pages_of_others(tmp_path, header):
    with pytest.raises(ValueError):
        stats.read(make_page(tmp_path / "page", **header))


def test_short_page(tmp_path):
    (tmp_path / "page").write_bytes(b"x" * 100)
    with pytest.raises(ValueError):
        stats.read(tmp_path / "page")


def test_live(tmp_path, monkeypatch):
    """Pages of processes that are, by mountpoint; those of dead ones are not shown."""
    monkeypatch.setattr(stats, "directories", lambda **_: [(tmp_path, os.geteuid())])  # not the machine's
    make_page(tmp_path / "0:41", mountpoint=b"/m")
    make_page(tmp_path / "0:42", pid=(1 << 22) + 5, mountpoint=b"/dead")  # beyond any pid
    make_page(tmp_path / "0:43", start_ticks=5, mountpoint=b"/again")  # another process has its pid now
    make_page(tmp_path / "junk")
    assert len(stats.live()) == 1
    assert bytes(stats.of("/m").header["mountpoint"]) == b"/m"
    with pytest.raises(LookupError):
        stats.of("/dead")


@pytest.mark.parametrize("ours, younger", [("0:8", "0:9"), ("0:9", "0:10")])
def test_newest(tmp_path, monkeypatch, ours, younger):
    """A mount that was detached may live on beside the next one of that place; its number says nothing of its age."""
    monkeypatch.setattr(status_page, "directory", lambda: tmp_path)
    with subprocess.Popen(["sleep", "60"]) as p:
        try:
            make_page(tmp_path / ours, mountpoint=b"/m")
            make_page(tmp_path / younger, mountpoint=b"/m", pid=p.pid, start_ticks=status_page.start_ticks(p.pid))
            assert len(stats.live()) == 2 and stats.of("/m").pid == p.pid
        finally:
            p.kill()


def test_own_page(tmp_path, monkeypatch):
    monkeypatch.setattr(status_page, "directory", lambda: tmp_path / "a" / "b")
    page = status_page.Page(_server.stats_size(1))
    (unnamed,) = (tmp_path / "a" / "b").iterdir()
    assert page.path is None and status_page.NAME.fullmatch(unnamed.name) is None
    page.publish(os.makedev(0, 77))
    assert page.path == tmp_path / "a" / "b" / "0:77" and not unnamed.exists()
    assert page.path.stat().st_mode & 0o777 == 0o600
    assert page.path.parent.stat().st_mode & 0o777 == 0o700
    page.describe(source=b"/a", queues=3)
    page.settings({"a": 1})
    page.settings({"b": [2]})
    page.describe(magic=status_page.MAGIC, version=status_page.VERSION, header_size=status_page.HEADER, threads=1,
                  block_size=stats.THREAD_DTYPE.itemsize)
    s = stats.read(page.path)
    assert (s.source, s.header["queues"], s.settings) == ("/a", 3, {"b": [2]})
    with pytest.raises(ValueError):
        page.settings({"c": "x" * status_page.SETTINGS})
    page.memory[:4] = b"data"
    assert page.path.read_bytes()[:4] == b"data"
    status_page.socket_path(page.path).touch()
    page.remove()
    assert not list(page.path.parent.iterdir())
    page.memory[:4] = b"more"
    page.remove()


def test_page_that_was_never_named(tmp_path, monkeypatch):
    monkeypatch.setattr(status_page, "directory", lambda: tmp_path)
    status_page.Page(_server.stats_size(1)).remove()
    assert not list(tmp_path.iterdir())


def test_number_of_another_mount_by_now(tmp_path, monkeypatch):
    """A daemon that is just ending removes neither page nor socket of the one whose mount has its number now."""
    monkeypatch.setattr(status_page, "directory", lambda: tmp_path)
    old = status_page.Page(_server.stats_size(1))
    old.publish(77)
    status_page.socket_path(old.path).write_text("old")
    new = status_page.Page(_server.stats_size(1))
    new.publish(77)
    assert new.path == old.path and {p.name for p in tmp_path.iterdir()} == {"0:77"}
    status_page.socket_path(new.path).write_text("new")
    old.remove()
    new.memory[:3] = b"new"
    assert new.path.read_bytes()[:3] == b"new" and status_page.socket_path(new.path).read_text() == "new"
    new.remove()
    assert not list(tmp_path.iterdir())


def test_directory_of_somebody_else(tmp_path, monkeypatch):
    """Nor one that others may write to, or a link to one of ours."""
    monkeypatch.setattr(status_page, "directory", lambda: tmp_path / "pages")
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "pages").symlink_to("real")
    with pytest.raises(OSError):
        status_page.Page(_server.stats_size(1))
    (tmp_path / "pages").unlink()
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages").chmod(0o777)
    with pytest.raises(PermissionError, match="written by others"):
        status_page.Page(_server.stats_size(1))


def test_no_room_for_a_page(tmp_path, monkeypatch):
    """A mount does without."""
    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(status_page, "directory", lambda: tmp_path)
    monkeypatch.setattr(status_page.os, "posix_fallocate", full)
    page = status_page.Page(_server.stats_size(1))
    page.describe(queues=3)
    page.publish(77)
    assert (page.path, page.fd) == (None, -1) and not list(tmp_path.iterdir())
    page.remove()


def test_what_killed_daemons_left(tmp_path, monkeypatch):
    """A new page's maker removes their pages and sockets, but not while their dead mounts are there."""
    monkeypatch.setattr(status_page, "directory", lambda: tmp_path)
    monkeypatch.setattr(status_page, "mounts", lambda: [MountInfo(5, 77, "/mnt", "fuse.passthru", "/src", 0)])
    make_page(tmp_path / "0:77", fuse_dev=77, mount_id=5)
    for name in ("sock-of-another", "0:77.sock", "0:78.sock", "0:82.sock", ".0123456789abcdef", ".profile", "1234"):
        (tmp_path / name).touch()
    make_page(tmp_path / "0:78", fuse_dev=77, mount_id=6)
    (tmp_path / "0:79").write_bytes(b"no page")
    (tmp_path / "0:80").symlink_to("0:77")
    os.mkfifo(tmp_path / "0:81")
    status_page.Page(_server.stats_size(1)).remove()
    assert {p.name for p in tmp_path.iterdir()} == {"0:77", "0:77.sock", "sock-of-another", ".profile", "1234"}


LIVING = """
import os, sys, time
from pathlib import Path
from passthru import status_page
status_page.directory = lambda: Path(sys.argv[1])
page = status_page.Page(65536)
if sys.argv[2] == "named":
    page.publish(77)
null = os.open("/dev/null", os.O_RDWR)
for fd in range(3, 256):  # as a daemon that confines itself
    if fd != null:
        os.dup2(null, fd)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("state", ["named", "unnamed"])
def test_page_in_use_is_no_leftover(tmp_path, monkeypatch, state):
    """Even if its process is not to be seen, has no fd of it, and its mount is not to be seen either."""
    monkeypatch.setattr(status_page, "directory", lambda: tmp_path)
    monkeypatch.setattr(status_page, "mounts", list)
    env = {**os.environ, "PYTHONPATH": str(Path(status_page.__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", LIVING, tmp_path, state], env=env, stdout=subprocess.PIPE) as living:
        try:
            assert living.stdout.readline() == b"ready\n"
            (page,) = tmp_path.iterdir()
            status_page.Page(_server.stats_size(1)).remove()
            assert list(tmp_path.iterdir()) == [page]
        finally:
            living.kill()
    status_page.Page(_server.stats_size(1)).remove()
    assert not list(tmp_path.iterdir())


def test_opcodes():
    assert len(status_page.OPCODES) == len(set(status_page.OPCODES.values()))
    assert all(n < _server.OPCODES for n in status_page.OPCODES)


def test_queue_numbers():
    assert _server.ranges([3, 0, 1, 2, 8]) == b"0-3,8"
    assert _server.ranges([]) == b""


def test_latency_buckets():
    """The C code's bucket of a latency is the one whose bounds numpy has."""
    bounds = [int(b) for b in stats.BOUNDS]
    assert len(bounds) == status_page.BUCKETS + 1 and bounds == sorted(set(bounds))
    for n in range(status_page.BUCKETS):
        assert _testing.latency_bucket(bounds[n]) == n
        assert _testing.latency_bucket(bounds[n + 1] - 1) == n
        assert n < 8 or (bounds[n + 1] - bounds[n]) / bounds[n] <= 1 / 8
    assert _testing.latency_bucket(1 << 63) == status_page.BUCKETS - 1


def test_quantiles():
    buckets = stats.np.zeros(status_page.BUCKETS, "u8")
    values = [1000 * n for n in range(1, 1001)]  # 1 us to 1 ms
    for v in values:
        buckets[_testing.latency_bucket(v)] += 1
    latency = stats.Latency(buckets, sum(values))
    assert latency.count == 1000
    for q in (0.5, 0.9, 0.99, 0.999):
        assert latency.quantile(q) == pytest.approx(q * 1e-3, rel=1 / 16)
    assert 0 <= latency.quantile(0) <= 1.1e-6
    assert (latency - latency).count == 0 and stats.np.isnan((latency - latency).quantile(0.5))
