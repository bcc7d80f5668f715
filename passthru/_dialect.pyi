"""Types of _dialect.pyx: what is said there is not repeated here."""

DIALECTS: dict[int, str]
