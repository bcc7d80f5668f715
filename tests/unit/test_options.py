"""The command line and -o."""
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

import passthru
from passthru import _server, options
from passthru.errors import UsageError
from passthru.options import ALIASES, CACHE, IGNORED, SWITCH, Options, parse, parser, split_mount_options

ENDS = ["/src", "/mnt"]
DECLARED = [f for f in fields(Options) if f.metadata]
GOOD = {"--transport": "dev", "-o": "ro", "--attr-timeout": "2.5", "--entry-timeout": "0"}


def test_defaults():
    o = parse(ENDS)
    assert (o.source, o.mountpoint) == ("/src", "/mnt")
    assert o.transport == "auto" and not o.foreground and o.allow_other is None
    assert o == Options(source="/src", mountpoint="/mnt")


def test_frozen():
    with pytest.raises(AttributeError):
        parse(ENDS).transport = "dev"


def test_help_has_every_option():
    text = parser().format_help()
    for f in DECLARED:
        assert f.metadata["help"]
        if f.metadata["hidden"]:
            assert not any(flag in text for flag in f.metadata["flags"])
            continue
        for flag in f.metadata["flags"]:
            assert flag in text
        for name in (f.metadata["o"], f.metadata["no"]):
            assert name is None or name in text


def test_command_shows_help():
    root = Path(passthru.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "passthru", "--help"], cwd=root, capture_output=True, text=True, check=True)
    assert "usage: passthru [options] SOURCE MOUNTPOINT" in done.stdout


@pytest.mark.parametrize("f", [f for f in DECLARED if not f.metadata["parse"]], ids=lambda f: f.name)
def test_switches(f):
    for flag in f.metadata["flags"]:
        assert getattr(parse([flag, *ENDS]), f.name) is True
    if f.metadata["o"]:
        assert getattr(parse(["-o", f.metadata["o"], *ENDS]), f.name) is True
        with pytest.raises(UsageError, match="takes no value"):
            parse(["-o", f.metadata["o"] + "=1", *ENDS])
    if f.metadata["no"]:
        # Some opposites are refused for all users at once.
        words = f"noallow_other,{f.metadata['o']},{f.metadata['no']}"
        assert getattr(parse(["-o", words, *ENDS]), f.name) is False


@pytest.mark.parametrize("f", [f for f in DECLARED if f.metadata["parse"]], ids=lambda f: f.name)
def test_values(f):
    text = "" if f.default is None else str(f.default)
    if text:
        for flag in f.metadata["flags"]:
            assert getattr(parse([flag, text, *ENDS]), f.name) == f.default
            assert getattr(parse([f"{flag}={text}", *ENDS]), f.name) == f.default
        if f.metadata["o"]:
            assert getattr(parse(["-o", f"{f.metadata['o']}={text}", *ENDS]), f.name) == f.default
    if f.metadata["o"]:
        with pytest.raises(UsageError, match="takes a value"):
            parse(["-o", f.metadata["o"], *ENDS])
        if f.name != "subtype":  # may be empty
            with pytest.raises(UsageError, match=f.metadata["o"]):
                parse(["-o", f"{f.metadata['o']}=", *ENDS])


@pytest.mark.parametrize("words", [
    ["--queue-depth", "0"], ["--queue-depth", "1025"], ["--queue-depth", "0x"], ["--queue-depth=-1"],
    ["--max-write", "0"], ["--max-write", "4097"], ["--max-write", "4095"], ["--max-write", "257m"],
    ["--max-write", "1x"], ["--max-write", ""], ["--max-write", "-4096"],
    ["--attr-timeout=-1"], ["--attr-timeout", "nan"], ["--entry-timeout", "inf"], ["--entry-timeout", "1e10"],
    ["--transport", "Ring"], ["--threads", "257"], ["--max-background", "65536"], ["--spin-us", "x"],
    ["--unknown"], ["--queue"], ["-o", "unknown"], ["-o", "ro,,x"], ["-o", "fsname=a\nb"],
], ids=" ".join)
def test_refused(words):
    with pytest.raises(UsageError) as e:
        parse([*words, *ENDS])
    assert "\n" not in str(e.value) or "a\nb" in words[-1]


@pytest.mark.parametrize("words", [[], ["/src"], ["/src", "/mnt", "/third"], ["-o"], ["--queue-depth"]])
def test_wrong_number_of_arguments(words):
    with pytest.raises(UsageError):
        parse(words)


@pytest.mark.parametrize("text, value", [
    ("4096", 4096), ("0x2000", 8192), ("8k", 8192), ("1M", 1 << 20), ("64K", 65536)])
def test_sizes(text, value):
    o = parse(["--max-write", text, *ENDS])
    assert o.max_write == value == parse(["-o", f"max_write={text}", *ENDS]).max_write
    assert o.max_pages * 4096 >= value
    assert o.payload_size >= max(8192, value, o.max_pages * 4096)


