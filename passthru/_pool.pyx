"""The pool of threads that run handlers which may wait (fsync, locks, remote sources).

Threads are started when work comes and none is idle, up to a limit; then work queues.
A pooled request is completed through Request.complete, on the pool's thread.
"""
from libc.stdint cimport uint64_t
from libc.stdlib cimport abort, calloc, free

from passthru._abi cimport *
from passthru._libc cimport *
from passthru._request cimport *
from passthru._serve cimport context_close, context_open
from passthru._stats cimport T_POOL

cdef enum:
    STACK = 256 * 1024
    MISSED = 64
    RETRIES = 100
    CPU_SETS = 8              # masks of 8192 CPUs in all

cdef struct Pool:
    pthread_mutex_t lock
    pthread_cond_t work
    Request *first             # waiting
    Request *last
    Request *active            # running, doubly linked
    unsigned queued
    unsigned idle
    bint cancelled             # no request waits any more
    unsigned threads
    unsigned limit
    bint stop
    Server *server
    pthread_t *ids
    cpu_set_t cpus[CPU_SETS]   # on which the pool's maker may run
    uint64_t missed[MISSED]    # interrupts that came before their request
    unsigned missed_at


cdef extern from * nogil:
    """
    #include <signal.h>
    /* The signal only ends a system call with EINTR. */
    static void passthru_wake(int sig) { (void)sig; }
    static int passthru_wake_install(void)
    {
        struct sigaction a = { .sa_handler = passthru_wake };
        return sigaction(SIGUSR1, &a, NULL) < 0 ? -errno : 0;
    }
    """
    int passthru_wake_install()
    int poll_nothing "poll"(void *fds, unsigned long n, int ms)
    enum:
        SIGUSR1


cdef void *pool_start(Server *s, unsigned limit) noexcept nogil:
    """An empty pool of at most `limit` threads, or NULL."""
    cdef Pool *p = <Pool *> calloc(1, sizeof(Pool))
    if p == NULL:
        return NULL
    p.ids = <pthread_t *> calloc(limit, sizeof(pthread_t))
    if p.ids == NULL:
        free(p)
        return NULL
    p.limit = limit
    p.server = s
    sched_getaffinity(0, sizeof(p.cpus), p.cpus)
    pthread_mutex_init(&p.lock, NULL)
    pthread_cond_init(&p.work, NULL)
    passthru_wake_install()
    return p


cdef void pool_cancel(void *pool) noexcept nogil:
    """End all waits for locks, now and from now on, with EINTR; returns when none is left."""
    cdef Pool *p = <Pool *> pool
    cdef Request *r
    pthread_mutex_lock(&p.lock)
    p.cancelled = True
    pthread_cond_broadcast(&p.work)
    while p.active != NULL or p.first != NULL:  # a signal may come just before the wait that it is to end
        r = p.active
        while r != NULL:
            r.interrupted = 1
            sys_tgkill(r.tid, SIGUSR1)
            r = r.next
        pthread_mutex_unlock(&p.lock)
        nap()
        pthread_mutex_lock(&p.lock)
    pthread_mutex_unlock(&p.lock)


cdef void pool_stop(void *pool) noexcept nogil:
    """Let what runs or is queued finish, then end the threads. Waits."""
    cdef Pool *p = <Pool *> pool
    cdef unsigned i
    if p == NULL:
        return
    pthread_mutex_lock(&p.lock)
    p.stop = True
    pthread_cond_broadcast(&p.work)
    pthread_mutex_unlock(&p.lock)
    for i in range(p.threads):
        pthread_join(p.ids[i], NULL)
    pthread_mutex_destroy(&p.lock)
    pthread_cond_destroy(&p.work)
    free(p.ids)
    free(p)


cdef void nap() noexcept nogil:
    """A millisecond."""
    poll_nothing(NULL, 0, 1)


