# Threads for what may wait: no thread that serves a queue ever does.
from libc.stdint cimport uint64_t

from passthru._request cimport Handler, Request, Server

cdef void *pool_start(Server *s, unsigned limit) noexcept nogil
cdef void pool_cancel(void *pool) noexcept nogil
cdef void pool_stop(void *pool) noexcept nogil
cdef void nap() noexcept nogil
cdef int pool_submit(void *pool, Request *r, Handler blocking) noexcept nogil
cdef void pool_interrupt(Server *s, uint64_t unique) noexcept nogil
