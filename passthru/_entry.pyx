"""LOOKUP, FORGET, and the operations that make, remove, rename and link names."""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset, strlen

from passthru._abi cimport *
from passthru._changes cimport name_key
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._identity cimport as_caller
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._mode cimport settled
from passthru._name cimport entry_arg, name_arg
from passthru._reply cimport changes_told, entry_reply, keep_name
from passthru._request cimport *
from passthru._rights cimport for_owner, movable, rights_drop, stick_to_caller, stick_to_owner
from passthru._storage cimport BIG_CUT
from passthru._wait cimport later, later_crossing, later_settling, may_wait, patiently
from passthru._walk cimport child_lookup, cross, look_at

cdef enum:
    RENAME_EXCHANGE = 2
    RENAME_WHITEOUT = 4

cdef enum:  # S_IFMT >> 12
    FORMAT_DIR = 4
    FORMAT_FILE = 8
    FORMAT_LINK = 10


cdef inline int no_answer(int res) noexcept nogil:
    """The result of a look-up that found out nothing of the name: ENOMEM, or ESTALE, which has the kernel look again.

    After any other error it takes the name for gone, and what is mounted on it away.
    """
    return -ENOMEM if res in (-EMFILE, -ENFILE, -EINTR, -EAGAIN, -EBUSY) else res


cdef int op_lookup(Request *r) noexcept nogil:
    cdef uint32_t at = 0
    cdef const char *name = entry_arg(r, &at)
    cdef Config *c = &server_of(r).config
    cdef Inode *parent
    cdef Inode *i
    cdef statx stx
    cdef int64_t node
    cdef fuse_entry_out *out
    cdef bint held
    cdef int fd
    if name == NULL:
        return -EINVAL
    fd = request_pin(r, &parent)
    if fd < 0:
        return fd
    if server_of(r).changes != NULL:
        r.name = name_key(parent.ino, name)  # the reply is written over it
    if parent.changing and not may_wait(r):  # the source may look for the name under the directory's lock
        inode_unpin(parent)
        return no_answer(patiently(r, op_lookup))
    node = child_lookup(r, parent, fd, name, False, &stx)
    if node == -EXDEV and may_wait(r):
        node = cross(r, parent, fd, name, &stx)
    inode_unpin(parent)
    if node > 0:
        i = inode_at(&server_of(r).inodes, node)
        if not settled(r, i, <uint32_t> node, &stx):
            held = i.passthrough and i.opens
            inode_forget(&server_of(r).inodes, node, 1)
            r.ctx.stats.forgets += 1
            return no_answer(later_settling(r, op_lookup, held, name))
        return entry_reply(r, r.out, <uint32_t> node, &stx)
    if node == -EXDEV:
        return no_answer(later_crossing(r, op_lookup, name))
    if node in (-EMFILE, -ENFILE, -ESTALE, -EINTR, -EAGAIN):
        return no_answer(<int> node)
    if node == -ENOENT and (c.negative_valid or c.negative_valid_nsec or (c.kept_negative and changes_told(r))):
        out = <fuse_entry_out *> r.out
        memset(out, 0, sizeof(fuse_entry_out))
        out.entry_valid = keep_name(r, NULL, &out.entry_valid_nsec)
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
    cdef Inode *parent
    cdef int fd, res
    if name == NULL or (r.h.opcode == FUSE_SYMLINK and name_arg(r, &at) == NULL):
        return -EINVAL
    fd = request_pin(r, &parent)
    if fd < 0:
        return fd
    res = as_caller(r, mask, make_name, fd, name)
    return made(r, parent, fd, name, res, FORMAT_DIR if r.h.opcode == FUSE_MKDIR else
                FORMAT_LINK if r.h.opcode == FUSE_SYMLINK else (<fuse_mknod_in *> r.op_in).mode >> 12)


