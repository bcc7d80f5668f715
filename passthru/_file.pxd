# Open files: OPEN, CREATE, TMPFILE, FLUSH, RELEASE.
from passthru._request cimport Request

cdef int op_open(Request *r) noexcept nogil
cdef int op_create(Request *r) noexcept nogil
cdef int op_tmpfile(Request *r) noexcept nogil
cdef int op_flush(Request *r) noexcept nogil
cdef int op_release(Request *r) noexcept nogil
