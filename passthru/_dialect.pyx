"""Setting up the queues of a connection, in each dialect.

per-entry   each entry brings its own payload (Linux 6.14 and later)
bufring     header slots and payload buffers of a queue come with its first REGISTER; the
            kernel names the buffer of each request (the "buffer rings" series for 7.3)
bufpool     ADD_QUEUE, ADD_BUFPOOL, REGISTER; the kernel names the offset (Linux 7.3)

With zero-copy the pages of a READ or WRITE appear in the ring's registered-buffer table,
at the entry's slot. The table of a worker: a slot for each entry, then one for each queue's
pool. What is refused falls back: zero-copy to copying, a pinned pool to a smaller or an
unpinned one, bufpool to per-entry. A refused REGISTER is the end of the ring.
"""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from passthru._abi cimport *
from passthru._copy cimport payload_at, payload_map
from passthru._libc cimport *
from passthru._request cimport *
from passthru._ring cimport *
from passthru._uring cimport *


DIALECTS = {D_PER_ENTRY: "per-entry", D_BUFRING: "bufring", D_BUFPOOL: "bufpool"}


cdef fuse_uring_cmd_req *command(io_uring_sqe *sqe, Queue *q, unsigned cmd) noexcept nogil:
    sqe.opcode = IORING_OP_URING_CMD
    sqe.fd = q.worker.fuse_fd
    sqe.off = cmd
    (<fuse_uring_cmd_req *> sqe.cmd).qid = <uint16_t> q.qid
    return <fuse_uring_cmd_req *> sqe.cmd


cdef int setup_result(Worker *w) noexcept nogil:
    """Submit one command that is no entry's, and wait for its result."""
    cdef io_uring_cqe *cqe
    cdef int r
    while True:
        r = uring_enter(&w.ring, 1)
        if r < 0 and r != -EINTR:
            return r
        cqe = uring_peek(&w.ring)
        if cqe != NULL:
            r = cqe.res
            if cqe.user_data != KIND_SETUP:
                return -EIO  # an entry that was registered before: the connection ends
            uring_seen(&w.ring)
            return r


cdef void own_payload(Queue *q, Entry *e, char *payload) noexcept nogil:
    e.payload = payload
    e.req.fixed_base = payload
    e.req.fixed_max = <uint32_t> q.payloads.size
    e.req.fixed_len = 0
    e.req.buf_index = <uint16_t> e.id
    e.req.zero_copy_index = <uint16_t> e.id
    e.iov[0].iov_base = e.slot
    e.iov[0].iov_len = sizeof(fuse_uring_req_header)
    e.iov[1].iov_base = payload
    e.iov[1].iov_len = q.payloads.size


cdef void common(Queue *q) noexcept nogil:
    """The commit template, and per-entry payloads; pools change it."""
    cdef unsigned n
    memset(&q.commit, 0, sizeof(io_uring_sqe))
    command(&q.commit, q, FUSE_IO_URING_CMD_COMMIT_AND_FETCH)
    q.location_mask = 0
    q.location_scale = 0
    q.location_limit = 1
    for n in range(q.depth):
        own_payload(q, &q.entries[n], payload_at(&q.payloads, n))


cdef void pooled(Queue *q, bint registered) noexcept nogil:
    """All entries share the queue's first `buffers` payloads."""
    cdef Entry *e
    cdef unsigned n
    for n in range(q.depth):
        e = &q.entries[n]
        e.payload = q.payloads.base
        e.req.fixed_base = q.payloads.base if registered else NULL
        e.req.fixed_len = e.req.fixed_max = <uint32_t> (q.buffers * q.payloads.size) if registered else 0
        e.req.buf_index = q.pool_slot


cdef inline unsigned header_slots(Queue *q) noexcept nogil:
    """Those that a buffer ring may use: the first of the worker's, by entry id."""
    return q.worker.nentries + q.worker.nqueues * q.spares


cdef bint enroll(Queue *q, Entry *e) noexcept nogil:
    """Stage the REGISTER of an entry beyond the depth, like the others. False: no memory."""
    cdef char *payload
    if q.dialect == D_PER_ENTRY:
        payload = payload_map(&q.payloads)
        if payload == NULL:
            return False
        own_payload(q, e, payload)
    else:
        # As the first, but for what goes by the entry's number.
        e.payload = q.entries[0].payload
        e.req.fixed_base = q.entries[0].req.fixed_base
        e.req.fixed_max = q.entries[0].req.fixed_max
        e.req.fixed_len = q.entries[0].req.fixed_len
        e.req.buf_index = q.entries[0].req.buf_index
        e.req.zero_copy_index = <uint16_t> e.id
        e.iov[0] = q.entries[0].iov[0]
        e.iov[1] = q.entries[0].iov[1]
        if q.dialect == D_BUFPOOL:
            e.iov[0].iov_base = e.slot
    stage_register(q, e)
    return True


