"""Kernel passthrough (Documentation/filesystems/fuse/fuse-passthrough.rst).

A backing file is registered by the inode's own O_PATH fd, one for each inode, and kept
when its files are closed, for the next open; there is a bound to how many. All opens of an
inode use the same one: the kernel refuses to mix.
"""
from libc.errno cimport errno
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memset

from passthru._abi cimport *
from passthru._identity cimport data_drop, data_take
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._openfile cimport appending, direct_writing
from passthru._request cimport *


cdef void backing_close(Server *s, int32_t backing) noexcept nogil:
    cdef uint32_t id = <uint32_t> backing
    atomic_sub32(&s.stats.backings, 1)
    ioctl(s.fuse_fd, FUSE_DEV_IOC_BACKING_CLOSE, &id)


cdef int32_t backing_take(Context *ctx, Inode *i, uint32_t node, int opath) noexcept nogil:
    """The backing id of a pinned inode; 0: the kernel will not have it.

    opath: an O_PATH fd. The kernel keeps what it refers to open as long as the id is there: an open file of a caller's
    would keep its flock(2), and keep the file from being executed, for as long.
    """
    cdef Server *s = ctx.server
    cdef fuse_backing_map m
    cdef int failed
    cdef int32_t id = atomic_geti(&i.backing)
    if id or s.inodes.fs[i.fs].flags & FS_NO_BACKING:
        return id
    memset(&m, 0, sizeof(m))
    m.fd = opath
    # The kernel writes with the rights of this moment, whoever writes.
    if data_take(ctx) < 0:
        return 0
    id = ioctl(s.fuse_fd, FUSE_DEV_IOC_BACKING_OPEN, &m)
    failed = errno
    data_drop(ctx)
    if id <= 0:
        if failed in (ELOOP, EOPNOTSUPP, EINVAL, EPERM):
            s.inodes.fs[i.fs].flags |= FS_NO_BACKING  # a stacked filesystem, or not ours to use
            atomic_add32(&s.inodes.fs_changes, 1)
        return atomic_geti(&i.backing)
    atomic_add32(&s.stats.backings, 1)
    if not atomic_casi(&i.backing, 0, id):
        backing_close(s, id)
        return atomic_geti(&i.backing)
    remember(s, i, node)
    return id


cdef int32_t backing_reserve(Context *ctx, Inode *i, uint32_t node, int opath, uint32_t flags, bint wanted,
                             unsigned own) noexcept nogil:
    """inode_reserve() for a file of a pinned inode; its backing id, or 0: it goes by requests; or -EAGAIN.

    opath: see backing_take(); flags: of open(2); own: see inode_reserve().
    """
    cdef Server *s = ctx.server
    cdef int32_t id
    cdef int res
    # To a file that was opened with O_APPEND the kernel appends for good: it does not see fcntl(2) take that away.
    if not s.config.passthrough or appending(flags):
        wanted = False
    # Of a file that is passed through the kernel holds the inode's lock for each write(2).
    cdef bint apart = direct_writing(flags)
    cdef bint alone = apart and s.config.parallel_writes == PARALLEL_AUTO
    if s.inodes.fs[i.fs].flags & FS_MEMORY:
        alone = False  # memory lets one write in at a time itself
    if s.config.parallel_writes == PARALLEL_ALWAYS and apart:
        wanted = False
    res = inode_reserve(&s.inodes, i, wanted, alone, flags & O_ACCMODE != O_WRONLY, own)
    if res <= 0:
        return res
    id = backing_take(ctx, i, node, opath)
    if not id:
        i.passthrough = 0  # no open has got an id, as then there would be one
    return id


cdef void remember(Server *s, Inode *i, uint32_t node) noexcept nogil:
    """Keep the id for later opens; let go of one whose inode has no open file, if there are too many."""
    cdef FdCache *c = &s.inodes.backings
    cdef Inode *victim = NULL
    cdef uint32_t steps = 0, n
    cdef int32_t old = 0
    spin_lock(&c.lock)
    if c.used < c.size:
        n = c.used
        c.used += 1
        c.nodes[n] = node
        i.backing_slot = n + 1
    else:
        while steps < c.size:
            steps += 1
            n = c.hand
            c.hand = n + 1 if n + 1 < c.size else 0
            if c.nodes[n]:
                victim = <Inode *> slab_at(&s.inodes.slab, c.nodes[n])
                # The claim keeps opens of it out, as they pin it first.
                if victim.opens or not atomic_cas32(&victim.pins, 0, EVICTING):
                    victim = NULL
                    continue
                if victim.opens:
                    atomic_sub32(&victim.pins, EVICTING)
                    victim = NULL
                    continue
                victim.backing_slot = 0
            c.nodes[n] = node
            i.backing_slot = n + 1
            break
    spin_unlock(&c.lock)
    if victim != NULL:
        old = victim.backing
        atomic_seti(&victim.backing, 0)
        atomic_sub32(&victim.pins, EVICTING)
        backing_close(s, old)


cdef void backings_sweep(Server *s) noexcept nogil:
    """Let go of ids whose inode has had no open file since the last sweep: they keep removed files' space."""
    cdef FdCache *c = &s.inodes.backings
    cdef Inode *i
    cdef uint32_t n
    cdef int32_t old
    for n in range(c.used):
        spin_lock(&c.lock)
        i = <Inode *> slab_at(&s.inodes.slab, c.nodes[n]) if c.nodes[n] else NULL
        if i != NULL and (i.used or i.opens or not atomic_cas32(&i.pins, 0, EVICTING)):
            if not i.slot:
                i.used = 0  # no sweep of fds does so
            i = NULL
        if i != NULL and i.opens:
            atomic_sub32(&i.pins, EVICTING)
            i = NULL
        if i != NULL:
            c.nodes[n] = 0
            i.backing_slot = 0
        spin_unlock(&c.lock)
        if i != NULL:
            old = i.backing
            atomic_seti(&i.backing, 0)
            atomic_sub32(&i.pins, EVICTING)
            backing_close(s, old)
    cache_trim(c)


cdef void backing_forget(Server *s, Inode *i) noexcept nogil:
    """An inode that is about to be freed; the caller has claimed it.

    At the end too: the kernel itself closes what is left some time after the daemon's end, and until
    then the source's filesystem could not be unmounted.
    """
    if i.backing_slot:
        spin_lock(&s.inodes.backings.lock)
        s.inodes.backings.nodes[i.backing_slot - 1] = 0
        i.backing_slot = 0
        spin_unlock(&s.inodes.backings.lock)
    if i.backing > 0:
        backing_close(s, i.backing)
        i.backing = 0
