"""GETATTR, SETATTR, STATX, STATFS, ACCESS, READLINK."""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from passthru._abi cimport *
from passthru._idmap cimport id_to_mount, setattr_to_source
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._mode cimport chmod_fd, privileged, settled, told_mode
from passthru._openfile cimport file_at
from passthru._reply cimport attr_digest, attr_reply, keep_attributes
from passthru._request cimport *
from passthru._rights cimport access_as_caller, owner_take, rights_drop
from passthru._storage cimport BIG_CUT, cut, open_to_cut
from passthru._wait cimport later, later_settling, may_wait, patiently


cdef int stat_request(Request *r, uint64_t fh, bint has_fh, int flags, unsigned mask, statx *stx) noexcept nogil:
    """statx(2) of what the request names, by its open file if it names one."""
    cdef OpenFile *file
    cdef Inode *i
    cdef int fd, res
    if has_fh:
        file = <OpenFile *> slab_at(&server_of(r).files, fh)
        if file != NULL and file.kind != OF_FREE and file.fd >= 0:
            return -errno if c_statx(file.fd, "", AT_EMPTY_PATH | flags, mask, stx) < 0 else 0
    fd = request_pin(r, &i)
    if fd < 0:
        return fd
    res = -errno if c_statx(fd, "", AT_EMPTY_PATH | flags, mask, stx) < 0 else 0
    inode_unpin(i)
    return res


cdef int op_getattr(Request *r) noexcept nogil:
    cdef fuse_getattr_in *arg = <fuse_getattr_in *> r.op_in
    cdef Inode *i
    cdef statx stx
    cdef int res = stat_request(r, arg.fh, arg.getattr_flags & FUSE_GETATTR_FH, 0, stx_mask(), &stx)
    if res < 0:
        return res
    i = inode_at(&server_of(r).inodes, r.h.nodeid)
    if i != NULL and not settled(r, i, <uint32_t> r.h.nodeid, &stx):
        return later_settling(r, op_getattr, i.passthrough and i.opens, "")
    return attr_reply(r, &stx)


cdef int op_statx(Request *r) noexcept nogil:
    cdef fuse_statx_in *arg = <fuse_statx_in *> r.op_in
    cdef fuse_statx_out *out = <fuse_statx_out *> r.out
    cdef fuse_statx *s
    cdef Filesystem *f
    cdef Inode *i
    cdef statx stx
    cdef int res = stat_request(r, arg.fh, arg.getattr_flags & FUSE_GETATTR_FH,
                                arg.sx_flags & (AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC),
                                arg.sx_mask | stx_mask(), &stx)
    if res < 0:
        return res
    i = inode_at(&server_of(r).inodes, r.h.nodeid)
    if i == NULL:
        return -ESTALE
    if not settled(r, i, <uint32_t> r.h.nodeid, &stx):
        return later_settling(r, op_statx, i.passthrough and i.opens, "")
    f = &server_of(r).inodes.fs[i.fs]
    memset(out, 0, sizeof(fuse_statx_out))
    if not privileged(&stx):
        out.attr_valid = keep_attributes(r, i, &stx, &out.attr_valid_nsec)
    s = &out.stat
    s.mask = stx.stx_mask & (STATX_BASIC_STATS | STATX_BTIME)
    s.blksize = stx.stx_blksize
    s.attributes = stx.stx_attributes
    s.attributes_mask = stx.stx_attributes_mask
    s.nlink = stx.stx_nlink
    s.uid = stx.stx_uid
    s.gid = stx.stx_gid
    if server_of(r).config.mapped:
        s.uid = id_to_mount(&server_of(r).uids, s.uid)
        s.gid = id_to_mount(&server_of(r).gids, s.gid)
    s.mode = <uint16_t> told_mode(r, i, &stx)
    s.ino = stx.stx_ino ^ f.salt
    s.size = stx.stx_size
    s.blocks = stx.stx_blocks
    s.atime.tv_sec = stx.stx_atime.tv_sec
    s.atime.tv_nsec = stx.stx_atime.tv_nsec
    s.btime.tv_sec = stx.stx_btime.tv_sec
    s.btime.tv_nsec = stx.stx_btime.tv_nsec
    s.ctime.tv_sec = stx.stx_ctime.tv_sec
    s.ctime.tv_nsec = stx.stx_ctime.tv_nsec
    s.mtime.tv_sec = stx.stx_mtime.tv_sec
    s.mtime.tv_nsec = stx.stx_mtime.tv_nsec
    s.rdev_major = 0 if f.flags & FS_NODEV else stx.stx_rdev_major
    s.rdev_minor = 0 if f.flags & FS_NODEV else stx.stx_rdev_minor
    s.dev_major = stx.stx_dev_major
    s.dev_minor = stx.stx_dev_minor
    return sizeof(fuse_statx_out)


