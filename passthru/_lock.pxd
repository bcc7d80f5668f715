# flock(2) and record locks, taken on the source.
from libc.stdint cimport uint32_t, uint64_t

from passthru._arena cimport Arena
from passthru._request cimport LockTables, Request, Server

cdef LockTables *locks_new(Arena *arena) noexcept nogil
cdef void locks_free(LockTables *locks) noexcept nogil
cdef int op_getlk(Request *r) noexcept nogil
cdef int op_setlk(Request *r) noexcept nogil
cdef void locks_drop_owner(Server *s, uint32_t node, uint64_t owner) noexcept nogil
cdef void locks_drop_file(Server *s, uint32_t node, uint32_t fh) noexcept nogil
cdef void flock_leaving(Server *s, uint32_t node, uint32_t fh) noexcept nogil
cdef void flock_left(Server *s, uint32_t node, uint32_t fh) noexcept nogil
cdef void locks_adopt(Server *s) noexcept nogil
cdef int lock_fd(Server *s, uint64_t n) noexcept nogil
