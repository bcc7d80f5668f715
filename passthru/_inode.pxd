# Inodes and handles: what nodeids and file handles stand for.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from passthru._abi cimport atomic_add32, atomic_sub32, file_handle_max
from passthru._libc cimport O_ACCMODE, O_DIRECT, O_RDONLY, statx
from passthru._slab cimport Slab, slab_at

cdef enum:
    HASH_SHARDS = 64
    MAX_FS = 1024
    INLINE_HANDLE = 24
    EVICTING = 0x80000000  # in Inode.pins: its fd is being closed
    UNSURE = 0xffffffff    # inode_find()
    NO_HANDLE = 255        # Inode.handle_len: its fd must stay open
    # Filesystem.flags
    FS_HANDLES = 1         # inodes can be opened by handle
    FS_MEMORY = 2          # tmpfs and kin: I/O never waits for a device
    FS_REMOTE = 4          # any operation may wait for a network or another daemon
    FS_NO_BACKING = 8      # its files cannot be passed through by the kernel
    # Handle.kind
    H_FREE = 0
    H_FILE = 1
    H_DIR = 2
    # Handle.flags
    H_SYNC_READ = 1        # read inline: the source never waits
    H_SYNC_WRITE = 2       # write inline
    H_ASYNC_READ = 4       # do not try NOWAIT first
    H_ASYNC_WRITE = 8
    H_DIRECT = 16          # the source fd is O_DIRECT
    H_REMOTE = 32          # even submitting may wait

cdef struct Filesystem:
    uint64_t mnt_id
    uint32_t dev_major
    uint32_t dev_minor
    int mount_fd           # for open_by_handle_at(2)
    uint32_t flags
    uint64_t type          # statfs(2) f_type
    uint64_t salt          # of inode numbers: one st_dev shows all filesystems below the source

cdef enum:
    # Inode.direct_past. Open for direct writing at a time, since the inode had no open file:
    DIRECT_ONE = 1
    DIRECT_SEVERAL = 2
    # Several, when it was last open for direct writing
    DIRECT_CROWDED = 4
    MANY = 255

cdef union HandleBytes:
    unsigned char here[INLINE_HANDLE]
    unsigned char *there   # if longer

cdef struct Inode:
    uint64_t ino
    uint64_t btime         # ns; with ino it tells a reused inode number; 0: the source has none
    uint64_t nlookup       # under the hash shard's lock
    uint64_t cached        # what the page cache was filled from, see open_cache_flag()
    uint32_t pins          # operations using fd
    uint32_t handles       # open files and directories; under the hash shard's lock
    int32_t fd             # O_PATH, -1: closed, reopened by handle
    uint32_t next          # hash chain
    uint32_t generation
    uint32_t slot          # in the fd cache + 1; 0: not in it; under the cache's lock
    uint16_t fs
    # Bytes of their own: they are written under different locks.
    uint8_t type           # S_IFMT >> 12
    uint8_t live
    uint8_t hashed
    uint8_t used           # clock bit: used since the sweep last passed
    uint8_t handle_len     # 0: none taken yet
    uint8_t locked         # has record locks; under the lock table's lock
    int32_t handle_type
    int32_t backing        # kernel passthrough: its id, 0: none yet
    uint32_t backing_slot  # in the list of kept backing ids + 1
    uint8_t familiar       # a directory: the last name looked up in it was of a known inode
    # Under the hash shard's lock:
    uint8_t passthrough    # its open files are passed through
    uint8_t direct         # handles that are open for direct writing; MANY: so many or more, until none is open at all
    uint8_t direct_past    # see DIRECT_*
    HandleBytes handle

cdef struct HashShard:
    uint32_t lock
    uint32_t count
    uint32_t mask
    uint32_t *buckets
    char pad[40]

cdef struct FdCache:
    uint32_t lock
    uint32_t size
    uint32_t used
    uint32_t hand
    uint32_t *nodes

cdef struct InodeTable:
    Slab slab
    HashShard shards[HASH_SHARDS]
    Filesystem fs[MAX_FS]
    uint32_t fs_count
    uint32_t fs_lock
    uint32_t generation
    FdCache fds
    FdCache backings       # inodes with a backing id
    void (*forget)(void *session, Inode *i) noexcept nogil  # before an inode is freed
    void *session
    Slab *handles          # to find an unlinked inode's open file
    uint32_t remote        # some filesystem here is FS_REMOTE

