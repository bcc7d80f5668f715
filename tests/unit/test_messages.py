"""docs/troubleshooting.md has every message: of errors, of what the daemon says, of ./start and tools/deb."""
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from passthru import errors

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / "docs" / "troubleshooting.md"
KINDS = {name for name, c in vars(errors).items() if isinstance(c, type)} | {
    "LookupError", "PermissionError", "RuntimeError", "TimeoutError", "ValueError"}
# Calls whose argument is shown, and what comes before it.
SAYS = {"log": "", "warn": "", "warning": "", "info": "", "error": "", "event": "", "no_ring": "no ring transport: "}
ANY = "\0"  # what differs

pytestmark = pytest.mark.skipif(not DOC.exists(), reason="no documents here: a tree for debug builds")


def texts(node: ast.expr, function: ast.AST, depth: int = 0) -> Iterator[str]:
    """The texts that an expression may come to, with ANY for what is not known."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        found = [""]
        for part in node.values:
            values = [ANY]
            if isinstance(part, ast.Constant):
                values = [str(part.value)]
            elif isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.IfExp):
                values = list(texts(part.value, function, depth))
            found = [a + b for a in found for b in values]
        yield from found
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body, function, depth)
        yield from texts(node.orelse, function, depth)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from (a + b for a in texts(node.left, function, depth) for b in texts(node.right, function, depth))
    elif isinstance(node, ast.Name) and depth < 3:
        values = [a.value for a in ast.walk(function) if isinstance(a, ast.Assign)
                  and any(isinstance(t, ast.Name) and t.id == node.id for t in a.targets)]
        for value in values:
            yield from texts(value, function, depth + 1)
        if not values:
            yield ANY
    else:
        yield ANY


def of_python(path: Path) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text())
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in KINDS and name not in SAYS:
            continue
        inside = [f for f in functions if f.lineno <= node.lineno <= (f.end_lineno or 0)]
        for argument in node.args[-1:] if name in ("log", "event") else node.args[:1]:
            for text in texts(argument, inside[-1] if inside else tree):
                yield node.lineno, SAYS.get(name, "") + text


def of_cython(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text()
    if "log_line(" not in text:
        return
    for m in re.finditer(r"snprintf\(line, sizeof\(line\),((?:\s*\"(?:[^\"\\]|\\.)*\")+)", text):
        said = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', m.group(1)))
        yield text[: m.start()].count("\n") + 1, re.sub(r"%[-\d.]*l*[a-z]", ANY, said).replace("\\n", "")


QUOTED = re.compile(r'\b(?:die|say) "((?:[^"$\\]|\\.|\$\((?:[^()"]|"[^"]*")*\)|\$\{?\w+\}?|\$\{[^}]*\})*)"')
DOING = ("installing", "making", "building")  # ./start says what it does


def of_shell(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for said in (m.group(1) for m in QUOTED.finditer(line)):
            if not said.startswith(DOING):
                yield number, re.sub(r"\$\(.*?\)$|\$\(.*?\)|\$\{[^}]*\}|\$\w+", ANY, said)


def messages() -> list[tuple[str, str]]:
    """(where, text) of all that has words of its own."""
    found = []
    for path in sorted([*(ROOT / "passthru").rglob("*.py"), *(ROOT / "passthru").glob("*.pyx"),
                        ROOT / "start", ROOT / "tools" / "deb"]):
        if not path.exists():
            continue
        of = {".py": of_python, ".pyx": of_cython}.get(path.suffix, of_shell)
        for line, text in of(path):
            text = text.removeprefix("passthru: ")
            if len(re.sub(r"\W", "", text.replace(ANY, ""))) >= 4:
                found.append((f"{path.relative_to(ROOT)}:{line}", text))
    return found


def pattern(text: str, wild: str) -> str:
    """A regular expression: `wild` (another one) is what stands for anything."""
    return "".join(".+?" if re.fullmatch(wild, p) else re.escape(p) for p in re.split(f"({wild})", text) if p)


def cells() -> list[str]:
    """The first column of all tables."""
    rows = re.findall(r"^\| (.*?) \|", DOC.read_text().replace("\\|", ANY), re.MULTILINE)
    return [row.replace("`", "") for row in rows]


def documented(text: str, known: list[str]) -> bool:
    """Is the message in a cell, or is it what a cell with words in capitals and '...' stands for?"""
    text = text.replace("`", "").strip()
    said = re.compile(pattern(re.sub(ANY + "+", ANY, text), ANY))
    for cell in known:
        if said.search(cell):
            return True
        for part in [cell, *cell.split("; ")]:
            sign = re.compile(pattern(part.replace("'TEXT'", "TEXT"), r"\.\.\.|\b[A-Z][A-Z_]*\b"))
            if len(re.sub(r"\W|[A-Z]", "", part)) >= 4 and sign.fullmatch(text.replace(ANY, "X")):
                return True
    return False


def test_some_are_found():
    """So that this test can fail."""
    found = [text for _, text in messages()]
    assert f"source {ANY}: {ANY}" in found
    assert "no ring transport: this kernel has no FUSE over io_uring (Linux 6.14)" in found
    assert any(text.startswith("io_uring_enter: error") for text in found)
    assert any("no working C compiler" in text for text in found)
    assert len(found) > 50
    assert not documented("no pigeon in the loft", cells())
    assert documented(f"source {ANY}: {ANY}", cells())


@pytest.mark.parametrize("where, text", messages(), ids=lambda v: v.replace(ANY, "%")[:60])
def test_documented(where, text):
    assert documented(text, cells()), f"{where}: {text.replace(ANY, '...')!r} is not in {DOC.name}"
