"""Looking at mounts from outside, without any: whose pages are believed, and the forms of output."""
import fcntl
import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from passthru import _testing, exposition, monitor, picture, stats, status_page
from passthru.commands import list as list_command
from passthru.commands import stats as stats_command
from passthru.commands import status as status_command
from passthru.errors import MountpointError, PassthruError, UsageError
from passthru.mounting import MountInfo

SIZE = status_page.HEADER + 2 * stats.THREAD_DTYPE.itemsize


def page(path: Path, **header) -> Path:
    """A page with two threads and some requests."""
    record = stats.np.zeros((), stats.HEADER_DTYPE)
    fields = {"magic": status_page.MAGIC, "version": status_page.VERSION, "header_size": status_page.HEADER,
              "threads": 2, "used": 2,
              "block_size": stats.THREAD_DTYPE.itemsize, "pid": os.getpid(), "transport": 1, "dialect": 1,
              "start_ticks": status_page.start_ticks(os.getpid()), "started": 1, "fuse_dev": os.makedev(0, 77),
              "mount_id": 5, "source": b"/src", "mountpoint": b"/mnt", "passthrough": 1}
    for name, value in {**fields, **header}.items():
        record[name] = value
    threads = stats.np.zeros(2, stats.THREAD_DTYPE)
    threads["kind"] = [1, 2]
    threads["queues"][0] = b"0-1"
    threads["ring_requests"][0], threads["commits"][0] = 12, 11
    for opcode, ns in ((15, 1500), (15, 3_000_000), (16, 700), (3, 1 << 40)):
        threads["ops"][0][opcode] += 1
        threads["op_ns"][0][opcode] += ns
        threads["latency"][0][opcode][_testing.latency_bucket(ns)] += 1
    threads["op_errors"][0][16] = threads["errors"][0] = 1
    data = bytearray(SIZE)
    data[:record.nbytes] = record.tobytes()
    data[status_page.HEADER:] = threads.tobytes()
    path.write_bytes(data)
    path.chmod(0o600)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory for pages that is looked at instead of the real ones."""
    where = tmp_path / "pages"
    where.mkdir(mode=0o700)
    monkeypatch.setattr(stats, "directories", lambda everybody=False: [(where, os.geteuid())])
    return where


@pytest.fixture
def table(monkeypatch):
    """The mounts that there are, for the monitor."""
    infos = [MountInfo(5, os.makedev(0, 77), "/mnt", "fuse.passthru", "/src", os.geteuid())]
    monkeypatch.setattr(monitor, "mounts", lambda pid="self": infos)
    return infos


def states():
    return [(m.mountpoint, m.state) for m in monitor.find_all()]


def test_live(place, table):
    page(place / "0:77")
    assert states() == [("/mnt", monitor.MOUNTED)]
    assert monitor.find("/mnt").page.pid == os.getpid()
    with pytest.raises(MountpointError):
        monitor.find("/mnt2")


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"pid": (1 << 22) + 7}])
def test_daemon_has_gone(place, table, change):
    """Its mount is still there, or not."""
    page(place / "0:77", **change)
    assert states() == [("/mnt", monitor.DEAD)]
    with pytest.raises(PassthruError, match="has ended without unmounting"):
        monitor.status(monitor.find("/mnt"))
    table.clear()
    assert states() == []


def test_detached_and_starting(place, table):
    table.clear()
    page(place / "0:77")
    assert states() == [("/mnt", monitor.DETACHED)]
    page(place / "0:77", transport=0)
    assert states() == []


def test_moved_and_bound(place, table):
    page(place / "0:77")
    table[:] = [MountInfo(5, os.makedev(0, 77), "/moved", "fuse.passthru", "/src", os.geteuid()),
                MountInfo(6, os.makedev(0, 77), "/bound", "fuse.passthru", "/src", os.geteuid())]
    assert states() == [("/moved", monitor.MOUNTED)]
    assert monitor.find("/bound").page is not None


def test_mount_without_a_page(place, table):
    assert states() == [("/mnt", monitor.UNKNOWN)]
    with pytest.raises(PassthruError, match="without a status page"):
        monitor.status(monitor.find("/mnt"))


def test_mount_of_somebody_else(place, table):
    """A page that claims another user's mount is not believed."""
    table[:] = [MountInfo(5, os.makedev(0, 77), "/mnt", "fuse.passthru", "/src", os.geteuid() + 1)]
    page(place / "0:77")
    assert ("/mnt", monitor.MOUNTED) not in states()


