# What the kernel has allowed by what it knew, and the source is to look at again.
from libc.stdint cimport uint32_t

from passthru._abi cimport gid_t
from passthru._identity cimport identity_restore
from passthru._libc cimport statx
from passthru._request cimport Request

cdef int owner_take(Request *r, int fd, bint chown, uint32_t gid) noexcept nogil
cdef int stick_to_caller(Request *r, int fd, int fd2, bint making) noexcept nogil
cdef int for_owner(Request *r, statx *stx) noexcept nogil
cdef int stick_to_owner(Request *r, int fd, const char *name) noexcept nogil
cdef int movable(Request *r, int fd, const char *name) noexcept nogil
cdef int access_as_caller(Request *r, int fd, int wanted, unsigned n, gid_t *groups) noexcept nogil


cdef inline void rights_drop(Request *r, int taken) noexcept nogil:
    """The end of what owner_take() or stick_to_caller() has begun, if that is anything."""
    if taken > 0:
        identity_restore(r)
