"""The documents speak of what there is: links lead somewhere, named files exist, no module is left out."""
import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from passthru import (
    _ops,
    api,
    capabilities,
    errors,
    init,
    monitor,
    mount_helper,
    options,
    sandbox,
    seccomp,
    stats,
    status_page,
)
from passthru.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
HABITS = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
DOCUMENTS = [ROOT / "README.md", *HABITS, *sorted((ROOT / "docs").glob("*.md"))]
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
    missing = [p.name for p in DOCUMENTS[1:] if f"({p.relative_to(ROOT)})" not in text]
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


def table(document: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    text = (ROOT / document).read_text()
    _, found, rest = text.partition(f"{heading}\n")
    assert found, f"{document}: no {heading!r}"
    lines = rest[rest.index("\n|") + 1:].partition("\n\n")[0].splitlines()
    return [re.split(r" (?<!\\)\| ", line.removeprefix("| ").removesuffix(" |")) for line in lines[2:]]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def cimported(module: str, used: str) -> set[str]:
    text = "".join(p.read_text() for p in (ROOT / "passthru").glob(f"{module}.p*"))
    found = re.findall(rf"^from passthru\.{used} cimport (\((?:.|\n)*?\)|.*)$", text, re.MULTILINE)
    return {name.strip() for names in found for name in names.strip("()").split(",") if name.strip()}


def test_transports_call_handlers_by_dispatch_only():
    """As docs/architecture.md says."""
    said = {
        "_ring": {"undelivered"}, "_bounce": {"undelivered"}, "_dev": {"undelivered", "op_in_size"}, "_dialect": set()}
    assert {module: cimported(module, "_ops") for module in said} == said
    operations = [name for name, row in rows().items() if row == rows()["_file"]]
    for module in said:
        taken = {name for used in operations for name in cimported(module, used)}
        assert not [name for name in taken if name == "*" or name.startswith("op_")], module


MOUNTING = ["cli", "child", "mount_helper", "session", "probe", "commands.check"]


@pytest.mark.parametrize("module", MOUNTING)
def test_a_mount_needs_no_numpy(module):
    """It would take a third of a daemon's memory, and of the time that a mount takes."""
    code = ("import importlib, sys\nsys.modules.update(numpy=None, psutil=None, rich=None)\n"
            f"importlib.import_module('passthru.{module}')\nassert 'passthru.stats' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_table_of_modules_is_current():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "modules.py", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_make_targets():
    """Each is in docs/developing.md."""
    names = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    said = set(re.findall(r"[\w-]+", " ".join(row[0] for row in table("docs/developing.md", "## Building"))))
    assert sorted(set(names) - said) == []


def code_blocks(document: str, *languages: str) -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_excerpts_are_the_code():
    """Each paragraph of an excerpt in C or Cython stands so in a file; a structure's lines each."""
    sources = [p.read_text() for p in (ROOT / "passthru").iterdir() if p.suffix in (".h", ".pyx", ".pxd")]
    found = [(piece, block) for block in code_blocks("docs/developing.md", "c", "cython")
             for piece in ([block] if "cdef" in block else block.splitlines(keepends=True))]
    assert len(found) >= 5
    for piece, _ in found:
        assert any(piece in source for source in sources), f"docs/developing.md, of no file:\n{piece}"


def test_picture_of_the_readme():
    """It is of the figures in bench/RESULTS.md, the worst among them, in the reader's colours, and text is text."""
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "readme.py", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (ROOT / "docs" / "speed.svg").read_text()
    assert "prefers-color-scheme: dark" in text and "git status</text>" in text


def test_lines_of_fstab():
    """Six fields each, as mount(8) reads them, and options that there are."""
    texts = [(ROOT / name).read_text() for name in ("docs/fstab.md", "README.md", "man/mount.passthru.8")]
    lines = [line for text in texts for line in re.findall(r"^/srv/\S+ +/mnt.*$", text, re.MULTILINE)]
    assert len(lines) >= 5
    for line in lines:
        fields = line.split()
        assert len(fields) == 6, line
        words = mount_helper.words(fields[3].replace("\\040", " "))
        options.parse(["-o", mount_helper.joined(words), "--", *fields[:2]])


def test_a_checkout_that_is_not_built_says_so(tmp_path):
    without = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
    shutil.copytree(ROOT / "passthru", tmp_path / "passthru", ignore=without)
    for words in (["list"], ["/src", "/mnt"], ["--version"]):
        # Not by the environment's own packages: an editable installation would find the modules elsewhere.
        done = subprocess.run([sys.executable, "-S", "-m", "passthru", *words], cwd=tmp_path, capture_output=True,
                              text=True, check=False, env={"PATH": "/usr/bin:/bin"})
        assert done.returncode == 1 and "\n" not in done.stderr.rstrip()
        assert done.stderr.startswith("passthru: the compiled modules are missing in "), done.stderr


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["help"], ["list", "--json"], ["check"]], ids=str)
def test_what_cannot_be_written_is_an_error(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "passthru", *words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE,
                              text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "passthru: standard output: No space left on device\n")


