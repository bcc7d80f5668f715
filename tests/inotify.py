"""What inotify(7) tells of directories: for the tests, and by hand: inotify.py DIRECTORY... prints it until killed."""
from __future__ import annotations

import ctypes
import os
import select
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path

NAMES = {
    0x2: "MODIFY", 0x4: "ATTRIB", 0x8: "CLOSE_WRITE", 0x40: "MOVED_FROM", 0x80: "MOVED_TO", 0x100: "CREATE",
    0x200: "DELETE", 0x400: "DELETE_SELF", 0x800: "MOVE_SELF", 0x4000: "Q_OVERFLOW", 0x8000: "IGNORED",
}
NAMED = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200
ISDIR = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
Event = tuple[str, str, str, int]  # directory (its key), what, name, which rename; 0: none


class Watcher:
    """Watches directories, each by a key that the caller chooses."""

    def __init__(self, directories: dict[str, Path], mask: int = NAMED):
        self.fd = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.keys: dict[int, str] = {}
        self.cookies: dict[int, int] = {}
        for key, path in directories.items():
            wd = LIBC.inotify_add_watch(self.fd, os.fsencode(path), mask)
            if wd < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(path))
            self.keys[wd] = key

    def events(self) -> list[Event]:
        """What has come since the last call."""
        found: list[Event] = []
        while True:
            try:
                data = os.read(self.fd, 1 << 18)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                wd, mask, cookie, length = struct.unpack_from("iIII", data, at)
                name = data[at + 16:at + 16 + length].rstrip(b"\0").decode()
                at += 16 + length
                what = "|".join(n for bit, n in NAMES.items() if mask & bit) + ("|ISDIR" if mask & ISDIR else "")
                which = self.cookies.setdefault(cookie, len(self.cookies) + 1) if cookie else 0
                found.append((self.keys.get(wd, ""), what, name, which))

    def until(self, last: str, seconds: float = 20) -> list[Event]:
        """What comes until the name `last` is told as made, and not that."""
        found: list[Event] = []
        end = time.monotonic() + seconds
        while not any(what.startswith("CREATE") and name == last for _, what, name, _ in found):
            if time.monotonic() > end:
                raise TimeoutError(f"{last} was not told; {len(found)} events were, the last ones {found[-5:]}")
            select.select([self.fd], [], [], 0.1)
            found += self.events()
        at = next(n for n, e in enumerate(found) if e[1].startswith("CREATE") and e[2] == last)
        return found[:at]

    def close(self) -> None:
        os.close(self.fd)


def squeezed(events: Iterable[Event]) -> list[Event]:
    """Without what repeats the one before it, which the kernel may tell once or twice."""
    found: list[Event] = []
    for e in events:
        if not found or e != found[-1]:
            found.append(e)
    return found


def main() -> None:
    watcher = Watcher({path: Path(path) for path in sys.argv[1:]})
    while True:
        select.select([watcher.fd], [], [])
        for directory, what, name, which in watcher.events():
            print(f"{directory}/{name} {what}" + (f" #{which}" if which else ""), flush=True)


if __name__ == "__main__":
    main()
