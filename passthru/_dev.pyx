"""The /dev/fuse transport (fuse(4)): read(2) a request, write(2) its reply.

It serves everything where there is no ring, and beside one FORGET, INTERRUPT and what
comes before the ring is ready. Handlers get the same Request as from the ring.
"""
from libc.errno cimport errno
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from passthru._abi cimport *
from passthru._arena cimport INTENTS, arena_alloc
from passthru._libc cimport *
from passthru._ops cimport op_in_size, undelivered
from passthru._pool cimport end_by, nap, pool_cancel
from passthru._request cimport *
from passthru._serve cimport context_close, context_open
from passthru._stats cimport T_DEV, stats_answered

cdef enum:
    # Write data follows these in the request; it is read to a page boundary.
    WRITE_HEADERS = sizeof(fuse_in_header) + sizeof(fuse_write_in)


cdef int dev_open(DevThread *t, Server *s, int fd) noexcept nogil:
    """Make the calling thread a reader of fd. 0 or -errno."""
    cdef int r
    memset(t, 0, sizeof(DevThread))
    t.fd = fd
    r = context_open(&t.ctx, s, T_DEV, -1)
    if r < 0:
        return r
    t.tid = sys_gettid()
    t.free = request_new(t)
    return 0 if t.free != NULL else -ENOMEM