cdef void stage_register(Queue *q, Entry *e) noexcept nogil:
    """A REGISTER as the queue's dialect wants it."""
    cdef io_uring_sqe *sqe = uring_sqe(&q.worker.ring)
    cdef fuse_uring_cmd_req *cmd = command(sqe, q, FUSE_IO_URING_CMD_REGISTER)
    cdef fuse_uring_bufring_req *ring
    sqe.addr = <uint64_t> &e.iov[0]
    sqe.len = 2
    sqe.user_data = <uint64_t> e | KIND_COMMAND
    sqe.op_flags = q.commit.op_flags
    sqe.buf_index = q.commit.buf_index
    if q.dialect == D_BUFRING:
        ring = <fuse_uring_bufring_req *> sqe.cmd
        ring.flags = q.bufring_flags
        ring.buf_size = <uint32_t> q.payloads.size
        ring.queue_depth = <uint16_t> header_slots(q)
        sqe.buf_index = <uint16_t> e.id
    elif q.zero_copy:
        cmd.uaddr = e.req.zero_copy_index
    e.state = E_KERNEL


cdef int register_entry(Queue *q, Entry *e) noexcept nogil:
    """Register one entry and see that the kernel keeps it. 0 or -errno."""
    cdef Worker *w = q.worker
    cdef io_uring_cqe *cqe
    cdef int r
    cdef unsigned attempt = 0
    while attempt < 1000:
        stage_register(q, e)
        r = uring_enter(&w.ring, 0)
        if r < 0 and r != -EINTR:
            return r
        cqe = uring_peek(&w.ring)
        # A success has no CQE until a request comes, and a failure has its CQE at once.
        if cqe == NULL or cqe.res == 0:
            return 0
        r = cqe.res
        if cqe.user_data != (<uint64_t> e | KIND_COMMAND):
            return r  # one that was registered before: the connection ends
        uring_seen(&w.ring)
        e.state = E_NEW
        if r != -EAGAIN:  # INIT's reply is not yet processed
            return r
        sched_yield()
        attempt += 1
    return -EAGAIN


cdef int register_all(Queue *q) noexcept nogil:
    cdef unsigned n
    cdef int r
    for n in range(q.depth):
        r = register_entry(q, &q.entries[n])
        if r < 0:
            return r
        q.worker.alive += 1
    return 0


# ----------------------------------------------------------------- bufpool

cdef int add_queue(Queue *q, uint64_t flags) noexcept nogil:
    cdef io_uring_sqe *sqe = uring_sqe(&q.worker.ring)
    command(sqe, q, FUSE_IO_URING_CMD_ADD_QUEUE).flags = flags
    sqe.user_data = KIND_SETUP
    return setup_result(q.worker)


cdef int add_bufpool(Queue *q, bint registered) noexcept nogil:
    cdef io_uring_sqe *sqe = uring_sqe(&q.worker.ring)
    cdef fuse_uring_cmd_req *cmd = command(sqe, q, FUSE_IO_URING_CMD_ADD_BUFPOOL)
    cmd.uaddr = <uint64_t> q.payloads.base
    cmd.len = <uint32_t> (q.buffers * q.payloads.size)
    if registered:
        sqe.op_flags = IORING_URING_CMD_FIXED
        sqe.buf_index = q.pool_slot
    sqe.user_data = KIND_SETUP
    return setup_result(q.worker)


cdef bint register_pool(Queue *q) noexcept nogil:
    """Pin the pool, or as much of it as may be pinned. False: nothing."""
    cdef unsigned buffers = q.buffers
    while buffers:
        if uring_buffer_set(&q.worker.ring, q.pool_slot, q.payloads.base, buffers * q.payloads.size) == 0:
            q.buffers = buffers
            return True
        buffers /= 2
    return False


cdef int bufpool_register(Queue *q, Worker *w) noexcept nogil:
    """The whole queue with a pool. A positive errno: not to be had, the queue is as it was."""
    cdef bint registered
    cdef int r = -EPERM
    cdef unsigned n
    if w.want_zero_copy:
        r = add_queue(q, FUSE_URING_ZERO_COPY)
        q.zero_copy = r == 0
    if r < 0:
        r = add_queue(q, 0)
    if r < 0:
        return -r
    registered = w.want_pinned and register_pool(q)
    r = add_bufpool(q, True) if registered else -EPERM
    if r < 0:
        registered = False
        q.buffers = q.unpinned
        r = add_bufpool(q, False)
    if r < 0:
        return r if q.zero_copy else -r
    q.dialect = D_BUFPOOL
    q.pinned = registered
    pooled(q, registered)
    q.location_mask = 0xffffffff
    q.location_scale = 1
    q.location_limit = (q.buffers - 1) * q.payloads.size + 1
    for n in range(q.depth):
        q.entries[n].iov[1].iov_base = NULL
        q.entries[n].iov[1].iov_len = 0
    if registered:  # each later command must say so
        q.commit.op_flags = IORING_URING_CMD_FIXED
        q.commit.buf_index = q.pool_slot
    return register_all(q)


