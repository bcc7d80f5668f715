# Kernel passthrough: backing files that the kernel reads and writes itself.
from libc.stdint cimport int32_t, uint32_t

from passthru._inode cimport Inode
from passthru._request cimport Context, Server

cdef int32_t backing_reserve(Context *ctx, Inode *i, uint32_t node, int opath, uint32_t flags, bint wanted,
                             unsigned own) noexcept nogil
cdef void backings_sweep(Server *s) noexcept nogil
cdef void backing_forget(Server *s, Inode *i) noexcept nogil
