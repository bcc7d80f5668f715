"""Exit codes."""
import errno

import pytest

from passthru import cli, errors


def classes() -> list[type[errors.PassthruError]]:
    return errors.PassthruError.__subclasses__()


def test_codes_are_distinct_and_documented():
    codes = [code for code, _ in errors.EXIT_CODES]
    assert len(codes) == len(set(codes))
    assert all(text for _, text in errors.EXIT_CODES)
    assert {c.exit_code for c in classes()} | {0, 1} == set(codes)
    assert len({c.exit_code for c in classes()}) == len(classes())


def test_reason():
    assert errors.reason(OSError(errno.ENOENT, "something", "/path")) == "No such file or directory"
    assert errors.reason(OSError("only text")) == "only text"


@pytest.mark.parametrize("argv, code", [
    (["--unknown"], 2), ([], 2), (["-f", "/no such source", "/"], 3), (["-f", "/", "/no such mountpoint"], 4)])
def test_command(argv, code, capsys):
    assert cli.main(argv) == code
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and said.err.startswith("passthru: ")


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_told(word, capsys):
    with pytest.raises(SystemExit) as e:
        cli.main([word])
    assert not e.value.code
    assert "passthru" in capsys.readouterr().out
