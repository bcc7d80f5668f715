# Acting as the caller: fsuid, fsgid and supplementary groups of this thread alone, by raw system
# calls (glibc's wrappers change every thread). Group before user: with the user goes the right to
# change groups. There is one way out, and a restore that fails ends the process.
#
# And the identity of data: nobody's fsuid, with which CAP_FSETID and the other rights to files go. So the
# source clears suid, sgid and file capabilities itself, if and when it changes a file, and gives no blocks that
# it keeps for root. What it is used for is open already: no permission is asked. A thread that serves a queue
# keeps the identity until it has something else to do: taking it costs more than a small write.
from libc.stdint cimport uint32_t
from libc.stdlib cimport abort
from libc.string cimport memcpy

from passthru._abi cimport *
from passthru._extension cimport Extension, extension_next
from passthru._idmap cimport id_to_source
from passthru._label cimport label_drop, label_take
from passthru._libc cimport EACCES, ENOMEM, EOVERFLOW, EPERM, umask
from passthru._request cimport DATA_CAPS, DATA_FSUID, DATA_OWN, Context, Request

cdef enum:
    INVALID_ID = 0xffffffff  # FUSE_INVALID_UIDGID: no creating request, and FUSE_ALLOW_IDMAP
    NOBODY = 65534

# Makes `name` in the directory `dir_fd`. A result that is not negative, or -errno; overridden: past permission bits.
ctypedef int (*Maker)(Request *r, int dir_fd, const char *name, bint overridden) noexcept nogil


cdef inline bint fsuid_take(uint32_t uid) noexcept nogil:
    """setfsuid(2) tells a failure only by what a further call, with an id that there is not, says is in force."""
    sys_setfsuid(uid)
    return <uint32_t> sys_setfsuid(INVALID_ID) == uid


cdef inline bint fsgid_take(uint32_t gid) noexcept nogil:
    sys_setfsgid(gid)
    return <uint32_t> sys_setfsgid(INVALID_ID) == gid


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
    # An id that this user namespace does not have is refused.
    if (r.h.gid and not fsgid_take(r.h.gid)) or (r.h.uid and not fsuid_take(r.h.uid)):
        identity_restore(r)
        return -EOVERFLOW
    return 0


cdef inline bint identity_override(Request *r, int error) noexcept nogil:
    """After EACCES for the caller's identity: is it worth another try, past the source's permission bits?

    The kernel has checked the caller with all its groups, of which it names but one: one that
    an ACL lets into a directory may be another. Not for opening what is there already: that
    the kernel takes for created, and checks nothing. Ends with identity_restore().
    """
    return error == EACCES and r.ctx.server.config.identity and r.h.uid != 0 and sys_cap_override() == 0


cdef inline int unowner_take(Request *r, bint owns) noexcept nogil:
    """For a caller with uid 0 that has no CAP_FOWNER: go without it until identity_restore(): 1; 0: it has; -errno.

    owns: it is about what uid 0 owns, for which nobody needs to find that out.
    """
    cdef int failed
    if not owns and sys_is_capable(r.h.pid, CAP_FOWNER):
        return 0
    failed = sys_cap_change(1 << CAP_FOWNER, 0)
    r.ctx.unowner = failed == 0
    return failed if failed < 0 else 1


cdef inline int owner_identity_take(Request *r, uint32_t uid, uint32_t gid) noexcept nogil:
    """Become the owner that a file was seen to have, until identity_restore(). 0 or -errno.

    For callers who may do what that owner may: should the file be another's by now, the source says so.
    """
    r.ctx.as_owner = 1
    if (gid and not fsgid_take(gid)) or (uid and not fsuid_take(uid)):
        identity_restore(r)
        return -EOVERFLOW
    if uid == 0:
        if sys_cap_change(1 << CAP_FOWNER, 0) < 0:
            identity_restore(r)
            return -EPERM
        r.ctx.unowner = 1
    return 0


