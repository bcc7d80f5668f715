"""Mode bits: what is told of suid and sgid, and when they go."""
from libc.errno cimport errno
from libc.stdint cimport uint32_t

from passthru._abi cimport *
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._request cimport *
from passthru._wait cimport may_wait


cdef bint settle(Request *r, Inode *i, uint32_t node, statx *stx) noexcept nogil:
    """settled() of a program with rights of its own: chown(2) changes the owner before it takes suid.

    statx(2) takes no lock and may see both halves; execve(2) in the source looks under the inode's lock, which
    SEEK_HOLE takes as well. It may be waited for, so this is for a thread that may wait. Where the bits have no
    effect nothing is done.
    """
    cdef Server *s = server_of(r)
    cdef InodeTable *t = &s.inodes
    cdef char path[FD_PATH]
    cdef statx again
    cdef int own, fd
    cdef unsigned _
    r.settled = not s.config.identity or (t.fs[i.fs].flags | t.enforced) & FS_NOSUID != 0
    if r.settled:
        return True
    if not may_wait(r):
        return False
    if not r.patient and not change_begin(t, i, False):
        return True  # opened for reading just now: the kernel asks again when it needs to know
    fd = inode_fd(t, i, node)
    if fd < 0:
        if not r.patient:
            change_end(t, i)
        return True
    fd_path(path, fd)
    for _ in range(16):
        own = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        if own < 0:
            break
        lseek(own, 0, SEEK_HOLE)
        close(own)
        if c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), &again) < 0:
            break
        r.settled = again.stx_mode == stx.stx_mode and again.stx_uid == stx.stx_uid and again.stx_gid == stx.stx_gid
        stx[0] = again
        if r.settled:
            break
    inode_unpin(i)
    if not r.patient:
        change_end(t, i)
    return True


cdef int chmod_fd(int fd, uint32_t mode) noexcept nogil:
    """fchmod(2), also of an O_PATH fd. 0 or -errno."""
    cdef char path[FD_PATH]
    cdef int res = sys_fchmodat2(fd, "", mode, AT_EMPTY_PATH)
    if res == -ENOSYS:  # before 6.6
        fd_path(path, fd)
        res = -errno if fchmodat(AT_FDCWD, path, mode, 0) < 0 else 0
    return res


cdef void kill_suidgid(int fd) noexcept nogil:
    """suid goes, sgid if the group may execute: of a remote file, whose server may know the daemon as root."""
    cdef statx stx
    cdef uint32_t mode
    if c_statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0:
        return
    mode = stx.stx_mode & ~<uint32_t> S_ISUID
    if mode & S_IXGRP:
        mode &= ~<uint32_t> S_ISGID
    if mode != stx.stx_mode:
        chmod_fd(fd, mode & 0o7777)
