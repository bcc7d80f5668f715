"""Acting as another user."""
from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

NOBODY = 65534


def as_user(uid: int, gid: int, groups: Sequence[int], act: Callable[[], Any], umask: int = 0o022) -> Any:
    """What act() returns or raises in a child process with these ids. An OSError comes as its errno."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            os.umask(umask)
            try:
                said: Any = (True, act())
            except OSError as e:
                said = (False, OSError(e.errno, e.strerror))
            except Exception as e:
                said = (False, RuntimeError(f"{type(e).__name__}: {e}"))
            os.write(write_end, pickle.dumps(said))
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as f:
        data = f.read()
    os.waitpid(child, 0)
    good, result = pickle.loads(data)
    if not good:
        raise result
    return result
