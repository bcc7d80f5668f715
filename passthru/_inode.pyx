"""The inode table.

A known inode is held by its file handle (name_to_handle_at(2)) where source and
privileges allow; O_PATH fds are then a bounded cache. Elsewhere each inode keeps
its O_PATH fd open. Cost per operation does not depend on the number of inodes.

Lifetime: an inode lives while the kernel holds lookups (nlookup) or has it open (opens);
both change under the lock of its hash shard. `pins` keeps its fd open. The thread that
swaps pins from 0 to EVICTING owns fd and handle until it swaps back.
"""
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strdup

from passthru._abi cimport *
from passthru._arena cimport arena_alloc
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._libc cimport *
from passthru._mounts cimport mount_facts, mounts_below, mounts_each
from passthru._slab cimport *

cdef enum:
    NO_SLOT = 0xffffffff
    WALK = 8192            # inodes that a sweep looks at besides those in the cache


cdef inline uint64_t hash_key(unsigned fs, uint64_t ino) noexcept nogil:
    cdef uint64_t h = (ino ^ (<uint64_t> fs << 48)) * 0x9e3779b97f4a7c15u
    return h ^ (h >> 32)


cdef inline HashShard *shard_of(InodeTable *t, Inode *i) noexcept nogil:
    return &t.shards[hash_key(i.fs, i.ino) & (HASH_SHARDS - 1)]


cdef inline uint64_t stx_btime(statx *stx) noexcept nogil:
    if not stx.stx_mask & STATX_BTIME:
        return 0
    return <uint64_t> stx.stx_btime.tv_sec * 1000000000u + stx.stx_btime.tv_nsec