cdef int make_name(Request *r, int fd, const char *name, bint overridden) noexcept nogil:
    cdef fuse_mknod_in *node = <fuse_mknod_in *> r.op_in
    cdef int res
    if r.h.opcode == FUSE_MKDIR:
        res = mkdirat(fd, name, (<fuse_mkdir_in *> r.op_in).mode)
    elif r.h.opcode == FUSE_SYMLINK:
        res = symlinkat(name + strlen(name) + 1, fd, name)  # the target follows, see make()
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


cdef int link_fd(int source, int fd, const char *name) noexcept nogil:
    """linkat(2) of what an O_PATH fd is. 0 or -errno."""
    cdef char path[FD_PATH]
    cdef int res = linkat(source, "", fd, name, AT_EMPTY_PATH)
    if res < 0 and errno == ENOENT:  # no CAP_DAC_READ_SEARCH (before 6.10)
        fd_path(path, source)
        res = linkat(AT_FDCWD, path, fd, name, AT_SYMLINK_FOLLOW)
    return -errno if res < 0 else 0


cdef int link_as_caller(Request *r, int source, int fd, const char *name) noexcept nogil:
    """link_fd(): fs.protected_hardlinks asks who owns the file, and whether it has suid or sgid, so the source asks.

    The kernel has asked too, by what it knew of the file. The right to write to the directory is not asked for again.
    """
    cdef statx stx
    cdef int res, taken = 0
    if server_of(r).config.identity and not server_of(r).config.mapped and r.h.uid != NO_ID:
        taken = stick_to_caller(r, fd, fd, True)
    res = taken if taken < 0 else link_fd(source, fd, name)
    rights_drop(r, taken)
    if res == -EPERM and taken > 0 and c_statx(source, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) == 0:
        taken = for_owner(r, &stx)
        if taken > 0:
            res = link_fd(source, fd, name)
        rights_drop(r, taken)
    return res


cdef int op_link(Request *r) noexcept nogil:
    cdef InodeTable *t = &server_of(r).inodes
    cdef uint64_t old = (<fuse_link_in *> r.op_in).oldnodeid
    cdef uint32_t at = 0
    cdef const char *name = entry_arg(r, &at)
    cdef Inode *parent
    cdef Inode *i = inode_at(t, old)
    cdef statx stx
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
    res = link_as_caller(r, source, fd, name)
    if res == 0 and c_statx(source, "", AT_EMPTY_PATH, stx_mask(), &stx) < 0:
        res = -errno
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

