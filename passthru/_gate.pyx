"""Who is let in: with -o allow_root the mount's owner and root, and nobody else.

The kernel knows "the owner" and "everybody" only, so it is told the latter. Requests by a file
that is open already are not refused: who has got hold of it may use it, and some of them
come from the kernel itself.
"""
from libc.stdint cimport uint64_t

from passthru._abi cimport *
from passthru._libc cimport EACCES
from passthru._request cimport Request, server_of

cdef uint64_t BY_OPEN_FILE = (
    <uint64_t> 1 << FUSE_FORGET | <uint64_t> 1 << FUSE_BATCH_FORGET | <uint64_t> 1 << FUSE_INTERRUPT
    | <uint64_t> 1 << FUSE_DESTROY | <uint64_t> 1 << FUSE_READ | <uint64_t> 1 << FUSE_WRITE
    | <uint64_t> 1 << FUSE_FLUSH | <uint64_t> 1 << FUSE_FSYNC | <uint64_t> 1 << FUSE_RELEASE
    | <uint64_t> 1 << FUSE_READDIR | <uint64_t> 1 << FUSE_READDIRPLUS | <uint64_t> 1 << FUSE_FSYNCDIR
    | <uint64_t> 1 << FUSE_RELEASEDIR | <uint64_t> 1 << FUSE_LSEEK | <uint64_t> 1 << FUSE_FALLOCATE
    | <uint64_t> 1 << FUSE_COPY_FILE_RANGE | <uint64_t> 1 << FUSE_COPY_FILE_RANGE_64
    | <uint64_t> 1 << FUSE_GETLK | <uint64_t> 1 << FUSE_SETLK | <uint64_t> 1 << FUSE_SETLKW
    | <uint64_t> 1 << FUSE_SYNCFS)


cdef int gate(Request *r) noexcept nogil:
    """Refuse a stranger's request, or serve it."""
    if r.h.uid != 0 and r.h.uid != server_of(r).owner and not (
            r.h.opcode < 64 and BY_OPEN_FILE >> r.h.opcode & 1):
        return -EACCES
    return server_of(r).admitted(r)
