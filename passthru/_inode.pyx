"""Inode and handle tables.

A known inode is held by its file handle (name_to_handle_at(2)) where source and
privileges allow; O_PATH fds are then a bounded cache. Elsewhere each inode keeps
its O_PATH fd open. Cost per operation does not depend on the number of inodes.

Lifetime: an inode lives while the kernel holds lookups (nlookup) or handles are
open; both change under the lock of its hash shard. `pins` keeps its fd open. The
thread that swaps pins from 0 to EVICTING owns fd and handle until it swaps back.
"""
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from passthru._abi cimport *
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._libc cimport *
from passthru._slab cimport *

cdef enum:
    NO_SLOT = 0xffffffff
    TMPFS_MAGIC = 0x01021994
    RAMFS_MAGIC = 0x858458f6
    HUGETLBFS_MAGIC = 0x958458f6

# statfs(2) f_type of filesystems whose operations wait for somebody else.
cdef uint32_t REMOTE[10]
REMOTE[0] = 0x6969        # nfs
REMOTE[1] = 0x517b        # smbfs
REMOTE[2] = 0xff534d42    # cifs
REMOTE[3] = 0xfe534d42    # smb2
REMOTE[4] = 0x00c36400    # ceph
REMOTE[5] = 0x65735546    # fuse
REMOTE[6] = 0x01021997    # 9p
REMOTE[7] = 0x5346414f    # afs
REMOTE[8] = 0x0bd00bd0    # lustre
REMOTE[9] = 0x01161970    # gfs2


cdef inline uint64_t hash_key(unsigned fs, uint64_t ino) noexcept nogil:
    cdef uint64_t h = (ino ^ (<uint64_t> fs << 48)) * 0x9e3779b97f4a7c15u
    return h ^ (h >> 32)


cdef inline uint64_t stx_btime(statx *stx) noexcept nogil:
    if not stx.stx_mask & STATX_BTIME:
        return 0
    return <uint64_t> stx.stx_btime.tv_sec * 1000000000u + stx.stx_btime.tv_nsec


cdef int table_init(InodeTable *t, int root_fd, unsigned fd_cache, Slab *handles) noexcept nogil:
    """A table whose nodeid 1 is what `root_fd` (O_PATH) is, which it takes over. 0 or -errno.

    That is a directory, a regular file, or a block device, which is then taken for a regular file.
    """
    cdef statx stx
    cdef int r, fs
    cdef unsigned n
    cdef Inode *i
    cdef uint32_t node
    memset(t, 0, sizeof(InodeTable))
    t.handles = handles
    r = slab_init(&t.slab, sizeof(Inode))
    if r < 0:
        return r
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
    if c_statx(root_fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID, &stx) < 0:
        return -errno
    fs = fs_add(t, &stx, root_fd)
    if fs < 0:
        return fs
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


cdef void table_destroy(InodeTable *t) noexcept nogil:
    """Close and free everything; no thread uses the table any more."""
    cdef uint64_t n
    cdef Inode *i
    for n in range(<uint64_t> t.slab.chunks << CHUNK_BITS):
        i = inode_at(t, n)
        if i == NULL:
            continue
        if t.forget != NULL:
            t.forget(t.session, i)
        if i.fd >= 0:
            close(i.fd)
        if i.handle_len > INLINE_HANDLE and i.handle_len != NO_HANDLE:
            free(i.handle.there)
    for n in range(t.fs_count):
        if t.fs[n].mount_fd >= 0:
            close(t.fs[n].mount_fd)
    for n in range(HASH_SHARDS):
        free(t.shards[n].buckets)
    free(t.fds.nodes)
    free(t.backings.nodes)
    slab_destroy(&t.slab)


# ------------------------------------------------------------ filesystems

cdef int fs_find(InodeTable *t, statx *stx) noexcept nogil:
    """Number of the filesystem (device and mount) an object lies on, or -ENOENT."""
    cdef uint32_t n, count = atomic_get32(&t.fs_count)
    for n in range(count):
        if t.fs[n].mnt_id == stx.stx_mnt_id and t.fs[n].dev_minor == stx.stx_dev_minor \
                and t.fs[n].dev_major == stx.stx_dev_major:
            return n
    return -ENOENT


