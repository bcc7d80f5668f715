"""What the kernel has allowed by what it knew of owners, directories and groups, which may be from long ago.

The source compares again when the call is made: for it this thread becomes the caller, or goes without the rights
that the caller has not. One way out: identity_restore(), or rights_drop() where there may be nothing to drop.
"""
from libc.errno cimport errno
from libc.stdint cimport uint32_t

from passthru._abi cimport *
from passthru._identity cimport identity_restore, identity_take, owner_identity_take, unowner_take
from passthru._idmap cimport id_to_mount
from passthru._libc cimport *
from passthru._request cimport *

cdef enum:
    W_OK = 2
    GROUPS = 256           # of a caller, as many as count for an ACL of a directory that is moved


cdef bint in_group(Request *r, uint32_t gid) noexcept nogil:
    """Is the caller in a group of the source?"""
    cdef Server *s = server_of(r)
    return gid == r.h.gid or sys_in_group(r.h.pid, id_to_mount(&s.gids, gid) if s.config.mapped else gid)


cdef int owner_take(Request *r, int fd, bint chown, uint32_t gid) noexcept nogil:
    """Become who may do what is the owner's to do, until identity_restore(): 1; or 0: go on as the daemon; or -errno.

    The kernel has let an owner do it, but of a file whose owner it may know from long ago. So the source compares
    owners itself, with the caller, or, where the caller may act for the owner, with the owner that was seen: it may be
    another one when the call is made. chown: the owner or group is to change; gid: to that group, or NO_ID.
    """
    cdef Server *s = server_of(r)
    cdef gid_t groups[2]
    cdef unsigned n = 0
    cdef statx stx
    cdef bint acts_for = False, over = False
    cdef int res
    if not s.config.identity or r.h.uid == NO_ID:
        return 0
    if c_statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0:
        return -errno
    if r.h.uid == 0:
        return unowner_take(r, stx.stx_uid == 0 and not s.config.mapped)
    if sys_is_capable(r.h.pid, CAP_FOWNER) or (chown and sys_is_capable(r.h.pid, CAP_CHOWN)):
        return 0
    if s.config.mapped:  # several of the source's users may be one in the mount
        acts_for = id_to_mount(&s.uids, stx.stx_uid) == id_to_mount(&s.uids, r.h.uid)
    elif stx.stx_uid != r.h.uid:
        over = chown and sys_is_capable_over(r.h.pid, CAP_CHOWN, stx.stx_uid, stx.stx_gid)
        acts_for = over or sys_is_capable_over(r.h.pid, CAP_FOWNER, stx.stx_uid, stx.stx_gid)
    else:
        over = chown and sys_is_capable_over(r.h.pid, CAP_CHOWN, stx.stx_uid, stx.stx_gid)
    res = owner_identity_take(r, stx.stx_uid, stx.stx_gid) if acts_for else identity_take(r)
    if res < 0:
        return res
    if gid != NO_ID and gid != r.h.gid and in_group(r, gid):
        groups[n] = gid
        n += 1
    # Of a group that the owner is not in, sgid does not stay.
    if stx.stx_gid != r.h.gid and in_group(r, stx.stx_gid):
        groups[n] = stx.stx_gid
        n += 1
    if n:
        res = sys_setgroups(n, groups)
        r.ctx.groups = n
    if res == 0 and over:
        res = sys_cap_change(0, 1 << CAP_CHOWN)
    if res < 0:
        identity_restore(r)
    return res if res < 0 else 1


# ----------------------------------------------------------- directories

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
        return unowner_take(r, False)
    res = identity_take(r)
    if res < 0:
        return res
    sys_cap_override()
    return 1


cdef int for_owner(Request *r, statx *stx) noexcept nogil:
    """Become the owner that something has, for whom the caller may act (CAP_FOWNER, perhaps of a user namespace).

    As stick_to_caller(): should it be another's by now, the source says so. 1: till identity_restore(); 0: it may not.
    """
    if r.h.uid == 0 or r.h.uid == NO_ID or stx.stx_uid == r.h.uid or server_of(r).config.mapped or \
            not sys_is_capable_over(r.h.pid, CAP_FOWNER, stx.stx_uid, stx.stx_gid):
        return 0
    if owner_identity_take(r, stx.stx_uid, stx.stx_gid) < 0:
        return 0
    sys_cap_override()
    return 1


cdef int stick_to_owner(Request *r, int fd, const char *name) noexcept nogil:
    """for_owner() of what is `name` now in a sticky directory, after the source has refused the caller."""
    cdef statx stx
    cdef int at, res
    if not sticky(fd):
        return 0
    at = sys_openat_here(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    if at < 0:
        return 0
    res = for_owner(r, &stx) if c_statx(at, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) == 0 else 0
    close(at)
    return res


cdef int movable(Request *r, int fd, const char *name) noexcept nogil:
    """May the caller move what is `name` now to another directory? A directory must be writable for that. 0 or -errno.

    The kernel has looked, at the directory that it knows by the name.
    """
    cdef statx stx
    cdef int at, res
    if not server_of(r).config.identity or r.h.uid == 0 or r.h.uid == NO_ID or server_of(r).config.mapped:
        return 0
    at = sys_openat_here(fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    if at < 0:
        return at
    res = -errno if c_statx(at, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0 else 0
    if res == 0 and stx.stx_mode & S_IFMT == S_IFDIR and stx.stx_uid != r.h.uid and \
            not sys_is_capable_over(r.h.pid, CAP_DAC_OVERRIDE, stx.stx_uid, stx.stx_gid):
        res = may_write(r, at, stx.stx_gid)
    close(at)
    return res


cdef int may_write(Request *r, int fd, gid_t group) noexcept nogil:
    """access_as_caller() for writing, with all of the caller's groups: an ACL may name any. group: of the file."""
    cdef gid_t groups[GROUPS]
    cdef unsigned n = sys_groups_of(r.h.pid, groups, GROUPS)
    if n == GROUPS and sys_in_group(r.h.pid, group):
        groups[0] = group
    return access_as_caller(r, fd, W_OK, n, groups)


cdef int access_as_caller(Request *r, int fd, int wanted, unsigned n, gid_t *groups) noexcept nogil:
    """faccessat(2) as the caller, in `n` groups; 0: in the one that the request names, if any. 0 or -errno."""
    cdef int res = identity_take(r)
    if res < 0:
        return res
    if n:
        res = sys_setgroups(n, groups)
        r.ctx.groups = n
    if res == 0:
        res = sys_faccessat2(fd, "", wanted, AT_EMPTY_PATH | AT_EACCESS)
    identity_restore(r)
    return res
