# Attributes and entries as the kernel takes them.
from libc.stdint cimport uint32_t, uint64_t

from passthru._abi cimport fuse_attr
from passthru._inode cimport Inode
from passthru._libc cimport statx
from passthru._request cimport Request

cdef uint32_t attr_digest(statx *stx) noexcept nogil
cdef bint changes_told(Request *r) noexcept nogil
cdef uint64_t keep_name(Request *r, Inode *i, uint32_t *nsec) noexcept nogil
cdef uint64_t keep_attributes(Request *r, Inode *i, statx *stx, uint32_t *nsec) noexcept nogil
cdef void attr_fill(Request *r, Inode *i, fuse_attr *a, statx *stx) noexcept nogil
cdef int attr_reply(Request *r, statx *stx) noexcept nogil
cdef int entry_reply(Request *r, char *to, uint32_t node, statx *stx) noexcept nogil