cdef inline bint direct_writing(uint32_t open_flags) noexcept nogil:
    return open_flags & O_DIRECT and open_flags & O_ACCMODE != O_RDONLY


cdef struct Handle:
    uint32_t kind
    uint32_t node
    int32_t fd             # -1: not opened, the kernel reads and writes the backing file
    uint32_t passthrough   # the kernel reads and writes the backing file
    uint32_t pinned        # holds a pin of its inode
    int32_t cache_fd       # for what the page cache writes, see cache_fd(); -1: not open
    uint32_t flags
    uint32_t open_flags
    uint32_t busy          # claimed by a READDIR
    uint32_t buf_pos
    uint32_t buf_end
    int64_t next_off       # cookie of the entry at buf_pos
    char *buf              # directory entries read and not yet given out

cdef int table_init(InodeTable *t, int root_fd, unsigned fd_cache, Slab *handles) noexcept nogil
cdef void table_destroy(InodeTable *t) noexcept nogil
cdef int fs_find(InodeTable *t, statx *stx) noexcept nogil
cdef int fs_add(InodeTable *t, statx *stx, int fd) noexcept nogil
cdef uint32_t inode_find(InodeTable *t, unsigned fs, statx *stx, file_handle_max *fh) noexcept nogil
cdef uint32_t inode_add(InodeTable *t, unsigned shard, unsigned fs, statx *stx, int fd,
                        file_handle_max *fh) noexcept nogil
cdef void inode_forget(InodeTable *t, uint64_t nodeid, uint64_t n) noexcept nogil
cdef bint fds_short(InodeTable *t, int error) noexcept nogil
cdef int inode_reopen(InodeTable *t, Inode *i, uint32_t node) noexcept nogil
cdef bint inode_reserve(InodeTable *t, Inode *i, bint passthrough, bint alone) noexcept nogil
cdef void direct_writer(InodeTable *t, Inode *i, int more) noexcept nogil
cdef void inode_drop(InodeTable *t, uint32_t node, uint64_t lookups, uint32_t handles) noexcept nogil
cdef uint32_t handle_open(InodeTable *t, unsigned shard, uint32_t node, int fd, unsigned kind) noexcept nogil
cdef void handle_close(InodeTable *t, uint32_t index) noexcept nogil


cdef inline Inode *inode_at(InodeTable *t, uint64_t nodeid) noexcept nogil:
    """The live inode of a nodeid or NULL (the kernel never sends one that it has forgotten)."""
    cdef Inode *i = <Inode *> slab_at(&t.slab, nodeid)
    if i == NULL or not i.live:
        return NULL
    return i


cdef inline int inode_fd(InodeTable *t, Inode *i, uint32_t node) noexcept nogil:
    """Pin the inode and return its O_PATH fd, valid until inode_unpin(); or -errno, not pinned."""
    if not atomic_add32(&i.pins, 1) & EVICTING and i.fd >= 0:
        i.used = 1
        return i.fd
    return inode_reopen(t, i, node)


cdef inline void inode_unpin(Inode *i) noexcept nogil:
    atomic_sub32(&i.pins, 1)


cdef inline uint64_t ino_salt(InodeTable *t, statx *stx) noexcept nogil:
    """What makes inode numbers of submounts differ from those of the source; 0 for the source's own.

    With one st_dev for all, two files of the same number and several links would be taken for
    one by tar and cp -a.
    """
    cdef int fs
    if t.fs_count == 1 or (t.fs[0].dev_minor == stx.stx_dev_minor and t.fs[0].dev_major == stx.stx_dev_major):
        return 0
    fs = fs_find(t, stx)
    return t.fs[fs].salt if fs >= 0 else 0


cdef inline Handle *handle_at(Slab *handles, uint64_t fh, unsigned kind) noexcept nogil:
    """The open handle `fh` of that kind or NULL."""
    cdef Handle *h = <Handle *> slab_at(handles, fh)
    if h == NULL or h.kind != kind:
        return NULL
    return h
