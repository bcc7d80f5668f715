"""docs/walk.md: each function is in the file named with it, and calls what is indented below it, in that order."""
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / "docs" / "walk.md"
STEP = re.compile(r"^( *)- `([\w/.]+): (?:\w+\.)?(\w+)\(\)`(?:, as `([\w.]+)`)?", re.MULTILINE)

pytestmark = pytest.mark.skipif(not DOC.exists(), reason="no documents here: a tree for debug builds")


@dataclass(frozen=True)
class Step:
    """A function in a file; called: how its caller names it."""

    depth: int
    file: str
    function: str
    called: str


def steps() -> list[list[Step]]:
    """Of each list in the document."""
    lists: list[list[Step]] = []
    text = DOC.read_text() if DOC.exists() else ""
    for m in STEP.finditer(text):
        step = Step(len(m[1]) // 2, m[2], m[3], m[4] or m[3])
        if step.depth == 0:
            lists.append([])
        lists[-1].append(step)
    return lists


def body(file: str, function: str) -> str | None:
    """A function's text, without comments and docstring; None: it is not there."""
    path = ROOT / "passthru" / file
    lines = path.read_text().splitlines() if path.exists() else []
    head = re.compile(rf"( *)(?:cdef|cpdef|def)\b[^=(]*\b{function}\(")
    for n, line in enumerate(lines):
        found = head.match(line)
        if not found:
            continue
        ends = (k for k in range(n, min(n + 6, len(lines))) if lines[k].rstrip().endswith((":", "nogil")))
        first = next(ends, n)
        if not lines[first].rstrip().endswith(":"):
            continue  # a declaration
        beyond = re.compile(rf" {{0,{len(found[1])}}}[^\s#)]")
        end = next((k for k in range(first + 1, len(lines)) if beyond.match(lines[k])), len(lines))
        text = "\n".join(re.sub(r"#.*", "", part) for part in lines[first + 1:end])
        return re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    return None


def calls(text: str, name: str) -> list[int]:
    """Where the calls of that name end: what is called in a call's arguments comes before it."""
    found = []
    for m in re.finditer(rf"(?<!\w){re.escape(name)}\(", text):
        at, depth = m.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
        found.append(at)
    return found


def below(found: list[Step], n: int) -> list[Step]:
    """What the step calls."""
    end = next((k for k in range(n + 1, len(found)) if found[k].depth <= found[n].depth), len(found))
    return [s for s in found[n + 1:end] if s.depth == found[n].depth + 1]


ALL = steps()
PAIRS = [(step, below(found, n)) for found in ALL for n, step in enumerate(found)]


def test_steps_are_found():
    """So that these tests can fail."""
    assert len(ALL) >= 5
    points = re.findall(r"^ *- ", DOC.read_text(), re.MULTILINE)
    assert len(PAIRS) == len(points), "a step has another form than `file: function()`"
    assert body("_ring.pyx", "handle_cqe") and body("_ring.pyx", "no_such_function") is None
    assert body("_no_such_file.pyx", "handle_cqe") is None
    assert "entry_commit" in (body("_ring.pyx", "entry_finish") or "")


@pytest.mark.parametrize("step", [s for found in ALL for s in found], ids=lambda s: f"{s.file}: {s.function}")
def test_function_is_there(step):
    assert body(step.file, step.function) is not None, f"{DOC.name}: no {step.function}() in passthru/{step.file}"


@pytest.mark.parametrize("caller, called", [p for p in PAIRS if p[1]], ids=lambda v: getattr(v, "function", ""))
def test_calls(caller, called):
    """In this order: each is found after the one before."""
    text = body(caller.file, caller.function)
    assert text is not None, f"{DOC.name}: no {caller.function}() in passthru/{caller.file}"
    at = 0
    for step in called:
        ends = [end for end in calls(text, step.called) if end > at]
        assert ends, f"{DOC.name}: passthru/{caller.file}: {caller.function}() does not call {step.called}() there"
        at = ends[0]
