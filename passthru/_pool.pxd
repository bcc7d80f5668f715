# Threads for what may wait: no thread that serves a queue ever does.
from libc.stdint cimport uint64_t

from passthru._request cimport Handler, Request, Server, ThreadPool

cdef enum:
    # Lanes of Server.pool. What one lane waits for holds up that lane only.
    LANE_GENERAL = 0           # what the source itself takes its time for
    LANE_CROSS = 1             # walks over a mount point, by parent and name
    CROSS_LANES = 64
    LANE_COPY = 65             # copies of file data, which take long: not before what else the source is asked
    LANE_ROW = 66              # what is on a remote filesystem, by the number of that
    ROW_LANES = 1024
    LANES = LANE_ROW + ROW_LANES
    # At the end, what does not answer is waited for so long:
    STOP_MS = 1000             # filesystems below the source, locks
    STOP_SOURCE_MS = 5000      # and the source itself

ctypedef void (*Chore)(Server *s) noexcept nogil

cdef uint64_t end_by(Server *s) noexcept nogil
cdef ThreadPool *pool_start(Server *s, unsigned limit) noexcept nogil
cdef ThreadPool *waiters_start(Server *s) noexcept nogil
cdef void pool_cancel(ThreadPool *pool) noexcept nogil
cdef bint pool_stop(ThreadPool *pool) noexcept nogil
cdef unsigned pool_busy(ThreadPool *pool) noexcept nogil
cdef void nap() noexcept nogil
cdef int pool_submit(ThreadPool *pool, Request *r, Handler blocking) noexcept nogil
cdef int pool_submit_lane(ThreadPool *pool, Request *r, Handler blocking, unsigned lane) noexcept nogil
cdef void pool_interrupt(Server *s, uint64_t unique) noexcept nogil
cdef void pool_interrupt_running(ThreadPool *pool, Request *r) noexcept nogil
cdef void pool_chore(ThreadPool *pool, Chore chore) noexcept nogil


cdef inline unsigned lane_of_row(unsigned fs) noexcept nogil:
    """Of a remote filesystem. The source itself is no submount: it has all threads."""
    return LANE_ROW + fs % ROW_LANES if fs else LANE_GENERAL


cdef inline unsigned lane_of(unsigned first, unsigned count, uint64_t key) noexcept nogil:
    """One of `count` lanes from `first` on."""
    return first + <unsigned> ((key * 0x9e3779b97f4a7c15u) >> 32) % count
