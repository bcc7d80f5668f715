"""Which ways of serving a test module runs by."""
import pytest

# Transports carry the data themselves, so tests by "ring" and "dev" have kernel passthrough off. This adds
# the default, in which the kernel reads and writes the source's files.
DATA_TOO = pytest.mark.parametrize("transport", ["ring", "dev", "passthrough"], indirect=True)
