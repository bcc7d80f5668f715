"""Queues, ring entries and the loop that serves them.

An entry goes: with the kernel -> ours (CQE, res 0) -> [backing I/O or pool] -> committed.
With zero-copy a READ's commit is linked to the backing I/O: one submission, and no CQE but the next
request's. Only if the I/O fails or is short its CQE comes, and the commit has been dropped.
Exactly one COMMIT_AND_FETCH follows each CQE with res 0; header slot and payload are
touched in between only. All ready CQEs are handled before one io_uring_enter(2), but for PORTION.

A request that is away, with a pool or a remote file, keeps its entry. For each the queue registers a further
entry, so that there are always `depth` for others; when it is back, both stay.
"""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from passthru._abi cimport *
from passthru._bounce cimport bounce_close, bounce_finish, bounce_serve, bounces
from passthru._copy cimport payload_unmap, payloads_gather, payloads_map, payloads_unmap
from passthru._inode cimport Inode, InodeTable, inode_at
from passthru._libc cimport *
from passthru._log cimport LOG_ERROR, LOG_LINE, LOG_WARNING, log_line
from passthru._notify cimport notify_retrieve
from passthru._ops cimport undelivered
from passthru._pool cimport end_by, nap
from passthru._request cimport *
from passthru._serve cimport context_close, context_open
from passthru._stats cimport T_QUEUE, stats_answered
from passthru._uring cimport *
from passthru._wait cimport REMOTE_RING

cdef enum:
    SPARE_SQES = 8         # wake-up and cancel beside two SQEs an entry
    SQES_EACH = 4          # that one CQE may lead to, at the most
    PORTION = 4            # SQEs that are submitted at a time while there is backing I/O
    MAX_BUFFERS = 1 << 14  # that the kernel allows in a ring's table
    KICK = 0x80000000      # the upper half of its number as a request
    MANY_INODES = 65536    # to look for a regular file among
    DRAIN_MS = 100         # for linked I/O at a forced end
    LARGE = 512 * 1024     # from this size on a payload belongs on huge pages
    REST_NS = 20000000     # spinning is given up for so long, and for twice as long each time, where others want the CPU,
    REST_TURNS = 8         # and at least for so many times as long as they had it
    REST_MAX_NS = 1000000000


cdef void cpu_only(cpu_set_t *mask, unsigned cpu) noexcept nogil:
    CPU_ZERO(mask)
    if cpu < CPU_SETSIZE:
        CPU_SET(cpu, mask)


# ---------------------------------------------------------------- set-up

cdef inline size_t entries_size(unsigned depth) noexcept nogil:
    return page_up((depth + SPARES) * sizeof(Entry))


cdef void entry_init(Queue *q, unsigned n, unsigned id) noexcept nogil:
    cdef Entry *e = &q.entries[n]
    e.queue = q
    e.id = id
    e.slot = &q.worker.slots[id]
    e.req.ctx = &q.worker.ctx
    e.req.complete = entry_complete_remote


