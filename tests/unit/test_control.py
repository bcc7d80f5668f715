"""The control socket, with a thread in the place of the daemon's main thread."""
import json
import os
import select
import socket
import threading
from types import SimpleNamespace

import pytest

from passthru import control, options
from passthru.errors import PassthruError, UsageError


class Daemon:
    """Serves a control socket until it is closed."""

    def __init__(self, page):
        self.asked = []
        self.control = control.Control(page, self.change)
        self.end, self.wake = os.pipe()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()
        self.page = SimpleNamespace(path=page, pid=os.getpid(), owner=os.geteuid())

    def change(self, words, uid):
        self.asked.append((words, uid))
        if "bad=1" in words:
            raise UsageError("bad: no")
        if "fault=1" in words:
            raise KeyError("fault")
        return {"words": len(words)}

    def serve(self):
        poll = select.poll()
        poll.register(self.control.fd, select.POLLIN)
        poll.register(self.end, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self.end:
                    return
                self.control.ready()

    def close(self):
        os.write(self.wake, b"x")
        self.thread.join()
        self.control.close()
        os.close(self.end)
        os.close(self.wake)


@pytest.fixture
def daemon(tmp_path):
    where = tmp_path / ("long" * 30)  # no socket address is that long
    where.mkdir(mode=0o700)
    d = Daemon(where / "0:77")
    yield d
    d.close()
    assert list(where.iterdir()) == [d.control.path]  # it goes with the page


def test_change(daemon):
    assert control.ask_set(daemon.page, ["a=1", "b=2"]) == {"words": 2}
    assert daemon.asked == [(["a=1", "b=2"], os.geteuid())]
    assert daemon.control.path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(PassthruError, match=r"^bad: no$") as e:
        control.ask_set(daemon.page, ["bad=1"])
    assert e.value.exit_code == 2
    with pytest.raises(PassthruError, match="KeyError"):
        control.ask_set(daemon.page, ["fault=1"])
    assert control.ask_set(daemon.page, []) == {"words": 0}


def connect(daemon) -> socket.socket:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(10)
    directory = os.open(daemon.control.path.parent, os.O_PATH)
    try:
        s.connect(f"/proc/self/fd/{directory}/{daemon.control.path.name}")
    finally:
        os.close(directory)
    return s


@pytest.mark.parametrize("packet", [
    b"x", b"\xff\0", b"[]", b"{}", b'{"set": 1}', b'{"set": [1]}', b'{"set": "a=1"}', b"[" * 60000, b"null"])
def test_nonsense(daemon, packet):
    """Answered, and not more than that."""
    with connect(daemon) as s:
        s.send(packet)
        assert json.loads(s.recv(1000)) == {"error": "not understood", "code": 1}
    assert daemon.asked == []
    assert control.ask_set(daemon.page, []) == {"words": 0}


def test_clients_that_say_nothing(daemon):
    """They keep nobody out, and their number is bounded."""
    idle = [connect(daemon) for _ in range(3 * control.MOST_CLIENTS)]
    assert control.ask_set(daemon.page, []) == {"words": 0}
    assert idle[0].recv(1) == b""  # dropped
    for s in idle:
        s.close()


def test_another_process_listens(daemon):
    for change in ({"pid": os.getpid() + 1}, {"owner": os.geteuid() + 1}):
        page = SimpleNamespace(**{**vars(daemon.page), **change})
        with pytest.raises(PassthruError, match=r"another process|not the socket"):
            control.ask_set(page, [])
    assert daemon.asked == []


def test_no_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "PATIENCE", 0.1)
    page = SimpleNamespace(path=tmp_path / "0:77", pid=os.getpid(), owner=os.geteuid())
    c = control.Control(page.path, lambda words, uid: {})
    with pytest.raises(PassthruError, match="does not answer"):
        control.ask_set(page, [])
    c.close()
    with pytest.raises(PassthruError, match="Connection refused"):
        control.ask_set(page, [])
    c.path.unlink()
    with pytest.raises(PassthruError, match="No such file"):
        control.ask_set(page, [])
    c.path.write_text("")
    with pytest.raises(PassthruError, match="not the socket"):
        control.ask_set(page, [])


def test_words():
    found = options.live_values(["attr_timeout=2.5", "spin-us=0", "passthrough=off", "spin_us=7"])
    assert found == {"attr_timeout": 2.5, "spin_us": 7, "passthrough": False}
    for name, field in options.live_options().items():  # what is shown can be given
        text = options.value_text(getattr(options.Options(), field))
        assert options.live_values([f"{name}={text}"]) == {field: getattr(options.Options(), field)}


def test_timeouts_follow_the_policy():
    """Unless they were given: then, or now."""
    def timeouts(o):
        return o.attr_timeout, o.entry_timeout, o.negative_timeout

    o = options.Options()
    assert timeouts(o.with_values({"cache": "never"})) == (0, 0, 0)
    assert timeouts(o.with_values({"cache": "always", "attr_timeout": 5})) == (5, 86400, 86400)
    assert timeouts(o.with_values({"entry_timeout": 7})) == (1, 7, 7)
    given = o.with_values({"entry_timeout": 7, "negative_timeout": 0}).with_values({"cache": "never"})
    assert timeouts(given) == (0, 7, 0)
    with pytest.raises(UsageError, match="writeback"):
        options.Options(writeback=True).with_values({"cache": "never"})


@pytest.mark.parametrize("word, text", [
    ("nothing=1", "no option 'nothing'"), ("queue_depth=3", "cannot be changed while"), ("spin_us", "needs a value"),
    ("spin_us=", "not a number"), ("attr_timeout=-1", "attr_timeout: -1 is out of range"),
    ("passthrough=", "neither yes nor no"), ("=1", "no option ''"), ("", "no option ''")])
def test_bad_words(word, text):
    with pytest.raises(UsageError, match=text):
        options.live_values(["attr_timeout=1", word])
