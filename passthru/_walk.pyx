"""From a name to its inode.

A name is one path component, never "." or "..", walked from its parent's fd and not
followed if it is a symlink: nothing leads out of the source.
"""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport strcmp

from passthru._abi cimport *
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._mounts cimport mount_facts
from passthru._request cimport *


cdef bint is_mountpoint(Server *s, Inode *parent, const char *name) noexcept nogil:
    return s.below_fd >= 0 and parent.ino == s.below_ino and strcmp(name, s.below_name) == 0 and \
        makedev(s.inodes.fs[parent.fs].dev_major, s.inodes.fs[parent.fs].dev_minor) == s.below_dev


cdef int64_t child_lookup(Request *r, Inode *parent, int parent_fd, const char *name, bint fresh,
                          statx *stx) noexcept nogil:
    """The nodeid of parent/name with its nlookup raised and its attributes in stx, or -errno.

    -EXDEV: another filesystem is mounted there, which is for cross(). fresh: the name was just made, so it is
    not worth asking whether it is known. Nor is it in a directory where the last name was not: walking a new
    tree, a name costs two calls, not three.
    """
    cdef Server *s = server_of(r)
    cdef int fd
    cdef int64_t node
    if is_mountpoint(s, parent, name):
        # Walking the name would ask ourselves, and wait for the answer. "." stays below the mount.
        fd = openat(s.below_fd, ".", O_PATH | O_CLOEXEC)
        return opened_inode(r, fd, stx) if fd >= 0 else -errno
    if not fresh and parent.familiar and not s.inodes.mounts:
        if look_at(r, parent, parent_fd, name, stx) < 0:
            return -errno
        if on_fs(&s.inodes.fs[parent.fs], stx):
            node = inode_find(&s.inodes, parent.fs, stx, NULL)
            if node and node != UNSURE:
                r.ctx.stats.lookups += 1
                return node
            if not node:
                parent.familiar = 0
    # UNSURE: its handle tells, which must be that of what the attributes are of: so both by one fd.
    fd = sys_openat_here(parent_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    if fd < 0 and fds_short(&s.inodes, -fd):
        fd = sys_openat_here(parent_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    if fd < 0:
        return fd
    if c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), stx) < 0:
        node = -errno
        close(fd)
        return node
    if not on_fs(&s.inodes.fs[parent.fs], stx):
        node = other_inode(r, fd, stx)
        if node > 0 and stx.stx_mode & S_IFMT == S_IFDIR:
            fs_placed(&s.inodes, inode_at(&s.inodes, node).fs, <uint32_t> r.h.nodeid, name)
        return node
    node = inode_add(&s.inodes, r.ctx.id, parent.fs, stx, fd, NULL)
    if not node:
        return -ENOMEM
    r.ctx.stats.lookups += 1
    if inode_at(&s.inodes, node).nlookup > 1:
        parent.familiar = 1
    return node


cdef int64_t known_as(Request *r, unsigned fs, int fd, statx *stx) noexcept nogil:
    """The nodeid of what an O_PATH fd is, in a row of which the caller was a user; both are taken over. Or -ENOMEM."""
    cdef InodeTable *t = &server_of(r).inodes
    cdef uint32_t node = inode_add(t, r.ctx.id, fs, stx, fd, NULL)
    fs_put(t, fs)
    if not node:
        return -ENOMEM
    r.ctx.stats.lookups += 1
    return node


cdef int64_t other_inode(Request *r, int fd, statx *stx) noexcept nogil:
    """The nodeid of what an O_PATH fd is, which it takes over, by the row of its filesystem; else as child_lookup().

    Within a mount these are parts with a device number of their own, such as btrfs's subvolumes.
    """
    cdef InodeTable *t = &server_of(r).inodes
    cdef statx number
    cdef int fs = fs_get(t, stx)
    if fs < 0 and c_statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &number) == 0:
        fs = fs_add(t, stx, fd, number.stx_mnt_id, mount_facts(t.mountinfo, fd, number.stx_mnt_id, stx))
    if fs < 0:
        close(fd)
        return fs
    return known_as(r, <unsigned> fs, fd, stx)