cdef uint64_t file_at_name(Request *r, Inode *parent, int fd, const char *name, bint *takes_long) noexcept nogil:
    """The inode number of the file that is `name`; 0: it is nothing, or no file.

    takes_long: it is the last name of one so big that removing it is nothing for a thread that serves a queue.
    """
    cdef statx stx
    cdef int at, res
    takes_long[0] = False
    if server_of(r).inodes.mounts:  # looking at the name itself might lead elsewhere
        at = sys_openat_here(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
        if at < 0:
            return 0
        res = c_statx(at, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx)
        close(at)
    else:
        res = look_at(r, parent, fd, name, &stx)
    if res < 0 or stx.stx_mode & S_IFMT != S_IFREG:
        return 0
    takes_long[0] = stx.stx_nlink == 1 and stx.stx_blocks > BIG_CUT >> 9
    return stx.stx_ino


cdef int later_counted(Request *r, Handler blocking) noexcept nogil:
    """later() with what r.counted has: not to be ended by this thread, unless nothing comes of it."""
    cdef InodeTable *t = &server_of(r).inodes
    cdef uint32_t first = r.counted[0]
    cdef uint32_t second = r.counted[1]
    cdef int res = later(r, blocking)
    if res != PENDING:
        changes_end(t, first)
        changes_end(t, second)
    return res


cdef int unlink_counted(Request *r) noexcept nogil:
    return counted_done(r, remove(r, 0))


cdef int rename_counted(Request *r) noexcept nogil:
    return counted_done(r, op_rename2(r) if r.h.opcode == FUSE_RENAME2 else op_rename(r))


cdef int counted_done(Request *r, int res) noexcept nogil:
    changes_end(&server_of(r).inodes, r.counted[0])
    changes_end(&server_of(r).inodes, r.counted[1])
    return res


cdef int remove(Request *r, int flags) noexcept nogil:
    cdef uint32_t at = 0
    cdef const char *name = entry_arg(r, &at)
    cdef InodeTable *t = &server_of(r).inodes
    cdef Inode *parent
    cdef uint64_t file = 0
    cdef bint long_ = False
    cdef int fd, res, stuck
    if name == NULL:
        return -EINVAL
    fd = request_pin(r, &parent)
    if fd < 0:
        return fd
    if may_wait(r):
        change_begin(t, parent, False)  # it waits with the directory's lock
    elif not flags:
        file = file_at_name(r, parent, fd, name, &long_)
    if file and not changes_begin(t, parent.fs, file, False, &r.counted[0]):
        inode_unpin(parent)
        return patiently(r, op_unlink)
    if long_:
        inode_unpin(parent)
        return later_counted(r, unlink_counted)
    stuck = stick_to_caller(r, fd, fd, False)
    res = stuck
    if stuck >= 0:
        res = -errno if unlinkat(fd, name, flags) < 0 else 0
    rights_drop(r, stuck)
    if res == -EPERM and stuck > 0:
        stuck = stick_to_owner(r, fd, name)
        if stuck > 0:
            res = -errno if unlinkat(fd, name, flags) < 0 else 0
        rights_drop(r, stuck)
    if may_wait(r):
        change_end(t, parent)
    else:
        changes_end(t, r.counted[0])
    inode_unpin(parent)
    return res


cdef int op_unlink(Request *r) noexcept nogil:
    return remove(r, 0)


cdef int op_rmdir(Request *r) noexcept nogil:
    return remove(r, AT_REMOVEDIR)


cdef int rename(Request *r, uint64_t newdir, unsigned flags) noexcept nogil:
    cdef InodeTable *t = &server_of(r).inodes
    cdef uint32_t at = 0
    cdef const char *name = entry_arg(r, &at)
    cdef const char *newname = entry_arg(r, &at)
    cdef Inode *parent
    cdef Inode *to = inode_at(t, newdir)
    cdef Handler again = op_rename2 if r.h.opcode == FUSE_RENAME2 else op_rename
    cdef uint64_t file = 0, over = 0
    cdef bint long_ = False, _
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
    if may_wait(r):
        change_begin(t, parent, False)  # it waits with the directories' locks
        change_begin(t, to, False)
    else:
        over = file_at_name(r, to, fd2, newname, &long_)
        if server_of(r).config.passthrough:
            file = file_at_name(r, parent, fd, name, &_)
    res = 0
    if file and not changes_begin(t, parent.fs, file, False, &r.counted[0]):
        res = -EBUSY
    elif over and not changes_begin(t, to.fs, over, False, &r.counted[1]):
        res = -EBUSY
        changes_end(t, r.counted[0])
        r.counted[0] = 0
    if res < 0:
        inode_unpin(parent)
        inode_unpin(to)
        return patiently(r, again)
    if long_ and not flags:
        inode_unpin(parent)
        inode_unpin(to)
        return later_counted(r, rename_counted)
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
    rights_drop(r, stuck)
    if res == -EPERM and stuck > 0 and not flags & RENAME_WHITEOUT:  # a whiteout is to be the caller's
        stuck = stick_to_owner(r, fd, name)
        if stuck == 0:
            stuck = stick_to_owner(r, fd2, newname)
        if stuck > 0:
            res = sys_renameat2(fd, name, fd2, newname, flags)
        rights_drop(r, stuck)
    if may_wait(r):
        change_end(t, parent)
        change_end(t, to)
    else:
        changes_end(t, r.counted[0])
        changes_end(t, r.counted[1])
    inode_unpin(parent)
    inode_unpin(to)
    return res


cdef int op_rename(Request *r) noexcept nogil:
    return rename(r, (<fuse_rename_in *> r.op_in).newdir, 0)


cdef int op_rename2(Request *r) noexcept nogil:
    cdef fuse_rename2_in *arg = <fuse_rename2_in *> r.op_in
    return rename(r, arg.newdir, arg.flags)
