# Open files: OPEN, CREATE, TMPFILE, FLUSH, RELEASE.
from libc.stdint cimport uint32_t, uint64_t

from passthru._libc cimport statx
from passthru._request cimport Request

cdef uint64_t version_of(statx *stx) noexcept nogil

cdef uint32_t source_flags(Request *r, uint32_t flags) noexcept nogil
cdef int created(Request *r, int fd, uint32_t flags) noexcept nogil
cdef int op_open(Request *r) noexcept nogil
cdef int op_create(Request *r) noexcept nogil
cdef int op_tmpfile(Request *r) noexcept nogil
cdef int op_flush(Request *r) noexcept nogil
cdef int op_release(Request *r) noexcept nogil
