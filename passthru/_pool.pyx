"""The pools of threads that run handlers which may wait (fsync, remote sources, locks).

Threads are started when work comes and none is idle, and end when they were idle for a while.
A pooled request is completed through Request.complete, on the pool's thread.

A pool has lanes, each with a limit of threads: what exceeds it waits in its lane without a thread,
and lanes are served in turn. So a filesystem that hangs keeps some threads, and nobody else from
theirs. The general lane's threads are counted apart from those of all others.

Waits for locks and leases have a pool of their own, in which nothing queues, and INTERRUPT ends them. A signal that
comes just before the system call that it is to end is lost, so a thread sends it again (`tend`).
"""
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from passthru._abi cimport *
from passthru._libc cimport *
from passthru._request cimport *
from passthru._serve cimport context_close, context_open
from passthru._stats cimport T_POOL

cdef enum:
    STACK = 256 * 1024
    KEPT = 4                  # idle threads that stay;
    IDLE_S = 10               # others end after so long
    ROW_LIMIT = 16            # threads for each remote filesystem, and for copies,
    CROSS_LIMIT = 2           # for each lane of crossings,
    OTHERS = 512              # and for all of these together; lanes that have none yet
    OTHERS_MOST = 768         # may have one beyond that
    LANE_QUEUE = 1000         # requests that wait in such a lane; EBUSY for more
    WAITERS = 1024            # waits for locks at a time; ENOLCK for more
    LOCK_RESERVE = 64         # of what may go away from a queue, what locks do not take
    MISSED = 1024             # a power of two
    TEND_MOST_MS = 256
    GRACE_NS = 500000000      # for idle threads to end
    CPU_SETS = 8              # masks of 8192 CPUs in all

cdef struct Lane:
    Request *first
    Request *last
    unsigned queued
    unsigned running
    unsigned due               # of the queued, those that a thread may take now
    bint listed
    Lane *next                 # in Pool.ready

cdef struct Pool:
    pthread_mutex_t lock
    pthread_cond_t work
    pthread_cond_t tending     # there is something for the tender
    Lane *lanes
    unsigned nlanes
    Lane *ready                # lanes with due requests, in turn
    Lane *ready_last
    Request *active            # running, doubly linked
    unsigned due               # of all lanes
    unsigned others            # running in other lanes than the general one
    unsigned idle
    unsigned threads
    unsigned general           # threads for the general lane
    unsigned most              # threads
    bint locks                 # the pool of waits for locks
    bint cancelled             # no request waits any more
    bint stop
    bint tender                # its thread is there
    unsigned tend_ms           # pause until it sends signals again
    Chore chore                # for it to do
    Server *server
    cpu_set_t cpus[CPU_SETS]   # on which the pool's maker may run
    uint64_t missed[MISSED]    # interrupts that came before their request


cdef void woken(int sig) noexcept nogil:
    pass  # the signal only ends a system call with EINTR


cdef void wake_install() noexcept nogil:
    cdef signal_action action
    memset(&action, 0, sizeof(action))
    action.sa_handler = woken
    change_signal(SIGUSR1, &action, NULL)


cdef void cond_init(pthread_cond_t *c) noexcept nogil:
    """A condition whose time is CLOCK_MONOTONIC."""
    cdef pthread_condattr_t a
    pthread_condattr_init(&a)
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC)
    pthread_cond_init(c, &a)
    pthread_condattr_destroy(&a)


