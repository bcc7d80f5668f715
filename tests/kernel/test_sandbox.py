"""--sandbox: what the daemon gives up, and that whoever takes it over does not get it back.

The attacker is code in the daemon itself: a program that mounts as the command does, but runs `attack` in the main
thread instead of waiting for the end.
"""
import ctypes
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from _daemon import environment, keepers, left_pages, mounted, open_files, until

from passthru import _confine, capabilities, monitor, mounting, sandbox

pytestmark = pytest.mark.release_only("the Python around the compiled modules")

DAEMON = """
import ctypes, errno, json, os, socket, struct, sys, time
from passthru import _confine, cli, session
libc = ctypes.CDLL(None, use_errno=True)
given = json.loads(sys.argv[1])

def call(name, *arguments):
    r = libc.syscall(_confine.CALLS[name], *arguments)
    return errno.errorcode[ctypes.get_errno()] if r < 0 else r

def tried(act):
    try:
        return act()
    except OSError as e:
        return errno.errorcode[e.errno]

def say(**found):
    sys.stderr.write(json.dumps(found) + "\\n")
    sys.stderr.flush()

def wait_for(path):
    end = time.monotonic() + 20
    while tried(lambda: os.stat(path)) == "ENOENT" and time.monotonic() < end:
        time.sleep(0.01)

serve = session.Session.serve
def attacked(self):
    attack(self)
    serve(self)
session.Session.serve = attacked
ATTACK
sys.exit(cli.main(sys.argv[2:]))
"""
SHARED = 'mount --make-rshared / && exec "$@"'


class Attacked:
    """A daemon with an attacker in it."""

    def __init__(self, place: Path, attack: str, *options: str, given: dict[str, object] | None = None,
                 source: Path | None = None, shared: bool = False):
        self.src, self.mnt = source or place / "src", place / "mnt"
        for path in (self.src, self.mnt):
            path.mkdir(exist_ok=True)
        program = DAEMON.replace("ATTACK", attack)
        before = ["unshare", "-m", "--propagation", "private", "sh", "-c", SHARED, "sh"] if shared else []
        self.log = place / "said"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-c", program, json.dumps(given or {}), "-f", *options, self.src, self.mnt],
                env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def said(self) -> str:
        return self.log.read_text()

    def found(self) -> dict[str, object]:
        """What the attacker has found; it goes on serving."""
        until(lambda: "\n{" in self.said() or self.process.poll() is not None, "attacked", 30)
        lines = [line for line in self.said().splitlines() if line.startswith("{")]
        assert lines, f"{self.process.poll()}: {self.said()}"
        return {k: v for line in lines for k, v in json.loads(line).items()}

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            subprocess.run(["umount", "-l", self.mnt], capture_output=True, check=False)


@pytest.fixture
def attacked(place):
    daemons = []

    def start(attack: str, *options: str, **more: object) -> Attacked:
        daemons.append(Attacked(place, attack, *options, **more))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.end()


@pytest.fixture
def filesystem(place):
    """A source that is a filesystem of its own."""
    (place / "src").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place / "src"], check=True)
    yield place / "src"
    subprocess.run(["umount", "-l", place / "src"], check=False)


def threads(pid: int) -> list[dict[str, str]]:
    """/proc/PID/status of each thread."""
    return [dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
            for task in Path(f"/proc/{pid}/task").iterdir()]


KEPT = sandbox.mask(*sandbox.KEPT)


