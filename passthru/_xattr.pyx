"""SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR.

Through /proc/self/fd, which leads to the object itself, a symlink too: neither fgetxattr(2)
nor getxattrat(2) takes an O_PATH fd. Results go through the thread's scratch
memory: in a ring's payload the reply's place is that of the name.
"""
from libc.errno cimport errno
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memmove, strcmp, strlen, strncmp

from passthru._abi cimport *
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._idmap cimport acl_returns, acl_to_mount, acl_to_source
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._name cimport name_arg
from passthru._request cimport *
from passthru._rights cimport owner_take, rights_drop

cdef enum:
    XATTR_CAPS_SZ_3 = 24       # vfs_ns_cap_data; its first word, little-endian, has the revision in the highest byte
    VFS_CAP_REVISION_3 = 3


cdef int sized_reply(Request *r, long n, uint32_t asked) noexcept nogil:
    """The value in scratch, or with nothing asked for, its size."""
    if n < 0:
        return <int> n
    if asked == 0:
        (<uint32_t *> r.out)[0] = <uint32_t> n
        (<uint32_t *> r.out)[1] = 0
        return 8
    memcpy(r.out, r.ctx.scratch, n)
    return <int> n


cdef uint32_t room(Request *r, uint32_t asked) noexcept nogil:
    cdef uint32_t n = asked if asked < SCRATCH_SIZE else SCRATCH_SIZE
    return n if n < r.out_cap else r.out_cap


cdef inline bint refused(Request *r, const char *name) noexcept nogil:
    """-o noxattr; the kernel needs the ACLs all the same, to check access by them."""
    return not server_of(r).config.xattr and strncmp(name, "system.posix_acl_", 17) != 0


cdef int op_getxattr(Request *r) noexcept nogil:
    cdef uint32_t asked = (<fuse_getxattr_in *> r.op_in).size
    cdef uint32_t at = 0
    cdef const char *name = name_arg(r, &at)
    cdef char path[FD_PATH]
    cdef Inode *i
    cdef int fd
    cdef long n
    if name == NULL:
        return -EINVAL
    if refused(r, name):
        return -EOPNOTSUPP  # ENOSYS would end the asking for ACLs too
    fd = request_pin(r, &i)
    if fd < 0:
        return fd
    fd_path(path, fd)
    n = getxattr(path, name, r.ctx.scratch, room(r, asked))
    n = -errno if n < 0 else n
    if n == -EOPNOTSUPP and is_acl(name):
        n = -ENODATA  # the kernel asks for them everywhere, and would take another answer for everybody's error
    if n > 0 and server_of(r).inodes.fs[i.fs].flags & FS_NOSUID and strcmp(name, "security.capability") == 0:
        n = -ENODATA  # they would count in the mount
    if n > 0 and asked and server_of(r).config.mapped and is_acl(name):
        n = acl_to_mount(server_of(r), r.ctx.scratch, n)
    inode_unpin(i)
    return sized_reply(r, n, asked)


cdef long without_trusted(Request *r, char *names, long n) noexcept nogil:
    """The list's length without the names that the source shows to CAP_SYS_ADMIN only, which is ours."""
    cdef char *end = names + n
    cdef char *at = names
    cdef char *to = names
    cdef size_t length
    cdef int admin = -1  # asked when there is such a name
    while at < end:
        length = strlen(at) + 1
        if strncmp(at, "trusted.", 8) == 0:
            if admin < 0:
                admin = sys_is_capable(r.h.pid, CAP_SYS_ADMIN)
            if admin:
                return n
        else:
            memmove(to, at, length)
            to += length
        at += length
    return to - names


cdef int op_listxattr(Request *r) noexcept nogil:
    cdef uint32_t asked = (<fuse_getxattr_in *> r.op_in).size
    cdef char path[FD_PATH]
    cdef Inode *i
    cdef int fd
    cdef long n
    if not server_of(r).config.xattr:
        return -ENOSYS
    fd = request_pin(r, &i)
    if fd < 0:
        return fd
    fd_path(path, fd)
    n = listxattr(path, r.ctx.scratch, SCRATCH_SIZE)
    n = -errno if n < 0 else without_trusted(r, r.ctx.scratch, n)
    inode_unpin(i)
    if asked and n > <long> room(r, asked):
        return -ERANGE
    return sized_reply(r, n, asked)


cdef inline bint is_acl(const char *name) noexcept nogil:
    return strncmp(name, "system.posix_acl_", 17) == 0


