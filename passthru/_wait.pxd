# What has to wait: a handler with a pool, or I/O on the ring of the request's queue.
from libc.stdint cimport uint64_t

from passthru._abi cimport IOSQE_CQE_SKIP_SUCCESS, IOSQE_IO_LINK, io_uring_sqe
from passthru._identity cimport data_personality
from passthru._request cimport KIND_IO, Finisher, Handler, Request
from passthru._stats cimport T_POOL
from passthru._uring cimport uring_sqe

cdef enum:
    REMOTE_RING = 64        # reads and writes of remote files at a time, for which a queue's thread has io_uring's workers

cdef int later(Request *r, Handler blocking) noexcept nogil
cdef int later_copying(Request *r, Handler blocking, uint64_t target) noexcept nogil
cdef int later_crossing(Request *r, Handler blocking, const char *name) noexcept nogil
cdef int later_settling(Request *r, Handler blocking, bint held, const char *name) noexcept nogil
cdef int patiently(Request *r, Handler blocking) noexcept nogil


cdef inline bint may_wait(Request *r) noexcept nogil:
    """Is this a thread that may wait, for a filesystem or for somebody else?"""
    return r.ctx.stats.kind == T_POOL


cdef inline io_uring_sqe *ring_sqe(Request *r, Finisher finish) noexcept nogil:
    """An SQE of I/O on r.fd, to be filled in; its CQE goes to `finish`."""
    cdef io_uring_sqe *sqe = uring_sqe(r.ctx.ring)
    sqe.fd = r.fd
    sqe.user_data = <uint64_t> r | KIND_IO
    r.finish = finish
    r.ctx.inflight += 1
    r.ctx.stats.io_ring += 1
    return sqe


cdef inline int ring_identity(Request *r) noexcept nogil:
    """io_uring_sqe.personality for what changes data; 0: the thread's own, which is always the same, or -errno."""
    return data_personality(r.ctx, r.as_data) if r.ctx.data_how else 0


cdef inline void ring_link(Request *r, io_uring_sqe *sqe) noexcept nogil:
    """Have a READ of r.len bytes committed right past its last I/O, which has just been staged, if that is a full success.

    Then no CQE comes of either, but the next request's: see link_turn() in _ring.
    """
    sqe.flags |= IOSQE_IO_LINK | IOSQE_CQE_SKIP_SUCCESS
    r.ctx.link(r)
