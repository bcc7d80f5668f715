# Opcode dispatch.
from libc.stdint cimport uint32_t, uint64_t

from passthru._request cimport Request

cdef int dispatch(Request *r) noexcept nogil
cdef uint32_t op_in_size(uint32_t opcode) noexcept nogil
cdef void undelivered(Request *r, int result) noexcept nogil
cdef void ops_init(bint null_io) noexcept nogil
