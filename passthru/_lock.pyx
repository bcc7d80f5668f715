"""GETLK, SETLK, SETLKW: locks are taken on the source, so that they also hold against who is there.

flock(2) belongs to an open file, and each of the mount is one of ours. Record locks belong to
(inode, owner): each pair gets an open file description of its own, whose OFD locks
(fcntl(2)) they are. The owner's FLUSH gives all of them up, as close(2) does, and closes it if
nobody uses it just then: a lock that is waited for meanwhile is one to come, and stays. A caller's
own OFD locks come by one open file only, and end with its RELEASE.

A lock that has to be waited for is waited for on a thread of the waiters' pool, and INTERRUPT ends
it. The kernel looks for deadlocks of record locks, but not of OFD locks: so it is done here, among our
own waits, as the kernel does it: when a wait begins, and again when another lock comes in its way.
"""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from passthru._abi cimport *
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._openfile cimport fh_fd, file_at
from passthru._pool cimport pool_chore, pool_interrupt_running, pool_submit
from passthru._request cimport *
from passthru._arena cimport Arena
from passthru._slab cimport CHUNK_BITS, Slab, slab_adopt, slab_alloc, slab_at, slab_destroy, slab_free, slab_init_in
from passthru._wait cimport later, may_wait

cdef enum:
    LOCK_SHARDS = 64
    TO_THE_END = 0x7fffffffffffffff  # fuse_file_lock.end of a lock without end
    LONGEST_CYCLE = 11  # as in the kernel
    PROBING_NS = 1000000  # for so long one search asks, and
    PROBES = 4096       # questions that a search for holders may ask the source
    HOLDERS = 4096      # a power of two
    LEASED = -0x10000002  # lock_now(): somebody has a lease, and the file's open would wait
    LEAVING_NS = 100000000
    TRY_US = 200        # pause between two attempts to get a flock whose holder is leaving,
    TRIES = 100         # and how many

cdef struct Owner:
    Owner *next
    uint64_t owner
    uint32_t node
    uint32_t fh                # the open file it is used by; 0: by several, so it is a process
    uint32_t users             # requests that use fd now
    uint32_t gone              # not in the table any more: the last user closes
    uint32_t pid
    int fd
    int64_t low                # all its locks are in [low, high]; low > high: it has none
    int64_t high
    uint32_t slot              # of Locks.owners
    uint32_t live              # it has been in the table, and not yet been closed

cdef struct Wait:              # for a record lock, on the stack of who waits
    Wait *next
    Request *r
    uint64_t owner
    uint64_t by                # owner of what is in the way; 0: not known
    uint32_t node
    bint dead                  # EDEADLK
    flock fl

cdef struct Leaving:           # an open file with a flock(2), one of whose fds was closed
    Leaving *next
    uint64_t when
    uint32_t node
    uint32_t fh

cdef struct Table:
    uint32_t lock
    Owner *first
    Leaving *leaving
    char pad[40]

cdef struct Locks:             # of one mount
    Table tables[LOCK_SHARDS]
    uint32_t holders[HOLDERS]  # record lock owners that hold something, by a hash of the owner
    uint32_t waits_lock
    Wait *waits                # for record locks
    Slab owners


cdef LockTables *locks_new(Arena *arena) noexcept nogil:
    """Empty tables, or NULL. arena: what owners are kept in for a successor (locks_adopt()), or NULL."""
    cdef Locks *fresh = <Locks *> calloc(1, sizeof(Locks))
    if fresh != NULL and slab_init_in(&fresh.owners, sizeof(Owner), arena) < 0:
        free(fresh)
        return NULL
    return <LockTables *> fresh


cdef void locks_free(LockTables *locks) noexcept nogil:
    cdef Locks *all_ = <Locks *> locks
    cdef Owner *o
    cdef Leaving *g
    cdef unsigned n
    if all_ == NULL:
        return
    for n in range(LOCK_SHARDS):
        while all_.tables[n].first != NULL:
            o = all_.tables[n].first
            all_.tables[n].first = o.next
            close(o.fd)
        while all_.tables[n].leaving != NULL:
            g = all_.tables[n].leaving
            all_.tables[n].leaving = g.next
            free(g)
    slab_destroy(&all_.owners)
    free(all_)


cdef bint owner_in_use(void *item) noexcept nogil:
    return (<Owner *> item).live