# ---------------------------------------------------------------- SETATTR

cdef int set_size(Request *r, OpenFile *file, int fd, fuse_setattr_in *arg) noexcept nogil:
    """truncate(2), by the open file if there is one for writing. -EWOULDBLOCK: not before somebody's lease ends."""
    cdef bint kill = (arg.valid & FATTR_KILL_SUIDGID) != 0
    cdef int own, res
    if file != NULL and file.fd >= 0 and file.open_flags & O_ACCMODE != O_RDONLY:
        return cut(r, file.node, file.fd, arg.size, kill)
    own = open_to_cut(r, fd)
    if own < 0:
        return own
    res = cut(r, <uint32_t> r.h.nodeid, own, arg.size, kill)
    close(own)
    return res


cdef int apply_owner(int fd, fuse_setattr_in *arg) noexcept nogil:
    cdef uint32_t valid = arg.valid
    cdef int res
    if valid & FATTR_MODE:
        res = chmod_fd(fd, arg.mode & 0o7777)
        if res < 0:
            return res
    if valid & (FATTR_UID | FATTR_GID):
        if fchownat(fd, "", arg.uid if valid & FATTR_UID else <uint32_t> -1,
                    arg.gid if valid & FATTR_GID else <uint32_t> -1, AT_EMPTY_PATH) < 0:
            return -errno
    return 0


cdef int apply(Request *r, OpenFile *file, int fd, fuse_setattr_in *arg) noexcept nogil:
    cdef timespec ts[2]
    cdef uint32_t valid = arg.valid
    cdef int res, taken
    # With nothing to set it may be a chown(2) to nobody new, or a write(2) that is about to come, which says itself what
    # has to go: so nothing is done.
    if valid & (FATTR_MODE | FATTR_UID | FATTR_GID):
        taken = owner_take(r, fd, valid & (FATTR_UID | FATTR_GID) != 0, arg.gid if valid & FATTR_GID else NO_ID)
        res = taken if taken < 0 else apply_owner(fd, arg)
        rights_drop(r, taken)
        if res < 0:
            return res
    if valid & FATTR_SIZE:
        res = set_size(r, file, fd, arg)
        if res < 0:
            return res
    if valid & (FATTR_ATIME | FATTR_MTIME):
        ts[0].tv_sec = ts[1].tv_sec = 0
        ts[0].tv_nsec = ts[1].tv_nsec = UTIME_OMIT
        if valid & FATTR_ATIME_NOW:
            ts[0].tv_nsec = UTIME_NOW
        elif valid & FATTR_ATIME:
            ts[0].tv_sec = <int64_t> arg.atime
            ts[0].tv_nsec = arg.atimensec
        if valid & FATTR_MTIME_NOW:
            ts[1].tv_nsec = UTIME_NOW
        elif valid & FATTR_MTIME:
            ts[1].tv_sec = <int64_t> arg.mtime
            ts[1].tv_nsec = arg.mtimensec
        # Who may write may set them to now, an owner to any time. With --writeback the kernel sets them for writers.
        taken = owner_take(r, fd, False, NO_ID) if not server_of(r).config.writeback and not valid & FATTR_SIZE and (
            (valid & FATTR_ATIME and not valid & FATTR_ATIME_NOW) or
            (valid & FATTR_MTIME and not valid & FATTR_MTIME_NOW)) else 0
        if taken < 0:
            return taken
        res = -errno if utimensat(fd, "", ts, AT_EMPTY_PATH) < 0 else 0
        rights_drop(r, taken)
        return res
    return 0


