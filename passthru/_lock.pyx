"""GETLK, SETLK, SETLKW: locks are taken on the source, so that they also hold against who is there.

flock(2) belongs to an open file, and each handle is one of ours. Record locks belong to
(inode, owner): each pair gets an open file description of its own, whose OFD locks
(fcntl(2)) they are; it is closed by the owner's FLUSH, or by RELEASE of the handle that
it came by (a caller's own OFD locks end there). A lock that has to be waited for is
waited for on a thread of the waiters' pool, and INTERRUPT ends it. The kernel looks for
deadlocks of record locks, but not of OFD locks: so it is done here, among our own waits.
"""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from passthru._abi cimport *
from passthru._backing cimport fh_fd
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._pool cimport pool_submit
from passthru._request cimport *

cdef extern from "abi.h" nogil:
    struct flock:
        short l_type
        short l_whence
        int64_t l_start
        int64_t l_len
        int l_pid
    int fcntl(int fd, int cmd, flock *fl)
    int c_flock "flock"(int fd, int operation)
    enum:
        F_RDLCK, F_WRLCK, F_UNLCK, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW
        EDEADLK, LOCK_SH, LOCK_EX, LOCK_UN, LOCK_NB, EWOULDBLOCK, ENOLCK, EROFS, ETXTBSY

cdef enum:
    TO_THE_END = 0x7fffffffffffffff  # fuse_file_lock.end of a lock without end
    LONGEST_CYCLE = 64  # that is looked for; the kernel's own limit is 10

cdef struct Owner:
    Owner *next
    uint64_t owner
    uint32_t node
    uint32_t fh                # the handle it was first used by
    uint32_t users             # requests that use fd now
    uint32_t gone              # not in the table any more: the last user closes
    uint32_t pid
    int fd
    bint writable
    int64_t low                # all its locks are in [low, high]; low > high: it has none
    int64_t high

cdef struct Wait:              # for a record lock, on the stack of who waits
    Wait *next
    uint64_t owner
    uint32_t node
    flock fl

cdef struct Table:             # of one process, not of one mount: nodes are told apart by server
    uint32_t lock
    Owner *first


cdef inline Table *table_of(Server *s, uint32_t node) noexcept nogil:
    return &(<Table *> s.locks)[node & (LOCK_SHARDS - 1)]


cdef void owner_close(Owner *o) noexcept nogil:
    close(o.fd)
    free(o)


cdef Owner *owner_find(Server *s, uint32_t node, uint64_t owner) noexcept nogil:
    """The owner's entry with one more user, or NULL."""
    cdef Table *t = table_of(s, node)
    cdef Owner *o
    spin_lock(&t.lock)
    o = t.first
    while o != NULL and (o.node != node or o.owner != owner):
        o = o.next
    if o != NULL:
        o.users += 1
    spin_unlock(&t.lock)
    return o


cdef void owner_put(Server *s, Owner *o) noexcept nogil:
    cdef Table *t = table_of(s, o.node)
    cdef bint last
    spin_lock(&t.lock)
    o.users -= 1
    last = o.gone and o.users == 0
    spin_unlock(&t.lock)
    if last:
        owner_close(o)


cdef int owner_open(Request *r, Handle *h, fuse_lk_in *arg, Owner **found) noexcept nogil:
    """owner_find(), or a new entry with an open file description of its own. 0 or -errno."""
    cdef Server *s = server_of(r)
    cdef Table *t = table_of(s, h.node)
    cdef Owner *o
    cdef Owner *other
    cdef char path[FD_PATH]
    cdef int fd
    cdef bint writable = True
    o = owner_find(s, h.node, arg.owner)
    if o != NULL:
        found[0] = o
        return 0
    # The kernel has checked that the caller's file is open for the kind of lock. Locks of both
    # kinds need an fd for both; where the source cannot be written, read locks are all there is.
    fd_path(path, h.fd)
    fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK)
    if fd < 0 and errno in (EACCES, EROFS, ETXTBSY, EPERM):
        writable = False
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    if fd < 0:
        return -errno
    o = <Owner *> calloc(1, sizeof(Owner))
    if o == NULL:
        close(fd)
        return -ENOLCK
    o.owner = arg.owner
    o.node = h.node
    o.fh = <uint32_t> arg.fh
    o.pid = arg.lk.pid
    o.fd = fd
    o.writable = writable
    o.low = 1
    o.users = 1
    spin_lock(&t.lock)
    other = t.first
    while other != NULL and (other.node != h.node or other.owner != arg.owner):
        other = other.next
    if other != NULL:
        other.users += 1
    else:
        o.next = t.first
        t.first = o
        inode_at(&s.inodes, h.node).locked = 1
    spin_unlock(&t.lock)
    if other != NULL:
        owner_close(o)
        o = other
    found[0] = o
    return 0


