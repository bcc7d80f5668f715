"""The .pyi files say what the Cython modules have: names, arguments, and which of them may be left out."""
import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "passthru"
CLASS = re.compile(r"^cdef class (\w+)", re.MULTILINE)
DEF = re.compile(r"^( *)(?:def|cpdef [\w ]*?)\s*(\w+)\(([^)]*)\):", re.MULTILINE)
CONSTANT = re.compile(r"^([A-Z]\w*) = ", re.MULTILINE)


def in_source(text: str) -> dict[str, list[str]]:
    """{Class.method: arguments}; an argument that may be left out ends in '='; '*' stands for itself."""
    classes = [(m.start(), m.group(1)) for m in CLASS.finditer(text)]
    found: dict[str, list[str]] = {name: [] for name in CONSTANT.findall(text)}
    for m in DEF.finditer(text):
        name = "__new__" if m.group(2) == "__cinit__" else m.group(2)
        if m.group(1):
            name = [c for at, c in classes if at < m.start()][-1] + "." + name
        arguments = []
        for argument in filter(None, (a.strip() for a in m.group(3).split(","))):
            before, default, _ = argument.partition("=")
            arguments.append(before.split()[-1].lstrip("*") + default if before != "*" else "*")
        found[name] = arguments[1:] if m.group(1) else arguments
    return found


def in_stub(text: str) -> dict[str, list[str]]:
    found = {}

    def function(prefix: str, f: ast.FunctionDef) -> None:
        given = f.args.args
        first = len(given) - len(f.args.defaults)
        arguments = [a.arg + "=" * (n >= first) for n, a in enumerate(given)]
        if f.args.kwonlyargs:
            arguments.append("*")
            pairs = zip(f.args.kwonlyargs, f.args.kw_defaults, strict=True)
            arguments += [a.arg + "=" * (default is not None) for a, default in pairs]
        found[prefix + f.name] = arguments[1:] if prefix else arguments

    for node in ast.parse(text).body:
        if isinstance(node, ast.AnnAssign):
            assert isinstance(node.target, ast.Name)
            found[node.target.id] = []
        elif isinstance(node, ast.FunctionDef):
            function("", node)
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                assert isinstance(inner, ast.FunctionDef), ast.dump(inner)
                function(f"{node.name}.", inner)
    return found


def modules() -> list[str]:
    """Those that have anything for Python."""
    return sorted(p.stem for p in PACKAGE.glob("*.pyx") if in_source(p.read_text()))


def test_there_are_some():
    assert {"_server", "_sys", "_testing"} <= set(modules())


@pytest.mark.parametrize("module", modules())
def test_stub(module):
    stub = PACKAGE / f"{module}.pyi"
    assert stub.exists(), f"{stub.name}: missing"
    assert in_stub(stub.read_text()) == in_source((PACKAGE / f"{module}.pyx").read_text())


def test_none_left_over():
    assert {p.stem for p in PACKAGE.glob("*.pyi")} == set(modules())
