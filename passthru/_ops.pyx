"""From a request to its handler.

A handler gives the length of the reply's body, -errno, PENDING or NOREPLY. Operations
without a handler answer ENOSYS, by which the kernel learns not to ask again: BMAP (block
devices only), POLL (regular files are always ready), SETUPMAPPING/REMOVEMAPPING (DAX).
"""
from libc.stdint cimport uint32_t

from passthru._abi cimport *
from passthru._attr cimport *
from passthru._changes cimport changes_now
from passthru._copy cimport *
from passthru._dir cimport *
from passthru._entry cimport *
from passthru._file cimport *
from passthru._identity cimport data_drop
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._ioctl cimport op_ioctl
from passthru._lock cimport op_getlk, op_setlk
from passthru._null cimport null_fsync, null_read, null_write
from passthru._openfile cimport file_close
from passthru._pool cimport pool_interrupt
from passthru._request cimport *
from passthru._single cimport *
from passthru._storage cimport *
from passthru._wait cimport later, may_wait, patiently
from passthru._xattr cimport *

cdef struct Operation:
    const char *name       # NULL: no such opcode
    Handler handler
    uint32_t op_in_size    # bytes of its first argument
    uint32_t flags

cdef Operation OPS[ROOTS][FUSE_OPCODES]


cdef void op(unsigned opcode, const char *name, uint32_t op_in_size, uint32_t flags, Handler handler) noexcept nogil:
    """The row of an operation whose handler is the same whatever the root is; with IN_DIRECTORY, a directory only."""
    cdef Handler single = op_notdir if flags & IN_DIRECTORY else handler
    op_by_root(opcode, name, op_in_size, flags, handler, single, single, single)


cdef void op_by_root(unsigned opcode, const char *name, uint32_t op_in_size, uint32_t flags, Handler tree, Handler file,
                     Handler fixed, Handler device) noexcept nogil:
    """The row of an operation that has a handler for each kind of root."""
    cdef unsigned root
    for root in range(ROOTS):
        OPS[root][opcode].name = name
        OPS[root][opcode].op_in_size = op_in_size
        OPS[root][opcode].flags = flags
    OPS[ROOT_TREE][opcode].handler = tree
    OPS[ROOT_FILE][opcode].handler = file
    OPS[ROOT_FIXED][opcode].handler = fixed
    OPS[ROOT_DEVICE][opcode].handler = device


cdef int op_destroy(Request *r) noexcept nogil:
    return 0  # the end of the connection follows


cdef int op_interrupt(Request *r) noexcept nogil:
    pool_interrupt(server_of(r), (<fuse_interrupt_in *> r.op_in).unique)
    return NOREPLY


cdef int op_notify_reply(Request *r) noexcept nogil:
    r.ctx.notified = r.h.unique  # see kick() in _ring: that it came is all
    return 0


cdef int op_unknown(Request *r) noexcept nogil:
    return -ENOSYS


