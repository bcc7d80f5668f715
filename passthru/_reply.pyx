"""Attributes and entries as the kernel takes them: of a statx(2) result of a known inode, with the time that it counts."""
from libc.stdint cimport uint32_t, uint64_t

from passthru._abi cimport *
from passthru._changes cimport changes_given, changes_moving, changes_since
from passthru._idmap cimport id_to_mount
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._mode cimport privileged, told_mode
from passthru._request cimport *


cdef enum:
    YOUNG_S = 5            # a file that was changed since may be so again, by mmap
    KEPT_BELOW_S = 60      # names in filesystems below the source


cdef uint32_t attr_digest(statx *stx) noexcept nogil:
    """Of what changes with a file's data and with its attributes; never 0."""
    cdef uint64_t v = <uint64_t> stx.stx_mtime.tv_sec * 1000000000u + stx.stx_mtime.tv_nsec
    v ^= (<uint64_t> stx.stx_ctime.tv_sec * 1000000000u + stx.stx_ctime.tv_nsec) * 0x9e3779b97f4a7c15u
    v ^= (stx.stx_size * 0xc2b2ae3d27d4eb4fu) ^ (stx.stx_blocks * 0x165667b19e3779f9u)
    v *= 0x9e3779b97f4a7c15u
    return <uint32_t> (v >> 32) | 1


cdef void attr_fill(Request *r, Inode *i, fuse_attr *a, statx *stx) noexcept nogil:
    """A fuse_attr of a statx(2) result of a known inode."""
    cdef Filesystem *f = &server_of(r).inodes.fs[i.fs]
    a.ino = stx.stx_ino ^ f.salt
    a.size = stx.stx_size
    a.blocks = stx.stx_blocks
    a.atime = stx.stx_atime.tv_sec
    a.mtime = stx.stx_mtime.tv_sec
    a.ctime = stx.stx_ctime.tv_sec
    a.atimensec = stx.stx_atime.tv_nsec
    a.mtimensec = stx.stx_mtime.tv_nsec
    a.ctimensec = stx.stx_ctime.tv_nsec
    a.mode = told_mode(r, i, stx)
    i.appends = (stx.stx_attributes & STATX_ATTR_APPEND) != 0
    a.nlink = stx.stx_nlink
    a.uid = stx.stx_uid
    a.gid = stx.stx_gid
    if server_of(r).config.mapped:
        a.uid = id_to_mount(&server_of(r).uids, a.uid)
        a.gid = id_to_mount(&server_of(r).gids, a.gid)
    # The kernel's 32-bit form of a device number, not glibc's.
    a.rdev = (stx.stx_rdev_minor & 0xff) | (stx.stx_rdev_major << 8) | ((stx.stx_rdev_minor & ~0xffu) << 12)
    if f.flags & FS_NODEV:
        a.rdev = 0  # no device has this number
    a.blksize = stx.stx_blksize
    a.flags = 0


cdef bint changes_told(Request *r) noexcept nogil:
    """Are changes told of the directory that the request names?"""
    cdef Server *s = server_of(r)
    cdef Inode *dir = inode_at(&s.inodes, r.h.nodeid)
    return s.changes != NULL and dir != NULL and s.inodes.fs[dir.fs].flags & FS_COHERENT != 0


cdef uint64_t keep_name(Request *r, Inode *i, uint32_t *nsec) noexcept nogil:
    """How long the kernel may keep what a name in the request's directory is (NULL: nothing), in seconds and nsec.

    Of a name that it knows it asks again without the directory's lock, for which notifications of names wait: so these may
    pass such a reply by. All other replies that name something are taken under the lock.
    """
    cdef Server *s = server_of(r)
    cdef Config *c = &s.config
    cdef uint64_t kept = c.kept_entry if i != NULL else c.kept_negative
    cdef Inode *dir
    if not kept or not changes_told(r) or (i != NULL and i.fs != inode_at(&s.inodes, r.h.nodeid).fs):  # nor of mounts
        nsec[0] = c.entry_valid_nsec if i != NULL else c.negative_valid_nsec
        return c.entry_valid if i != NULL else c.negative_valid
    nsec[0] = 0
    dir = inode_at(&s.inodes, r.h.nodeid)
    if dir.fs and kept > KEPT_BELOW_S:
        kept = KEPT_BELOW_S  # of what is mounted there we may not hear
    if i != NULL and r.h.opcode == FUSE_LOOKUP and i.nlookup > 1:
        if i.type == S_IFDIR >> 12:
            changes_moving(s.changes)
        changes_given(s.changes, r.name)
        if changes_since(s.changes, r.name, r.began):
            return 0
    return kept


cdef uint64_t keep_attributes(Request *r, Inode *i, statx *stx, uint32_t *nsec) noexcept nogil:
    """How long the kernel may keep attributes that are told of an inode, in seconds and nsec."""
    cdef Server *s = server_of(r)
    cdef Config *c = &s.config
    cdef uint64_t kept = c.kept_attr
    cdef timespec now
    nsec[0] = c.attr_valid_nsec
    if s.changes == NULL or not kept or not s.inodes.fs[i.fs].flags & FS_COHERENT:
        return c.attr_valid
    if i.type == S_IFREG >> 12:
        # Stores by mmap are told by nobody: they show in the time of change, now and then.
        kept = c.kept_file
        clock_gettime(CLOCK_REALTIME_COARSE, &now)
        if c.writeback or (i.opens and i.passthrough) or now.tv_sec - stx.stx_mtime.tv_sec < YOUNG_S or not kept:
            return c.attr_valid
    nsec[0] = 0
    # The kernel itself puts attributes that it asks for in order with notifications, if it knows the inode.
    if r.h.opcode not in (FUSE_GETATTR, FUSE_STATX) and (
            i.nlookup < 2 or r.h.opcode not in (FUSE_LOOKUP, FUSE_READDIRPLUS)):
        changes_given(s.changes, i.ino)
    return 0 if changes_since(s.changes, i.ino, r.began) else kept


cdef int attr_reply(Request *r, statx *stx) noexcept nogil:
    """A fuse_attr_out of the request's inode; its size, or -ESTALE."""
    cdef fuse_attr_out *out = <fuse_attr_out *> r.out
    cdef Inode *i = inode_at(&server_of(r).inodes, r.h.nodeid)
    if i == NULL:
        return -ESTALE
    out.attr_valid = out.attr_valid_nsec = 0
    if not privileged(stx):
        out.attr_valid = keep_attributes(r, i, stx, &out.attr_valid_nsec)
    out.dummy = 0
    attr_fill(r, i, &out.attr, stx)
    return sizeof(fuse_attr_out)


cdef int entry_reply(Request *r, char *to, uint32_t node, statx *stx) noexcept nogil:
    """A fuse_entry_out; its size."""
    cdef fuse_entry_out *out = <fuse_entry_out *> to
    cdef Inode *i = inode_at(&server_of(r).inodes, node)
    out.nodeid = node
    out.generation = i.generation
    out.entry_valid = keep_name(r, i, &out.entry_valid_nsec)
    # Of an inode that it knows by another name the kernel keeps the ACL that it has with the attributes that it gets here:
    # so it is to ask for both.
    if privileged(stx) or (stx.stx_nlink > 1 and i.nlookup > 1 and i.type == S_IFREG >> 12):
        out.attr_valid = out.attr_valid_nsec = 0
    else:
        out.attr_valid = keep_attributes(r, i, stx, &out.attr_valid_nsec)
    attr_fill(r, i, &out.attr, stx)
    return sizeof(fuse_entry_out)
