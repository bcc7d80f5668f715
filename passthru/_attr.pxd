# Attributes: GETATTR, SETATTR, STATX, STATFS, ACCESS, READLINK.
from passthru._request cimport Request

cdef int op_getattr(Request *r) noexcept nogil
cdef int op_setattr(Request *r) noexcept nogil
cdef int op_statx(Request *r) noexcept nogil
cdef int op_statfs(Request *r) noexcept nogil
cdef int op_access(Request *r) noexcept nogil
cdef int op_readlink(Request *r) noexcept nogil