cdef void ops_init(bint null_io) noexcept nogil:
    """Fill the table. null_io: data is neither read nor written (see _null).

    A row has all that is known of an operation: its name without FUSE_, the size of its first argument, flags
    (_ops.pxd says what they mean), and its handler, or one each for a directory, a file, a file of fixed size and
    a device as the root.
    """
    cdef unsigned n, root
    for n in range(FUSE_OPCODES):
        op(n, NULL, 0, OWN_WAIT, op_unknown)
    op(FUSE_LOOKUP, "LOOKUP", 0, IN_DIRECTORY | GIVES_ENTRY, op_lookup)
    op(FUSE_FORGET, "FORGET", sizeof(fuse_forget_in), OWN_WAIT | BY_OPEN_FILE, op_forget)
    op_by_root(FUSE_GETATTR, "GETATTR", sizeof(fuse_getattr_in), 0,
               op_getattr, op_getattr, op_getattr, op_getattr_device)
    op_by_root(FUSE_SETATTR, "SETATTR", sizeof(fuse_setattr_in), TAKES_LOCK,
               op_setattr, op_setattr, op_setattr_fixed, op_setattr_device)
    op(FUSE_READLINK, "READLINK", 0, 0, op_readlink)
    op(FUSE_SYMLINK, "SYMLINK", 0, IN_DIRECTORY | GIVES_ENTRY, op_symlink)
    op(FUSE_MKNOD, "MKNOD", sizeof(fuse_mknod_in), IN_DIRECTORY | GIVES_ENTRY, op_mknod)
    op(FUSE_MKDIR, "MKDIR", sizeof(fuse_mkdir_in), IN_DIRECTORY | GIVES_ENTRY, op_mkdir)
    op(FUSE_UNLINK, "UNLINK", 0, IN_DIRECTORY, op_unlink)
    op(FUSE_RMDIR, "RMDIR", 0, IN_DIRECTORY, op_rmdir)
    op(FUSE_RENAME, "RENAME", sizeof(fuse_rename_in), IN_DIRECTORY, op_rename)
    op(FUSE_LINK, "LINK", sizeof(fuse_link_in), IN_DIRECTORY | GIVES_ENTRY | TAKES_LOCK, op_link)
    op_by_root(FUSE_OPEN, "OPEN", sizeof(fuse_open_in), GIVES_FILE,
               op_open, op_open, op_open_fixed, op_open_device)
    op(FUSE_READ, "READ", sizeof(fuse_read_in), OWN_WAIT | BY_OPEN_FILE, op_read)
    op_by_root(FUSE_WRITE, "WRITE", sizeof(fuse_write_in), OWN_WAIT | BY_OPEN_FILE,
               op_write, op_write, op_write_fixed, op_write)
    op_by_root(FUSE_STATFS, "STATFS", 0, 0, op_statfs, op_statfs, op_statfs, op_statfs_device)
    op(FUSE_RELEASE, "RELEASE", sizeof(fuse_release_in), OWN_WAIT | BY_OPEN_FILE, op_release)
    op(FUSE_FSYNC, "FSYNC", sizeof(fuse_fsync_in), OWN_WAIT | BY_OPEN_FILE, op_fsync)
    op(FUSE_SETXATTR, "SETXATTR", sizeof(fuse_setxattr_in), TAKES_LOCK, op_setxattr)
    op(FUSE_GETXATTR, "GETXATTR", sizeof(fuse_getxattr_in), 0, op_getxattr)
    op(FUSE_LISTXATTR, "LISTXATTR", sizeof(fuse_getxattr_in), 0, op_listxattr)
    op(FUSE_REMOVEXATTR, "REMOVEXATTR", 0, TAKES_LOCK, op_removexattr)
    op(FUSE_FLUSH, "FLUSH", sizeof(fuse_flush_in), OWN_WAIT | BY_OPEN_FILE, op_flush)
    op(FUSE_INIT, "INIT", 0, OWN_WAIT, op_unknown)
    op(FUSE_OPENDIR, "OPENDIR", sizeof(fuse_open_in), IN_DIRECTORY | GIVES_FILE, op_opendir)
    op(FUSE_READDIR, "READDIR", sizeof(fuse_read_in), IN_DIRECTORY | BY_OPEN_FILE, op_readdir)
    op(FUSE_RELEASEDIR, "RELEASEDIR", sizeof(fuse_release_in), BY_OPEN_FILE, op_releasedir)
    op(FUSE_FSYNCDIR, "FSYNCDIR", sizeof(fuse_fsync_in), IN_DIRECTORY | OWN_WAIT | BY_OPEN_FILE, op_fsyncdir)
    op(FUSE_GETLK, "GETLK", sizeof(fuse_lk_in), BY_OPEN_FILE, op_getlk)
    op(FUSE_SETLK, "SETLK", sizeof(fuse_lk_in), OWN_WAIT | BY_OPEN_FILE, op_setlk)
    op(FUSE_SETLKW, "SETLKW", sizeof(fuse_lk_in), OWN_WAIT | BY_OPEN_FILE, op_setlk)
    op(FUSE_ACCESS, "ACCESS", sizeof(fuse_access_in), 0, op_access)
    op(FUSE_CREATE, "CREATE", sizeof(fuse_create_in), IN_DIRECTORY | GIVES_ENTRY | GIVES_FILE, op_create)
    op(FUSE_INTERRUPT, "INTERRUPT", sizeof(fuse_interrupt_in), OWN_WAIT | BY_OPEN_FILE, op_interrupt)
    op(FUSE_BMAP, "BMAP", 0, OWN_WAIT, op_unknown)
    op(FUSE_DESTROY, "DESTROY", 0, OWN_WAIT | BY_OPEN_FILE, op_destroy)
    op(FUSE_IOCTL, "IOCTL", sizeof(fuse_ioctl_in), TAKES_LOCK, op_ioctl)
    op(FUSE_POLL, "POLL", 0, OWN_WAIT, op_unknown)
    op(FUSE_NOTIFY_REPLY, "NOTIFY_REPLY", 0, OWN_WAIT, op_notify_reply)
    op(FUSE_BATCH_FORGET, "BATCH_FORGET", sizeof(fuse_batch_forget_in), OWN_WAIT | BY_OPEN_FILE, op_batch_forget)
    op_by_root(FUSE_FALLOCATE, "FALLOCATE", sizeof(fuse_fallocate_in), OWN_WAIT | BY_OPEN_FILE,
               op_fallocate, op_fallocate, op_fallocate_fixed, op_fallocate_device)
    op(FUSE_READDIRPLUS, "READDIRPLUS", sizeof(fuse_read_in), IN_DIRECTORY | BY_OPEN_FILE | GIVES_LIST, op_readdirplus)
    op(FUSE_RENAME2, "RENAME2", sizeof(fuse_rename2_in), IN_DIRECTORY, op_rename2)
    op_by_root(FUSE_LSEEK, "LSEEK", sizeof(fuse_lseek_in), OWN_WAIT | BY_OPEN_FILE | TAKES_LOCK,
               op_lseek, op_lseek, op_lseek, op_lseek_device)
    # copy_file_range(2) knows no fixed end and no devices: the kernel reads and writes instead.
    op_by_root(FUSE_COPY_FILE_RANGE, "COPY_FILE_RANGE", sizeof(fuse_copy_file_range_in), OWN_WAIT | BY_OPEN_FILE,
               op_copy_file_range, op_copy_file_range, op_unknown, op_unknown)
    op(FUSE_SETUPMAPPING, "SETUPMAPPING", 0, OWN_WAIT, op_unknown)
    op(FUSE_REMOVEMAPPING, "REMOVEMAPPING", 0, OWN_WAIT, op_unknown)
    op_by_root(FUSE_SYNCFS, "SYNCFS", sizeof(fuse_syncfs_in), OWN_WAIT | BY_OPEN_FILE,
               op_syncfs, op_sync_root, op_sync_root, op_sync_root)
    op(FUSE_TMPFILE, "TMPFILE", sizeof(fuse_create_in), IN_DIRECTORY | GIVES_ENTRY | GIVES_FILE, op_tmpfile)
    op_by_root(FUSE_STATX, "STATX", sizeof(fuse_statx_in), 0, op_statx, op_statx, op_statx, op_statx_device)
    op_by_root(FUSE_COPY_FILE_RANGE_64, "COPY_FILE_RANGE_64", sizeof(fuse_copy_file_range_in), OWN_WAIT | BY_OPEN_FILE,
               op_copy_file_range, op_copy_file_range, op_unknown, op_unknown)
    if null_io:
        for root in range(ROOTS):
            OPS[root][FUSE_READ].handler = null_read
            OPS[root][FUSE_WRITE].handler = null_write
            OPS[root][FUSE_FSYNC].handler = null_fsync


