"""`passthru top`: as text, and on a terminal."""
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
from _daemon import Daemon, command, environment, run, until

pytestmark = pytest.mark.release_only("the Python around the compiled modules")


def test_batch(fs: Daemon):
    """What happens between two looks, and nothing else."""
    (fs.mnt / "before").mkdir()
    top = subprocess.Popen(
        command("top", fs.mnt, "--batch", "--count", "2", "--interval", "1.5"), env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 30
    while top.poll() is None and time.monotonic() < end:
        os.setxattr(fs.mnt / "before", "user.a", b"x")
        time.sleep(0.01)
    said, errors = top.communicate(timeout=10)
    assert (top.returncode, errors) == (0, "")
    frames = said.split("\n\n")
    assert len(frames) == 2 and all(f.startswith(f"{fs.src} on {fs.mnt}\n") for f in frames)
    rows = [{r.split()[0]: r.split() for r in f.splitlines()} for f in frames]
    assert float(rows[1]["SETXATTR"][1]) > 5 and rows[1]["MKDIR"][1] == "0"
    assert rows[1]["MKDIR"][3:6] == ["-", "-", "-"] and rows[1]["SETXATTR"][3] != "-"


def test_overview(fs: Daemon):
    done = run("top", "-n", "1", "-i", "0.1")
    assert done.returncode == 0 and any(line.split()[0] == str(fs.mnt) for line in done.stdout.splitlines())


def test_end_of_the_mount(fs: Daemon):
    top = subprocess.Popen(
        command("top", fs.mnt, "-b", "-i", "0.1"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True)
    assert top.stdout is not None and str(fs.mnt) in top.stdout.readline()
    fs.umount()
    _, said = top.communicate(timeout=20)
    assert (top.returncode, said) == (0, f"passthru: {fs.mnt}: the mount has ended\n")


def test_nobody_reads_on(fs: Daemon):
    top = subprocess.Popen(command("top", fs.mnt, "-b", "-i", "0.1"), env=environment(), stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE)
    assert top.stdout is not None and top.stderr is not None and top.stdout.readline()
    top.stdout.close()
    assert top.wait(20) == 0 and top.stderr.read() == b""
    top.stderr.close()


def on_terminal() -> None:
    """Of a child: stdin is its terminal, and an interrupt reaches it as from a shell (nohup(1) and & ignore it)."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str | Path, env: dict[str, str] | None = None):
        self.fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
        self.modes = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            command(*arguments), env={**(env or environment()), "TERM": "xterm"}, stdin=theirs, stdout=theirs,
            stderr=theirs, start_new_session=True,
            preexec_fn=on_terminal)
        self.theirs = theirs
        self.said = b""

    def read(self) -> bytes:
        while select.select([self.fd], [], [], 0)[0]:
            self.said += os.read(self.fd, 65536)
        return self.said

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)
        os.close(self.theirs)


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_screen(fs: Daemon, key: bytes):
    """Drawn again and again; q and Ctrl-C end it, and the terminal is as it was."""
    pytest.importorskip("rich", reason="rich is not installed")
    t = Terminal("top", fs.mnt, "-i", "0.2")
    try:
        until(lambda: t.read().count(b"requests/s") >= 3, "drawn three times", 30)
        assert b"q: quit" in t.said and str(fs.mnt).encode() in t.said
        assert termios.tcgetattr(t.theirs)[3] & (termios.ICANON | termios.ECHO) == 0
        os.write(t.fd, key)
        until(lambda: (t.read(), t.process.poll())[1] is not None, "ended", 15)
        assert t.process.returncode == 0 and b"Traceback" not in t.read()
        assert b"\x1b[?1049l" in t.said and b"\x1b[?25h" in t.said  # the other screen, and the cursor shown
        assert termios.tcgetattr(t.theirs) == t.modes
    finally:
        t.close()


def test_screen_without_rich(fs: Daemon, place: Path):
    """A readable line, and text."""
    (place / "rich").mkdir()
    (place / "rich" / "__init__.py").write_text("raise ImportError('none here')\n")
    env = environment()
    env["PYTHONPATH"] = f"{place}{os.pathsep}{env['PYTHONPATH']}"
    t = Terminal("top", fs.mnt, "-i", "0.1", "-n", "1", env=env)
    try:
        until(lambda: (t.read(), t.process.poll())[1] is not None, "ended", 30)
        lines = t.read().decode().splitlines()
        assert lines[0].startswith("passthru: no screen without the Python library rich (")
        assert lines[1] == f"{fs.src} on {fs.mnt}" and t.process.returncode == 0
    finally:
        t.close()


@pytest.mark.parametrize("arguments", [["-n", "0"], ["-n", "x"], ["-i", "0"], ["-i", "nan"], ["-i", "x"], ["a", "b"]])
def test_bad_input(arguments: list[str]):
    done = run("top", *arguments)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1


def test_no_such_mount(place: Path):
    done = run("top", place)
    assert done.returncode == 4 and "no passthru mount" in done.stderr
