"""The documents speak of what there is: links lead somewhere, named files exist, no module is left out."""
import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from passthru.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INNER = {"__init__", "__main__", "_version"}  # modules that need no word
MODULES = {p.stem for p in (ROOT / "passthru").iterdir() if p.suffix in (".py", ".pyx", ".pxd")} - INNER

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="no documents here: a tree for debug builds")


def anchors(document: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in heads}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{document.name}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_named_files(document):
    pattern = r"(?<![\w/.-])(?<!--plot )(?:passthru|tests|bench|man|docs|tools)/[\w./-]*\w\.\w+"
    for name in re.findall(pattern, document.read_text()):
        assert (ROOT / name).exists(), f"{document.name}: {name}"


def test_every_document_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    missing = [p.name for p in DOCUMENTS[1:] if f"docs/{p.name}" not in text]
    assert not missing


def test_every_command_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"`passthru {name}" not in text] == []


def rows() -> dict[str, int]:
    """The row of each module in the table of layers; the first counts."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("\n## Modules")[2].partition("\n## ")[0]
    cells = [row.split(" | ")[1] for row in re.findall(r"^\| (.*) \|$", table, re.MULTILINE)]
    found: dict[str, int] = {}
    for n, cell in enumerate(cells):
        for name in re.findall(r"`(\w+)`", cell):
            found.setdefault(name, n)
    return found


def test_modules_are_in_the_architecture():
    """Each module in the table of layers, and nothing that is gone."""
    named = rows().keys()
    assert sorted(MODULES - named - {"_abi", "_libc"}) == []
    assert sorted(named - MODULES - {"commands"}) == []


def compiled() -> Iterator[tuple[str, str]]:
    """(module, module that it uses)."""
    for path in (ROOT / "passthru").iterdir():
        if path.suffix in (".pyx", ".pxd"):
            for used in re.findall(r"^from passthru\.(\w+) cimport", path.read_text(), re.MULTILINE):
                if used not in (path.stem, "_abi", "_libc"):
                    yield path.stem, used


def python() -> Iterator[tuple[str, str]]:
    for path in (ROOT / "passthru").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and path.stem not in INNER:
                for used in [node.module] if node.module else [a.name for a in node.names]:
                    yield path.stem, used


def test_compiled_modules_use_what_is_above():
    place = rows()
    assert not [f"{a} uses {b}" for a, b in compiled() if place[b] > place[a]]


@pytest.mark.parametrize("uses", [compiled, python])
def test_nothing_is_used_in_a_circle(uses):
    graph: dict[str, set[str]] = {}
    for a, b in uses():
        graph.setdefault(a, set()).add(b)
    assert len(graph) > 5
    TopologicalSorter(graph).prepare()