cdef int setattr_counted(Request *r) noexcept nogil:
    """op_setattr() on a pool's thread, and the end of the change that a queue's thread has counted."""
    cdef int res = op_setattr(r)
    change_end(&server_of(r).inodes, inode_at(&server_of(r).inodes, r.h.nodeid))
    return res


cdef int op_setattr(Request *r) noexcept nogil:
    cdef fuse_setattr_in *arg = <fuse_setattr_in *> r.op_in
    cdef fuse_setattr_in mapped
    cdef OpenFile *file = NULL
    cdef Inode *i
    cdef statx stx
    cdef int fd, res
    if server_of(r).config.mapped:
        mapped = arg[0]  # it is served again, if it goes to the pool
        arg = &mapped
        res = setattr_to_source(server_of(r), arg)
        if res < 0:
            return res
    if arg.valid & FATTR_FH:
        file = file_at(server_of(r), arg.fh, OF_FILE)
    fd = request_pin(r, &i)
    if fd < 0:
        return fd
    if arg.valid & FATTR_SIZE and not may_wait(r):
        if c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), &stx) == 0 and stx.stx_size > arg.size + BIG_CUT:
            inode_unpin(i)
            # Until that thread is done, not for as long as this one has it.
            if not change_begin(&server_of(r).inodes, i, False):
                return patiently(r, op_setattr)
            res = later(r, setattr_counted)
            if res != PENDING:
                change_end(&server_of(r).inodes, i)
            return res
    res = apply(r, file, fd, arg)
    if res == -EWOULDBLOCK:
        inode_unpin(i)
        return patiently(r, op_setattr)
    if res == 0 and c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), &stx) < 0:
        res = -errno
    if res == 0:
        i.told_attr = attr_digest(&stx)
    inode_unpin(i)
    return res if res < 0 else attr_reply(r, &stx)


# ------------------------------------------------ STATFS, ACCESS, READLINK

cdef int op_statfs(Request *r) noexcept nogil:
    cdef fuse_kstatfs *out = <fuse_kstatfs *> r.out
    cdef statfs sf
    cdef Inode *i
    cdef int fd = request_pin(r, &i)
    cdef int res
    if fd < 0:
        return fd
    res = -errno if fstatfs(fd, &sf) < 0 else 0
    inode_unpin(i)
    if res < 0:
        return res
    memset(out, 0, sizeof(fuse_kstatfs))
    out.blocks = sf.f_blocks
    out.bfree = sf.f_bfree
    out.bavail = sf.f_bavail
    out.files = sf.f_files
    out.ffree = sf.f_ffree
    out.bsize = <uint32_t> sf.f_bsize
    out.namelen = <uint32_t> sf.f_namelen
    out.frsize = <uint32_t> sf.f_frsize
    return sizeof(fuse_kstatfs)


cdef int op_access(Request *r) noexcept nogil:
    """access(2) by the source's rules. Not asked under default_permissions."""
    cdef fuse_access_in *arg = <fuse_access_in *> r.op_in
    cdef Inode *i
    cdef int fd = request_pin(r, &i)
    cdef int res
    if fd < 0:
        return fd
    res = access_as_caller(r, fd, arg.mask & 7, 0, NULL)
    inode_unpin(i)
    return res


cdef int op_readlink(Request *r) noexcept nogil:
    cdef Inode *i
    cdef int fd = request_pin(r, &i)
    cdef ssize_t n
    if fd < 0:
        return fd
    n = readlinkat(fd, "", r.out, r.out_cap if r.out_cap < PATH_MAX else PATH_MAX)
    n = -errno if n < 0 else n
    inode_unpin(i)
    return <int> n