cdef inline void identity_restore(Request *r) noexcept nogil:
    if not r.ctx.server.config.identity:
        return
    if r.ctx.as_owner:
        r.ctx.as_owner = 0
        if not fsuid_take(0) or not fsgid_take(0):
            abort()
    if r.ctx.unowner:
        if sys_cap_change(0, 1 << CAP_FOWNER) < 0:
            abort()
        r.ctx.unowner = 0
    if r.ctx.labelled:
        label_drop(r.ctx)
    if r.h.uid and not fsuid_take(0):
        abort()
    if r.h.gid and not fsgid_take(0):
        abort()


cdef inline void umask_take(Context *ctx, uint32_t mask) noexcept nogil:
    """This thread's umask, kept until another one is asked for. Where threads share theirs, the kernel has applied it."""
    if ctx.mask != mask and ctx.server.config.own_umask:
        umask(mask)
        ctx.mask = mask


cdef inline int as_caller(Request *r, uint32_t mask, Maker maker, int dir_fd, const char *name) noexcept nogil:
    """Have something made by the caller, under that umask: what maker() says, or -errno of not becoming the caller.

    If permission bits refuse it, once more past them where identity_override() thinks that right.
    """
    cdef int res = identity_take(r)
    if res < 0:
        return res
    umask_take(r.ctx, mask)
    res = maker(r, dir_fd, name, False)
    if res < 0 and identity_override(r, -res):
        res = maker(r, dir_fd, name, True)
    identity_restore(r)
    return res


# ----------------------------------------------------------- identity of data

cdef inline int data_take_by(Context *ctx, unsigned how) noexcept nogil:
    """Change data without the right to keep suid and the like, until data_drop(). 0 or -errno."""
    cdef int failed
    if ctx.as_data or how == DATA_OWN:
        return 0
    if ctx.groups:  # of the last caller: reserved blocks may be a group's
        failed = sys_setgroups(0, NULL)
        if failed < 0:
            return failed
        ctx.groups = 0
    if how == DATA_FSUID:
        if not fsgid_take(NOBODY):  # root's group is somebody's too
            return -ENOMEM
        if not fsuid_take(NOBODY):
            if not fsgid_take(0):
                abort()
            return -ENOMEM
    elif sys_cap_fsetid(0) < 0:
        return -ENOMEM
    ctx.as_data = how
    return 0


cdef inline int data_take(Context *ctx) noexcept nogil:
    return data_take_by(ctx, ctx.data_how)


cdef inline void data_drop(Context *ctx) noexcept nogil:
    if ctx.as_data == DATA_FSUID:
        if not fsuid_take(0) or not fsgid_take(0):
            abort()
    elif ctx.as_data and sys_cap_fsetid(1) < 0:
        abort()
    ctx.as_data = 0


cdef inline void data_try(Context *ctx) noexcept nogil:
    """Find out how this thread can have the identity: not by nobody's id where a user namespace has none."""
    ctx.data_how = DATA_FSUID
    if not ctx.server.config.identity:
        ctx.data_how = DATA_OWN
    elif not fsgid_take(NOBODY) or not fsuid_take(NOBODY):
        ctx.data_how = DATA_CAPS
    if ctx.data_how != DATA_OWN and (not fsuid_take(0) or not fsgid_take(0)):
        abort()


cdef inline int data_personality(Context *ctx, bint as_data) noexcept nogil:
    """The number of an identity for requests of this thread's ring; -errno: the ring cannot have it.

    The thread may change its own until it submits. It is registered when it is first wanted: by then the
    thread has given up what it does not need.
    """
    cdef int *number = &ctx.personality[1 if as_data else 0]
    if number[0] == 0:
        data_drop(ctx)
        number[0] = data_take(ctx) if as_data else 0
        if number[0] == 0:
            number[0] = sys_io_uring_register(ctx.ring.fd, IORING_REGISTER_PERSONALITY, NULL, 0)
        data_drop(ctx)
    return number[0]


cdef inline bint keeps_bits(Request *r) noexcept nogil:
    """May the caller keep suid and sgid in a file that it changes? For requests that do not say so."""
    return r.h.uid == 0 and sys_is_capable(r.h.pid, CAP_FSETID)
