"""Security labels of what is made: the kernel says what SELinux wants for the caller, and here the
source's new file gets it at its creation, by this thread's fscreate attribute (proc_pid_attr(5)).

struct fuse_secctx_header has the place and form of a fuse_ext_header, its type the number of contexts;
each is a fuse_secctx, the attribute's name with its NUL, and the label.
"""
from libc.errno cimport errno
from libc.stdint cimport uint32_t
from libc.stdlib cimport abort
from libc.string cimport memchr, memcpy, strcmp

from passthru._abi cimport *
from passthru._extension cimport Extension, extension_next
from passthru._libc cimport *
from passthru._request cimport Context, Request

cdef enum:
    MOST_CONTEXTS = 31  # larger types are other extensions


cdef int label_of(Request *r, char **label) noexcept nogil:
    """The length of the request's SELinux label; 0: none came, -EINVAL: malformed."""
    cdef Extension x
    cdef uint32_t at, n
    cdef int more
    cdef char *name
    cdef char *nul
    cdef uint32_t size[2]
    x.next = 0
    while True:
        more = extension_next(r, &x)
        if more <= 0:
            return more
        at = 0
        n = x.type if x.type <= MOST_CONTEXTS else 0
        while n:
            n -= 1
            if x.size - at < sizeof(size):
                return -EINVAL
            memcpy(size, x.content + at, sizeof(size))
            at += sizeof(size)
            name = x.content + at
            nul = <char *> memchr(name, 0, x.size - at)
            if nul == NULL:
                return -EINVAL
            at = <uint32_t> (nul + 1 - x.content)
            if size[0] > x.size - at:
                return -EINVAL
            if strcmp(name, "security.selinux") == 0:
                label[0] = x.content + at
                return <int> size[0]
            at += size[0]


cdef int label_take(Request *r) noexcept nogil:
    """Have what this thread makes labelled as the request says, until label_drop(). 0 or -errno."""
    cdef Context *ctx = r.ctx
    cdef char *label = NULL
    cdef int n = label_of(r, &label)
    if n <= 0:
        return n
    if ctx.label_fd < 0:
        ctx.label_fd = open("/proc/thread-self/attr/fscreate", O_WRONLY | O_CLOEXEC)
        if ctx.label_fd < 0:
            return -EOPNOTSUPP
    if write(ctx.label_fd, label, n) != n:
        return -errno
    ctx.labelled = 1
    return 0


cdef void label_drop(Context *ctx) noexcept nogil:
    ctx.labelled = 0
    if write(ctx.label_fd, "", 0) < 0:
        abort()  # somebody else's files would get the label