cdef DevRequest *request_new(DevThread *t) noexcept nogil:
    """A request's buffers; how many there are is bounded by the requests that wait at one time."""
    cdef size_t room = t.ctx.server.config.payload_size
    cdef DevRequest *d = <DevRequest *> calloc(1, sizeof(DevRequest))
    cdef void *m
    if d == NULL:
        return NULL
    d.req.intent = &d.none
    if t.ctx.server.arena != NULL:
        m = intent_take(t, d, 2 * (PAGE + room))
    else:
        m = mmap(NULL, 2 * (PAGE + room), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if m == MAP_FAILED:
        free(d)
        return NULL
    d.thread = t
    d.region = <char *> m
    d.in_buf = d.region + PAGE - WRITE_HEADERS
    d.in_size = room + WRITE_HEADERS
    d.req.out = d.region + PAGE + room + PAGE  # the out header lies right before it
    d.req.out_cap = <uint32_t> room
    d.req.complete = d.req.answered = dev_complete
    if t.ctx.server.complete != NULL:
        d.req.complete = t.ctx.server.complete
    return d


cdef void *intent_take(DevThread *t, DevRequest *d, size_t size) noexcept nogil:
    """Give a request an intent of the arena, with memory that is there: or MAP_FAILED.

    The kernel fails a request (EIO) that a thread takes which is being killed, if there is a page that is not mapped.
    """
    cdef Server *s = t.ctx.server
    cdef Intent *it = NULL
    cdef uint32_t n
    spin_lock(&s.intents_lock)
    for n in range(INTENTS):
        it = &s.arena.intents[(s.intents + n) % INTENTS]
        if it.taken != s.arena.daemons and not it.unique:
            it.taken = s.arena.daemons
            n = (s.intents + n) % INTENTS
            s.intents = (n + 1) % INTENTS
            if n >= s.arena.intents_used:
                atomic_set32(&s.arena.intents_used, n + 1)
            break
        it = NULL
    spin_unlock(&s.intents_lock)
    if it == NULL:
        return MAP_FAILED
    if it.region == NULL:
        it.region = <char *> arena_alloc(s.arena, size)
    if it.region == NULL:
        return MAP_FAILED
    madvise(it.region, size // 2, MADV_POPULATE_WRITE)
    d.req.intent = it
    return it.region


cdef void request_delete(DevRequest *d) noexcept nogil:
    if d.req.intent == &d.none:
        munmap(d.region, 2 * (PAGE + d.req.out_cap))
    else:
        d.req.intent.taken = 0
    free(d)


cdef DevRequest *request_take(DevThread *t) noexcept nogil:
    cdef DevRequest *d
    spin_lock(&t.lock)
    d = t.free
    if d != NULL:
        t.free = d.next
    spin_unlock(&t.lock)
    return d if d != NULL else request_new(t)


cdef void request_give(DevRequest *d) noexcept nogil:
    spin_lock(&d.thread.lock)
    d.next = d.thread.free
    d.thread.free = d
    spin_unlock(&d.thread.lock)


cdef void reply(DevRequest *d, int result) noexcept nogil:
    """Write the reply; what the kernel does not take is given back."""
    cdef Request *r = &d.req
    cdef fuse_out_header *out = <fuse_out_header *> (r.out - sizeof(fuse_out_header))
    cdef size_t length = sizeof(fuse_out_header)
    if result == NOREPLY:
        return
    out.error = 0
    if result >= 0:
        length += result
    else:
        out.error = result
    stats_answered(r.ctx.stats, r.h.opcode, r.start, out.error < 0)
    out.len = <uint32_t> length
    out.unique = r.h.unique
    r.ctx.stats.dev_replies += 1
    if write(d.thread.fd, out, length) < 0 and result > 0:
        undelivered(r, result)
    r.intent.unique = 0


cdef void dev_complete(Request *r, int result) noexcept nogil:
    """Completer of pooled requests, on the pool's thread."""
    cdef DevRequest *d = <DevRequest *> r
    cdef DevThread *t = d.thread
    reply(d, result)
    request_give(d)
    atomic_sub32(&t.out, 1)


cdef int take_in(DevThread *t, DevRequest *d, size_t n) noexcept nogil:
    """Make the Request of n bytes read, and serve it. A result as of a handler."""
    cdef Request *r = &d.req
    cdef size_t head = sizeof(fuse_in_header)
    if n < head:
        return NOREPLY
    memcpy(&r.h, d.in_buf, head)
    r.ctx = &t.ctx
    r.interrupted = 0
    r.away = AT_HOME
    if r.h.opcode in (FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_INTERRUPT):
        if r.h.len != n:
            return NOREPLY
    else:
        t.ctx.stats.dev_requests += 1
        if r.h.len != n:
            return -EIO
    head += op_in_size(r.h.opcode)
    r.op_in = d.in_buf + sizeof(fuse_in_header)
    r.arg = d.in_buf + head
    r.arg_len = <uint32_t> (n - head) if n > head else 0
    if n < head:
        return -EINVAL if r.h.opcode not in (FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_INTERRUPT) else NOREPLY
    return t.ctx.server.dispatch(r)


cdef void dev_serve(DevThread *t) noexcept nogil:
    """Serve until the connection ends (ENODEV, ECONNABORTED) or Server.stop."""
    cdef Server *s = t.ctx.server
    cdef DevRequest *d = NULL
    cdef ssize_t n
    cdef int result
    while not atomic_get32(&s.stop):
        if d == NULL:
            d = request_take(t)
            if d == NULL:
                sched_yield()
                continue
        n = read(t.fd, d.in_buf, d.in_size)
        if n < 0:
            # ENOENT: the request was taken back before it was read.
            if errno == EINTR or errno == EAGAIN or errno == ENOENT:
                continue
            t.error = errno
            break
        d.req.start = now_ns()
        atomic_add32(&t.out, 1)
        result = take_in(t, d, n)
        if result == PENDING:
            d = NULL  # the pool has it
            continue
        atomic_sub32(&t.out, 1)
        reply(d, result)
    if d != NULL:
        request_give(d)
    pool_cancel(s.waiters)
    while atomic_get32(&t.out) and now_ns() < end_by(s):  # what hangs in the source is left behind
        nap()


cdef void dev_close(DevThread *t) noexcept nogil:
    cdef DevRequest *d
    while t.free != NULL:
        d = t.free
        t.free = d.next
        request_delete(d)
    if t.fd >= 0:
        close(t.fd)
    context_close(&t.ctx)
