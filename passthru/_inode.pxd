# Inodes: what nodeids stand for. "handle" is that of name_to_handle_at(2) throughout; an open file has a number, `fh`.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from passthru._abi cimport atomic_add32, atomic_sub32, file_handle_max
from passthru._arena cimport Arena
from passthru._libc cimport STATX_BASIC_STATS, STATX_BTIME, STATX_MNT_ID, STATX_MNT_ID_UNIQUE, statx
from passthru._mounts cimport (
    FS_COHERENT, FS_FOREIGN, FS_HANDLES, FS_LOCKS_BOTH, FS_MEMORY, FS_MOUNT_FLAGS, FS_NO_BACKING, FS_NODEV, FS_NOEXEC,
    FS_NOSUID, FS_PSEUDO, FS_REMOTE, FS_SERVER, FS_STACKED,
)
from passthru._slab cimport Slab, slab_at

cdef enum:
    HASH_SHARDS = 64
    MAX_FS = 65535
    FS_BUCKETS = 256
    INLINE_HANDLE = 24
    EVICTING = 0x80000000  # in Inode.pins: its fd is being closed
    UNSURE = 0xffffffff    # inode_find()
    NO_HANDLE = 255        # Inode.handle_len: its fd must stay open
    # OpenFile.kind
    OF_FREE = 0
    OF_FILE = 1
    OF_DIR = 2
    # OpenFile.flags
    OF_SYNC_READ = 1        # read inline: the source never waits
    OF_SYNC_WRITE = 2       # write inline
    OF_ASYNC_READ = 4       # do not try NOWAIT first
    OF_ASYNC_WRITE = 8
    OF_DIRECT = 16          # the source fd is O_DIRECT
    OF_REMOTE = 32          # even submitting may wait
    OF_KILLS = 64           # has had suid or sgid on a remote source, which may not clear them by itself

cdef struct Filesystem:        # a mount and device of the source or below it; index 0 is the source's own
    uint64_t mnt_id        # STATX_MNT_ID_UNIQUE if the kernel has it
    uint64_t number        # in mountinfo(5)
    uint32_t dev_major
    uint32_t dev_minor
    uint32_t users         # inodes, and who is just about to add one; the row goes with the last
    uint32_t pins          # operations using mount_fd; EVICTING: it is being closed or opened
    int32_t mount_fd       # for open_by_handle_at(2); -1: none, or closed while nobody needs it
    uint32_t flags
    uint64_t salt          # of inode numbers: one st_dev shows all filesystems below the source
    uint32_t next          # of its hash bucket, or of the free rows; + 1
    bint live
    uint64_t fsid          # of statfs(2), if FS_COHERENT
    uint32_t used          # since the last sweep
    # Where it is mounted, if that is known: nodeid and name, to open mount_fd again.
    uint32_t above         # a lookup of it is ours
    char *name
    # What lies under a mount that is not shown: of which mount, in which directory.
    uint64_t covers
    uint64_t covers_in
    uint16_t covers_fs

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
    uint64_t cached        # what the page cache was filled from, see open_reply()
    uint32_t pins          # operations using fd
    uint32_t opens         # open files and directories; under the hash shard's lock
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
    uint8_t appends        # append-only when it was looked at last
    uint8_t told           # the kernel has been told of suid or sgid, see op_open()
    uint8_t familiar       # a directory: the last name looked up in it was of a known inode
    # Under the hash shard's lock:
    uint8_t passthrough    # its open files are passed through,
    uint8_t reading        # and one of them may be read
    uint16_t changing      # threads that may be waiting for its lock in the source, see change_begin()
    uint8_t direct         # open files for direct writing; MANY: so many or more, until none is open at all
    uint8_t direct_past    # see DIRECT_*
    uint32_t told_attr     # attr_digest() of what SETATTR has told last, see attributes_changed()
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
    Filesystem *fs         # [MAX_FS], memory comes with use
    uint32_t fs_count      # rows used so far, at a time or another
    uint32_t fs_free       # the first row given back + 1
    uint32_t fs_buckets[FS_BUCKETS]
    uint32_t fs_lock
    int mountinfo          # an fd of /proc/self/mountinfo; -1: none
    uint32_t enforced      # FS_MOUNT_FLAGS that our own mount has for all of it
    uint32_t mounts        # something may be mounted below the source
    bint unique            # mount ids are never used again (Linux 6.8)
    uint32_t generation
    FdCache fds
    FdCache backings       # inodes with a backing id
    void (*forget)(void *server, Inode *i) noexcept nogil  # before an inode is freed
    void *server           # the Server that it is of, of which a table knows nothing
    # Has each change on a filesystem told, of which it has an open directory; its fsid, 0: that cannot be.
    # NULL: not wanted.
    uint64_t (*watch)(void *watcher, int fd, statx *stx, uint32_t flags) noexcept nogil
    void *watcher
    uint32_t fs_changes    # counts rows that came or went, or whose files turned out not to be passed through
    Slab *files            # to find an unlinked inode's open file
    uint32_t remote        # how many rows are FS_REMOTE
    uint32_t unhandled     # some row has no file handles
    uint64_t walked        # see sweep_held()