def test_exit_codes():
    rows = table("README.md", "An error is one line on standard error, and an exit code:")
    said = {int(code): text for code, text in rows}
    real = {code: str(text).rstrip(".") for code, text in errors.EXIT_CODES}
    assert said == {code: text[0].lower() + text[1:] for code, text in real.items()}


def test_exceptions_of_the_api():
    said = {quoted(row[0])[0]: row[-1].strip() for row in table("docs/api.md", "## Errors")}
    real = {f"passthru.{c.__name__}": str(c.exit_code) for c in vars(errors).values()
            if isinstance(c, type) and issubclass(c, errors.PassthruError)}
    assert {name: code for name, code in said.items() if name != "TypeError"} == real


def test_methods_of_the_api():
    said = {name.partition("(")[0] for row in table("docs/api.md", "## Mount") for name in quoted(row[0])}
    real = {name for name in vars(api.Mount) if not name.startswith("_")} | {"source", "mountpoint", "pid", "summary"}
    assert said == real


def test_live_options():
    said = {name for row in table("docs/monitoring.md", "## Changing options") for name in quoted(row[0])}
    assert said == set(options.live_options())


def test_capabilities_kept():
    text = " ".join(row[0] for row in table("docs/security.md", "**Capabilities** that root's daemon keeps:"))
    real = {name.removeprefix("CAP_"): n for name, n in vars(capabilities).items() if name.startswith("CAP_")}
    kept = {name for name, n in real.items() if n in sandbox.KEPT} | {"MAC_OVERRIDE", "MAC_ADMIN"}
    assert set(re.findall(r"\w+", text)) == kept


def test_levels_of_the_sandbox():
    said = [quoted(row[0])[0] for row in table("docs/security.md", "## The confined daemon")]
    assert sorted(said) == sorted(options.SANDBOX)


def test_system_calls_that_end_the_daemon():
    text = (ROOT / "docs" / "security.md").read_text().partition("Not among them: ")[2].partition(". Another call")[0]
    named = set(re.findall(r"\b[a-z_0-9]+\b", text))
    assert {"execve", "ptrace", "mount", "connect", "io_uring_setup"} <= named
    assert sorted(named & set(seccomp.rules(1))) == []


def test_versions_of_the_protocol():
    spoken = f"{init.MAJOR}.{init.MIN_MINOR} to\n{init.MAJOR}.{init.MINOR}"
    assert f"FUSE itself is {spoken}" in (ROOT / "docs" / "protocol.md").read_text()
    assert f"FUSE {init.MAJOR}.{init.MIN_MINOR} is the oldest" in (ROOT / "README.md").read_text()
    assert f"before {init.OLDEST} |" in (ROOT / "README.md").read_text()


def test_what_is_not_served():
    """docs/protocol.md names what is answered with ENOSYS; INIT never comes to a handler."""
    said = (ROOT / "docs" / "protocol.md").read_text().partition("Answered with ENOSYS: ")[2].partition(".")[0]
    real = {name for name, row in _ops.operations().items() if not row["served"]}
    assert set(said.split(", ")) == real - {"INIT"}


