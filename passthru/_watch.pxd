# What the readers of fanotify(7) have in common.
from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef uint64_t number_in(bint memory, int32_t kind, uint32_t length, const char *handle) noexcept nogil
