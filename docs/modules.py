"""Writes the table of modules in docs/developing.md from what each file says of itself in its first sentence.

`python docs/modules.py` writes it; with --check it only says whether it is current.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "developing.md"
BEGIN, END = "<!-- modules: written by docs/modules.py -->\n", "<!-- end of modules -->\n"
NO_WORD = {"__init__.py", "__main__.py", "_version.py"}
SENTENCE = re.compile(r"(.*?[.])(?:\s|$)", re.DOTALL)


def head(path: Path) -> str:
    """What stands at the top of a file: its docstring, or its first comment."""
    text = path.read_text()
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    if path.suffix == ".pyx":
        found = re.match(r'"""(.*?)"""', text, re.DOTALL)
        return found.group(1) if found else ""
    if path.suffix == ".h":
        blocks = (re.sub(r"^ ?\*", "", b, flags=re.MULTILINE) for b in re.findall(r"/\*(.*?)\*/", text, re.DOTALL))
        return next((b.strip() for b in blocks if "SPDX" not in b), "")
    found = re.match(r"((?:#.*\n)+)", text)
    return re.sub(r"^# ?", "", found.group(1), flags=re.MULTILINE) if found else ""


def first_sentence(text: str) -> str:
    """The first sentence, in one line."""
    paragraph = text.strip().partition("\n\n")[0]
    found = SENTENCE.match(paragraph)
    words = (found.group(1) if found else paragraph).split()
    return " ".join(words).rstrip(".").replace("|", "\\|")


def files() -> list[Path]:
    """Each module's file; of a .pyx with a .pxd the first."""
    package = ROOT / "passthru"
    found = [*package.glob("*.h"), *package.glob("*.pyx"), *package.rglob("*.py")]
    found += [p for p in package.glob("*.pxd") if not p.with_suffix(".pyx").exists()]
    return sorted(p for p in found if p.name not in NO_WORD or p.parent != package)


def table() -> str:
    """The table. Raises ValueError for a file that says nothing of itself."""
    out = "| file | what |\n|---|---|\n"
    for path in files():
        said = first_sentence(head(path))
        if not said:
            raise ValueError(f"{path.relative_to(ROOT)} does not say at its top what it is")
        out += f"| `{path.relative_to(ROOT)}` | {said} |\n"
    return out


def written(text: str) -> str:
    """The document with the table as it is to be."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{DOCUMENT.name} has no place for the table")
    return before + BEGIN + table() + END + after


def main() -> int:
    text = DOCUMENT.read_text()
    new = written(text)
    if sys.argv[1:] != ["--check"]:
        DOCUMENT.write_text(new)
    elif new != text:
        print(f"{DOCUMENT}: the table of modules is not current; run: python docs/modules.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
