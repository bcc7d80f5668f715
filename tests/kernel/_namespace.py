"""A mount namespace for tests: what is changed in /usr and /etc only its processes see, and it goes with it."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from _daemon import environment, is_keeper

SET_UP = r"""
set -e
mount -t tmpfs none "$1"
overlay() {
    mkdir -p "$1/$2/upper" "$1/$2/work"
    mount -t overlay -o "lowerdir=/$2,upperdir=$1/$2/upper,workdir=$1/$2/work" overlay "/$2"
}
if overlay "$1" usr 2>/dev/null; then
    overlay "$1" etc
else # no overlayfs: what the tests change there, as links to what was there, but for files that they would write to
    for d in usr/sbin usr/lib/systemd/system; do
        [ -d "/$d" ]
        mkdir -p "$1/was/$d" "$1/$d"
        mount --bind "/$d" "$1/was/$d"
        cp -as "$1/was/$d/." "$1/$d"
        find "$1/$d" -name '*passthru*' -delete
        mount --bind "$1/$d" "/$d"
    done
    mkdir -p "$1/etc"
    cp -a /etc/. "$1/etc"
    mount --bind "$1/etc" /etc
fi
echo ready
exec sleep 600
"""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Namespace:
    """Programs run in it with run(); its files are seen at path()."""

    def __init__(self, scratch: Path):
        """Raises OSError if it cannot be made."""
        scratch.mkdir()
        self.holder = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", SET_UP, "sh", str(scratch)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.holder.stdout is not None and self.holder.stderr is not None
        if self.holder.stdout.readline() != "ready\n":
            said = self.holder.stderr.read()
            self.close()
            raise OSError(said)

    def run(
        self, *command: str | os.PathLike[str], user: int = 0, env: dict[str, str] | None = None, **more: object
    ) -> subprocess.CompletedProcess[str]:
        """A program's end, run by that user."""
        words = ["nsenter", "-m", f"-t{self.holder.pid}", "--"]
        if user:
            words += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        words += map(os.fspath, command)
        return subprocess.run(  # type: ignore[call-overload]
            words, **{"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60,
                      "check": False, "env": environment() if env is None else env, **more})

    def ok(self, *command: str | os.PathLike[str], **more: object) -> str:
        """What a program says that must succeed, and say nothing on stderr."""
        done = self.run(*command, **more)  # type: ignore[arg-type]
        assert (done.returncode, done.stderr) == (0, ""), f"{command}: {done.returncode} {done.stderr}"
        return done.stdout

    def passthru(self, *args: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "passthru", *args)

    def path(self, inside: Path | str) -> Path:
        """A path of the namespace as this process can use it."""
        return Path(f"/proc/{self.holder.pid}/root{inside}")

    def mounted(self, target: Path) -> tuple[str, list[str]] | None:
        """(type, options) of the topmost mount at a path."""
        found = None
        for line in self.path(f"/proc/{self.holder.pid}/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            if left.split()[4] == str(target):
                kind, _, above = right.split()
                found = kind, left.split()[5].split(",") + above.split(",")
        return found

    def daemons(self) -> list[int]:
        """Processes that run in it, but for holder and keepers; a daemon may be in one of its own, not its keeper."""
        here = os.readlink(f"/proc/{self.holder.pid}/ns/mnt")
        found = []
        for name in os.listdir("/proc"):
            try:
                if name.isdigit() and os.readlink(f"/proc/{name}/ns/mnt") == here and int(name) != self.holder.pid:
                    found.append(parent_of(int(name)) if is_keeper(int(name)) else int(name))
            except OSError:
                continue
        return sorted(set(found))

    def unmount(self, targets: Sequence[Path]) -> None:
        for target in targets:
            while self.mounted(target):
                self.run("umount", "-l", target)

    def close(self) -> None:
        for pid in self.daemons():
            os.kill(pid, signal.SIGKILL)
        self.holder.kill()
        self.holder.wait()
        for stream in (self.holder.stdout, self.holder.stderr):
            assert stream is not None
            stream.close()


