"""From a request to its handler.

A handler gives the length of the reply's body, -errno, PENDING or NOREPLY. Operations
without a handler answer ENOSYS, by which the kernel learns not to ask again: BMAP (block
devices only), POLL (regular files are always ready), SETUPMAPPING/REMOVEMAPPING (DAX).
"""
from libc.stdint cimport uint32_t

from passthru._abi cimport *
from passthru._attr cimport *
from passthru._copy cimport *
from passthru._dir cimport *
from passthru._entry cimport *
from passthru._file cimport *
from passthru._identity cimport data_drop
from passthru._inode cimport FS_REMOTE, Inode, handle_close, inode_at, inode_forget
from passthru._libc cimport *
from passthru._ioctl cimport op_ioctl
from passthru._lock cimport op_getlk, op_setlk
from passthru._null cimport null_fsync, null_read, null_write
from passthru._pool cimport pool_interrupt
from passthru._request cimport *
from passthru._single cimport *
from passthru._xattr cimport *

cdef struct Operation:
    Handler handler
    uint32_t op_in         # bytes of its first argument
    uint32_t flags

cdef enum:
    OWN_WAIT = 1           # the handler itself sends what waits away

cdef Operation OPS[ROOTS][FUSE_OPCODES]


cdef void op(unsigned opcode, Handler handler, uint32_t op_in, uint32_t flags) noexcept nogil:
    cdef unsigned root
    for root in range(ROOTS):
        OPS[root][opcode].handler = handler
        OPS[root][opcode].op_in = op_in
        OPS[root][opcode].flags = flags


cdef void op_for(unsigned root, unsigned opcode, Handler handler) noexcept nogil:
    """Another handler for that kind of root."""
    OPS[root][opcode].handler = handler


cdef void single_init() noexcept nogil:
    """What differs where the root is one file."""
    cdef unsigned root
    for root in range(ROOT_FILE, ROOTS):
        op_for(root, FUSE_LOOKUP, op_notdir)
        op_for(root, FUSE_SYMLINK, op_notdir)
        op_for(root, FUSE_MKNOD, op_notdir)
        op_for(root, FUSE_MKDIR, op_notdir)
        op_for(root, FUSE_UNLINK, op_notdir)
        op_for(root, FUSE_RMDIR, op_notdir)
        op_for(root, FUSE_RENAME, op_notdir)
        op_for(root, FUSE_RENAME2, op_notdir)
        op_for(root, FUSE_LINK, op_notdir)
        op_for(root, FUSE_CREATE, op_notdir)
        op_for(root, FUSE_TMPFILE, op_notdir)
        op_for(root, FUSE_OPENDIR, op_notdir)
        op_for(root, FUSE_READDIR, op_notdir)
        op_for(root, FUSE_READDIRPLUS, op_notdir)
        op_for(root, FUSE_FSYNCDIR, op_notdir)
        op_for(root, FUSE_SYNCFS, op_sync_root)
    for root in range(ROOT_FIXED, ROOTS):
        # copy_file_range(2) knows no end and no devices: the kernel reads and writes instead.
        op_for(root, FUSE_COPY_FILE_RANGE, op_unknown)
        op_for(root, FUSE_COPY_FILE_RANGE_64, op_unknown)
    op_for(ROOT_FIXED, FUSE_OPEN, op_open_fixed)
    op_for(ROOT_FIXED, FUSE_SETATTR, op_setattr_fixed)
    op_for(ROOT_FIXED, FUSE_WRITE, op_write_fixed)
    op_for(ROOT_FIXED, FUSE_FALLOCATE, op_fallocate_fixed)
    op_for(ROOT_DEVICE, FUSE_OPEN, op_open_device)
    op_for(ROOT_DEVICE, FUSE_GETATTR, op_getattr_device)
    op_for(ROOT_DEVICE, FUSE_SETATTR, op_setattr_device)
    op_for(ROOT_DEVICE, FUSE_STATX, op_statx_device)
    op_for(ROOT_DEVICE, FUSE_STATFS, op_statfs_device)
    op_for(ROOT_DEVICE, FUSE_LSEEK, op_lseek_device)
    op_for(ROOT_DEVICE, FUSE_FALLOCATE, op_fallocate_device)


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
    """Fill the table, a row for each kind of root. null_io: data is neither read nor written (see _null)."""
    cdef unsigned n
    for n in range(FUSE_OPCODES):
        op(n, op_unknown, 0, OWN_WAIT)
    op(FUSE_LOOKUP, op_lookup, 0, 0)
    op(FUSE_FORGET, op_forget, sizeof(fuse_forget_in), OWN_WAIT)
    op(FUSE_GETATTR, op_getattr, sizeof(fuse_getattr_in), 0)
    op(FUSE_SETATTR, op_setattr, sizeof(fuse_setattr_in), 0)
    op(FUSE_READLINK, op_readlink, 0, 0)
    op(FUSE_SYMLINK, op_symlink, 0, 0)
    op(FUSE_MKNOD, op_mknod, sizeof(fuse_mknod_in), 0)
    op(FUSE_MKDIR, op_mkdir, sizeof(fuse_mkdir_in), 0)
    op(FUSE_UNLINK, op_unlink, 0, 0)
    op(FUSE_RMDIR, op_rmdir, 0, 0)
    op(FUSE_RENAME, op_rename, sizeof(fuse_rename_in), 0)
    op(FUSE_LINK, op_link, sizeof(fuse_link_in), 0)
    op(FUSE_OPEN, op_open, sizeof(fuse_open_in), 0)
    op(FUSE_READ, op_read, sizeof(fuse_read_in), OWN_WAIT)
    op(FUSE_WRITE, op_write, sizeof(fuse_write_in), OWN_WAIT)
    op(FUSE_STATFS, op_statfs, 0, 0)
    op(FUSE_RELEASE, op_release, sizeof(fuse_release_in), OWN_WAIT)
    op(FUSE_FSYNC, op_fsync, sizeof(fuse_fsync_in), OWN_WAIT)
    op(FUSE_SETXATTR, op_setxattr, sizeof(fuse_setxattr_in), 0)
    op(FUSE_GETXATTR, op_getxattr, sizeof(fuse_getxattr_in), 0)
    op(FUSE_LISTXATTR, op_listxattr, sizeof(fuse_getxattr_in), 0)
    op(FUSE_REMOVEXATTR, op_removexattr, 0, 0)
    op(FUSE_FLUSH, op_flush, sizeof(fuse_flush_in), OWN_WAIT)
    op(FUSE_OPENDIR, op_opendir, sizeof(fuse_open_in), 0)
    op(FUSE_READDIR, op_readdir, sizeof(fuse_read_in), 0)
    op(FUSE_RELEASEDIR, op_releasedir, sizeof(fuse_release_in), 0)
    op(FUSE_FSYNCDIR, op_fsyncdir, sizeof(fuse_fsync_in), OWN_WAIT)
    op(FUSE_GETLK, op_getlk, sizeof(fuse_lk_in), 0)
    op(FUSE_SETLK, op_setlk, sizeof(fuse_lk_in), OWN_WAIT)
    op(FUSE_SETLKW, op_setlk, sizeof(fuse_lk_in), OWN_WAIT)
    op(FUSE_ACCESS, op_access, sizeof(fuse_access_in), 0)
    op(FUSE_CREATE, op_create, sizeof(fuse_create_in), 0)
    op(FUSE_INTERRUPT, op_interrupt, sizeof(fuse_interrupt_in), OWN_WAIT)
    op(FUSE_DESTROY, op_destroy, 0, OWN_WAIT)
    op(FUSE_IOCTL, op_ioctl, sizeof(fuse_ioctl_in), 0)
    op(FUSE_NOTIFY_REPLY, op_notify_reply, 0, OWN_WAIT)
    op(FUSE_BATCH_FORGET, op_batch_forget, sizeof(fuse_batch_forget_in), OWN_WAIT)
    op(FUSE_FALLOCATE, op_fallocate, sizeof(fuse_fallocate_in), OWN_WAIT)
    op(FUSE_READDIRPLUS, op_readdirplus, sizeof(fuse_read_in), 0)
    op(FUSE_RENAME2, op_rename2, sizeof(fuse_rename2_in), 0)
    op(FUSE_LSEEK, op_lseek, sizeof(fuse_lseek_in), OWN_WAIT)
    op(FUSE_COPY_FILE_RANGE, op_copy_file_range, sizeof(fuse_copy_file_range_in), OWN_WAIT)
    op(FUSE_SYNCFS, op_syncfs, sizeof(fuse_syncfs_in), OWN_WAIT)
    op(FUSE_TMPFILE, op_tmpfile, sizeof(fuse_create_in), 0)
    op(FUSE_STATX, op_statx, sizeof(fuse_statx_in), 0)
    op(FUSE_COPY_FILE_RANGE_64, op_copy_file_range, sizeof(fuse_copy_file_range_in), OWN_WAIT)
    single_init()
    if null_io:
        for n in range(ROOTS):
            op_for(n, FUSE_READ, null_read)
            op_for(n, FUSE_WRITE, null_write)
            op_for(n, FUSE_FSYNC, null_fsync)