cdef void locks_adopt(Server *s) noexcept nogil:
    """Take an arena's owners over from a process that has died, after inodes and open files.

    Their locks are held on, since their fds are. Nobody waits: who did asks again. An open file with a flock(2) may just
    have been closed, so all are taken for that.
    """
    cdef Locks *all_ = locks_of(s)
    cdef Table *t
    cdef Owner *o
    cdef OpenFile *file
    cdef Inode *i
    cdef uint64_t n
    slab_adopt(&all_.owners, owner_in_use)
    memset(all_.tables, 0, sizeof(all_.tables))
    memset(all_.holders, 0, sizeof(all_.holders))
    all_.waits = NULL
    all_.waits_lock = 0
    for n in range(<uint64_t> all_.owners.chunks << CHUNK_BITS):
        o = <Owner *> slab_at(&all_.owners, n)
        if o == NULL or not o.live:
            continue
        i = inode_at(&s.inodes, o.node)
        if o.gone or i == NULL or (o.fh and file_at(s, o.fh, OF_FILE) == NULL):
            o.live = 0
            continue
        t = table_of(s, o.node)
        o.users = 0
        o.next = t.first
        t.first = o
        i.locked = 1
        # What it holds may have changed without being noted: it may hold anything.
        o.low = 0
        o.high = TO_THE_END
        atomic_add32(holders_of(s, o.owner), 1)
    slab_adopt(&all_.owners, owner_in_use)
    for n in range(<uint64_t> s.files.chunks << CHUNK_BITS):
        file = <OpenFile *> slab_at(&s.files, n)
        if file != NULL and file.kind == OF_FILE and file.flocked:
            flock_leaving(s, file.node, <uint32_t> n)


cdef int lock_fd(Server *s, uint64_t n) noexcept nogil:
    """The fd of the owner in slot n; -1: there is none; -2: nor further ones."""
    cdef Slab *owners = &locks_of(s).owners
    cdef Owner *o
    if n >= <uint64_t> owners.chunks << CHUNK_BITS:
        return -2
    o = <Owner *> slab_at(owners, n)
    return o.fd if o != NULL and o.live else -1


cdef inline Locks *locks_of(Server *s) noexcept nogil:
    return <Locks *> s.locks


cdef inline Table *table_of(Server *s, uint32_t node) noexcept nogil:
    return &locks_of(s).tables[node & (LOCK_SHARDS - 1)]


cdef inline uint32_t *holders_of(Server *s, uint64_t owner) noexcept nogil:
    return &locks_of(s).holders[(owner ^ (owner >> 32)) & (HOLDERS - 1)]


# ---------------------------------------------------------------- owners

cdef void set_range(Server *s, Owner *o, int64_t low, int64_t high) noexcept nogil:
    """Under the table's lock."""
    if o.low > o.high and low <= high:
        atomic_add32(holders_of(s, o.owner), 1)
    elif o.low <= o.high and low > high:
        atomic_sub32(holders_of(s, o.owner), 1)
    o.low = low
    o.high = high


cdef void owner_close(Server *s, Owner *o) noexcept nogil:
    """Nobody else knows it any more."""
    set_range(s, o, 1, 0)
    o.live = 0
    close(o.fd)
    slab_free(&locks_of(s).owners, o.slot)


cdef inline Owner *owner_use(Table *t, uint32_t node, uint64_t owner) noexcept nogil:
    """Under the table's lock: the owner's entry with one more user, or NULL."""
    cdef Owner *o = t.first
    while o != NULL and (o.node != node or o.owner != owner):
        o = o.next
    if o != NULL:
        o.users += 1
    return o


cdef Owner *owner_find(Server *s, uint32_t node, uint64_t owner) noexcept nogil:
    """The owner's entry with one more user, or NULL."""
    cdef Table *t = table_of(s, node)
    cdef Owner *o
    spin_lock(&t.lock)
    o = owner_use(t, node, owner)
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
        owner_close(s, o)