def test_command_line_beats_mount_options():
    assert parse(["-o", "queue_depth=3", "--queue-depth", "5", *ENDS]).queue_depth == 5
    assert parse(["--queue-depth", "5", "-o", "queue_depth=3", *ENDS]).queue_depth == 5


def test_permissions_are_checked_by_somebody():
    """A root daemon open to all has the kernel check them."""
    if os.geteuid() == 0:
        with pytest.raises(UsageError):
            parse(["-o", "nodefault_permissions", *ENDS])
    assert not parse(["-o", "nodefault_permissions,noallow_other", *ENDS]).default_permissions


def test_debug_stays_in_the_foreground():
    assert parse(["-d", *ENDS]).foreground
    assert parse(["-o", "debug", *ENDS]).foreground


@pytest.mark.parametrize("text, words", [
    ("", []), ("a", ["a"]), ("a,b=c,d", ["a", "b=c", "d"]), (",a,,b,", ["a", "b"]),
    (r"fsname=a\,b,ro", ["fsname=a,b", "ro"]), (r"a\\,b", ["a\\", "b"]), ("a\\", ["a\\"]), (r"a\bc", ["abc"]),
])
def test_split(text, words):
    assert split_mount_options(text) == words


def test_ignored_words():
    text = ",".join(sorted(IGNORED)) + ",x-systemd.automount,x-gvfs-hide,comment=words"
    assert parse(["-o", text, *ENDS]) == parse(ENDS)


def test_several_mount_options():
    o = parse(["-o", "ro,nosuid", "-o", r"fsname=x\,y,rw", *ENDS])
    assert (o.read_only, o.nosuid, o.fsname) == (False, True, "x,y")


def test_names_like_options():
    o = parse(["-f", "--", "-src", "--mnt"])
    assert (o.source, o.mountpoint, o.foreground) == ("-src", "--mnt", True)


def test_null_io_leaves_no_data_to_the_kernel():
    o = parse(["--null-io", "--passthrough", "--zero-copy", "on", *ENDS])
    assert (o.null_io, o.passthrough, o.zero_copy) == (True, False, "off")