cdef int table_init(InodeTable *t, int root_fd, unsigned fd_cache, Slab *files, int mountinfo,
                    Arena *arena) noexcept nogil:
    """A table whose nodeid 1 is what `root_fd` (O_PATH) is, which it takes over. 0 or -errno.

    arena: what inodes and filesystems are kept in for a successor (table_adopt()), or NULL.

    That is a directory, a regular file, or a block device, which is then taken for a regular file.
    mountinfo: an fd of /proc/self/mountinfo, or -1; stays the caller's.
    """
    cdef statx stx
    cdef int r, fs
    cdef unsigned n
    cdef uint32_t flags
    cdef uint64_t number
    cdef void *rows
    cdef Inode *i
    cdef uint32_t node
    memset(t, 0, sizeof(InodeTable))
    t.files = files
    t.mountinfo = mountinfo
    r = slab_init_in(&t.slab, sizeof(Inode), arena)
    if r < 0:
        return r
    if arena != NULL:
        rows = arena_alloc(arena, MAX_FS * sizeof(Filesystem))
    else:
        rows = mmap(NULL, MAX_FS * sizeof(Filesystem), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if rows == MAP_FAILED or rows == NULL:
        return -ENOMEM
    t.fs = <Filesystem *> rows
    for n in range(HASH_SHARDS):
        t.shards[n].buckets = <uint32_t *> calloc(64, sizeof(uint32_t))
        if t.shards[n].buckets == NULL:
            return -ENOMEM
        t.shards[n].mask = 63
    t.fds.size = t.backings.size = fd_cache
    t.fds.nodes = <uint32_t *> calloc(fd_cache, sizeof(uint32_t))
    t.backings.nodes = <uint32_t *> calloc(fd_cache, sizeof(uint32_t))
    if t.fds.nodes == NULL or t.backings.nodes == NULL:
        return -ENOMEM
    if c_statx(root_fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &stx) < 0:
        return -errno
    number = stx.stx_mnt_id
    if c_statx(root_fd, "", AT_EMPTY_PATH, stx_mask(), &stx) < 0:
        return -errno
    t.unique = stx.stx_mask & STATX_MNT_ID_UNIQUE
    flags = mount_facts(mountinfo, root_fd, number, &stx)
    fs = fs_add(t, &stx, root_fd, number, flags)  # in use for good
    if fs < 0:
        return fs
    mounts_changed(t)
    node = inode_add(t, 0, fs, &stx, root_fd, NULL)
    if node != FUSE_ROOT_ID:
        return -ENOMEM
    i = inode_at(t, node)
    i.nlookup = <uint64_t> 1 << 62
    i.pins = 1  # its fd is never closed
    if stx.stx_mode & S_IFMT == S_IFBLK:
        i.type = S_IFREG >> 12
        # The filesystem is that of the node (devtmpfs); nor has the kernel devices for backing files.
        t.fs[fs].flags = (t.fs[fs].flags & ~<uint32_t> FS_MEMORY) | FS_NO_BACKING
    return 0


cdef inline void handle_free(Inode *i) noexcept nogil:
    """The bytes of its handle, if they lie elsewhere."""
    if i.handle_len > INLINE_HANDLE and i.handle_len != NO_HANDLE:
        free(i.handle.there)


cdef void table_destroy(InodeTable *t) noexcept nogil:
    """Close and free everything; no thread uses the table any more."""
    cdef uint64_t n
    cdef Inode *i
    for n in range(<uint64_t> t.slab.chunks << CHUNK_BITS):
        i = inode_at(t, n)
        if i == NULL:
            continue
        if t.forget != NULL:
            t.forget(t.server, i)
        if i.fd >= 0:
            close(i.fd)
        handle_free(i)
    for n in range(t.fs_count):
        if t.fs[n].live and t.fs[n].mount_fd >= 0:
            close(t.fs[n].mount_fd)
        free(t.fs[n].name)
    if t.fs != NULL and t.slab.arena == NULL:
        munmap(t.fs, MAX_FS * sizeof(Filesystem))
    for n in range(HASH_SHARDS):
        free(t.shards[n].buckets)
    free(t.fds.nodes)
    free(t.backings.nodes)
    slab_destroy(&t.slab)


# ------------------------------------------------------------ filesystems
#
# A row lives while an inode of it is known, or somebody is about to add one (`users`). While nobody works there
# its mount_fd is closed, so that it can be unmounted; the mount is then found again by its place, and
# recognised by its id.

cdef inline unsigned fs_bucket(uint64_t mnt_id, uint32_t dev_minor) noexcept nogil:
    return <unsigned> ((mnt_id * 0x9e3779b97f4a7c15u) >> 40 ^ dev_minor) & (FS_BUCKETS - 1)


cdef int fs_lookup(InodeTable *t, statx *stx) noexcept nogil:
    """The row of a filesystem, with one more user; -ENOENT. Under the lock."""
    cdef uint32_t n = t.fs_buckets[fs_bucket(stx.stx_mnt_id, stx.stx_dev_minor)]
    while n:
        if on_fs(&t.fs[n - 1], stx):
            atomic_add32(&t.fs[n - 1].users, 1)
            return n - 1
        n = t.fs[n - 1].next
    return -ENOENT


cdef int fs_get(InodeTable *t, statx *stx) noexcept nogil:
    """The row of the filesystem (device and mount) that an object lies on, or -ENOENT. To be given back by fs_put()."""
    cdef int n
    spin_lock(&t.fs_lock)
    n = fs_lookup(t, stx)
    spin_unlock(&t.fs_lock)
    return n


cdef int fs_covered(InodeTable *t, uint64_t mnt_id, unsigned fs, uint64_t ino) noexcept nogil:
    """fs_get() of what lies under the mount `mnt_id` in a directory."""
    cdef uint32_t n
    cdef int found = -ENOENT
    spin_lock(&t.fs_lock)
    for n in range(t.fs_count):
        if t.fs[n].live and t.fs[n].covers == mnt_id and t.fs[n].covers_fs == fs and t.fs[n].covers_in == ino:
            atomic_add32(&t.fs[n].users, 1)
            found = n
            break
    spin_unlock(&t.fs_lock)
    return found


cdef uint64_t salt_of(InodeTable *t, statx *stx) noexcept nogil:
    """What inode numbers of a filesystem below the source are changed by, so that no two files have the same.

    By the device number alone, not by the row: that may go while a program compares numbers. Mounts of one
    filesystem, the source's too, have the same: hard links keep one number.
    """
    cdef uint64_t h
    if t.fs[0].dev_minor == stx.stx_dev_minor and t.fs[0].dev_major == stx.stx_dev_major:
        return 0
    h = (<uint64_t> stx.stx_dev_major << 32 | stx.stx_dev_minor) * 0x9e3779b97f4a7c15u
    h = (h ^ (h >> 29)) * 0xbf58476d1ce4e5b9u
    return (h & ~<uint64_t> 0xffffffff) | <uint64_t> 1 << 32


cdef int fs_add(InodeTable *t, statx *stx, int fd, uint64_t number, uint32_t flags) noexcept nogil:
    """fs_get(), or a new row for the filesystem of the object `fd` (O_PATH). -errno if there are too many.

    number: of its mount in mountinfo(5); flags: FS_ ones. May wait for the filesystem.
    """
    cdef Filesystem *f
    cdef file_handle_max handle
    cdef unsigned k
    cdef uint64_t fsid = 0
    cdef int n = fs_get(t, stx)
    cdef int mount_fd = -1, probe
    if n >= 0:
        return n
    flags &= ~<uint32_t> FS_COHERENT
    if stx.stx_mode & S_IFMT == S_IFDIR and sys_name_to_handle_at(fd, &handle) == 0 and (
            t.slab.arena == NULL or handle.handle_bytes <= INLINE_HANDLE):
        mount_fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        probe = sys_open_by_handle_at(mount_fd, &handle, O_PATH | O_CLOEXEC) if mount_fd >= 0 else -1
        if probe >= 0:
            close(probe)
            flags |= FS_HANDLES
        elif mount_fd >= 0:
            close(mount_fd)
            mount_fd = -1
    if mount_fd >= 0 and t.watch != NULL:
        fsid = t.watch(t.watcher, mount_fd, stx, flags)  # before anything of it is told the kernel
        if fsid:
            flags |= FS_COHERENT
    spin_lock(&t.fs_lock)
    n = fs_lookup(t, stx)
    if n < 0:
        if t.fs_free:
            n = t.fs_free - 1
            t.fs_free = t.fs[n].next
        elif t.fs_count < MAX_FS:
            n = t.fs_count
            atomic_set32(&t.fs_count, n + 1)
    if n >= 0 and not t.fs[n].live:
        f = &t.fs[n]
        memset(f, 0, sizeof(Filesystem))
        f.salt = salt_of(t, stx) if n else 0
        f.mnt_id = stx.stx_mnt_id
        f.number = number
        f.dev_major = stx.stx_dev_major
        f.dev_minor = stx.stx_dev_minor
        f.flags = flags & ~t.enforced | (FS_NO_BACKING if flags & (FS_PSEUDO | FS_STACKED) else 0)
        f.mount_fd = mount_fd
        f.users = 1
        f.used = 1
        f.fsid = fsid
        f.live = True
        atomic_add32(&t.fs_changes, 1)
        k = fs_bucket(f.mnt_id, f.dev_minor)
        f.next = t.fs_buckets[k]
        t.fs_buckets[k] = n + 1
        if flags & FS_REMOTE:
            atomic_add32(&t.remote, 1)
        if not flags & FS_HANDLES:
            t.unhandled = 1
        mount_fd = -1
    spin_unlock(&t.fs_lock)
    if mount_fd >= 0:
        close(mount_fd)
    return n if n >= 0 else -ENFILE


cdef void fs_placed(InodeTable *t, unsigned fs, uint32_t above, const char *name) noexcept nogil:
    """Remember where a filesystem is mounted: in the directory `above`, of which the caller has an fd, as `name`.

    Only with mount ids that are never used again: by the place alone another mount could be taken for it.
    """
    cdef Filesystem *f = &t.fs[fs]
    cdef Inode *i = inode_at(t, above)
    cdef HashShard *sh
    cdef char *copy
    if not t.unique or f.name != NULL or i == NULL or t.slab.arena != NULL:  # names lie in this process's memory
        return
    copy = strdup(name)
    if copy == NULL:
        return
    sh = shard_of(t, i)
    spin_lock(&sh.lock)
    i.nlookup += 1
    spin_unlock(&sh.lock)
    spin_lock(&t.fs_lock)
    if f.name == NULL:
        f.above = above
        f.name = copy
        copy = NULL
    spin_unlock(&t.fs_lock)
    if copy != NULL:
        free(copy)
        inode_drop(t, above, 1, 0)


cdef void fs_put(InodeTable *t, unsigned fs) noexcept nogil:
    """One user of a row less; with the last it goes."""
    cdef Filesystem *f = &t.fs[fs]
    cdef uint32_t above = 0
    cdef uint32_t *at
    cdef char *name = NULL
    cdef int fd = -1
    if fs == 0:  # the source's own row stays
        atomic_sub32(&f.users, 1)
        return
    spin_lock(&t.fs_lock)
    ASSERT(f.live and f.users > 0)
    if atomic_sub32(&f.users, 1) == 1:
        at = &t.fs_buckets[fs_bucket(f.mnt_id, f.dev_minor)]
        while at[0] != fs + 1:
            at = &t.fs[at[0] - 1].next
        at[0] = f.next
        f.live = False
        atomic_add32(&t.fs_changes, 1)
        fd = f.mount_fd
        name = f.name
        above = f.above
        f.name = NULL
        f.covers = 0
        f.next = t.fs_free
        t.fs_free = fs + 1
        if f.flags & FS_REMOTE:
            atomic_sub32(&t.remote, 1)
    spin_unlock(&t.fs_lock)
    if fd >= 0:
        close(fd)
    free(name)
    if above:
        inode_drop(t, above, 1, 0)


cdef int fs_fd(InodeTable *t, unsigned fs) noexcept nogil:
    """An fd for open_by_handle_at(2) in the filesystem of a known inode, until fs_unpin(); or -errno, not pinned."""
    cdef Filesystem *f = &t.fs[fs]
    cdef Inode *i
    cdef statx stx
    cdef int above, at, fd = -ESTALE
    f.used = 1
    if not atomic_add32(&f.pins, 1) & EVICTING and f.mount_fd >= 0:
        return f.mount_fd
    while atomic_get32(&f.pins) & EVICTING:
        sched_yield()
    if atomic_geti(&f.mount_fd) >= 0:
        return f.mount_fd
    i = inode_at(t, f.above) if f.above else NULL
    above = inode_fd(t, i, f.above) if i != NULL else -ESTALE
    if above >= 0:
        at = openat(above, f.name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
        if at >= 0:
            if c_statx(at, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, stx_mask(), &stx) == 0 and on_fs(f, &stx):
                fd = openat(at, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
                fd = -errno if fd < 0 else fd
            close(at)
        inode_unpin(i)
    if fd < 0:
        fs_unpin(t, fs)
        return fd
    if not atomic_casi(&f.mount_fd, -1, fd):
        close(fd)
    return f.mount_fd


cdef void note_flags(void *table, uint64_t number, uint32_t flags) noexcept nogil:
    cdef InodeTable *t = <InodeTable *> table
    cdef uint32_t n
    for n in range(atomic_get32(&t.fs_count)):
        if t.fs[n].live and t.fs[n].number == number:
            t.fs[n].flags = (t.fs[n].flags & ~<uint32_t> FS_MOUNT_FLAGS) | (flags & FS_MOUNT_FLAGS & ~t.enforced)


cdef void mounts_changed(InodeTable *t) noexcept nogil:
    """Look at the mount table again: what is mounted how, and whether anything is below the source."""
    cdef char path[FD_PATH]
    cdef Inode *root = inode_at(t, FUSE_ROOT_ID)
    t.mounts = True
    mounts_each(t.mountinfo, note_flags, t)
    if root != NULL:
        fd_path(path, root.fd)
        t.mounts = mounts_below(t.mountinfo, path)


# --------------------------------------------------------------- fd cache

cdef void cache_remove(InodeTable *t, Inode *i) noexcept nogil:
    if i.slot:
        spin_lock(&t.fds.lock)
        t.fds.nodes[i.slot - 1] = 0
        i.slot = 0
        spin_unlock(&t.fds.lock)


cdef Inode *cache_victim(InodeTable *t, uint32_t *at) noexcept nogil:
    """Clock sweep, under the cache's lock: claim an idle inode to evict. NULL: all are in use.

    `at` is a slot that is free now; the victim's, if there is one.
    """
    cdef FdCache *c = &t.fds
    cdef Inode *i
    cdef uint32_t steps, n
    for steps in range(2 * c.used):
        n = c.hand
        c.hand = n + 1 if n + 1 < c.used else 0
        at[0] = n
        if not c.nodes[n]:
            return NULL
        i = <Inode *> slab_at(&t.slab, c.nodes[n])
        if i.used and steps < c.used:
            i.used = 0
            continue
        if atomic_cas32(&i.pins, 0, EVICTING):
            i.slot = 0
            c.nodes[n] = 0
            return i
    at[0] = NO_SLOT
    return NULL


cdef void evict(InodeTable *t, Inode *i) noexcept nogil:
    """Close the fd of a claimed inode, for its handle."""
    cdef file_handle_max handle
    cdef int fd = i.fd
    if i.handle_len == 0:
        if sys_name_to_handle_at(fd, &handle) < 0 or not handle_store(i, &handle, t.slab.arena != NULL):
            i.handle_len = NO_HANDLE
    if i.handle_len != NO_HANDLE:
        atomic_seti(&i.fd, -1)
        close(fd)
    atomic_sub32(&i.pins, EVICTING)


cdef void cache_insert(InodeTable *t, Inode *i, uint32_t node) noexcept nogil:
    """Account for an inode's open fd; close that of one not used for a while if there are too many."""
    cdef FdCache *c = &t.fds
    cdef Inode *victim = NULL
    cdef uint32_t n
    if not t.fs[i.fs].flags & FS_HANDLES or i.handle_len == NO_HANDLE:
        return
    spin_lock(&c.lock)
    if c.used < c.size:
        n = c.used
        c.used += 1
    else:
        victim = cache_victim(t, &n)
    if n != NO_SLOT:  # else it stays open until it is forgotten
        c.nodes[n] = node
        i.slot = n + 1
    spin_unlock(&c.lock)
    if victim != NULL:
        evict(t, victim)


cdef bint removed(int fd) noexcept nogil:
    """Has an object no name any more?"""
    cdef statx stx
    return c_statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &stx) == 0 and stx.stx_nlink == 0


cdef void cache_trim(FdCache *c) noexcept nogil:
    """After a sweep: slots at the end that are empty are not looked at again."""
    spin_lock(&c.lock)
    while c.used and not c.nodes[c.used - 1]:
        c.used -= 1
    if c.hand >= c.used:
        c.hand = 0
    spin_unlock(&c.lock)


cdef void sweep_fds(InodeTable *t) noexcept nogil:
    """Close cached fds that were not used since the last sweep: those of removed files, which keep their space,
    and all below submounts, which they keep mounted."""
    cdef FdCache *c = &t.fds
    cdef Inode *i
    cdef uint32_t n
    for n in range(c.used):
        spin_lock(&c.lock)
        i = <Inode *> slab_at(&t.slab, c.nodes[n]) if n < c.used and c.nodes[n] else NULL
        if i != NULL and (i.used or not atomic_cas32(&i.pins, 0, EVICTING)):
            i.used = 0
            i = NULL
        spin_unlock(&c.lock)
        if i == NULL:
            continue
        if i.fs == 0 and not t.fs[0].flags & FS_REMOTE and not removed(i.fd):
            atomic_sub32(&i.pins, EVICTING)
            continue
        spin_lock(&c.lock)
        c.nodes[n] = 0
        i.slot = 0
        spin_unlock(&c.lock)
        evict(t, i)
    cache_trim(c)


cdef inline bint held(InodeTable *t, Inode *i) noexcept nogil:
    """Is it a file without an open file, whose fd stays open since nothing else leads to it?"""
    return i.fd >= 0 and i.type != S_IFDIR >> 12 and not i.opens and not t.fs[i.fs].flags & FS_REMOTE and not (
        t.fs[i.fs].flags & FS_HANDLES and i.handle_len != NO_HANDLE)


cdef void sweep_held(InodeTable *t) noexcept nogil:
    """Where inodes have no handles their fds stay open: close those of removed files all the same, some at a time."""
    cdef uint64_t end = <uint64_t> t.slab.chunks << CHUNK_BITS
    cdef HashShard *sh
    cdef Inode *i
    cdef unsigned _
    cdef int fd
    for _ in range(WALK):
        t.walked += 1
        if t.walked >= end:
            t.walked = 0
            break
        i = inode_at(t, t.walked)
        if i == NULL or not held(t, i):
            continue
        sh = shard_of(t, i)
        spin_lock(&sh.lock)  # who frees an inode takes it out of the hash first
        # By now the slot may be another inode's, which may be known by a handle, or be of another shard.
        if not i.live or not i.hashed or shard_of(t, i) != sh or not held(t, i) or \
                not atomic_cas32(&i.pins, 0, EVICTING):
            i = NULL
        spin_unlock(&sh.lock)
        if i == NULL:
            continue
        if removed(i.fd):
            handle_free(i)
            i.handle_len = NO_HANDLE
            fd = i.fd
            atomic_seti(&i.fd, -1)  # first: its number may be another one's in a moment
            close(fd)
        atomic_sub32(&i.pins, EVICTING)


cdef void table_sweep(InodeTable *t) noexcept nogil:
    """Let go of what has not been used since the last sweep. By one thread, which may wait for no filesystem here."""
    cdef Filesystem *f
    cdef uint32_t n
    cdef int fd
    sweep_fds(t)
    if t.unhandled:
        sweep_held(t)
    for n in range(1, atomic_get32(&t.fs_count)):
        f = &t.fs[n]
        fd = -1
        spin_lock(&t.fs_lock)  # or the row might go meanwhile
        if f.used or not f.live or f.name == NULL or f.mount_fd < 0:
            f.used = 0
        elif atomic_cas32(&f.pins, 0, EVICTING):
            fd = f.mount_fd
            atomic_seti(&f.mount_fd, -1)
            atomic_sub32(&f.pins, EVICTING)
        spin_unlock(&t.fs_lock)
        if fd >= 0:
            close(fd)


cdef bint fds_short(InodeTable *t, int error) noexcept nogil:
    """After an open(2) that failed with `error`: is it worth another try, some cached fds being closed now?"""
    cdef Inode *victim
    cdef uint32_t n, freed = 0
    if error != EMFILE and error != ENFILE:
        return False
    while freed < 64:
        spin_lock(&t.fds.lock)
        victim = cache_victim(t, &n)
        spin_unlock(&t.fds.lock)
        if victim == NULL:
            if n == NO_SLOT or t.fds.used == 0:
                break
            freed += 1  # an empty slot: keep the sweep bounded
            continue
        evict(t, victim)
        freed += 1
    return freed > 0


cdef bint handle_store(Inode *i, file_handle_max *handle, bint in_arena) noexcept nogil:
    """in_arena: a successor would not have what lies elsewhere."""
    cdef unsigned char *to = &i.handle.here[0]
    if handle.handle_bytes > INLINE_HANDLE:
        if in_arena:
            return False
        to = <unsigned char *> malloc(handle.handle_bytes)
        if to == NULL:
            return False
        i.handle.there = to
    memcpy(to, handle.f_handle, handle.handle_bytes)
    i.handle_type = handle.handle_type
    i.handle_len = <uint8_t> handle.handle_bytes
    return True


cdef inline unsigned char *handle_bytes(Inode *i) noexcept nogil:
    return &i.handle.here[0] if i.handle_len <= INLINE_HANDLE else i.handle.there


cdef int inode_reopen(InodeTable *t, Inode *i, uint32_t node) noexcept nogil:
    """inode_fd()'s slow path; the caller has pinned. The fd, or -errno and no longer pinned."""
    cdef file_handle_max handle
    cdef unsigned attempts = 0
    cdef int mount_fd, fd = -ESTALE
    while atomic_get32(&i.pins) & EVICTING:
        sched_yield()
    if atomic_geti(&i.fd) >= 0:
        return i.fd
    if i.handle_len and i.handle_len != NO_HANDLE:
        handle.handle_bytes = i.handle_len
        handle.handle_type = i.handle_type
        memcpy(handle.f_handle, handle_bytes(i), i.handle_len)
        mount_fd = fs_fd(t, i.fs)
        fd = mount_fd
        while mount_fd >= 0:
            fd = sys_open_by_handle_at(mount_fd, &handle, O_PATH | O_NOFOLLOW | O_CLOEXEC)
            attempts += 1
            # ENOMEM: the number is just being given to a new inode (ext4 over iget_locked()); that
            # will be ESTALE in a moment.
            if fd >= 0 or attempts > 20 or not (fd == -ENOMEM or fds_short(t, -fd)):
                break
            sched_yield()
        if mount_fd >= 0:
            fs_unpin(t, i.fs)
    if fd == -ESTALE and i.opens:
        fd = reopen_unlinked(t, i, node)
    if fd < 0:
        inode_unpin(i)
        return fd
    if atomic_casi(&i.fd, -1, fd):
        i.used = 1
        cache_insert(t, i, node)
        return fd
    close(fd)
    return i.fd


cdef int reopen_unlinked(InodeTable *t, Inode *i, uint32_t node) noexcept nogil:
    """An O_PATH fd of an unlinked inode, got from an open file of it. Rare, so linear.

    A file may be closed and its fd's number reused meanwhile: what was opened is checked.
    """
    cdef char path[FD_PATH]
    cdef uint64_t n
    cdef OpenFile *file
    cdef statx stx
    cdef int fd
    for n in range(<uint64_t> t.files.chunks << CHUNK_BITS):
        file = <OpenFile *> slab_at(t.files, n)
        if file != NULL and file.kind != OF_FREE and file.node == node and file.fd >= 0:
            fd_path(path, file.fd)
            fd = open(path, O_PATH | O_CLOEXEC)
            if fd < 0:
                continue
            if c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), &stx) == 0 and \
                    stx.stx_ino == i.ino and stx_btime(&stx) == i.btime and \
                    stx.stx_mode >> 12 == i.type and on_fs(&t.fs[i.fs], &stx):
                return fd
            close(fd)
    return -ESTALE