cdef int map_acl(Request *r, const char *path, const char *name, char *value, uint32_t size) noexcept nogil:
    """Translate an ACL that is to be set; -EOVERFLOW if it would lose entries that the mount does not show."""
    cdef long n = getxattr(path, name, r.ctx.scratch, SCRATCH_SIZE)
    if n > 0 and not acl_returns(server_of(r), r.ctx.scratch, n):
        return -EOVERFLOW
    return acl_to_source(server_of(r), value, size)


cdef bint unchecked(const char *name) noexcept nogil:
    """A system.* attribute other than the POSIX ACLs: the kernel leaves checks to the filesystem,
    which here would see us instead of the caller."""
    return strncmp(name, "system.", 7) == 0 and strcmp(name, "system.posix_acl_access") != 0 and \
        strcmp(name, "system.posix_acl_default") != 0


cdef bint may_give(Request *r, const char *name, int fd, const char *value, uint32_t size) noexcept nogil:
    """File capabilities: the kernel asks a user namespace's root too, by an owner that it may know from long ago.

    Of that root they are of a form that counts in its namespace only, so that it does no harm if the file is given to
    somebody else now. To take them away is not asked about: the kernel does so before anybody's write.
    """
    cdef statx stx
    if strcmp(name, "security.capability") != 0 or not server_of(r).config.identity or r.h.uid == 0 \
            or sys_is_capable(r.h.pid, CAP_SETFCAP):
        return True
    if server_of(r).config.mapped or size != XATTR_CAPS_SZ_3 or <unsigned char> value[3] != VFS_CAP_REVISION_3:
        return False
    return c_statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) == 0 and \
        sys_is_capable_over(r.h.pid, CAP_SETFCAP, stx.stx_uid, stx.stx_gid)


cdef int settable(Request *r, const char *name) noexcept nogil:
    """May that attribute be set and removed at all? 0 or -errno."""
    if name == NULL:
        return -EINVAL
    return -EOPNOTSUPP if refused(r, name) or unchecked(name) else 0  # ENOSYS would end the asking for ACLs too


cdef int change(Request *r, int fd, const char *path, const char *name, const char *value, uint32_t size,
                uint32_t flags) noexcept nogil:
    """setxattr(2), or without a value removexattr(2); ACLs as who may. 0 or -errno."""
    cdef int taken = owner_take(r, fd, False, NO_ID) if is_acl(name) else 0
    cdef int res
    if taken < 0:
        return taken
    res = removexattr(path, name) if value == NULL else setxattr(path, name, value, size, flags)
    res = -errno if res < 0 else 0
    rights_drop(r, taken)
    return res


cdef int op_setxattr(Request *r) noexcept nogil:
    cdef fuse_setxattr_in *arg = <fuse_setxattr_in *> r.op_in
    cdef uint32_t at = 0
    cdef const char *name = name_arg(r, &at)
    cdef char path[FD_PATH]
    cdef Inode *i
    cdef int fd
    cdef statx stx
    cdef int res = settable(r, name)
    if res < 0:
        return res
    if arg.size > r.arg_len - at:
        return -EINVAL
    fd = request_pin(r, &i)
    if fd < 0:
        return fd
    if not may_give(r, name, fd, r.arg + at, arg.size):
        inode_unpin(i)
        return -EPERM
    fd_path(path, fd)
    if server_of(r).config.mapped and is_acl(name):
        res = map_acl(r, path, name, r.arg + at, arg.size)
    if res == 0:
        res = change(r, fd, path, name, r.arg + at, arg.size, arg.flags)
    if res == 0 and arg.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID:
        # For us the source keeps sgid; for the caller, who is not in the file's group, it would not.
        if c_statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) == 0 and stx.stx_mode & S_ISGID:
            fchmodat(AT_FDCWD, path, stx.stx_mode & 0o7777 & ~S_ISGID, 0)
    inode_unpin(i)
    return res


cdef int op_removexattr(Request *r) noexcept nogil:
    cdef uint32_t at = 0
    cdef const char *name = name_arg(r, &at)
    cdef char path[FD_PATH]
    cdef Inode *i
    cdef int fd
    cdef int res = settable(r, name)
    if res < 0:
        return res
    fd = request_pin(r, &i)
    if fd < 0:
        return fd
    fd_path(path, fd)
    res = change(r, fd, path, name, NULL, 0, 0)
    inode_unpin(i)
    return res