# What libfuse's passthrough_hp takes on its command line, and what it means here.
@pytest.mark.parametrize("words, means", [
    (["--foreground"], {"foreground": True}),
    (["--debug"], {"debug": True, "foreground": True, "log_level": "debug"}),
    (["--debug", "--log-level", "error"], {"debug": True, "foreground": True, "log_level": "error"}),
    (["--debug-fuse"], {"debug_fuse": True, "foreground": True}),
    (["--bg-debug-fuse"], {"debug_fuse": True}),
    (["--bg-debug-fuse", "-f"], {"debug_fuse": True, "foreground": True}),
    (["--nopassthrough"], {"passthrough": False}),
    (["--nocache"], {"cache": "open", "attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}),
    (["--nosplice"], {}),
    (["--clone-fd"], {}),
    (["--single"], {"threads": 1}),
    (["-s"], {"threads": 1}),
    (["--num-threads", "5"], {"threads": 5}),
    (["--num-threads=5"], {"threads": 5}),
    (["--direct-io"], {"direct_io": True}),
    (["--selinux"], {"selinux": True}),
    (["-o", "io_uring"], {"transport": "auto"}),
    (["-o", "io_uring,io_uring_q_depth=9"], {"transport": "auto", "queue_depth": 9}),
    (["-oio_uring,allow_other"], {"allow_other": True}),
    (["-o", "auto_unmount,allow_root"], {"auto_unmount": True, "allow_root": True}),
    (["-o", "max_read=65536,default_permissions"], {"max_read": 65536}),
    (["-o", "clone_fd,max_idle_threads=3,max_threads=4"], {"threads": 4}),
    (["-o", "dev,suid,exec,rw,async,fsname=x"], {"fsname": "x"}),
    (["-o", "timeout=3"], {"attr_timeout": 3.0, "entry_timeout": 3.0, "negative_timeout": 3.0}),
    (["--force-user", "7", "-o", "force-group=8"], {"map_uid": "7:all", "map_gid": "8:all"}),
    (["-o", "cache.attr=2,use_ino,create-for-user=5"], {"attr_timeout": 2.0, "map_uid": "all:5"}),
    (["-r", "--allow-other", "--fsname", "x"], {"read_only": True, "allow_other": True, "fsname": "x"}),
    (["-o", "writeback_cache,no_remote_lock"], {"writeback": True, "local_locks": True}),
], ids=str)
def test_passthrough_hp_words(words, means):
    assert parse([*words, *ENDS]) == Options(source="/src", mountpoint="/mnt", **means)


@pytest.mark.parametrize("words, message", [
    (["-o", "allow_root,allow_other"], "exclude"),
    (["--writeback", "--direct-io"], "page cache"),
    (["--writeback", "--cache", "never"], "page cache"),
    (["--num-threads", "x"], "^--num-threads: 'x' is not a number$"),
    (["-o", "io_uring=1"], "takes no value"),
    (["-o", "io_uring_q_depth"], "takes a value"),
    (["-o", "clone_fd=1"], "takes no value"),
    (["-o", "fd=3"], "unknown"),
    (["-o", "blkdev"], "unknown"),
], ids=str)
def test_cannot_be_honoured(words, message):
    with pytest.raises(UsageError, match=message):
        parse([*words, *ENDS])


def test_last_of_two_names_wins():
    assert parse(["--single", "--num-threads", "3", *ENDS]).threads == 3
    assert parse(["--threads", "3", "--single", *ENDS]).threads == 1
    assert parse(["--cache", "always", "--nocache", *ENDS]).cache == "open"


def test_timeouts_follow_the_policy():
    o = parse(["--cache", "always", "--attr-timeout", "3", *ENDS])
    assert (o.attr_timeout, o.entry_timeout, o.negative_timeout) == (3, 86400, 86400)
    o = parse(["--nocache", "-o", "entry_timeout=2", *ENDS])
    assert (o.attr_timeout, o.entry_timeout, o.negative_timeout) == (0, 2, 2)


def test_versions(capsys):
    for flag in ("-V", "--version"):
        with pytest.raises(SystemExit) as e:
            parse([flag])
        assert e.value.code == 0 and capsys.readouterr().out.startswith("passthru ")


def test_aliases_are_shown():
    text = parser().format_help()
    for a in ALIASES:
        assert all(flag in text for flag in a.flags)


def test_payload_buffers():
    """Pinned ones are few, since they are in memory at once; others one for each entry, by the machine's memory."""
    gib = 1 << 30
    assert parse(["--queue-depth=64", "a", "b"]).buffers == 3
    assert parse(["a", "b"]).unpinned_buffers(2, 16, 24 * gib) == 16
    assert parse(["--queue-depth=64", "a", "b"]).unpinned_buffers(64, 64, 64 * gib) == 16
    assert parse(["a", "b"]).unpinned_buffers(64, 16, gib) == 3
    assert parse(["--payload-buffers=7", "a", "b"]).buffers == 7
    assert parse(["--payload-buffers=7", "a", "b"]).unpinned_buffers(2, 16, 24 * gib) == 7


def test_policies_are_those_of_the_server():
    """What it takes, and nothing that no policy uses."""
    assert {policy.keep for policy in CACHE.values()} == set(_server.KEEP)
    assert set(SWITCH) == set(_server.PARALLEL_WRITES)


def test_help_says_ranges_and_defaults():
    """Of each option that takes a value: which, unless it names them, and the default, if there is one."""
    text = " ".join(parser().format_help().split())
    for f in DECLARED:
        assert f.metadata["hidden"] or not f.metadata["flags"] or all(fact in text for fact in options.facts(f))
    assert options.facts(options.named("queue_depth")) == ["1 to 1024", "default: 64"]
    assert options.facts(options.named("max_write"))[-1] == "default: 1m"
    assert options.facts(options.named("map_uid")) == []
    for f in DECLARED:
        said = options.facts(f)
        if said and " to " in said[0] and f.name != "attr_timeout" and "timeout" not in f.name:
            low, high = said[0].partition(";")[0].split(" to ")
            for good in (low, high):
                f.metadata["parse"](good)
            with pytest.raises(UsageError):
                f.metadata["parse"](f"{high}0000")


def test_every_option_is_in_a_group():
    assert all(options.groups()) and len(options.groups()) >= 4


@pytest.mark.parametrize("word", sorted(options.REFUSED))
def test_what_would_promise_too_much_is_refused(word):
    with pytest.raises(UsageError, match=f"-o {word}: "):
        parse(["-o", word, "/src", "/mnt"])


def test_source_as_a_word():
    found = parse(["-o", "ro,source=/a", "/mnt"])
    assert (found.source, found.mountpoint, found.read_only) == ("/a", "/mnt", True)
    for wrong in (["-o", "source=/a", "/b", "/mnt"], ["-o", "source=/a"], ["/mnt"]):
        with pytest.raises(UsageError):
            parse(wrong)


def test_near_words_are_named():
    with pytest.raises(UsageError, match="did you mean noatime"):
        parse(["-o", "noatme", "/src", "/mnt"])


def test_words_are_typed_as_they_are():
    """Type checkers know which words an option takes: those that its parser does."""
    hints = get_type_hints(Options)
    for f in DECLARED:
        words = get_args(hints[f.name]) if get_origin(hints[f.name]) is Literal else ()
        named = f.metadata["metavar"] or ""
        assert set(words) == (set(named.split("|")) if "|" in named else set())
        for word in words:
            assert f.metadata["parse"](word) == word