def test_pages_that_are_not_believed(place, table, tmp_path):
    """Links, FIFOs, hard links, files of the wrong size, directories others can write to."""
    real = page(tmp_path / "elsewhere")
    name = place / "0:77"
    name.symlink_to(real)
    assert stats.pages()[0] == []
    name.unlink()
    os.link(real, name)
    assert stats.pages()[0] == []
    name.unlink()
    os.mkfifo(name)
    assert stats.pages()[0] == []
    name.unlink()
    for change in ({"used": 3, "threads": 1 << 30}, {"threads": 5000}):
        page(name, **change)
        assert stats.pages()[0] == []
    page(name)
    os.truncate(name, SIZE - 1)
    assert stats.pages() == ([], [])  # a leftover
    with open(name) as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        assert stats.pages()[0] == [] and "wrong size" in stats.pages()[1][0]
    page(name)
    assert len(stats.pages()[0]) == 1
    place.chmod(0o770)
    assert stats.pages()[0] == []


def test_page_of_the_wrong_owner(tmp_path):
    path = page(tmp_path / "1")
    assert stats.read(path, os.geteuid()).pid == os.getpid()
    with pytest.raises(ValueError):
        stats.read(path, os.geteuid() + 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
def test_planted_directories(tmp_path, monkeypatch):
    """Root looks into others' directories only if they are theirs, and are no links."""
    where = tmp_path / "passthru-1234"
    where.mkdir(mode=0o700)
    page(where / "0:77")
    monkeypatch.setattr(stats, "directories", lambda everybody=False: [(where, 1234)])
    assert stats.pages() == ([], [])
    os.chown(where, 1234, 1234)
    with open(where / "0:77") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        assert stats.pages()[0] == [] and len(stats.pages()[1]) == 1  # the file is root's
    os.chown(where / "0:77", 1234, 1234)
    assert len(stats.pages()[0]) == 1
    assert not stats.pages()[0][0].alive()  # the process is not theirs
    where.rename(tmp_path / "real")
    where.symlink_to("real")
    assert stats.pages() == ([], [])


def test_list(place, table, capsys):
    page(place / "0:77", mountpoint=b"/mnt", source=b"/a\x1b[31m")
    assert list_command.main(["list"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "/mnt" in said and "ring, per-entry dialect, kernel passthrough" in said
    assert list_command.main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(m["mountpoint"], m["state"], m["pid"]) for m in found] == [("/mnt", "mounted", os.getpid())]


def test_status(place, table, capsys):
    page(place / "0:77")
    assert status_command.main(["status", "/mnt", "--json"]) == 0
    s = json.loads(capsys.readouterr().out)
    assert s["in_flight"] == 1 and s["operations"]["READ"]["count"] == 2 and s["operations"]["WRITE"]["errors"] == 1
    assert [t["kind"] for t in s["threads"]] == ["queue", "dev"] and s["threads"][0]["queues"] == "0-1"
    assert s["operations"]["READ"]["p999"] == pytest.approx(3e-3, rel=1 / 8)
    assert status_command.main(["status", "/mnt"]) == 0
    said = capsys.readouterr().out
    assert monitor.PASSTHROUGH_NOTE in said and "queue 0-1 on CPU 0" in said


def test_stats_text_and_json(place, table, capsys):
    page(place / "0:77")
    assert stats_command.main(["stats", "/mnt"]) == 0
    lines = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["READ.count"] == "2" and lines["ring_requests"] == "12" and float(lines["READ.seconds"]) > 3e-3
    assert stats_command.main(["stats", "/mnt", "--json"]) == 0
    s = json.loads(capsys.readouterr().out)
    assert [n for _, n in s["latency"]["READ"]] == [1, 1] and s["latency"]["READ"][0][0] <= 1.5e-6
    assert stats_command.main(["stats", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    with pytest.raises(UsageError):
        stats_command.main(["stats"])


SAMPLE = re.compile(r'^([a-zA-Z_:][\w:]*)\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (\S+)$')


def test_prometheus(place, table, capsys):
    """The text is as the format wants it: each metric in one group, histograms that grow, labels escaped."""
    page(place / "0:77", source=b'/a"b\\c\nd\xff')
    assert stats_command.main(["stats", "--prometheus"]) == 0
    kinds, group, buckets, samples = {}, "", {}, {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("# TYPE "):
            group, kinds[group] = line.split()[2:]
        elif line.startswith("# HELP "):
            assert line.split()[2] not in kinds and len(line.split()) > 4
        else:
            match = SAMPLE.match(line)
            assert match, line
            name, labels, value = match.groups()
            base = re.sub("_(bucket|sum|count)$", "", name) if kinds[group] == "histogram" else name
            assert base == group and (kinds[group] != "counter") == (not name.endswith("_total")), line
            assert (name, labels) not in samples
            samples[name, labels] = float(value)
            if name.endswith("_bucket"):
                operation, le = re.search('operation="(.*?)"', labels)[1], re.search('le="(.*?)"', labels)[1]
                buckets.setdefault(operation, []).append((float(le), float(value)))
    assert 'source="/a\\"b\\\\c\\nd\ufffd"' in next(labels for name, labels in samples if name == "passthru_info")
    for counts in buckets.values():
        assert counts == sorted(counts) and [n for _, n in counts] == sorted(n for _, n in counts)
        assert counts[-1][0] == float("inf")
    assert dict(buckets["READ"])[2.048e-6] == 1 and dict(buckets["READ"])[4.194304e-3] == 2
    assert dict(buckets["GETATTR"])[17.179869184] == 0 and buckets["GETATTR"][-1][1] == 1
    assert samples["passthru_request_duration_seconds_count", 'mountpoint="/mnt",operation="READ"'] == 2


def test_no_mounts(place, monkeypatch, capsys):
    monkeypatch.setattr(monitor, "mounts", list)
    assert list_command.main(["list"]) == 0
    assert stats_command.main(["stats", "--prometheus"]) == 0
    assert capsys.readouterr().out == ""
    assert stats_command.main(["stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_plot(place, table, tmp_path, capsys):
    """A picture that is well-formed, with the operations in it; written as a whole or not at all."""
    page(place / "0:77", source=b"/<&>\x01")
    out = tmp_path / "out.svg"
    assert stats_command.main(["stats", "/mnt", "--plot", str(out)]) == 0
    root = ET.fromstring(out.read_text())
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"READ", "WRITE", "GETATTR", "2", monitor.PASSTHROUGH_NOTE} <= set(texts)
    assert stats_command.main(["stats", "/mnt", "--plot", "-"]) == 0
    assert ET.fromstring(capsys.readouterr().out).tag.endswith("svg")
    with pytest.raises(PassthruError, match="No such file"):
        stats_command.main(["stats", "/mnt", "--plot", str(tmp_path / "none" / "out.svg")])
    empty = monitor.status(monitor.find("/mnt")) | {"operations": {}}
    assert "no requests yet" in picture.svg(empty)


def test_le_are_bounds_of_buckets():
    assert all(bound in stats.BOUNDS for bound in exposition.LE) and len(exposition.LE) == 25


@pytest.mark.parametrize("seconds, text", [
    (None, "-"), (float("nan"), "-"), (64e-9, "64 ns"), (1.234e-6, "1.23 us"), (0.9996e-3, "1 ms"),
    (123.4e-3, "123 ms"), (2.5, "2.5 s"), (1234.5, "1234 s")])
def test_seconds(seconds, text):
    assert monitor.seconds_text(seconds) == text


@pytest.mark.parametrize("n, text", [(0, "0 B"), (1536, "1.5 KiB"), (1 << 20, "1 MiB"), (5 << 50, "5120 TiB")])
def test_sizes(n, text):
    assert monitor.size_text(n) == text


def test_shown():
    assert monitor.shown("/a b/\u00e4") == "/a b/\u00e4"
    assert monitor.shown("/\x1b[1m\n\udcff") == r"/\x1b[1m\n\xff"
    assert monitor.uptime_text(90061) == "1 d 01:01:01"


@pytest.mark.parametrize("header, least", [
    ({"pinned": 1, "buffers": 3}, 6 << 20), ({"pinned": 0, "buffers": 3}, 0), ({"pinned": 0, "buffers": 0}, 0)])
def test_pinned_memory(tmp_path, header, least):
    """Not only what the kernel counts for the process, which may leave registered buffers out."""
    where = page(tmp_path / "page", queues=2, payload_size=1 << 20, **header)
    s = stats.read(where)
    assert monitor.pool_pinned(s) == least and monitor.process(s)["pinned"] >= least
