"""Mounting as an ordinary user, by fusermount3."""
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import pytest
from _daemon import START, environment, keepers, mounted, open_files, until
from _users import NOBODY, as_user

from passthru import control, monitor

USER = {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def python_for_all() -> tuple[str, dict[str, str]] | None:
    """An interpreter of this version, and its environment, that any user can run the package with."""
    env = environment() | {"HOME": "/"}
    env.pop("XDG_RUNTIME_DIR", None)
    packages = Path(numpy.__file__).parent.parent
    env["PYTHONPATH"] += f"{os.pathsep}{packages}"
    for program in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            subprocess.run(
                [program, "-c", "import passthru.session"], env=env, check=True, capture_output=True, **USER)
        except (OSError, subprocess.CalledProcessError):
            continue
        return program, env
    return None


@pytest.fixture
def users_mount(mount, place):
    """The fixture's mount, run by a user of no privileges in a place of that user's."""
    helper = shutil.which("fusermount3")
    if helper is None or not os.stat(helper).st_mode & 0o4000:
        pytest.skip("no setuid fusermount3 (fuse3)")
    python = python_for_all()
    if python is None:
        pytest.skip("an ordinary user can run no Python with the package here")
    for name in ("src", "mnt"):
        (place / name).mkdir()
        os.chown(place / name, NOBODY, NOBODY)
    log = place / "log"
    log.touch()
    process = None
    mode = os.stat("/dev/fuse").st_mode
    os.chmod("/dev/fuse", 0o666)  # as udev has it; fusermount3 opens it as the user

    def start(
        transport: str, *ends: Path, options: tuple[str, ...] = (), become: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """become: a command of root's that becomes the user and runs its arguments, in place of our doing so."""
        nonlocal process
        with open(log, "wb") as f:
            process = subprocess.Popen(
                [*become, python[0], "-m", "passthru", "-f", "--transport", transport, *options,
                 *(ends or (place / "src", place / "mnt"))],
                env=python[1], stdin=subprocess.DEVNULL, stderr=f, cwd="/", **({} if become else USER))
        until(lambda: START.search(log.read_text()) or process.poll() is not None, "mounted", 60)
        assert process.poll() is None, log.read_text()
        return process

    yield start
    os.chmod("/dev/fuse", mode & 0o7777)
    if process is not None:
        if mounted(place / "mnt"):
            subprocess.run(["umount", "-l", place / "mnt"], check=False)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail("the daemon did not end")


def as_nobody(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/", **USER).stdout


def test_mount_use_unmount(users_mount, place, transport):
    process = users_mount(transport)
    as_nobody("sh", "-c", f"echo hello >{place}/mnt/f && mkdir {place}/mnt/d && ls -l {place}/mnt")
    assert (place / "src" / "f").read_text() == "hello\n"
    assert os.stat(place / "src" / "f").st_uid == NOBODY
    (keeper,) = keepers(process.pid)
    assert open_files(keeper) == [0, 1, 2, 3]  # none of them keeps the mountpoint busy
    with pytest.raises(PermissionError):  # not even root, without allow_other
        os.listdir(place / "mnt")
    as_nobody("fusermount3", "-u", place / "mnt")
    assert process.wait(10) == 0
    assert not mounted(place / "mnt")
    assert len((place / "log").read_text().splitlines()) == 1


def test_signal(users_mount, place, transport):
    process = users_mount(transport)
    as_nobody("touch", place / "mnt" / "f")
    process.terminate()
    assert process.wait(10) == 0
    assert not mounted(place / "mnt")


def test_mountpoint_of_somebody_else(users_mount, place, transport):
    """fusermount3's refusal is the command's."""
    os.chown(place / "mnt", 0, 0)
    with pytest.raises(AssertionError):
        users_mount(transport)
    lines = (place / "log").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("passthru: ")
    assert not mounted(place / "mnt")


PROGRAM = """\
import os, sys
import passthru
src, mnt, transport = sys.argv[1:]
m = passthru.mount(src, mnt, transport=transport)
with open(mnt + "/f", "w") as f:
    try:
        m.unmount()
    except OSError as e:
        print(e.strerror)
print(m.stats().transport, os.stat(mnt + "/f").st_uid)
m.unmount()
with passthru.mount(src, mnt, transport=transport):
    print(os.listdir(mnt))
"""


def test_python_api(users_mount, place, transport):
    python = python_for_all()
    assert python is not None  # the fixture has seen to that
    (place / "run").mkdir(0o700)
    os.chown(place / "run", NOBODY, NOBODY)
    said = subprocess.run(
        [python[0], "-c", PROGRAM, place / "src", place / "mnt", transport],
        env=python[1] | {"XDG_RUNTIME_DIR": str(place / "run")}, cwd="/", text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60, check=True, **USER).stdout
    assert said == f"Device or resource busy\n{transport} {NOBODY}\n['f']\n"
    assert not mounted(place / "mnt")


def test_one_file(users_mount, place, transport):
    (place / "src" / "image").write_bytes(b"image")
    (place / "mnt" / "here").touch()
    for path in ("src/image", "mnt/here"):
        os.chown(place / path, NOBODY, NOBODY)
    process = users_mount(transport, place / "src" / "image", place / "mnt" / "here")
    assert as_nobody("cat", place / "mnt" / "here") == "image"
    as_nobody("sh", "-c", f"echo more >>{place}/mnt/here")
    assert (place / "src" / "image").read_bytes() == b"imagemore\n"
    as_nobody("fusermount3", "-u", place / "mnt" / "here")
    assert process.wait(10) == 0
    assert (place / "mnt" / "here").read_bytes() == b""


def test_one_file_over_itself(users_mount, place, transport):
    image = place / "src" / "image"
    image.write_bytes(b"image")
    os.chown(image, NOBODY, NOBODY)
    process = users_mount(transport, image, image)
    as_nobody("sh", "-c", f"echo more >>{image}")
    process.terminate()
    assert process.wait(10) == 0
    assert image.read_bytes() == b"imagemore\n"


@pytest.fixture
def user_allow_other(place):
    """Users may let others in, for the time of a test."""
    conf = Path("/etc/fuse.conf")
    if not conf.exists():
        pytest.skip("no /etc/fuse.conf to put another one over")
    (place / "fuse.conf").write_text("user_allow_other\n")
    subprocess.run(["mount", "--bind", place / "fuse.conf", conf], check=True)
    yield
    subprocess.run(["umount", conf], check=True)


def test_allow_root(users_mount, place, transport, user_allow_other):
    """The owner and root, and nobody else, not even to names that the kernel has just seen."""
    process = users_mount(transport, options=("-o", "allow_root"))
    file = place / "mnt" / "f"
    as_nobody("sh", "-c", f"echo hello >{file} && mkdir {place}/mnt/d && ls -lR {place}/mnt")
    assert file.read_text() == "hello\n" and os.listdir(place / "mnt" / "d") == []
    act = {
        "list": lambda: os.listdir(place / "mnt"), "stat": lambda: os.stat(file), "read": file.read_text,
        "make": (place / "mnt" / "g").touch, "absent": lambda: os.stat(place / "mnt" / "absent"),
    }
    for what, attempt in act.items():
        os.stat(file)
        with pytest.raises(OSError, match="Permission denied"):
            as_user(NOBODY - 1, NOBODY - 1, [], attempt)
            pytest.fail(f"may {what}")
    as_nobody("fusermount3", "-u", place / "mnt")
    assert process.wait(10) == 0


def test_auto_unmount(users_mount, place, transport):
    process = users_mount(transport, options=("-o", "auto_unmount"))
    as_nobody("touch", place / "mnt" / "f")
    process.kill()
    process.wait(10)
    until(lambda: not mounted(place / "mnt"), "unmounted")


def test_zero_copy(users_mount, place, transport):
    """It is for who has CAP_SYS_ADMIN: asked for, it is an error before anything is mounted; else data is copied."""
    if transport == "dev":
        pytest.skip("zero-copy is of the ring")
    with pytest.raises(AssertionError):
        users_mount(transport, options=("--zero-copy=on",))
    lines = (place / "log").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("passthru: ") and "zero-copy" in lines[0], lines
    assert not mounted(place / "mnt")
    users_mount(transport, options=("--zero-copy=auto",))
    assert "zero-copy" not in (place / "log").read_text()
    as_nobody("sh", "-c", f"seq 100000 >{place}/mnt/f && cmp {place}/mnt/f {place}/src/f")


def make_each(where: Path) -> None:
    """One of each kind that a mode is asked for, as generous as it can be."""
    os.close(os.open(where / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
    os.close(os.open(where / "program", os.O_CREAT | os.O_RDWR, 0o777))
    os.mkdir(where / "directory", 0o777)
    os.mkdir(where / "sticky", 0o1777)
    os.mkfifo(where / "fifo", 0o666)
    os.mknod(where / "node", stat.S_IFREG | 0o666)
    os.chdir(where)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
    fd = os.open(where, os.O_TMPFILE | os.O_RDWR, 0o666)
    os.link(f"/proc/self/fd/{fd}", where / "tmpfile", src_dir_fd=fd)  # any dir_fd: has it follow
    os.close(fd)
    os.symlink("nowhere", where / "symlink")
    os.close(os.open(where / "directory" / "inner", os.O_CREAT | os.O_RDWR, 0o666))


def modes_and_acls(where: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for path in sorted(where.rglob("*")):
        st = os.lstat(path)
        acls = {n: os.getxattr(path, n, follow_symlinks=False).hex() for n in os.listxattr(path, follow_symlinks=False)}
        found[str(path.relative_to(where))] = (oct(st.st_mode), st.st_uid, acls)
    return found


def compare_what_is_made(place: Path, acl: str) -> None:
    """Each umask in directories of its own, in the bare source and in the mount, in turn."""
    if acl and shutil.which("setfacl") is None:
        pytest.skip("setfacl is not installed (acl)")
    (place / "bare").mkdir()
    for umask in (0o022, 0o077, 0, 0o027, 0o777):
        for where in (place / "bare", place / "src"):
            (where / f"{umask:o}").mkdir()
            os.chown(where / f"{umask:o}", NOBODY, NOBODY)
            if acl and subprocess.run(["setfacl", "-d", "-m", acl, where / f"{umask:o}"], check=False).returncode:
                pytest.skip("the source's filesystem has no ACLs")
        for where in (place / "bare", place / "mnt"):
            try:
                as_user(NOBODY, NOBODY, [], lambda d=where / f"{umask:o}": make_each(d), umask)
            except PermissionError:  # "inner", in a directory that gives its owner nothing
                assert umask == 0o777 and not acl
    bare, mounted = modes_and_acls(place / "bare"), modes_and_acls(place / "src")
    assert len(bare) > 50 and bare == mounted


@pytest.mark.parametrize("acl", ["", "u::rwx,g::rwx,o::rwx", f"u:{NOBODY - 1}:rwx,g::r-x,o::---"],
                         ids=["no default ACL", "generous default ACL", "default ACL"])
def test_umask(users_mount, place, transport, acl):
    """A default ACL takes the umask's place, whoever's daemon it is."""
    users_mount(transport)
    compare_what_is_made(place, acl)


# unshare(2) fails, as in many containers: by a filter that root makes, since a user's would disarm fusermount3.
NO_UNSHARE = """
import ctypes, os, struct, sys
code = b"".join(struct.pack("HBBI", *i) for i in (
    (0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (6, 0, 0, 0x50001), (6, 0, 0, 0x7fff0000)))
text = ctypes.create_string_buffer(code)
libc = ctypes.CDLL(None)
assert libc.prctl(22, 2, struct.pack("HxxxxxxP", 4, ctypes.addressof(text)), 0, 0) == 0 and libc.unshare(0x200) == -1
os.setgroups([]), os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
os.execvp(sys.argv[3], sys.argv[3:])
"""


def test_umask_without_unshare(users_mount, place, transport):
    """Threads that share a umask leave it to the kernel. What is made under a default ACL then has the umask on top."""
    number = {"x86_64": 272, "aarch64": 97}.get(platform.machine())
    if number is None:
        pytest.skip("the number of unshare(2) is not known here")
    users_mount(transport, become=(sys.executable, "-c", NO_UNSHARE, str(number), str(NOBODY)))
    compare_what_is_made(place, "")


USERS_ROOT = """
cd /
"$@" 2>"$0/log" &
daemon=$!
for _ in $(seq 200); do
    [ -s "$0/log" ] && break
    sleep 0.1
done
if kill -0 $daemon 2>/dev/null; then
    seq 100000 >"$0/mnt/f" && cmp "$0/mnt/f" "$0/src/f" && umount "$0/mnt" || kill -9 $daemon
fi
wait $daemon
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed (util-linux)")
@pytest.mark.parametrize("zero_copy, code", [("on", 5), ("auto", 0)])
def test_root_of_a_user_namespace(place, transport, zero_copy, code):
    """Its CAP_SYS_ADMIN is none for the kernel: zero-copy, asked for, is an error, else data is copied by the ring."""
    if transport == "dev":
        pytest.skip("zero-copy is of the ring")
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    (place / "src").mkdir()
    (place / "mnt").mkdir()
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", USERS_ROOT, place, sys.executable, "-m", "passthru", "-f", "--transport",
         transport, f"--zero-copy={zero_copy}", place / "src", place / "mnt"],
        env=environment(), capture_output=True, text=True, timeout=90, check=False)
    said = (place / "log").read_text()
    assert done.returncode == code, said + done.stderr
    assert len(said.splitlines()) == 1, said
    if code:
        assert "zero-copy" in said
    else:
        assert START.search(said) and "zero-copy" not in said
        assert (place / "src" / "f").stat().st_size > 100_000


def test_root_sees_and_changes_it(users_mount, place):
    """Root lists the mounts of all users, and may change their options."""
    with tempfile.TemporaryDirectory(dir="/tmp") as d:
        os.chmod(d, 0o777)
        as_nobody("sh", "-c", f": >{d}/f")
        if os.stat(Path(d) / "f").st_uid != NOBODY:
            pytest.skip("/tmp does not keep a new file's owner (hostfs), so whose status page it has is not known")
    process = users_mount("dev")
    found = next(m for m in monitor.find_all() if m.mountpoint == str(place / "mnt"))
    assert (found.state, found.owner) == (monitor.MOUNTED, NOBODY)
    assert found.page is not None and found.page.pid == process.pid
    assert control.ask_set(found.page, ["spin_us=3"])["spin_us"] == 3
    assert monitor.find(str(place / "mnt")).live().settings["spin_us"] == 3
