"""A root that is one file: the requests that differ from those of a tree.

Which they are is settled in the table of _ops, by the kind of root, so that nothing here
costs a tree anything. A block device is shown as a regular file of its size. What has a
fixed size is written up to there; truncate(2) to another one is EPERM, as of a sealed
memfd (fcntl(2)), and so is O_TRUNC: ignoring it, as a device does, would let programs
that skip zeros (cp, qemu-img convert) leave old data in their place.
"""
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from passthru._abi cimport *
from passthru._attr cimport op_getattr, op_setattr, op_statx
from passthru._copy cimport op_write
from passthru._file cimport op_open
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._openfile cimport cache_fd, fh_fd, file_at
from passthru._request cimport *
from passthru._storage cimport op_fallocate
from passthru._wait cimport later

cdef char ZEROES[4096]  # C zeroes it


cdef int op_notdir(Request *r) noexcept nogil:
    """A name, or a listing, in what is no directory."""
    return -ENOTDIR


cdef int op_sync_root(Request *r) noexcept nogil:
    """SYNCFS: all that the mount holds. syncfs(2) of a device's fd would be that of /dev."""
    return later(r, blocking_sync_root)


cdef int blocking_sync_root(Request *r) noexcept nogil:
    return -errno if fsync(server_of(r).root_fd) < 0 else 0


# -------------------------------------------- regular files of a fixed size

cdef int op_open_fixed(Request *r) noexcept nogil:
    cdef fuse_open_in *arg = <fuse_open_in *> r.op_in
    if arg.flags & O_TRUNC and server_of(r).config.fixed_size:
        return -EPERM
    # The kernel knows where the end is; were it moved beside the mount, an append would go there.
    arg.flags &= ~<uint32_t> (O_TRUNC | O_APPEND)
    return op_open(r)


cdef int set_to(Request *r, uint64_t size) noexcept nogil:
    """A SETATTR that leaves a size as it is."""
    cdef fuse_setattr_in *arg = <fuse_setattr_in *> r.op_in
    if arg.valid & FATTR_SIZE and arg.size != size:
        return -EPERM
    arg.valid &= ~<uint32_t> FATTR_SIZE
    return op_setattr(r)


cdef int op_setattr_fixed(Request *r) noexcept nogil:
    return set_to(r, server_of(r).config.fixed_size)


cdef int op_write_fixed(Request *r) noexcept nogil:
    """As on a device: up to the end, and nothing past it."""
    cdef fuse_write_in *arg = <fuse_write_in *> r.op_in
    cdef uint64_t size = server_of(r).config.fixed_size
    if arg.offset >= size:
        return -ENOSPC
    if arg.size > size - arg.offset:
        if arg.flags & O_DIRECT:
            return -ENOSPC  # see write_reply()
        arg.size = <uint32_t> (size - arg.offset)
    return op_write(r)


cdef inline bint grows(fuse_fallocate_in *arg, uint64_t size) noexcept nogil:
    return not arg.mode & FALLOC_FL_KEEP_SIZE and (arg.offset > size or arg.length > size - arg.offset)


cdef int op_fallocate_fixed(Request *r) noexcept nogil:
    cdef fuse_fallocate_in *arg = <fuse_fallocate_in *> r.op_in
    return -ENOSPC if grows(arg, server_of(r).config.fixed_size) else op_fallocate(r)


# ------------------------------------------------------------ block devices

cdef inline uint64_t device_size(Server *s) noexcept nogil:
    """Bytes; asked each time, as a device may be resized."""
    cdef uint64_t size = 0
    ioctl(s.root_fd, BLKGETSIZE64, &size)
    return size


cdef int op_open_device(Request *r) noexcept nogil:
    cdef Server *s = server_of(r)
    cdef fuse_open_out *out = <fuse_open_out *> r.out
    cdef int res
    if (<fuse_open_in *> r.op_in).flags & O_TRUNC:
        return -EPERM
    res = op_open(r)
    if res > 0:
        if s.config.keep_cache != KEEP_ALL:
            # Who writes to a device need not change its node's times.
            out.open_flags &= ~<uint32_t> FOPEN_KEEP_CACHE
        if s.config.zero_copy and device_size(s) >= s.config.zero_copy_min:
            out.open_flags |= FOPEN_IO_URING_ZERO_COPY
    return res


