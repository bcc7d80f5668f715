# Acting as the caller: fsuid, fsgid and supplementary groups of this thread alone, by raw system
# calls (glibc's wrappers change every thread). Group before user: with the user goes the right to
# change groups. There is one way out, and a restore that fails ends the process.
from libc.stdint cimport uint32_t
from libc.stdlib cimport abort
from libc.string cimport memcpy

from passthru._abi cimport FUSE_EXT_GROUPS, gid_t, sys_cap_override, sys_setfsgid, sys_setfsuid, sys_setgroups
from passthru._extension cimport Extension, extension_next
from passthru._idmap cimport id_to_source
from passthru._label cimport label_drop, label_take
from passthru._libc cimport EACCES, EOVERFLOW, umask
from passthru._request cimport Context, Request

cdef enum:
    INVALID_ID = 0xffffffff  # FUSE_INVALID_UIDGID: no creating request, and FUSE_ALLOW_IDMAP


cdef inline int supplementary_group(Request *r, gid_t *gid) noexcept nogil:
    """The group of FUSE_EXT_GROUPS (one at the most): 1, 0 if none came, -EINVAL if malformed."""
    cdef Extension x
    cdef uint32_t groups[2]
    cdef int more
    x.next = 0
    while True:
        more = extension_next(r, &x)
        if more <= 0:
            return more
        if x.type == FUSE_EXT_GROUPS and x.size >= sizeof(groups):
            memcpy(groups, x.content, sizeof(groups))
            gid[0] = groups[1]
            return 1 if groups[0] else 0


cdef inline int identity_take(Request *r) noexcept nogil:
    """Become the request's caller until identity_restore(). 0 or -errno, then nothing has changed."""
    cdef gid_t group
    cdef int n, failed
    if not r.ctx.server.config.identity:
        return 0
    if r.h.uid == INVALID_ID or r.h.gid == INVALID_ID:
        return -EOVERFLOW
    n = supplementary_group(r, &group)
    if n < 0:
        return n
    if n and r.ctx.server.config.mapped:
        group = id_to_source(&r.ctx.server.gids, group)
        n = group != INVALID_ID
    if n or r.ctx.groups:
        failed = sys_setgroups(n, &group)
        if failed < 0:
            return failed
        r.ctx.groups = n
    if r.ctx.server.config.selinux:
        failed = label_take(r)
        if failed < 0:
            return failed
    if r.h.gid:
        sys_setfsgid(r.h.gid)
    if r.h.uid:
        sys_setfsuid(r.h.uid)
    return 0


cdef inline bint identity_override(Request *r, int error) noexcept nogil:
    """After EACCES for the caller's identity: is it worth another try, past the source's permission bits?

    The kernel has checked the caller with all its groups, of which it names but one: one that
    an ACL lets into a directory may be another. Not for opening what is there already: that
    the kernel takes for created, and checks nothing. Ends with identity_restore().
    """
    return error == EACCES and r.ctx.server.config.identity and r.h.uid != 0 and sys_cap_override() == 0


cdef inline void identity_restore(Request *r) noexcept nogil:
    if not r.ctx.server.config.identity:
        return
    if r.ctx.labelled:
        label_drop(r.ctx)
    # setfsuid(2) tells a failure only by the value that the next call returns.
    if r.h.uid:
        sys_setfsuid(0)
        if sys_setfsuid(0) != 0:
            abort()
    if r.h.gid:
        sys_setfsgid(0)
        if sys_setfsgid(0) != 0:
            abort()


cdef inline void umask_take(Context *ctx, uint32_t mask) noexcept nogil:
    """This thread's umask, kept until another one is asked for. Where threads share theirs, the kernel has applied it."""
    if ctx.mask != mask and ctx.server.config.own_umask:
        umask(mask)
        ctx.mask = mask