def test_what_tests_are_made_of():
    """Each name in docs/developing.md's table is there."""
    rows = table("docs/developing.md", "## Writing a test")
    conftest = (ROOT / "tests" / "kernel" / "conftest.py").read_text()
    assert len(rows) >= 5
    for row in rows:
        names = quoted(row[0])
        text = conftest
        if "(`" in row[0]:
            text = (ROOT / "tests" / "kernel" / f"{names.pop()}.py").read_text()
        assert [name for name in names if not re.search(rf"^(?:def )?{name}(?:\(| = )", text, re.MULTILINE)] == []


def test_counters_in_the_list_of_the_most_telling():
    said = {name for row in table("docs/developing.md", "Those most telling:") for name in quoted(row[0])}
    assert sorted(said - set(status_page.COUNTERS) - {"ops", "op_errors", "op_ns"}) == []


def constants(module: str) -> dict[str, int]:
    """The numbers of a module's enums."""
    text = "".join(p.read_text() for p in sorted((ROOT / "passthru").glob(f"{module}.p[yx]*")))
    found = re.findall(r"^    ([A-Z][A-Z_]+) = (\d+)\b", text, re.MULTILINE)
    return {name: int(n) for name, n in found}


def test_limits_of_the_pools():
    """The numbers in the documents are those of the code."""
    c = constants("_pool")
    waits, spares = c["WAITERS"], constants("_ring")["SPARES"]
    pool_threads = int(re.findall(r"^POOL_THREADS = (\d+)", "".join(
        p.read_text() for p in (ROOT / "passthru").glob("*.py")), re.MULTILINE)[0])
    assert spares == waits
    texts = {name: (ROOT / "docs" / name).read_text() for name in ("architecture.md", "limits.md", "security.md")}
    for document, said in (
            ("architecture.md", f"| `pool` | 0 to {pool_threads}, and 0 to {c['OTHERS_MOST']} for filesystems below"),
            ("architecture.md", f"| waiters, also `pool` | 0 to {waits},"),
            ("architecture.md", f"{spares} more for each queue at the most"),
            ("architecture.md", f"waits for locks ENOLCK, while {c['LOCK_RESERVE']} are left"),
            ("architecture.md", f"{c['OTHERS']} threads in all, and beyond that one each up to {c['OTHERS_MOST']}"),
            ("architecture.md", f"each remote filesystem below it has {c['ROW_LIMIT']}, "),
            ("architecture.md", f"one of {c['CROSS_LANES']} lanes with {c['CROSS_LIMIT']}"),
            ("architecture.md", f"{c['LANE_QUEUE']} requests wait in a lane at the most"),
            ("limits.md", f"{waits} waits for locks and leases at one time, {waits - c['LOCK_RESERVE']} of them"),
            ("security.md", f"| {waits} in all; {waits - c['LOCK_RESERVE']} on a CPU's queue |")):
        text = re.sub(r"\s+", " ", texts[document])
        assert said in text, f"docs/{document}: {said!r} is not there"


# Options of other programs in the documents, and of passthru's subcommands and tools.
OTHERS = set("""--setup --test --now --global --no-deps --reflink --bind --make-shared --device --timeout --json
    --prometheus --plot --batch --interval --count --remove --prefix --propagation --check --jobs --list --rows --target
    --baseline --rounds --seconds --size --source --only --claim --load --show --root --seed --page --scale --senders
    """.split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_options_are_there(document):
    known = {flag for action in options.parser()._actions for flag in action.option_strings} | OTHERS
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", document.read_text()))
    assert sorted(said - known) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_command_lines_are_parsed(document):
    """Mounts in the documents' examples: what they give is understood."""
    for block in re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True)
            if "passthru" in words[:1] and len(words) > 2 and words[1] not in COMMANDS and "[options]" not in words:
                options.parse(words[1:])


