"""LOOKUP, FORGET, and the operations that make, remove, rename and link names.

A name is one path component, never "." or "..", walked from its parent's fd and not
followed if it is a symlink: nothing leads out of the source.
"""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memchr, memset, strcmp

from passthru._abi cimport *
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._identity cimport identity_override, identity_restore, identity_take, umask_take, unowner_take
from passthru._idmap cimport id_to_mount
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._mode cimport privileged, settled, told_mode
from passthru._mounts cimport mount_facts
from passthru._request cimport *
from passthru._storage cimport BIG_CUT
from passthru._wait cimport later, later_crossing, may_wait


cdef enum:
    RENAME_EXCHANGE = 2
    RENAME_WHITEOUT = 4

cdef enum:  # S_IFMT >> 12
    FORMAT_DIR = 4
    FORMAT_FILE = 8
    FORMAT_LINK = 10


cdef bint dot_or_dotdot(const char *name) noexcept nogil:
    return name[0] == c'.' and (name[1] == 0 or (name[1] == c'.' and name[2] == 0))


cdef const char *name_arg(Request *r, uint32_t *at) noexcept nogil:
    """The NUL-terminated string at `at` in the arguments, `at` moved behind it; NULL: none there."""
    cdef char *s = r.arg + at[0]
    cdef char *end
    if at[0] >= r.arg_len:
        return NULL
    end = <char *> memchr(s, 0, r.arg_len - at[0])
    if end == NULL:
        return NULL
    at[0] = <uint32_t> (end + 1 - r.arg)
    return s


cdef const char *entry_arg(Request *r, uint32_t *at) noexcept nogil:
    """name_arg() for a directory entry's name; NULL also for what is not one component."""
    cdef uint32_t start = at[0]
    cdef const char *name = name_arg(r, at)
    if name == NULL or name[0] == 0 or dot_or_dotdot(name) or \
            memchr(name, c'/', at[0] - start) != NULL:
        return NULL
    return name


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


cdef bint is_mountpoint(Server *s, Inode *parent, const char *name) noexcept nogil:
    return s.below_fd >= 0 and parent.ino == s.below_ino and strcmp(name, s.below_name) == 0 and \
        makedev(s.inodes.fs[parent.fs].dev_major, s.inodes.fs[parent.fs].dev_minor) == s.below_dev


cdef inline int look_at(Request *r, Inode *parent, int parent_fd, const char *name, statx *stx) noexcept nogil:
    """statx(2) of a name without an fd, where nothing is mounted below the source as far as is known.

    If something has just been: AT_STATX_DONT_SYNC has a FUSE filesystem not be asked, whoever it is.
    """
    cdef int sync = AT_STATX_DONT_SYNC
    if may_wait(r) or server_of(r).inodes.fs[parent.fs].flags & FS_STACKED:
        sync = 0
    return c_statx(parent_fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | sync, stx_mask(), stx)


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
    if inode_at(&s.inodes, node).fd != fd:
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


cdef int entry_reply(Request *r, char *to, uint32_t node, statx *stx) noexcept nogil:
    """A fuse_entry_out; its size."""
    cdef Config *c = &server_of(r).config
    cdef fuse_entry_out *out = <fuse_entry_out *> to
    cdef Inode *i = inode_at(&server_of(r).inodes, node)
    out.nodeid = node
    out.generation = i.generation
    out.entry_valid = c.entry_valid
    out.entry_valid_nsec = c.entry_valid_nsec
    # Of an inode that it knows by another name the kernel keeps the ACL that it has with the attributes that it gets here:
    # so it is to ask for both.
    if privileged(stx) or (stx.stx_nlink > 1 and i.nlookup > 1 and i.type == FORMAT_FILE):
        out.attr_valid = out.attr_valid_nsec = 0
    else:
        out.attr_valid = c.attr_valid
        out.attr_valid_nsec = c.attr_valid_nsec
    attr_fill(r, i, &out.attr, stx)
    return sizeof(fuse_entry_out)