# ------------------------------------------------------------- hash table

cdef bint hash_grow(InodeTable *t, HashShard *sh) noexcept nogil:
    cdef uint32_t size = (sh.mask + 1) * 2
    cdef uint32_t *to = <uint32_t *> calloc(size, sizeof(uint32_t))
    cdef uint32_t b, node, follow, at
    cdef Inode *i
    if to == NULL:
        return False
    for b in range(sh.mask + 1):
        node = sh.buckets[b]
        while node:
            i = <Inode *> slab_at(&t.slab, node)
            follow = i.next
            at = <uint32_t> (hash_key(i.fs, i.ino) >> 6) & (size - 1)
            i.next = to[at]
            to[at] = node
            node = follow
    free(sh.buckets)
    sh.buckets = to
    sh.mask = size - 1
    return True


cdef void hash_remove(InodeTable *t, HashShard *sh, Inode *i, uint32_t node) noexcept nogil:
    cdef uint32_t *at = &sh.buckets[<uint32_t> (hash_key(i.fs, i.ino) >> 6) & sh.mask]
    while at[0] != node:
        at = &(<Inode *> slab_at(&t.slab, at[0])).next
    at[0] = i.next
    i.hashed = 0
    sh.count -= 1


cdef uint32_t hash_match(InodeTable *t, HashShard *sh, uint64_t key, unsigned fs, statx *stx,
                         file_handle_max *handle) noexcept nogil:
    """The inode that `stx` was taken from, 0, or UNSURE. Called under the shard's lock.

    (filesystem, ino, btime) does only while we hold an fd of the inode. Else the source may
    have reused the number, within a tick of its clock, and the handle tells. UNSURE: ask
    again with the handle, or a moment later. What is found to be gone leaves the hash.
    """
    cdef uint32_t node = sh.buckets[<uint32_t> (key >> 6) & sh.mask]
    cdef uint32_t follow
    cdef uint64_t btime = stx_btime(stx)
    cdef Inode *i
    while node:
        i = <Inode *> slab_at(&t.slab, node)
        follow = i.next
        if i.ino == stx.stx_ino and i.fs == fs:
            if i.btime != btime or i.type != (stx.stx_mode >> 12):
                hash_remove(t, sh, i, node)
            elif atomic_get32(&i.pins) & EVICTING:
                return UNSURE
            elif atomic_geti(&i.fd) >= 0:
                return node
            elif handle == NULL:
                return UNSURE
            elif i.handle_len == handle.handle_bytes and i.handle_type == handle.handle_type and \
                    memcmp(handle_bytes(i), handle.f_handle, i.handle_len) == 0:
                return node
            else:
                hash_remove(t, sh, i, node)
        node = follow
    return 0