cdef void drop(Server *s, uint32_t node, uint64_t owner, uint32_t fh, bint by_handle) noexcept nogil:
    cdef Table *t = table_of(s, node)
    cdef Inode *i = inode_at(&s.inodes, node)
    cdef Owner **at
    cdef Owner *o
    cdef Owner *dead = NULL
    cdef bint more = False
    cdef flock fl
    if i == NULL or not i.locked:
        return
    memset(&fl, 0, sizeof(fl))
    fl.l_type = F_UNLCK
    spin_lock(&t.lock)
    at = &t.first
    while at[0] != NULL:
        o = at[0]
        if o.node == node and (o.fh == fh if by_handle else o.owner == owner):
            at[0] = o.next
            o.gone = 1
            # Only the lock's waiter may still use it. What it gets, it gives up at once.
            if o.users == 0:
                o.next = dead
                dead = o
        else:
            more = more or o.node == node
            at = &o.next
    if not more:
        i.locked = 0
    spin_unlock(&t.lock)
    while dead != NULL:
        o = dead
        dead = o.next
        owner_close(o)


cdef void locks_drop_owner(Server *s, uint32_t node, uint64_t owner) noexcept nogil:
    """close(2) by an owner gives up all its record locks on the inode (FLUSH)."""
    drop(s, node, owner, 0, False)


cdef void locks_drop_handle(Server *s, uint32_t node, uint32_t fh) noexcept nogil:
    """The last close of an open file (RELEASE)."""
    drop(s, node, 0, fh, True)


# --------------------------------------------------------------- requests

cdef int lock_errno() noexcept nogil:
    return -EAGAIN if errno == EWOULDBLOCK else -errno


cdef bint to_flock(fuse_file_lock *lk, flock *fl) noexcept nogil:
    memset(fl, 0, sizeof(flock))
    fl.l_type = <short> lk.type
    fl.l_start = <int64_t> lk.start
    fl.l_len = 0 if lk.end >= TO_THE_END else <int64_t> (lk.end - lk.start + 1)
    return lk.start <= TO_THE_END and lk.end >= lk.start


cdef inline bint is_remote(Server *s, uint32_t node) noexcept nogil:
    return s.inodes.fs[inode_at(&s.inodes, node).fs].flags & FS_REMOTE


cdef bint holder(Server *s, uint32_t node, flock *fl, uint64_t asker, uint64_t *owner, uint32_t *pid) noexcept nogil:
    """Who holds a lock which the asker has found in the way? False: nobody of the mount, or it is not to be told.

    The source knows the holder as an open file description of ours: it is the one for which
    that very lock is not in the way. If several hold the same range for reading, each has another's in
    its way; then it is the one besides the asker, if there is but one.
    """
    cdef Table *t = table_of(s, node)
    cdef Owner *o
    cdef flock probe
    cdef int64_t end = TO_THE_END if fl.l_len == 0 else fl.l_start + fl.l_len - 1
    cdef unsigned likely = 0
    cdef bint found = False
    if is_remote(s, node):
        return False  # asking would wait
    spin_lock(&t.lock)  # F_OFD_GETLK of a local file does not wait
    o = t.first
    while o != NULL and not found:
        if o.node == node and o.low <= fl.l_start and o.high >= end:
            probe = fl[0]
            probe.l_type = F_WRLCK
            probe.l_pid = 0
            if fcntl(o.fd, F_OFD_GETLK, &probe) == 0 and (
                    probe.l_type == F_UNLCK or probe.l_start != fl.l_start or probe.l_len != fl.l_len):
                found = True
                owner[0] = o.owner
                pid[0] = o.pid
            elif o.owner != asker and fl.l_type == F_RDLCK:
                likely += 1
                owner[0] = o.owner
                pid[0] = o.pid
        o = o.next
    spin_unlock(&t.lock)
    return found or likely == 1


cdef int op_getlk(Request *r) noexcept nogil:
    cdef fuse_lk_in *arg = <fuse_lk_in *> r.op_in
    cdef fuse_file_lock *out = <fuse_file_lock *> r.out
    cdef Server *s = server_of(r)
    cdef Handle *h
    cdef Owner *o
    cdef flock fl
    cdef uint64_t owner
    cdef uint32_t pid = 0
    cdef int fd = fh_fd(r, arg.fh, H_FILE, &h)
    cdef int res
    if fd < 0:
        return fd
    if not to_flock(&arg.lk, &fl):
        return -EINVAL
    o = owner_find(s, h.node, arg.owner)
    res = fcntl(fd if o == NULL else o.fd, F_OFD_GETLK, &fl)
    res = lock_errno() if res < 0 else 0
    if o != NULL:
        owner_put(s, o)
    if res < 0:
        return res
    out.type = fl.l_type
    out.start = fl.l_start
    out.end = TO_THE_END if fl.l_len == 0 else <uint64_t> (fl.l_start + fl.l_len - 1)
    if fl.l_type != F_UNLCK:
        if fl.l_pid > 0:
            pid = fl.l_pid
        else:
            holder(s, h.node, &fl, arg.owner, &owner, &pid)
    out.pid = pid
    return sizeof(fuse_file_lock)


