# From a name to its inode.
from libc.stdint cimport int64_t

from passthru._inode cimport FS_STACKED, Inode, stx_mask
from passthru._libc cimport AT_NO_AUTOMOUNT, AT_STATX_DONT_SYNC, AT_SYMLINK_NOFOLLOW, c_statx, statx
from passthru._request cimport Request, server_of
from passthru._wait cimport may_wait

cdef int64_t child_lookup(Request *r, Inode *parent, int parent_fd, const char *name, bint fresh,
                          statx *stx) noexcept nogil
cdef int64_t cross(Request *r, Inode *parent, int parent_fd, const char *name, statx *stx) noexcept nogil
cdef int64_t opened_inode(Request *r, int fd, statx *stx) noexcept nogil


cdef inline int look_at(Request *r, Inode *parent, int parent_fd, const char *name, statx *stx) noexcept nogil:
    """statx(2) of a name without an fd, where nothing is mounted below the source as far as is known.

    If something has just been: AT_STATX_DONT_SYNC has a FUSE filesystem not be asked, whoever it is.
    """
    cdef int sync = AT_STATX_DONT_SYNC
    if may_wait(r) or server_of(r).inodes.fs[parent.fs].flags & FS_STACKED:
        sync = 0
    return c_statx(parent_fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | sync, stx_mask(), stx)
