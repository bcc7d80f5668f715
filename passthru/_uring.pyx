"""io_uring set-up and tear-down (io_uring_setup(2), io_uring_register(2))."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from passthru._abi cimport *
from passthru._libc cimport *

cdef enum:
    FLAGS = IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | \
        IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SQE128 | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED
    ENTRIES = 32768        # the kernel makes no larger ring
    HEADS = 4096           # bytes before the rings' entries, at the most
    OPS = 8
    REGISTERS = 4

cdef struct Restriction:       # struct io_uring_restriction
    uint16_t kind
    uint8_t what
    uint8_t resv
    uint32_t resv2[3]

# All that is ever asked of a ring. The system calls' filter does not see what is asked by one.
cdef uint8_t *MAY_DO = [IORING_OP_NOP, IORING_OP_FSYNC, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED,
                        IORING_OP_FALLOCATE, IORING_OP_READ, IORING_OP_WRITE, IORING_OP_URING_CMD]
cdef uint8_t *MAY_REGISTER = [IORING_REGISTER_PERSONALITY, IORING_REGISTER_BUFFERS2, IORING_REGISTER_BUFFERS_UPDATE,
                              IORING_REGISTER_IOWQ_MAX_WORKERS]


cdef int restrict(int fd) noexcept nogil:
    """Enable a ring for that only, for good (IORING_REGISTER_RESTRICTIONS, Linux 5.10). 0 or -errno."""
    cdef Restriction r[OPS + REGISTERS + 1]
    cdef unsigned n
    memset(r, 0, sizeof(r))
    for n in range(REGISTERS):
        r[n].kind = IORING_RESTRICTION_REGISTER_OP
        r[n].what = MAY_REGISTER[n]
    for n in range(OPS):
        r[REGISTERS + n].kind = IORING_RESTRICTION_SQE_OP
        r[REGISTERS + n].what = MAY_DO[n]
    r[REGISTERS + OPS].kind = IORING_RESTRICTION_SQE_FLAGS_ALLOWED
    r[REGISTERS + OPS].what = IOSQE_IO_LINK | IOSQE_ASYNC | IOSQE_CQE_SKIP_SUCCESS
    cdef int failed = sys_io_uring_register(fd, IORING_REGISTER_RESTRICTIONS, r, OPS + REGISTERS + 1)
    return failed if failed < 0 else sys_io_uring_register(fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0)


cdef void *memory(size_t length) noexcept nogil:
    """Zeroed pages, or NULL."""
    cdef void *m = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0)
    return NULL if m == MAP_FAILED else m


cdef int setup_here(Uring *u, unsigned entries, io_uring_params *p) noexcept nogil:
    """Create a ring in memory of ours (Linux 6.5). Its fd, or -errno.

    What is mapped of a ring's file keeps the ring as long as a thread of the process lives. If that waits for a lock whose
    holder waits for a request that the ring's thread was about to be given when it was killed, nobody ends that: the
    kernel gives it back when the ring is closed (see alone_with() in _watch).
    """
    cdef unsigned n = 1
    cdef int fd
    while n < entries and n < ENTRIES:
        n *= 2
    u.ring_len = HEADS + 2 * n * sizeof(io_uring_cqe) + n * sizeof(uint32_t)
    u.ring_len = (u.ring_len + 4095) & ~<size_t> 4095
    u.sqes_len = n * sizeof(io_uring_sqe)
    u.ring_map = memory(u.ring_len)
    u.sqes = <io_uring_sqe *> memory(u.sqes_len)
    memset(p, 0, sizeof(io_uring_params))
    p.flags = FLAGS | IORING_SETUP_NO_MMAP
    p.cq_off.user_addr = <uint64_t> u.ring_map
    p.sq_off.user_addr = <uint64_t> u.sqes
    fd = -ENOMEM
    if u.ring_map != NULL and u.sqes != NULL:
        fd = sys_io_uring_setup(entries, p)
    if fd < 0:
        uring_close(u)
    return fd


cdef int map_there(Uring *u, io_uring_params *p) noexcept nogil:
    """Map a ring in the kernel's memory. 0 or -errno."""
    cdef size_t sq_len = p.sq_off.array + p.sq_entries * sizeof(uint32_t)
    cdef size_t cq_len = p.cq_off.cqes + p.cq_entries * sizeof(io_uring_cqe)
    u.ring_len = sq_len if sq_len > cq_len else cq_len
    u.ring_map = mmap(NULL, u.ring_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u.fd, IORING_OFF_SQ_RING)
    if u.ring_map == MAP_FAILED:
        u.ring_map = NULL
        return -ENOMEM
    u.sqes_len = p.sq_entries * sizeof(io_uring_sqe)
    u.sqes = <io_uring_sqe *> mmap(NULL, u.sqes_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u.fd,
                                   IORING_OFF_SQES)
    if <void *> u.sqes == MAP_FAILED:
        u.sqes = NULL
        return -ENOMEM
    return 0


