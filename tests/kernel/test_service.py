"""As a systemd service: readiness, the unit template, and what fstab's generator makes of our lines."""
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from _daemon import environment, mounted, until

pytestmark = pytest.mark.release_only("the Python around the compiled modules")

GENERATOR = Path("/usr/lib/systemd/system-generators/systemd-fstab-generator")


@pytest.fixture
def prefix(place):
    """The helpers and the unit, installed in the test's own place."""
    subprocess.run(
        [sys.executable, "-m", "passthru", "install-helper", "--prefix", place / "pre fix"], env=environment(),
        check=True, capture_output=True, timeout=30)
    return place / "pre fix"


@pytest.fixture
def transport() -> str:
    return "auto"


def exec_start(prefix: Path, variables: dict[str, str]) -> list[str]:
    """The unit's command line, as systemd makes it."""
    text = (prefix / "lib/systemd/system/passthru@.service").read_text()
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    path, rest = line.removeprefix('ExecStart="').split('" ')
    words = [path, *rest.split()]
    for name, value in variables.items():
        words = [value if w == f"${{{name}}}" else w for w in words]
    return words


class Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, address: str):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self.socket.settimeout(20)
        self.env = {"PATH": "/usr/bin:/bin", "NOTIFY_SOCKET": address}

    def told(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())


@pytest.fixture(params=["path", "abstract"])
def manager(request, place):
    manager = Manager(str(place / "notify") if request.param == "path" else f"@passthru-{os.getpid()}")
    yield manager
    manager.socket.close()


@pytest.mark.parametrize("end", ["umount", "signal"])
def test_readiness(prefix, place, manager, end):
    """Ready when the mount is usable, and not before; stopping when it ends."""
    (place / "src").mkdir()
    (place / "src" / "f").write_text("here")
    (place / "mnt").mkdir()
    words = exec_start(prefix, {
        "SOURCE": str(place / "src"), "MOUNTPOINT": str(place / "mnt"), "OPTIONS": "ro,noexec"})
    process = subprocess.Popen(words, env=manager.env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        told = manager.told()
        assert told["READY"] == "1" and f"{place}/src on {place}/mnt" in told["STATUS"]
        assert (place / "mnt" / "f").read_text() == "here"
        if end == "umount":
            subprocess.run(["umount", place / "mnt"], check=True)
        else:
            process.send_signal(signal.SIGTERM)
        assert manager.told() == {"STOPPING": "1"}
        assert process.wait(10) == 0
        assert not mounted(place / "mnt")
    finally:
        process.kill()
        process.communicate()


def test_failure(prefix, place, manager):
    (place / "mnt").mkdir()
    words = exec_start(prefix, {"SOURCE": str(place / "none"), "MOUNTPOINT": str(place / "mnt"), "OPTIONS": ""})
    done = subprocess.run(
        words, env=manager.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 32
    told = manager.told()
    assert "READY" not in told and "No such file" in told["STATUS"]


def test_nobody_listens(prefix, place):
    """A manager that has gone does not end the service."""
    (place / "src").mkdir()
    (place / "mnt").mkdir()
    words = exec_start(prefix, {"SOURCE": str(place / "src"), "MOUNTPOINT": str(place / "mnt"), "OPTIONS": ""})
    process = subprocess.Popen(words, env={"NOTIFY_SOCKET": str(place / "none")}, stderr=subprocess.DEVNULL)
    try:
        until(lambda: mounted(place / "mnt"), "mounted")
        subprocess.run(["umount", place / "mnt"], check=True)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_unit_is_right(prefix):
    template = prefix / "lib/systemd/system/passthru@.service"
    shutil.copy(template, template.parent / "passthru@data.service")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", template.parent / "passthru@data.service"], capture_output=True,
        text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not GENERATOR.exists(), reason="no systemd-fstab-generator")
@pytest.mark.parametrize("kind", ["passthru", "fuse.passthru"])
def test_fstab_generator(place, kind):
    """A line becomes a mount unit of our type, with our options, ordered as its x-systemd words say."""
    (place / "fstab").write_text(
        f"/srv/data /mnt/data {kind} ro,attr_timeout=5,nofail,x-systemd.requires-mounts-for=/srv 0 0\n"
        f"/srv/net /mnt/net {kind} _netdev,x-systemd.automount,x-systemd.mount-timeout=30 0 0\n"
        f"/srv/no /mnt/no {kind} noauto 0 0\n")
    for name in ("normal", "early", "late"):
        (place / name).mkdir()
    done = subprocess.run(
        [GENERATOR, *(place / n for n in ("normal", "early", "late"))], capture_output=True, text=True, check=False,
        env={**os.environ, "SYSTEMD_FSTAB": str(place / "fstab")}, timeout=30)
    if not (place / "normal/mnt-data.mount").exists():
        pytest.skip(f"this generator does not take SYSTEMD_FSTAB: {done.stderr}")
    unit = (place / "normal/mnt-data.mount").read_text().splitlines()
    assert {"What=/srv/data", "Where=/mnt/data", f"Type={kind}", "RequiresMountsFor=/srv"} <= set(unit)
    options = next(line for line in unit if line.startswith("Options=")).removeprefix("Options=").split(",")
    assert {"ro", "attr_timeout=5"} <= set(options)
    assert (place / "normal/local-fs.target.wants/mnt-data.mount").exists()  # nofail: wanted, not required
    assert (place / "normal/remote-fs.target.requires/mnt-net.automount").exists()
    assert "TimeoutSec=30s" in (place / "normal/mnt-net.mount").read_text()
    assert not list(place.glob("normal/*.target.*/mnt-no.mount"))
