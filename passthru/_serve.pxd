# A serving thread's context.
from passthru._request cimport Context, Server

cdef int context_open(Context *ctx, Server *s, unsigned kind, int cpu) noexcept nogil
cdef void context_close(Context *ctx) noexcept nogil