cdef int pool_submit(void *pool, Request *r, Handler blocking) noexcept nogil:
    """Have a pool thread run blocking(r) and complete r. PENDING, or -EAGAIN if no thread can be had."""
    cdef Pool *p = <Pool *> pool
    cdef pthread_attr_t attr
    cdef bint started = True
    r.blocking = blocking
    r.next = NULL
    r.tid = 0
    r.ctx.stats.io_pool += 1
    pthread_mutex_lock(&p.lock)
    # An idle thread counts until it has run: it may be promised to an earlier request.
    if p.queued >= p.idle and p.threads < p.limit:
        pthread_attr_init(&attr)
        pthread_attr_setstacksize(&attr, STACK)
        if pthread_create(&p.ids[p.threads], &attr, pool_thread, p) == 0:
            p.threads += 1
        else:
            started = p.threads > 0
        pthread_attr_destroy(&attr)
    if started:
        if p.last != NULL:
            p.last.next = r
        else:
            p.first = r
        p.last = r
        p.queued += 1
        r.ctx.pooled += 1
        pthread_cond_signal(&p.work)
    pthread_mutex_unlock(&p.lock)
    return PENDING if started else -EAGAIN


cdef void *pool_thread(void *arg) noexcept nogil:
    cdef Pool *p = <Pool *> arg
    cdef Context ctx
    cdef Request *r
    cdef unsigned i
    cdef int result
    if context_open(&ctx, p.server, T_POOL, -1) < 0:
        abort()  # it has been counted on: requests wait for it
    # Inherited of the queue's thread that started it: one CPU, and a name.
    sched_setaffinity(0, sizeof(p.cpus), p.cpus)
    prctl(PR_SET_NAME, "pool")
    pthread_mutex_lock(&p.lock)
    while True:
        while p.first == NULL and not p.stop:
            p.idle += 1
            pthread_cond_wait(&p.work, &p.lock)
            p.idle -= 1
        r = p.first
        if r == NULL:
            break
        p.first = r.next
        if p.first == NULL:
            p.last = NULL
        p.queued -= 1
        r.tid = sys_gettid()
        r.prev = NULL
        r.next = p.active
        if p.active != NULL:
            p.active.prev = r
        p.active = r
        for i in range(MISSED):
            if p.missed[i] == r.h.unique:
                r.interrupted = 1
        if p.cancelled:
            r.interrupted = 1
        pthread_mutex_unlock(&p.lock)
        r.ctx = &ctx
        result = r.blocking(r)
        pthread_mutex_lock(&p.lock)
        if r.next != NULL:
            r.next.prev = r.prev
        if r.prev != NULL:
            r.prev.next = r.next
        else:
            p.active = r.next
        pthread_mutex_unlock(&p.lock)
        r.complete(r, result)
        pthread_mutex_lock(&p.lock)
    pthread_mutex_unlock(&p.lock)
    context_close(&ctx)
    return NULL


cdef Request *unqueue(Pool *p, uint64_t unique) noexcept nogil:
    """Take a queued request out, under the lock; NULL: it is not queued."""
    cdef Request *before = NULL
    cdef Request *r = p.first
    while r != NULL and r.h.unique != unique:
        before = r
        r = r.next
    if r == NULL:
        return NULL
    if before != NULL:
        before.next = r.next
    else:
        p.first = r.next
    if p.last == r:
        p.last = before
    p.queued -= 1
    return r


cdef void pool_interrupt(Server *s, uint64_t unique) noexcept nogil:
    """INTERRUPT of request `unique`: end its wait for a lock, or remember it for when it comes.

    A signal that comes just before the system call which it is to end is lost: so it is
    sent again while the request runs.
    """
    cdef Pool *p = <Pool *> s.waiters
    cdef Request *r
    cdef unsigned attempt
    for attempt in range(RETRIES):
        pthread_mutex_lock(&p.lock)
        r = unqueue(p, unique)
        if r != NULL:
            pthread_mutex_unlock(&p.lock)
            r.complete(r, -EINTR)
            return
        r = p.active
        while r != NULL and r.h.unique != unique:
            r = r.next
        if r != NULL:
            r.interrupted = 1
            sys_tgkill(r.tid, SIGUSR1)
        elif attempt == 0:
            p.missed[p.missed_at] = unique
            p.missed_at = (p.missed_at + 1) % MISSED
        pthread_mutex_unlock(&p.lock)
        if r == NULL:
            return
        nap()
