"""What a daemon says of its mount: the line at the start, and the header of the status page."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import Any

from .connection import Connection
from .options import Options
from .passing import Passing
from .sandbox import Sandbox
from .source import Source
from .status_page import DIALECTS
from .transport import PER_ENTRY, Transport


@dataclass(frozen=True)
class Takeover:
    """Of a mount with --supervise: how many daemons have been taken over from, of what the last one died, for how many
    milliseconds nobody served then, and which process serves."""

    count: int
    reason: str
    pause_ms: float
    daemon: int


@dataclass(frozen=True)
class Served:
    """How a mount is served.

    queues: how many there are, depth: entries of each, queue_threads: who serve them; readers: of /dev/fuse.
    passing: where the kernel reads and writes files itself; identity: the daemon acts as its callers; fixed: nothing is
    written past the source's end. cached: what the kernel keeps of names and attributes.
    """

    options: Options
    source: Source
    transport: Transport
    sandbox: Sandbox
    queues: int
    depth: int
    queue_threads: int
    readers: int
    passing: Passing
    identity: bool
    fixed: bool
    cached: str
    takeover: Takeover | None = None


def summary(s: Served, target: str) -> str:
    """A line that says what serves the mount."""
    o, form = s.options, s.transport.outcome
    if s.transport.ring:
        how = f"ring transport, {DIALECTS[form.dialect]} dialect"
        if form.dialect != PER_ENTRY:
            how += f" ({form.buffers} {'pinned ' if form.pinned else ''}buffers each)"
        how += f", {s.queues} queues x {s.depth} entries"
        if s.queue_threads < s.queues:
            how += f" by {s.queue_threads} thread{'s' * (s.queue_threads > 1)}"
        if form.zero_copy:
            how += ", zero-copy"
    else:
        how = f"/dev/fuse transport, {s.readers} threads"
    if s.passing.text:
        how += f", {s.passing.text}"
    if not s.source.directory:
        how += f", {s.source.kind}" + (f" kept at {s.source.size} bytes" if s.fixed else "")
    if o.map_uid or o.map_gid:
        how += ", mapped ids"
    how += f", sandbox {s.sandbox.level}"
    if o.null_io:
        how += ", NO DATA IS READ OR WRITTEN"
    if not s.identity:
        how += f", as uid {os.geteuid()}: what is made belongs to it, and it is checked as it"
    why = f" ({s.transport.why})" if s.transport.why else ""
    return f"{o.source} on {target}: {how}{why}"


def describe(s: Served, connection: Connection) -> None:
    """Tell the status page what serves the mount; from now on it is complete."""
    assert connection.page is not None
    page, ring, form = connection.page, s.transport.ring, s.transport.outcome
    page.describe(
        dialect=form.dialect if ring else 0, queues=s.queues if ring else 0, depth=s.depth if ring else 0,
        buffers=form.buffers if ring and form.dialect != PER_ENTRY else 0, readers=s.readers,
        pinned=ring and form.pinned, zero_copy=ring and form.zero_copy, identity=s.identity,
        fuse_dev=connection.dev, mount_id=connection.mount_id,
        source=os.fsencode(s.options.source), mountpoint=os.fsencode(connection.target))
    describe_options(s, connection)
    page.describe(transport=1 if ring else 2)  # last


def describe_options(s: Served, connection: Connection) -> dict[str, Any]:
    """Tell the status page which options are in effect; these."""
    assert connection.page is not None
    o = s.options
    values = {f.name: getattr(o, f.name) for f in fields(o) if f.metadata and not f.metadata["hidden"]}
    connection.page.describe(passthrough=s.passing.happens)
    connection.page.settings(values, s.transport.why, s.sandbox.text, s.cached, s.passing.but_on,
                             asdict(s.takeover) if s.takeover is not None else None)
    return values
