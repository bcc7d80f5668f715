# What a request, a serving thread and a session are to the handlers. Handlers see neither transport
# nor dialect: a Request has its arguments, room for the reply, and a way to be completed later.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from passthru._abi cimport FUSE_NOTIFY_CODES, fuse_in_header
from passthru._arena cimport Arena, Intent
from passthru._changes cimport Changes
from passthru._inode cimport OpenFile, Inode, InodeTable, inode_at, inode_fd
from passthru._libc cimport ESTALE
from passthru._slab cimport Slab
from passthru._stats cimport StatsHeader, ThreadStats
from passthru._uring cimport Uring

cdef enum:
    # A handler's result is the length of the reply's body, -errno, or one of these.
    PENDING = -0x10000000  # a CQE or a pool thread will complete it
    NOREPLY = -0x10000001  # FORGET and kin
    # user_data of an SQE: a pointer and what its CQE is
    KIND_COMMAND = 0
    KIND_IO = 1
    KIND_WAKE = 2
    KIND_SETUP = 3
    KIND_MASK = 7
    SCRATCH_SIZE = 65536
    # Config.keep_cache
    KEEP_NOTHING = 0
    KEEP_UNCHANGED = 1         # what the source shows no change of
    KEEP_ALL = 2
    # Config.parallel_writes
    PARALLEL_NEVER = 0         # none
    PARALLEL_AUTO = 1          # those that several wrote to at a time when they were last open
    PARALLEL_ALWAYS = 2        # all
    # Request.away: who answers it is not up to us
    AT_HOME = 0
    AWAY_POOL = 1              # with a pool
    AWAY_RING = 2              # I/O on a remote file, on the ring
    MAX_PAIRS = 64             # of an IdMap
    NO_ID = 0xffffffff         # as in the kernel
    # Config.root: what the mount's root is
    ROOT_TREE = 0              # a directory
    ROOT_FILE = 1              # a regular file
    ROOT_FIXED = 2             # a regular file that keeps its size
    ROOT_DEVICE = 3            # a block device, shown as a regular file
    ROOTS = 4
    # Context.data_how
    DATA_OWN = 0               # the daemon has no rights that its caller has not
    DATA_FSUID = 1
    DATA_CAPS = 2              # without CAP_FSETID

cdef extern from *:
    """
    typedef struct passthru_pool passthru_pool;
    typedef struct passthru_locks passthru_locks;
    """
    ctypedef struct ThreadPool "passthru_pool":  # what is in it is _pool's own
        pass
    ctypedef struct LockTables "passthru_locks":  # and _lock's
        pass

ctypedef int (*Handler)(Request *r) noexcept nogil
ctypedef int (*Finisher)(Request *r, int res) noexcept nogil
ctypedef void (*Completer)(Request *r, int result) noexcept nogil
ctypedef void (*Linker)(Request *r) noexcept nogil
ctypedef unsigned (*Room)(Request *r) noexcept nogil

cdef struct Config:
    uint32_t max_write
    uint32_t payload_size
    uint64_t attr_valid        # timeouts
    uint32_t attr_valid_nsec
    uint64_t entry_valid
    uint32_t entry_valid_nsec
    uint64_t negative_valid    # that a name does not exist
    uint32_t negative_valid_nsec
    uint64_t spin_ns
    uint64_t fixed_budget      # bytes of payload memory that may be pinned
    int identity               # act as the caller (the daemon may change its ids)
    int own_umask              # each serving thread has a umask of its own
    int zero_copy              # files may be opened for it (Linux 7.3)
    uint64_t zero_copy_min     # from this size on
    int direct_opens           # what is opened with O_DIRECT goes past the page cache altogether
    int direct_io              # the kernel caches no file's data
    int keep_cache             # what outlives a file's close in its cache
    int parallel_writes        # which files opened with O_DIRECT for writing are not passed through
    int passthrough            # the kernel may read and write the source's files itself
    int locks                  # record locks are taken on the source
    int mapped                 # ids differ in mount and source
    int selinux                # label what is made
    int xattr                  # serve extended attributes
    int debug
    int writeback
    int all_submounts          # what holds no data, and what a user has mounted, is shown below the source too
    int trust_modes            # where a server decides, mode bits will do
    # Where changes beside the mount are told (Server.changes), in seconds; 0: as elsewhere.
    uint64_t kept_entry
    uint64_t kept_negative
    uint64_t kept_attr
    uint64_t kept_file         # attributes of a regular file, which may be changed by mmap
    uint32_t mirrored          # flags of open files that fcntl(2) sets on the source's as well
    unsigned root
    uint64_t fixed_size        # bytes of a ROOT_FIXED

cdef struct IdPair:            # `count` ids from there on, see _idmap
    uint32_t mount
    uint32_t source
    uint32_t count

cdef struct IdMap:
    unsigned count
    uint32_t others_act_as     # users of the mount, or NO_ID
    uint32_t others_show_as    # owners in the source, or NO_ID
    IdPair pairs[MAX_PAIRS]

