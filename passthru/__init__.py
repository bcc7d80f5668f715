"""passthru: a passthrough filesystem that speaks FUSE over io_uring itself."""

from ._version import VERSION as __version__

__all__ = ["__version__"]
