# A root that is one file: the requests that differ from those of a tree.
from passthru._request cimport Request

cdef int op_notdir(Request *r) noexcept nogil
cdef int op_sync_root(Request *r) noexcept nogil

cdef int op_open_fixed(Request *r) noexcept nogil
cdef int op_setattr_fixed(Request *r) noexcept nogil
cdef int op_write_fixed(Request *r) noexcept nogil
cdef int op_fallocate_fixed(Request *r) noexcept nogil

cdef int op_open_device(Request *r) noexcept nogil
cdef int op_getattr_device(Request *r) noexcept nogil
cdef int op_setattr_device(Request *r) noexcept nogil
cdef int op_statx_device(Request *r) noexcept nogil
cdef int op_statfs_device(Request *r) noexcept nogil
cdef int op_lseek_device(Request *r) noexcept nogil
cdef int op_fallocate_device(Request *r) noexcept nogil
