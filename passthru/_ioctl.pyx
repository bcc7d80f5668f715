"""IOCTL: inode flags and project ids (chattr(1), lsattr(1), xfs_io(8)), and the inode's version.

Only what is listed goes to the source: an ioctl is done with the daemon's rights, and of
these the kernel has checked the caller's (vfs_fileattr_set()). FIEMAP and FICLONE never
get here, FUSE has no request for them; FITRIM is for who owns the whole filesystem.
"""
from libc.errno cimport errno
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

from passthru._abi cimport *
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._notify cimport notify_attributes
from passthru._openfile cimport file_at, file_fd
from passthru._request cimport *
from passthru._rights cimport owner_take, rights_drop

cdef enum:
    LARGEST = 64


cdef int op_ioctl(Request *r) noexcept nogil:
    cdef fuse_ioctl_in *arg = <fuse_ioctl_in *> r.op_in
    cdef fuse_ioctl_out *out = <fuse_ioctl_out *> r.out
    cdef OpenFile *file = file_at(server_of(r), arg.fh, OF_DIR if arg.flags & FUSE_IOCTL_DIR else OF_FILE)
    cdef char data[LARGEST]
    cdef uint32_t size = arg.out_size
    cdef int fd, taken, res
    if file == NULL:
        return -EBADF
    if arg.flags & FUSE_IOCTL_COMPAT or arg.cmd not in (
            FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, FS_IOC_GETVERSION):
        return -ENOTTY
    if arg.cmd == FS_IOC_GETVERSION and size > 4:
        size = 4  # its number says long, but filesystems write an int, and programs have room for that
    if arg.in_size > LARGEST or arg.in_size > r.arg_len or size > LARGEST:
        return -EINVAL
    fd = file_fd(server_of(r), file)
    if fd < 0:
        return fd
    memset(data, 0, sizeof(data))
    memcpy(data, r.arg, arg.in_size)
    taken = owner_take(r, fd, False, 0xffffffff) if arg.cmd in (FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR) else 0
    if taken < 0:
        return taken
    if taken > 0 and sys_is_capable(r.h.pid, CAP_LINUX_IMMUTABLE):
        sys_cap_change(0, 1 << CAP_LINUX_IMMUTABLE)
    res = -errno if ioctl(fd, arg.cmd, &data[0]) < 0 else 0
    rights_drop(r, taken)
    if res < 0:
        return res
    if arg.cmd in (FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR):
        notify_attributes(server_of(r), file.node)  # ctime
    memset(out, 0, sizeof(fuse_ioctl_out))
    memcpy(out + 1, data, size)
    return <int> (sizeof(fuse_ioctl_out) + size)
