"""The shells' completions: they are current, and what bash offers is what there is."""
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import passthru
from passthru import commands, options

MAN = Path(passthru.__file__).resolve().parents[1] / "man"

pytestmark = pytest.mark.skipif(not (MAN / "passthru.bash").exists(), reason="no manual pages here")


def offered(line: str) -> list[str]:
    """What bash completes at the end of a command line."""
    words = line.replace("=", " = ").split()
    if line.endswith((" ", "=")) and not line.endswith("="):
        words.append("")
    listed = " ".join(f"'{w}'" for w in words)
    script = (f"source {MAN}/passthru.bash; compopt() {{ :; }}; COMP_LINE='{line}' COMP_POINT={len(line)}; "
              f"COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _passthru; printf '%s\\n' \"${{COMPREPLY[@]}}\"")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd="/var/empty"
                          if Path("/var/empty").is_dir() else "/proc/self/task")
    assert done.stderr == ""
    return done.stdout.split()


def test_current():
    done = subprocess.run([sys.executable, MAN / "make.py", "--check"], capture_output=True, text=True, check=False)
    assert "not current" not in done.stderr


def test_subcommands():
    assert set(commands.COMMANDS) <= set(offered("passthru "))
    assert offered("passthru stat") == ["status", "stats"]
    assert set(offered("passthru help s")) == {"status", "set", "stats"}


def test_options():
    flags = {flag for f in options._declared() if not f.metadata["hidden"] for flag in f.metadata["flags"]}
    assert flags <= set(offered("passthru /src -"))
    assert "--null-io" not in offered("passthru -")
    assert set(offered("passthru stats --p")) == {"--prometheus", "--plot"}
    assert "--queue-depth" in offered("passthru check --queue-d")


def test_values():
    assert offered("passthru --cache ") == ["never", "open", "auto", "coherent", "always"]
    assert offered("passthru --transport d") == ["dev"]


def test_mount_options():
    assert offered("passthru -o queue_d") == ["queue_depth="]
    assert offered("passthru -o ro,noat") == ["ro,noatime"]
    assert offered("passthru -o ro,cache=al") == ["always"]


@pytest.mark.parametrize("shell, name", [("zsh", "_passthru"), ("fish", "passthru.fish"), ("bash", "passthru.bash")])
def test_syntax(shell, name):
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    done = subprocess.run([shell, "-n", MAN / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