cdef int fs_add(InodeTable *t, statx *stx, int fd) noexcept nogil:
    """fs_find(), or learn about the filesystem of the object `fd` (O_PATH). -errno if full."""
    cdef Filesystem f
    cdef statfs sf
    cdef file_handle_max fh
    cdef unsigned k
    cdef int n = fs_find(t, stx)
    cdef int probe
    if n >= 0:
        return n
    memset(&f, 0, sizeof(f))
    f.mnt_id = stx.stx_mnt_id
    f.dev_major = stx.stx_dev_major
    f.dev_minor = stx.stx_dev_minor
    f.mount_fd = -1
    if fstatfs(fd, &sf) == 0:
        f.type = <uint32_t> sf.f_type
    if f.type == TMPFS_MAGIC or f.type == RAMFS_MAGIC or f.type == HUGETLBFS_MAGIC:
        f.flags |= FS_MEMORY
    for k in range(10):
        if f.type == REMOTE[k]:
            f.flags |= FS_REMOTE
    if stx.stx_mode & S_IFMT == S_IFDIR and sys_name_to_handle_at(fd, &fh) == 0:
        f.mount_fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        probe = sys_open_by_handle_at(f.mount_fd, &fh, O_PATH | O_CLOEXEC) if f.mount_fd >= 0 else -1
        if probe >= 0:
            close(probe)
            f.flags |= FS_HANDLES
        elif f.mount_fd >= 0:
            close(f.mount_fd)
            f.mount_fd = -1
    spin_lock(&t.fs_lock)
    n = fs_find(t, stx)
    if n < 0 and t.fs_count < MAX_FS:
        n = t.fs_count
        f.salt = <uint64_t> n << 48
        for k in range(n):  # mounts of one filesystem: hard links have one number
            if t.fs[k].dev_minor == f.dev_minor and t.fs[k].dev_major == f.dev_major:
                f.salt = t.fs[k].salt
        t.fs[n] = f
        if f.flags & FS_REMOTE:
            t.remote = 1
        atomic_set32(&t.fs_count, n + 1)
        f.mount_fd = -1
    spin_unlock(&t.fs_lock)
    if f.mount_fd >= 0:
        close(f.mount_fd)
    return n if n >= 0 else -ENFILE


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


cdef void evict(Inode *i) noexcept nogil:
    """Close the fd of a claimed inode, for its handle."""
    cdef file_handle_max fh
    cdef int fd = i.fd
    if i.handle_len == 0:
        if sys_name_to_handle_at(fd, &fh) < 0 or not handle_store(i, &fh):
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
        evict(victim)


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
        evict(victim)
        freed += 1
    return freed > 0


cdef bint handle_store(Inode *i, file_handle_max *fh) noexcept nogil:
    cdef unsigned char *to = &i.handle.here[0]
    if fh.handle_bytes > INLINE_HANDLE:
        to = <unsigned char *> malloc(fh.handle_bytes)
        if to == NULL:
            return False
        i.handle.there = to
    memcpy(to, fh.f_handle, fh.handle_bytes)
    i.handle_type = fh.handle_type
    i.handle_len = <uint8_t> fh.handle_bytes
    return True


cdef inline unsigned char *handle_bytes(Inode *i) noexcept nogil:
    return &i.handle.here[0] if i.handle_len <= INLINE_HANDLE else i.handle.there


