"""For tests only: requests without a kernel, through the ring's parser and to the handlers."""
import os

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from passthru._abi cimport *
from passthru._copy cimport payloads_unmap
from passthru._inode cimport Inode, inode_add, inode_at, inode_by_handle, inode_find
from passthru._libc cimport *
from passthru._mounts cimport mount_facts as facts_of_mount
from passthru._notify cimport *
from passthru._ops cimport undelivered
from passthru._request cimport *
from passthru._ring cimport *
from passthru._serve cimport context_close, context_open
from passthru._server cimport ServerCore
from passthru._stats cimport T_QUEUE, StatsHeader
from passthru._stats cimport latency_bucket as bucket
from passthru._uring cimport *

cdef enum:
    UNTOUCHED = 0xA5
    DEPTH = 3              # of Loop's queue; the one in the middle is used


def mount_facts(int mountinfo, unsigned number):
    """FS_ flags of that mount in a file like mountinfo(5)."""
    cdef statx stx
    memset(&stx, 0, sizeof(stx))
    return facts_of_mount(mountinfo, -1, number, &stx)


def latency_bucket(uint64_t ns):
    """The bucket of a latency."""
    return bucket(ns)


def inode_of(ServerCore core, int fd):
    """By its file handle, the nodeid of the source's object that `fd` refers to; 0: the table does not know it.

    OSError: it cannot be found out.
    """
    cdef file_handle_max fh
    cdef int64_t found = sys_name_to_handle_at(fd, &fh)
    if found == 0:
        with nogil:
            found = inode_by_handle(&core.s.inodes, 0, &fh)
    if found < 0:
        raise OSError(-found, os.strerror(-found))
    return found


def lookups(ServerCore core, uint64_t nodeid):
    """How many lookups of an inode are counted; None: there is no such inode."""
    cdef Inode *i = inode_at(&core.s.inodes, nodeid)
    return i.nlookup if i != NULL else None


cdef class Notifier:
    """Notifications by `fd`, one of a live mount's connection. What each does, and returns as 0 or -errno: _notify."""
    cdef Server s
    cdef StatsHeader page

    def __cinit__(self, int fd):
        memset(&self.s, 0, sizeof(Server))
        memset(&self.page, 0, sizeof(StatsHeader))
        self.s.stats = &self.page
        self.s.fuse_fd = fd

    @property
    def failed(self):
        """How many the kernel did not take."""
        return self.page.notify_failed

    def attributes(self, uint64_t nodeid):
        with nogil:
            r = notify_attributes(&self.s, nodeid)
        return r

    def pages(self, uint64_t nodeid, int64_t off, int64_t length):
        with nogil:
            r = notify_pages(&self.s, nodeid, off, length)
        return r

    def entry(self, uint64_t parent, bytes name, bint expire_only):
        cdef const char *n = name
        with nogil:
            r = notify_entry(&self.s, parent, n, expire_only)
        return r

    def delete(self, uint64_t parent, uint64_t child, bytes name):
        cdef const char *n = name
        with nogil:
            r = notify_delete(&self.s, parent, child, n)
        return r

    def epoch(self):
        with nogil:
            r = notify_epoch(&self.s)
        return r

    def resend(self):
        with nogil:
            r = notify_resend(&self.s)
        return r

    def poll(self, uint64_t kh):
        with nogil:
            r = notify_poll(&self.s, kh)
        return r

    def retrieve(self, uint64_t unique, uint64_t nodeid, uint64_t offset, uint32_t size):
        with nogil:
            r = notify_retrieve(&self.s, unique, nodeid, offset, size)
        return r

    def prune(self, nodeids):
        cdef uint64_t *list = <uint64_t *> calloc(len(nodeids) or 1, sizeof(uint64_t))
        cdef uint32_t count = len(nodeids)
        cdef uint32_t n
        if list == NULL:
            raise MemoryError()
        for n in range(count):
            list[n] = nodeids[n]
        with nogil:
            r = notify_prune(&self.s, list, count)
        free(list)
        return r


cdef void completed(Request *r, int result) noexcept nogil:
    r.result = result
    atomic_set32(<uint32_t *> &r.done_flag, 1)