cdef int cond_wait_ms(pthread_cond_t *c, pthread_mutex_t *m, unsigned ms) noexcept nogil:
    """0: it was signalled."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    t.tv_sec += ms / 1000
    t.tv_nsec += ms % 1000 * 1000000
    if t.tv_nsec >= 1000000000:
        t.tv_sec += 1
        t.tv_nsec -= 1000000000
    return pthread_cond_timedwait(c, m, &t)


cdef Pool *start(Server *s, unsigned nlanes, unsigned general, unsigned most) noexcept nogil:
    cdef Pool *p = <Pool *> calloc(1, sizeof(Pool))
    if p == NULL:
        return NULL
    p.lanes = <Lane *> calloc(nlanes, sizeof(Lane))
    if p.lanes == NULL:
        free(p)
        return NULL
    p.nlanes = nlanes
    p.general = general
    p.most = most
    p.server = s
    sched_getaffinity(0, sizeof(p.cpus), p.cpus)
    pthread_mutex_init(&p.lock, NULL)
    cond_init(&p.work)
    cond_init(&p.tending)
    wake_install()
    return p


cdef ThreadPool *pool_start(Server *s, unsigned limit) noexcept nogil:
    """An empty pool with at most `limit` threads for the general lane, or NULL."""
    return <ThreadPool *> start(s, LANES, limit, limit + OTHERS_MOST)


cdef ThreadPool *waiters_start(Server *s) noexcept nogil:
    """An empty pool for waits that INTERRUPT ends, or NULL."""
    cdef Pool *p = start(s, 1, WAITERS, WAITERS)
    if p != NULL:
        p.locks = True
    return <ThreadPool *> p


cdef void nap() noexcept nogil:
    """A millisecond."""
    poll(NULL, 0, 1)


cdef unsigned pool_busy(ThreadPool *pool) noexcept nogil:
    """Requests that it runs now."""
    cdef Pool *p = <Pool *> pool
    cdef Request *r
    cdef unsigned n = 0
    pthread_mutex_lock(&p.lock)
    r = p.active
    while r != NULL:
        n += 1
        r = r.next
    pthread_mutex_unlock(&p.lock)
    return n


# --------------------------------------------------------------- the end

cdef uint64_t end_by(Server *s) noexcept nogil:
    """The end has begun: until when (now_ns()) is waited for what hangs? The source itself may take longer."""
    cdef Lane *way = &(<Pool *> s.pool).lanes[LANE_GENERAL]
    if not s.end_began:
        s.end_began = now_ns()
    return s.end_began + <uint64_t> (STOP_SOURCE_MS if way.running or way.queued else STOP_MS) * 1000000


cdef void pool_cancel(ThreadPool *pool) noexcept nogil:
    """End all waits for locks, now and from now on, with EINTR; returns when none is left, or hangs in the source."""
    cdef Pool *p = <Pool *> pool
    cdef Request *r
    pthread_mutex_lock(&p.lock)
    p.cancelled = True
    while (p.active != NULL or p.lanes[0].queued) and now_ns() < end_by(p.server):
        r = p.active
        while r != NULL:
            r.interrupted = 1
            sys_tgkill(r.tid, SIGUSR1)
            r = r.next
        pthread_mutex_unlock(&p.lock)
        nap()
        pthread_mutex_lock(&p.lock)
    pthread_mutex_unlock(&p.lock)


cdef bint pool_stop(ThreadPool *pool) noexcept nogil:
    """Let what runs or is queued finish, then end the threads. False: some hang, and use the pool and the server on."""
    cdef Pool *p = <Pool *> pool
    cdef unsigned n
    cdef uint64_t begun = now_ns()
    if p == NULL:
        return True
    pthread_mutex_lock(&p.lock)
    p.stop = True
    while True:
        pthread_cond_broadcast(&p.work)
        pthread_cond_broadcast(&p.tending)
        n = p.threads + p.tender
        pthread_mutex_unlock(&p.lock)
        if not n or now_ns() > max(end_by(p.server), begun + GRACE_NS):
            break
        nap()
        pthread_mutex_lock(&p.lock)
    if n:
        return False
    pthread_mutex_destroy(&p.lock)
    pthread_cond_destroy(&p.work)
    pthread_cond_destroy(&p.tending)
    free(p.lanes)
    free(p)
    return True


# ----------------------------------------------------------------- lanes

cdef inline unsigned lane_limit(Pool *p, Lane *way) noexcept nogil:
    cdef size_t n = way - p.lanes
    if n == LANE_GENERAL:
        return p.general
    return ROW_LIMIT if n >= LANE_COPY else CROSS_LIMIT


cdef void lane_update(Pool *p, Lane *way) noexcept nogil:
    """After a change of what is queued or running: list it if a thread is due."""
    cdef unsigned limit = lane_limit(p, way)
    cdef unsigned due = min(way.queued, limit - way.running) if way.running < limit else 0
    p.due += due - way.due
    way.due = due
    if due and not way.listed:
        way.listed = True
        way.next = NULL
        if p.ready_last != NULL:
            p.ready_last.next = way
        else:
            p.ready = way
        p.ready_last = way


cdef Request *lane_pop(Lane *way) noexcept nogil:
    cdef Request *r = way.first
    way.first = r.next
    if way.first == NULL:
        way.last = NULL
    way.queued -= 1
    return r


cdef Request *take(Pool *p) noexcept nogil:
    """The next request that may have a thread, of the lanes in turn; NULL: there is none."""
    cdef Lane *before = NULL
    cdef Lane *way = p.ready
    cdef Lane *follow
    cdef Request *r
    cdef bint may
    while way != NULL:
        follow = way.next
        may = way == p.lanes or p.others < OTHERS or (way.running == 0 and p.others < OTHERS_MOST)
        if way.due and not may:
            before = way
            way = follow
            continue
        if before != NULL:
            before.next = follow
        else:
            p.ready = follow
        if p.ready_last == way:
            p.ready_last = before
        way.listed = False
        if way.due:
            r = lane_pop(way)
            way.running += 1
            if way != p.lanes:
                p.others += 1
            lane_update(p, way)
            return r
        way = follow
    return NULL


cdef bint lane_remove(Pool *p, Lane *way, Request *which) noexcept nogil:
    """Take a queued request out. False: it is not there."""
    cdef Request *before = NULL
    cdef Request *r = way.first
    while r != NULL and r != which:
        before = r
        r = r.next
    if r == NULL:
        return False
    if before != NULL:
        before.next = r.next
    else:
        way.first = r.next
    if way.last == r:
        way.last = before
    way.queued -= 1
    lane_update(p, way)
    return True


cdef bint thread_start(Pool *p) noexcept nogil:
    cdef pthread_attr_t attr
    cdef pthread_t id
    cdef bint good
    pthread_attr_init(&attr)
    pthread_attr_setstacksize(&attr, STACK)
    good = pthread_create(&id, &attr, pool_thread, p) == 0
    pthread_attr_destroy(&attr)
    if good:
        pthread_detach(id)
        p.threads += 1
    return good


cdef int pool_submit(ThreadPool *pool, Request *r, Handler blocking) noexcept nogil:
    """pool_submit_lane() for the general lane."""
    return pool_submit_lane(pool, r, blocking, LANE_GENERAL)


cdef int pool_submit_lane(ThreadPool *pool, Request *r, Handler blocking, unsigned lane) noexcept nogil:
    """Have a pool thread run blocking(r) and complete r. PENDING; or -errno, and nothing has happened.

    ENOLCK: too many wait for locks; EBUSY: too many for what that lane waits for; EAGAIN: no thread.
    """
    cdef Pool *p = <Pool *> pool
    cdef Lane *way = &p.lanes[lane]
    cdef Context *ctx = r.ctx
    cdef unsigned room = 0xffffffff
    cdef int result = PENDING
    r.blocking = blocking
    r.next = NULL
    r.tid = 0
    r.lane = lane
    # What has to do with the general lane will be done: it waits for a free entry if need be.
    if ctx.room != NULL and (p.locks or lane != LANE_GENERAL):
        room = ctx.room(r)
    if p.locks and room <= LOCK_RESERVE:
        return -ENOLCK
    if room == 0:
        return -EBUSY
    pthread_mutex_lock(&p.lock)
    if p.locks and way.queued + way.running >= WAITERS:
        result = -ENOLCK
    elif lane != LANE_GENERAL and way.queued >= LANE_QUEUE:
        result = -EBUSY
    elif p.locks and missed(p, r.h.unique):
        result = -EINTR
    else:
        if way.last != NULL:
            way.last.next = r
        else:
            way.first = r
        way.last = r
        way.queued += 1
        lane_update(p, way)
        # An idle thread counts until it has run: it may be promised to an earlier request.
        if p.due > p.idle and p.threads < p.most and not thread_start(p) and way.running == 0:
            lane_remove(p, way, r)  # nobody would come back for it
            result = -EAGAIN
        else:
            r.away = AWAY_POOL
            ctx.stats.io_pool += 1
            ctx.pooled += 1
            pthread_cond_signal(&p.work)
    pthread_mutex_unlock(&p.lock)  # from here on the request is the pool's
    return result


cdef void *pool_thread(void *arg) noexcept nogil:
    cdef Pool *p = <Pool *> arg
    cdef Context ctx
    cdef Request *r
    cdef Lane *way
    cdef int result, opened
    opened = context_open(&ctx, p.server, T_POOL, -1)
    # Inherited of the queue's thread that started it: one CPU, and a name.
    sched_setaffinity(0, sizeof(p.cpus), p.cpus)
    prctl(PR_SET_NAME, "pool")
    pthread_mutex_lock(&p.lock)
    while True:
        r = take(p)
        while r == NULL and not p.stop:
            p.idle += 1
            result = cond_wait_ms(&p.work, &p.lock, IDLE_S * 1000)
            p.idle -= 1
            r = take(p)
            if r == NULL and result != 0 and p.idle >= KEPT:
                break
        if r == NULL:
            break
        way = &p.lanes[r.lane]
        r.tid = sys_gettid()
        r.prev = NULL
        r.next = p.active
        if p.active != NULL:
            p.active.prev = r
        p.active = r
        if p.cancelled or (p.locks and missed(p, r.h.unique)):
            r.interrupted = 1
        pthread_mutex_unlock(&p.lock)
        r.ctx = &ctx
        result = r.blocking(r) if opened == 0 else opened
        pthread_mutex_lock(&p.lock)
        if r.next != NULL:
            r.next.prev = r.prev
        if r.prev != NULL:
            r.prev.next = r.next
        else:
            p.active = r.next
        way.running -= 1
        if way != p.lanes:
            p.others -= 1
        lane_update(p, way)
        pthread_mutex_unlock(&p.lock)
        r.complete(r, result)
        pthread_mutex_lock(&p.lock)
    pthread_mutex_unlock(&p.lock)
    context_close(&ctx)
    pthread_mutex_lock(&p.lock)
    p.threads -= 1
    pthread_mutex_unlock(&p.lock)
    return NULL


# ------------------------------------------------------------- INTERRUPT

cdef inline uint64_t *missed_slot(Pool *p, uint64_t unique) noexcept nogil:
    """Numbers are given one after the other, so those of a time hardly ever meet."""
    return &p.missed[(unique >> 1) & (MISSED - 1)]


cdef inline bint missed(Pool *p, uint64_t unique) noexcept nogil:
    return missed_slot(p, unique)[0] == unique


cdef void *tend(void *arg) noexcept nogil:
    """Thread: do the chore, and send each interrupted request's thread its signal again until that has ended."""
    cdef Pool *p = <Pool *> arg
    cdef Context ctx
    cdef Chore chore
    cdef Request *r
    cdef bint more
    cdef int opened = context_open(&ctx, p.server, T_POOL, -1)
    sched_setaffinity(0, sizeof(p.cpus), p.cpus)
    prctl(PR_SET_NAME, "pool")
    pthread_mutex_lock(&p.lock)
    while not p.stop:
        chore = p.chore
        p.chore = NULL
        if chore != NULL and opened == 0:
            pthread_mutex_unlock(&p.lock)
            chore(p.server)
            pthread_mutex_lock(&p.lock)
        more = False
        r = p.active
        while r != NULL:
            if r.interrupted:
                sys_tgkill(r.tid, SIGUSR1)
                more = True
            r = r.next
        if p.stop or p.chore != NULL:
            continue
        if more:
            cond_wait_ms(&p.tending, &p.lock, p.tend_ms)
            p.tend_ms = min(2 * p.tend_ms, TEND_MOST_MS)
        else:
            pthread_cond_wait(&p.tending, &p.lock)
    pthread_mutex_unlock(&p.lock)
    if opened == 0:
        context_close(&ctx)
    pthread_mutex_lock(&p.lock)
    p.tender = False
    pthread_mutex_unlock(&p.lock)
    return NULL


