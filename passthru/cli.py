"""The command line: exceptions become one line on stderr and an exit code here, and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from . import commands, log, sd_notify
from . import options as opts
from .errors import MountpointError, PassthruError, SourceError, reason, unexpected
from .stdio import close_inherited, quiet, standard_files
from .supervision import run


def background(
    options: opts.Options, before: Callable[[], None] | None = None, told: Callable[[str], None] | None = None
) -> int:
    """Serve in a child; the parent returns 0 when the mount is usable, else the error's exit code.

    before: what the child does first. told: gets a line that says what serves the mount.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child:
        os.close(write_end)
        with os.fdopen(read_end, "rb") as f:
            said = f.read()
        if said.startswith(b"ready "):
            line, *rest = os.fsdecode(said[6:]).split("\0")
            for note in rest:
                log.warning(note)
            if told is not None:
                told(line)
            return 0
        os.waitpid(child, 0)
        number, _, text = os.fsdecode(said).partition(" ")
        log.error(text or "the daemon ended before the mount was usable")
        return int(number) if number.isdigit() else 1
    os.close(read_end)
    os.setsid()
    os.chdir("/")

    def ready(line: str) -> None:
        quiet((0, 1) if options.log == "stderr" else (0, 1, 2))
        if options.log != "stderr":
            log.info(line)
        tell(b"ready " + os.fsencode("\0".join([line, *notes])))

    notes: list[str] = []

    def noted(idle: Sequence[str], advice: str) -> None:
        notes.extend([*idle, advice] if advice else idle)  # whoever has typed the command hears them; once

    def tell(word: bytes) -> None:
        nonlocal write_end
        if write_end >= 0:
            os.write(write_end, word)
            os.close(write_end)
            write_end = -1

    def failed(text: str) -> None:
        if write_end >= 0:
            tell(os.fsencode(f"{code} {text}"))
        else:
            log.error(text)

    code = 0
    try:
        opts.open_log(options)
        if before is not None:
            before()
        run(options, ready, notes=noted)
    except PassthruError as e:
        code = e.exit_code
        failed(str(e))
    except Exception as e:  # the parent waits for a word
        code = 1
        failed(unexpected(e))
    os._exit(code)


def foreground(options: opts.Options) -> int:
    """Serve in this process, as a service that tells its manager how it is. Raises PassthruError."""
    def ready(line: str) -> None:
        log.info(line)
        sd_notify.notify("READY=1", f"STATUS={line}")

    opts.open_log(options)
    with sd_notify.connected():
        try:
            run(options, ready, lambda: sd_notify.notify("STOPPING=1"))
        except PassthruError as e:
            sd_notify.notify(f"STATUS={e}")
            raise
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; the exit code (see errors.EXIT_CODES)."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0] in commands.COMMANDS:
            return commands.run(argv[0], argv[1:])
        options = opts.parse(argv, before=commands.summary())
        if not options.source:
            raise SourceError("source '': No such file or directory")
        if not options.mountpoint:
            raise MountpointError("mountpoint '': No such file or directory")
        options = replace(
            options, source=os.path.abspath(options.source), mountpoint=os.path.abspath(options.mountpoint))
        if not options.foreground:
            return background(options)
        return foreground(options)
    except PassthruError as e:
        log.error(str(e))
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as e:  # a fault of ours: the same form as in the background
        if "-d" in argv or "--debug" in argv:
            raise
        log.error(unexpected(e))
        return 1
    return 0


def script() -> None:
    """`passthru` and `python -m passthru`. Ends without the interpreter's teardown when a mount was served."""
    standard_files()
    if not (len(sys.argv) > 1 and sys.argv[1] in commands.COMMANDS):
        close_inherited()  # by an fd of another filesystem, or namespace, all of that could be reached
    # numpy's linear algebra, of which nothing is used, would have memory and threads for each CPU.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code: int | str | None
    try:
        code = main()
    except SystemExit as e:  # --help, --version
        code = e.code
    try:
        sys.stdout.flush()
    except OSError as e:
        if not code:
            log.error(f"standard output: {reason(e)}")
            code = 1
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)
