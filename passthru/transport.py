"""How requests come: by the ring, in which form, or by /dev/fuse. What is wanted, what is offered, what it came to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from . import init
from .capabilities import CAP_SYS_ADMIN, capable_of_all
from .errors import TransportError, UsageError, reason
from .options import Options
from .status_page import DIALECTS

PARAMETER = "/sys/module/fuse/parameters/enable_uring"
NUMBERS = {name: n for n, name in DIALECTS.items()}
PER_ENTRY, BUFRING, BUFPOOL = (NUMBERS[name] for name in ("per-entry", "bufring", "bufpool"))


def ring_parameter() -> str:
    """'Y', 'N', or '' if the kernel has no such parameter."""
    try:
        with open(PARAMETER, encoding="ascii") as f:
            return f.read().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Form:
    """In which form a queue is to be registered (QueueThread.register())."""

    dialect: int = PER_ENTRY
    forced: bool = False
    zero_copy: bool = False
    pin_buffers: bool = False
    pin_headers: bool = False


@dataclass(frozen=True)
class Outcome:
    """In which form it was registered. buffers: payload buffers of the queue, if its entries share them."""

    dialect: int
    buffers: int
    pinned: bool
    zero_copy: bool


class Transport:
    """The choice for one mount. why: what a ring that was wanted failed of; outcome: of the ring's queues."""

    def __init__(self, options: Options):
        self._options = options
        self.ring = options.transport != "dev"
        self.why = ""
        self.form = Form()
        self.outcome = Outcome(PER_ENTRY, 0, False, False)

    def prepare(self) -> None:
        """Is the ring to be tried? Raises UsageError, TransportError."""
        o = self._options
        if not self.ring and (o.dialect != "auto" or o.zero_copy == "on"):
            raise UsageError("--dialect and --zero-copy are of the ring, which --transport dev refuses")
        if o.enable_uring and self.ring and ring_parameter() == "N":
            try:
                with open(PARAMETER, "w", encoding="ascii") as f:
                    f.write("Y")
            except OSError as e:
                raise TransportError(f"--enable-uring: {PARAMETER}: {reason(e)}") from None
        if self.ring and ring_parameter() != "Y":
            if ring_parameter() == "N":
                self.no_ring(f"{PARAMETER} is N; --enable-uring (root) or 'echo Y >' sets it")
            else:
                self.no_ring("this kernel has no FUSE over io_uring (Linux 6.14)")

    def no_ring(self, why: str) -> None:
        """/dev/fuse serves, or, if that was not to be, TransportError is raised."""
        o = self._options
        if o.transport == "ring" or o.dialect != "auto" or o.zero_copy == "on":
            raise TransportError(f"no ring transport: {why}")
        self.ring, self.why = False, why

    @property
    def advice(self) -> str:
        """What was lost because the kernel's parameter is N, and how to get it; '' if that is not so."""
        if self.ring or self._options.transport == "dev" or ring_parameter() != "N":
            return ""
        return (f"/dev/fuse serves, and not the faster io_uring, as {PARAMETER} is N: --enable-uring (root) or "
                "'echo Y >' sets it for mounts to come, --transport dev is content with it")

    def readers(self) -> int:
        """How many threads read /dev/fuse."""
        return 1 if self.ring else self._options.threads or max(4, min(16, len(os.sched_getaffinity(0))))

    def choose(self, request: init.Init, pin_buffers: bool) -> None:
        """Choose by what the kernel offers; a form that it does not know ends its ring. Raises TransportError."""
        o = self._options
        if self.ring and not request.offers("OVER_IO_URING"):
            self.no_ring("the kernel did not offer it in INIT")
        if not self.ring:
            return
        best = NUMBERS[request.dialects[-1]]
        wanted = NUMBERS.get(o.dialect, best)
        # Buffer rings zero-copy with everything pinned or not at all.
        unpinned = wanted == BUFRING and not (pin_buffers and o.pin_headers)
        zero_copy = best != PER_ENTRY and wanted == best and o.zero_copy != "off" and not unpinned \
            and capable_of_all(CAP_SYS_ADMIN)
        if o.zero_copy == "on" and not zero_copy:
            if best == PER_ENTRY:
                why = "--zero-copy: this kernel has none (Linux 7.3)"
            elif wanted != best:
                why = f"--zero-copy: not with the {o.dialect} dialect on this kernel"
            elif unpinned:
                why = "--zero-copy: this kernel wants pinned buffers and headers for it"
            else:
                why = "--zero-copy: needs CAP_SYS_ADMIN, not only in a user namespace"
            raise TransportError(why)
        if wanted not in (PER_ENTRY, best):
            raise TransportError(f"this kernel has no {o.dialect} dialect (FUSE 7.{request.minor})")
        self.form = Form(wanted, o.dialect != "auto", zero_copy, pin_buffers, o.pin_headers)

    def registered(self, outcome: OSError | Sequence[Outcome]) -> None:
        """The queues have been registered, or one could not be. Raises TransportError."""
        if isinstance(outcome, OSError):
            self.no_ring(f"REGISTER: {reason(outcome)}")
            return
        self.outcome = Outcome(
            min(q.dialect for q in outcome), min(q.buffers for q in outcome),
            all(q.pinned for q in outcome), all(q.zero_copy for q in outcome))
        if self._options.zero_copy == "on" and not self.outcome.zero_copy:
            raise TransportError("--zero-copy: the kernel refused it")
