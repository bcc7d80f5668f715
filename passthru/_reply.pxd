# Attributes and entries as the kernel takes them.
from libc.stdint cimport uint32_t

from passthru._libc cimport statx
from passthru._request cimport Request

cdef uint32_t attr_digest(statx *stx) noexcept nogil
cdef int attr_reply(Request *r, statx *stx) noexcept nogil
cdef int entry_reply(Request *r, char *to, uint32_t node, statx *stx) noexcept nogil
