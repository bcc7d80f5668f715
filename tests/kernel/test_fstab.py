"""mount(8), fstab(5) and the helpers that `passthru install-helper` installs."""
import ctypes
import os
import select
import shutil
import stat
import subprocess
import sys

import psutil
import pytest
from _daemon import command, environment, until
from _namespace import Namespace
from _users import NOBODY
from test_unprivileged import python_for_all

from passthru import mounting, stats
from passthru.status_page import process_owner

pytestmark = pytest.mark.release_only("the Python around the compiled modules")

HELPER = "/sbin/mount.passthru"
BOOT = {"PATH": "/usr/bin:/bin"}  # what a mount at boot has


@pytest.fixture
def transport() -> str:
    return "auto"


@pytest.fixture
def space(place):
    """A namespace with the helpers installed, a source with a file, and two mountpoints."""
    try:
        ns = Namespace(place / "namespace")
    except OSError as e:
        pytest.skip(f"no private /usr: {e}")
    (place / "src").mkdir()
    (place / "src" / "f").write_text("here")
    for name in ("mnt", "mnt2"):
        (place / name).mkdir()
    done = ns.passthru("install-helper")
    assert (done.returncode, done.stderr) == (0, "")
    yield ns
    ns.unmount([place / "mnt", place / "mnt2"])
    try:
        until(lambda: not ns.daemons(), "all daemons ended")
    finally:
        ns.close()
        (place / "namespace").rmdir()


@pytest.fixture
def fstab(space, place):
    """fstab(*lines): a file of such lines, with SRC, MNT and MNT2 in them replaced; /etc/fstab as well."""
    def write(*lines: str) -> str:
        text = "".join(
            line.replace("SRC", str(place / "src")).replace("MNT", str(place / "mnt")) + " 0 0\n" for line in lines)
        (place / "fstab").write_text(text)
        space.path("/etc/fstab").write_text(text)
        return str(place / "fstab")
    return write


