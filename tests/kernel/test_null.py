"""--null-io: the transport is used, the source's data is not."""
import os


def test_source_is_not_touched(mount):
    fs = mount("--null-io")
    (fs.src / "f").write_bytes(b"s" * 100_000)
    with open(fs.mnt / "f", "r+b", buffering=0) as f:
        assert len(os.pread(f.fileno(), 8192, 4096)) == 8192
        assert os.pwrite(f.fileno(), b"x" * 100_000, 0) == 100_000
        os.fsync(f.fileno())
    assert (fs.src / "f").read_bytes() == b"s" * 100_000
    s = fs.stats()
    assert s.ops()["READ"] and s.ops()["WRITE"] and s.ops()["FSYNC"]
    assert s.total("read_bytes") >= 8192 and s.total("write_bytes") >= 100_000
    assert not any(s.total(c) for c in ("io_inline", "io_ring", "io_pool"))


def test_the_start_line_warns(mount):
    assert "NO DATA IS READ OR WRITTEN" in mount("--null-io").stderr()
