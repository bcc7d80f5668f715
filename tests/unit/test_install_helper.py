"""install-helper: what it writes, and what it leaves alone."""
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from passthru import capabilities, commands, sandbox
from passthru.commands import install_helper
from passthru.errors import PassthruError, UsageError


def tree(root) -> dict[str, tuple[bytes, int]]:
    return {str(p.relative_to(root)): (p.read_bytes(), stat.S_IMODE(p.stat().st_mode))
            for p in root.rglob("*") if p.is_file()}


FILES = {"sbin/mount.passthru", "sbin/mount.fuse.passthru", "lib/systemd/system/passthru@.service"}


def test_installed_and_removed(tmp_path):
    assert len(install_helper.install(tmp_path)) == 3
    first = tree(tmp_path)
    assert set(first) == FILES
    assert first["sbin/mount.passthru"][1] == 0o755 and first["lib/systemd/system/passthru@.service"][1] == 0o644
    assert install_helper.install(tmp_path) == []
    assert tree(tmp_path) == first
    assert len(install_helper.remove(tmp_path)) == 3
    assert not list(tmp_path.iterdir())
    assert install_helper.remove(tmp_path) == []


def test_changed_ones_are_renewed(tmp_path):
    install_helper.install(tmp_path)
    script = tmp_path / "sbin/mount.passthru"
    before = script.read_text()
    script.write_text(before + "# of an older version\n")
    script.chmod(0o700)
    assert install_helper.install(tmp_path) == [script]
    assert script.read_text() == before and stat.S_IMODE(script.stat().st_mode) == 0o755


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
@pytest.mark.parametrize("name", sorted(FILES))
def test_not_ours(tmp_path, name, kind):
    """What somebody else has put there stays, and nothing else is written or removed."""
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    if kind == "file":
        path.write_text("#!/bin/sh\n")
    elif kind == "link":
        path.symlink_to("/bin/true")
    else:
        path.mkdir()
    before = sorted(tmp_path.rglob("*"))
    for act in (install_helper.install, install_helper.remove):
        with pytest.raises(PassthruError, match="not made by"):
            act(tmp_path)
        assert sorted(tmp_path.rglob("*")) == before


def test_other_files_stay(tmp_path):
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/other").touch()
    install_helper.install(tmp_path)
    install_helper.remove(tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["sbin", "other"]


def test_half_done_is_undone(tmp_path):
    (tmp_path / "lib").write_text("a file")
    with pytest.raises(PassthruError, match=r"passthru@\.service"):
        install_helper.install(tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["lib"]


def test_script_runs_from_anywhere(tmp_path):
    """By an odd path, in an empty environment, from another directory, with odd arguments."""
    prefix = tmp_path / "odd 'dir\" $x"
    install_helper.install(prefix)
    script = prefix / "sbin/mount.fuse.passthru"
    done = subprocess.run([script, "--version"], env={}, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mount.passthru (passthru ")
    done = subprocess.run([script, "a b", ""], env={}, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("passthru: mountpoint ''")


def test_ignores_the_callers_python(tmp_path):
    """PYTHONPATH and the directory of whoever runs mount are not looked at."""
    install_helper.install(tmp_path)
    (tmp_path / "passthru.py").write_text("raise SystemExit('the wrong one')\n")
    done = subprocess.run(
        [tmp_path / "sbin/mount.passthru", "-V"], env={"PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": "x"},
        cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_gone(tmp_path):
    script = tmp_path / "mount.passthru"
    script.write_text(install_helper.script("/no/such/py thon", ["/a 'b'"]))
    done = subprocess.run(["sh", script, "a", "b"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "mount.passthru: /no/such/py thon is gone" in done.stderr


def test_script_is_quoted():
    line = install_helper.script("/a 'b'/python", ["/c \"d'"]).splitlines()[-1]
    assert shlex.split(line)[4].startswith("import sys; sys.path[:0] = ")
    compile(shlex.split(line)[4], "program", "exec")


def test_search_path_is_only_what_is_missing():
    path = install_helper.search_path(sys.executable)
    assert all(os.path.isdir(p) for p in path) and len(set(path)) == len(path)


@pytest.mark.parametrize("path, shown", [
    ("/usr/sbin/mount.passthru", "/usr/sbin/mount.passthru"), ("/a b/m", '"/a b/m"'), ('/a"b%i', r'"/a\"b%%i"')])
def test_unit_path(path, shown):
    assert f"ExecStart={shown} --foreground" in install_helper.unit(path)


def test_default_prefix():
    assert os.path.samefile(install_helper.default_prefix() / "sbin", "/sbin")


def test_command(tmp_path, capsys):
    assert commands.run("install-helper", ["--prefix", str(tmp_path)]) == 0
    out = capsys.readouterr()
    assert out.out.count("installed ") == 3 and "/sbin" in out.err
    assert commands.run("install-helper", ["--prefix", str(tmp_path), "--remove"]) == 0
    assert capsys.readouterr().out.count("removed ") == 3
    for argv in (["--pre", "x"], ["third"], ["--prefix"]):
        with pytest.raises(UsageError):
            commands.run("install-helper", argv)


def test_unit_leaves_what_the_daemon_needs():
    text = install_helper.unit(Path("/sbin/mount.passthru"))
    line = next(line for line in text.splitlines() if line.startswith("CapabilityBoundingSet="))
    left = {getattr(capabilities, name) for name in line.partition("=")[2].split() if hasattr(capabilities, name)}
    assert {*sandbox.KEPT, *sandbox.AT_START} <= left
    # Each of these gives the service a mount namespace (systemd.exec(5)), where the mount would be seen by nobody.
    for name in (
            "ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectKernelTunables", "PrivateMounts",
            "ProtectControlGroups", "ProtectKernelLogs", "ProtectKernelModules", "ProtectProc", "ReadOnlyPaths"):
        assert f"\n{name}=" not in text


def test_what_other_users_may_not_enter_is_named(tmp_path):
    (tmp_path / "own" / "bin").mkdir(parents=True)
    python = tmp_path / "own" / "bin" / "python"
    python.touch()
    open_to_all = set(install_helper.closed([str(python)]))
    (tmp_path / "own").chmod(0o700)
    assert set(install_helper.closed([str(python)])) - open_to_all == {str(tmp_path / "own")}