ops_init(False)


def operations():
    """{name: its row} of every opcode: number, bytes of the first argument, and what the flags say."""
    found = {}
    for n in range(FUSE_OPCODES):
        o = OPS[ROOT_TREE][<unsigned> n]
        if o.name != NULL:
            found[(<bytes> o.name).decode()] = {
                "opcode": n, "op_in_size": o.op_in_size, "served": o.handler != op_unknown,
                "own_wait": bool(o.flags & OWN_WAIT), "by_open_file": bool(o.flags & BY_OPEN_FILE),
                "in_directory": bool(o.flags & IN_DIRECTORY), "gives_entry": bool(o.flags & GIVES_ENTRY),
                "gives_file": bool(o.flags & GIVES_FILE), "gives_list": bool(o.flags & GIVES_LIST)}
    return found


cdef const char *op_name(uint32_t opcode) noexcept nogil:
    """The name of an opcode, or NULL."""
    return OPS[ROOT_TREE][opcode].name if opcode < FUSE_OPCODES else NULL


cdef uint32_t op_flags(uint32_t opcode) noexcept nogil:
    """The flags of an opcode."""
    return OPS[ROOT_TREE][opcode].flags if opcode < FUSE_OPCODES else 0


cdef uint32_t op_in_size(uint32_t opcode) noexcept nogil:
    """Bytes of an opcode's first argument; by /dev/fuse the others follow right behind it."""
    return OPS[ROOT_TREE][opcode].op_in_size if opcode < FUSE_OPCODES else 0


