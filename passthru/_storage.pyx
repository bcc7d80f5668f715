"""FSYNC, FSYNCDIR, SYNCFS, FALLOCATE, LSEEK, COPY_FILE_RANGE, and truncation for those who ask for it.

None of the data comes here: the source does all of it. What has to wait for a device goes to the queue's own ring
where io_uring has it, and to the pool where not.
"""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from passthru._abi cimport *
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._identity cimport data_drop, data_take, data_take_by, keeps_bits
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._mode cimport kill_suidgid
from passthru._notify cimport notify_pages
from passthru._openfile cimport fh_fd, file_at, file_fd
from passthru._pool cimport pool_submit
from passthru._request cimport *
from passthru._wait cimport later, later_copying, may_wait, patiently, ring_identity, ring_sqe


cdef inline bint is_remote(Request *r) noexcept nogil:
    cdef InodeTable *t = &server_of(r).inodes
    return t.remote and t.fs[inode_at(t, r.file.node).fs].flags & FS_REMOTE


# ------------------------------------------------------------------ sync

cdef int plain_done(Request *r, int res) noexcept nogil:
    return res if res < 0 else 0


cdef int sync_request(Request *r, unsigned kind) noexcept nogil:
    cdef fuse_fsync_in *arg = <fuse_fsync_in *> r.op_in
    cdef io_uring_sqe *sqe
    r.fd = fh_fd(r, arg.fh, kind, &r.file)
    if r.fd < 0:
        return r.fd
    r.len = arg.fsync_flags & FUSE_FSYNC_FDATASYNC
    if r.file.passthrough and inode_at(&server_of(r).inodes, r.file.node).reading:
        return patiently(r, blocking_fsync)  # on btrfs it takes the inode's lock, see change_begin()
    if r.ctx.ring == NULL or is_remote(r):
        return later(r, blocking_fsync)
    sqe = ring_sqe(r, plain_done)
    sqe.opcode = IORING_OP_FSYNC
    sqe.op_flags = IORING_FSYNC_DATASYNC if r.len else 0
    return PENDING


cdef int blocking_fsync(Request *r) noexcept nogil:
    return -errno if (fdatasync(r.fd) if r.len else fsync(r.fd)) < 0 else 0


cdef int op_fsync(Request *r) noexcept nogil:
    return sync_request(r, OF_FILE)


cdef int op_fsyncdir(Request *r) noexcept nogil:
    return sync_request(r, OF_DIR)


cdef int op_syncfs(Request *r) noexcept nogil:
    return later(r, blocking_syncfs)


cdef int blocking_syncfs(Request *r) noexcept nogil:
    cdef InodeTable *t = &server_of(r).inodes
    cdef Inode *i = inode_at(t, r.h.nodeid)
    if i == NULL:
        return -ESTALE
    # syncfs(2) refuses O_PATH fds.
    cdef int fd = fs_fd(t, i.fs)
    cdef int res = -errno if syncfs(fd if fd >= 0 else server_of(r).root_fd) < 0 else 0
    if fd >= 0:
        fs_unpin(t, i.fs)
    return res


# ------------------------------------------------------ space and holes

cdef int op_fallocate(Request *r) noexcept nogil:
    cdef fuse_fallocate_in *arg = <fuse_fallocate_in *> r.op_in
    cdef io_uring_sqe *sqe
    cdef int who
    r.fd = fh_fd(r, arg.fh, OF_FILE, &r.file)
    if r.fd < 0:
        return r.fd
    r.as_data = 1 if r.ctx.data_how and not keeps_bits(r) else 0
    if r.file.passthrough:
        return patiently(r, blocking_fallocate)  # see change_begin()
    if r.ctx.ring == NULL or is_remote(r) or (r.as_data and r.file.flags & OF_KILLS):
        return later(r, blocking_fallocate)
    who = ring_identity(r)
    if who < 0:
        return later(r, blocking_fallocate)
    sqe = ring_sqe(r, plain_done)
    sqe.opcode = IORING_OP_FALLOCATE
    sqe.personality = <uint16_t> who
    sqe.off = arg.offset
    sqe.addr = arg.length
    sqe.len = arg.mode
    return PENDING


cdef int blocking_fallocate(Request *r) noexcept nogil:
    cdef fuse_fallocate_in *arg = <fuse_fallocate_in *> r.op_in
    cdef int res = 0
    if r.as_data:
        res = data_take(r.ctx)
    if res == 0:
        res = -errno if fallocate(r.fd, arg.mode, arg.offset, arg.length) < 0 else 0
    data_drop(r.ctx)
    if res == 0 and r.as_data and r.file.flags & OF_KILLS:
        kill_suidgid(r.fd)
    return res


cdef int op_lseek(Request *r) noexcept nogil:
    """SEEK_DATA and SEEK_HOLE; the source fd's own position means nothing to anybody."""
    cdef fuse_lseek_in *arg = <fuse_lseek_in *> r.op_in
    r.fd = fh_fd(r, arg.fh, OF_FILE, &r.file)
    if r.fd < 0:
        return r.fd
    # What the kernel has collected is no hole. Not on a thread of the pool, which may have these writes to do.
    if server_of(r).config.writeback and not may_wait(r):
        return pool_submit(server_of(r).waiters, r, blocking_lseek)
    if server_of(r).inodes.fs[inode_at(&server_of(r).inodes, r.file.node).fs].flags & FS_REMOTE:
        return later(r, blocking_lseek)
    return blocking_lseek(r)


