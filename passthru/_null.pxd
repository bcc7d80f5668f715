# Handlers that do no I/O.
from passthru._request cimport Request

cdef int null_read(Request *r) noexcept nogil
cdef int null_write(Request *r) noexcept nogil
cdef int null_fsync(Request *r) noexcept nogil
