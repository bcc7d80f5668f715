"""A connection that one process has made is taken over by another, without a second mount or INIT."""
import errno
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest
from _daemon import detach, environment, mounted

from passthru import init, status_page
from passthru.connection import Connection, Record

MAKER = """
import os, socket, stat, sys, time
from passthru import connection, init, mounting, options, status_page
to = socket.socket(fileno=int(sys.argv[1]))
o = options.Options(sys.argv[2], sys.argv[3])
target, target_fd = mounting.open_mountpoint(o.mountpoint)
made = connection.Connection.open(os.open("/dev/fuse", os.O_RDWR), o, target, target_fd, stat.S_IFDIR)
made.make_page(65536)
made.negotiate(o, lambda request: connection.Agreement(
    min(init.MINOR, request.minor), request.flags & init.flag("INIT_EXT"), o.max_write))
made.attach(o)
made.page.describe(magic=status_page.MAGIC, version=status_page.VERSION, header_size=status_page.HEADER,
                   fuse_dev=made.dev, mount_id=made.mount_id)
made.send(to)
to.send(made.record().packet())
time.sleep(60)
"""


@pytest.fixture
def maker(place):
    for name in ("src", "mnt"):
        (place / name).mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(20)
        process = subprocess.Popen(
            [sys.executable, "-c", MAKER, str(theirs.fileno()), place / "src", place / "mnt"], env=environment(),
            pass_fds=[theirs.fileno()])
        process.socket = ours
        yield process
        process.kill()
        process.wait()
    detach(str(place / "mnt"))


def refuse(fd: int, number: int, until_ended: subprocess.Popen) -> list[int]:
    """Answer each request that comes by `fd` with an error, until the process has ended. Their opcodes."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    seen = []
    end = time.monotonic() + 20
    while until_ended.poll() is None:
        assert time.monotonic() < end, f"requests {seen}, but no end"
        if poll.poll(10):
            data = os.read(fd, 2 << 20)
            _, opcode, unique = struct.unpack_from("=IIQ", data)
            os.write(fd, init.OUT_HEADER.pack(init.OUT_HEADER.size, -number, unique))
            seen.append(opcode)
    return seen


def test_taken_over(maker, place):
    """The maker is killed, and the mount is the taker's."""
    mnt = place / "mnt"
    got = Connection.receive(maker.socket)
    try:
        assert got.record() == Record.parse(maker.socket.recv(65536))
        maker.kill()
        maker.wait()
        assert mounted(mnt) and got.target == str(mnt) and got.page.path.name == status_page.name_of(got.dev)
        for fd in (got.fuse_fd, got.clone(lambda: os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))):
            with subprocess.Popen(["stat", "-f", mnt], stderr=subprocess.PIPE, text=True) as client:
                assert refuse(fd, errno.EIO, client)  # by whichever is read
                assert client.returncode == 1 and "Input/output error" in client.stderr.read()
        os.close(fd)
        assert got.unmount() == "unmounted" and not mounted(mnt)
        with pytest.raises(OSError) as e:
            os.read(got.fuse_fd, 2 << 20)
        assert e.value.errno == errno.ENODEV
        got.hide()
        assert not got.page.path.exists()
    finally:
        got.close()


def test_ends_with_the_last_who_has_it(maker, place):
    got = Connection.receive(maker.socket)
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    got.close()
    with pytest.raises(OSError) as e:
        os.statvfs(place / "mnt")
    assert e.value.errno == errno.ENOTCONN
    status_page.remove(got.page.path, got.page.identity)