cdef uint32_t inode_find(InodeTable *t, unsigned fs, statx *stx, file_handle_max *handle) noexcept nogil:
    """The nodeid of a known inode, with its nlookup raised; 0: not known; UNSURE: not without its handle."""
    cdef uint64_t key = hash_key(fs, stx.stx_ino)
    cdef HashShard *sh = &t.shards[key & (HASH_SHARDS - 1)]
    cdef uint32_t node
    while True:
        spin_lock(&sh.lock)
        node = hash_match(t, sh, key, fs, stx, handle)
        if node and node != UNSURE:
            (<Inode *> slab_at(&t.slab, node)).nlookup += 1
        spin_unlock(&sh.lock)
        if node != UNSURE or handle == NULL:
            return node
        sched_yield()  # its fd is just being closed


cdef uint32_t hash_known(InodeTable *t, HashShard *sh, uint64_t key, unsigned fs, statx *stx,
                         file_handle_max *fh) noexcept nogil:
    """hash_match() of what is there for sure: nothing leaves the hash by it. Called under the shard's lock."""
    cdef uint32_t node = sh.buckets[<uint32_t> (key >> 6) & sh.mask]
    cdef Inode *i
    while node:
        i = <Inode *> slab_at(&t.slab, node)
        if i.ino == stx.stx_ino and i.fs == fs and i.btime == stx_btime(stx) and i.type == stx.stx_mode >> 12:
            if atomic_get32(&i.pins) & EVICTING:
                return UNSURE
            if atomic_geti(&i.fd) >= 0 or (
                    i.handle_len == fh.handle_bytes and i.handle_type == fh.handle_type and
                    memcmp(handle_bytes(i), fh.f_handle, i.handle_len) == 0):
                return node
        node = i.next
    return 0


