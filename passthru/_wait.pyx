"""Where a request goes that has to wait for what is not up to us: to a pool, in the lane of what it waits for."""
from libc.stdint cimport uint64_t

from passthru._inode cimport *
from passthru._libc cimport EBUSY, ENOLCK
from passthru._pool cimport (
    CROSS_LANES, LANE_COPY, LANE_CROSS, LANE_GENERAL, lane_of, lane_of_row, pool_submit, pool_submit_lane)
from passthru._request cimport *


cdef int later(Request *r, Handler blocking) noexcept nogil:
    """Run a handler where it may wait: on a pool thread, or here if this is one.

    The lane is that of the filesystem that the request is for.
    """
    cdef InodeTable *t = &server_of(r).inodes
    cdef Inode *i
    if may_wait(r):
        return blocking(r)
    i = inode_at(t, r.h.nodeid)
    return pool_submit_lane(server_of(r).pool, r, blocking,
                            lane_of_row(i.fs) if i != NULL and t.fs[i.fs].flags & FS_REMOTE else LANE_GENERAL)


cdef int later_copying(Request *r, Handler blocking, uint64_t target) noexcept nogil:
    """later() for a copy to another inode: long ones do not delay what else the source is asked."""
    cdef InodeTable *t = &server_of(r).inodes
    cdef Inode *i = inode_at(t, r.h.nodeid)
    # Between filesystems it may be either that takes its time.
    if i == NULL or not t.fs[i.fs].flags & FS_REMOTE:
        i = inode_at(t, target)
    if may_wait(r):
        return blocking(r)
    return pool_submit_lane(server_of(r).pool, r, blocking,
                            lane_of_row(i.fs) if i != NULL and t.fs[i.fs].flags & FS_REMOTE else LANE_COPY)


cdef int later_crossing(Request *r, Handler blocking, const char *name) noexcept nogil:
    """later() for a walk over a mount point: what lies there decides how long it takes."""
    cdef uint64_t key = r.h.nodeid
    if may_wait(r):
        return blocking(r)
    while name[0]:
        key = key * 31 + <unsigned char> name[0]
        name += 1
    return pool_submit_lane(server_of(r).pool, r, blocking, lane_of(LANE_CROSS, CROSS_LANES, key))


cdef int later_settling(Request *r, Handler blocking, bint held, const char *name) noexcept nogil:
    """later() for settle() of what has been looked up by a name. held: a caller may have its lock, see change_begin().

    Nobody waits here for what others have the source do.
    """
    cdef int res = -EBUSY
    if held:
        r.patient = 1  # before it is another thread's
        res = patiently(r, blocking)
        if res != -EBUSY:
            return res
        r.patient = 0
    return later_crossing(r, blocking, name)


cdef int patiently(Request *r, Handler blocking) noexcept nogil:
    """later() for what may have to wait for somebody's lease (F_SETLEASE): for long, and until an INTERRUPT."""
    cdef int res
    if may_wait(r):
        return blocking(r)
    res = pool_submit(server_of(r).waiters, r, blocking)
    return res if res != -ENOLCK else -EBUSY
