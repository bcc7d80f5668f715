"""Which transport and which form of it is chosen, by what is wanted and what the kernel offers."""
import pytest

from passthru import init, transport
from passthru.errors import TransportError, UsageError
from passthru.options import Options
from passthru.transport import BUFPOOL, BUFRING, PER_ENTRY, Form, Outcome, Transport


@pytest.fixture(autouse=True)
def parameter(monkeypatch, tmp_path):
    """The kernel's switch, and a process with all rights."""
    (tmp_path / "parameter").write_text("Y\n")
    monkeypatch.setattr(transport, "PARAMETER", str(tmp_path / "parameter"))
    monkeypatch.setattr(transport, "capable_of_all", lambda cap: True)
    return tmp_path / "parameter"


def request(minor: int, *offered: str) -> init.Init:
    return init.Init(1, 7, minor, 1 << 17, sum(init.flag(name) for name in offered))


def test_parameter(parameter):
    assert transport.ring_parameter() == "Y"
    parameter.unlink()
    assert transport.ring_parameter() == ""


@pytest.mark.parametrize("value", ["N", None])
def test_no_ring_here(parameter, value):
    """/dev/fuse serves and says why, unless something of the ring was asked for."""
    parameter.write_text(value) if value else parameter.unlink()
    t = Transport(Options())
    t.prepare()
    assert not t.ring and t.why and t.readers() >= 4
    for asked in ({"transport": "ring"}, {"dialect": "per-entry"}, {"zero_copy": "on"}):
        with pytest.raises(TransportError, match="no ring transport"):
            Transport(Options(**asked)).prepare()


def test_parameter_is_set(parameter):
    parameter.write_text("N")
    t = Transport(Options(enable_uring=True))
    t.prepare()
    assert t.ring and parameter.read_text() == "Y" and t.readers() == 1


def test_dev_is_asked_for(parameter):
    parameter.write_text("N")
    t = Transport(Options(transport="dev", enable_uring=True, threads=7))
    t.prepare()
    assert not t.ring and not t.why and t.readers() == 7 and parameter.read_text() == "N"
    with pytest.raises(UsageError):
        Transport(Options(transport="dev", zero_copy="on")).prepare()


@pytest.mark.parametrize("minor, offered, options, form", [
    (42, (), {}, Form(PER_ENTRY)),
    (46, (), {}, Form(BUFRING, zero_copy=True)),
    (46, (), {"pin_headers": False}, Form(BUFRING)),
    (46, ("HAS_IO_URING_BUFPOOL",), {}, Form(BUFPOOL, zero_copy=True)),
    (46, ("HAS_IO_URING_BUFPOOL",), {"zero_copy": "off"}, Form(BUFPOOL)),
    (46, ("HAS_IO_URING_BUFPOOL",), {"dialect": "per-entry"}, Form(PER_ENTRY, forced=True)),
    (46, (), {"dialect": "bufring"}, Form(BUFRING, forced=True, zero_copy=True)),
])
def test_form(minor, offered, options, form):
    t = Transport(Options(**options))
    t.choose(request(minor, "OVER_IO_URING", *offered), pin_buffers=True)
    pinned = {"pin_buffers": True, "pin_headers": options.get("pin_headers", True)}
    assert t.ring and t.form == Form(form.dialect, form.forced, form.zero_copy, **pinned)


@pytest.mark.parametrize("minor, offered, options, why", [
    (42, (), {"zero_copy": "on"}, "this kernel has none"), (42, (), {"dialect": "bufpool"}, "no bufpool dialect"),
    (46, ("HAS_IO_URING_BUFPOOL",), {"dialect": "bufring"}, "no bufring dialect"),
    (46, ("HAS_IO_URING_BUFPOOL",), {"dialect": "per-entry", "zero_copy": "on"}, "not with the per-entry dialect"),
    (46, (), {"zero_copy": "on", "pin_headers": False}, "wants pinned buffers"),
])
def test_form_that_cannot_be_had(minor, offered, options, why):
    with pytest.raises(TransportError, match=why):
        Transport(Options(**options)).choose(request(minor, "OVER_IO_URING", *offered), pin_buffers=True)


def test_without_rights(monkeypatch):
    monkeypatch.setattr(transport, "capable_of_all", lambda cap: False)
    t = Transport(Options())
    t.choose(request(46, "OVER_IO_URING"), pin_buffers=True)
    assert t.form.dialect == BUFRING and not t.form.zero_copy
    with pytest.raises(TransportError, match="CAP_SYS_ADMIN"):
        Transport(Options(zero_copy="on")).choose(request(46, "OVER_IO_URING"), pin_buffers=True)


def test_not_offered():
    t = Transport(Options())
    t.choose(request(42), pin_buffers=True)
    assert not t.ring and "did not offer" in t.why
    with pytest.raises(TransportError, match="did not offer"):
        Transport(Options(transport="ring")).choose(request(42), pin_buffers=True)


def test_what_registration_comes_to():
    """The least of all queues; an error is the end of the ring."""
    t = Transport(Options())
    t.registered([Outcome(BUFPOOL, 15, True, True), Outcome(BUFRING, 7, False, True)])
    assert t.ring and t.outcome == Outcome(BUFRING, 7, False, True)
    t.registered(OSError(12, "Cannot allocate memory"))
    assert not t.ring and t.why == "REGISTER: Cannot allocate memory"
    with pytest.raises(TransportError, match="the kernel refused it"):
        Transport(Options(zero_copy="on")).registered([Outcome(BUFPOOL, 15, True, False)])