cdef int64_t inode_by_handle(InodeTable *t, unsigned fs, file_handle_max *fh) noexcept nogil:
    """The nodeid of the inode with that file handle in the filesystem of row `fs`; 0: it is not known; or -errno.

    No lookup is counted: as soon as this returns the inode may be forgotten, and the nodeid stand for another one. So it
    is for what does no harm to the wrong inode. -ESTALE: the object is gone, or not of that filesystem. The row must
    be the caller's, as by fs_get(). The filesystem is asked, and may be waited for.
    """
    cdef HashShard *sh
    cdef uint64_t key
    cdef uint32_t node = UNSURE
    cdef statx stx
    cdef int res
    cdef int fd = fs_fd(t, fs)
    if fd < 0:
        return fd
    res = sys_open_by_handle_at(fd, fh, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    fs_unpin(t, fs)
    if res < 0:
        return res
    fd = res
    res = -errno if c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), &stx) < 0 else 0
    close(fd)
    if res < 0:
        return res
    key = hash_key(fs, stx.stx_ino)
    sh = &t.shards[key & (HASH_SHARDS - 1)]
    while node == UNSURE:
        spin_lock(&sh.lock)
        node = hash_known(t, sh, key, fs, &stx, fh)
        spin_unlock(&sh.lock)
        if node == UNSURE:
            sched_yield()  # its fd is just being closed
    return node


