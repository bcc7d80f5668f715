# What the kernel adds to a request: extensions at the end of its argument, each a fuse_ext_header with its
# content, padded to 8 bytes (linux/fuse.h).
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from passthru._abi cimport fuse_ext_header
from passthru._libc cimport EINVAL
from passthru._request cimport Request


cdef struct Extension:
    uint32_t type    # fuse_ext_type, or the number of contexts of a fuse_secctx_header
    uint32_t size    # of its content, bytes
    char *content    # at any address: extensions follow names
    uint32_t next    # where the next one begins; 0 before the first


cdef inline int extension_next(Request *r, Extension *x) noexcept nogil:
    """Go on to the request's next extension: 1, 0 if there is none, -EINVAL if it is malformed."""
    cdef uint32_t total = <uint32_t> r.h.total_extlen * 8
    cdef fuse_ext_header e
    cdef char *at
    if x.next + sizeof(e) > total:
        return 0
    if total > r.arg_len:
        return -EINVAL
    at = r.arg + r.arg_len - total + x.next
    memcpy(&e, at, sizeof(e))
    if e.size < sizeof(e) or e.size > total - x.next:
        return -EINVAL
    x.type = e.type
    x.size = e.size - <uint32_t> sizeof(e)
    x.content = at + sizeof(e)
    x.next += (e.size + 7) & ~7u
    return 1