cdef int owner_fd(Request *r, OpenFile *file) noexcept nogil:
    """An open file description of an open file's own, for locks of both kinds if it may be. -errno or LEASED."""
    cdef char path[FD_PATH]
    cdef int more = O_CLOEXEC
    cdef int fd
    if not may_wait(r):
        more |= O_NONBLOCK
    fd_path(path, file.fd)
    # The kernel has checked that the caller's file is open for the kind of lock. Locks of both
    # kinds need an fd for both; where the source cannot be written, read locks are all there is.
    while True:
        fd = open(path, O_RDWR | more)
        if fd < 0 and errno == EPERM:  # an append-only file
            fd = open(path, O_RDWR | O_APPEND | more)
        if fd < 0 and errno in (EACCES, EROFS, ETXTBSY, EPERM):
            fd = open(path, O_RDONLY | more)
        if fd < 0 and errno == EINTR and not r.interrupted:
            continue
        if fd < 0:
            return LEASED if errno == EWOULDBLOCK and more & O_NONBLOCK else -errno
        return fd


cdef int owner_open(Request *r, OpenFile *file, fuse_lk_in *arg, Owner **found) noexcept nogil:
    """owner_find(), or a new entry with an open file description of its own. 0 or as owner_fd()."""
    cdef Server *s = server_of(r)
    cdef Table *t = table_of(s, file.node)
    cdef Owner *o = NULL
    cdef uint32_t slot
    cdef int fd
    spin_lock(&t.lock)
    found[0] = owner_use(t, file.node, arg.owner)
    spin_unlock(&t.lock)
    if found[0] == NULL:
        fd = owner_fd(r, file)
        if fd < 0:
            return fd
        slot = slab_alloc(&locks_of(s).owners, r.ctx.id)
        if not slot:
            close(fd)
            return -ENOLCK
        o = <Owner *> slab_at(&locks_of(s).owners, slot)
        o.slot = slot
        o.owner = arg.owner
        o.node = file.node
        o.fh = <uint32_t> arg.fh
        o.fd = fd
        o.low = 1
        o.users = 1
    spin_lock(&t.lock)
    if o != NULL:
        found[0] = owner_use(t, file.node, arg.owner)
        if found[0] == NULL:
            found[0] = o
            o.next = t.first
            t.first = o
            atomic_set32(&o.live, 1)
            inode_at(&s.inodes, file.node).locked = 1
            o = NULL
    found[0].pid = arg.lk.pid
    if found[0].fh != <uint32_t> arg.fh:
        found[0].fh = 0
    spin_unlock(&t.lock)
    if o != NULL:
        owner_close(s, o)
    return 0


cdef void unlock_all(Server *s, Owner *o) noexcept nogil:
    cdef Table *t = table_of(s, o.node)
    cdef flock fl
    memset(&fl, 0, sizeof(fl))
    fl.l_type = F_UNLCK
    fcntl(o.fd, F_OFD_SETLK, &fl)
    spin_lock(&t.lock)
    set_range(s, o, 1, 0)
    spin_unlock(&t.lock)


cdef void drop(Server *s, uint32_t node, uint64_t owner, uint32_t fh, bint by_handle) noexcept nogil:
    cdef Table *t = table_of(s, node)
    cdef Inode *i = inode_at(&s.inodes, node)
    cdef Owner **at
    cdef Owner *o
    cdef Owner *dead = NULL
    cdef Owner *kept = NULL
    cdef bint more = False
    if i == NULL or not i.locked:
        return
    spin_lock(&t.lock)
    at = &t.first
    while at[0] != NULL:
        o = at[0]
        if o.node != node or (o.fh != fh if by_handle else o.owner != owner):
            more = more or o.node == node
            at = &o.next
        elif o.users and not by_handle:
            # One of the process's threads waits for a lock, which will be held when it comes.
            o.users += 1
            kept = o
            more = True
            at = &o.next
        else:
            at[0] = o.next
            o.gone = 1
            if o.users == 0:
                o.next = dead
                dead = o
    if not more:
        i.locked = 0
    spin_unlock(&t.lock)
    if kept != NULL:
        unlock_all(s, kept)
        owner_put(s, kept)
    while dead != NULL:
        o = dead
        dead = o.next
        owner_close(s, o)
    changed(s)


cdef void locks_drop_owner(Server *s, uint32_t node, uint64_t owner) noexcept nogil:
    """close(2) by an owner gives up all its record locks on the inode (FLUSH)."""
    drop(s, node, owner, 0, False)


cdef void locks_drop_file(Server *s, uint32_t node, uint32_t fh) noexcept nogil:
    """The last close of an open file (RELEASE)."""
    drop(s, node, 0, fh, True)


