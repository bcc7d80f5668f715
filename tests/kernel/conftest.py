"""Mounts for tests, through both transports, and proof that nothing is left of them."""
from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from _daemon import KERNEL, RING_OPTIONS, Daemon, detach, mounts_below

from passthru import _server
from passthru.transport import PARAMETER, ring_parameter

SERVED: Counter[str] = Counter()
DAEMONS = pytest.StashKey[list[Daemon]]()
WARNING = re.compile(r"WARNING:|BUG:|Oops|refcount_t|blocked for more than")


def pytest_report_header() -> str:
    return f"passthru: {'debug' if _server.DEBUG else 'release'} build in {os.path.dirname(_server.__file__)}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With PASSTHRU_TEST_RING, only what may go by the ring: the rest does not depend on its options.

    With PASSTHRU_TEST_TRANSPORT, only what runs by that one and others: what has no choice does not depend on it.
    """
    only = os.environ.get("PASSTHRU_TEST_TRANSPORT", "")
    if not RING_OPTIONS and not only:
        return

    def wanted(item: pytest.Item) -> bool:
        by = item.callspec.params.get("transport", "") if isinstance(item, pytest.Function) and hasattr(
            item, "callspec") else ""
        return by == only if only else by in ("", "ring")

    left = [i for i in items if not wanted(i)]
    config.hook.pytest_deselected(items=left)
    items[:] = [i for i in items if i not in set(left)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the daemons said that they served by, and the counters have confirmed."""
    for how, count in sorted(SERVED.items()):
        terminalreporter.write_line(f"served by {how}: {count} mounts")


@pytest.fixture(scope="session", autouse=True)
def kernel_ready() -> Iterator[None]:
    """Root, and FUSE over io_uring switched on where the kernel has it."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount and set the kernel's parameter")
    if ring_parameter() != "N":
        yield
        return
    Path(PARAMETER).write_text("Y")
    yield
    Path(PARAMETER).write_text("N")


@contextmanager
def _quiet_kernel(problems: list[str]) -> Iterator[None]:
    """What the kernel log says meanwhile must be no warning."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(fd, 0, os.SEEK_END)
    yield
    try:
        while True:
            try:
                line = os.read(fd, 8192).decode(errors="replace")
            except BrokenPipeError:  # overwritten before we read it
                continue
            if WARNING.search(line):
                problems.append("kernel log: " + line.partition(";")[2].splitlines()[0])
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _open_files() -> dict[int, str]:
    """fds of this process and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # that of the listing
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the test's own that other users may enter. PASSTHRU_TEST_DIR: on what filesystem."""
    base = os.environ.get("PASSTHRU_TEST_DIR", "/var/tmp")
    where = Path(tempfile.mkdtemp(prefix="passthru-", dir=base)).resolve()
    where.chmod(0o755)
    yield where
    for target in reversed(mounts_below(where)):
        detach(target)
    shutil.rmtree(where)


@pytest.fixture(params=["ring", "dev"])
def transport(request: pytest.FixtureRequest) -> str:
    """Each test that mounts runs once by each; tests of file data besides by "passthrough" (see _modes)."""
    if request.param == "ring" and not ring_parameter():
        pytest.skip("this kernel has no FUSE over io_uring")
    if request.param == "passthrough" and KERNEL < (6, 9):
        pytest.skip("this kernel has no FUSE passthrough")
    return request.param


@pytest.fixture
def mount(transport: str, place: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Daemon]]:
    """mount(*options, source=..., mountpoint=...) starts a daemon, checked and ended after the test."""
    daemons: list[Daemon] = []
    request.node.stash[DAEMONS] = daemons
    marker = request.node.get_closest_marker("timeout")
    usual = request.config.getoption("timeout") or request.config.getini("timeout")
    patience = (marker.args[0] if marker else float(usual or 120)) - 20
    problems: list[str] = []

    def start(
        *options: str, source: Path | None = None, mountpoint: Path | None = None, started: bool = True
    ) -> Daemon:
        src = source if source is not None else place / "src"
        mnt = mountpoint if mountpoint is not None else place / f"mnt{len(daemons) or ''}"
        for path in (src, mnt):
            if not path.exists():
                path.mkdir()
        by, data = transport, "--no-passthrough"
        if transport == "passthrough":
            by, data = "ring" if ring_parameter() else "dev", "--passthrough"
        daemon = Daemon(src, mnt, by, (data, *options), place / f"stderr{len(daemons)}", patience)
        daemons.append(daemon)
        return daemon.start() if started else daemon

    with _quiet_kernel(problems):
        before = _open_files()
        yield start
        problems += [f"left open: fd {n} {what}" for n, what in _open_files().items() if n not in before]
        SERVED.update(daemon.how() for daemon in daemons if daemon.served)
        for daemon in reversed(daemons):
            problems += daemon.finish() if hasattr(daemon, "process") else []
    problems += [f"mount left: {target}" for target in mounts_below(place)]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture
def fs(mount: Callable[..., Daemon]) -> Daemon:
    """A plain mount of an empty source."""
    return mount()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """A failure shows how to do it by hand and what the daemon said."""
    report = yield
    if report.failed:
        for daemon in item.stash.get(DAEMONS, []):
            report.sections.append(("by hand", daemon.repeat()))
            report.sections.append(("the daemon's stderr", daemon.stderr()))
    return report