cdef struct Server:            # one mount
    Config config
    InodeTable inodes
    Slab files                 # open files and directories, by `fh`
    StatsHeader *stats
    ThreadStats *thread_stats
    int stats_fd               # of the file with the counters; -1: none
    uint32_t max_threads
    ThreadPool *pool           # what waits for devices and remote sources
    ThreadPool *waiters        # what waits for locks, as long as it takes
    LockTables *locks          # flocks, and record locks by owner
    uint64_t ids[16]           # Context.id in use, under ids_lock
    uint32_t ids_lock
    Changes *changes           # NULL: nobody tells of changes beside the mount
    Handler dispatch
    Handler mapped             # what map_caller() goes on to
    IdMap uids
    IdMap gids
    Handler admitted           # what gate() goes on to
    uint32_t owner             # uid
    Handler traced             # what trace() goes on to
    uint32_t tracing
    Arena *arena               # what a successor takes over; NULL: there will be none
    Handler journaled          # what journal() goes on to
    Completer complete         # that of requests by /dev/fuse, with Request.answered after it; NULL: the transport's own
    uint32_t intents           # where the next free Intent is looked for, under intents_lock
    uint32_t intents_lock
    void *repeat               # what is repeated in the mount (_repeat)
    Handler unrepeated         # what repeated() goes on to
    uint32_t fixed_bytes       # pinned so far, in KiB
    uint32_t pinning           # a lock: a queue is finding out what it may pin
    uint32_t stop
    uint32_t notify_said[FUSE_NOTIFY_CODES]  # which notifications' failure has been logged
    uint64_t end_began         # now_ns(), 0: it has not
    int root_fd
    int fuse_fd                # for backing files
    uint64_t fuse_dev          # st_dev of the mount; 0: not yet there
    # The mountpoint, if it lies below the source: its name must not be walked into our own mount.
    uint64_t below_dev
    uint64_t below_ino
    char below_name[256]
    int below_fd               # what lies under the mount; -1: it is elsewhere

cdef struct Context:           # one serving thread
    Server *server
    Uring *ring                # NULL: none
    ThreadStats *stats
    unsigned id
    unsigned inflight          # backing I/O on the ring whose CQE comes
    unsigned linked            # that which is linked to its commit: not known whether it is still under way
    bint linking               # such has been staged since the last io_uring_enter(2)
    Linker link                # NULL: not on this thread
    unsigned pooled            # requests with the pool, to be taken back here
    unsigned remote            # backing I/O on remote files
    uint64_t notified          # number of the last NOTIFY_REPLY
    Room room                  # how many more requests may go away; NULL: any number
    unsigned mask              # this thread's umask
    int label_fd               # this thread's fscreate attribute; -1: not open
    unsigned labelled          # it is set
    unsigned groups            # supplementary groups now set
    unsigned unowner           # without CAP_FOWNER for now
    unsigned as_owner          # with the ids of a file's owner for now
    unsigned data_how          # DATA_*: how this thread gives up its rights to change data
    unsigned as_data           # the same if it has: see data_take()
    int personality[2]         # the ring's numbers of its own identity and of that; 0: not registered yet
    uint64_t now               # when the thread last looked for requests (now_ns)
    uint64_t patience          # until then (ns) no backing write is tried inline
    char *scratch              # SCRATCH_SIZE bytes
    int bounce_fd              # see _bounce
    uint64_t bounce_size

cdef struct Request:
    fuse_in_header h           # copied: a ring's out header overwrites it
    void *op_in                # the opcode's first argument
    char *arg                  # what follows it: names, values, write data
    uint32_t arg_len
    uint32_t out_cap
    char *out                  # the reply's body; may be the same memory as arg
    Context *ctx
    uint64_t start             # when it came (now_ns)
    Completer complete         # from another thread
    # Waiting I/O (_copy)
    Finisher finish            # continues after a backing CQE
    Finisher finished          # _trace: instead of which it is there
    Completer completed        # the same for `complete`
    Completer answered         # see Server.complete
    Intent *intent             # by /dev/fuse
    Handler blocking           # runs on a pool thread
    OpenFile *file
    int fd
    uint32_t len
    uint32_t done
    uint64_t off
    char *buf
    char *fixed_base           # memory that is, or may be, registered in slot buf_index; NULL: none
    char *bounce               # see _bounce
    uint32_t fixed_max         # bytes that may be
    uint32_t fixed_len         # bytes that are
    uint16_t buf_index
    uint16_t zero_copy_index   # slot of the kernel's own pages, if zero_copy
    uint16_t zero_copy         # the data of this READ or WRITE is not in the payload
    uint16_t interrupted
    uint16_t settled           # what is told of suid and sgid is no state between two
    uint16_t patient           # it is with a thread that may wait for a caller, see later_settling()
    uint32_t counted[2]        # what it changes, while a pool's thread does so: see changes_begin()
    uint16_t as_data           # of a WRITE or FALLOCATE: with the identity of data
    uint32_t began             # changes_now(), when it was dispatched
    uint64_t name              # of a LOOKUP: name_key(), if changes are told
    uint16_t away              # AWAY_*; the ring's thread has a further entry registered meanwhile
    int result
    uint32_t done_flag         # for tests
    int tid                    # pool thread that runs it
    unsigned lane              # of the pool
    Request *next
    Request *prev


cdef inline Server *server_of(Request *r) noexcept nogil:
    return r.ctx.server


cdef inline int request_pin(Request *r, Inode **i) noexcept nogil:
    """Pin the inode that a request is for; its O_PATH fd until inode_unpin(), or -errno and not pinned."""
    cdef InodeTable *t = &server_of(r).inodes
    i[0] = inode_at(t, r.h.nodeid)
    if i[0] == NULL:
        return -ESTALE
    return inode_fd(t, i[0], <uint32_t> r.h.nodeid)