# -------------------------------------------------- flocks that will end
#
# A flock(2) ends with the last close of its open file. close(2) and exit(2) wait for the FLUSH, but the
# RELEASE is sent and not waited for: who has seen a process end may ask for its lock before that.

cdef void flock_leaving(Server *s, uint32_t node, uint32_t fh) noexcept nogil:
    """An fd of an open file with a flock(2) was closed (FLUSH): it may have been the last."""
    cdef Table *t = table_of(s, node)
    cdef Leaving *g
    cdef Leaving *fresh = <Leaving *> calloc(1, sizeof(Leaving))
    if fresh == NULL:
        return
    fresh.node = node
    fresh.fh = fh
    spin_lock(&t.lock)
    g = t.leaving
    while g != NULL and (g.node != node or g.fh != fh):
        g = g.next
    if g == NULL:
        g = fresh
        g.next = t.leaving
        t.leaving = g
        fresh = NULL
    g.when = now_ns()
    spin_unlock(&t.lock)
    free(fresh)


cdef void flock_left(Server *s, uint32_t node, uint32_t fh) noexcept nogil:
    """It is closed."""
    cdef Table *t = table_of(s, node)
    cdef Leaving **at = &t.leaving
    cdef Leaving *g = NULL
    spin_lock(&t.lock)
    while at[0] != NULL and (at[0].node != node or at[0].fh != fh):
        at = &at[0].next
    if at[0] != NULL:
        g = at[0]
        at[0] = g.next
    spin_unlock(&t.lock)
    free(g)


cdef bint flock_may_leave(Server *s, uint32_t node) noexcept nogil:
    """Has a holder on that inode been closing of late?"""
    cdef Table *t = table_of(s, node)
    cdef uint64_t since = now_ns() - LEAVING_NS
    cdef Leaving *g
    spin_lock(&t.lock)
    g = t.leaving
    while g != NULL and (g.node != node or g.when < since):
        g = g.next
    spin_unlock(&t.lock)
    return g != NULL


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


cdef bint holder(Server *s, uint32_t node, flock *fl, uint64_t asker, uint64_t *owner, uint32_t *pid,
                 unsigned *probes) noexcept nogil:
    """Who holds a lock which the asker has found in the way? False: nobody of the mount, or it is not to be told.

    The source knows the holder as an open file description of ours: it is the one for which
    that very lock is not in the way. If several hold the same range for reading, each has another's in
    its way; then it is the one besides the asker, if there is but one. No more is asked than `probes`.
    The asker is never in its own way: if the lock has just been given up, it would look so.
    """
    cdef Table *t = table_of(s, node)
    cdef Owner *o
    cdef uint64_t until = now_ns() + PROBING_NS
    cdef flock probe
    cdef int64_t end = TO_THE_END if fl.l_len == 0 else fl.l_start + fl.l_len - 1
    cdef unsigned likely = 0
    cdef bint found = False
    if is_remote(s, node):
        return False  # asking would wait
    spin_lock(&t.lock)  # F_OFD_GETLK of a local file does not wait
    o = t.first
    while o != NULL and not found and probes[0] and now_ns() < until:  # each goes along all locks of the file
        if o.node == node and o.owner != asker and o.low <= fl.l_start and o.high >= end:
            probes[0] -= 1
            probe = fl[0]
            probe.l_type = F_WRLCK
            probe.l_pid = 0
            if fcntl(o.fd, F_OFD_GETLK, &probe) == 0 and (
                    probe.l_type == F_UNLCK or probe.l_start != fl.l_start or probe.l_len != fl.l_len):
                found = True
                owner[0] = o.owner
                pid[0] = o.pid
            elif fl.l_type == F_RDLCK:
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
    cdef OpenFile *file
    cdef Owner *o
    cdef flock fl
    cdef uint64_t owner
    cdef uint32_t pid = 0
    cdef unsigned probes = PROBES
    cdef int fd = fh_fd(r, arg.fh, OF_FILE, &file)
    cdef int res
    if fd < 0:
        return fd
    if not to_flock(&arg.lk, &fl):
        return -EINVAL
    o = owner_find(s, file.node, arg.owner)
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
            holder(s, file.node, &fl, arg.owner, &owner, &pid, &probes)
    out.pid = pid
    return sizeof(fuse_file_lock)