cdef int dispatch(Request *r) noexcept nogil:
    """Serve a request whose argument lengths its transport has checked against its buffers."""
    cdef Server *s = server_of(r)
    cdef uint32_t opcode = r.h.opcode
    cdef Operation *o
    cdef Inode *i
    if opcode >= FUSE_OPCODES:
        return -ENOSYS
    o = &OPS[s.config.root][opcode]
    r.ctx.stats.ops[opcode] += 1
    r.settled = r.patient = 0
    r.counted[0] = r.counted[1] = 0
    if s.changes != NULL:
        r.began = changes_now(s.changes)
    if r.ctx.as_data and opcode != FUSE_WRITE and opcode != FUSE_READ:
        data_drop(r.ctx)
    if r.h.len < sizeof(fuse_in_header) + op_in_size(opcode):
        return -EINVAL
    if s.inodes.remote and not o.flags & OWN_WAIT:
        i = inode_at(&s.inodes, r.h.nodeid)
        if i != NULL and s.inodes.fs[i.fs].flags & FS_REMOTE:
            return later(r, o.handler)
    if o.flags & TAKES_LOCK and s.config.passthrough and not may_wait(r):
        return changed(r, o.handler)
    return o.handler(r)


cdef int changed(Request *r, Handler handler) noexcept nogil:
    """Run a handler that takes the lock of a file in the source, where it may wait if a caller may have that lock."""
    cdef InodeTable *t = &server_of(r).inodes
    cdef Inode *i = inode_at(t, (<fuse_link_in *> r.op_in).oldnodeid if r.h.opcode == FUSE_LINK else r.h.nodeid)
    cdef int res
    if i == NULL or i.type != S_IFREG >> 12:
        return handler(r)
    if not change_begin(t, i, False):
        return patiently(r, handler)
    res = handler(r)
    change_end(t, i)
    return res


cdef void undelivered(Request *r, int result) noexcept nogil:
    """Give back what a reply that the kernel did not take had handed out."""
    cdef Server *s = server_of(r)
    cdef uint32_t flags = op_flags(r.h.opcode)
    cdef fuse_entry_out *entry = <fuse_entry_out *> r.out
    cdef fuse_open_out *opened = <fuse_open_out *> (entry + 1 if flags & GIVES_ENTRY else entry)
    if result <= 0:
        return
    if flags & GIVES_ENTRY and entry.nodeid:
        inode_forget(&s.inodes, entry.nodeid, 1)
        r.ctx.stats.forgets += 1
    if flags & GIVES_LIST:
        forget_listed(r, <uint32_t> result)
    if flags & GIVES_FILE:
        file_close(s, <uint32_t> opened.fh)
        r.ctx.stats.releases += 1


cdef void forget_listed(Request *r, uint32_t length) noexcept nogil:
    """undelivered() for the lookups of a READDIRPLUS reply."""
    cdef uint32_t at = 0
    cdef fuse_entry_out *e
    cdef fuse_dirent *d
    while at + sizeof(fuse_entry_out) + sizeof(fuse_dirent) <= length:
        e = <fuse_entry_out *> (r.out + at)
        d = <fuse_dirent *> (e + 1)
        if e.nodeid:
            inode_forget(&server_of(r).inodes, e.nodeid, 1)
            r.ctx.stats.forgets += 1
        at += (sizeof(fuse_entry_out) + sizeof(fuse_dirent) + d.namelen + 7) & ~7u
