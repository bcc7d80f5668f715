"""sd_notify(3)'s datagrams."""
import os
import socket

import pytest

from passthru import sd_notify


@pytest.fixture(params=["path", "abstract"])
def listener(request, tmp_path, monkeypatch):
    address = str(tmp_path / "s") if request.param == "path" else f"@passthru-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind("\0" + address[1:] if address[0] == "@" else address)
        s.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield s


def test_told(listener):
    assert sd_notify.notify("READY=1", "STATUS=one\nline")
    assert listener.recv(1000) == b"READY=1\nSTATUS=one line"


@pytest.mark.parametrize("address", [None, "", "relative", "vsock:2:1", "/no/such/socket", "@nobody" + "x" * 200])
def test_nobody_to_tell(monkeypatch, address):
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not sd_notify.notify("READY=1")
