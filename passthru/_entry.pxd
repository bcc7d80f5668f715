# Names: LOOKUP, and what creates, removes, renames and links them.
from passthru._request cimport Request

cdef int op_lookup(Request *r) noexcept nogil
cdef int op_forget(Request *r) noexcept nogil
cdef int op_batch_forget(Request *r) noexcept nogil
cdef int op_mknod(Request *r) noexcept nogil
cdef int op_mkdir(Request *r) noexcept nogil
cdef int op_symlink(Request *r) noexcept nogil
cdef int op_unlink(Request *r) noexcept nogil
cdef int op_rmdir(Request *r) noexcept nogil
cdef int op_rename(Request *r) noexcept nogil
cdef int op_rename2(Request *r) noexcept nogil
cdef int op_link(Request *r) noexcept nogil
