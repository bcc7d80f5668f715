# Directories: OPENDIR, READDIR, READDIRPLUS, RELEASEDIR.
from passthru._request cimport Request

cdef int op_opendir(Request *r) noexcept nogil
cdef int op_readdir(Request *r) noexcept nogil
cdef int op_readdirplus(Request *r) noexcept nogil
cdef int op_releasedir(Request *r) noexcept nogil
