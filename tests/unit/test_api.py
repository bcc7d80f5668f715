"""passthru.mount() as far as no kernel is needed: its keywords, their types, and the package's names."""
import importlib.util
import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import passthru
from passthru import child, errors, stats
from passthru.options import Options, arguments, parse

ROOT = Path(passthru.__file__).resolve().parent.parent
DECLARED = [f for f in fields(Options) if f.metadata and f.name not in ("foreground", "debug")]


def other(name: str) -> Any:
    """A value of an option that is not its default."""
    f = next(f for f in DECLARED if f.name == name)
    parsed = f.metadata["parse"]
    if parsed is None:
        return not f.default
    for text in ("2", "8192", "off", "dev", "per-entry", "a,b\\c", "word", "open", "syslog", "warning", "0:5", "all",
                 "caps", "on"):
        try:
            value = parsed(text)
        except passthru.UsageError:
            continue
        if value != f.default:
            return value
    raise AssertionError(f"no other value known for {name}: add one to the list")


@pytest.mark.parametrize("name", [f.name for f in DECLARED])
def test_every_option_arrives(name):
    value = other(name)
    others = [] if name == "allow_other" else ["-o", "noallow_other"]  # root's may not go without default_permissions
    given = parse([*others, *arguments({name: value}), "/src", "/mnt"])
    assert getattr(given, name) == value
    back = parse([*arguments({name: next(f.default for f in DECLARED if f.name == name)}), "/src", "/mnt"])
    assert back == Options("/src", "/mnt")


def test_text_as_on_the_command_line():
    assert parse([*arguments({"max_write": "64k"}), "/src", "/mnt"]).max_write == 65536


@pytest.mark.parametrize("keywords, error", [
    ({"nope": 1}, TypeError),
    ({"queue_depth": True}, TypeError),
    ({"queue_depth": 1.5}, TypeError),
    ({"queue_depth": b"1"}, TypeError),
    ({"writeback": 1}, TypeError),
    ({"writeback": "yes"}, TypeError),
    ({"allow_other": 0}, TypeError),
    ({"queue_depth": 0}, passthru.UsageError),
    ({"transport": "pigeon"}, passthru.UsageError),
    ({"attr_timeout": float("nan")}, passthru.UsageError),
])
def test_bad_keywords(keywords, error, tmp_path):
    with pytest.raises(error) as caught:
        passthru.mount(tmp_path, tmp_path, **keywords)
    assert next(iter(keywords)) in str(caught.value)


@pytest.mark.parametrize("source, mountpoint, error", [
    ("", "/mnt", passthru.SourceError), ("/src", "", passthru.MountpointError)])
def test_empty_paths(source, mountpoint, error):
    with pytest.raises(error):
        passthru.mount(source, mountpoint)


def test_signature():
    keywords = list(inspect.signature(passthru.mount).parameters)
    assert keywords[:2] == ["source", "mountpoint"]
    assert set(keywords[2:]) == {f.name for f in fields(Options)} - {"source", "mountpoint", "foreground"}


@pytest.mark.parametrize("kind", [c for c in vars(errors).values() if isinstance(c, type)])
def test_errors_come_over(kind):
    """Each is exported, and comes from the daemon's process as what it was."""
    assert getattr(passthru, kind.__name__) is kind and kind.__name__ in passthru.__all__
    with pytest.raises(kind) as caught:
        child.outcome(b"%d what: \xff happened" % kind.exit_code)
    assert type(caught.value) is kind and str(caught.value) == "what: \udcff happened"


def test_no_word_from_the_daemon():
    with pytest.raises(passthru.PassthruError, match="ended before"):
        child.outcome(b"")


def test_names():
    assert all(getattr(passthru, name) is not None for name in passthru.__all__)
    assert set(passthru.__all__) <= set(dir(passthru))
    with pytest.raises(AttributeError, match="pigeon"):
        passthru.pigeon  # noqa: B018


def test_import_is_light():
    """The package alone brings no numpy: a program may import it and never mount."""
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import passthru; "
         "assert 'numpy' not in sys.modules"], check=True)


PROGRAM = """\
from pathlib import Path
import passthru

with passthru.mount(Path("/src"), "/mnt", queue_depth=8, writeback=True, fsname=None, attr_timeout=0) as m:
    mount: passthru.Mount = m
    snapshot: passthru.Snapshot = m.stats()
passthru.mount("/src")  # error
passthru.mount("/src", "/mnt", queue_depth="8")  # error
passthru.mount("/src", "/mnt", pigeon=1)  # error
passthru.mount("/src", "/mnt", True)  # error
m.pigeon()  # error
"""


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_types(tmp_path, monkeypatch):
    """A type checker knows the keywords, and what is none."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", "program.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    assert lines == {n for n, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# error")}, done.stdout


class TestSnapshots:
    """Differences, and what is said of counters that are not there."""

    @pytest.fixture
    def page(self, tmp_path):
        from test_monitor import page

        return stats.read(page(tmp_path / "0:77"))

    def test_difference(self, page):
        later = page - page
        assert later.ops() == {} and later.total("ring_requests") == 0 and later.uptime == 0
        assert later.transport == page.transport and page.total("ring_requests") == 12
        with pytest.raises(ValueError, match="different mounts"):
            other = page.header.copy()
            other["pid"] = 1
            page - stats.Snapshot(other, page.threads)

    def test_more_threads_than_before(self, page):
        before = stats.Snapshot(page.header, page.threads[:1])
        assert (page - before).total("ring_requests") == 0
        assert len((page - before).threads) == len(page.threads)

    def test_unknown_counter(self, page):
        with pytest.raises(KeyError, match="read_bytes"):
            page.total("bytes_read")

    def test_plain_types(self, page):
        said = json.loads(json.dumps(page.to_dict()))
        assert said["counters"]["ring_requests"] == 12 and said["passthrough"] and said["uptime"] > 0
        assert "12 requests" in repr(page) and "kernel passthrough" in repr(page)


def test_stats_without_a_mount():
    code = "import passthru; passthru.stats.live; passthru.check"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_check_wants_both_ends_or_none():
    with pytest.raises(TypeError):
        passthru.check("/src")
    with pytest.raises(TypeError, match="no option"):
        passthru.check("/src", "/mnt", nothing=1)
    with pytest.raises(passthru.UsageError):
        passthru.check("/src", "/mnt", queue_depth=0)


def test_check():
    found = passthru.check("/no/such", b"/mnt")
    assert not found and found.exit_code == 3 and "/no/such" in found.result
    assert any(c["name"] == "kernel" for c in found.checks)