cdef uint32_t inode_numbered(InodeTable *t, unsigned fs, uint64_t ino) noexcept nogil:
    """The nodeid of what has an inode number or had it last; 0: not known.

    As with inode_by_handle() no lookup is counted. The filesystem is not asked.
    """
    cdef uint64_t key = hash_key(fs, ino)
    cdef HashShard *sh = &t.shards[key & (HASH_SHARDS - 1)]
    cdef Inode *i
    cdef uint32_t node
    spin_lock(&sh.lock)
    node = sh.buckets[<uint32_t> (key >> 6) & sh.mask]
    while node:
        i = <Inode *> slab_at(&t.slab, node)
        if i.ino == ino and i.fs == fs:
            break
        node = i.next
    spin_unlock(&sh.lock)
    return node


cdef void inode_lend(InodeTable *t, Inode *i, uint32_t node, int fd) noexcept nogil:
    """Give a known inode, which the caller has a lookup of, an O_PATH fd that it may not have.

    Without it what is removed right after this look-up would be gone for the request that follows, whose caller has
    looked twice by then, and gets ESTALE.
    """
    if not atomic_add32(&i.pins, 1) & EVICTING and atomic_casi(&i.fd, -1, fd):
        i.used = 1
        cache_insert(t, i, node)
    else:
        close(fd)
    inode_unpin(i)


cdef uint32_t inode_add(InodeTable *t, unsigned shard, unsigned fs, statx *stx, int fd,
                        file_handle_max *handle) noexcept nogil:
    """The nodeid of an inode, known or new, with its nlookup raised; 0: out of memory.

    fd: an O_PATH fd of it, taken over in every case, or -1 and `handle` its handle. fs: its row, of which the caller
    is a user, or that of another inode which the caller has hold of.
    """
    cdef uint64_t key = hash_key(fs, stx.stx_ino)
    cdef HashShard *sh = &t.shards[key & (HASH_SHARDS - 1)]
    cdef uint32_t node, b
    cdef uint32_t fresh = slab_alloc(&t.slab, shard)
    cdef file_handle_max own
    cdef Inode *i
    if not fresh:
        if fd >= 0:
            close(fd)
        return 0
    i = <Inode *> slab_at(&t.slab, fresh)
    i.ino = stx.stx_ino
    i.btime = stx_btime(stx)
    i.nlookup = 1
    i.fd = fd
    i.fs = <uint16_t> fs
    i.type = <uint8_t> (stx.stx_mode >> 12)
    i.used = 1
    i.generation = atomic_add32(&t.generation, 1)
    if handle != NULL and fd < 0 and not handle_store(i, handle, t.slab.arena != NULL):
        slab_free(&t.slab, fresh)
        return 0
    while True:
        spin_lock(&sh.lock)
        node = hash_match(t, sh, key, fs, stx, handle)
        if node != UNSURE:
            break
        spin_unlock(&sh.lock)
        if handle == NULL:
            if sys_name_to_handle_at(fd, &own) < 0:
                memset(&own, 0, sizeof(own))  # cannot be, as the other has one: no match
            handle = &own
        sched_yield()
    if node:
        (<Inode *> slab_at(&t.slab, node)).nlookup += 1
    else:
        if sh.count > sh.mask:
            hash_grow(t, sh)  # without memory the chains grow instead
        b = <uint32_t> (key >> 6) & sh.mask
        i.next = sh.buckets[b]
        sh.buckets[b] = fresh
        i.hashed = 1
        atomic_fence()  # a successor finds it whole, or not at all
        i.live = 1
        sh.count += 1
        atomic_add32(&t.fs[fs].users, 1)  # under no lock: the caller is one
        if fd >= 0:
            atomic_add32(&i.pins, 1)  # not to be evicted before it is in the cache
    spin_unlock(&sh.lock)
    if node:
        handle_free(i)
        slab_free(&t.slab, fresh)
        if fd >= 0:
            inode_lend(t, <Inode *> slab_at(&t.slab, node), node, fd)
        return node
    if fd >= 0:
        cache_insert(t, i, fresh)
        inode_unpin(i)
    return fresh