cdef int inode_reopen(InodeTable *t, Inode *i, uint32_t node) noexcept nogil:
    """inode_fd()'s slow path; the caller has pinned. The fd, or -errno and no longer pinned."""
    cdef file_handle_max fh
    cdef unsigned attempts = 0
    cdef int fd = -ESTALE
    while atomic_get32(&i.pins) & EVICTING:
        sched_yield()
    if atomic_geti(&i.fd) >= 0:
        return i.fd
    if i.handle_len and i.handle_len != NO_HANDLE:
        fh.handle_bytes = i.handle_len
        fh.handle_type = i.handle_type
        memcpy(fh.f_handle, handle_bytes(i), i.handle_len)
        while True:
            fd = sys_open_by_handle_at(t.fs[i.fs].mount_fd, &fh, O_PATH | O_NOFOLLOW | O_CLOEXEC)
            attempts += 1
            # ENOMEM: the number is just being given to a new inode (ext4 over iget_locked()); that
            # will be ESTALE in a moment.
            if fd >= 0 or attempts > 20 or not (fd == -ENOMEM or fds_short(t, -fd)):
                break
            sched_yield()
    if fd == -ESTALE and i.handles:
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
    """An O_PATH fd of an unlinked inode, got from an open handle of it. Rare, so linear.

    A handle may be closed and its fd's number reused meanwhile: what was opened is checked.
    """
    cdef char path[FD_PATH]
    cdef uint64_t n
    cdef Handle *h
    cdef statx stx
    cdef int fd
    for n in range(<uint64_t> t.handles.chunks << CHUNK_BITS):
        h = <Handle *> slab_at(t.handles, n)
        if h != NULL and h.kind != H_FREE and h.node == node and h.fd >= 0:
            fd_path(path, h.fd)
            fd = open(path, O_PATH | O_CLOEXEC)
            if fd < 0:
                continue
            if c_statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID, &stx) == 0 and \
                    stx.stx_ino == i.ino and stx_btime(&stx) == i.btime and \
                    stx.stx_mode >> 12 == i.type and fs_find(t, &stx) == i.fs:
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
                         file_handle_max *fh) noexcept nogil:
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
            elif fh == NULL:
                return UNSURE
            elif i.handle_len == fh.handle_bytes and i.handle_type == fh.handle_type and \
                    memcmp(handle_bytes(i), fh.f_handle, i.handle_len) == 0:
                return node
            else:
                hash_remove(t, sh, i, node)
        node = follow
    return 0


cdef uint32_t inode_find(InodeTable *t, unsigned fs, statx *stx, file_handle_max *fh) noexcept nogil:
    """The nodeid of a known inode, with its nlookup raised; 0: not known; UNSURE: not without its handle."""
    cdef uint64_t key = hash_key(fs, stx.stx_ino)
    cdef HashShard *sh = &t.shards[key & (HASH_SHARDS - 1)]
    cdef uint32_t node
    while True:
        spin_lock(&sh.lock)
        node = hash_match(t, sh, key, fs, stx, fh)
        if node and node != UNSURE:
            (<Inode *> slab_at(&t.slab, node)).nlookup += 1
        spin_unlock(&sh.lock)
        if node != UNSURE or fh == NULL:
            return node
        sched_yield()  # its fd is just being closed


