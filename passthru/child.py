"""The daemon's process of a mount made by passthru.mount().

    python -m passthru.child FD PARENT [options] SOURCE MOUNTPOINT

FD: a SOCK_SEQPACKET socket to the parent. One word goes out, "ready SUMMARY" or "CODE MESSAGE"; one may
come in, "detach", which is answered with "detached". PARENT: the parent's process id.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from dataclasses import replace
from types import FrameType

from . import log, options
from .errors import PassthruError, UsageError, by_exit_code
from .stdio import quiet


def outcome(said: bytes) -> str:
    """The parent's side: the summary in the child's word, or its error raised as the right PassthruError."""
    word, _, text = os.fsdecode(said).partition(" ")
    if word == "ready":
        return text
    if not word:
        raise PassthruError("the daemon ended before the mount was usable")
    raise by_exit_code(int(word))(text)


def opened(parent: int) -> int:
    """A pidfd of the process `parent`, or -1: it has gone."""
    try:
        # Not a signal at the parent's death (prctl(2)): that is the death of the thread that called mount().
        return os.pidfd_open(parent)
    except ProcessLookupError:
        return -1


def watch(parent: int, pidfd: int, words: socket.socket, asked: options.Options) -> None:
    """Unmount when the process `parent` ends, unless the word "detach" comes before."""
    if os.getppid() == parent and pidfd >= 0:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(words, select.POLLIN)
        while pidfd not in (ready := [fd for fd, _ in poll.poll()]):
            if words.fileno() in ready:
                if words.recv(64) == b"detach":
                    quiet()
                    if asked.log == "auto":
                        options.open_log(replace(asked, foreground=False))
                    words.send(b"detached")
                    return
                poll.unregister(words)  # the parent has closed its end
    os.kill(os.getpid(), signal.SIGTERM)


def stop(number: int, frame: FrameType | None) -> None:
    """A signal during the start: what was made is undone."""
    sys.exit(128 + number)


def main() -> int:
    fd, parent, *argv = sys.argv[1:]
    words = socket.socket(fileno=int(fd))
    words.set_inheritable(False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the caller's may be any
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    from .supervision import run

    told = False
    pidfd = opened(int(parent))  # a daemon that serves may not ask for one (--sandbox)

    def ready(summary: str) -> None:
        nonlocal told
        told = True
        threading.Thread(target=watch, args=(int(parent), pidfd, words, asked), daemon=True).start()
        words.send(b"ready " + os.fsencode(summary))

    try:
        asked = replace(options.parse(argv), foreground=True)
        if asked.supervise:
            raise UsageError("--supervise: not for a mount that is made from Python yet")
        options.open_log(asked)
        run(asked, ready)
    except (PassthruError, OSError) as e:
        code = e.exit_code if isinstance(e, PassthruError) else 1
        text = str(e) if isinstance(e, PassthruError) else f"{type(e).__name__}: {e}"
        if told:
            log.error(text)
        else:
            words.send(os.fsencode(f"{code} {text}"))
        return code
    return 0


if __name__ == "__main__":
    try:
        code = main()
    except SystemExit as e:
        code = int(e.code or 0)
    sys.stderr.flush()
    os._exit(code)  # no teardown: the threads may still be in the kernel
