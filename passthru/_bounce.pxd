# Zero-copied requests that are no READ or WRITE.
from passthru._abi cimport FUSE_READ, FUSE_WRITE
from passthru._request cimport Request

cdef int bounce_serve(Request *r) noexcept nogil
cdef int bounce_finish(Request *r, int result) noexcept nogil
cdef void bounce_close(Request *r) noexcept nogil


cdef inline bint bounces(Request *r) noexcept nogil:
    """Does the reply's body go into the kernel's own pages by way of other memory?"""
    return r.zero_copy and r.h.opcode != FUSE_READ and r.h.opcode != FUSE_WRITE
