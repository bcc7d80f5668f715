"""mount(8)'s helper: its arguments, its options, its exit codes."""
import os

import pytest

from passthru import mount_helper, options, remount
from passthru.errors import EXIT_CODES, MountError, UsageError

ENDS = ["/src", "/mnt"]


def test_arguments():
    call = mount_helper.parse([*ENDS, "-sfnv", "-N", "/ns", "-o", "ro", "-t", "fuse.passthru", "-o", "noexec"])
    assert (call.source, call.target, call.words) == ("/src", "/mnt", ["ro", "noexec"])
    assert call.sloppy and call.fake and call.verbose and call.namespace == "/ns" and not call.foreground
    call = mount_helper.parse(["-n", "/src", "-o", "rw", "/mnt", "--foreground"])
    assert (call.source, call.target, call.words) == ("/src", "/mnt", ["rw"])
    assert call.foreground and not (call.sloppy or call.fake or call.verbose or call.namespace)


@pytest.mark.parametrize("argv", [
    [], ["/src"], [*ENDS, "/third"], [*ENDS, "-x"], [*ENDS, "-o"], [*ENDS, "--fore"], ["", "/mnt"], ["/src", ""]])
def test_wrong_arguments(argv):
    if argv == [*ENDS, "--fore"]:  # getopt completes it
        assert mount_helper.parse(argv).foreground
        return
    with pytest.raises(UsageError):
        mount_helper.parse(argv)
    assert mount_helper.main(argv) == mount_helper.EX_USAGE


@pytest.mark.parametrize("text, words", [
    ("", []), ("ro,fsname=x", ["ro", "fsname=x"]), ('fsname="a,b",ro', ["fsname=a,b", "ro"]),
    (r"fsname=a\,b", ["fsname=a,b"]), (r'fsname="a\b"', [r"fsname=a\b"]), ('fsname=a"b,ro', ['fsname=a"b', "ro"]),
    ('fsname="",ro', ["fsname=", "ro"]), ('fsname="open,ro', ["fsname=open,ro"])])
def test_words(text, words):
    assert mount_helper.words(text) == words


@pytest.mark.parametrize("words", [["a,b"], ["a\\"], ["a\\,b", "c"], ["fsname=x y", "ro"], []])
def test_joined(words):
    assert options.split_mount_options(mount_helper.joined(words)) == words


def call(*words: str, **more: bool) -> mount_helper.Call:
    return mount_helper.Call("src", "mnt", list(words), **more)


def test_options():
    o = mount_helper.options_of(call("rw", "noexec", "nosuid", "nodev", "attr_timeout=5", "user", "_netdev", "nofail"))
    assert (o.noexec, o.nosuid, o.nodev, o.attr_timeout, o.foreground) == (True, True, True, 5.0, False)
    assert (o.source, o.mountpoint) == (os.path.abspath("src"), os.path.abspath("mnt"))
    assert mount_helper.options_of(call(foreground=True)).foreground


def test_later_words_win():
    """As with all of mount's options: `user,exec` is exec."""
    assert not mount_helper.options_of(call("noexec", "nosuid", "user", "exec")).noexec


def test_sloppy():
    with pytest.raises(UsageError):
        mount_helper.options_of(call("unknown"))
    assert mount_helper.options_of(call("unknown", "unknown=1", "ro", sloppy=True)).read_only
    with pytest.raises(UsageError):  # known, and wrong
        mount_helper.options_of(call("queue_depth=x", sloppy=True))


@pytest.mark.parametrize("word", ["bg", "user=joe", "x-a.b=c", "X-mount.mkdir=0755", "comment=a", "nogroup", "mand"])
def test_words_of_others(word):
    assert mount_helper.options_of(call(word)) == mount_helper.options_of(call())
    assert options.is_mount_option(word)


def test_exit_codes(monkeypatch):
    """All of the command's codes become one of mount(8)'s."""
    for code, _ in EXIT_CODES:
        monkeypatch.setattr(mount_helper, "run", lambda c, code=code: code)
        assert mount_helper.main(ENDS) == {0: 0, 2: 1}.get(code, 32)

    def fault(c):
        raise KeyError("x")
    monkeypatch.setattr(mount_helper, "run", fault)
    assert mount_helper.main(ENDS) == mount_helper.EX_SOFTWARE


class TestRemount:
    def test_words(self):
        words = ["rw", "relatime", "user_id=0", "group_id=0", "default_permissions", "allow_other", "queue_depth=9"]
        values = remount.wanted(words, sloppy=False)
        assert values == {
            "read_only": False, "default_permissions": True, "allow_other": True, "queue_depth": 9}
        with pytest.raises(UsageError):
            remount.wanted(["unknown"], sloppy=False)
        assert remount.wanted(["unknown", "ro"], sloppy=True) == {"read_only": True}

    def test_flags(self):
        assert remount.flags({}) == 0
        assert remount.flags({"read_only": True, "nosuid": True, "noexec": False}) == 1 | 2

    def test_what_differs(self):
        now = {"queue_depth": 16, "transport": "auto", "noatime": False, "read_only": False, "allow_other": None,
               "attr_timeout": 1.0}
        assert remount.differing({"queue_depth": 16, "transport": "auto", "read_only": True}, now) == []
        assert remount.differing({"queue_depth": 9, "noatime": True}, now) == ["queue_depth", "noatime"]
        assert remount.differing({"attr_timeout": 2.0}, now) == ["attr_timeout"]
        assert remount.differing({"allow_other": os.geteuid() == 0}, now) == []

    def test_only_root(self, tmp_path, monkeypatch):
        monkeypatch.setattr(remount, "capable", lambda cap: False)
        with pytest.raises(UsageError, match="only root"):
            remount.run("/", ["ro"])

    def test_not_ours(self, monkeypatch):
        """Nothing else is remounted by mistake."""
        monkeypatch.setattr(remount, "capable", lambda cap: True)
        with pytest.raises(MountError, match="no live passthru mount"):
            remount.run("/proc", ["rw"])

    def test_not_mounted(self, tmp_path, monkeypatch):
        monkeypatch.setattr(remount, "capable", lambda cap: True)
        with pytest.raises(MountError, match="not mounted"):
            remount.run(str(tmp_path), ["ro"])
        remount.run(str(tmp_path), ["ro"], fake=True)
