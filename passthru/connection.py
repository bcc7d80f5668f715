"""The kernel's connection of one mount: fuse fd, INIT's answer, the mount's place, status page, control socket.

It is made in steps (open(), negotiate(), attach()), or received from another process, where all of this was done. What
goes from one to the other is a Record, as a packet of JSON, with the fds.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from . import _sys, init, log, mounting
from .control import Control, SetOptions
from .errors import MountError, PassthruError, TransportError, reason
from .keeper import Keeper
from .options import PAGE, Options
from .status_page import Page, directory

CONNECTIONS = "/sys/fs/fuse/connections"
PACKET = 65536
NO_ANSWER = 1.0  # seconds for a thread to end that has failed to answer INIT


@dataclass(frozen=True)
class Agreement:
    """What INIT has agreed upon. flags: of init.CAPABILITIES; max_write: bytes of the largest READ or WRITE."""

    minor: int
    flags: int
    max_write: int


@dataclass(frozen=True)
class Record:
    """An attached connection without its fds. page: path of the status page, '' if its fd does not go along."""

    target: str
    mount_id: int
    dev: int
    page: str
    agreement: Agreement

    @classmethod
    def parse(cls, packet: bytes) -> Record:
        """The record in a packet. ValueError: it is none."""
        try:
            said = json.loads(packet)
            found = cls(**{**said, "agreement": Agreement(**said["agreement"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError("not the record of a connection") from None
        for part in (found, found.agreement):
            for f in fields(part):
                if f.name != "agreement" and type(getattr(part, f.name)).__name__ != f.type:
                    raise ValueError("not the record of a connection")
        return found

    def packet(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class Connection:
    """The connection of one mount.

    fuse_fd: of /dev/fuse. target: real path of the mountpoint. mount_id, dev: of the mount, dev is its st_dev; 0 before
    it is attached. agreement: None before INIT. by_fusermount: fusermount3 mounts, since this process may not.
    target_fd: of what it is mounted on, until then. keeper: who mounts and unmounts in our place, or None.
    page: None before make_page().
    """

    def __init__(self, fuse_fd: int, target: str):
        self.fuse_fd, self.target = fuse_fd, target
        self.mount_id, self.dev = 0, 0
        self.agreement: Agreement | None = None
        self.keeper: Keeper | None = None
        self.placed: Callable[[int, int], object] | None = None  # told of the mount at its place: an fd, its st_dev
        self.page: Page | None = None
        self.control: Control | None = None
        self._superblock: mounting.KernelMount | None = None
        self.target_fd = -1
        self.by_fusermount = False
        self._visible = False
        self._abort_fd = -1
        self._background_fds: tuple[int, ...] = ()

    # ------------------------------------------------------------- made here

    @classmethod
    def open(cls, fuse_fd: int, options: Options, target: str, target_fd: int, root_mode: int) -> Connection:
        """The connection of a mount that is to be made. target_fd: of what is at `target` now; taken over.

        Raises MountError.
        """
        found = cls(fuse_fd, target)
        found.target_fd = target_fd
        try:
            found._superblock = mounting.KernelMount(options, options.source, fuse_fd, root_mode)
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.ENOSYS):
                raise MountError(f"mount: {reason(e)}") from None
            found.by_fusermount = True
        return found

    def negotiate(self, options: Options, agree: Callable[[init.Init], Agreement]) -> None:
        """Make the superblock, and answer its INIT with what `agree` makes of it. Raises MountError, TransportError.

        By fusermount3 it is mounted at once.
        """
        if self._superblock is None:
            os.close(self.fuse_fd)
            self.fuse_fd = mounting.fusermount(options, options.source, self.target)
            self._visible = True
            here = mounting.mounted_at(self.target)
            if here is not None:
                self.mount_id, self.dev = here.mount_id, here.dev
                page = self._publish(here.dev)
                if self.keeper is not None:
                    self.keeper.mounted(self.dev, self.mount_id, page)
            self._answer(options, agree)
        elif _sys.sync_init(self.fuse_fd):
            self._create_answering(self._superblock, lambda: self._answer(options, agree))
        else:
            try:
                self._superblock.create()
            except OSError as e:
                raise MountError(f"mount: {reason(e)}") from None
            self._answer(options, agree)

    def _create_answering(self, superblock: mounting.KernelMount, answer: Callable[[], None]) -> None:
        """Make the superblock, which waits for INIT's answer: that is another thread's work."""
        failed: list[BaseException] = []

        def answering() -> None:
            try:
                answer()
            except BaseException as e:
                failed.append(e)
                os.close(self.fuse_fd)  # ends create()
                self.fuse_fd = -1

        thread = threading.Thread(target=answering, daemon=True)
        thread.start()
        try:
            superblock.create()
        except OSError as e:
            # If INIT never came, the thread waits in the kernel for good; it ends with the process.
            thread.join(NO_ANSWER)
            if failed:
                raise failed[0] from None
            raise MountError(f"mount: {reason(e)}") from None
        thread.join()
        if failed:
            raise failed[0]

    def _answer(self, options: Options, agree: Callable[[init.Init], Agreement]) -> None:
        try:
            data = os.read(self.fuse_fd, max(8192, options.max_write + PAGE))
        except OSError as e:
            raise MountError(f"INIT: {reason(e)}") from None
        request = init.parse(data)
        refused = init.too_old(request)
        if refused:
            os.write(self.fuse_fd, init.refusal(request, errno.EPROTO))
            raise MountError(refused)
        try:
            self.agreement = agree(request)
        except TransportError:
            os.write(self.fuse_fd, init.refusal(request, errno.EOPNOTSUPP))
            raise
        reply = init.reply(request, self.agreement.flags, options)
        if options.debug_fuse:
            log.trace(f"dev unique: {request.unique}, opcode: INIT (26), nodeid: 0, insize: {len(data)}, pid: 0\n"
                      f"   unique: {request.unique}, success, outsize: {len(reply)}")
        os.write(self.fuse_fd, reply)

    def attach(self, options: Options) -> None:
        """Put the mount at its place, unless fusermount3 has done so. Raises MountError."""
        if self._superblock is not None:
            try:
                self.dev, self.mount_id = self._superblock.attach(options, self._place)
            except OSError as e:
                raise MountError(f"mount on {self.target}: {reason(e)}") from None
            self._visible = True
            self._superblock.close()
        if self.page is not None and self.page.path is None:
            self.page.unlist()  # fusermount3's mount has gone already; later there may be no path to this file
        os.close(self.target_fd)

    def _place(self, mount_fd: int, dev: int) -> None:
        page = self._publish(dev)
        if self.keeper is not None:
            self.keeper.attach(mount_fd, page)
        else:
            _sys.move_mount(mount_fd, self.target_fd)
        if self.placed is not None:
            self.placed(mount_fd, dev)

    def _publish(self, dev: int) -> tuple[int, int]:
        """Name the page after the mount, whose st_dev is `dev`. Page.identity. Raises PassthruError."""
        assert self.page is not None
        try:
            self.page.publish(dev)
        except OSError as e:
            raise PassthruError(f"status page in {directory()}: {reason(e)}") from None
        return self.page.identity

    # ------------------------------------------------------------- from one process to another

    @classmethod
    def of(cls, record: Record, fds: Sequence[int]) -> Connection:
        """The connection that a record and its fds describe: that of /dev/fuse, and if there is a page, the page's.

        The fds are taken over. Nothing is mounted, and INIT has been answered. Raises ValueError, OSError.
        """
        if len(fds) != 1 + bool(record.page):
            raise ValueError("a connection's record with the wrong number of files")
        found = cls(fds[0], record.target)
        found.mount_id, found.dev, found.agreement = record.mount_id, record.dev, record.agreement
        if record.page:
            found.page = Page.received(Path(record.page), fds[1])
        return found

    def record(self) -> Record:
        """What another process needs to know, beside fds(). It has to be attached."""
        assert self.agreement is not None and self.mount_id
        page = str(self.page.path) if self.page is not None and self.page.has_file else ""
        return Record(self.target, self.mount_id, self.dev, page, self.agreement)

    def fds(self) -> list[int]:
        """The fds that go with the record."""
        return [self.fuse_fd] + ([self.page.fd] if self.page is not None and self.page.has_file else [])

    def send(self, to: socket.socket) -> None:
        """Hand the connection to whoever is at the other end of a SOCK_SEQPACKET socket; it stays ours too.

        Raises OSError.
        """
        socket.send_fds(to, [self.record().packet()], self.fds())

    @classmethod
    def receive(cls, sender: socket.socket) -> Connection:
        """The connection that send() hands over there. Raises OSError, ValueError.

        Who sends must be trusted: the fd could be any.
        """
        packet, fds, flags, _ = socket.recv_fds(sender, PACKET, 2)
        try:
            for fd in fds:
                os.set_inheritable(fd, False)  # recv_fds() ignores MSG_CMSG_CLOEXEC
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("a connection's record that is too long")
            return cls.of(Record.parse(packet), fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    # ------------------------------------------------------------- in use

    def clone(self, open_fuse: Callable[[], int]) -> int:
        """An fd for one more reader, by a new fd of /dev/fuse, or else a copy."""
        try:
            return _sys.clone_fuse_fd(self.fuse_fd, open_fuse())
        except OSError:
            return self.copy()

    def copy(self) -> int:
        """One more fd by which to read what comes to `fuse_fd`."""
        return os.dup(self.fuse_fd)

    def make_page(self, size: int) -> Page:
        """Make the status page, of so many bytes. Raises PassthruError."""
        try:
            self.page = Page(size)
        except OSError as e:
            raise PassthruError(f"status page in {directory()}: {reason(e)}") from None
        return self.page

    def listen(self, set_options: SetOptions) -> None:
        """Have `set_options` answer the control socket, if there is room for one. Raises PassthruError."""
        if self.page is None or self.page.path is None:
            return
        try:
            self.control = Control(self.page.path, set_options)
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise PassthruError(f"control socket in {directory()}: {reason(e)}") from None
            log.warning(f"control socket in {directory()}: {reason(e)}: this mount's options stay as they are")

    def hold_files(self, *, background: bool, aborting: bool = False) -> list[int]:
        """Open, while there are paths, what the kernel has for this connection: to abort it, and `background`:
        for set_max_background(). The fds; what cannot be had is left out.

        aborting: the keeper is to abort it if the daemon is killed.
        """
        with contextlib.suppress(OSError):  # without it, a source that hangs may keep clients as well
            self._abort_fd = self._open_file("abort", self._own_files())
            if self.keeper is not None and aborting:
                self.keeper.aborts_by(self._abort_fd)
        if background:
            with contextlib.suppress(OSError):  # it is said when they are wanted
                self._background_fds = self._open_background()
        return [fd for fd in (self._abort_fd, *self._background_fds) if fd >= 0]

    @property
    def _files(self) -> str:
        return f"{CONNECTIONS}/{os.minor(self.dev)}"

    def _open_file(self, name: str, top: int = -1) -> int:
        """top: what _own_files() has found; it is closed."""
        if top < 0:
            return os.open(f"{self._files}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            return os.open(f"{os.minor(self.dev)}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=top)
        finally:
            os.close(top)

    def _own_files(self) -> int:
        """A mount of our own of the files of all connections, where nobody has mounted them; else -1."""
        if os.path.exists(self._files):
            return -1
        context = _sys.fsopen(b"fusectl")
        try:
            _sys.fsconfig_create(context)
            return int(_sys.fsmount(context, 0))
        finally:
            os.close(context)

    def _open_background(self) -> tuple[int, ...]:
        return tuple(self._open_file(name) for name in ("max_background", "congestion_threshold"))

    def set_max_background(self, n: int) -> None:
        """It is the kernel's; INIT has told the first value. Raises PassthruError."""
        fds: tuple[int, ...] = ()
        try:
            fds = self._background_fds or self._open_background()
            for fd, value in zip(fds, (n, n * 3 // 4 or 1), strict=True):
                os.write(fd, str(value).encode())  # pwrite(2) is ESPIPE, and the position stays 0
        except OSError as e:
            raise PassthruError(f"max_background: {self._files}: {reason(e)}") from None
        finally:
            if fds != self._background_fds:
                for fd in fds:
                    os.close(fd)

    # ------------------------------------------------------------- the end

    def unmount(self) -> str:
        """As mounting.unmount(). Raises OSError."""
        if self.keeper is not None:
            return self.keeper.unmount()
        return mounting.unmount(self.target, self.mount_id, os.geteuid() == 0)

    def abort(self) -> None:
        """Nobody waits for answers any more: what is closed next may hang, and who has files open here is not to."""
        if self._abort_fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self._abort_fd, b"1")

    def hide(self) -> None:
        """From now on nobody finds this daemon: status page and socket go. May be called again."""
        if self.control is not None:
            self.control.close()
        # With a keeper they are its to remove: here these paths may lead into the source.
        if self.page is not None and (self.keeper is None or self.page.path is None):
            self.page.remove()
        if self.keeper is not None:
            self.keeper.dismiss()

    def close(self) -> None:
        """Give up what is ours of it. Another process that has it goes on; else the kernel ends it."""
        os.close(self.fuse_fd)
        self.fuse_fd = -1
        if self.page is not None:
            self.page.close()

    def undo(self) -> None:
        """Of a start that failed: unmount, if it is mounted."""
        if self._visible:
            try:
                self.unmount()
            except OSError as e:
                log.error(f"unmount {self.target}: {reason(e)}")
        if self._superblock is not None:
            self._superblock.close()