cdef int flock_now(Request *r, OpenFile *file, int fd, bint wait) noexcept nogil:
    cdef uint32_t type = (<fuse_lk_in *> r.op_in).lk.type
    cdef int kind = LOCK_UN if type == F_UNLCK else LOCK_SH if type == F_RDLCK else LOCK_EX
    if not wait:
        kind |= LOCK_NB
    while c_flock(fd, kind) < 0:
        if errno != EINTR or r.interrupted:
            return lock_errno()
    file.flocked = type != F_UNLCK
    return 0


cdef int lock_now(Request *r, bint wait) noexcept nogil:
    """Take, change or give up the lock of a SETLK or SETLKW. 0, -errno or LEASED."""
    cdef fuse_lk_in *arg = <fuse_lk_in *> r.op_in
    cdef Server *s = server_of(r)
    cdef OpenFile *file
    cdef Owner *o = NULL
    cdef flock fl
    cdef int fd = fh_fd(r, arg.fh, OF_FILE, &file)
    cdef int res
    if fd < 0:
        return fd
    if arg.lk_flags & FUSE_LK_FLOCK:
        return flock_now(r, file, fd, wait)
    if not to_flock(&arg.lk, &fl):
        return -EINVAL
    if arg.lk.type == F_UNLCK:
        o = owner_find(s, file.node, arg.owner)
        if o == NULL:
            return 0
    else:
        res = owner_open(r, file, arg, &o)
        if res < 0:
            return res
    if wait:
        res = wait_for(r, s, o, &fl)
    else:
        res = lock_errno() if fcntl(o.fd, F_OFD_SETLK, &fl) < 0 else 0
    if res == 0:
        remember_range(s, o, &arg.lk)
        changed(s)
    owner_put(s, o)
    return res


cdef void remember_range(Server *s, Owner *o, fuse_file_lock *lk) noexcept nogil:
    cdef Table *t = table_of(s, o.node)
    cdef int64_t start = <int64_t> lk.start
    cdef int64_t end = TO_THE_END if lk.end >= TO_THE_END else <int64_t> lk.end
    spin_lock(&t.lock)
    if lk.type == F_UNLCK:
        if start <= o.low and end >= o.high:
            set_range(s, o, 1, 0)
    elif o.low > o.high:
        set_range(s, o, start, end)
    else:
        set_range(s, o, min(o.low, start), max(o.high, end))
    spin_unlock(&t.lock)


# ----------------------------------------------------- waits, deadlocks

cdef int wait_for(Request *r, Server *s, Owner *o, flock *fl) noexcept nogil:
    """Take a record lock when it is free. -EDEADLK if who has it waits, perhaps by others, for this owner."""
    cdef Wait w
    cdef Wait **at
    cdef unsigned probes = PROBES
    cdef int res
    memset(&w, 0, sizeof(w))
    w.r = r
    w.owner = o.owner
    w.node = o.node
    w.fl = fl[0]
    # Who waits last closes a cycle, so it is enough that each looks before it is itself in the list;
    # and again when something else comes in its way.
    spin_lock(&locks_of(s).waits_lock)
    if deadlock(s, &w, &probes):
        spin_unlock(&locks_of(s).waits_lock)
        return -EDEADLK
    w.next = locks_of(s).waits
    atomic_setp(<void **> &locks_of(s).waits, &w)
    spin_unlock(&locks_of(s).waits_lock)
    while True:
        res = -EINTR if r.interrupted else 0
        if res == 0 and fcntl(o.fd, F_OFD_SETLKW, fl) < 0:
            res = lock_errno()
        if res != -EINTR or r.interrupted:
            break
    spin_lock(&locks_of(s).waits_lock)
    at = &locks_of(s).waits
    while at[0] != &w:
        at = &at[0].next
    at[0] = w.next
    spin_unlock(&locks_of(s).waits_lock)
    return -EDEADLK if res == -EINTR and w.dead else res


cdef bint in_the_way(Server *s, Wait *w, uint64_t *owner, uint32_t *pid, unsigned *probes) noexcept nogil:
    """The owner of what is first in the way of a wait, if it is one of ours."""
    cdef Owner *o
    cdef flock fl = w.fl
    cdef int res
    if is_remote(s, w.node):
        return False
    o = owner_find(s, w.node, w.owner)
    if o == NULL:
        return False
    res = fcntl(o.fd, F_OFD_GETLK, &fl)
    owner_put(s, o)
    return res == 0 and fl.l_type != F_UNLCK and fl.l_pid <= 0 and holder(s, w.node, &fl, w.owner, owner, pid, probes)


