"""A connection goes from one process to another: what of it is a record, what comes of one, and what is refused."""
import json
import os
import socket
from pathlib import Path

import pytest

from passthru import _server, status_page
from passthru.connection import Agreement, Connection, Record

RECORD = Record("/mnt/\udcff\n", 33, 77, "", Agreement(45, 1 << 41 | 5, 1 << 20))


@pytest.fixture
def page(tmp_path, monkeypatch) -> status_page.Page:
    monkeypatch.setattr(status_page, "directory", lambda: tmp_path)
    page = status_page.Page(_server.stats_size(1))
    page.publish(77)
    page.describe(magic=status_page.MAGIC, version=status_page.VERSION, header_size=status_page.HEADER)
    yield page
    page.remove()


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(10)
        yield ours, theirs


@pytest.fixture
def fd():
    """It stands for one of /dev/fuse."""
    fd = os.open("/dev/null", os.O_RDWR)
    yield fd
    os.close(fd)


def fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_record():
    assert Record.parse(RECORD.packet()) == RECORD


def test_without_a_page(fd, ends):
    made = Connection.of(RECORD, [os.dup(fd)])
    assert made.record() == RECORD and made.page is None
    made.send(ends[1])
    made.close()
    got = Connection.receive(ends[0])
    assert got.record() == RECORD
    assert (got.target, got.mount_id, got.dev, got.agreement) == ("/mnt/\udcff\n", 33, 77, RECORD.agreement)
    assert os.path.sameopenfile(got.fuse_fd, fd) and not os.get_inheritable(got.fuse_fd)
    got.close()


def test_with_its_page(fd, ends, page):
    made = Connection.of(RECORD, [os.dup(fd)])
    made.page = page
    assert made.record().page == str(page.path)
    made.send(ends[1])
    got = Connection.receive(ends[0])
    assert got.record() == made.record() and got.page.identity == page.identity
    page.describe(queues=7)
    assert status_page.field(got.page.memory, "queues") == 7
    made.page = None
    made.close()
    page.close()
    with open(page.path) as f:
        assert status_page.in_use(f.fileno())  # the lock has come along
    status_page.Page(_server.stats_size(1)).remove()  # whose maker clears leftovers
    assert got.page.path.exists()
    path = got.page.path
    got.hide()
    assert not path.exists()
    got.close()


def test_a_daemon_that_has_no_page_any_more(fd, page):
    """One that has confined itself hands over what it has."""
    made = Connection.of(RECORD, [os.dup(fd)])
    made.page = page
    os.dup2(fd, page.fd)
    assert made.record() == RECORD and made.fds() == [made.fuse_fd]
    made.page = None
    made.close()


def altered(**changes) -> bytes:
    return json.dumps({**json.loads(RECORD.packet()), **changes}).encode()


@pytest.mark.parametrize("packet, count", [
    (b"", 1), (b"x", 1), (b"[]", 1), (b"{}", 1), (b"null", 1), (b"[" * 60000, 1), (altered(more=1), 1),
    (altered(target=1), 1), (altered(dev="77"), 1), (altered(dev=True), 1), (altered(agreement=[]), 1),
    (altered(agreement={"minor": 1}), 1), (altered(agreement={"minor": "1", "flags": 1, "max_write": 1}), 1),
    (RECORD.packet(), 0), (RECORD.packet(), 2), (RECORD.packet(), 3), (altered(page="/a/0:77"), 1),
    (altered(page="/a/0:77"), 2), (RECORD.packet().ljust(70000), 1)])
def test_what_is_no_connection(ends, fd, packet, count):
    """It is refused, and no fd stays open."""
    before = fds()
    socket.send_fds(ends[1], [packet], [fd] * count)
    with pytest.raises(ValueError):
        Connection.receive(ends[0])
    assert fds() <= before


def test_more_files_than_there_is_room_for(ends, fd, page):
    """Those that did not fit are not there to be missed."""
    made = Connection.of(RECORD, [os.dup(fd)])
    made.page = page
    before = fds()
    socket.send_fds(ends[1], [made.record().packet()], [*made.fds(), fd])
    with pytest.raises(ValueError):
        Connection.receive(ends[0])
    assert fds() <= before
    made.page = None
    made.close()


def test_what_is_no_page(fd, page, tmp_path):
    """A name that none has, a file without a header, one of somebody else."""
    file = os.open(tmp_path / "0:1", os.O_RDWR | os.O_CREAT)
    with pytest.raises(ValueError):
        status_page.Page.received(Path("/a/0:77"), file)
    os.pwrite(file, page.memory[:], 0)
    status_page.Page.received(Path("/a/0:77"), os.dup(file)).close()
    with pytest.raises(ValueError):
        status_page.Page.received(Path("/a/page"), file)
    if os.geteuid() == 0:
        os.fchown(file, 1, 1)
        with pytest.raises(ValueError):
            status_page.Page.received(Path("/a/0:77"), file)
    os.close(file)
