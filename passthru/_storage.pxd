# What is done to a file's data in the source, without its coming here: space, holes, copies, sync.
from libc.stdint cimport uint32_t, uint64_t

from passthru._request cimport Request

cdef enum:
    BIG_CUT = 64 << 20      # bytes: freeing more than this may take a while

cdef int open_to_cut(Request *r, int opath) noexcept nogil
cdef int cut(Request *r, uint32_t node, int fd, uint64_t size, bint kill) noexcept nogil

cdef int op_fsync(Request *r) noexcept nogil
cdef int op_fsyncdir(Request *r) noexcept nogil
cdef int op_syncfs(Request *r) noexcept nogil
cdef int op_fallocate(Request *r) noexcept nogil
cdef int op_lseek(Request *r) noexcept nogil
cdef int op_copy_file_range(Request *r) noexcept nogil