cdef bint inode_again(InodeTable *t, uint32_t node, uint64_t ino) noexcept nogil:
    """Count one more lookup of an inode that is known, whether it still exists or not. False: it is not known."""
    cdef Inode *i = inode_at(t, node)
    cdef HashShard *sh
    cdef bint known
    if i == NULL:
        return False
    sh = shard_of(t, i)
    spin_lock(&sh.lock)
    known = i.live and i.hashed and i.ino == ino and i.nlookup != 0 and shard_of(t, i) == sh  # it may be another by now
    if known:
        i.nlookup += 1
    spin_unlock(&sh.lock)
    return known


cdef void inode_forget(InodeTable *t, uint64_t nodeid, uint64_t n) noexcept nogil:
    """The kernel drops `n` lookups of a nodeid (FORGET). One that is no slot's number is nobody's here."""
    if nodeid >> 32:
        return
    inode_drop(t, <uint32_t> nodeid, n, 0)


cdef void inode_drop(InodeTable *t, uint32_t node, uint64_t lookups, uint32_t opens) noexcept nogil:
    """Give lookups and opens back; free the inode with the last."""
    cdef Inode *i = inode_at(t, node)
    cdef HashShard *sh
    cdef unsigned fs
    if i == NULL or node == FUSE_ROOT_ID and not opens:
        return
    sh = shard_of(t, i)
    spin_lock(&sh.lock)
    ASSERT(i.opens >= opens)
    i.nlookup -= lookups if lookups < i.nlookup else i.nlookup
    i.opens -= opens
    if i.nlookup or i.opens:
        spin_unlock(&sh.lock)
        return
    if i.hashed:
        hash_remove(t, sh, i, node)  # nobody finds it any more: it is ours alone to free
    spin_unlock(&sh.lock)
    while True:
        if atomic_cas32(&i.pins, 0, EVICTING):
            i.live = 0
            cache_remove(t, i)
            if t.forget != NULL:
                t.forget(t.server, i)
            if i.fd >= 0:
                close(i.fd)
            handle_free(i)
            fs = i.fs
            slab_free(&t.slab, node)
            fs_put(t, fs)
            return
        # An evictor has it for two system calls; an operation for the length of one. The kernel
        # forgets no inode that a request names, so the latter is a RELEASE at the most.
        sched_yield()


# ------------------------------------------------------------- taking over

cdef bint inode_in_use(void *item) noexcept nogil:
    return (<Inode *> item).live


cdef bint fd_of(InodeTable *t, Inode *i) noexcept nogil:
    """Is its fd still one of that inode? A number that was just being closed may be anything's."""
    cdef statx stx
    return c_statx(i.fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, stx_mask(), &stx) == 0 and stx.stx_ino == i.ino and \
        stx_btime(&stx) == i.btime and on_fs(&t.fs[i.fs], &stx)


cdef void table_reset(InodeTable *t) noexcept nogil:
    """The first part of taking over: nothing is counted of any inode, until files_adopt() has."""
    cdef uint64_t n
    cdef Inode *i
    slab_adopt(&t.slab, inode_in_use)
    for n in range(<uint64_t> t.slab.chunks << CHUNK_BITS):
        i = inode_at(t, n)
        if i == NULL:
            continue
        if i.pins & EVICTING and i.fd >= 0:
            i.handle_len = 0  # perhaps half stored
        i.opens = i.pins = 0
        i.direct = 0


cdef void adopt_inode(InodeTable *t, Inode *i, uint32_t node) noexcept nogil:
    """Put an inode in order of which only the slot is to be trusted. Its opens have been counted."""
    if node == FUSE_ROOT_ID:
        i.pins += 1
        i.nlookup = <uint64_t> 1 << 62
    elif not i.nlookup and not i.opens:  # it was just being freed
        i.live = 0
    i.slot = i.backing_slot = 0
    i.changing = 0
    i.locked = 0
    if not i.opens:
        i.passthrough = i.reading = 0
    if i.live and i.fd >= 0 and not fd_of(t, i):
        i.fd = -1
    if not i.live:
        i.fd = -1  # who closes what nobody has any more closes it
        if t.forget != NULL:
            t.forget(t.server, i)


cdef void table_adopt(InodeTable *t) noexcept nogil:
    """Take an arena's table over from a process that has died, as it left it: after table_reset() and files_adopt().

    Nobody else uses the table. Slots say what is so; hash, caches, counts and locks are made anew. Of inodes `opens`, `pins`
    and `direct` are what files_adopt() has counted. Fds that no slot has are left to the caller to close.
    """
    cdef uint64_t n, key
    cdef uint32_t b, last = 0, most = 0
    cdef HashShard *sh
    cdef Filesystem *f
    cdef Inode *i
    for n in range(HASH_SHARDS):
        sh = &t.shards[n]
        sh.lock = sh.count = 0
        memset(sh.buckets, 0, (sh.mask + 1) * sizeof(uint32_t))
    t.fds.lock = t.fds.used = t.fds.hand = 0
    t.backings.lock = t.backings.used = t.backings.hand = 0
    t.fs_lock = t.fs_free = t.remote = t.unhandled = 0
    memset(t.fs_buckets, 0, sizeof(t.fs_buckets))
    for n in range(MAX_FS):
        f = &t.fs[n]
        if not f.mnt_id and n > last + 64:
            break  # rows are used from the first on
        f.users = 1 if n == 0 else 0
        f.pins = 0
        if f.live:
            last = <uint32_t> n
    t.fs_count = last + 1
    for n in range(1, <uint64_t> t.slab.chunks << CHUNK_BITS):
        i = <Inode *> slab_at(&t.slab, n)
        if i == NULL:
            continue
        most = max(most, i.generation)
        if not i.live:
            if i.backing > 0 and t.forget != NULL:
                i.backing_slot = 0
                t.forget(t.server, i)
            continue
        adopt_inode(t, i, <uint32_t> n)
        if i.live:
            t.fs[i.fs].users += 1
    slab_adopt(&t.slab, inode_in_use)
    t.generation = most + (1 << 16)
    for n in range(<uint64_t> t.slab.chunks << CHUNK_BITS):
        i = inode_at(t, n)
        if i == NULL:
            continue
        if i.hashed:
            key = hash_key(i.fs, i.ino)
            sh = shard_of(t, i)
            if sh.count > sh.mask:
                hash_grow(t, sh)
            b = <uint32_t> (key >> 6) & sh.mask
            i.next = sh.buckets[b]
            sh.buckets[b] = <uint32_t> n
            sh.count += 1
        if i.fd >= 0 and n != FUSE_ROOT_ID:
            i.pins += 1
            cache_insert(t, i, <uint32_t> n)
            i.pins -= 1
        if i.backing > 0 and t.backings.used < t.backings.size:
            t.backings.nodes[t.backings.used] = <uint32_t> n
            t.backings.used += 1
            i.backing_slot = t.backings.used
    for n in range(t.fs_count):
        f = &t.fs[n]
        if f.live and not f.users:
            f.live = False
            f.mount_fd = -1
        if f.live:
            b = fs_bucket(f.mnt_id, f.dev_minor)
            f.next = t.fs_buckets[b]
            t.fs_buckets[b] = <uint32_t> n + 1
            if f.flags & FS_REMOTE:
                t.remote += 1
            if not f.flags & FS_HANDLES:
                t.unhandled = 1
        else:
            f.next = t.fs_free
            t.fs_free = <uint32_t> n + 1
    t.fs_changes += 1


