"""One mount's server as Python sees it: thin wrappers around the C structures.

Threads are Python threads that stay in one `with nogil` call for their life; Python
brings them up and down (serving.py), and no Python object is touched while they serve.
"""
import os

from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strncpy

from passthru._abi cimport *
from passthru._arena cimport arena_new
from passthru._backing cimport backing_forget, backings_sweep
from passthru._confine cimport confine_thread
from passthru._dev cimport DevThread, dev_close, dev_open, dev_serve
from passthru._dialect cimport worker_register, worker_spoil
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._gate cimport gate
from passthru._idmap cimport map_caller
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._ops cimport dispatch, ops_init
from passthru._journal cimport journal, journal_complete
from passthru._lock cimport lock_fd, locks_adopt, locks_free, locks_new
from passthru._notify cimport notify_resend
from passthru._openfile cimport files_adopt, files_destroy
from passthru._pool cimport pool_busy, pool_cancel, pool_start, pool_stop, waiters_start
from passthru._request cimport *
from passthru._ring cimport Queue, Worker, worker_close, worker_open, worker_serve, worker_wake
from passthru._slab cimport CHUNK_BITS, slab_at, slab_init_in
from passthru._stats cimport *
from passthru._trace cimport trace_switch

DEBUG = bool(DEBUG_BUILD)
PSEUDO = FS_PSEUDO
SERVER = FS_SERVER
NOSUID = FS_NOSUID
NODEV = FS_NODEV
NOEXEC = FS_NOEXEC
OPCODES = FUSE_OPCODES
# What configure() takes: what outlives a file's close, and which files opened with O_DIRECT are not passed through.
KEEP = {"nothing": KEEP_NOTHING, "unchanged": KEEP_UNCHANGED, "all": KEEP_ALL}
PARALLEL_WRITES = {"off": PARALLEL_NEVER, "auto": PARALLEL_AUTO, "on": PARALLEL_ALWAYS}
cdef list left_behind = []  # objects that threads which hang use on


cdef int check(int r, what) except -1:
    if r < 0:
        raise OSError(-r, os.strerror(-r), what)
    return r


def split_timeout(double seconds):
    """(seconds, nanoseconds) of a timeout in seconds."""
    whole = int(seconds)
    return whole, min(int((seconds - whole) * 1e9), 999999999)


def ranges(numbers):
    """Numbers as a kernel list, such as b"0-3,8"."""
    runs = {}  # {first: last}
    first = None
    for n in sorted(numbers):
        if first is None or n != runs[first] + 1:
            first = n
        runs[first] = n
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs.items()).encode()


cdef fill_map(IdMap *m, pairs, others_act_as, others_show_as):
    if len(pairs) > MAX_PAIRS:
        raise ValueError("too many pairs")
    for n, (mount, source, count) in enumerate(pairs):
        m.pairs[<unsigned> n].mount = mount
        m.pairs[<unsigned> n].source = source
        m.pairs[<unsigned> n].count = count
    m.count = len(pairs)
    m.others_act_as = others_act_as
    m.others_show_as = others_show_as


