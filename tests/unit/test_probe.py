"""The parts of `passthru check` that need no kernel of a certain kind."""
import errno
import os

import pytest

from passthru import init, mounting, probe
from passthru.commands import check
from passthru.errors import MountError, TransportError
from passthru.options import Options


def asked(minor: int, *names: str) -> init.Init:
    return init.Init(1, 7, minor, 0, sum(init.flag(n) for n in names))


def by_name(checks) -> dict[str, probe.Check]:
    return {c.name: c for c in checks}


@pytest.mark.parametrize("request_, dialects, zero_copy", [
    (asked(37), None, "missing"), (asked(45, "OVER_IO_URING"), "per-entry", "missing"),
    (asked(46, "OVER_IO_URING"), "per-entry, bufring", "ok"),
    (asked(45, "OVER_IO_URING", "HAS_IO_URING_BUFPOOL"), "per-entry, bufpool", "ok"),
])
def test_offered(monkeypatch, request_, dialects, zero_copy):
    monkeypatch.setattr(probe, "capable_of_all", lambda cap: True)
    found = by_name(probe.offered_checks(request_))
    assert ("dialects" in found) == (dialects is not None)
    if dialects:
        assert found["dialects"].value == dialects
    assert found["zero-copy"].state == zero_copy
    monkeypatch.setattr(probe, "capable_of_all", lambda cap: False)
    assert by_name(probe.offered_checks(request_))["zero-copy"].state == "missing"


@pytest.mark.parametrize("value, state", [("Y", "ok"), ("N", "missing"), ("", "missing")])
def test_parameter(monkeypatch, value, state):
    monkeypatch.setattr(probe, "ring_parameter", lambda: value)
    found = probe.ring_check()
    assert found.state == state and bool(found.cure) == (state == "missing")


def test_io_uring_forbidden(monkeypatch):
    def refused():
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    monkeypatch.setattr(probe._sys, "try_io_uring", refused)
    found = probe.uring_check()
    assert found.state == "missing" and "not permitted" in found.value and found.cure


def test_user_allow_other(monkeypatch, tmp_path):
    monkeypatch.setattr(mounting, "FUSE_CONF", str(tmp_path / "fuse.conf"))
    assert not mounting.user_allow_other()
    for text, is_there in (("#user_allow_other\n", False), ("mount_max = 3\nuser_allow_other # yes\n", True)):
        (tmp_path / "fuse.conf").write_text(text)
        assert mounting.user_allow_other() == is_there


GOOD = [probe.Check(name, "ok", "")
        for name in ("/dev/fuse", "FUSE protocol", "FUSE over io_uring", "io_uring", "fusermount3")]


@pytest.mark.parametrize("missing, transport, code", [
    (None, "auto", 0), (None, "dev", 0), (None, "ring", 0), ("/dev/fuse", "auto", MountError.exit_code),
    ("FUSE protocol", "auto", MountError.exit_code), ("fusermount3", "auto", MountError.exit_code),
    ("io_uring", "auto", 0), ("FUSE over io_uring", "ring", TransportError.exit_code),
    ("io_uring", "ring", TransportError.exit_code), ("io_uring", "dev", 0)])
def test_outcome_without_ends(missing, transport, code):
    checks = [probe.Check(c.name, "missing", "gone", "x") if c.name == missing else c for c in GOOD]
    outcome = probe.machine_outcome(checks, Options(transport=transport))
    assert outcome.exit_code == code
    assert ("/dev/fuse" in outcome.text) == (transport == "dev" or (missing in ("io_uring", "/dev/fuse") and
                                                                    transport != "ring"))


def test_old_kernel(monkeypatch):
    """Whatever a rehearsal finds: by fusermount3 it sees no INIT."""
    monkeypatch.setattr(probe, "fuse_init", lambda: asked(36))
    monkeypatch.setattr(probe, "rehearse", lambda options, asked=None: probe.Outcome(0, "served"))
    said = init.too_old(asked(36))
    found = by_name(probe.kernel_checks())["FUSE protocol"]
    assert (found.state, found.cure) == ("missing", said)
    for ends in ({}, {"source": "/", "mountpoint": "/mnt"}):
        assert probe.check(Options(**ends))[1] == probe.Outcome(MountError.exit_code, said)
    monkeypatch.setattr(probe, "rehearse", lambda options, asked=None: probe.Outcome(4, "in use"))
    assert probe.check(Options(source="/", mountpoint="/mnt"))[1] == probe.Outcome(4, "in use")


class TestInChild:
    def test_value(self):
        assert probe.in_child(lambda: [os.getpid(), 1])[0] != os.getpid()

    def test_errors(self):
        def passthru_error():
            raise TransportError("no ring")

        def os_error():
            raise PermissionError(errno.EPERM, "x")

        def fault():
            return {}["key"]
        with pytest.raises(probe.PassthruError, match="no ring") as e:
            probe.in_child(passthru_error)
        assert e.value.exit_code == TransportError.exit_code
        with pytest.raises(PermissionError):
            probe.in_child(os_error)
        with pytest.raises(probe.PassthruError, match="KeyError"):
            probe.in_child(fault)

    def test_killed(self):
        with pytest.raises(probe.PassthruError, match="killed"):
            probe.in_child(lambda: os._exit(9))

    def test_quiet(self, capfd):
        probe.in_child(lambda: os.write(2, b"noise"))
        assert capfd.readouterr() == ("", "")


def test_table_and_json():
    checks = [probe.Check("one", "ok", "yes"), probe.Check("  two", "missing", "no", "do this " * 30)]
    lines = check.table(checks, probe.Outcome(4, "why"))
    assert lines[0].startswith("+ one") and lines[1].startswith("-   two") and lines[2].lstrip().startswith("> do this")
    assert all(len(line) <= 100 for line in lines)
    assert lines[-1] == "fails with exit code 4: why"
    said = probe.as_json(checks, probe.Outcome(0, "fine"))
    assert [c["name"] for c in said["checks"]] == ["one", "two"]
    assert (said["works"], said["exit_code"], said["result"]) == (True, 0, "fine")


@pytest.mark.parametrize("path", ["/no/such", "/dev/null"])
def test_no_source(path):
    (found,) = probe.source_checks(path)
    assert found.state == "missing" and path in found.value


def test_source(tmp_path):
    found = by_name(probe.source_checks(str(tmp_path)))
    assert found["source"].state == "ok" and found["  NOWAIT reads"].value == "no file there to try"
    (tmp_path / "f").write_text("x")
    assert by_name(probe.source_checks(str(tmp_path)))["  NOWAIT reads"].value in ("yes", "no")


def test_mountpoint(tmp_path):
    assert probe.mountpoint_check(str(tmp_path)).state == "ok"
    gone = probe.mountpoint_check(str(tmp_path / "none"))
    assert gone.state == "missing" and gone.cure == f"mkdir {tmp_path}/none"
    assert "proc" in probe.mountpoint_check("/proc").value