# ------------------------------------------------------------- open count

cdef int inode_reserve(InodeTable *t, Inode *i, bint passthrough, bint alone, bint reading, unsigned own) noexcept nogil:
    """Count an open file to come, before it is opened. 1: the file is to be passed through; 0: not.

    The first of an inode's open files decides for those beside it: the kernel refuses to mix.
    alone: not if several may write directly. reading: it may be read. -EAGAIN: not counted, since somebody's change is
    under way (change_begin(); own: how many of these are the caller's), for which a file passed through would be a trap.
    """
    cdef HashShard *sh = shard_of(t, i)
    spin_lock(&sh.lock)
    if i.opens == 0:
        if i.direct_past & (DIRECT_ONE | DIRECT_SEVERAL):
            i.direct_past = DIRECT_CROWDED if i.direct_past & DIRECT_SEVERAL else 0
        i.direct = 0
        i.passthrough = passthrough and not (alone and i.direct_past) and i.changing <= own
        i.reading = 0
    elif i.passthrough and i.changing > own:
        spin_unlock(&sh.lock)
        return -EAGAIN
    if i.passthrough and reading:
        i.reading = 1
    passthrough = i.passthrough
    i.opens += 1
    spin_unlock(&sh.lock)
    return passthrough


# ------------------------------------------------ the source inode's lock
#
# Of a file that is passed through the kernel holds the source inode's lock for its caller: for each write, and for reads
# by O_DIRECT (ext4, btrfs) or all (XFS), and so for as long as a page of the caller's memory does not come, which may
# be for ever (a file of a FUSE server of its own). While it writes it has the lock of our inode as well, so that
# most changes do not even come here; not while it reads. So before a thread that others wait for makes a change that
# takes the lock, it asks here, and until it is done no open file is passed through that was not before.

cdef inline bint kept(Inode *i, bint cut) noexcept nogil:
    return i.passthrough and i.opens and (i.reading or cut)


cdef bint change_begin(InodeTable *t, Inode *i, bint cut) noexcept nogil:
    """Is the lock of an inode in the source nobody's to keep? Then it is not until change_end(); else go patiently().

    cut: by open(O_TRUNC), which comes without our inode's lock.
    """
    cdef HashShard *sh = shard_of(t, i)
    cdef bint nobodys
    spin_lock(&sh.lock)
    nobodys = not kept(i, cut)
    if nobodys:
        i.changing += 1
    spin_unlock(&sh.lock)
    return nobodys


cdef void change_end(InodeTable *t, Inode *i) noexcept nogil:
    cdef HashShard *sh = shard_of(t, i)
    spin_lock(&sh.lock)
    i.changing -= 1
    spin_unlock(&sh.lock)


cdef bint changes_begin(InodeTable *t, unsigned fs, uint64_t ino, bint cut, uint32_t *counted) noexcept nogil:
    """change_begin() of what a name stands for, if that is known.

    counted: of which nodeid, for changes_end(); 0: of none. It is a lookup as well: meanwhile the inode may be forgotten,
    and its number be another one's.
    """
    cdef uint64_t key = hash_key(fs, ino)
    cdef HashShard *sh = &t.shards[key & (HASH_SHARDS - 1)]
    cdef uint32_t node
    cdef Inode *i = NULL
    cdef bint nobodys = True
    counted[0] = 0
    spin_lock(&sh.lock)
    node = sh.buckets[<uint32_t> (key >> 6) & sh.mask]
    while node:
        i = <Inode *> slab_at(&t.slab, node)
        if i.ino == ino and i.fs == fs:
            nobodys = not kept(i, cut)
            break
        node = i.next
    if node and nobodys:
        i.changing += 1
        i.nlookup += 1
        counted[0] = node
    spin_unlock(&sh.lock)
    return nobodys


cdef void changes_end(InodeTable *t, uint32_t counted) noexcept nogil:
    """The end of what changes_begin() has counted, if anything. The caller has no pin of that inode."""
    if counted:
        change_end(t, inode_at(t, counted))
        inode_drop(t, counted, 1, 0)


cdef void direct_writer(InodeTable *t, Inode *i, int more) noexcept nogil:
    """Count the open files of an inode that are for direct writing. more: 1 or -1."""
    cdef HashShard *sh = shard_of(t, i)
    spin_lock(&sh.lock)
    if i.direct < MANY:
        i.direct += more
    i.direct_past |= DIRECT_SEVERAL if i.direct > 1 else DIRECT_ONE
    spin_unlock(&sh.lock)
