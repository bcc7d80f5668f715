"""Zero-copied requests that are no READ or WRITE: READDIR, READDIRPLUS, READLINK and IOCTL.

Buffer rings may zero-copy any request with pages; 7.3 does so for READ and WRITE only. Only
io_uring reaches those pages: the reply is made in a memory file, in which each request
has a place of its own, and read from there into them.
"""
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from passthru._abi cimport *
from passthru._libc cimport *
from passthru._ops cimport undelivered
from passthru._request cimport *
from passthru._wait cimport ring_sqe


cdef inline uint32_t head_size(Request *r) noexcept nogil:
    """What of the reply's body belongs into the payload: an ioctl's result."""
    return sizeof(fuse_ioctl_out) if r.h.opcode == FUSE_IOCTL else 0


cdef int bounce_open(Request *r) noexcept nogil:
    """Map the request's place in its thread's memory file; memory comes with use. 0 or -errno."""
    cdef Context *ctx = r.ctx
    cdef uint64_t size = ctx.server.config.payload_size
    cdef uint64_t at = r.zero_copy_index * size
    cdef void *m
    if ctx.bounce_fd <= 0:
        ctx.bounce_fd = memfd_create("passthru", MFD_CLOEXEC)
        if ctx.bounce_fd < 0:
            return -errno
    if at + size > ctx.bounce_size:
        if ftruncate(ctx.bounce_fd, at + size) < 0:
            return -errno
        ctx.bounce_size = at + size
    m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ctx.bounce_fd, at)
    if m == MAP_FAILED:
        return -errno
    r.bounce = <char *> m
    return 0


cdef void bounce_close(Request *r) noexcept nogil:
    if r.bounce != NULL:
        munmap(r.bounce, r.ctx.server.config.payload_size)
        r.bounce = NULL


cdef int bounce_serve(Request *r) noexcept nogil:
    """Serve it. -errno or PENDING: what a pool has done goes to bounce_finish()."""
    cdef int res
    if r.h.opcode == FUSE_NOTIFY_REPLY:
        return r.ctx.server.dispatch(r)  # it has no reply
    # Arguments of an ioctl would be in the pages as well; those that have some come without zero-copy.
    if r.h.opcode not in (FUSE_READDIR, FUSE_READDIRPLUS, FUSE_READLINK) and not (
            r.h.opcode == FUSE_IOCTL and not (<fuse_ioctl_in *> r.op_in).in_size and r.out_cap >= head_size(r)):
        if r.h.opcode < FUSE_OPCODES:
            r.ctx.stats.ops[r.h.opcode] += 1
        return -ENOTTY if r.h.opcode == FUSE_IOCTL else -EIO
    if r.bounce == NULL:
        res = bounce_open(r)
        if res < 0:
            return res
    r.arg_len = 0  # what the request counts as its payload is the pages
    r.out = r.bounce
    r.out_cap = r.ctx.server.config.payload_size
    res = r.ctx.server.dispatch(r)
    return res if res == PENDING else bounce_finish(r, res)


cdef int bounce_finish(Request *r, int result) noexcept nogil:
    """From the reply that is made to the pages."""
    cdef uint32_t head = head_size(r)
    cdef io_uring_sqe *sqe
    if result <= <int> head:
        return result
    memcpy(r.arg, r.out, head)
    r.fd = r.ctx.bounce_fd
    r.len = result
    sqe = ring_sqe(r, bounce_done)
    sqe.opcode = IORING_OP_READ_FIXED
    sqe.buf_index = r.zero_copy_index
    sqe.off = <uint64_t> r.zero_copy_index * r.ctx.server.config.payload_size + head
    sqe.addr = 0
    sqe.len = result - head
    r.ctx.stats.io_zero_copy += 1
    return PENDING


cdef int bounce_done(Request *r, int res) noexcept nogil:
    if res == <int> (r.len - head_size(r)):
        return <int> r.len
    undelivered(r, <int> r.len)
    return res if res < 0 else -EIO
