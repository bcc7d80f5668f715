"""passthru: a passthrough filesystem that speaks FUSE over io_uring itself.

    with passthru.mount("/srv/data", "/mnt") as m:
        print(m.stats().ops())

docs/api.md says more.
"""

from typing import TYPE_CHECKING, Any

from ._version import VERSION as __version__
from .errors import MountError, MountpointError, PassthruError, SourceError, TransportError, UsageError

if TYPE_CHECKING:
    from . import stats
    from .api import Mount, check, mount
    from .options import Options
    from .stats import Snapshot

__all__ = [
    "Mount",
    "MountError",
    "MountpointError",
    "Options",
    "PassthruError",
    "Snapshot",
    "SourceError",
    "TransportError",
    "UsageError",
    "__version__",
    "check",
    "mount",
    "stats",
]

# Imported when first used: the command needs only some of them, and numpy takes its time.
_LATER = {"Mount": "api", "check": "api", "mount": "api", "Options": "options", "Snapshot": "stats"}


def __getattr__(name: str) -> Any:
    if name == "stats":
        from importlib import import_module

        return import_module(".stats", __name__)
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