cdef uint32_t op_in_size(uint32_t opcode) noexcept nogil:
    """Bytes of an opcode's first argument; by /dev/fuse the others follow right behind it."""
    return OPS[ROOT_TREE][opcode].op_in if opcode < FUSE_OPCODES else 0


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
    r.settled = 0
    if r.ctx.as_data and opcode != FUSE_WRITE and opcode != FUSE_READ:
        data_drop(r.ctx)
    if r.h.len < sizeof(fuse_in_header) + op_in_size(opcode):
        return -EINVAL
    if s.inodes.remote and not o.flags & OWN_WAIT:
        i = inode_at(&s.inodes, r.h.nodeid)
        if i != NULL and s.inodes.fs[i.fs].flags & FS_REMOTE:
            return later(r, o.handler)
    return o.handler(r)


cdef void undelivered(Request *r, int result) noexcept nogil:
    """Give back what a reply that the kernel did not take had handed out."""
    cdef Server *s = server_of(r)
    cdef fuse_entry_out *entry = <fuse_entry_out *> r.out
    cdef fuse_open_out *opened = NULL
    if result <= 0:
        return
    if r.h.opcode in (FUSE_LOOKUP, FUSE_MKNOD, FUSE_MKDIR, FUSE_SYMLINK, FUSE_LINK, FUSE_CREATE,
                      FUSE_TMPFILE) and entry.nodeid:
        inode_forget(&s.inodes, entry.nodeid, 1)
        r.ctx.stats.forgets += 1
    if r.h.opcode in (FUSE_CREATE, FUSE_TMPFILE):
        opened = <fuse_open_out *> (r.out + sizeof(fuse_entry_out))
    elif r.h.opcode in (FUSE_OPEN, FUSE_OPENDIR):
        opened = <fuse_open_out *> r.out
    elif r.h.opcode == FUSE_READDIRPLUS:
        forget_listed(r, <uint32_t> result)
    if opened != NULL:
        handle_close(&s.inodes, <uint32_t> opened.fh)
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