cdef class ServerCore:
    """Tables, pool and configuration of one mount.

    root_fd: the source, a directory, regular file or block device, opened O_RDONLY; stays the
    caller's. fixed_size: a regular file keeps the size that it has now. stats: a writable
    buffer of stats_size(max_threads) bytes. All sizes in bytes. What may change while it serves, configure() sets.
    own_and_root: refuse requests of others. all_submounts, trust_modes: see Config. mountinfo: an fd of
    /proc/self/mountinfo, which stays the caller's; -1: filesystems are asked for what they are.
    stats_fd: the file that `stats` maps, where it has blocks for the header; stays the caller's; -1: there is none.
    arena: bytes of addresses for what a successor of this process takes over (adopt()); 0: there will be none.
    Raises OSError with the failing call's errno.
    """
    def __cinit__(self, int root_fd, stats, unsigned max_threads, unsigned pool_threads,
                  unsigned fd_cache, *, unsigned payload_size, unsigned max_write, uint64_t fixed_budget,
                  bint identity, bint locks, bint xattr, bint writeback, bint own_and_root=False,
                  bint null_io=False, bint fixed_size=False, bint all_submounts=False, bint trust_modes=False,
                  int mountinfo=-1, int stats_fd=-1, uint64_t arena=0):
        cdef char[::1] view = stats
        cdef statx stx
        cdef char path[FD_PATH]
        cdef int fd
        memset(&self.s, 0, sizeof(Server))
        self.s.below_fd = -1
        if view.shape[0] < stats_size(max_threads):
            raise ValueError("stats buffer too small")
        self.stats_buffer = view
        self.stats_base = &view[0]
        self.s.stats = <StatsHeader *> self.stats_base
        self.s.thread_stats = <ThreadStats *> (self.stats_base + STATS_HEADER)
        self.s.max_threads = max_threads
        self.s.stats_fd = stats_fd
        self.s.root_fd = root_fd
        cdef Config *c = &self.s.config
        c.max_write = max_write
        c.payload_size = payload_size
        c.fixed_budget = fixed_budget
        c.identity = identity
        c.own_umask = unshare(CLONE_FS) == 0  # needs no privilege, but some containers forbid unshare(2)
        c.locks = locks
        c.xattr = xattr
        c.writeback = writeback
        c.all_submounts = all_submounts
        c.trust_modes = trust_modes
        ops_init(null_io)
        self.s.dispatch = dispatch
        if arena:
            self.s.arena = arena_new(arena)
            check(-ENOMEM if self.s.arena == NULL else 0, "shared memory")
            self.s.journaled = self.s.dispatch
            self.s.dispatch = journal
            self.s.complete = journal_complete
        if own_and_root:
            self.s.owner = os.geteuid()
            self.s.admitted = self.s.dispatch
            self.s.dispatch = gate
        check(slab_init_in(&self.s.files, sizeof(OpenFile), self.s.arena), "table of open files")
        self.s.files.live = &self.s.stats.handles
        check(-errno if c_statx(root_fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0 else 0, "source")
        if stx.stx_mode & S_IFMT == S_IFDIR:
            c.root = ROOT_TREE
        elif stx.stx_mode & S_IFMT == S_IFBLK:
            c.root = ROOT_DEVICE
        else:
            c.root = ROOT_FIXED if fixed_size else ROOT_FILE
            c.fixed_size = stx.stx_size
        c.mirrored = O_APPEND | O_DIRECT | O_NONBLOCK | O_NOATIME
        if writeback or c.root in (ROOT_FIXED, ROOT_DEVICE):
            c.mirrored &= ~<uint32_t> O_APPEND  # the kernel knows where the end is, see source_flags()
        # By the fd, since a mount may lie over the source's name.
        fd_path(path, root_fd)
        fd = open(path, O_PATH | O_CLOEXEC)
        check(-errno if fd < 0 else 0, "source")
        check(table_init(&self.s.inodes, fd, fd_cache, &self.s.files, mountinfo, self.s.arena),
              "inode table")
        self.s.stats.inodes = self.s.inodes.slab.count  # the root
        self.s.inodes.slab.live = &self.s.stats.inodes
        self.s.pool = pool_start(&self.s, pool_threads)
        self.s.waiters = waiters_start(&self.s)
        self.s.locks = locks_new(self.s.arena)
        if self.s.pool == NULL or self.s.waiters == NULL or self.s.locks == NULL:
            raise MemoryError()
        self.s.stats.version = STATS_VERSION
        self.s.stats.header_size = STATS_HEADER
        self.s.stats.block_size = sizeof(ThreadStats)
        self.s.stats.threads = max_threads
        self.s.stats.pid = os.getpid()
        self.s.stats.max_write = max_write
        self.s.stats.payload_size = payload_size
        self.s.stats.magic = STATS_MAGIC

    def negotiated(self, uint64_t flags, unsigned minor, int fuse_fd, bint passthrough):
        """The INIT reply's flags and minor version; may files be passed through by the kernel?"""
        self.s.fuse_fd = fuse_fd
        self.s.config.passthrough = passthrough
        if passthrough:
            self.s.inodes.server = &self.s
            self.s.inodes.forget = forget_backing
        self.s.config.direct_opens = (flags & FUSE_DIRECT_IO_ALLOW_MMAP) != 0
        self.s.config.selinux = (flags & FUSE_SECURITY_CTX) != 0
        self.s.stats.init_flags = flags
        self.s.stats.minor = minor

    def configure(self, *, double attr_timeout, double entry_timeout, double negative_timeout, double spin_us,
                  bint direct_io, str keep_cache, str parallel_writes, bint passthrough):
        """Set what may be changed while requests are served: once before, then at any time, by one thread at a time.

        Timeouts in seconds. keep_cache: of KEEP; parallel_writes: of PARALLEL_WRITES. Without it nothing is kept.
        A request may see a mixture of old and new values: each is valid by itself.
        """
        cdef Config *c = &self.s.config
        c.keep_cache = KEEP[keep_cache]
        c.parallel_writes = PARALLEL_WRITES[parallel_writes]
        c.attr_valid, c.attr_valid_nsec = split_timeout(attr_timeout)
        c.entry_valid, c.entry_valid_nsec = split_timeout(entry_timeout)
        c.negative_valid, c.negative_valid_nsec = split_timeout(negative_timeout)
        c.spin_ns = <uint64_t> (spin_us * 1000)
        c.direct_io = direct_io
        c.passthrough = passthrough

    def map_ids(self, uids, gids):
        """Ids differ in mount and source: each a triple of pairs (mount, source, count), what others of the mount's
        users act as, and what others of the source's owners show as, or 0xffffffff. Before anything is served."""
        fill_map(&self.s.uids, uids[0], uids[1], uids[2])
        fill_map(&self.s.gids, gids[0], gids[1], gids[2])
        self.s.config.mapped = 1
        # Behind the gate, if there is one: who is let in is a question of the mount's ids.
        cdef Handler *step = &self.s.admitted if self.s.admitted != NULL else &self.s.dispatch
        self.s.mapped = step[0]
        step[0] = map_caller

    def keep(self, uint64_t entry, uint64_t negative, uint64_t attr, uint64_t file):
        """How many seconds the kernel keeps names, absent ones, attributes, and those of regular files.

        That is where changes are told; 0: as long as elsewhere.
        """
        cdef Config *c = &self.s.config
        c.kept_entry = entry
        c.kept_negative = negative
        c.kept_attr = attr
        c.kept_file = file

    def trace(self, bint on):
        """Log each request and its reply (--debug-fuse), or no longer. At any time, by one thread at a time."""
        trace_switch(&self.s, on)

    def zero_copy(self, bint on, uint64_t smallest):
        """Open files for zero-copy (Linux 7.3): those opened with O_DIRECT, and of `smallest` bytes or more."""
        self.s.config.zero_copy = on
        self.s.config.zero_copy_min = smallest

    def mounted_below(self, uint64_t dev, uint64_t ino, bytes name, int fd):
        """The mountpoint is `name` in the source's directory (dev, ino); fd, taken over, is what lies under it."""
        if len(name) >= sizeof(self.s.below_name):
            raise OSError(ENAMETOOLONG, os.strerror(ENAMETOOLONG), os.fsdecode(name))
        strncpy(self.s.below_name, name, sizeof(self.s.below_name) - 1)
        self.s.below_dev = dev
        self.s.below_ino = ino
        self.s.below_fd = fd

    def mounted_elsewhere(self):
        """The mountpoint's name in the source leads to what lies under the mount, for this process. At any time."""
        atomic_seti(<int32_t *> &self.s.below_fd, -1)  # whoever uses it just now still may

    def mounted(self, uint64_t dev):
        """The mount's st_dev: found below the source it is not walked into."""
        self.s.fuse_dev = dev

    def next_daemon(self):
        """A process is about to be made that serves; how many there have been with that."""
        self.s.arena.daemons += 1
        return self.s.arena.daemons

    def adopt(self):
        """Take over what a process has left that has died, as it left it. Before anything is served.

        Fds are left to the caller: all that fds() does not name are nobody's.
        """
        cdef uint64_t n
        cdef Inode *i
        with nogil:
            self.s.stats.backings = 0
            for n in range(self.s.max_threads):
                self.s.thread_stats[n].kind = 0
            table_reset(&self.s.inodes)
            files_adopt(&self.s)
            table_adopt(&self.s.inodes)
            locks_adopt(&self.s)
            for n in range(<uint64_t> self.s.inodes.slab.chunks << CHUNK_BITS):
                i = inode_at(&self.s.inodes, n)
                if i != NULL and i.backing > 0:
                    self.s.stats.backings += 1

    def fds(self):
        """The fds that inodes, open files, filesystems and owners of locks have."""
        cdef uint64_t n
        cdef int fd
        cdef Inode *i
        cdef OpenFile *file
        cdef set found = set()
        for n in range(<uint64_t> self.s.inodes.slab.chunks << CHUNK_BITS):
            i = inode_at(&self.s.inodes, n)
            if i != NULL and i.fd >= 0:
                found.add(i.fd)
        for n in range(<uint64_t> self.s.files.chunks << CHUNK_BITS):
            file = <OpenFile *> slab_at(&self.s.files, n)
            if file != NULL and file.kind != OF_FREE:
                found.update((file.fd, file.cache_fd))
        for n in range(self.s.inodes.fs_count):
            if self.s.inodes.fs[n].live:
                found.add(self.s.inodes.fs[n].mount_fd)
        n = 0
        fd = lock_fd(&self.s, n)
        while fd != -2:
            found.add(fd)
            n += 1
            fd = lock_fd(&self.s, n)
        return found

    def resend(self):
        """Have the kernel send again what a process has read from /dev/fuse that has died. Raises OSError."""
        check(notify_resend(&self.s), "FUSE_NOTIFY_RESEND")

    def mounts_changed(self):
        """The mount table may be another one now."""
        with nogil:
            mounts_changed(&self.s.inodes)

    def sweep(self):
        """Let go of what has been idle since the last call. By one thread; it may take a moment."""
        with nogil:
            backings_sweep(&self.s)
            table_sweep(&self.s.inodes)

    def enforced(self, unsigned flags):
        """Our own mount has these of NOSUID, NODEV and NOEXEC for all that it shows."""
        self.s.inodes.enforced = flags
        self.s.inodes.fs[0].flags &= ~flags

    @property
    def source_is(self):
        """What the source's filesystem and mount are: PSEUDO, SERVER, NOSUID, NODEV, NOEXEC."""
        return self.s.inodes.fs[0].flags

    def no_backing(self):
        """Files of the source's own filesystem are not passed through by the kernel, which refuses them."""
        self.s.inodes.fs[0].flags |= FS_NO_BACKING

    @property
    def fs_changes(self):
        """Another number when `filesystems` may have changed."""
        return atomic_get32(&self.s.inodes.fs_changes)

    @property
    def filesystems(self):
        """Those that hold data and that the mount shows just now, the source's first.

        Of each: its mount's number in mountinfo(5), major and minor number of its device, and are its files passed
        through by the kernel, as far as is known? No lock is taken: a row may be one that just comes or goes.
        """
        cdef InodeTable *t = &self.s.inodes
        cdef Filesystem *f
        cdef uint32_t n
        found = []
        for n in range(atomic_get32(&t.fs_count)):
            f = &t.fs[n]
            if f.live and not f.flags & FS_PSEUDO:
                found.append((f.number, f.dev_major, f.dev_minor, not f.flags & FS_NO_BACKING))
        return found

    @property
    def own_umask(self):
        """Each serving thread has a umask of its own."""
        return bool(self.s.config.own_umask)

    @property
    def source_remote(self):
        """The source is a network filesystem, or a daemon's: its files may wait for long."""
        return bool(self.s.inodes.fs[0].flags & FS_REMOTE)

    @property
    def live(self):
        """(inodes, open files and directories) known now; the root counts."""
        return self.s.inodes.slab.live[0], self.s.files.live[0]

    def stop(self):
        """Ask all threads to end when they have nothing in flight; wake them besides. No lock is waited for."""
        atomic_set32(&self.s.stop, 1)
        with nogil:
            pool_cancel(self.s.waiters)

    @property
    def hangs(self):
        """Some request is still with a pool: at the end, one that hangs in the source."""
        return pool_busy(self.s.pool) + pool_busy(self.s.waiters) > 0

    def close(self):
        """Free everything; False: requests that hang in the source still use it, and all is left to the process's end.

        All serving threads must have ended.
        """
        cdef bint ended
        with nogil:
            pool_cancel(self.s.waiters)
            ended = pool_stop(self.s.waiters)
            ended = pool_stop(self.s.pool) and ended
        if not ended:
            left_behind.append(self)
            return False
        self.s.waiters = self.s.pool = NULL
        if self.s.below_fd >= 0:
            close(self.s.below_fd)
            self.s.below_fd = -1
        table_destroy(&self.s.inodes)
        files_destroy(&self.s)
        locks_free(self.s.locks)
        self.s.locks = NULL
        return True


cdef void forget_backing(void *server, Inode *i) noexcept nogil:
    backing_forget(<Server *> server, i)


def stats_size(unsigned max_threads):
    """Bytes of the status page for that many serving threads."""
    return STATS_HEADER + max_threads * sizeof(ThreadStats)


cdef class QueueThread:
    """The server of some queues. open(), register() and serve() are called by one thread, its own."""
    cdef ServerCore core
    cdef Worker w
    cdef bint opened

    def __cinit__(self, ServerCore core):
        self.core = core
        memset(&self.w, 0, sizeof(Worker))
        self.w.wake_fd = -1

    def open(self, qids, unsigned depth, unsigned buffers, unsigned unpinned, int cpu):
        """Create the ring, header slots and payload memory for the queues `qids`. OSError if it cannot be.

        buffers: payload buffers of each queue, if the dialect pools them and they can be pinned; unpinned: else.
        """
        cdef unsigned *ids = <unsigned *> calloc(len(qids), sizeof(unsigned))
        cdef unsigned n
        cdef int r
        cdef unsigned count = len(qids)
        if ids == NULL:
            raise MemoryError()
        for n in range(count):
            ids[n] = qids[n]
        with nogil:
            r = worker_open(&self.w, &self.core.s, ids, count, depth, buffers, unpinned, cpu)
        free(ids)
        self.opened = True
        check(r, "io_uring")
        strncpy(self.w.ctx.stats.queues, ranges(qids), sizeof(self.w.ctx.stats.queues) - 1)

    def register(self, int fuse_fd, unsigned dialect, bint forced, bint zero_copy, bint pin_buffers, bint pin_headers):
        """Hand all entries to the kernel. OSError: the ring is off for this connection.

        forced: no other dialect will do. What it came to is in `outcome`.
        """
        cdef int r
        self.w.want_dialect = dialect
        self.w.forced = forced
        self.w.want_zero_copy = zero_copy
        self.w.want_pinned = pin_buffers
        self.w.want_pinned_headers = pin_headers
        with nogil:
            r = worker_register(&self.w, fuse_fd)
        check(r, "FUSE_IO_URING_CMD_REGISTER")

    @property
    def outcome(self):
        """(dialect, buffers, pinned, zero-copy) of the first queue, after register()."""
        cdef Queue *q = &self.w.queues[0]
        return q.dialect, q.buffers, bool(q.pinned), bool(q.zero_copy)

    def spoil(self):
        """After a failed register(): have the kernel turn the ring off for this connection."""
        if self.w.nqueues:
            with nogil:
                worker_spoil(&self.w)

    def serve(self):
        """Serve until the connection ends or the session stops. Entries that the kernel still has."""
        with nogil:
            confine_thread()
            worker_serve(&self.w)
        return self.w.alive

    def wake(self):
        worker_wake(&self.w)

    @property
    def error(self):
        """The errno that ended serve(), or 0."""
        return -self.w.error

    def release(self):
        """After the thread and all pools have ended: nobody wakes it any more."""
        if self.w.wake_fd >= 0 and not self.w.ctx.pooled:
            close(self.w.wake_fd)
            self.w.wake_fd = -1

    def close(self):
        """Free ring and memory; refused (False) while the kernel may still write to it."""
        if not self.opened:
            return True
        if self.w.alive or self.w.ctx.inflight or self.w.ctx.pooled:
            left_behind.append(self)
            return False
        with nogil:
            worker_close(&self.w)
        self.opened = False
        return True


cdef class ReaderThread:
    """A reader of /dev/fuse; all methods but wake() are called by its own thread."""
    cdef ServerCore core
    cdef DevThread t

    def __cinit__(self, ServerCore core):
        self.core = core
        memset(&self.t, 0, sizeof(DevThread))
        self.t.fd = -1

    def open(self, int fd):
        """Serve `fd`, which it takes over."""
        cdef int r
        with nogil:
            r = dev_open(&self.t, &self.core.s, fd)
        check(r, "/dev/fuse")

    def serve(self):
        """Serve until the connection ends or the session stops; the errno that ended it, or 0."""
        with nogil:
            confine_thread()
            dev_serve(&self.t)
        return self.t.error

    def wake(self):
        """Get the thread out of read(2); to be repeated until it has ended."""
        if self.t.tid:
            sys_tgkill(self.t.tid, SIGUSR1)

    def close(self):
        if self.t.out:
            left_behind.append(self)
            return
        with nogil:
            dev_close(&self.t)