cdef int lock_now(Request *r, bint wait) noexcept nogil:
    """Take, change or give up the lock of a SETLK or SETLKW."""
    cdef fuse_lk_in *arg = <fuse_lk_in *> r.op_in
    cdef Server *s = server_of(r)
    cdef Handle *h
    cdef Owner *o = NULL
    cdef flock fl
    cdef int fd = fh_fd(r, arg.fh, H_FILE, &h)
    cdef int res, kind
    if fd < 0:
        return fd
    if arg.lk_flags & FUSE_LK_FLOCK:
        kind = LOCK_UN if arg.lk.type == F_UNLCK else LOCK_SH if arg.lk.type == F_RDLCK else LOCK_EX
        res = c_flock(fd, kind if wait else kind | LOCK_NB)
        return lock_errno() if res < 0 else 0
    if not to_flock(&arg.lk, &fl):
        return -EINVAL
    if arg.lk.type == F_UNLCK:
        o = owner_find(s, h.node, arg.owner)
        if o == NULL:
            return 0
    else:
        res = owner_open(r, h, arg, &o)
        if res < 0:
            return res
    if wait:
        res = wait_for(s, o, &fl)
    else:
        res = lock_errno() if fcntl(o.fd, F_OFD_SETLK, &fl) < 0 else 0
    if res == 0:
        remember_range(o, &arg.lk)
    owner_put(s, o)
    return res


cdef void remember_range(Owner *o, fuse_file_lock *lk) noexcept nogil:
    cdef int64_t start = <int64_t> lk.start
    cdef int64_t end = TO_THE_END if lk.end >= TO_THE_END else <int64_t> lk.end
    if lk.type == F_UNLCK:
        if start <= o.low and end >= o.high:
            o.low = 1
            o.high = 0
    elif o.low > o.high:
        o.low = start
        o.high = end
    else:
        o.low = min(o.low, start)
        o.high = max(o.high, end)


cdef int wait_for(Server *s, Owner *o, flock *fl) noexcept nogil:
    """Take a record lock when it is free. -EDEADLK if who has it waits, perhaps by others, for this owner."""
    cdef Wait w
    cdef Wait **at
    cdef int res
    if is_remote(s, o.node):
        return lock_errno() if fcntl(o.fd, F_OFD_SETLKW, fl) < 0 else 0
    w.owner = o.owner
    w.node = o.node
    w.fl = fl[0]
    # Who waits last closes a cycle, so it is enough that each looks before it is itself in the list.
    spin_lock(&s.lock_waits_lock)
    if s.lock_waits != NULL and deadlock(s, &w):
        spin_unlock(&s.lock_waits_lock)
        return -EDEADLK
    w.next = <Wait *> s.lock_waits
    s.lock_waits = &w
    spin_unlock(&s.lock_waits_lock)
    res = lock_errno() if fcntl(o.fd, F_OFD_SETLKW, fl) < 0 else 0
    spin_lock(&s.lock_waits_lock)
    at = <Wait **> &s.lock_waits
    while at[0] != &w:
        at = &at[0].next
    at[0] = w.next
    spin_unlock(&s.lock_waits_lock)
    return res


cdef bint deadlock(Server *s, Wait *mine) noexcept nogil:
    """Does this wait close a cycle? As the kernel does, by one holder of what is in the way."""
    cdef Wait *w = mine
    cdef Owner *o
    cdef flock fl
    cdef uint64_t owner
    cdef uint32_t pid
    cdef unsigned _n
    cdef int res
    for _n in range(LONGEST_CYCLE):
        o = owner_find(s, w.node, w.owner)
        if o == NULL:
            return False
        fl = w.fl
        res = fcntl(o.fd, F_OFD_GETLK, &fl)
        owner_put(s, o)
        if res < 0 or fl.l_type == F_UNLCK or fl.l_pid > 0 or not holder(s, w.node, &fl, w.owner, &owner, &pid):
            return False
        if owner == mine.owner:
            return True
        w = <Wait *> s.lock_waits
        while w != NULL and w.owner != owner:
            w = w.next
        if w == NULL:
            return False
    return False


cdef int blocking_lock(Request *r) noexcept nogil:
    if r.interrupted:
        return -EINTR
    return lock_now(r, r.h.opcode == FUSE_SETLKW)


cdef int op_setlk(Request *r) noexcept nogil:
    """SETLK and SETLKW. What can be had is had at once, on the queue's thread."""
    cdef Server *s = server_of(r)
    cdef Handle *h = handle_at(&s.handles, (<fuse_lk_in *> r.op_in).fh, H_FILE)
    cdef int res
    if h != NULL and s.inodes.fs[inode_at(&s.inodes, h.node).fs].flags & FS_REMOTE:
        r.interruptible = r.h.opcode == FUSE_SETLKW
        return pool_submit(s.waiters, r, blocking_lock)
    res = lock_now(r, False)
    if res != -EAGAIN or r.h.opcode != FUSE_SETLKW:
        return res
    r.interruptible = 1
    return pool_submit(server_of(r).waiters, r, blocking_lock)
