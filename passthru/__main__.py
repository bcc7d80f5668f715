"""python -m passthru, and the command's entry point: here it is told why the rest cannot be loaded."""

import os
import sys


def _cannot_load(error: ImportError) -> str:
    here = os.path.dirname(os.path.abspath(__file__))
    built = any(name.endswith(".so") for name in os.listdir(here))
    if not built:
        return (f"the compiled modules are missing in {here}: a checkout is built with ./start --setup, or by "
                "'pip install .' elsewhere")
    if "failed to map segment" in str(error) or "allocate memory" in str(error):
        return "too little memory: look at ulimit -v, and at a container's limits"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else '?'}"


def script() -> None:
    try:
        from .cli import script as run
    except ImportError as e:
        sys.stderr.write(f"passthru: {_cannot_load(e)}\n")
        sys.exit(1)
    except MemoryError:
        sys.stderr.write("passthru: too little memory: look at ulimit -v, and at a container's limits\n")
        sys.exit(1)
    run()


if __name__ == "__main__":
    script()
