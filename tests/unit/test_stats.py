"""The status page's layout: numpy's must be that of the C structs."""
import os
import struct

import pytest

from passthru import _server, stats


def make_page(path, **header):
    """A page as a daemon leaves it, with one thread."""
    data = bytearray(_server.stats_size(1))
    record = stats.np.zeros((), stats.HEADER_DTYPE)
    record["magic"], record["version"], record["threads"] = stats.MAGIC, stats.VERSION, 1
    record["block_size"] = stats.THREAD_DTYPE.itemsize
    for name, value in header.items():
        record[name] = value
    data[:record.nbytes] = record.tobytes()
    path.write_bytes(data)
    return path


def test_size_of_a_threads_block():
    assert _server.stats_size(1) - _server.stats_size(0) == stats.THREAD_DTYPE.itemsize
    assert _server.stats_size(0) == stats.HEADER
    assert stats.THREAD_DTYPE.itemsize % 64 == 0, "threads share cache lines"
    assert stats.HEADER_DTYPE.itemsize <= stats.HEADER


def test_core_writes_what_is_read(tmp_path):
    """A real server's page, with what it says of itself."""
    source = os.open(tmp_path, os.O_RDONLY)
    memory = bytearray(_server.stats_size(300))
    arguments = {
        "payload_size": 1 << 20, "max_write": 1 << 20, "attr_timeout": 1.0, "entry_timeout": 1.0, "spin_us": 0.0,
        "fixed_budget": 0, "identity": False, "xattr": True, "writeback": False,
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
        core.serving(1, 1, 2, 16, 99, 1234, b"/the source", b"/the mountpoint")
        (tmp_path / "page").write_bytes(memory)
        h = stats.read(tmp_path / "page").header
        assert (h["pid"], h["threads"], h["minor"], h["depth"]) == (os.getpid(), 300, 46, 16)
        assert (h["init_flags"], h["fuse_dev"], h["mount_id"]) == (0x1122334455667788, 99, 1234)
        assert (h["max_write"], h["payload_size"], h["queues"]) == (1 << 20, 1 << 20, 2)
        assert (bytes(h["source"]), bytes(h["mountpoint"])) == (b"/the source", b"/the mountpoint")
        s = stats.read(tmp_path / "page")
        assert (s.transport, s.dialect, s.total("ring_requests"), s.ops()) == ("ring", "per-entry", 0, {})
    finally:
        core.close()
        os.close(source)


def test_counts(tmp_path):
    path = make_page(tmp_path / "page", transport=2)
    data = bytearray(path.read_bytes())
    fields = stats.THREAD_DTYPE.fields
    struct.pack_into("=Q", data, stats.HEADER + fields["dev_requests"][1], 7)
    struct.pack_into("=Q", data, stats.HEADER + fields["ops"][1] + 8 * 15, 5)
    path.write_bytes(data)
    s = stats.read(path)
    assert (s.transport, s.total("dev_requests"), s.ops()) == ("dev", 7, {"READ": 5})


@pytest.mark.parametrize("header", [{"magic": 1}, {"version": 99}, {"block_size": 8}])
def test_pages_of_others(tmp_path, header):
    with pytest.raises(ValueError):
        stats.read(make_page(tmp_path / "page", **header))


def test_short_page(tmp_path):
    (tmp_path / "page").write_bytes(b"x" * 100)
    with pytest.raises(ValueError):
        stats.read(tmp_path / "page")


def test_live(tmp_path, monkeypatch):
    """Pages of processes that are, by mountpoint; those of dead ones are not shown."""
    monkeypatch.setattr(stats, "directory", lambda: tmp_path)
    make_page(tmp_path / str(os.getpid()), mountpoint=b"/m")
    make_page(tmp_path / str((1 << 22) + 5), mountpoint=b"/dead")  # beyond any pid
    make_page(tmp_path / "junk")
    assert len(stats.live()) == 1
    assert bytes(stats.of("/m").header["mountpoint"]) == b"/m"
    with pytest.raises(LookupError):
        stats.of("/dead")


def test_own_page(tmp_path, monkeypatch):
    monkeypatch.setattr(stats, "directory", lambda: tmp_path / "a" / "b")
    page = stats.Page(8192)
    assert page.path.stat().st_mode & 0o777 == 0o600
    assert page.path.parent.stat().st_mode & 0o777 == 0o700
    page.memory[:4] = b"data"
    assert page.path.read_bytes()[:4] == b"data"
    page.remove()
    assert not page.path.exists()
    page.memory[:4] = b"more"
    page.remove()


def test_opcodes():
    assert len(stats.OPCODES) == len(set(stats.OPCODES.values()))
    assert all(n < _server.OPCODES for n in stats.OPCODES)