def failed(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that a failed mount says."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("passthru: "), done.stderr
    return lines[0]


@pytest.mark.parametrize("kind", ["passthru", "fuse.passthru"])
def test_mount(space, place, kind):
    space.ok("mount", "-t", kind, place / "src", place / "mnt", "-o", "ro,nosuid,attr_timeout=5")
    assert (space.path(place) / "mnt" / "f").read_text() == "here"
    shown = space.mounted(place / "mnt")
    assert shown is not None and shown[0] == "fuse.passthru" and {"ro", "nosuid", "allow_other"} <= set(shown[1])
    space.ok("umount", place / "mnt")
    assert space.mounted(place / "mnt") is None


def test_verbose_says_what_serves(space, place):
    done = space.run("mount", "-v", "-t", "passthru", place / "src", place / "mnt")
    assert done.returncode == 0 and f"{place}/src on {place}/mnt: " in done.stderr and "transport" in done.stderr


def test_fake(space, place):
    space.ok("mount", "-f", "-t", "passthru", place / "src", place / "mnt")
    space.ok(HELPER, place / "none", place / "mnt", "-f", "-n", "-o", "rw")
    assert space.mounted(place / "mnt") is None
    failed(space.run(HELPER, place / "src", place / "mnt", "-f", "-o", "unknown"), 1)


def test_sloppy(space, place):
    failed(space.run("mount", "-t", "passthru", place / "src", place / "mnt", "-o", "unknown=1"), 1)
    space.ok("mount", "-s", "-t", "passthru", place / "src", place / "mnt", "-o", "unknown=1,noexec")
    shown = space.mounted(place / "mnt")
    assert shown is not None and "noexec" in shown[1]
    space.ok("umount", place / "mnt")
    said = failed(space.run("mount", "-s", "-t", "passthru", place / "src", place / "mnt", "-o", "queue_depth=x"), 1)
    assert "queue_depth" in said


def test_options_after_and_before(space, place):
    space.ok(HELPER, "-o", "ro", place / "src", "-n", place / "mnt", "-o", "noexec", "-t", "fuse.passthru")
    shown = space.mounted(place / "mnt")
    assert shown is not None and {"ro", "noexec"} <= set(shown[1])


@pytest.mark.parametrize("arguments, code, said", [
    (["none", "mnt"], 32, "source"), (["src", "none"], 32, "mountpoint"), (["src"], 1, "usage"),
    (["src", "mnt", "-Z"], 1, "usage"), (["src", "mnt", "-o"], 1, "usage"), (["src", "mnt", "third"], 1, "usage"),
    (["src", "mnt", "-o", "max_write=1"], 1, "max_write"), (["src", "mnt", "-N", "/none"], 32, "/none"),
    (["src", "mnt", "-o", "remount,ro"], 32, "not mounted"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_errors(space, place, arguments, code, said):
    """The exit codes are mount(8)'s."""
    words = [str(place / a) if a in ("none", "src", "mnt", "third") else a for a in arguments]
    assert said in failed(space.run(HELPER, *words, cwd="/"), code)
    assert space.mounted(place / "mnt") is None


def test_mount_hands_the_code_on(space, place):
    failed(space.run("mount", "-t", "passthru", place / "src", place / "mnt", "-o", "queue_depth=0"), 1)
    space.ok("mount", "-t", "passthru", place / "src", place / "mnt")
    assert "already" in failed(space.run("mount", "-t", "passthru", place, place / "mnt"), 32)
    assert (space.path(place) / "mnt" / "f").read_text() == "here"


def test_all_of_fstab(space, place, fstab):
    table = fstab(
        "SRC MNT passthru defaults,nofail,_netdev,x-systemd.requires-mounts-for=/,X-mount.mkdir,attr_timeout=3",
        "SRC MNT2 fuse.passthru noauto,bg,comment=words,ro")
    space.ok("mount", "--fstab", table, "-a")
    assert (space.path(place) / "mnt" / "f").read_text() == "here"
    assert space.mounted(place / "mnt2") is None
    space.ok("mount", "--fstab", table, "-a")  # what is mounted already is left alone
    assert len(space.daemons()) == 1
    space.ok("mount", "--fstab", table, place / "mnt2")
    shown = space.mounted(place / "mnt2")
    assert shown is not None and "ro" in shown[1]


def test_nofail_and_errors_of_all(space, place, fstab):
    (place / "mnt").rmdir()
    table = fstab("SRC MNT passthru nofail", "SRC MNT2 passthru defaults")
    done = space.run("mount", "--fstab", table, "-a")
    assert done.returncode in (0, 64)  # some succeeded
    assert space.mounted(place / "mnt2") is not None


def test_odd_names(space, place, fstab):
    names = [r"s\040p", "comma,and=", "é", 'q"uote']
    lines = []
    for name in names:
        real = name.replace(r"\040", " ")
        for end in ("src ", "mnt "):
            (place / (end + real)).mkdir()
        lines.append(rf'{place}/src\040{name} {place}/mnt\040{name} passthru fsname="a,b",ro')
    table = fstab(*lines)

    def here() -> list[tuple[str, str]]:
        """(source, target) of what is mounted in `place`; the machine has mounts of its own."""
        info = space.run("findmnt", "-rn", "-t", "fuse.passthru", "-o", "SOURCE,TARGET").stdout
        rows = (line.encode().decode("unicode_escape").encode("latin-1").decode() for line in info.splitlines())
        return [(source, target) for source, _, target in (row.partition(f" {place}/") for row in rows) if target]

    try:
        done = space.run("mount", "--fstab", table, "-a")
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(here()) == sorted(("a,b", "mnt " + name.replace(r"\040", " ")) for name in names)
    finally:
        for _, target in here():
            space.run("umount", "-l", place / target)


def test_at_boot(space, place):
    """No HOME, hardly a PATH, 0 to 2 closed, no terminal; and nothing is kept of who mounted."""
    done = space.run(
        "setsid", "sh", "-c", 'exec 9</dev/zero; exec mount -t passthru "$@" <&- >&- 2>&-', "sh", place / "src",
        place / "mnt", env=BOOT, cwd="/")
    assert done.returncode == 0
    assert (space.path(place) / "mnt" / "f").read_text() == "here"  # usable when mount returns
    (daemon,) = space.daemons()
    fds = {int(n): os.readlink(f"/proc/{daemon}/fd/{n}") for n in os.listdir(f"/proc/{daemon}/fd")}
    assert [fds[n] for n in (0, 1, 2)] == ["/dev/null"] * 3
    assert "/dev/zero" not in fds.values()
    assert os.readlink(f"/proc/{daemon}/cwd").endswith("/")
    assert os.getsid(daemon) == daemon
    space.ok("umount", place / "mnt")
    until(lambda: not space.daemons(), "ended")


def test_error_with_nothing_open(space, place):
    done = space.run("sh", "-c", 'exec mount -t passthru "$@" <&- >&- 2>&-', "sh", place / "none", place / "mnt",
                     env=BOOT)
    assert done.returncode == 32 and space.mounted(place / "mnt") is None


class TestRemount:
    def writes(self, space, place) -> bool:
        try:
            (space.path(place) / "mnt" / "new").write_text("x")
        except OSError:
            return False
        (place / "src" / "new").unlink()
        return True

    @pytest.mark.parametrize("how", ["fstab", "mountinfo", "both names"])
    def test_read_only_and_back(self, space, place, fstab, how):
        """By the helper with fstab's options, by the helper with those of mountinfo, by the kernel alone."""
        if how == "fstab":
            fstab("SRC MNT passthru noauto,queue_depth=9,attr_timeout=3,nodev")
            space.ok("mount", place / "mnt")
        else:
            space.ok("mount", "-t", "passthru", place / "src", place / "mnt", "-o", "queue_depth=9")
        ends = [place / "src", place / "mnt"] if how == "both names" else [place / "mnt"]
        with open(space.path(place) / "mnt" / "f") as f:
            for word, writable in (("ro", False), ("rw", True), ("ro", False)):
                space.ok("mount", "-o", f"remount,{word}", *ends)
                assert self.writes(space, place) == writable
                shown = space.mounted(place / "mnt")
                assert shown is not None and shown[1].count(word) == 2  # of the mount, and of its superblock
                assert ("nodev" in shown[1]) == (how == "fstab")
                assert f.read(1)

    def test_busy(self, space, place):
        space.ok("mount", "-t", "passthru", place / "src", place / "mnt")
        with open(space.path(place) / "mnt" / "f", "a"):
            assert "busy" in failed(space.run("mount", "-o", "remount,ro", place / "mnt"), 32)
        assert self.writes(space, place)

    def test_flags(self, space, place):
        space.ok("mount", "-t", "passthru", place / "src", place / "mnt")
        space.ok("mount", "-o", "remount,noexec,nosuid,nodev,nosymfollow", place / "mnt")
        shown = space.mounted(place / "mnt")
        assert shown is not None and {"rw", "noexec", "nosuid", "nodev", "nosymfollow"} <= set(shown[1])
        space.ok("mount", "-o", "remount,exec,suid", place / "mnt")
        shown = space.mounted(place / "mnt")
        assert shown is not None and "nodev" in shown[1] and not {"noexec", "nosuid"} & set(shown[1])

    @pytest.mark.parametrize("word", ["queue_depth=9", "noallow_other", "transport=dev", "noatime", "unknown=1"])
    def test_not_changeable(self, space, place, word):
        space.ok("mount", "-t", "passthru", place / "src", place / "mnt", "-o", "queue_depth=5")
        said = failed(space.run("mount", "-o", f"remount,ro,{word}", place / "mnt"), 1 if "unknown" in word else 32)
        assert word.partition("=")[0].removeprefix("no") in said
        assert self.writes(space, place)  # nothing half-done
        space.ok("mount", "-o", "remount,ro,queue_depth=5,transport=auto", place / "mnt")

    def test_timeouts(self, space, place):
        """What `passthru set` can change, a remount can; with flags, or not at all."""
        space.ok("mount", "-t", "passthru", place / "src", place / "mnt", "-o", "attr_timeout=7")

        def now() -> tuple[float, float]:
            settings = stats.of(place / "mnt").settings
            return settings["attr_timeout"], settings["entry_timeout"]
        first = now()
        assert first[0] == 7
        space.ok("mount", "-o", "remount,attr_timeout=3,entry_timeout=0,noexec", place / "mnt")
        assert now() == (3, 0)
        shown = space.mounted(place / "mnt")
        assert shown is not None and "noexec" in shown[1]
        for words, code in (("entry_timeout=9,queue_depth=77", 32), ("attr_timeout=x", 1)):
            failed(space.run("mount", "-o", f"remount,{words}", place / "mnt"), code)
            assert now() == (3, 0)
        with open(space.path(place) / "mnt" / "f", "a"):
            failed(space.run("mount", "-o", "remount,ro,attr_timeout=8", place / "mnt"), 32)
        assert now() == (3, 0)

    def test_by_a_user(self, space, place):
        space.ok("mount", "-t", "passthru", place / "src", place / "mnt")
        done = space.run(HELPER, place / "src", place / "mnt", "-o", "remount,ro", user=NOBODY)
        if done.returncode in (2, 126, 127):
            pytest.skip("an ordinary user cannot run this Python")
        assert "root" in failed(done, 1)
        assert self.writes(space, place)


def test_other_namespace(space, place):
    """mount -N: the helper runs outside, the mount is inside."""
    other = Namespace(place / "other")
    try:
        space.ok("mount", "-N", str(other.holder.pid), "-t", "passthru", place / "src", place / "mnt")
        assert space.mounted(place / "mnt") is None
        assert (other.path(place) / "mnt" / "f").read_text() == "here"
        other.ok("umount", place / "mnt")
        until(lambda: not other.daemons(), "ended")
    finally:
        other.close()
        (place / "other").rmdir()


class TestUsers:
    @pytest.fixture
    def user_space(self, space, place):
        """Helpers that any user can run, and a source and mountpoint of a user's."""
        fusermount = shutil.which("fusermount3")
        if fusermount is None or not os.stat(fusermount).st_mode & stat.S_ISUID:
            pytest.skip("no setuid fusermount3 (fuse3)")
        python = python_for_all()
        if python is None:
            pytest.skip("an ordinary user can run no Python with the package here")
        space.ok(python[0], "-m", "passthru", "install-helper", env=python[1])
        for name in ("src", "mnt"):
            os.chown(place / name, NOBODY, NOBODY)
        mode = os.stat("/dev/fuse").st_mode
        os.chmod("/dev/fuse", 0o666)
        yield space
        os.chmod("/dev/fuse", stat.S_IMODE(mode))

    def test_user_line(self, user_space, place, fstab):
        """A line with `user`: any user mounts it, and the same one unmounts it."""
        fstab("SRC MNT passthru noauto,user,exec", "SRC MNT2 passthru noauto")
        user_space.ok("mount", place / "mnt", user=NOBODY, env=BOOT, cwd="/")
        shown = user_space.mounted(place / "mnt")
        assert shown is not None and {f"user_id={NOBODY}", "nosuid", "nodev"} <= set(shown[1])
        assert "noexec" not in shown[1]
        (daemon,) = user_space.daemons()
        assert process_owner(daemon) == NOBODY
        as_user = ["sh", "-c", f"cat {place}/mnt/f && echo new >{place}/mnt/new"]
        assert user_space.ok(*as_user, user=NOBODY) == "here"
        assert user_space.run("umount", place / "mnt", user=NOBODY + 1).returncode != 0
        assert user_space.mounted(place / "mnt") is not None
        user_space.ok("umount", place / "mnt", user=NOBODY)
        until(lambda: not user_space.daemons(), "ended")

    def test_refused(self, user_space, place, fstab):
        """The mountpoint of somebody else: fusermount3 says no."""
        fstab("SRC MNT2 passthru noauto,user")
        done = user_space.run("mount", place / "mnt2", user=NOBODY, env=BOOT, cwd="/")
        assert "mnt2" in failed(done, 32)
        assert user_space.mounted(place / "mnt2") is None


class TestInstall:
    @pytest.fixture
    def install(self, place):
        def run(*args: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "passthru", "install-helper", "--prefix", place / "prefix", *args],
                env=environment(), capture_output=True, text=True, check=False, timeout=30)
        return run

    def test_by_another_prefix(self, install, place):
        done = install()
        assert done.returncode == 0 and "/sbin" in done.stderr
        script = place / "prefix/sbin/mount.passthru"
        assert stat.S_IMODE(script.stat().st_mode) == 0o755
        said = subprocess.run([script, "-V"], env=BOOT, cwd="/", capture_output=True, text=True, check=True).stdout
        assert said.startswith("mount.passthru (passthru ")
        assert install("--remove").returncode == 0
        assert not list((place / "prefix").iterdir())


@pytest.fixture
def automount_point(place):
    """An automount point as systemd makes them, of this process's group: all others wait for a mount there."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(place / "mnt")
    (place / "mnt").mkdir()
    (place / "src").mkdir()
    read_end, write_end = os.pipe()
    options = f"fd={write_end},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct".encode()
    r = libc.mount(b"systemd-1", target, b"autofs", 0, options)
    os.close(write_end)
    if r < 0:
        os.close(read_end)
        pytest.skip(f"no autofs: {os.strerror(ctypes.get_errno())}")
    yield read_end
    os.close(read_end)
    while libc.umount2(target, 2 | 8) == 0:  # umount(8) would wait as well
        pass


def test_automount(place, automount_point):
    """x-systemd.automount: making the mount does not ask for it."""
    process = subprocess.Popen(
        command(place / "src", place / "mnt"), env=environment(), stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        assert process.wait(20) == 0
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.kill()
        process.wait()
    assert not select.select([automount_point], [], [], 0)[0], "it has waited for itself"
    assert mounting.mounted_at(str(place / "mnt")).fstype == "fuse.passthru"


def test_installed_pages_are_of_the_mounts(space, place):
    """stats find a mount that mount(8) made."""
    space.ok("mount", "-t", "passthru", place / "src", place / "mnt", "-o", "queue_depth=3")
    assert stats.of(place / "mnt").settings["queue_depth"] == 3
