# Payload memory and the data path.
from libc.stdint cimport uint32_t, uint64_t

from passthru._abi cimport io_uring_sqe
from passthru._request cimport Finisher, Handler, Request

cdef struct Payloads:          # the payload memory of one queue
    char *base
    size_t size                # of one payload, bytes
    unsigned count

cdef int payloads_map(Payloads *p, unsigned count, size_t size) noexcept nogil
cdef char *payload_map(Payloads *p) noexcept nogil
cdef void payload_unmap(Payloads *p, char *payload) noexcept nogil
cdef void payloads_gather(Payloads *p, char *at) noexcept nogil
cdef void payloads_unmap(Payloads *p) noexcept nogil

cdef io_uring_sqe *ring_sqe(Request *r, Finisher finish) noexcept nogil
cdef int open_to_cut(Request *r, int opath) noexcept nogil
cdef int cut(Request *r, uint32_t node, int fd, uint64_t size, bint kill) noexcept nogil
cdef int chmod_fd(int fd, uint32_t mode) noexcept nogil
cdef enum:
    BIG_CUT = 64 << 20      # bytes: freeing more than this may take a while
    REMOTE_RING = 64        # reads and writes of remote files at a time, for which a queue's thread has io_uring's workers

cdef int later(Request *r, Handler blocking) noexcept nogil
cdef int later_crossing(Request *r, Handler blocking, const char *name) noexcept nogil
cdef int later_for(Request *r, Handler blocking, uint64_t node) noexcept nogil
cdef int patiently(Request *r, Handler blocking) noexcept nogil

cdef int op_read(Request *r) noexcept nogil
cdef int op_write(Request *r) noexcept nogil
cdef int op_fsync(Request *r) noexcept nogil
cdef int op_fsyncdir(Request *r) noexcept nogil
cdef int op_fallocate(Request *r) noexcept nogil
cdef int op_lseek(Request *r) noexcept nogil
cdef int op_copy_file_range(Request *r) noexcept nogil
cdef int op_syncfs(Request *r) noexcept nogil


cdef inline char *payload_at(Payloads *p, unsigned n) noexcept nogil:
    return p.base + n * p.size
