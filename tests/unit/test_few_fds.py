"""A cache of very few fds, and several threads that use them: nobody gets an fd that another one is closing."""
from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Callable

from _served import ATTR, OPCODES, Queue, apart, served

from passthru import _testing

FILES, FDS, SECONDS = 100, 2, 5
LISTED, ASKED = 20, 1000  # at the least, however long it takes
CHUNK = 1024  # nodeids of a thread lie together


def ready(core, node: int) -> _testing.Requests:
    """A GETATTR of that nodeid, to be served again and again."""
    q = _testing.Requests(core, 4096)
    header = struct.pack("=IIQQIIIHH", 56, OPCODES["GETATTR"], 9, node, 0, 0, 1, 0, 0)
    assert q.parse(header.ljust(256, b"\0") + struct.pack("=QQIIQ", 0, 9, 0, 0, 0))[0] == 0
    return q


@apart
def test_fds_are_not_used_while_they_are_closed(tmp_path):
    """One thread lists names with attributes and forgets them, so that fds come and go all the time; another asks for
    the same inodes' attributes. An fd that was closed under it would be EBADF, or another file's."""
    (tmp_path / "src").mkdir()
    for n in range(FILES):
        (tmp_path / "src" / f"f{n}").touch()
    said: set[int] = set()
    counts = {"listed": 0, "asked": 0}
    failed: list[BaseException] = []
    with served(tmp_path / "src", fd_cache=FDS) as m:
        core, end = m.core, time.monotonic() + SECONDS
        right = {ATTR, -errno.ESTALE}
        slots: list[int] = []
        begun, asking, using = threading.Event(), threading.Event(), threading.Lock()

        def going_on() -> bool:
            enough = time.monotonic() >= end and counts["listed"] > LISTED and counts["asked"] > ASKED and said == right
            return said <= right and not enough and not failed

        def failing(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as e:
                failed.append(e)
                begun.set()

        def lister() -> None:
            q = Queue(core)
            node, _ = q.lookup(b"f0")
            slots.extend(range(node // CHUNK * CHUNK, (node // CHUNK + 1) * CHUNK))
            begun.set()
            everything = b"".join(struct.pack("=QQ", node, 2) for node in slots)
            while going_on():
                handle, _ = q.open(1, os.O_RDONLY, name="OPENDIR")
                asking.set()
                result, _ = q.ask("READDIRPLUS", 1, struct.pack("=QQI20x", handle, 0, 65536))
                assert result > FILES * 152
                asking.clear()
                q.release(1, handle, "RELEASEDIR")
                with using:  # what a request names is not forgotten
                    q.ask("BATCH_FORGET", 0, struct.pack("=II", len(slots), 0), everything)
                counts["listed"] += 1

        def asker() -> None:
            begun.wait()
            asked = [ready(core, node) for node in slots[:FILES:2]]
            while going_on():
                asking.wait(0.1)
                with using:
                    for q in asked:
                        said.add(q.serve()[0])
                counts["asked"] += len(asked)

        threads = [threading.Thread(target=failing, args=(work,)) for work in (lister, asker)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if failed:
            raise failed[0]
        assert said == right, f"{counts}"
        assert core.live == (1, 0)
