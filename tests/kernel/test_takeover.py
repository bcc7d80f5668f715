"""--supervise: daemons are killed under programs that know what each of their calls must give."""
import contextlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _daemon import command, environment, is_keeper, mounted, run, until

pytestmark = [
    pytest.mark.release_only("takes long on a build with sanitizers, where a successor has no counts to be level"),
    pytest.mark.skipif(os.geteuid() != 0, reason="root's mounts are supervised"),
    pytest.mark.skipif(
        tuple(int(n) for n in os.uname().release.split(".")[:2]) < (6, 9), reason="the kernel sends nothing again"),
]
KILLS = int(os.environ.get("PASSTHRU_TEST_KILLS", "6"))  # of each mode; make survive: more
ENDURING = Path(__file__).with_name("_enduring.py")
ROLES = ("data", "data", "names", "names", "append", "append", "record", "record", "flock", "flock", "holder",
         "unlinked", "lister", "attributes")


class Mount:
    """A supervised mount."""

    def __init__(self, place: Path, *options: str):
        self.src, self.mnt, self.log = place / "src", place / "mnt", place / "log"
        self.src.mkdir()
        self.mnt.mkdir()
        with self.log.open("wb") as log:
            self.holder = subprocess.Popen(
                command("-f", "--supervise", *options, self.src, self.mnt), env=environment(), stderr=log,
                stdin=subprocess.DEVNULL)
        until(lambda: "transport" in self.said() or self.holder.poll() is not None, "it serves", 60)
        assert self.holder.poll() is None, self.said()

    def said(self) -> str:
        return self.log.read_text()

    def daemon(self) -> int:
        """Its daemon's pid, or 0."""
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        return next((int(pid) for pid in children if not is_keeper(int(pid))), 0)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Have the daemon die, and see that another one is there."""
        old = self.daemon()
        with contextlib.suppress(ProcessLookupError):
            os.kill(old, number)
        until(lambda: self.daemon() not in (0, old) or self.holder.poll() is not None, "a successor", 60)

    def ends(self) -> int:
        return self.holder.wait(60)


@pytest.fixture
def supervised(tmp_path):
    made = []

    def make(*options: str) -> Mount:
        place = tmp_path / str(len(made))
        place.mkdir()
        made.append(Mount(place, *options))
        return made[-1]

    yield make
    for m in made:
        if m.holder.poll() is None:
            m.holder.terminate()
            try:
                m.holder.wait(60)
            except subprocess.TimeoutExpired:
                m.holder.kill()
        subprocess.run(["umount", "-l", m.mnt], capture_output=True, check=False)


def enduring(mnt: Path) -> list[subprocess.Popen[str]]:
    found = [
        subprocess.Popen([sys.executable, ENDURING, role, mnt, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         text=True)
        for n, role in enumerate(ROLES)]
    for p in found:
        assert p.stdout.readline() == "ready\n"
    return found


@pytest.mark.parametrize("options", [(), ("--no-passthrough",)], ids=["passthrough", "by-request"])
def test_killed_under_load(supervised, options):
    m = supervised(*options)
    programs = enduring(m.mnt)
    r = random.Random(len(options))
    for n in range(KILLS):
        time.sleep(0.15 + r.random() * 0.3)
        fault = {3: signal.SIGABRT, 4: signal.SIGSEGV} if n < 100 else {}  # more of them end the mount
        m.kill(fault.get(n % 5, signal.SIGKILL))
    time.sleep(0.5)
    added = {"record": 0, "flock": 0}
    for p in programs:
        said = json.loads(p.communicate("x", timeout=60)[0])
        assert not said["wrong"], said
        assert said["rounds"] > 1, said
        if said["role"] in added:
            added[said["role"]] += said["own"]
    for name, value in added.items():
        assert struct.unpack("<q", (m.src / name / "number").read_bytes())[0] == value
    assert m.said().count("taken over") > KILLS // 2
    status = json.loads(run("status", "--json", m.mnt).stdout)
    assert status["takeover"]["count"] >= KILLS
    assert status["takeover"]["daemon"] == m.daemon()
    m.holder.terminate()
    assert m.ends() == 0
    assert not mounted(m.mnt)


def test_killed_while_taking_over(supervised):
    """Successors are killed as soon as they are there."""
    m = supervised("--no-passthrough")
    fd = os.open(m.mnt / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"content")
    for _ in range(8):
        m.kill()
    assert os.pread(fd, 10, 0) == b"content"
    os.mkdir(m.mnt / "directory")
    assert sorted(os.listdir(m.mnt)) == ["directory", "file"]
    os.close(fd)


def test_stopped_and_killed(supervised):
    m = supervised("--no-passthrough")
    os.kill(m.daemon(), signal.SIGSTOP)
    program = subprocess.Popen(["mkdir", m.mnt / "made"])
    time.sleep(0.3)
    assert program.poll() is None
    m.kill()
    assert program.wait(30) == 0
    assert (m.src / "made").is_dir()


def test_holder_killed(supervised):
    """Without the holder there is no successor: the mount ends, cleanly."""
    m = supervised()
    daemon = m.daemon()
    m.holder.kill()
    m.holder.wait(30)
    until(lambda: not Path(f"/proc/{daemon}").exists() or "Z" in Path(f"/proc/{daemon}/stat").read_text().split()[2],
          "the daemon has ended", 30)
    until(lambda: not mounted(m.mnt), "it is unmounted", 30)
    assert "the holder has ended: unmounting" in m.said()


def test_holder_and_daemon_killed(supervised):
    """As without the option: the mount is dead, can be taken away, and made anew."""
    m = supervised()
    fd = os.open(m.mnt / "file", os.O_RDWR | os.O_CREAT)
    daemon = m.daemon()
    m.holder.kill()
    os.kill(daemon, signal.SIGKILL)
    m.holder.wait(30)

    def dead() -> bool:
        try:
            os.stat(m.mnt)
        except OSError:
            return True
        return not mounted(m.mnt)

    until(dead, "it is dead", 30)
    with contextlib.suppress(OSError):
        os.close(fd)
    subprocess.run(["umount", "-l", m.mnt], capture_output=True, check=False)
    assert run(m.src, m.mnt).returncode == 0
    assert os.listdir(m.mnt) == ["file"]
    assert subprocess.run(["umount", m.mnt], check=False).returncode == 0


@pytest.mark.parametrize("whom", ["holder", "daemon", "umount"])
def test_told_to_end(supervised, whom):
    m = supervised()
    m.kill()
    (m.mnt / "file").write_text("x")
    if whom == "umount":
        until(lambda: subprocess.run(["umount", m.mnt], capture_output=True, check=False).returncode == 0, "unmounted")
    else:
        until(lambda: "taken over" in m.said(), "it has been said")
        os.kill(m.holder.pid if whom == "holder" else m.daemon(), signal.SIGTERM)
    assert m.ends() == 0
    assert not mounted(m.mnt)


def test_crash_loop(supervised):
    """Daemons that die at once, again and again: it is said, the pauses grow, and then the mount is taken away."""
    m = supervised()
    end = time.monotonic() + 20
    while "the next one in 1 s" not in m.said():
        assert time.monotonic() < end
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if pid := m.daemon():
                os.kill(pid, signal.SIGKILL)
    (m.mnt / "file").write_text("x")  # waits
    assert (m.src / "file").read_text() == "x"
    m.holder.terminate()
    assert m.ends() == 0


@pytest.mark.parametrize("option", [
    "--transport=ring", "--writeback", "--cache=coherent", "--debug-fuse", "--zero-copy=on", "--sandbox=namespace"])
def test_refused(tmp_path, option):
    (tmp_path / "src").mkdir()
    (tmp_path / "mnt").mkdir()
    found = run("-f", "--supervise", option, tmp_path / "src", tmp_path / "mnt")
    assert found.returncode != 0
    assert "--supervise" in found.stderr
    assert not mounted(tmp_path / "mnt")


def test_no_set(supervised):
    m = supervised()
    found = run("set", m.mnt, "attr_timeout=2")
    assert found.returncode != 0
    assert "--supervise" in found.stderr


def test_in_the_background(tmp_path):
    src, mnt = tmp_path / "src", tmp_path / "mnt"
    src.mkdir()
    mnt.mkdir()
    assert run("--supervise", src, mnt).returncode == 0
    (mnt / "file").write_text("x")
    assert subprocess.run(["umount", mnt], check=False).returncode == 0
    until(lambda: not mounted(mnt), "it has ended")
