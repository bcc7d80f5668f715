# The status page's layout: a header and one block per serving thread, written by it alone, in a shared
# mapping that passthru/stats.py reads (names and sizes: status_page.py). STATS_VERSION changes with the layout.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from passthru._abi cimport FUSE_OPCODES, leading_zeros, now_ns

cdef enum:
    STATS_MAGIC = 0x75726874  # "thru"
    STATS_VERSION = 3
    STATS_HEADER = 16384      # bytes of the header in the file
    STATS_OPCODES = FUSE_OPCODES
    T_QUEUE = 1               # thread kinds
    T_DEV = 2
    T_POOL = 3
    T_WATCH = 4
    # Latencies of an opcode: 8 buckets of 64 ns, then 8 for each power of two, up to 2**36 ns (69 s);
    # what took longer is in the last one.
    LATENCY_UNIT = 6
    LATENCY_BUCKETS = 224

cdef struct StatsHeader:
    uint32_t magic            # these three are the same in all versions
    uint32_t version
    uint32_t pid
    uint32_t header_size
    uint32_t threads          # blocks behind the header
    uint32_t block_size
    uint32_t used             # of the blocks, those that some thread has
    uint32_t transport        # 1 ring, 2 /dev/fuse; 0: not yet mounted
    uint32_t dialect          # 1 per-entry, 2 bufring, 3 bufpool
    uint32_t queues
    uint32_t depth
    uint32_t buffers          # payload buffers per queue, of those dialects that have a pool
    uint32_t readers          # of /dev/fuse
    uint32_t pinned           # payload buffers and header slots are registered
    uint32_t zero_copy
    uint32_t passthrough      # the kernel may read and write the source's files itself
    uint32_t identity         # acts as the caller
    uint32_t minor            # negotiated protocol
    uint32_t max_write
    uint32_t payload_size
    uint64_t init_flags       # negotiated INIT flags
    uint64_t fuse_dev         # st_dev of the mount
    uint64_t mount_id
    uint64_t start_ticks      # of the process, field 22 of /proc/PID/stat: pids come again
    uint64_t started          # seconds since 1970
    uint32_t settings_seq     # odd while the settings are being written
    uint32_t settings_len
    char pad[64]
    # What several threads write lies apart from what is read.
    uint32_t inodes           # known, the root included
    char pad1[60]
    uint32_t handles          # open files and directories
    char pad2[60]
    uint32_t backings         # backing files registered with the kernel
    uint32_t notify_failed    # notifications that the kernel did not take: see _notify
    char pad3[56]
    char source[4096]
    char mountpoint[4096]
    char settings[6144]       # JSON: {option: value}

cdef struct ThreadStats:      # a multiple of 64 bytes
    uint64_t kind
    int64_t cpu
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
    uint64_t buffers_taken    # ring requests that had a payload buffer
    uint64_t buffers_given    # of these, answered
    uint64_t opens_passthrough  # of the opens, those whose data the kernel reads and writes itself
    uint64_t watch_events     # changes in the source that were told
    uint64_t watch_own        # of these, our own, of which the kernel knows
    uint64_t watch_unknown    # of these, of what the kernel does not know
    uint64_t watch_notified   # notifications sent
    uint64_t watch_overflows  # the source's events came too fast
    uint64_t watch_stuck      # directories whose notifications had to wait for somebody's lock
    uint64_t repeat_events    # changes beside the mount that watchers in it may want to hear of
    uint64_t repeat_told      # repeated in the mount
    uint64_t repeat_dropped   # could not be, or not in time
    uint64_t spare[6]
    char queues[64]           # numbers of the queues that this thread serves, "0,4-7"
    uint64_t ops[STATS_OPCODES]         # requests by opcode
    uint64_t op_errors[STATS_OPCODES]   # of these, answered with an error
    uint64_t op_ns[STATS_OPCODES]       # nanoseconds that they took, all together
    uint64_t latency[STATS_OPCODES][LATENCY_BUCKETS]


cdef inline unsigned latency_bucket(uint64_t ns) noexcept nogil:
    cdef unsigned top, bucket
    if ns < 8 << LATENCY_UNIT:
        return <unsigned> (ns >> LATENCY_UNIT)
    top = 63 - leading_zeros(ns)
    bucket = (top - LATENCY_UNIT - 2) * 8 + (<unsigned> (ns >> (top - 3)) & 7)
    return bucket if bucket < LATENCY_BUCKETS else LATENCY_BUCKETS - 1


cdef inline void stats_answered(ThreadStats *t, uint32_t opcode, uint64_t start, bint failed) noexcept nogil:
    """A request that came at `start` (now_ns()) is answered now."""
    cdef uint64_t ns
    t.errors += failed
    if opcode < STATS_OPCODES:
        ns = now_ns() - start
        t.op_errors[opcode] += failed
        t.op_ns[opcode] += ns
        t.latency[opcode][latency_bucket(ns)] += 1
