"""passthru check: what it says is what a mount does, and it leaves nothing."""
import json
import os
import shutil
import subprocess

import pytest
from _daemon import START, detach, mounts_below, run
from _namespace import Namespace
from _users import NOBODY
from test_unprivileged import python_for_all

from passthru import mounting, status_page
from passthru.transport import PARAMETER, ring_parameter

pytestmark = pytest.mark.release_only("the Python around the compiled modules")

USER = {"user": NOBODY, "group": NOBODY, "extra_groups": []}


@pytest.fixture
def ends(place):
    (place / "src").mkdir()
    (place / "src" / "f").write_text("x")
    (place / "mnt").mkdir()
    return place / "src", place / "mnt"


def checked(*args) -> tuple[int, dict]:
    """(exit code, the JSON object)."""
    done = run("check", "--json", *args)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def by_name(said: dict) -> dict[str, dict]:
    return {c["name"]: c for c in said["checks"]}


def test_machine():
    code, said = checked()
    assert code == 0 and said["works"] and said["exit_code"] == 0
    rows = by_name(said)
    assert {"kernel", "FUSE protocol", "FUSE over io_uring", "io_uring", "privileges", "locked memory", "open files",
            "fusermount3", "user_allow_other", "kernel passthrough", "zero-copy"} <= set(rows)
    assert os.uname().release in rows["kernel"]["value"]
    assert rows["FUSE protocol"]["state"] == "ok" and rows["FUSE protocol"]["value"].startswith("7.")
    assert (rows["FUSE over io_uring"]["state"] == "ok") == (ring_parameter() == "Y")
    assert all(c["state"] in ("ok", "missing", "note") for c in said["checks"])
    assert all(c["cure"] for c in said["checks"] if c["state"] == "missing")


def test_table(ends):
    done = run("check", *ends)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"works: {ends[0]} on {ends[1]}: ")


@pytest.mark.parametrize("options", [[], ["-o", "queue_depth=3,nopassthrough"], ["-o", "transport=dev"]], ids=str)
def test_says_what_the_mount_is(mount, place, options):
    """The result's line is the start line of the same mount."""
    fs = mount(started=False)
    code, said = checked(*options, fs.src, fs.mnt)
    assert code == 0 and said["works"]
    assert not mounts_below(place)
    assert [p.name for p in status_page.directory().iterdir() if status_page.UNNAMED.fullmatch(p.name)] == []
    fs.transport = "dev" if "transport=dev" in options or ring_parameter() != "Y" else "ring"
    fs.command[1:-2] = ["-m", "passthru", "-f", *options]
    fs.start()
    line = START.search(fs.stderr())
    assert line is not None and line.group() == f"passthru: {said['result']}"


@pytest.fixture
def transport() -> str:
    return "auto"