cdef int op_lookup(Request *r) noexcept nogil:
    cdef uint32_t at = 0
    cdef const char *name = entry_arg(r, &at)
    cdef Config *c = &server_of(r).config
    cdef Inode *parent
    cdef statx stx
    cdef int64_t node
    cdef fuse_entry_out *out
    cdef int fd
    if name == NULL:
        return -EINVAL
    fd = request_pin(r, &parent)
    if fd < 0:
        return fd
    node = child_lookup(r, parent, fd, name, False, &stx)
    if node == -EXDEV and may_wait(r):
        node = cross(r, parent, fd, name, &stx)
    inode_unpin(parent)
    if node > 0:
        if not settled(r, inode_at(&server_of(r).inodes, node), <uint32_t> node, &stx):
            inode_forget(&server_of(r).inodes, node, 1)
            r.ctx.stats.forgets += 1
            return later(r, op_lookup)
        return entry_reply(r, r.out, <uint32_t> node, &stx)
    if node == -EXDEV:
        return later_crossing(r, op_lookup, name)
    if node in (-EMFILE, -ENFILE, -ESTALE, -EINTR, -EAGAIN):
        # After any other error the kernel takes the name for gone, and what is mounted on it away. ESTALE has it
        # look again.
        return -ESTALE if node == -ESTALE else -ENOMEM
    if node == -ENOENT and (c.negative_valid or c.negative_valid_nsec):
        out = <fuse_entry_out *> r.out
        memset(out, 0, sizeof(fuse_entry_out))
        out.entry_valid = c.negative_valid
        out.entry_valid_nsec = c.negative_valid_nsec
        return sizeof(fuse_entry_out)
    return <int> node


cdef int op_forget(Request *r) noexcept nogil:
    cdef fuse_forget_in *arg = <fuse_forget_in *> r.op_in
    inode_forget(&server_of(r).inodes, r.h.nodeid, arg.nlookup)
    r.ctx.stats.forgets += arg.nlookup
    return NOREPLY


cdef int op_batch_forget(Request *r) noexcept nogil:
    cdef fuse_batch_forget_in *arg = <fuse_batch_forget_in *> r.op_in
    cdef fuse_forget_one *one = <fuse_forget_one *> r.arg
    cdef uint32_t k
    for k in range(arg.count):
        if (k + 1) * sizeof(fuse_forget_one) > r.arg_len:
            break
        inode_forget(&server_of(r).inodes, one[k].nodeid, one[k].nlookup)
        r.ctx.stats.forgets += one[k].nlookup
    return NOREPLY


# ------------------------------------------------------------ making names

cdef int made(Request *r, Inode *parent, int fd, const char *name, int res, unsigned format) noexcept nogil:
    """The entry reply for a name just made, or the error `res` of making it. Unpins the parent.

    format: S_IFMT >> 12 of what was made. If somebody has put something else in its place the
    kernel would answer EIO, and forget to forget it; ESTALE has it look again.
    """
    cdef statx stx
    cdef int64_t node
    if res < 0:
        inode_unpin(parent)
        return res
    node = child_lookup(r, parent, fd, name, True, &stx)
    inode_unpin(parent)
    if node < 0:
        return <int> node if node != -EXDEV else -ESTALE
    if stx.stx_mode >> 12 != (format or FORMAT_FILE):
        inode_forget(&server_of(r).inodes, node, 1)
        r.ctx.stats.forgets += 1
        return -ESTALE
    return entry_reply(r, r.out, <uint32_t> node, &stx)


cdef int make(Request *r, uint32_t mask) noexcept nogil:
    """MKNOD, MKDIR and SYMLINK: as the caller, under the caller's umask."""
    cdef uint32_t at = 0
    cdef const char *name = entry_arg(r, &at)
    cdef const char *target = NULL
    cdef Inode *parent
    cdef int fd, res
    if r.h.opcode == FUSE_SYMLINK:
        target = name_arg(r, &at)
    if name == NULL or (r.h.opcode == FUSE_SYMLINK and target == NULL):
        return -EINVAL
    fd = request_pin(r, &parent)
    if fd < 0:
        return fd
    res = identity_take(r)
    if res < 0:
        inode_unpin(parent)
        return res
    umask_take(r.ctx, mask)
    res = make_name(r, fd, name, target)
    if res < 0 and identity_override(r, -res):
        res = make_name(r, fd, name, target)
    identity_restore(r)
    return made(r, parent, fd, name, res, FORMAT_DIR if r.h.opcode == FUSE_MKDIR else
                FORMAT_LINK if r.h.opcode == FUSE_SYMLINK else (<fuse_mknod_in *> r.op_in).mode >> 12)


