"""Types of _mounts.pyx: what is said there is not repeated here."""

REMOTE: set[str]
STACKED: set[str]
