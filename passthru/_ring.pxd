# FUSE over io_uring: queues, their entries, and the thread that serves them.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from passthru._abi cimport fuse_uring_req_header, io_uring_sqe
from passthru._copy cimport Payloads
from passthru._libc cimport iovec
from passthru._request cimport Context, Request, Server
from passthru._uring cimport Uring

cdef enum:
    # Entry.state
    E_NEW = 0
    E_KERNEL = 1           # registered or committed: header slot and payload are the kernel's
    E_OURS = 2             # CQE with res 0 seen: one commit is owed
    E_GONE = 3             # the kernel has let go of it for good
    E_LINKED = 4           # as E_KERNEL, once the backing I/O that the commit is linked to is done

    # Entries of a queue beyond its depth, at the most
    SPARES = 1024
    SPARES_PINNED = 512    # where all header slots are pinned

ctypedef bint (*Enroller)(Queue *q, Entry *e) noexcept nogil

cdef struct Queue:
    Worker *worker
    unsigned qid
    unsigned depth
    unsigned number        # among the worker's
    unsigned away          # requests whose answer is not up to us (Request.away)
    unsigned extra         # entries registered beyond the depth: as many as were ever away at a time
    unsigned spares        # and how many may be
    unsigned lost          # entries that an error took, other than the end of the connection
    Entry *entries         # [depth + SPARES], of which memory is there for those that are used
    Enroller enroll        # stages a REGISTER of an entry beyond the depth; False: it cannot be had
    bint dry               # requests may wait in the kernel for an entry
    Payloads payloads
    unsigned buffers       # of the payloads, those that a pool consists of,
    unsigned unpinned      # and if it is not pinned
    uint16_t pool_slot     # of the pool in the ring's registered-buffer table
    # What the set-up came to (see _dialect).
    unsigned dialect
    bint pinned
    bint zero_copy
    uint64_t bufring_flags
    # Left behind by the dialect's set-up: a request's payload is
    # entry.payload + (location & location_mask) * location_scale, which must be below the limit.
    uint32_t location_mask
    uint32_t location_scale
    size_t location_limit
    io_uring_sqe commit    # ready but for user_data and commit_id

cdef struct Entry:
    Request req            # first: a Request of the ring is its Entry
    Queue *queue
    fuse_uring_req_header *slot
    char *payload
    uint64_t commit_id
    unsigned id            # among the worker's entries: header slot, registered-buffer slot
    unsigned state
    bint buffered          # it has a payload buffer
    bint gathered          # on huge pages, if that was possible
    iovec iov[2]           # of REGISTER: the kernel may read it after the submission

cdef struct Worker:        # a thread with an io_uring, serving one or more queues
    Context ctx
    Uring ring
    Queue *queues
    unsigned nqueues
    unsigned nentries      # of all queues, without those beyond the depth
    fuse_uring_req_header *slots  # header slots of all queues, one contiguous array, by entry id
    size_t slots_len
    # What is wanted of the kernel.
    unsigned want_dialect
    bint want_zero_copy
    bint want_pinned
    bint want_pinned_headers
    bint forced
    unsigned alive         # entries not gone
    # Requests may wait in the kernel for an entry though there are free ones, see kick()
    uint64_t seen          # requests when the thread last slept,
    uint64_t seen_before   # and the time before
    bint wanted            # some queue is `dry`
    Queue *kicking         # the queue that was last kicked; NULL: none is
    uint64_t kick          # and the number of the request
    uint32_t kicks
    int fuse_fd
    int cpu                # -1: not pinned
    int wake_fd            # eventfd: completions or stop
    uint64_t wake_value
    bint wake_armed
    void *completed        # Request *, pushed by pool threads
    bint disconnected      # the kernel has ended entries
    uint64_t spin_after    # no spinning before that time (ns)
    uint64_t spin_rest     # for how long it was given up last
    int error              # why the ring cannot be used, -errno

cdef int entry_request(Entry *e) noexcept nogil
cdef void handle_cqe(Worker *w, uint64_t user_data, int res) noexcept nogil
cdef void link_turn(Entry *e, unsigned state) noexcept nogil
cdef void arm_wake(Worker *w) noexcept nogil
cdef int worker_open(Worker *w, Server *s, unsigned *qids, unsigned nqueues, unsigned depth, unsigned buffers,
                     unsigned unpinned, int cpu) noexcept nogil
cdef void worker_serve(Worker *w) noexcept nogil
cdef void worker_wake(Worker *w) noexcept nogil
cdef void worker_close(Worker *w) noexcept nogil