cdef int make_name(Request *r, int fd, const char *name, const char *target) noexcept nogil:
    cdef fuse_mknod_in *node = <fuse_mknod_in *> r.op_in
    cdef int res
    if r.h.opcode == FUSE_MKDIR:
        res = mkdirat(fd, name, (<fuse_mkdir_in *> r.op_in).mode)
    elif r.h.opcode == FUSE_SYMLINK:
        res = symlinkat(target, fd, name)
    else:
        res = mknodat(fd, name, node.mode, makedev((node.rdev & 0xfff00) >> 8,
                                                   (node.rdev & 0xff) | ((node.rdev >> 12) & 0xfff00)))
    return -errno if res < 0 else 0


cdef int op_mknod(Request *r) noexcept nogil:
    return make(r, (<fuse_mknod_in *> r.op_in).umask & 0o777)


cdef int op_mkdir(Request *r) noexcept nogil:
    return make(r, (<fuse_mkdir_in *> r.op_in).umask & 0o777)


cdef int op_symlink(Request *r) noexcept nogil:
    return make(r, 0)


cdef int op_link(Request *r) noexcept nogil:
    cdef InodeTable *t = &server_of(r).inodes
    cdef uint64_t old = (<fuse_link_in *> r.op_in).oldnodeid
    cdef uint32_t at = 0
    cdef const char *name = entry_arg(r, &at)
    cdef Inode *parent
    cdef Inode *i = inode_at(t, old)
    cdef statx stx
    cdef char path[FD_PATH]
    cdef uint32_t node
    cdef int fd, source, res
    if name == NULL:
        return -EINVAL
    if i == NULL:
        return -ESTALE
    fd = request_pin(r, &parent)
    if fd < 0:
        return fd
    if i.fs != parent.fs:
        inode_unpin(parent)
        return -EXDEV
    source = inode_fd(t, i, <uint32_t> old)
    if source < 0:
        inode_unpin(parent)
        return source
    res = linkat(source, "", fd, name, AT_EMPTY_PATH)
    if res < 0 and errno == ENOENT:  # no CAP_DAC_READ_SEARCH (before 6.10)
        fd_path(path, source)
        res = linkat(AT_FDCWD, path, fd, name, AT_SYMLINK_FOLLOW)
    if res == 0:
        res = c_statx(source, "", AT_EMPTY_PATH, stx_mask(), &stx)
    res = -errno if res < 0 else 0
    node = 0
    if res == 0:
        node = inode_find(t, i.fs, &stx, NULL)
    inode_unpin(i)
    if res == 0 and (node == 0 or node == UNSURE):  # its fd is just being closed
        return made(r, parent, fd, name, 0, i.type)
    inode_unpin(parent)
    if res < 0:
        return res
    r.ctx.stats.lookups += 1
    return entry_reply(r, r.out, node, &stx)


# --------------------------------------------------- removing and renaming