@pytest.mark.parametrize("level", sandbox.LEVELS)
def test_levels(mount, level, transport):
    """Each is what it says, in every thread, also in those that are started later."""
    fs = mount("--sandbox", level)
    (fs.mnt / "f").write_bytes(b"x" * 100_000)
    fd = os.open(fs.mnt / "f", os.O_RDWR)
    os.fsync(fd)  # by a pool thread
    os.close(fd)
    assert f"sandbox {level}" in fs.stderr()
    assert monitor.status(monitor.find(str(fs.mnt)))["sandbox"] == level
    names = []
    for t in threads(fs.pid):
        names.append(t["Name"])
        assert t["NoNewPrivs"] == ("0" if level == "none" else "1")
        assert t["Seccomp"] == ("2" if level in ("seccomp", "namespace") else "0")
        if level != "none":
            assert int(t["CapEff"], 16) & ~KEPT == int(t["CapPrm"], 16) & ~KEPT == int(t["CapBnd"], 16) & ~KEPT == 0
            assert int(t["CapInh"], 16) == int(t["CapAmb"], 16) == 0
    assert "dev" in names and (transport == "dev" or "queue-0" in names)
    own = os.readlink(f"/proc/{fs.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    assert own == (level == "namespace")
    limits = Path(f"/proc/{fs.pid}/limits").read_text()
    assert ("Max core file size        0 " in limits) or level == "none"
    if level == "namespace":
        assert os.path.samefile(f"/proc/{fs.pid}/root", fs.src)
        table = Path(f"/proc/{fs.pid}/mountinfo").read_text().splitlines()
        assert len(table) == 1 and table[0].split()[4] == "/"


def test_auto_takes_the_most_that_is_right(mount):
    """A private mount's later submounts would not be seen in a namespace."""
    fs = mount()
    said = monitor.status(monitor.find(str(fs.mnt)))["sandbox"]
    here = mounting.mount_of(mounting.mounts(), str(fs.src))
    assert here is not None
    if here.shared:
        assert said == "namespace"
    else:
        assert said.startswith("seccomp (") and "private" in said


def test_auto_where_nothing_can_come_later(mount):
    fs = mount("-x")
    assert monitor.status(monitor.find(str(fs.mnt)))["sandbox"] == "namespace"


def test_one_file(mount, place):
    """Of a file as the source nothing is left but that, not even its directory."""
    (place / "file").write_text("x")
    (place / "at").write_text("")
    fs = mount(source=place / "file", mountpoint=place / "at")
    assert fs.mnt.read_text() == "x"
    assert monitor.status(monitor.find(str(fs.mnt)))["sandbox"] == "namespace"
    assert os.listdir(f"/proc/{fs.pid}/root/") == []
    (place / "at").write_text("longer")
    assert (place / "file").read_text() == "longer"


def test_submounts_come_and_go(attacked, place):
    """With a shared mount as the source what is mounted and unmounted below it appears, and is not held."""
    daemon = attacked("def attack(session): say(level=session.sandbox.level)", "-o", "entry_timeout=0",
                      "-o", "negative_timeout=0", shared=True)
    assert daemon.found() == {"level": "namespace"}

    (keeper,) = keepers(daemon.process.pid)

    def outside(*command: str) -> str:
        done = subprocess.run(
            ["nsenter", "-m", f"-t{keeper}", "--", *command], capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    (daemon.src / "sub").mkdir()
    outside("mount", "-t", "tmpfs", "none", str(daemon.src / "sub"))
    outside("sh", "-c", f"echo here >{daemon.src}/sub/f")
    assert outside("cat", f"{daemon.mnt}/sub/f") == "here\n"
    table = Path(f"/proc/{daemon.process.pid}/mountinfo").read_text()
    assert " /sub " in table
    outside("sh", "-c", f"for n in $(seq 100); do umount {daemon.src}/sub && exit; sleep 0.1; done; exit 1")
    assert " /sub " not in Path(f"/proc/{daemon.process.pid}/mountinfo").read_text()
    assert outside("ls", str(daemon.mnt / "sub")) == ""
    outside("umount", str(daemon.mnt))
    assert daemon.process.wait(20) == 0


def test_keeper(mount):
    """It has no more than it needs, and goes with its daemon."""
    fs = mount("--sandbox", "seccomp")
    (keeper,) = keepers(fs.pid)
    (t,) = threads(keeper)
    wanted = sandbox.mask(capabilities.CAP_SYS_ADMIN, capabilities.CAP_DAC_READ_SEARCH)
    assert int(t["CapPrm"], 16) == int(t["CapBnd"], 16) == wanted and t["NoNewPrivs"] == "1"
    assert open_files(keeper) == [0, 1, 2, 3]  # and a socket to the daemon
    fs.umount()
    assert fs.wait() == 0
    assert not Path(f"/proc/{keeper}").exists()


# -------------------------------------------------------------------- escapes

PATHS = """
def attack(session):
    up = []
    for name in os.listdir("."):
        path = name
        for _ in range(40):
            path += "/.."
            st = tried(lambda: os.stat(path))
            if isinstance(st, str):
                break
            up.append((st.st_dev, st.st_ino))
    say(root=sorted(os.listdir("/")), above=sorted(os.listdir("/..")), passwd=tried(lambda: open("/etc/passwd").read()),
        proc=tried(lambda: os.listdir("/proc")), init=tried(lambda: os.readlink("/proc/1/root")), up=up,
        others=[tried(lambda path=path: os.listdir(f"{_confine.PROC}/{path}"))
                for path in ("1/root", "1/cwd", "self/root")],
        core=tried(lambda: os.open(f"{_confine.PROC}/sys/kernel/core_pattern", os.O_WRONLY)),
        link=tried(lambda: open("/link").read()), relative=tried(lambda: open("/climbs").read()))
"""


def test_paths_lead_nowhere_else(attacked, place):
    (place / "src").mkdir()
    (place / "secret").write_text("secret")
    (place / "src" / "link").symlink_to(place / "secret")
    (place / "src" / "climbs").symlink_to("../secret")
    daemon = attacked(PATHS, "--sandbox", "namespace")
    found = daemon.found()
    assert found["root"] == found["above"] == ["climbs", "link"]
    assert found["passwd"] == found["proc"] == found["init"] == "ENOENT"
    assert found["others"] == ["ELOOP"] * 3 and found["core"] == "EROFS"
    assert found["link"] in ("ENOENT", "ELOOP") and found["relative"] in ("ENOENT", "ELOOP")
    outside = [(st.st_dev, st.st_ino) for st in map(os.stat, ("/", place, place.parent, "/dev", "/run", "/sys"))]
    assert not [at for at in found["up"] if tuple(at) in outside]


MOVED = """
def attack(session):
    inner = os.open("/a/b", os.O_RDONLY)
    os.mkdir("opened", dir_fd=os.open("/", os.O_RDONLY))
    wait_for("/moved")
    say(up=tried(lambda: os.listdir(os.open("..", os.O_RDONLY, dir_fd=inner))),
        further=tried(lambda: os.listdir(os.open("../../..", os.O_RDONLY, dir_fd=inner))),
        secret=tried(lambda: os.open("../secret", os.O_RDONLY, dir_fd=inner)))
"""


def test_out_of_a_directory_that_was_moved_away(attacked, place):
    """Its '..' leads to where it is now, for others."""
    (place / "src" / "a" / "b").mkdir(parents=True)
    (place / "away").mkdir()
    (place / "away" / "secret").write_text("secret")
    daemon = attacked(MOVED, "--sandbox", "namespace")
    until(lambda: (place / "src" / "opened").exists() or daemon.process.poll() is not None, "opened")
    os.rename(place / "src" / "a" / "b", place / "away" / "b")
    (place / "src" / "moved").mkdir()
    assert daemon.found() == {"up": "ENOENT", "further": "ENOENT", "secret": "ENOENT"}


HANDLES = """
def attack(session):
    opened = []
    for handle in given["handles"]:
        kind, data = handle[0], bytes.fromhex(handle[1])
        room = ctypes.create_string_buffer(struct.pack("=Ii", len(data), kind) + data)
        for name in os.listdir("."):
            if int(name) in (1, 2):  # the test's own file
                continue
            r = call("open_by_handle_at", int(name), room, os.O_RDONLY)
            if not isinstance(r, str):
                opened.append((given["handles"].index(handle), int(name), os.readlink(name)))
    say(opened=opened)
"""


def handle(path: str | os.PathLike[str]) -> tuple[int, str]:
    """name_to_handle_at(2): its type and bytes."""
    room = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    number = _confine.CALLS["name_to_handle_at"]
    r = libc.syscall(number, -100, os.fsencode(path), room, ctypes.byref(mount), 0)
    if r < 0:
        pytest.skip(f"{path}: no file handles there")
    size, kind = struct.unpack_from("=Ii", room)
    return kind, room.raw[8:8 + size].hex()


def test_handles_of_other_filesystems(attacked, place, filesystem):
    """The daemon may open by handle, but has nothing open of another filesystem than the source's."""
    (filesystem / "f").write_text("x")
    (place / "secret").write_text("x")
    Path("/run/passthru").mkdir(mode=0o700, exist_ok=True)
    others = [handle(p) for p in (place / "secret", "/dev/null", "/run/passthru", "/etc/passwd")]
    daemon = attacked(HANDLES, "--sandbox", "namespace", source=filesystem,
                      given={"handles": [*others, handle(filesystem / "f")]})
    opened = daemon.found()["opened"]
    assert opened and {n for n, _, _ in opened} == {len(others)}, opened


DEVICES = """
def attack(session):
    os.mknod("/device", 0o60666, given["disk"])
    os.mknod("/zero", 0o20666, given["zero"])
    say(device=tried(lambda: os.open("/device", os.O_RDONLY)), zero=tried(lambda: os.open("/zero", os.O_RDONLY)),
        below=tried(lambda: os.open("/sub/zero", os.O_RDONLY)))
"""


def test_device_nodes(attacked, place):
    """What the daemon makes or finds is opened by nobody there; callers use their own kernel's."""
    disk = next((os.stat(p).st_rdev for p in Path("/dev").iterdir() if p.is_block_device()), 0x100)
    zero = os.stat("/dev/zero").st_rdev
    (place / "src" / "sub").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", place / "src" / "sub"], check=True)
    os.mknod(place / "src" / "sub" / "zero", stat.S_IFCHR | 0o666, zero)
    daemon = attacked(DEVICES, "--sandbox", "namespace", given={"disk": disk, "zero": zero})
    assert daemon.found() == {"device": "EACCES", "zero": "EACCES", "below": "EACCES"}
    for path in ("zero", "sub/zero"):
        assert os.stat(daemon.mnt / path).st_rdev == zero
        assert (daemon.mnt / path).open("rb").read(3) == b"\0\0\0"
    daemon.end()
    subprocess.run(["umount", "-l", place / "src" / "sub"], check=True)


def test_nodev_of_the_source_is_kept(mount, place):
    """It is told from the daemon's own."""
    (place / "src").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nodev", "none", place / "src"], check=True)
    os.mknod(place / "src" / "zero", stat.S_IFCHR | 0o666, os.stat("/dev/zero").st_rdev)
    fs = mount("--sandbox", "namespace")
    with pytest.raises(PermissionError):
        (fs.mnt / "zero").open("rb").read(1)
    fs.umount()
    assert fs.wait() == 0
    subprocess.run(["umount", place / "src"], check=True)


def test_symlink_and_rename_races(mount, place):
    """While directories become links, and go away and come back, callers see nothing from outside."""
    inside, outside = place / "src" / "d", place / "outside"
    inside.mkdir(parents=True)
    outside.mkdir()
    (inside / "f").write_text("inside")
    (outside / "f").write_text("outside")
    (place / "src" / "link").symlink_to("../outside")
    fs = mount("--sandbox", "namespace", "--cache", "never")
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            os.rename(inside, place / "src" / "was")
            os.rename(place / "src" / "link", inside)
            os.rename(inside, place / "src" / "link")
            os.rename(place / "src" / "was", place / "away")
            os.rename(place / "away", inside)

    thread = threading.Thread(target=change)
    thread.start()
    seen = set()
    try:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            try:
                d = os.open(fs.mnt / "d", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                f = os.open("f", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=d)
                seen.add(os.read(f, 100))
                os.close(f)
            except OSError:
                pass
            finally:
                os.close(d)
    finally:
        over.set()
        thread.join()
    assert seen == {b"inside"}


# -------------------------------------------------------------------- violations

@pytest.mark.parametrize(("name", "arguments"), [
    ("execve", "b'/bin/true', 0, 0"), ("mount", "0, b'/', 0, 0, 0"), ("umount2", "b'/', 2"), ("ptrace", "0, 1, 0, 0"),
    ("socket", "2, 1, 0"), ("unshare", "0x20000"), ("setns", "0, 0"), ("io_uring_setup", "1, 0"), ("chroot", "b'/'"),
    ("pivot_root", "b'.', b'.'"), ("bpf", "0, 0, 0"), ("kill", "1, 0"), ("clone", "17, 0, 0, 0, 0"),
    ("prctl", "4, 1, 0, 0, 0"), ("mmap", "0, 4096, 7, 0x22, -1, 0"), ("rt_sigaction", "31, 0, 0, 8"),
    ("ioctl", "0, 0xC0045877, 0"), ("fsopen", "b'tmpfs', 0"),
])
def test_violation(attacked, name, arguments):
    """What a daemon has no use for ends it, with a word about it."""
    daemon = attacked(f"def attack(session): call('{name}', {arguments})", "--sandbox", "seccomp", "-o", "auto_unmount")
    assert daemon.process.wait(20) == -signal.SIGSYS
    assert f"({name}) is not among those of this daemon" in daemon.said()
    until(lambda: not mounted(daemon.mnt), "unmounted")
    until(lambda: not left_pages(daemon.process.pid), "its page has gone")


def test_violation_by_a_serving_thread(attacked):
    """Their signals are blocked, but not this one."""
    daemon = attacked("""
import threading
def attack(session):
    def violate():
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGSYS])
        call('socket', 2, 1, 0)
    threading.Thread(target=violate).start()
    time.sleep(5)
""", "--sandbox", "seccomp", "-o", "auto_unmount")
    assert daemon.process.wait(20) == -signal.SIGSYS
    assert "(socket) is not among" in daemon.said()


@pytest.mark.parametrize("level", ["caps", "seccomp", "namespace"])
def test_nobody_looks_into_it(mount, level):
    """No memory and no core of it for processes of its own user without CAP_SYS_PTRACE."""
    fs = mount("--sandbox", level)
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", "head", "-c1", f"/proc/{fs.pid}/mem"],
        capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "Permission denied" in done.stderr


def test_what_cannot_be_had_is_said(place):
    """Asked for by name, it is an error."""
    (place / "src").mkdir()
    (place / "mnt").mkdir()
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-m", "passthru", "-f",
         "--sandbox", "namespace", place / "src", place / "mnt"],
        env=environment(), capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode != 0 and "--sandbox namespace: " in done.stderr
    assert not mounted(place / "mnt")