cdef class Requests:
    """A queue of one entry on a calling thread, which becomes a serving thread: use a process of its own.

    size, buffers: the payload pool's, which lies between pages that cannot be touched; mask, scale:
    how a request's location leads into it. Raises OSError.
    """
    cdef ServerCore core
    cdef Worker w
    cdef Queue q
    cdef Entry e
    cdef fuse_uring_req_header slot
    cdef char *region
    cdef size_t region_len

    def __cinit__(self, ServerCore core, size_t size, unsigned buffers=1, uint32_t mask=0, uint32_t scale=0,
                  bint zero_copy=False):
        cdef int r
        cdef void *m
        self.core = core
        memset(&self.w, 0, sizeof(Worker))
        memset(&self.q, 0, sizeof(Queue))
        memset(&self.e, 0, sizeof(Entry))
        r = context_open(&self.w.ctx, &core.s, T_QUEUE, -1)
        if r < 0:
            raise OSError(-r, os.strerror(-r))
        self.region_len = size * buffers + 2 * PAGE
        m = mmap(NULL, self.region_len, 0, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if m == MAP_FAILED or mprotect(<char *> m + PAGE, size * buffers, PROT_READ | PROT_WRITE) < 0:
            raise MemoryError()
        self.region = <char *> m
        self.q.worker = &self.w
        self.q.payloads.base = self.region + PAGE
        self.q.payloads.size = size
        self.q.location_mask = mask
        self.q.location_scale = scale
        self.q.location_limit = 1 if mask == 0 else (buffers - 1) * size + 1 if scale == 1 else buffers * size
        self.q.zero_copy = zero_copy
        self.e.queue = &self.q
        self.e.slot = &self.slot
        self.e.payload = self.q.payloads.base
        self.e.req.ctx = &self.w.ctx
        self.e.req.complete = completed

    def parse(self, bytes slot, bytes payload=b"", size_t at=0):
        """Give the parser a header slot of 288 bytes. (result, payload offset, length, reply room, zero-copy)."""
        if len(slot) != sizeof(fuse_uring_req_header) or at + len(payload) > self.region_len - 2 * PAGE:
            raise ValueError("wrong size")
        memcpy(&self.slot, <char *> slot, sizeof(fuse_uring_req_header))
        memcpy(self.q.payloads.base + at, <char *> payload, len(payload))
        self.e.req.ctx = &self.w.ctx
        r = entry_request(&self.e)
        inside = self.q.payloads.base <= self.e.req.arg < self.region + self.region_len - PAGE
        return (r, self.e.req.arg - self.q.payloads.base if inside else None, self.e.req.arg_len,
                self.e.req.out_cap, bool(self.e.req.zero_copy))

    cdef int answer(self) noexcept nogil:
        cdef Request *r = &self.e.req
        cdef int result
        r.done_flag = 0
        result = self.core.s.dispatch(r)
        if result == PENDING:
            while not atomic_get32(<uint32_t *> &r.done_flag):
                sched_yield()
            result = r.result
        return result

    def serve(self):
        """Have the handlers serve what parse() took. (result, the first 160 bytes of the reply)."""
        cdef Request *r = &self.e.req
        cdef int result
        with nogil:
            result = self.answer()
        if result > 0 and r.out_cap == 0:
            undelivered(r, result)
            return -EIO, b""
        if result > <int> r.out_cap:
            raise AssertionError(f"a reply of {result} bytes for {r.out_cap}")
        return result, (<char *> r.out)[:160 if r.out_cap > 160 else r.out_cap]

    def serve_many(self, bytes slot, bytes payload, unsigned long times):
        """Parse the same request and have the handlers serve it, `times` times. How many were answered without an error."""
        cdef char *head = slot
        cdef char *body = payload
        cdef size_t size = len(payload)
        cdef unsigned long _
        cdef unsigned long good = 0
        if len(slot) != sizeof(fuse_uring_req_header) or size > self.region_len - 2 * PAGE:
            raise ValueError("wrong size")
        with nogil:
            for _ in range(times):
                memcpy(&self.slot, head, sizeof(fuse_uring_req_header))
                memcpy(self.q.payloads.base, body, size)
                self.e.req.ctx = &self.w.ctx
                if entry_request(&self.e) == 0 and self.answer() >= 0:
                    good += 1
        return good

    def parse_many(self, bytes slot, unsigned long times):
        """Have the parser take `times` requests from 64 entries in turn, each like `slot` but with a payload of its own.

        How many were taken.
        """
        cdef unsigned depth = 64
        cdef unsigned buffers = <unsigned> ((self.q.location_limit + self.q.payloads.size - 1) / self.q.payloads.size)
        cdef fuse_uring_req_header *slots = <fuse_uring_req_header *> calloc(depth, sizeof(fuse_uring_req_header))
        cdef Entry *entries = <Entry *> calloc(depth, sizeof(Entry))
        cdef unsigned n
        cdef unsigned long k
        cdef unsigned long taken = 0
        if slots == NULL or entries == NULL or len(slot) != sizeof(fuse_uring_req_header):
            free(slots)
            free(entries)
            raise ValueError("no memory, or wrong size")
        for n in range(depth):
            memcpy(&slots[n], <char *> slot, sizeof(fuse_uring_req_header))
            if self.q.location_mask:
                slots[n].ring_ent_in_out.location = <uint32_t> (
                    n % buffers * (self.q.payloads.size / self.q.location_scale))
            entries[n] = self.e
            entries[n].slot = &slots[n]
        with nogil:
            for k in range(times):
                if entry_request(&entries[k & (depth - 1)]) == 0:
                    taken += 1
        free(slots)
        free(entries)
        return taken

    def close(self):
        context_close(&self.w.ctx)
        munmap(self.region, self.region_len)


cdef class Inodes:
    """Made-up inodes in a mount's table, known by file handle: none has an fd, none is in the source.

    Look-ups go through them in an order that no cache foresees. The table goes with the core.
    """
    cdef ServerCore core
    cdef uint32_t *nodes
    cdef uint32_t count

    def __cinit__(self, ServerCore core, uint32_t count):
        cdef statx stx
        cdef file_handle_max handle
        cdef uint32_t n
        self.core = core
        self.nodes = <uint32_t *> malloc(count * sizeof(uint32_t))
        if self.nodes == NULL:
            raise MemoryError()
        for n in range(count):
            made_up(n, &stx, &handle)
            self.nodes[n] = inode_add(&core.s.inodes, n, 0, &stx, -1, &handle)
            if not self.nodes[n]:
                raise MemoryError()
        self.count = count

    def close(self):
        """After that nothing is looked up any more."""
        free(self.nodes)
        self.nodes = NULL

    def by_nodeid(self, unsigned long times):
        """What each request does. How many were found."""
        cdef unsigned long _
        cdef unsigned long found = 0
        cdef uint32_t n = 1
        cdef Inode *i
        with nogil:
            for _ in range(times):
                n = n * <uint32_t> 0x9e3779b1 + 97
                i = inode_at(&self.core.s.inodes, self.nodes[(<uint64_t> n * self.count) >> 32])
                if i != NULL:
                    found += 1
        return found

    def by_stat(self, unsigned long times):
        """What LOOKUP of a known file does. How many were found."""
        cdef unsigned long _
        cdef unsigned long found = 0
        cdef uint32_t n = 1
        cdef uint32_t at
        cdef statx stx
        cdef file_handle_max handle
        with nogil:
            for _ in range(times):
                n = n * <uint32_t> 0x9e3779b1 + 97
                at = <uint32_t> ((<uint64_t> n * self.count) >> 32)
                made_up(at, &stx, &handle)
                if inode_find(&self.core.s.inodes, 0, &stx, &handle) == self.nodes[at]:
                    found += 1
        return found


cdef void made_up(uint32_t n, statx *stx, file_handle_max *handle) noexcept nogil:
    memset(stx, 0, sizeof(statx))
    stx.stx_ino = 0x100000 + n
    stx.stx_mode = 0o100644
    handle.handle_bytes = 8
    handle.handle_type = 1
    memcpy(handle.f_handle, &stx.stx_ino, 8)


cdef char *guarded(size_t size) except NULL:
    """`size` bytes, whole pages, between two that cannot be touched."""
    cdef void *m = mmap(NULL, size + 2 * PAGE, 0, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if m == MAP_FAILED or mprotect(<char *> m + PAGE, size, PROT_READ | PROT_WRITE) < 0:
        raise MemoryError()
    return <char *> m + PAGE


cdef void place_pages(Uring *ring, unsigned index, uint64_t address) noexcept nogil:
    """Addresses in pages of the kernel's start at 0, in memory that a process has registered with it."""
    cdef unsigned n
    cdef io_uring_sqe *sqe
    for n in range(ring.tail - atomic_get32(ring.sq_khead)):
        sqe = &ring.sqes[(atomic_get32(ring.sq_khead) + n) & ring.sq_mask]
        if sqe.opcode in (IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED) and sqe.buf_index == index:
            sqe.addr += address


cdef class Loop:
    """A queue with its ring, as the loop serves it, but for the kernel's side: commits are NOPs.

    The calling thread becomes a serving thread: use a process of its own. size, buffers, mask, scale,
    zero_copy: as in Requests; payloads and the pages of zero-copied requests lie between pages that
    cannot be touched. Raises OSError.
    """
    cdef ServerCore core
    cdef Worker w
    cdef Queue *q
    cdef Entry *e
    cdef char *pages
    cdef char *untouched
    cdef size_t size, total

    def __cinit__(self, ServerCore core, size_t size, unsigned buffers, uint32_t mask, uint32_t scale, bint zero_copy):
        cdef unsigned qid = 0
        cdef unsigned n
        cdef int r
        self.core = core
        r = worker_open(&self.w, &core.s, &qid, 1, DEPTH, buffers, buffers, -1)
        if r < 0:
            raise OSError(-r, os.strerror(-r))
        self.size, self.total = size, size * buffers
        self.q = &self.w.queues[0]
        self.q.spares = 0  # there is no kernel to register them with
        payloads_unmap(&self.q.payloads)
        self.q.payloads.base = guarded(self.total)
        self.q.payloads.size = size
        self.q.location_mask = mask
        self.q.location_scale = scale
        self.q.location_limit = 1 if mask == 0 else (buffers - 1) * size + 1 if scale == 1 else self.total
        self.q.zero_copy = zero_copy
        self.q.commit.opcode = IORING_OP_NOP
        self.pages = guarded(size)
        self.untouched = guarded(self.total)
        memset(self.untouched, UNTOUCHED, self.total)
        memset(self.q.payloads.base, UNTOUCHED, self.total)
        memset(self.w.slots, UNTOUCHED, DEPTH * sizeof(fuse_uring_req_header))
        for n in range(DEPTH):
            self.q.entries[n].payload = self.q.payloads.base
            self.q.entries[n].req.fixed_base = self.q.payloads.base
            self.q.entries[n].req.fixed_max = <uint32_t> self.total
            self.q.entries[n].req.buf_index = self.q.pool_slot
            self.q.entries[n].req.zero_copy_index = <uint16_t> self.q.entries[n].id
        self.e = &self.q.entries[1]
        arm_wake(&self.w)

    def request(self, bytes slot, bytes payload, size_t at, size_t pages):
        """Serve one request to its commit. (error, the reply's body up to 160 bytes).

        at: where the kernel has put the payload; pages: bytes of the zero-copied pages. AssertionError: memory of
        others was touched, or the reply breaks the protocol.
        """
        cdef io_uring_cqe *cqe
        cdef fuse_out_header *out = <fuse_out_header *> self.e.slot.in_out
        cdef fuse_uring_ent_in_out *io = &self.e.slot.ring_ent_in_out
        cdef uint64_t me = <uint64_t> self.e
        cdef uint64_t user_data
        cdef char *base = self.q.payloads.base
        cdef bint ended = False
        cdef size_t mine
        cdef size_t end
        cdef char *reply
        cdef int r
        if len(slot) != sizeof(fuse_uring_req_header) or at + len(payload) > self.total or pages > self.size:
            raise ValueError("wrong size")
        memcpy(self.e.slot, <char *> slot, sizeof(fuse_uring_req_header))
        memcpy(base + at, <char *> payload, len(payload))
        memcpy(self.untouched + at, <char *> payload, len(payload))
        if pages:
            r = uring_buffer_set(&self.w.ring, self.e.id, self.pages, pages)
            if r < 0:
                raise OSError(-r, os.strerror(-r))
        unique = (<fuse_in_header *> self.e.slot.in_out).unique
        before = self.w.ctx.stats.commits
        mine = <size_t> (io.location & self.q.location_mask) * self.q.location_scale
        if mine >= self.q.location_limit:
            mine = 0
        with nogil:
            self.e.state = E_KERNEL
            handle_cqe(&self.w, me | KIND_COMMAND, 0)
            while not ended:
                place_pages(&self.w.ring, self.e.id, <uint64_t> self.pages)
                uring_enter(&self.w.ring, 1)
                while True:
                    cqe = uring_peek(&self.w.ring)
                    if cqe == NULL:
                        break
                    user_data = cqe.user_data
                    if user_data == (me | KIND_COMMAND) and cqe.res >= 0:
                        ended = True
                        if self.e.state == E_LINKED:
                            link_turn(self.e, E_KERNEL)
                    else:
                        handle_cqe(&self.w, user_data, cqe.res)
                    uring_seen(&self.w.ring)
                if not self.w.wake_armed:
                    arm_wake(&self.w)
        if pages:
            uring_buffer_set(&self.w.ring, self.e.id, NULL, 0)
        assert self.e.state == E_KERNEL and self.w.ctx.stats.commits == before + 1
        assert self.w.ctx.inflight == 0 and self.w.ctx.pooled == 0 and self.w.ctx.linked == 0
        assert out.unique == unique
        assert -512 < out.error <= 0, out.error
        assert out.len == sizeof(fuse_out_header) + io.payload_sz
        assert not out.error or not io.payload_sz
        assert io.payload_sz <= (pages if self.e.req.zero_copy and self.e.req.h.opcode != FUSE_WRITE else self.size)
        end = min(mine + self.size, self.total)
        assert memcmp(base, self.untouched, mine) == 0, "before the payload"
        assert memcmp(base + end, self.untouched + end, self.total - end) == 0, "behind the payload"
        reply = self.pages if self.e.req.zero_copy and self.e.req.h.opcode != FUSE_WRITE else base + mine
        body = (<char *> reply)[:min(160, io.payload_sz)]
        memset(base + mine, UNTOUCHED, end - mine)
        memset(base + at, UNTOUCHED, len(payload))
        memset(self.untouched + at, UNTOUCHED, len(payload))
        assert memcmp(&self.w.slots[0], self.untouched, sizeof(fuse_uring_req_header)) == 0, "the header slot before"
        assert memcmp(&self.w.slots[2], self.untouched, sizeof(fuse_uring_req_header)) == 0, "the header slot behind"
        return out.error, body

    def lose(self, int error):
        """End each entry's command with an errno. (entries lost, the errno that ends the queue's thread)."""
        cdef unsigned n
        self.w.alive = DEPTH
        for n in range(DEPTH):
            self.q.entries[n].state = E_KERNEL
            handle_cqe(&self.w, <uint64_t> &self.q.entries[n] | KIND_COMMAND, -error)
        assert self.w.alive == 0
        return self.w.ctx.stats.entries_lost, -self.w.error

    @property
    def counts(self):
        """(requests refused, zero-copied, by the ring, by registered memory) so far."""
        return (self.w.ctx.stats.refused, self.w.ctx.stats.io_zero_copy, self.w.ctx.stats.io_ring,
                self.w.ctx.stats.io_fixed)

    def close(self):
        munmap(self.q.payloads.base - PAGE, self.total + 2 * PAGE)
        self.q.payloads.base = NULL
        munmap(self.pages - PAGE, self.size + 2 * PAGE)
        munmap(self.untouched - PAGE, self.total + 2 * PAGE)
        with nogil:
            worker_close(&self.w)
