"""A mount's server and its page, without a kernel: what is written into it, and whether its counters are level."""
import os
import struct

import pytest

from passthru import serving, stats, status_page
from passthru.errors import PassthruError
from passthru.options import CACHE, SWITCH, Options


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(status_page, "directory", lambda: tmp_path / "pages")
    page = status_page.Page(serving.stats_size(2))
    page.publish(77)
    yield page
    page.remove()


@pytest.fixture
def core(tmp_path, page, monkeypatch):
    monkeypatch.chdir("/proc/self/fd")  # as in a daemon: _fdpath.pxd
    fd = os.open(tmp_path, os.O_RDONLY)
    core = serving.make_core(Options(), fd, page, 2, 128, identity=False, fixed_size=False, mountinfo=-1)
    yield core
    core.close()
    os.close(fd)


def test_page(core, page):
    h = stats.read(page.path).header
    assert (h["pid"], h["threads"]) == (os.getpid(), 2 + 256 + serving.POOL_THREADS)
    assert h["max_write"] == Options().max_write
    assert status_page.HEADER + h["threads"] * h["block_size"] == len(page.memory)


@pytest.mark.parametrize("policy", CACHE)
def test_every_policy_is_taken(core, policy):
    for writes in SWITCH:
        serving.configure(core, Options(cache=policy, parallel_direct_writes=writes), passthrough=True)


def test_what_the_server_does_not_know(core):
    options = {"attr_timeout": 1, "entry_timeout": 1, "negative_timeout": 1, "spin_us": 0, "direct_io": False,
               "keep_cache": "all", "parallel_writes": "on", "passthrough": False}
    core.configure(**options)
    for wrong in ({"keep_cache": "some"}, {"parallel_writes": "yes"}):
        with pytest.raises(KeyError):
            core.configure(**{**options, **wrong})


@pytest.mark.parametrize("counter, said", [
    ("ring_requests", "1 ring requests, 0 commits"), ("entries_lost", "1 entries lost"),
    ("opens", "1 opens, 0 releases"), ("forgets", "0 lookups, 1 forgets")])
def test_counters_that_are_not_level(core, page, counter, said):
    page.describe(used=1)
    serving.check_level(core, page)
    struct.pack_into("=Q", page.memory, status_page.HEADER + stats.THREAD_DTYPE.fields[counter][1], 1)
    with pytest.raises(PassthruError, match=f"counters not level: .*{said}"):
        serving.check_level(core, page)