cdef int queue_open(Queue *q, Worker *w, unsigned qid, unsigned depth, unsigned buffers, unsigned first) noexcept nogil:
    cdef unsigned n
    cdef void *m
    q.worker = w
    q.qid = qid
    q.depth = depth
    q.buffers = buffers
    # Memory comes with use.
    m = mmap(NULL, entries_size(depth), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if m == MAP_FAILED:
        return -ENOMEM
    q.entries = <Entry *> m
    if payloads_map(&q.payloads, max(depth, buffers, q.unpinned), w.ctx.server.config.payload_size) < 0:
        return -ENOMEM
    for n in range(depth):
        entry_init(q, n, first + n)
    return 0


cdef int worker_open(Worker *w, Server *s, unsigned *qids, unsigned nqueues, unsigned depth, unsigned buffers,
                     unsigned unpinned, int cpu) noexcept nogil:
    """Make the calling thread the server of `nqueues` queues of `depth` entries. 0 or -errno.

    buffers, unpinned: payloads of each queue that a pool has, by whether it is pinned. All that can
    fail before the kernel is asked to use the ring happens here.
    """
    cdef unsigned n, slots, spares
    cdef int r
    cdef void *m
    memset(w, 0, sizeof(Worker))
    w.wake_fd = -1
    w.ring.fd = -1
    w.cpu = cpu
    r = context_open(&w.ctx, s, T_QUEUE, cpu)
    if r < 0:
        return r
    w.nentries = nqueues * depth
    r = uring_open(&w.ring, 2 * w.nentries + SPARE_SQES)
    if r < 0:
        return r
    w.ctx.ring = &w.ring
    w.ctx.link = entry_link
    w.ctx.room = entry_room
    # The table of registered buffers: entries, then the queues' pools, and two to try what may be pinned.
    spares = min(<unsigned> SPARES, (MAX_BUFFERS - w.nentries - nqueues - 2) / nqueues)
    slots = w.nentries + nqueues * spares
    r = uring_buffers_sparse(&w.ring, slots + nqueues + 2)
    if r < 0:
        return r
    uring_workers(&w.ring, w.nentries + REMOTE_RING)
    w.wake_fd = eventfd(0, EFD_CLOEXEC)
    if w.wake_fd < 0:
        return -errno
    w.slots_len = page_up(slots * sizeof(fuse_uring_req_header))
    m = mmap(NULL, w.slots_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if m == MAP_FAILED:
        return -ENOMEM
    w.slots = <fuse_uring_req_header *> m
    w.queues = <Queue *> calloc(nqueues, sizeof(Queue))
    if w.queues == NULL:
        return -ENOMEM
    w.nqueues = nqueues
    for n in range(nqueues):
        w.queues[n].number = n
        w.queues[n].spares = spares
        w.queues[n].pool_slot = <uint16_t> (slots + n)
        w.queues[n].unpinned = unpinned
        r = queue_open(&w.queues[n], w, qids[n], depth, buffers, n * depth)
        if r < 0:
            return r
    return 0


cdef void worker_close(Worker *w) noexcept nogil:
    """After worker_serve(): no CQE can come any more, so memory can go. The ring goes first."""
    cdef unsigned n, k
    cdef Queue *q
    uring_close(&w.ring)
    for n in range(w.nqueues):
        q = &w.queues[n]
        for k in range(q.depth + q.extra if q.entries != NULL else 0):
            q.entries[k].req.ctx = &w.ctx
            bounce_close(&q.entries[k].req)
            if k >= q.depth:
                payload_unmap(&q.payloads, q.entries[k].payload)
        payloads_unmap(&q.payloads)
        if q.entries != NULL:
            munmap(q.entries, entries_size(q.depth))
    free(w.queues)
    w.queues = NULL
    w.nqueues = 0
    if w.slots != NULL:
        munmap(w.slots, w.slots_len)
        w.slots = NULL
    context_close(&w.ctx)


# ---------------------------------------------------------------- entries

cdef inline void entry_stage(Entry *e, unsigned state) noexcept nogil:
    """Stage the commit of a reply that is in the slot; whoever does so counts it."""
    cdef Queue *q = e.queue
    cdef Worker *w = q.worker
    cdef io_uring_sqe *sqe = &w.ring.sqes[w.ring.tail & w.ring.sq_mask]
    ASSERT(e.state == E_OURS)
    ASSERT(w.ring.tail - atomic_get32(w.ring.sq_khead) < w.ring.sq_entries)
    memcpy(sqe, &q.commit, sizeof(io_uring_sqe))
    sqe.user_data = <uint64_t> e | KIND_COMMAND
    (<fuse_uring_cmd_req *> sqe.cmd).commit_id = e.commit_id
    w.ring.tail += 1
    e.state = state


cdef inline void entry_commit(Entry *e) noexcept nogil:
    entry_stage(e, E_KERNEL)
    e.queue.worker.ctx.stats.commits += 1


cdef inline void entry_answer(Entry *e, int error, uint32_t length) noexcept nogil:
    """Write the reply's header over the request's."""
    cdef fuse_out_header *out = <fuse_out_header *> e.slot.in_out
    out.error = error
    out.len = <uint32_t> sizeof(fuse_out_header) + length
    out.unique = e.req.h.unique
    e.slot.ring_ent_in_out.payload_sz = length


cdef void entry_link(Request *r) noexcept nogil:
    """Context.link: stage the commit of a READ's success, linked to its I/O that has just been staged.

    Both are submitted by one io_uring_enter(2), as a link has to be. When the I/O is done is not
    seen here, so its latency is not counted.
    """
    cdef Entry *e = <Entry *> r
    entry_answer(e, 0, r.len)
    entry_stage(e, E_LINKED)
    link_turn(e, E_LINKED)
    r.ctx.linking = True


cdef void link_turn(Entry *e, unsigned state) noexcept nogil:
    """Count a linked commit. state: E_LINKED as it is staged, E_KERNEL when its own CQE shows that it was run, E_OURS
    when its I/O's does that it was not.

    Invariant: an I/O on the ring is in `inflight`, if its CQE will come, or in `linked`, if it will only should it fail.
    A linked commit is counted as if it were done: commits, payload buffers given back, bytes read. If the link
    breaks all that is taken back, and the I/O is one in flight again whose CQE has come.
    """
    cdef Context *ctx = &e.queue.worker.ctx
    cdef int n = 1 if state == E_LINKED else -1
    ctx.linked += n
    if state != E_KERNEL:
        ctx.inflight -= n
        ctx.stats.commits += n
        ctx.stats.buffers_given += n * e.buffered
        ctx.stats.read_bytes += n * <int64_t> e.req.len
    e.state = state


cdef inline void entry_finish(Entry *e, int result) noexcept nogil:
    """Answer with a handler's result: reply and commit."""
    cdef int error = 0
    cdef uint32_t length = 0
    if result > <int> e.req.out_cap and not e.req.zero_copy:
        undelivered(&e.req, result)  # the kernel gave no room for what it asked for
        result = -EIO
    if result >= 0:
        length = <uint32_t> result
    elif result != NOREPLY:
        error = result
    if (length >= LARGE or e.req.arg_len >= LARGE) and e.buffered and not e.gathered:
        e.gathered = True
        payloads_gather(&e.queue.payloads, e.req.arg)
    stats_answered(e.queue.worker.ctx.stats, e.req.h.opcode, e.req.start, error < 0)
    e.queue.worker.ctx.stats.buffers_given += e.buffered
    entry_answer(e, error, length)
    entry_commit(e)


cdef int entry_request(Entry *e) noexcept nogil:
    """Make the Request of what the kernel has put into the entry. 0, or -errno if it makes no sense."""
    cdef Request *r = &e.req
    cdef fuse_uring_ent_in_out *io = &e.slot.ring_ent_in_out
    cdef Queue *q = e.queue
    cdef size_t at = <size_t> (io.location & q.location_mask) * q.location_scale
    memcpy(&r.h, e.slot.in_out, sizeof(fuse_in_header))
    e.commit_id = io.commit_id
    r.op_in = e.slot.op_in
    r.arg_len = io.payload_sz
    r.zero_copy = <uint16_t> (io.flags & FUSE_URING_ENT_ZERO_COPY)
    r.interrupted = 0
    r.away = AT_HOME
    e.buffered = at < q.location_limit and at % q.payloads.size == 0
    q.worker.ctx.stats.buffers_taken += e.buffered
    if e.buffered:
        r.out = r.arg = e.payload + at
        r.out_cap = <uint32_t> q.payloads.size
    else:
        # Without a payload there is no buffer, and the location means nothing.
        r.out = r.arg = q.worker.ctx.scratch
        r.out_cap = 0
    if io.payload_sz > q.payloads.size or r.h.len < sizeof(fuse_in_header) \
            or io.flags & ~<uint64_t> FUSE_URING_ENT_ZERO_COPY \
            or (r.out_cap == 0 and io.payload_sz and not r.zero_copy) \
            or (r.zero_copy and not q.zero_copy) or io.commit_id == 0:
        return entry_refuse(e)
    return 0


cdef int entry_refuse(Entry *e) noexcept nogil:
    """A request that contradicts itself or the set-up: answered with EIO, said once."""
    cdef fuse_uring_ent_in_out *io = &e.slot.ring_ent_in_out
    cdef char line[LOG_LINE]
    e.queue.worker.ctx.stats.refused += 1
    if e.queue.worker.ctx.stats.refused == 1:
        snprintf(line, sizeof(line), "queue %u entry %u: malformed request refused (opcode %u, length %u, "
                 "payload %u, location %u, flags %lu, commit id %lu)", e.queue.qid, e.id, e.req.h.opcode, e.req.h.len,
                 io.payload_sz, io.location, io.flags, io.commit_id)
        log_line(LOG_WARNING, line)
    return -EIO


cdef void entry_gone(Worker *w, Entry *e, int res) noexcept nogil:
    """A command ended without a request. By unmount or abort that is how an entry ends."""
    cdef char line[LOG_LINE]
    if (res == -EAGAIN or res == -EINTR) and e.commit_id:
        # The commit was not taken: the request is still ours.
        e.state = E_OURS
        entry_commit(e)
        return
    if res in (-ENOTCONN, -ECANCELED, -ENODEV, -ECONNABORTED):
        w.disconnected = True
    elif res != -ENOENT or not w.disconnected:  # of a connection that has ended, requests are not found
        w.ctx.stats.entries_lost += 1
        if w.ctx.stats.entries_lost == 1:
            snprintf(line, sizeof(line), "queue %u entry %u: ring command failed with error %d, entry lost",
                     e.queue.qid, e.id, -res)
            log_line(LOG_ERROR, line)
        e.queue.lost += 1
        if not e.commit_id:
            e.queue.spares = 0  # it has never been the kernel's: no more of them
        if e.queue.lost == e.queue.depth + e.queue.extra:
            w.error = res  # nobody would serve the queue: the session ends
    e.state = E_GONE
    w.alive -= 1


cdef void entry_complete_remote(Request *r, int result) noexcept nogil:
    """Completer of pooled requests: hand the result to the thread that owns the ring."""
    cdef Entry *e = <Entry *> r
    cdef Worker *w = e.queue.worker
    cdef void *head
    cdef uint64_t one = 1
    r.result = result
    while True:
        head = atomic_getp(&w.completed)
        r.next = <Request *> head
        if atomic_casp(&w.completed, head, r):
            break
    if head == NULL:
        write(w.wake_fd, &one, sizeof(one))


cdef unsigned entry_room(Request *r) noexcept nogil:
    """How many more requests of its queue may go away? A further entry is registered for each of them."""
    cdef Queue *q = (<Entry *> r).queue
    return q.spares - q.away if q.spares > q.away else 0


cdef void entry_away(Entry *e) noexcept nogil:
    """The entry is kept by what others decide: register one more, if all the others there are may be wanted."""
    cdef Queue *q = e.queue
    cdef Worker *w = q.worker
    cdef unsigned n
    q.away += 1
    if q.away <= q.extra or q.extra >= q.spares or q.enroll == NULL:
        return
    n = q.depth + q.extra
    entry_init(q, n, w.nentries + q.extra * w.nqueues + q.number)
    if not q.enroll(q, &q.entries[n]):
        q.spares = q.extra
        return
    q.extra += 1
    w.alive += 1


cdef inline void entry_back(Entry *e) noexcept nogil:
    if e.req.away == AWAY_RING:
        e.queue.worker.ctx.remote -= 1
    e.req.away = AT_HOME
    e.queue.away -= 1


cdef inline void entry_result(Entry *e, int result) noexcept nogil:
    """What a handler returned."""
    if result != PENDING:
        entry_finish(e, result)
    elif e.req.away:
        entry_away(e)


cdef void take_completed(Worker *w) noexcept nogil:
    cdef Request *r = <Request *> atomic_swapp(&w.completed, NULL)
    cdef Request *follow
    while r != NULL:
        follow = r.next
        r.ctx = &w.ctx
        w.ctx.pooled -= 1
        entry_back(<Entry *> r)
        if uring_staged(&w.ring) + SQES_EACH > w.ring.sq_entries:
            uring_enter(&w.ring, 0)
        entry_result(<Entry *> r, bounce_finish(r, r.result) if bounces(r) else r.result)
        r = follow


# --------------------------------------------------------------- the loop

cdef void handle_cqe(Worker *w, uint64_t user_data, int res) noexcept nogil:
    cdef unsigned kind = <unsigned> (user_data & KIND_MASK)
    cdef Entry *e = <Entry *> (user_data & ~<uint64_t> KIND_MASK)
    cdef int result
    if kind == KIND_COMMAND:
        ASSERT(e.state == E_KERNEL or e.state == E_LINKED)
        if e.state == E_LINKED:
            link_turn(e, E_KERNEL)
        if res != 0:
            entry_gone(w, e, res)
            return
        e.state = E_OURS
        w.ctx.stats.ring_requests += 1
        e.req.start = w.ctx.now
        result = entry_request(e)
        if result == 0:
            result = bounce_serve(&e.req) if bounces(&e.req) else w.ctx.server.dispatch(&e.req)
        entry_result(e, result)
    elif kind == KIND_IO:
        if e.state == E_LINKED:  # the link is broken, and the commit still owed
            link_turn(e, E_OURS)
        ASSERT(e.state == E_OURS and w.ctx.inflight > 0)
        w.ctx.inflight -= 1
        if e.req.away:
            entry_back(e)
        entry_result(e, e.req.finish(&e.req, res))
    elif kind == KIND_WAKE:
        w.wake_armed = False
        take_completed(w)


cdef void arm_wake(Worker *w) noexcept nogil:
    cdef io_uring_sqe *sqe = uring_sqe(&w.ring)
    sqe.opcode = IORING_OP_READ
    sqe.fd = w.wake_fd
    sqe.addr = <uint64_t> &w.wake_value
    sqe.len = sizeof(w.wake_value)
    sqe.user_data = KIND_WAKE
    w.wake_armed = True


cdef inline bint spin(Worker *w) noexcept nogil:
    """Yield the CPU to the clients for a while instead of sleeping. True: there is a CQE."""
    cdef uint64_t limit = w.ctx.server.config.spin_ns
    cdef uint64_t before = now_ns()
    cdef uint64_t end = before + limit
    cdef uint64_t now
    while not uring_ready(&w.ring):
        if uring_taskrun(&w.ring):
            uring_enter(&w.ring, 0)
            w.ctx.stats.enters += 1
            now = now_ns()
        else:
            sched_yield()
            now = now_ns()
            if now - before > limit:
                # Others work on this CPU. Who yields to them waits for its turn again, behind all of
                # them; who is woken up goes first.
                spin_rest(w, now, now - before)
                return uring_ready(&w.ring)
        if now > end:
            return uring_ready(&w.ring)
        before = now
    return True


cdef void drain_linked(Worker *w) noexcept nogil:
    """Give linked I/O the time to end: what it is for would else be answered with an error."""
    cdef unsigned _
    for _ in range(DRAIN_MS if w.ctx.linked else 0):
        usleep(1000)
        uring_enter(&w.ring, 0)


cdef void spin_rest(Worker *w, uint64_t now, uint64_t away) noexcept nogil:
    """Others had the CPU for `away` ns: give spinning up, for longer if it did not do well for as long as it had rested."""
    w.spin_rest = w.spin_rest * 2 if now - w.spin_after < w.spin_rest else REST_NS
    if w.spin_rest < away * REST_TURNS:
        w.spin_rest = away * REST_TURNS
    if w.spin_rest > REST_MAX_NS:
        w.spin_rest = REST_MAX_NS
    w.spin_after = now + w.spin_rest


cdef uint64_t regular_file(Queue *q) noexcept nogil:
    """The nodeid of a regular file that the kernel knows: best, one that a request which is away is for. 0: none."""
    cdef InodeTable *t = &q.worker.ctx.server.inodes
    cdef Inode *i
    cdef uint64_t n
    for n in range(q.depth + q.extra):
        i = inode_at(t, q.entries[n].req.h.nodeid) if q.entries[n].req.away else NULL
        if i != NULL and i.type == S_IFREG >> 12:
            return q.entries[n].req.h.nodeid
    for n in range(MANY_INODES):
        i = inode_at(t, n)
        if i != NULL and i.type == S_IFREG >> 12:
            return n
    return 0


cdef bint kick(Worker *w, Queue *q) noexcept nogil:
    """Have the kernel send the queue a request of no meaning (NOTIFY_REPLY).

    A request that finds no free entry waits in the kernel, and only a commit fetches it: not an entry that is
    registered then, nor the next request, which takes that entry. If all were taken by requests that
    are now away, there is no commit to come: that of this request will be it. False: it could not be had.
    """
    cdef Server *s = w.ctx.server
    cdef cpu_set_t cpus[8]
    cdef cpu_set_t one
    cdef int res = -EAGAIN
    cdef uint64_t file = regular_file(q)
    if not file:
        return False
    w.kicks += 1
    w.kick = <uint64_t> KICK << 32 | <uint64_t> (q.qid & 0xffff) << 33 | (w.kicks & 0x7fffffff) << 1
    # It goes to the queue of the CPU that it is asked for on.
    if sched_getcpu() == <int> q.qid:
        res = notify_retrieve(s, w.kick, file, 0, 0)
    elif sched_getaffinity(0, sizeof(cpus), cpus) == 0:
        cpu_only(&one, q.qid)
        if sched_setaffinity(0, sizeof(one), &one) == 0:
            res = notify_retrieve(s, w.kick, file, 0, 0)
            sched_setaffinity(0, sizeof(cpus), cpus)
    return res == 0


cdef bint idle_since_kick(Queue *q, uint64_t number) noexcept nogil:
    """Has the entry that brought that request brought none since its commit?"""
    cdef Uring *u = &q.worker.ring
    cdef Entry *e
    cdef unsigned n
    cdef uint32_t k
    for n in range(q.depth + q.extra):
        e = &q.entries[n]
        if e.commit_id == number and e.state == E_KERNEL:
            for k in range(atomic_get32(u.cq_ktail) - u.head):
                if u.cqes[(u.head + k) & u.cq_mask].user_data == (<uint64_t> e | KIND_COMMAND):
                    return False
            return True
    return False


cdef bint kicked(Worker *w) noexcept nogil:
    """Before it sleeps: see that no request waits for an entry in the kernel. True: look for CQEs first.

    There may be one if as many came as there were entries for them: of what came since it slept the time before
    last, for what it had not yet seen when it last slept had taken entries by then. If a kick's commit has brought
    one at once, there may be another.
    """
    cdef Queue *q
    cdef unsigned n
    cdef uint64_t seen = w.ctx.stats.ring_requests - w.ctx.stats.ops[FUSE_NOTIFY_REPLY]
    cdef uint64_t came = seen - w.seen_before
    cdef bint over
    if uring_taskrun(&w.ring):
        return False  # it will not sleep: there are more, of which the kernel makes but some CQEs at a time
    w.seen_before = w.seen
    w.seen = seen
    over = w.kicking != NULL and w.ctx.notified == w.kick  # the last one has been answered for
    if came and came + w.ctx.inflight + 1 >= w.queues[0].depth:
        for n in range(w.nqueues):
            if w.queues[n].away:
                w.queues[n].dry = w.wanted = True
    elif not over:
        return False
    if not w.wanted:
        return False
    uring_enter(&w.ring, 0)  # further entries are the kernel's, and the kick's commit has fetched what there was
    if over and idle_since_kick(w.kicking, w.kick):
        w.kicking.dry = False
    w.kicking = NULL
    for n in range(w.nqueues):
        q = &w.queues[n]
        if q.dry and kick(w, q):
            w.kicking = q
            break
        q.dry = False
    w.wanted = w.kicking != NULL
    return uring_ready(&w.ring)


cdef void worker_serve(Worker *w) noexcept nogil:
    """Serve until all entries are gone, or until the session stops and nothing is in flight."""
    cdef char line[LOG_LINE]
    cdef io_uring_cqe *cqe
    cdef Server *s = w.ctx.server
    cdef unsigned batch
    cdef unsigned many = w.ring.sq_entries - SQES_EACH
    cdef int r
    arm_wake(w)
    while True:
        batch = 0
        while True:
            cqe = uring_peek(&w.ring)
            if cqe == NULL:
                break
            if batch == 0:
                w.ctx.now = now_ns()
            batch += 1
            # The slot of a CQE may be overwritten once it is seen; what follows may take a while.
            handle_cqe(w, cqe.user_data, cqe.res)
            uring_seen(&w.ring)
            # A device would be idle while the rest is handled, and those who wait for it as well.
            if uring_staged(&w.ring) >= (PORTION if w.ctx.inflight or w.ctx.linked else many):
                break
        if uring_ready(&w.ring):  # there is a rest
            w.ctx.stats.enters += 1
            uring_enter(&w.ring, 0)
            continue
        if not w.ctx.inflight and not w.ctx.pooled:
            if not w.alive or w.error:
                break
            if atomic_get32(&s.stop):
                uring_enter(&w.ring, 0)  # what is committed reaches the kernel
                drain_linked(w)
                break
        elif not w.alive or atomic_get32(&s.stop):
            if hangs(w):
                break
            continue
        if not w.wake_armed:
            arm_wake(w)
        w.ctx.stats.enters += 1
        # Spin not while backing I/O is in flight: its completion would wait for the end of it.
        if batch and s.config.spin_ns and not w.ctx.inflight and not w.ctx.pooled and not w.ctx.linking \
                and (not w.spin_after or now_ns() >= w.spin_after):
            r = uring_enter(&w.ring, 0)
            if r == 0 and (uring_ready(&w.ring) or spin(w)):
                continue
            w.ctx.stats.enters += 1
        if kicked(w):
            continue
        w.ctx.stats.sleeps += 1
        w.ctx.linking = False
        r = uring_enter(&w.ring, 1)
        if r < 0 and r not in (-EINTR, -EAGAIN, -EBUSY):
            snprintf(line, sizeof(line), "io_uring_enter: error %d, queue thread ends", -r)
            log_line(LOG_ERROR, line)
            w.error = r
            break


cdef bint hangs(Worker *w) noexcept nogil:
    """At the end: is what is away to be given up? If not, look after it; nothing tells when it is time."""
    if now_ns() < end_by(w.ctx.server):
        uring_enter(&w.ring, 0)
        nap()
        take_completed(w)
        return False
    return True


cdef void worker_wake(Worker *w) noexcept nogil:
    """From another thread: look at Server.stop."""
    cdef uint64_t one = 1
    if w.wake_fd >= 0:
        write(w.wake_fd, &one, sizeof(one))