cdef int attr_of_device(Request *r, int res) noexcept nogil:
    """The reply to GETATTR or SETATTR of the device's node, made that of a file."""
    cdef fuse_attr *a = &(<fuse_attr_out *> r.out).attr
    if res > 0:
        a.mode = (a.mode & ~<uint32_t> S_IFMT) | S_IFREG
        a.size = device_size(server_of(r))
        a.blocks = a.size >> 9
        a.rdev = 0
    return res


cdef int op_getattr_device(Request *r) noexcept nogil:
    return attr_of_device(r, op_getattr(r))


cdef int op_setattr_device(Request *r) noexcept nogil:
    return attr_of_device(r, set_to(r, device_size(server_of(r))))


cdef int op_statx_device(Request *r) noexcept nogil:
    cdef fuse_statx *a = &(<fuse_statx_out *> r.out).stat
    cdef int res = op_statx(r)
    if res > 0:
        a.mode = (a.mode & ~S_IFMT) | S_IFREG
        a.size = device_size(server_of(r))
        a.blocks = a.size >> 9
        a.rdev_major = a.rdev_minor = 0
    return res


cdef int op_statfs_device(Request *r) noexcept nogil:
    """A filesystem of one file, which fills it; the node's would be that of /dev."""
    cdef fuse_kstatfs *out = <fuse_kstatfs *> r.out
    memset(out, 0, sizeof(fuse_kstatfs))
    out.bsize = out.frsize = 512
    out.blocks = device_size(server_of(r)) >> 9
    out.files = 1
    out.namelen = 255
    return sizeof(fuse_kstatfs)


cdef int op_lseek_device(Request *r) noexcept nogil:
    """There are no holes but the one past the end; lseek(2) of a device knows neither whence."""
    cdef fuse_lseek_in *arg = <fuse_lseek_in *> r.op_in
    cdef uint64_t size = device_size(server_of(r))
    if file_at(server_of(r), arg.fh, OF_FILE) == NULL:
        return -EBADF
    if arg.whence != SEEK_DATA and arg.whence != SEEK_HOLE:
        return -EINVAL
    if arg.offset >= size:
        return -ENXIO
    (<fuse_lseek_out *> r.out).offset = size if arg.whence == SEEK_HOLE else arg.offset
    return sizeof(fuse_lseek_out)


cdef inline uint64_t device_block(Server *s) noexcept nogil:
    """Bytes of a logical block, a power of 2."""
    cdef int size = 0
    return size if ioctl(s.root_fd, BLKSSZGET, &size) == 0 and size > 0 else 512


cdef int op_fallocate_device(Request *r) noexcept nogil:
    """A range, any range, is zeroed: a device itself takes whole blocks within it only."""
    cdef fuse_fallocate_in *arg = <fuse_fallocate_in *> r.op_in
    cdef uint64_t size = device_size(server_of(r))
    if grows(arg, size):
        return -ENOSPC
    if not arg.mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE):
        return -EOPNOTSUPP  # ENOSYS would end the asking
    if arg.offset >= size:
        return 0
    if arg.length > size - arg.offset:
        arg.length = size - arg.offset
    if (arg.offset | arg.length) & (device_block(server_of(r)) - 1):
        return later(r, blocking_zero)
    return op_fallocate(r)


cdef int blocking_zero(Request *r) noexcept nogil:
    """The blocks within the range by fallocate(2), what is left at both ends by writing zeros."""
    cdef Server *s = server_of(r)
    cdef fuse_fallocate_in *arg = <fuse_fallocate_in *> r.op_in
    cdef OpenFile *file
    cdef uint64_t mask = device_block(s) - 1
    cdef uint64_t end = arg.offset + arg.length
    cdef uint64_t first = (arg.offset + mask) & ~mask
    cdef uint64_t last = end & ~mask
    cdef int fd = fh_fd(r, arg.fh, OF_FILE, &file)
    cdef int res
    if fd < 0:
        return fd
    if first >= last:
        return write_zeroes(r, file, arg.offset, end)
    if fallocate(fd, arg.mode, first, last - first) < 0:
        return -errno
    res = write_zeroes(r, file, arg.offset, first)
    return res if res < 0 else write_zeroes(r, file, last, end)


cdef int write_zeroes(Request *r, OpenFile *file, uint64_t at, uint64_t end) noexcept nogil:
    cdef int fd = cache_fd(r.ctx, file)  # O_DIRECT would want whole blocks
    cdef ssize_t n
    if fd < 0:
        return fd
    while at < end:
        n = pwrite(fd, ZEROES, end - at if end - at < sizeof(ZEROES) else sizeof(ZEROES), at)
        if n < 0 and errno != EINTR:
            return -errno
        if n > 0:
            at += n
    return 0
