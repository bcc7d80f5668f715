"""FUSE_INIT: what is read from the kernel, chosen, and answered."""
import os
import struct

import pytest

from passthru import init
from passthru.options import Options

ALL = (1 << 64) - 1


def request(minor: int = 46, flags: int = 0, *, ext: bool = True, opcode: int = 26) -> bytes:
    """An INIT request as the kernel makes it."""
    body = struct.pack("=IIII", 7, minor, 131072, flags & 0xFFFFFFFF)
    if ext:
        body += struct.pack("=I11I", flags >> 32, *[0] * 11)
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, 77, 0, 0, 0, 1, 0, 0) + body


def situation(**given) -> init.Situation:
    names = {f: False for f in init.Situation.__dataclass_fields__ if f != "options"}
    return init.Situation(**{"options": Options(), **names, **given})


def test_sizes():
    assert init.IN_HEADER.size == 40
    assert init.OUT_HEADER.size == 16
    assert init.INIT_OUT.size == 64


def test_parse():
    i = init.parse(request(45, init.flag("INIT_EXT") | init.flag("OVER_IO_URING") | 1))
    assert (i.unique, i.major, i.minor, i.max_readahead) == (77, 7, 45, 131072)
    assert i.offers("OVER_IO_URING") and i.offers("ASYNC_READ") and not i.offers("POSIX_ACL")


def test_second_flags_need_init_ext():
    assert not init.parse(request(45, init.flag("OVER_IO_URING"))).offers("OVER_IO_URING")
    short = init.parse(request(31, init.flag("MAX_PAGES"), ext=False))
    assert short.offers("MAX_PAGES") and short.minor == 31


@pytest.mark.parametrize("data", [b"", request()[:40], request()[:55], request(opcode=1), request() + b"x"])
def test_not_init(data):
    with pytest.raises(ValueError):
        init.parse(data)


def test_reply_layout():
    i = init.parse(request(46, ALL))
    o = Options(max_write=1 << 18, max_background=100)
    flags = init.flag("INIT_EXT") | init.flag("OVER_IO_URING")
    data = init.reply(i, flags, o)
    assert len(data) == 80
    assert struct.unpack_from("=IiQ", data) == (80, 0, 77)
    major, minor, readahead, flags1, background, congestion, max_write, granularity = struct.unpack_from(
        "=IIIIHHII", data, 16)
    assert (major, minor, readahead) == (7, 46, 131072)
    assert flags1 == flags & 0xFFFFFFFF
    assert (background, max_write, granularity) == (100, 1 << 18, 1)
    assert 0 < congestion <= background
    max_pages, _, flags2 = struct.unpack_from("=HHI", data, 16 + 28)
    assert (max_pages, flags2) == (64, flags >> 32)


@pytest.mark.parametrize("kernel, answer", [(37, 37), (45, 45), (46, 46), (60, 46)])
def test_minor(kernel, answer):
    data = init.reply(init.parse(request(kernel)), 0, Options())
    assert struct.unpack_from("=II", data, 16) == (7, answer)


def test_too_old():
    said = init.too_old(init.parse(request(36, ext=False)))
    assert "Linux 6.1 or newer" in said and "7.36" in said and os.uname().release in said and "\n" not in said
    assert not init.too_old(init.parse(request(37))) and not init.too_old(init.parse(request(60)))
    assert init.too_old(init.Init(0, 8, 46, 0, 0))


def test_refusal():
    assert struct.unpack("=IiQ", init.refusal(init.parse(request()), 71)) == (16, -71, 77)


def test_nothing_that_is_not_offered():
    for flags in (0, 1, init.flag("INIT_EXT"), init.flag("MAX_PAGES") | init.flag("INIT_EXT")):
        i = init.parse(request(46, flags))
        everything = situation(**{f: True for f in init.Situation.__dataclass_fields__ if f != "options"})
        assert init.choose(i, everything) & ~flags == 0


def test_ring_only_if_it_can_come_up():
    i = init.parse(request(46, ALL))
    assert init.choose(i, situation(ring=True)) & init.flag("OVER_IO_URING")
    assert not init.choose(i, situation(ring=False)) & init.flag("OVER_IO_URING")


def test_always_taken():
    flags = init.choose(init.parse(request(46, ALL)), situation())
    for name in ("INIT_EXT", "MAX_PAGES", "BIG_WRITES", "PARALLEL_DIROPS", "DO_READDIRPLUS", "HANDLE_KILLPRIV_V2"):
        assert flags & init.flag(name), name


def test_identity_and_acl():
    i = init.parse(request(46, ALL))
    assert init.choose(i, situation(umask=True)) & init.flag("DONT_MASK")
    assert not init.choose(i, situation(identity=True)) & init.flag("DONT_MASK")
    assert init.choose(i, situation(identity=True)) & init.flag("POSIX_ACL")
    assert not init.choose(i, situation()) & init.flag("POSIX_ACL")


def test_writeback_is_an_option():
    i = init.parse(request(46, ALL))
    assert not init.choose(i, situation()) & init.flag("WRITEBACK_CACHE")
    assert init.choose(i, situation(options=Options(writeback=True))) & init.flag("WRITEBACK_CACHE")


def test_capabilities_are_said_once_each():
    bits = [bit for bit, _, _, _ in init.CAPABILITIES]
    names = [name for _, name, _, _ in init.CAPABILITIES]
    assert len(set(bits)) == len(bits) and len(set(names)) == len(names)
    assert all(why for _, _, _, why in init.CAPABILITIES)
    assert init.names(init.flag("MAX_PAGES") | 1 << 63) == ["MAX_PAGES", "bit 63"]
