# The counters' layout: one block per serving thread, written by it alone, in a shared mapping that
# passthru/stats.py reads. STATS_VERSION changes with the layout.
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    STATS_MAGIC = 0x75726874  # "thru"
    STATS_VERSION = 1
    STATS_KINDS = 4
    T_QUEUE = 1               # thread kinds
    T_DEV = 2
    T_POOL = 3

cdef struct StatsHeader:      # 4096 bytes in the file
    uint32_t magic
    uint32_t version
    uint32_t pid
    uint32_t threads          # blocks behind the header
    uint32_t block_size
    uint32_t transport        # 1 ring, 2 /dev/fuse
    uint32_t queues
    uint32_t depth
    uint32_t minor            # negotiated protocol
    uint32_t max_write
    uint64_t init_flags       # negotiated INIT flags
    uint64_t fuse_dev         # st_dev of the mount
    uint64_t mount_id
    uint32_t payload_size
    uint32_t dialect          # 1 per-entry, 2 bufring, 3 bufpool
    uint32_t inodes           # live, written by every thread: approximate
    uint32_t handles
    char source[1024]
    char mountpoint[1024]

cdef struct ThreadStats:      # a multiple of 64 bytes
    uint64_t kind
    uint64_t cpu
    uint64_t ring_requests    # came by the ring
    uint64_t commits          # COMMIT_AND_FETCH staged
    uint64_t dev_requests     # came by /dev/fuse
    uint64_t dev_replies
    uint64_t errors           # replies with an error
    uint64_t read_bytes
    uint64_t write_bytes
    uint64_t io_inline        # backing READ/WRITE done on the spot
    uint64_t io_ring          # sent to the ring
    uint64_t io_fixed         # of these, with a registered buffer
    uint64_t io_pool          # sent to a pool thread
    uint64_t enters           # io_uring_enter calls
    uint64_t sleeps           # of these, waiting
    uint64_t lookups          # given to the kernel
    uint64_t forgets          # given back
    uint64_t opens
    uint64_t releases
    uint64_t entries_lost     # ring entries that ended with an unexpected error
    uint64_t io_zero_copy     # with the kernel's own pages
    uint64_t refused          # requests that made no sense
    uint64_t spare[2]
    uint64_t ops[64]          # requests by opcode