@pytest.mark.parametrize("what", ["a file", "nothing"])
def test_no_passthrough_is_promised_that_the_kernel_refuses(ends, place, mount, what):
    """For files of a stacked filesystem; nor is it said of the mount itself."""
    src, mnt = ends
    if what == "nothing":
        (src / "f").unlink()
    offered = ", kernel passthrough" in checked(src, mnt)[1]["result"]
    said_of = "no kernel passthrough on overlay: the daemon reads and writes"
    for name in ("upper", "work", "merged"):
        (place / name).mkdir()
    names = f"lowerdir={src},upperdir={place}/upper,workdir={place}/work"
    done = subprocess.run(
        ["mount", "-t", "overlay", "-o", names, "overlay", place / "merged"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no overlayfs here")
    code, said = checked(place / "merged", mnt)
    assert code == 0 and "not on overlay" in by_name(said)["passthrough"]["value"]
    assert ", kernel passthrough" not in said["result"]
    assert (said_of in said["result"]) == offered
    fs = mount("--passthrough", source=place / "merged", mountpoint=mnt, started=False)
    fs.transport = "ring" if ring_parameter() == "Y" else "dev"
    fs.start()
    assert ", kernel passthrough" not in fs.stderr() and (said_of in fs.stderr()) == offered
    assert not fs.stats().passthrough and fs.stats().not_passed == ("overlay" if offered else "")
    listed = run("list").stdout
    assert (" no kernel passthrough on overlay " in listed) == offered and ", kernel passthrough" not in listed
    detach(place / "merged")  # it goes with the mount


@pytest.mark.parametrize("what, code", [("source", 3), ("mountpoint", 4), ("source is a FIFO", 3), ("in use", 4)])
def test_same_code_and_message(place, ends, what, code):
    """As the mount itself, which is tried afterwards."""
    src, mnt = ends
    if what == "source":
        src = place / "none"
    elif what == "mountpoint":
        mnt = place / "none"
    elif what == "in use":
        mnt = "/proc"
    else:
        src = place / "fifo"
        os.mkfifo(src)
    said = checked(src, mnt)
    real = run("-f", src, mnt)
    assert said[0] == said[1]["exit_code"] == real.returncode == code
    assert real.stderr == f"passthru: {said[1]['result']}\n"
    row = by_name(said[1])["source" if what.startswith("source") else "mountpoint"]
    assert row["state"] == "missing"
    table = run("check", src, mnt)
    assert table.returncode == code and f"fails with exit code {code}: " in table.stdout


def test_one_file(place):
    for name in ("src", "mnt"):
        (place / name).write_text("x")
    code, said = checked(place / "src", place / "mnt")
    assert code == 0 and said["result"].startswith(f"{place}/src on {place}/mnt: ")


def test_source_facts(ends):
    rows = by_name(checked(*ends)[1])
    assert rows["NOWAIT reads"]["value"] in ("yes", "no")
    (ends[0] / "f").unlink()
    rows = by_name(checked(*ends)[1])
    assert rows["NOWAIT reads"]["value"] == "no file there to try"
    assert rows["mountpoint"]["state"] == "ok"


@pytest.mark.parametrize("args", [["one"], ["a", "b", "c"], ["-o", "unknown"], ["--unknown"], ["-o"]], ids=" ".join)
def test_wrong_arguments(args):
    done = run("check", *args)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stdout == ""


@pytest.fixture
def switched_off(place):
    """A namespace in which the kernel's parameter reads as N."""
    if not ring_parameter():
        pytest.skip("this kernel has no FUSE over io_uring")
    try:
        ns = Namespace(place / "namespace")
    except OSError as e:
        pytest.skip(f"no private /usr: {e}")
    (place / "N").write_text("N\n")
    ns.ok("mount", "--bind", place / "N", PARAMETER)
    yield ns
    ns.close()
    (place / "namespace").rmdir()


def test_switched_off(switched_off, place, ends):
    done = switched_off.passthru("check", "--json", *ends)
    said = json.loads(done.stdout)
    assert done.returncode == 0 and "/dev/fuse transport" in said["result"] and PARAMETER in said["result"]
    row = by_name(said)["FUSE over io_uring"]
    assert row["state"] == "missing" and "--enable-uring" in row["cure"]
    for words, code in (("transport=ring", 5), ("transport=ring,enable_uring", 0)):
        done = switched_off.passthru("check", "-o", words, *ends)
        assert done.returncode == code, done.stdout
        assert switched_off.passthru("check", "-o", words).returncode == code
    assert "--enable-uring would" in done.stdout
    assert (place / "N").read_text() == "N\n"  # only said


def test_a_mount_in_the_background_says_what_it_lost(switched_off, ends):
    """Once, and how to get it; not who has asked for no more."""
    said = {}
    for words in ("transport=auto", "transport=dev"):
        done = switched_off.passthru("-o", words, *ends)
        assert done.returncode == 0
        said[words] = done.stderr.splitlines()
        switched_off.ok("umount", ends[1])
    assert said["transport=dev"] == []
    assert len(said["transport=auto"]) == 1 and "--enable-uring" in said["transport=auto"][0]


@pytest.mark.parametrize("how", [["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"],
                                 ["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]], ids=str)
def test_where_nothing_can_mount(ends, how):
    """check and the mount end alike, by the same function."""
    for path in ends:
        os.chown(path, NOBODY, NOBODY)
    if not shutil.which("setpriv") or not shutil.which("fusermount3"):
        pytest.skip("no setpriv, or no fusermount3")
    python = python_for_all()
    if python is None:
        pytest.skip("an ordinary user can run no Python with the package here")
    mode = os.stat("/dev/fuse").st_mode
    os.chmod("/dev/fuse", 0o666)
    try:
        done = [subprocess.run(
            ["setpriv", *how, python[0], "-m", "passthru", *words, *ends], env=python[1], cwd="/", capture_output=True,
            text=True, check=False, timeout=60) for words in (["check"], [])]
    finally:
        os.chmod("/dev/fuse", mode & 0o7777)
    assert [d.returncode for d in done] == [6, 6]
    assert done[1].stderr == "passthru: " + done[0].stdout.splitlines()[-1].partition(": ")[2] + "\n"


@pytest.mark.parametrize("words", ["noatime", "strictatime", "nodiratime", "nosymfollow", "context=x", "zero_copy=on",
                                   "cache=coherent", "allow_other", "selinux,passthrough"])
def test_what_only_root_may_have(place, ends, words):
    python = python_for_all()
    if python is None or not shutil.which("fusermount3"):
        pytest.skip("an ordinary user can run no Python with the package here, or no fusermount3")
    for path in ends:
        os.chown(path, NOBODY, NOBODY)
    mode = os.stat("/dev/fuse").st_mode
    os.chmod("/dev/fuse", 0o666)
    try:
        done = [subprocess.run(
            [python[0], "-m", "passthru", *first, "-o", words, *ends], env=python[1], cwd="/", capture_output=True,
            text=True, check=False, timeout=60, **USER) for first in (["check"], [])]
    finally:
        os.chmod("/dev/fuse", mode & 0o7777)
    result = done[0].stdout.splitlines()[-1].partition(": ")[2]
    assert done[0].returncode == done[1].returncode, done
    if done[1].returncode:
        assert done[1].stderr == f"passthru: {result}\n"
    else:
        subprocess.run(["umount", ends[1]], check=True)
    if words == "selinux,passthrough":
        assert len(done[1].stderr.splitlines()) == 2 and "does nothing" in done[1].stderr
    elif words in ("noatime", "strictatime", "nodiratime", "nosymfollow", "context=x"):
        assert f"{words.partition('=')[0]}: only root can have that" in result


def test_takes_the_mounts_own_command_line(ends):
    code, said = checked("-f", "--queue-depth", "3", "--transport", "dev", "--", *ends)
    assert code == 0 and "/dev/fuse transport" in said["result"]
    assert run("check", "--queue-depth", "0", *ends).returncode == run("--queue-depth", "0", *ends).returncode == 2


def test_a_source_that_cannot_be_written_to(place):
    """Its mount is read-only, if all below it is; check says the same line."""
    for name in ("src", "below", "mnt"):
        (place / name).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place / "src"], check=True)
    try:
        (place / "src" / "d").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", place / "src"], check=True)
        for below, expected in ((False, "ro"), (True, "rw")):
            if below:
                subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place / "src" / "d"], check=True)
            assert run(place / "src", place / "mnt").returncode == 0
            try:
                here = mounting.mounted_at(str(place / "mnt"))
                assert here is not None and here.options[0] == expected
            finally:
                subprocess.run(["umount", place / "mnt"], check=True)
    finally:
        subprocess.run(["umount", "-R", "-l", place / "src"], check=True)


def test_as_a_user(place, ends):
    """What fusermount3 would refuse, without asking it."""
    python = python_for_all()
    if python is None:
        pytest.skip("an ordinary user can run no Python with the package here")

    def check(*args) -> tuple[int, dict]:
        done = subprocess.run(
            [python[0], "-m", "passthru", "check", "--json", *args], env=python[1], cwd="/", capture_output=True,
            text=True, check=False, timeout=60, **USER)
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout)

    mode = os.stat("/dev/fuse").st_mode
    os.chmod("/dev/fuse", 0o666)
    try:
        code, said = check(*ends)
        assert code == 6 and "no write access" in said["result"]
        for path in ends:
            os.chown(path, NOBODY, NOBODY)
        code, said = check(*ends)
        rows = by_name(said)
        assert rows["privileges"]["state"] == "note" and str(NOBODY) in rows["privileges"]["value"]
        if rows["fusermount3"]["state"] == "missing":
            assert code == 6
        else:
            assert code == 0, said
        code, said = check("-o", "allow_other", *ends)
        if rows["user_allow_other"]["state"] != "ok" and rows["fusermount3"]["state"] != "missing":
            assert code == 6 and "user_allow_other" in said["result"]
        ends[0].chmod(0)
        os.chown(ends[0], 0, 0)
        assert check(*ends)[0] == 3
    finally:
        os.chmod("/dev/fuse", mode & 0o7777)
    assert not mounts_below(place)