cdef int64_t opened_inode(Request *r, int fd, statx *stx) noexcept nogil:
    """The nodeid of the inode of an O_PATH fd, which it takes over; else as child_lookup()."""
    cdef int e
    if c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), stx) < 0:
        e = errno
        close(fd)
        return -e
    return other_inode(r, fd, stx)


# --------------------------------------------------- into another filesystem
#
# On a thread that may wait. What is mounted there is learnt from the mount table, and what is not to be served is
# not asked for anything: our own mount, and with root's rights the kernel's state and what a user makes up.

cdef int64_t cross(Request *r, Inode *parent, int parent_fd, const char *name, statx *stx) noexcept nogil:
    """child_lookup() of a name on which something is mounted."""
    cdef Server *s = server_of(r)
    cdef InodeTable *t = &s.inodes
    cdef statx number
    cdef uint32_t flags = 0
    cdef int64_t node
    cdef int fs
    cdef int fd = openat(parent_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    if fd < 0:
        return -errno
    if c_statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, stx_mask(), stx) < 0 or \
            c_statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &number) < 0:
        node = -errno
        close(fd)
        return node
    fs = fs_get(t, stx)
    if fs < 0:
        if makedev(stx.stx_dev_major, stx.stx_dev_minor) != s.fuse_dev:
            flags = mount_facts(t.mountinfo, fd, number.stx_mnt_id, stx)
        if not served(s, flags, stx):
            close(fd)
            return covered(r, parent, parent_fd, name, number.stx_mnt_id, stx)
    # From here on it may wait for the filesystem.
    if c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), stx) < 0:
        node = -errno
        close(fd)
        if fs >= 0:
            fs_put(t, fs)
        return node
    if fs < 0:
        fs = fs_add(t, stx, fd, number.stx_mnt_id, flags)
        if fs < 0:
            close(fd)
            return fs
        if stx.stx_mode & S_IFMT == S_IFDIR:
            fs_placed(t, fs, <uint32_t> r.h.nodeid, name)
    return known_as(r, <unsigned> fs, fd, stx)


cdef bint served(Server *s, uint32_t flags, statx *stx) noexcept nogil:
    """Is a filesystem below the source shown?"""
    if makedev(stx.stx_dev_major, stx.stx_dev_minor) == s.fuse_dev:
        return False
    if flags & FS_SERVER and not s.config.trust_modes:
        return not s.config.identity
    return not s.config.identity or s.config.all_submounts or not flags & (FS_PSEUDO | FS_FOREIGN)


cdef int64_t covered(Request *r, Inode *parent, int parent_fd, const char *name, uint64_t mount_id,
                     statx *stx) noexcept nogil:
    """child_lookup() of what lies under a mount: by a private copy of the directory's own mount, without any below."""
    cdef InodeTable *t = &server_of(r).inodes
    cdef statx number
    cdef int64_t node = -EACCES
    cdef int fs = fs_covered(t, mount_id, parent.fs, parent.ino)
    cdef int clone = -1, fd
    if fs >= 0:
        fd = openat(t.fs[fs].mount_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    else:
        clone = sys_clone_bare(parent_fd)
        if clone < 0:
            return -EACCES  # it takes root
        fd = openat(clone, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    if fd >= 0 and c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), stx) == 0 and \
            c_statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &number) == 0:
        if fs < 0:
            fs = fs_add(t, stx, clone, number.stx_mnt_id, t.fs[parent.fs].flags & ~<uint32_t> FS_HANDLES)
            if fs >= 0:
                if t.fs[fs].mount_fd < 0:
                    t.fs[fs].mount_fd = openat(clone, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
                t.fs[fs].covers_fs = parent.fs
                t.fs[fs].covers_in = parent.ino
                t.fs[fs].covers = mount_id
        if fs >= 0:
            node = inode_add(t, r.ctx.id, fs, stx, fd, NULL)
            fd = -1
            r.ctx.stats.lookups += node != 0
            node = node if node else -ENOMEM
    elif fd < 0:
        node = -errno
    if fd >= 0:
        close(fd)
    if clone >= 0:
        close(clone)
    if fs >= 0:
        fs_put(t, fs)
    return node
