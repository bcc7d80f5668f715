# io_uring(7) itself: one submission and one completion queue, mapped and used by one thread.
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from passthru._abi cimport (
    IORING_ENTER_GETEVENTS, IORING_SQ_TASKRUN, ASSERT,
    atomic_get32, atomic_set32, io_uring_cqe, io_uring_sqe, sys_io_uring_enter,
)

cdef struct Uring:
    int fd
    # Submission queue. `tail` is ours, published to the kernel by uring_enter().
    uint32_t *sq_khead
    uint32_t *sq_ktail
    uint32_t *sq_kflags
    uint32_t sq_mask
    uint32_t sq_entries
    uint32_t tail
    io_uring_sqe *sqes
    # Completion queue.
    uint32_t *cq_khead
    uint32_t *cq_ktail
    uint32_t cq_mask
    uint32_t head
    io_uring_cqe *cqes
    void *ring_map
    size_t ring_len
    size_t sqes_len

cdef int uring_open(Uring *u, unsigned entries) noexcept nogil
cdef void uring_close(Uring *u) noexcept nogil
cdef int uring_buffers_sparse(Uring *u, unsigned slots) noexcept nogil
cdef int uring_workers(Uring *u, unsigned bounded) noexcept nogil
cdef int uring_buffer_set(Uring *u, unsigned slot, void *base, size_t length) noexcept nogil


cdef inline io_uring_sqe *uring_sqe(Uring *u) noexcept nogil:
    """The next free SQE, zeroed; never NULL: the ring has room for one SQE of every request."""
    ASSERT(u.tail - atomic_get32(u.sq_khead) < u.sq_entries)
    cdef io_uring_sqe *sqe = &u.sqes[u.tail & u.sq_mask]
    u.tail += 1
    memset(sqe, 0, sizeof(io_uring_sqe))
    return sqe


cdef inline io_uring_cqe *uring_peek(Uring *u) noexcept nogil:
    """The next completion or NULL; valid until uring_seen()."""
    if u.head == atomic_get32(u.cq_ktail):
        return NULL
    return &u.cqes[u.head & u.cq_mask]


cdef inline bint uring_taskrun(Uring *u) noexcept nogil:
    """Completions wait in the kernel for this thread to come and fetch them."""
    return (atomic_get32(u.sq_kflags) & IORING_SQ_TASKRUN) != 0


cdef inline bint uring_ahead(Uring *u) noexcept nogil:
    """While a completion is handled: is there another one behind it?"""
    return u.head + 1 != atomic_get32(u.cq_ktail) or uring_taskrun(u)


cdef inline void uring_seen(Uring *u) noexcept nogil:
    u.head += 1
    atomic_set32(u.cq_khead, u.head)


cdef inline bint uring_ready(Uring *u) noexcept nogil:
    return u.head != atomic_get32(u.cq_ktail)


cdef inline unsigned uring_staged(Uring *u) noexcept nogil:
    return u.tail - atomic_get32(u.sq_khead)


cdef inline int uring_enter(Uring *u, unsigned wait) noexcept nogil:
    """Submit all staged SQEs, run the kernel's deferred work, wait for `wait` completions.

    Returns 0 or -errno (io_uring_enter(2)); -EINTR and -EBUSY/-EAGAIN leave the rest staged.
    """
    cdef unsigned staged = uring_staged(u)
    cdef int r
    atomic_set32(u.sq_ktail, u.tail)
    r = sys_io_uring_enter(u.fd, staged, wait, IORING_ENTER_GETEVENTS)
    return r if r < 0 else 0
