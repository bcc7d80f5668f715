# Extended attributes.
from passthru._request cimport Request

cdef int op_setxattr(Request *r) noexcept nogil
cdef int op_getxattr(Request *r) noexcept nogil
cdef int op_listxattr(Request *r) noexcept nogil
cdef int op_removexattr(Request *r) noexcept nogil