cdef void have_tended(Pool *p) noexcept nogil:
    """Under the lock: wake the tender, or start it."""
    cdef pthread_attr_t attr
    cdef pthread_t id
    p.tend_ms = 1
    if p.tender or p.stop:
        pthread_cond_signal(&p.tending)
        return
    pthread_attr_init(&attr)
    pthread_attr_setstacksize(&attr, STACK)
    if pthread_create(&id, &attr, tend, p) == 0:
        pthread_detach(id)
        p.tender = True
    pthread_attr_destroy(&attr)


cdef void pool_chore(ThreadPool *pool, Chore chore) noexcept nogil:
    """Have `chore` done soon, once for all who ask meanwhile, by a thread that may take its time."""
    cdef Pool *p = <Pool *> pool
    pthread_mutex_lock(&p.lock)
    p.chore = chore
    have_tended(p)
    pthread_mutex_unlock(&p.lock)


cdef void pool_interrupt_running(ThreadPool *pool, Request *r) noexcept nogil:
    """End the wait of a request that runs."""
    cdef Pool *p = <Pool *> pool
    pthread_mutex_lock(&p.lock)
    r.interrupted = 1
    sys_tgkill(r.tid, SIGUSR1)
    have_tended(p)
    pthread_mutex_unlock(&p.lock)


cdef void pool_interrupt(Server *s, uint64_t unique) noexcept nogil:
    """INTERRUPT of request `unique`: end its wait for a lock, or remember it for when it comes."""
    cdef Pool *p = <Pool *> s.waiters
    cdef Lane *way = p.lanes
    cdef Request *r
    pthread_mutex_lock(&p.lock)
    r = way.first
    while r != NULL and r.h.unique != unique:
        r = r.next
    if r != NULL:
        lane_remove(p, way, r)
        pthread_mutex_unlock(&p.lock)
        r.complete(r, -EINTR)
        return
    r = p.active
    while r != NULL and r.h.unique != unique:
        r = r.next
    if r != NULL:
        r.interrupted = 1
        sys_tgkill(r.tid, SIGUSR1)
        have_tended(p)
    else:
        missed_slot(p, unique)[0] = unique
    pthread_mutex_unlock(&p.lock)