cdef bint deadlock(Server *s, Wait *mine, unsigned *probes) noexcept nogil:
    """Does this wait close a cycle? As the kernel does, by one holder of what is in the way.

    The kernel looks at the locks of processes only, not at those of open file descriptions. Requests do not
    tell them apart; but if two owners are one process, one of them is an open file description.
    """
    cdef uint32_t pids[LONGEST_CYCLE]
    cdef Wait *w = mine
    cdef uint64_t owner
    cdef unsigned n, k
    mine.by = 0
    for n in range(LONGEST_CYCLE):
        if not in_the_way(s, w, &owner, &pids[n], probes):
            return False
        if w == mine:
            mine.by = owner
        for k in range(n):
            if pids[n] and pids[k] == pids[n]:
                return False
        if owner == mine.owner:
            return True
        w = locks_of(s).waits
        while w != NULL and w.owner != owner:
            w = w.next
        if w == NULL:
            return False
    return False


cdef inline void changed(Server *s) noexcept nogil:
    """Some record lock was given up, changed or taken: what is in the way of the waits may be another one now."""
    if atomic_getp(<void **> &locks_of(s).waits) != NULL:
        pool_chore(s.waiters, look_again)


cdef void look_again(Server *s) noexcept nogil:
    """Find the waits that close a cycle by what is in their way since others changed their locks.

    Who holds nothing is in nobody's way, and in no cycle.
    """
    cdef unsigned probes = PROBES
    cdef Wait *w
    cdef uint64_t owner, before
    cdef uint32_t pid
    spin_lock(&locks_of(s).waits_lock)
    w = locks_of(s).waits
    while w != NULL and probes:
        if not w.dead and atomic_get32(holders_of(s, w.owner)):
            probes -= 1
            before = w.by
            if not in_the_way(s, w, &owner, &pid, &probes):
                w.by = 0
            elif owner != before and deadlock(s, w, &probes):
                w.dead = True
                pool_interrupt_running(s.waiters, w.r)
        w = w.next
    spin_unlock(&locks_of(s).waits_lock)


# --------------------------------------------------------- SETLK, SETLKW

cdef int blocking_lock(Request *r) noexcept nogil:
    if r.interrupted:
        return -EINTR
    return lock_now(r, r.h.opcode == FUSE_SETLKW)


cdef int patient_flock(Request *r) noexcept nogil:
    """A flock(2) that does not wait, while a holder may be leaving."""
    cdef fuse_lk_in *arg = <fuse_lk_in *> r.op_in
    cdef Server *s = server_of(r)
    cdef OpenFile *file = file_at(s, arg.fh, OF_FILE)
    cdef unsigned _
    cdef int res = -EAGAIN
    cdef bint hope = file != NULL
    for _ in range(TRIES):
        if not hope or r.interrupted:
            break
        hope = flock_may_leave(s, file.node)
        res = lock_now(r, False)
        if res != -EAGAIN:
            break
        usleep(TRY_US)
    return res


cdef int op_setlk(Request *r) noexcept nogil:
    """SETLK and SETLKW. What can be had is had at once, on the queue's thread."""
    cdef fuse_lk_in *arg = <fuse_lk_in *> r.op_in
    cdef Server *s = server_of(r)
    cdef OpenFile *file = file_at(s, arg.fh, OF_FILE)
    cdef bint wait = r.h.opcode == FUSE_SETLKW and arg.lk.type != F_UNLCK
    cdef int res
    if file == NULL:
        return -EBADF
    if is_remote(s, file.node):
        if not wait:
            return later(r, blocking_lock)  # not behind those who wait
    else:
        res = lock_now(r, False)
        if res == -EAGAIN and not wait and arg.lk_flags & FUSE_LK_FLOCK and flock_may_leave(s, file.node):
            return PENDING if pool_submit(s.waiters, r, patient_flock) == PENDING else res
        if res != LEASED and (res != -EAGAIN or not wait):
            return res
    res = pool_submit(s.waiters, r, blocking_lock)
    return res if res != -EAGAIN else -ENOLCK
