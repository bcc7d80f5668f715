"""Who is let in: with -o allow_root the mount's owner and root, and nobody else.

The kernel knows "the owner" and "everybody" only, so it is told the latter. Requests by a file
that is open already are not refused: who has got hold of it may use it, and some of them
come from the kernel itself.
"""
from passthru._libc cimport EACCES
from passthru._ops cimport BY_OPEN_FILE, op_flags
from passthru._request cimport Request, server_of


cdef int gate(Request *r) noexcept nogil:
    """Refuse a stranger's request, or serve it."""
    if r.h.uid != 0 and r.h.uid != server_of(r).owner and not op_flags(r.h.opcode) & BY_OPEN_FILE:
        return -EACCES
    return server_of(r).admitted(r)
