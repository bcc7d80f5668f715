# Kernel passthrough: backing files that the kernel reads and writes itself.
from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthru._identity cimport data_drop
from passthru._inode cimport Handle, Inode, handle_at
from passthru._libc cimport EBADF, O_ACCMODE, O_APPEND, O_RDONLY
from passthru._request cimport Context, Request, Server, server_of

cdef int32_t backing_reserve(Context *ctx, Inode *i, uint32_t node, int opath, uint32_t flags, bint wanted) noexcept nogil
cdef void backings_sweep(Server *s) noexcept nogil
cdef void backing_forget(Server *s, Inode *i) noexcept nogil
cdef int handle_open_fd(Server *s, Handle *h) noexcept nogil


cdef inline bint appending(uint32_t open_flags) noexcept nogil:
    return open_flags & O_APPEND and open_flags & O_ACCMODE != O_RDONLY


cdef inline int handle_fd(Server *s, Handle *h) noexcept nogil:
    """The source fd of a handle, opened now if the kernel has done without so far; or -errno."""
    if h.fd >= 0:
        return h.fd
    return handle_open_fd(s, h)


cdef inline int fh_fd(Request *r, uint64_t fh, unsigned kind, Handle **h) noexcept nogil:
    """The source fd of the open handle `fh` of that kind, which h becomes; or -errno."""
    h[0] = handle_at(&server_of(r).handles, fh, kind)
    if h[0] == NULL:
        return -EBADF
    if h[0].fd >= 0:
        return h[0].fd
    data_drop(r.ctx)
    return handle_fd(server_of(r), h[0])