cdef int uring_open(Uring *u, unsigned entries) noexcept nogil:
    """Create and map a ring of 128-byte SQEs for the calling thread. 0 or -errno.

    The CQ takes twice the SQ's entries: every request has at most one SQE out.
    """
    cdef io_uring_params p
    cdef char *m
    cdef int fd, failed
    cdef unsigned i
    cdef uint32_t *array
    memset(u, 0, sizeof(Uring))
    u.fd = -1
    fd = setup_here(u, entries, &p)
    if fd < 0:  # an older kernel, or pages that may not be pinned
        memset(&p, 0, sizeof(p))
        p.flags = FLAGS
        fd = sys_io_uring_setup(entries, &p)
    if fd < 0:
        return fd
    u.fd = fd
    if p.sq_entries < entries or not p.features & IORING_FEAT_SINGLE_MMAP \
            or not p.features & IORING_FEAT_NODROP:
        uring_close(u)
        return -EOPNOTSUPP
    failed = restrict(fd)
    if failed < 0:
        uring_close(u)
        return failed
    if u.ring_map == NULL:
        failed = map_there(u, &p)
        if failed < 0:
            uring_close(u)
            return failed
    m = <char *> u.ring_map
    u.sq_khead = <uint32_t *> (m + p.sq_off.head)
    u.sq_ktail = <uint32_t *> (m + p.sq_off.tail)
    u.sq_kflags = <uint32_t *> (m + p.sq_off.flags)
    u.sq_mask = (<uint32_t *> (m + p.sq_off.ring_mask))[0]
    u.sq_entries = p.sq_entries
    u.cq_khead = <uint32_t *> (m + p.cq_off.head)
    u.cq_ktail = <uint32_t *> (m + p.cq_off.tail)
    u.cq_mask = (<uint32_t *> (m + p.cq_off.ring_mask))[0]
    u.cqes = <io_uring_cqe *> (m + p.cq_off.cqes)
    array = <uint32_t *> (m + p.sq_off.array)
    for i in range(p.sq_entries):  # SQEs are used in order, for good
        array[i] = i
    u.tail = atomic_get32(u.sq_ktail)
    u.head = atomic_get32(u.cq_khead)
    return 0


cdef void uring_close(Uring *u) noexcept nogil:
    """Unmap and close. Closing also gives registered buffers back, when the last request is done."""
    if u.sqes != NULL:
        munmap(u.sqes, u.sqes_len)
        u.sqes = NULL
    if u.ring_map != NULL:
        munmap(u.ring_map, u.ring_len)
        u.ring_map = NULL
    if u.fd >= 0:
        close(u.fd)
        u.fd = -1


cdef int uring_buffers_sparse(Uring *u, unsigned slots) noexcept nogil:
    """Give the ring an empty registered-buffer table of `slots` slots. 0 or -errno."""
    cdef io_uring_rsrc_register reg
    memset(&reg, 0, sizeof(reg))
    reg.nr = slots
    reg.flags = IORING_RSRC_REGISTER_SPARSE
    return sys_io_uring_register(u.fd, IORING_REGISTER_BUFFERS2, &reg, sizeof(reg))


cdef int uring_workers(Uring *u, unsigned bounded) noexcept nogil:
    """How many of io_uring's workers may do the waiting I/O of files for this thread. 0 or -errno.

    As many as wait at a time: by default 4 for each CPU, and what comes when all wait has to wait for them.
    """
    cdef uint32_t most[2]
    most[0] = bounded
    most[1] = 0  # those for what is no file: as it is
    return sys_io_uring_register(u.fd, IORING_REGISTER_IOWQ_MAX_WORKERS, most, 2)


cdef int uring_buffer_set(Uring *u, unsigned slot, void *base, size_t length) noexcept nogil:
    """Pin [base, base + length) and put it in `slot`, in place of what was there. 0 or -errno."""
    cdef iovec iov
    cdef io_uring_rsrc_update2 up
    cdef int r
    iov.iov_base = base
    iov.iov_len = length
    memset(&up, 0, sizeof(up))
    up.offset = slot
    up.data = <uint64_t> &iov
    up.nr = 1
    r = sys_io_uring_register(u.fd, IORING_REGISTER_BUFFERS_UPDATE, &up, sizeof(up))
    return 0 if r == 1 else (r if r < 0 else -EFAULT)