def test_sanitizers_tests_are_chosen_by_a_marker():
    """A list of names would leave a new file out, and nobody would see it."""
    text = (ROOT / ".ci" / "run").read_text()
    assert "-m 'not release_only'" in text and "test_" not in text.replace("test_*", "")
    for path in (ROOT / "tests" / "kernel").glob("test_*.py"):
        marks = re.findall(r"pytest\.mark\.release_only(.*)", path.read_text())
        assert all(re.match(r'\("\w[^"]{10,}"\)', m) for m in marks), f"{path.name}: without a reason"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_named_tests(document):
    for path, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", document.read_text()):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{document.name}: {path}::{name}"


def test_environment_variables():
    """Those that are read are in docs/developing.md, and those there are read."""
    said = set(re.findall(r"PASSTHRU_[A-Z_]+", (ROOT / "docs" / "developing.md").read_text()))
    read: set[str] = set()
    for where in ("start", "setup.py", "Makefile", ".ci/run", "tests/kernels", *(
            str(p.relative_to(ROOT)) for p in (*(ROOT / "tests").rglob("*.py"), *(ROOT / "passthru").rglob("*.py")))):
        if where != "tests/unit/test_docs.py":
            text = (ROOT / where).read_text()
            read |= set(re.findall(r"(?:environ\W+(?:get\()?\W?|\$\{|\()(PASSTHRU_[A-Z_]+)", text))
    assert read == said


# Functions of the kernel that comments name.
OF_THE_KERNEL = {"iget_locked", "vfs_fileattr_set"}


def test_comments_name_functions_that_are_there():
    """In compiled modules: what was renamed or taken away goes from the comments too."""
    texts = {p.name: p.read_text() for p in (ROOT / "passthru").rglob("*") if p.suffix in (".py", ".pyx", ".pxd", ".h")}
    comment = r'"""(?s:.*?)"""|#.*'
    known = {name for text in texts.values() for name in re.findall(r"\b(\w+)\(", re.sub(comment, "", text))}
    assert "open_reply" in known and "no_such_function" not in known
    for file, text in texts.items():
        if file.endswith((".pyx", ".pxd")):
            said = set(re.findall(r"\b([a-z_]\w+)\(\)", " ".join(re.findall(comment, text))))
            assert sorted(said - known - OF_THE_KERNEL) == [], file


def test_states_of_mounts():
    text = next(row[1] for row in table("docs/monitoring.md", "## What the figures mean") if row[0] == "state")
    states = {monitor.MOUNTED, monitor.DETACHED, monitor.ELSEWHERE, monitor.DEAD}
    assert [s for s in states if f"`{s}`" not in text] == []


def test_attributes_of_a_snapshot():
    said = {name.partition("(")[0] for row in table("docs/api.md", "## Counters") for name in quoted(row[0])}
    assert sorted(said - set(dir(stats.Snapshot)) - set(stats.Snapshot.__annotations__)) == []


def test_exit_codes_of_the_mount_helper():
    text = (ROOT / "docs" / "fstab.md").read_text().partition("which is one of mount(8)'s: ")[2].partition(".")[0]
    assert {int(n) for n in re.findall(r"\b\d+\b", text)} == {code for code, _ in mount_helper.EXIT_CODES} - {0}


@pytest.mark.parametrize("document", [p for p in DOCUMENTS if p.name in (
    "architecture.md", "developing.md", "protocol.md", "security.md", "CONTRIBUTING.md")], ids=lambda p: p.name)
def test_named_functions(document):
    """Each `function()` is defined somewhere; `Class.method()` by its method."""
    text = "".join(p.read_text() for p in (ROOT / "passthru").rglob("*") if p.suffix in (".py", ".pyx", ".pxd", ".h"))
    text += "".join((ROOT / "tests" / name).read_text() for name in ("fuzz.py", "unit/_served.py"))
    for name in re.findall(r"`(?:\w+\.)*(\w+)\(\)`", document.read_text()):
        defined = rf"^\s*(?:def|cdef|cpdef|static|class)\b[^=\n]*\b{name}\(|^\s*{name} = "
        assert re.search(defined, text, re.MULTILINE), f"{document.name}: no {name}()"
