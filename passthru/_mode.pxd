# Mode bits, above all suid and sgid: what is told of them, and when they go.
from libc.stdint cimport uint32_t

from passthru._inode cimport FS_MOUNT_FLAGS, FS_NOEXEC, FS_NOSUID, Filesystem, Inode
from passthru._libc cimport S_IFMT, S_IFREG, S_ISGID, S_ISUID, statx
from passthru._request cimport Request, server_of

cdef int chmod_fd(int fd, uint32_t mode) noexcept nogil
cdef void kill_suidgid(int fd) noexcept nogil
cdef bint settle(Request *r, Inode *i, uint32_t node, statx *stx) noexcept nogil


cdef inline uint32_t shown_mode(Filesystem *f, statx *stx) noexcept nogil:
    """A mode as the mount's flags of the filesystem let it count: the kernel knows those of our mount only."""
    cdef inline uint32_t mode = stx.stx_mode
    if f.flags & FS_MOUNT_FLAGS and mode & S_IFMT == S_IFREG:
        if f.flags & FS_NOSUID:
            mode &= ~<uint32_t> (S_ISUID | S_ISGID)
        if f.flags & FS_NOEXEC:
            mode &= ~<uint32_t> 0o111
    return mode


cdef inline bint privileged(statx *stx) noexcept nogil:
    """May a file give its rights to who runs it? What the kernel knows of that is never older than the question."""
    return stx.stx_mode & (S_ISUID | S_ISGID) and stx.stx_mode & S_IFMT == S_IFREG


cdef inline uint32_t told_mode(Request *r, Inode *i, statx *stx) noexcept nogil:
    """shown_mode(), but suid and sgid only as settled() has seen them; else the kernel asks when it needs them."""
    cdef inline uint32_t mode = shown_mode(&server_of(r).inodes.fs[i.fs], stx)
    if privileged(stx):
        if not r.settled:
            return mode & ~<uint32_t> (S_ISUID | S_ISGID)
        i.told = 1
    return mode


cdef inline bint settled(Request *r, Inode *i, uint32_t node, statx *stx) noexcept nogil:
    """Are the attributes that are about to be told, suid and sgid among them, of one state? False: serve it by later()."""
    return not privileged(stx) or r.settled or settle(r, i, node, stx)
