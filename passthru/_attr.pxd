# Attributes: GETATTR, SETATTR, STATX, STATFS, ACCESS, READLINK.
from libc.stdint cimport uint32_t

from passthru._request cimport Request

cdef int owner_take(Request *r, int fd, bint chown, uint32_t gid) noexcept nogil

cdef int op_getattr(Request *r) noexcept nogil
cdef int op_setattr(Request *r) noexcept nogil
cdef int op_statx(Request *r) noexcept nogil
cdef int op_statfs(Request *r) noexcept nogil
cdef int op_access(Request *r) noexcept nogil
cdef int op_readlink(Request *r) noexcept nogil
