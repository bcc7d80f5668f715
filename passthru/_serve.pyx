"""What every serving thread sets up for itself: scratch memory, its umask, its groups, its counters."""
from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from passthru._abi cimport *
from passthru._identity cimport data_try
from passthru._libc cimport *
from passthru._request cimport *
from passthru._stats cimport STATS_HEADER, ThreadStats


cdef void mask_signals() noexcept nogil:
    """Signals belong to the main thread; SIGUSR1 wakes a serving thread out of a system call."""
    cdef sigset_t all_but
    sigfillset(&all_but)
    sigdelset(&all_but, SIGUSR1)
    sigdelset(&all_but, SIGSEGV)
    sigdelset(&all_but, SIGBUS)
    sigdelset(&all_but, SIGABRT)
    sigdelset(&all_but, SIGSYS)
    pthread_sigmask(SIG_SETMASK, &all_but, NULL)


cdef void reserve_block(Server *s, unsigned n) noexcept nogil:
    """See that a block of counters can be written to: a store into a hole of a full filesystem is SIGBUS.

    If there is no room its pages become memory of our own; then nobody else sees these counters.
    """
    cdef uint64_t at = STATS_HEADER + n * sizeof(ThreadStats)
    cdef uint64_t first = page_down(at)
    cdef uint64_t end = page_up(at + sizeof(ThreadStats))
    if s.stats_fd < 0 or fallocate(s.stats_fd, 0, at, sizeof(ThreadStats)) == 0:
        return
    # A confined daemon has no fd of the file any more; this way it takes the blocks' memory at once.
    if madvise(<char *> s.stats + first, end - first, MADV_POPULATE_WRITE) < 0:
        mmap(<char *> s.stats + first, end - first, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)


cdef enum:
    IDS = 1024                 # bits of Server.ids


cdef unsigned id_take(Server *s) noexcept nogil:
    """The lowest number that no thread has: threads come and go, and blocks of counters are few."""
    cdef unsigned n = 0
    spin_lock(&s.ids_lock)
    while n < IDS - 1 and s.ids[n >> 6] >> (n & 63) & 1:
        n += 1
    s.ids[n >> 6] |= <uint64_t> 1 << (n & 63)
    if s.stats.used <= n:
        atomic_set32(&s.stats.used, n + 1)
    spin_unlock(&s.ids_lock)
    return n


cdef void id_give(Server *s, unsigned n) noexcept nogil:
    if n == IDS - 1:  # it may be of several
        return
    spin_lock(&s.ids_lock)
    s.ids[n >> 6] &= ~(<uint64_t> 1 << (n & 63))
    spin_unlock(&s.ids_lock)


cdef int context_open(Context *ctx, Server *s, unsigned kind, int cpu) noexcept nogil:
    """Make the calling thread a serving thread. 0 or -errno."""
    cdef int r
    memset(ctx, 0, sizeof(Context))
    ctx.server = s
    ctx.label_fd = -1
    ctx.id = IDS - 1
    mask_signals()
    # A umask and a working directory of its own; SETFSUID and groups are per thread anyway.
    if unshare(CLONE_FS) < 0 and (s.config.identity or s.config.own_umask):
        return -errno
    umask(0)
    if s.config.identity:
        r = sys_setgroups(0, NULL)
        if r < 0:
            return r
        r = sys_cap_drop_resource()
        if r < 0:
            return r
    data_try(ctx)
    ctx.scratch = <char *> aligned_alloc(4096, SCRATCH_SIZE)
    if ctx.scratch == NULL:
        return -ENOMEM
    ctx.id = id_take(s)
    if ctx.id < s.max_threads:
        reserve_block(s, ctx.id)
    # Threads of the pools may be many; they share the last block.
    ctx.stats = &s.thread_stats[ctx.id if ctx.id < s.max_threads else s.max_threads - 1]
    ctx.stats.kind = kind
    ctx.stats.cpu = cpu
    return 0


cdef void context_close(Context *ctx) noexcept nogil:
    if ctx.scratch != NULL:
        id_give(ctx.server, ctx.id)
    if ctx.label_fd >= 0:
        close(ctx.label_fd)
    ctx.label_fd = -1
    free(ctx.scratch)
    ctx.scratch = NULL
    if ctx.bounce_fd > 0:
        close(ctx.bounce_fd)
        ctx.bounce_fd = 0