cdef bint takes_long(Request *r, Inode *parent, int fd, const char *name) noexcept nogil:
    """Is `name` the last name of a file so big that removing it is nothing for a thread that serves a queue?"""
    cdef statx stx
    cdef int at, res
    if may_wait(r):
        return False
    if server_of(r).inodes.mounts:  # looking at the name itself might lead elsewhere
        at = sys_openat_here(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
        if at < 0:
            return False
        res = c_statx(at, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx)
        close(at)
    else:
        res = look_at(r, parent, fd, name, &stx)
    return res == 0 and stx.stx_nlink == 1 and stx.stx_blocks > BIG_CUT >> 9


cdef bint sticky(int fd) noexcept nogil:
    cdef statx stx
    return c_statx(fd, "", AT_EMPTY_PATH, STATX_MODE, &stx) == 0 and stx.stx_mode & S_ISVTX


cdef int stick_to_caller(Request *r, int fd, int fd2, bint making) noexcept nogil:
    """Where a directory is sticky it counts who owns what is there now: have the source itself look, for the caller.

    The kernel has looked at what it knew of the names. The caller's right to write there is not asked for again,
    since it may rest on groups that are not told. making: something is made besides, which is to be the caller's.
    1: till identity_restore(); 0: not needed; -errno.
    """
    cdef int res
    if not server_of(r).config.identity or r.h.uid == NO_ID:
        return 0
    if not making and not sticky(fd) and (fd2 == fd or not sticky(fd2)):
        return 0
    if r.h.uid == 0:
        return unowner_take(r)
    res = identity_take(r)
    if res < 0:
        return res
    sys_cap_override()
    return 1


cdef int remove(Request *r, int flags) noexcept nogil:
    cdef uint32_t at = 0
    cdef const char *name = entry_arg(r, &at)
    cdef Inode *parent
    cdef int fd, res, stuck
    if name == NULL:
        return -EINVAL
    fd = request_pin(r, &parent)
    if fd < 0:
        return fd
    if not flags and takes_long(r, parent, fd, name):
        inode_unpin(parent)
        return later(r, op_unlink)
    stuck = stick_to_caller(r, fd, fd, False)
    res = stuck
    if stuck >= 0:
        res = -errno if unlinkat(fd, name, flags) < 0 else 0
    if stuck > 0:
        identity_restore(r)
    inode_unpin(parent)
    return res


cdef int op_unlink(Request *r) noexcept nogil:
    return remove(r, 0)


cdef int op_rmdir(Request *r) noexcept nogil:
    return remove(r, AT_REMOVEDIR)


cdef int movable(Request *r, int fd, const char *name) noexcept nogil:
    """May the caller move what is `name` now to another directory? A directory must be writable for that. 0 or -errno.

    The kernel has looked, at the directory that it knows by the name. Groups: as far as the file's own goes.
    """
    cdef statx stx
    cdef gid_t group
    cdef int at, res, member
    if not server_of(r).config.identity or r.h.uid == 0 or r.h.uid == NO_ID or server_of(r).config.mapped:
        return 0
    at = sys_openat_here(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    if at < 0:
        return at
    res = -errno if c_statx(at, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0 else 0
    if res == 0 and stx.stx_mode & S_IFMT == S_IFDIR and stx.stx_uid != r.h.uid and \
            not sys_is_capable(r.h.pid, CAP_DAC_OVERRIDE):
        group = stx.stx_gid
        member = group == r.h.gid or sys_in_group(r.h.pid, group)
        res = as_member(r, at, group, member)
    close(at)
    return res


cdef int as_member(Request *r, int at, gid_t group, bint member) noexcept nogil:
    """faccessat(2) for writing, as the caller, with that group if it is in it."""
    cdef int failed, res
    failed = identity_take(r)
    if failed < 0:
        return failed
    if member:
        failed = sys_setgroups(1, &group)
        r.ctx.groups = 1
    res = failed if failed < 0 else sys_faccessat2(at, "", 2, AT_EMPTY_PATH | AT_EACCESS)
    identity_restore(r)
    return res


cdef int rename(Request *r, uint64_t newdir, unsigned flags) noexcept nogil:
    cdef InodeTable *t = &server_of(r).inodes
    cdef uint32_t at = 0
    cdef const char *name = entry_arg(r, &at)
    cdef const char *newname = entry_arg(r, &at)
    cdef Inode *parent
    cdef Inode *to = inode_at(t, newdir)
    cdef int fd, fd2, res, stuck
    if name == NULL or newname == NULL:
        return -EINVAL
    if to == NULL:
        return -ESTALE
    fd = request_pin(r, &parent)
    if fd < 0:
        return fd
    if to.fs != parent.fs:  # and the other one may hang
        inode_unpin(parent)
        return -EXDEV
    fd2 = inode_fd(t, to, <uint32_t> newdir)
    if fd2 < 0:
        inode_unpin(parent)
        return fd2
    if not flags and takes_long(r, to, fd2, newname):
        inode_unpin(parent)
        inode_unpin(to)
        return later(r, op_rename2 if r.h.opcode == FUSE_RENAME2 else op_rename)
    stuck = 0
    if to != parent:
        stuck = movable(r, fd, name)
        if stuck == 0 and flags & RENAME_EXCHANGE:
            stuck = movable(r, fd2, newname)
    if stuck == 0:
        stuck = stick_to_caller(r, fd, fd2, (flags & RENAME_WHITEOUT) != 0)
    res = stuck
    if stuck >= 0:
        res = sys_renameat2(fd, name, fd2, newname, flags)
    if stuck > 0:
        identity_restore(r)
    inode_unpin(parent)
    inode_unpin(to)
    return res


cdef int op_rename(Request *r) noexcept nogil:
    return rename(r, (<fuse_rename_in *> r.op_in).newdir, 0)


cdef int op_rename2(Request *r) noexcept nogil:
    cdef fuse_rename2_in *arg = <fuse_rename2_in *> r.op_in
    return rename(r, arg.newdir, arg.flags)