# ----------------------------------------------------------------- bufring

cdef inline size_t headers_len(Queue *q) noexcept nogil:
    return page_up(header_slots(q) * sizeof(fuse_uring_req_header))


cdef bint bufring_pins(Queue *q, uint64_t pins) noexcept nogil:
    """May be pinned what the kernel is told to pin? The pool as large as may be, and then it is our ring's too.

    A refused REGISTER turns the connection's ring off, so it is tried with our own ring first: the
    pool twice, since the kernel pins it for itself, and the header slots.
    """
    cdef Worker *w = q.worker
    cdef unsigned spare = w.queues[w.nqueues - 1].pool_slot + 1
    cdef unsigned buffers = q.buffers
    cdef bint good
    while True:
        good = True
        if pins & FUSE_URING_PINNED_BUFFERS:
            good = uring_buffer_set(&w.ring, q.pool_slot, q.payloads.base, buffers * q.payloads.size) == 0 \
                and uring_buffer_set(&w.ring, spare, q.payloads.base, buffers * q.payloads.size) == 0
        if good and pins & FUSE_URING_PINNED_HEADERS:
            good = uring_buffer_set(&w.ring, spare + 1, w.slots, headers_len(q)) == 0
        uring_buffer_set(&w.ring, spare, NULL, 0)
        uring_buffer_set(&w.ring, spare + 1, NULL, 0)
        if good:
            q.buffers = buffers
            return True
        buffers /= 2
        if not buffers or not pins & FUSE_URING_PINNED_BUFFERS:
            uring_buffer_set(&w.ring, q.pool_slot, NULL, 0)
            return False


cdef int bufring_register(Queue *q, Worker *w) noexcept nogil:
    """The whole queue as a buffer ring. What may not be pinned is done without."""
    cdef uint64_t tries[4]
    cdef uint32_t *pinning = &w.ctx.server.pinning
    cdef unsigned n, k
    cdef Entry *e
    cdef int r
    tries[0] = FUSE_URING_PINNED_HEADERS | FUSE_URING_PINNED_BUFFERS
    tries[1] = (FUSE_URING_PINNED_BUFFERS if w.want_pinned else 0) \
        | (FUSE_URING_PINNED_HEADERS if w.want_pinned_headers else 0)
    tries[2] = tries[1] & FUSE_URING_PINNED_HEADERS
    tries[3] = 0
    q.spares = min(q.spares, <unsigned> SPARES_PINNED)
    # What is tried here must still be there when the kernel does it: one queue after the other.
    while atomic_swap32(pinning, 1):
        sched_yield()
    k = 0 if w.want_zero_copy else 1
    while not bufring_pins(q, tries[k]):
        k += 1
    q.dialect = D_BUFRING
    q.bufring_flags = tries[k] | FUSE_URING_BUFRING
    q.zero_copy = k == 0
    if q.zero_copy:
        q.bufring_flags |= FUSE_URING_BUFRING_ZERO_COPY
    q.pinned = (tries[k] & FUSE_URING_PINNED_BUFFERS) != 0
    if not q.pinned:
        q.buffers = q.unpinned
    pooled(q, q.pinned)
    for n in range(q.depth):
        e = &q.entries[n]
        e.iov[0].iov_base = w.slots
        e.iov[0].iov_len = headers_len(q)
        e.iov[1].iov_base = q.payloads.base
        e.iov[1].iov_len = q.buffers * q.payloads.size
    q.location_mask = 0xffff
    q.location_scale = <uint32_t> q.payloads.size
    q.location_limit = q.buffers * q.payloads.size
    r = register_all(q)
    atomic_set32(pinning, 0)
    return r


# --------------------------------------------------------------- the whole

cdef int worker_register(Worker *w, int fuse_fd) noexcept nogil:
    """Hand all entries of all queues to the kernel. 0, or -errno and the ring is off for good."""
    cdef unsigned n
    cdef Queue *q
    cdef int r
    w.fuse_fd = fuse_fd
    for n in range(w.nqueues):
        q = &w.queues[n]
        common(q)
        q.dialect = D_PER_ENTRY
        q.enroll = enroll
        r = EINVAL
        if w.want_dialect == D_BUFPOOL:
            r = bufpool_register(q, w)
        elif w.want_dialect == D_BUFRING:
            r = bufring_register(q, w)
        if r > 0 and w.forced and w.want_dialect != D_PER_ENTRY:
            return -r
        if r > 0:
            r = register_all(q)
        if r < 0:
            return r
    return 0


cdef void worker_spoil(Worker *w) noexcept nogil:
    """Make sure that the kernel gives the ring up: only a REGISTER that it refuses tells it to.

    Else it would hold requests back until the last queue is registered.
    """
    cdef io_uring_sqe *sqe = uring_sqe(&w.ring)
    command(sqe, &w.queues[0], FUSE_IO_URING_CMD_REGISTER)
    sqe.user_data = KIND_SETUP
    uring_enter(&w.ring, 0)