cdef int blocking_lseek(Request *r) noexcept nogil:
    cdef fuse_lseek_in *arg = <fuse_lseek_in *> r.op_in
    cdef int64_t at
    if server_of(r).config.writeback:
        notify_pages(server_of(r), r.file.node, <int64_t> page_down(arg.offset), 0)
    at = lseek(r.fd, <int64_t> arg.offset, arg.whence)
    if at < 0:
        return -errno
    (<fuse_lseek_out *> r.out).offset = at
    return sizeof(fuse_lseek_out)


# ---------------------------------------------------------------- copies

cdef int op_copy_file_range(Request *r) noexcept nogil:
    cdef fuse_copy_file_range_in *arg = <fuse_copy_file_range_in *> r.op_in
    cdef OpenFile *source = file_at(server_of(r), arg.fh_in, OF_FILE)
    cdef InodeTable *t = &server_of(r).inodes
    cdef int res
    if source != NULL and source.passthrough and t.fs[inode_at(t, source.node).fs].flags & FS_LOCKS_BOTH:
        r.patient = 1  # its readers may have the lock, see change_begin()
        res = patiently(r, blocking_copy)
    else:
        res = later_copying(r, blocking_copy, arg.nodeid_out)
    return res if res != -EBUSY else -EOPNOTSUPP  # the kernel copies by READ and WRITE then


cdef int blocking_copy(Request *r) noexcept nogil:
    cdef fuse_copy_file_range_in *arg = <fuse_copy_file_range_in *> r.op_in
    cdef OpenFile *source = file_at(server_of(r), arg.fh_in, OF_FILE)
    cdef OpenFile *target = file_at(server_of(r), arg.fh_out, OF_FILE)
    cdef InodeTable *t = &server_of(r).inodes
    cdef int64_t at = <int64_t> arg.off_in
    cdef int64_t to = <int64_t> arg.off_out
    cdef size_t length = arg.len
    cdef ssize_t n
    cdef int fd, fd2, res
    if source == NULL or target == NULL:
        return -EBADF
    if length > 0x40000000:  # in parts that a signal to the caller need not wait for too long
        length = 0x40000000
    fd = file_fd(server_of(r), source)
    fd2 = file_fd(server_of(r), target) if fd >= 0 else fd
    if fd2 < 0:
        return fd2
    r.as_data = 1 if r.ctx.data_how and not keeps_bits(r) else 0
    if not r.patient and not change_begin(t, inode_at(t, target.node), False):
        return -EOPNOTSUPP  # the lane is not for waiting; the kernel copies by READ and WRITE then
    res = data_take(r.ctx) if r.as_data else 0
    n = 0
    if res == 0:
        n = copy_file_range(fd, &at, fd2, &to, length, arg.flags)
        res = -errno if n < 0 else 0
    if not r.patient:
        change_end(t, inode_at(t, target.node))
    data_drop(r.ctx)
    if res < 0:
        return res
    if n and r.as_data and target.flags & OF_KILLS:
        kill_suidgid(fd2)
    if r.h.opcode == FUSE_COPY_FILE_RANGE_64:
        (<fuse_copy_file_range_out *> r.out).bytes_copied = n
    else:
        (<fuse_write_out *> r.out).size = <uint32_t> n
        (<fuse_write_out *> r.out).padding = 0
    return 8


# ------------------------------------------------------------ truncation

cdef int open_to_cut(Request *r, int opath) noexcept nogil:
    """An fd for ftruncate(2), or -errno; -EWOULDBLOCK: somebody has a lease, which only a pool's thread waits for."""
    cdef char path[FD_PATH]
    cdef int flags = O_WRONLY | O_CLOEXEC | (0 if may_wait(r) else O_NONBLOCK)
    cdef int fd
    if may_wait(r) and r.interrupted:
        return -EINTR
    fd_path(path, opath)
    fd = open(path, flags)
    if fd < 0 and fds_short(&server_of(r).inodes, errno):
        fd = open(path, flags)
    return fd if fd >= 0 else -errno


cdef int cut(Request *r, uint32_t node, int fd, uint64_t size, bint kill) noexcept nogil:
    """ftruncate(2) of a file of inode `node`. kill: the caller may keep neither suid nor sgid."""
    cdef Server *s = server_of(r)
    cdef int res = 0
    if kill:
        # A remote source may ask who it is, so there it is but without the right to keep them.
        res = data_take_by(r.ctx, r.ctx.data_how and (
            DATA_CAPS if s.inodes.fs[inode_at(&s.inodes, node).fs].flags & FS_REMOTE else r.ctx.data_how))
    if res == 0:
        res = -errno if ftruncate(fd, size) < 0 else 0
    if r.ctx.as_data == DATA_CAPS and res == 0:
        kill_suidgid(fd)
    data_drop(r.ctx)
    return res