cdef struct OpenFile:          # or directory, see _openfile
    uint32_t kind
    uint32_t node
    int32_t fd             # -1: not opened, the kernel reads and writes the backing file
    uint32_t passthrough   # the kernel reads and writes the backing file
    uint32_t pinned        # holds a pin of its inode
    int32_t cache_fd       # for what the page cache writes, see cache_fd(); -1: not open
    uint32_t flags
    uint32_t open_flags
    uint32_t flocked       # has a flock(2)
    uint32_t busy          # claimed by a READDIR
    uint32_t buf_pos
    uint32_t buf_end
    uint32_t seen_attr     # attr_digest() when it was opened for writing, or when the kernel was last told; 0: none
    int64_t next_off       # cookie of the entry at buf_pos
    char *buf              # directory entries read and not yet given out
    # Where a successor may take over, else 0: see _journal.
    uint64_t opened_by     # the request whose reply has told of it; 0: none has
    uint64_t released_by   # the RELEASE that has begun to close it

cdef int table_init(InodeTable *t, int root_fd, unsigned fd_cache, Slab *files, int mountinfo,
                    Arena *arena) noexcept nogil
cdef void table_reset(InodeTable *t) noexcept nogil
cdef void table_adopt(InodeTable *t) noexcept nogil
cdef void table_destroy(InodeTable *t) noexcept nogil
cdef void cache_trim(FdCache *c) noexcept nogil
cdef void table_sweep(InodeTable *t) noexcept nogil
cdef void mounts_changed(InodeTable *t) noexcept nogil
cdef int fs_get(InodeTable *t, statx *stx) noexcept nogil
cdef int fs_add(InodeTable *t, statx *stx, int fd, uint64_t number, uint32_t flags) noexcept nogil
cdef void fs_put(InodeTable *t, unsigned fs) noexcept nogil
cdef int fs_covered(InodeTable *t, uint64_t mnt_id, unsigned fs, uint64_t ino) noexcept nogil
cdef int fs_fd(InodeTable *t, unsigned fs) noexcept nogil
cdef void fs_placed(InodeTable *t, unsigned fs, uint32_t above, const char *name) noexcept nogil
cdef uint32_t inode_find(InodeTable *t, unsigned fs, statx *stx, file_handle_max *handle) noexcept nogil
cdef int64_t inode_by_handle(InodeTable *t, unsigned fs, file_handle_max *handle) noexcept nogil
cdef uint32_t inode_numbered(InodeTable *t, unsigned fs, uint64_t ino) noexcept nogil
cdef uint32_t inode_add(InodeTable *t, unsigned shard, unsigned fs, statx *stx, int fd,
                        file_handle_max *handle) noexcept nogil
cdef bint inode_again(InodeTable *t, uint32_t node, uint64_t ino) noexcept nogil
cdef void inode_forget(InodeTable *t, uint64_t nodeid, uint64_t n) noexcept nogil
cdef bint fds_short(InodeTable *t, int error) noexcept nogil
cdef int inode_reopen(InodeTable *t, Inode *i, uint32_t node) noexcept nogil
cdef bint change_begin(InodeTable *t, Inode *i, bint cut) noexcept nogil
cdef void change_end(InodeTable *t, Inode *i) noexcept nogil
cdef bint changes_begin(InodeTable *t, unsigned fs, uint64_t ino, bint cut, uint32_t *counted) noexcept nogil
cdef void changes_end(InodeTable *t, uint32_t counted) noexcept nogil
cdef int inode_reserve(InodeTable *t, Inode *i, bint passthrough, bint alone, bint reading, unsigned own) noexcept nogil
cdef void direct_writer(InodeTable *t, Inode *i, int more) noexcept nogil
cdef void inode_drop(InodeTable *t, uint32_t node, uint64_t lookups, uint32_t opens) noexcept nogil


cdef inline unsigned stx_mask() noexcept nogil:
    """What every statx(2) here asks for: the attributes and what identifies the inode.

    Kernels that know both kinds of mount ids give the one that is never used again.
    """
    return STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID | STATX_MNT_ID_UNIQUE


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


cdef inline bint on_fs(Filesystem *f, statx *stx) noexcept nogil:
    """Does an object lie on that filesystem and mount?"""
    return f.mnt_id == stx.stx_mnt_id and f.dev_minor == stx.stx_dev_minor and f.dev_major == stx.stx_dev_major


cdef inline void fs_unpin(InodeTable *t, unsigned fs) noexcept nogil:
    """The end of what fs_fd() began."""
    atomic_sub32(&t.fs[fs].pins, 1)