cdef uint32_t inode_add(InodeTable *t, unsigned shard, unsigned fs, statx *stx, int fd,
                        file_handle_max *fh) noexcept nogil:
    """The nodeid of an inode, known or new, with its nlookup raised; 0: out of memory.

    fd: an O_PATH fd of it, taken over in every case, or -1 and `fh` its handle.
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
    if fh != NULL and fd < 0 and not handle_store(i, fh):
        slab_free(&t.slab, fresh)
        return 0
    while True:
        spin_lock(&sh.lock)
        node = hash_match(t, sh, key, fs, stx, fh)
        if node != UNSURE:
            break
        spin_unlock(&sh.lock)
        if fh == NULL:
            if sys_name_to_handle_at(fd, &own) < 0:
                memset(&own, 0, sizeof(own))  # cannot be, as the other has one: no match
            fh = &own
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
        i.live = 1
        sh.count += 1
        if fd >= 0:
            atomic_add32(&i.pins, 1)  # not to be evicted before it is in the cache
    spin_unlock(&sh.lock)
    if node:
        if i.handle_len > INLINE_HANDLE:
            free(i.handle.there)
        slab_free(&t.slab, fresh)
        if fd >= 0:
            close(fd)
        return node
    if fd >= 0:
        cache_insert(t, i, fresh)
        inode_unpin(i)
    return fresh


cdef void inode_forget(InodeTable *t, uint64_t nodeid, uint64_t n) noexcept nogil:
    """The kernel drops `n` lookups of a nodeid (FORGET)."""
    inode_drop(t, <uint32_t> nodeid, n, 0)


cdef void inode_drop(InodeTable *t, uint32_t node, uint64_t lookups, uint32_t handles) noexcept nogil:
    """Give lookups and handles back; free the inode with the last."""
    cdef Inode *i = inode_at(t, node)
    cdef HashShard *sh
    if i == NULL or node == FUSE_ROOT_ID and not handles:
        return
    sh = &t.shards[hash_key(i.fs, i.ino) & (HASH_SHARDS - 1)]
    spin_lock(&sh.lock)
    ASSERT(i.handles >= handles)
    i.nlookup -= lookups if lookups < i.nlookup else i.nlookup
    i.handles -= handles
    if i.nlookup or i.handles:
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
                t.forget(t.session, i)
            if i.fd >= 0:
                close(i.fd)
            if i.handle_len > INLINE_HANDLE and i.handle_len != NO_HANDLE:
                free(i.handle.there)
            slab_free(&t.slab, node)
            return
        # An evictor has it for two system calls; an operation for the length of one. The kernel
        # forgets no inode that a request names, so the latter is a RELEASE at the most.
        sched_yield()


# ---------------------------------------------------------------- handles

cdef bint inode_reserve(InodeTable *t, Inode *i, bint passthrough, bint alone) noexcept nogil:
    """Count a handle to come, before its file is opened. Is the file to be passed through?

    The first of an inode's open files decides for those beside it: the kernel refuses to mix.
    alone: not if several may write directly.
    """
    cdef HashShard *sh = &t.shards[hash_key(i.fs, i.ino) & (HASH_SHARDS - 1)]
    spin_lock(&sh.lock)
    if i.handles == 0:
        if i.direct_past & (DIRECT_ONE | DIRECT_SEVERAL):
            i.direct_past = DIRECT_CROWDED if i.direct_past & DIRECT_SEVERAL else 0
        i.direct = 0
        i.passthrough = passthrough and not (alone and i.direct_past)
    passthrough = i.passthrough
    i.handles += 1
    spin_unlock(&sh.lock)
    return passthrough


cdef void direct_writer(InodeTable *t, Inode *i, int more) noexcept nogil:
    """Count the handles of an inode that are open for direct writing. more: 1 or -1."""
    cdef HashShard *sh = &t.shards[hash_key(i.fs, i.ino) & (HASH_SHARDS - 1)]
    spin_lock(&sh.lock)
    if i.direct < MANY:
        i.direct += more
    i.direct_past |= DIRECT_SEVERAL if i.direct > 1 else DIRECT_ONE
    spin_unlock(&sh.lock)


cdef uint32_t handle_open(InodeTable *t, unsigned shard, uint32_t node, int fd, unsigned kind) noexcept nogil:
    """A handle of an inode that inode_reserve() has counted it for, with an open fd, which it takes over.

    0: out of memory; fd is closed and the count given back.
    """
    cdef uint32_t index = slab_alloc(t.handles, shard)
    cdef Handle *h
    if not index:
        if fd >= 0:
            close(fd)
        inode_drop(t, node, 0, 1)
        return 0
    h = <Handle *> slab_at(t.handles, index)
    h.node = node
    h.fd = fd
    h.cache_fd = -1
    h.kind = kind
    return index


cdef void handle_close(InodeTable *t, uint32_t index) noexcept nogil:
    """Close a handle (RELEASE, RELEASEDIR)."""
    cdef Handle *h = <Handle *> slab_at(t.handles, index)
    cdef uint32_t node = h.node
    cdef int fd = h.fd
    if h.kind == H_FILE and direct_writing(h.open_flags):
        direct_writer(t, inode_at(t, node), -1)
    h.kind = H_FREE
    if h.pinned:
        inode_unpin(inode_at(t, node))
    if h.cache_fd >= 0:
        close(h.cache_fd)
    free(h.buf)
    slab_free(t.handles, index)
    if fd >= 0:
        close(fd)
    inode_drop(t, node, 0, 1)
