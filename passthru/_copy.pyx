"""Payload memory, and what moves file data through it: READ and WRITE.

Per request: what the source has at hand is copied at once (preadv2/pwritev2 with
RWF_NOWAIT, or plainly where the source is memory); what has to wait for a device goes
to the queue's own ring as READ_FIXED/WRITE_FIXED, or to the pool where there is no ring.
"""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from passthru._abi cimport *
from passthru._identity cimport data_drop, data_take
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._mode cimport kill_suidgid
from passthru._openfile cimport cache_fd, fh_fd, mirror_flags
from passthru._request cimport *
from passthru._uring cimport uring_ahead, uring_buffer_set
from passthru._wait cimport REMOTE_RING, later, patiently, ring_identity, ring_link, ring_sqe

cdef enum:
    HUGE_PAGE = 2 * 1024 * 1024
    SMALL_FIXED = 64 * 1024     # a payload is registered up to here first, whole when needed
    SLOW_NS = 2000000           # a buffered write that took this long was throttled,
    SLOW_DEVICE_NS = 500000     # a direct one met a slow or busy device:
    PATIENCE_NS = 50000000      # for so long, such I/O goes to the ring


# --------------------------------------------------------- payload memory

cdef int payloads_map(Payloads *p, unsigned count, size_t size) noexcept nogil:
    """Address space for `count` payloads; memory comes with use. 0 or -ENOMEM."""
    cdef void *m = mmap(NULL, count * size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if m == MAP_FAILED:
        return -ENOMEM
    madvise(m, count * size, MADV_DONTDUMP)
    p.base = <char *> m
    p.size = size
    p.count = count
    return 0


cdef char *payload_map(Payloads *p) noexcept nogil:
    """One more, which lies elsewhere. NULL: no address space."""
    cdef void *m = mmap(NULL, p.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if m == MAP_FAILED:
        return NULL
    madvise(m, p.size, MADV_DONTDUMP)
    return <char *> m


cdef void payload_unmap(Payloads *p, char *payload) noexcept nogil:
    """Of payload_map(); not of those that lie together."""
    if payload < p.base or payload >= p.base + p.count * p.size:
        munmap(payload, p.size)


cdef void payloads_gather(Payloads *p, char *at) noexcept nogil:
    """Have the payload `at` on huge pages (MADV_COLLAPSE: Linux 6.1), with as much around it as that takes.

    To be done when large requests come: before, a payload takes a page or two.
    """
    cdef uint64_t mask = HUGE_PAGE - 1
    cdef uint64_t first = <uint64_t> at & ~mask
    cdef uint64_t end = (<uint64_t> at + p.size + mask) & ~mask
    first = max(first, (<uint64_t> p.base + mask) & ~mask)
    end = min(end, <uint64_t> (p.base + p.count * p.size) & ~mask)
    if first < end:
        madvise(<void *> first, end - first, MADV_COLLAPSE)  # pinned memory stays what it is


cdef void payloads_unmap(Payloads *p) noexcept nogil:
    if p.base != NULL:
        munmap(p.base, p.count * p.size)
        p.base = NULL


cdef bint payload_fixed(Request *r) noexcept nogil:
    """Is [buf, buf + len) in the request's registered buffer? Registers it at first use.

    Registering pins the memory, so it happens for entries that do waiting I/O only, and
    within the session's budget; past it plain READ and WRITE serve.
    """
    cdef Server *s = r.ctx.server
    cdef size_t end
    cdef size_t want
    if r.fixed_base == NULL or r.buf < r.fixed_base:
        return False
    end = (r.buf - r.fixed_base) + r.len
    if end <= r.fixed_len:
        return True
    if end > r.fixed_max or s.config.fixed_budget == 0:
        return False
    want = SMALL_FIXED if end <= SMALL_FIXED else r.fixed_max
    if want > r.fixed_max:
        want = r.fixed_max
    if <uint64_t> atomic_add32(&s.fixed_bytes, <uint32_t> ((want - r.fixed_len) >> 10)) * 1024 \
            > s.config.fixed_budget \
            or uring_buffer_set(r.ctx.ring, r.buf_index, r.fixed_base, want) < 0:
        atomic_sub32(&s.fixed_bytes, <uint32_t> ((want - r.fixed_len) >> 10))
        s.config.fixed_budget = 0  # and no further attempts
        return False
    r.fixed_len = <uint32_t> want
    return True


# ------------------------------------------------------------ waiting I/O


cdef int ring_rw(Request *r, bint writing) noexcept nogil:
    """What remains of r ([done, len) at off + done), on the queue's own ring."""
    cdef bint fixed = r.zero_copy or payload_fixed(r)
    cdef int who = ring_identity(r) if writing else 0
    cdef io_uring_sqe *sqe
    if who < 0:
        return who if r.zero_copy else later(r, pooled_write)
    if r.file.flags & OF_REMOTE:
        if r.ctx.remote >= REMOTE_RING and not r.zero_copy:
            return later(r, pooled_write if writing else blocking_read)
        r.ctx.remote += 1
        r.away = AWAY_RING
    sqe = ring_sqe(r, write_done if writing else read_done)
    sqe.personality = <uint16_t> who
    if r.file.flags & OF_REMOTE:
        sqe.flags = IOSQE_ASYNC  # a submission asks the file whether it is ready, and that may wait
    if r.zero_copy:
        # The kernel's own pages, registered for this request: addresses start at 0.
        sqe.opcode = IORING_OP_WRITE_FIXED if writing else IORING_OP_READ_FIXED
        sqe.buf_index = r.zero_copy_index
        sqe.off = r.off + r.done
        sqe.addr = r.done
        sqe.len = r.len - r.done
        r.ctx.stats.io_zero_copy += 1
        # Not behind what a worker of io_uring does (buffered writes, memory, remote files): that worker
        # may run the commit as well, which is the kernel's least trodden path.
        if r.ctx.link != NULL and not writing and not r.file.flags & (OF_SYNC_READ | OF_REMOTE):
            ring_link(r, sqe)
        return PENDING
    if fixed:
        sqe.opcode = IORING_OP_WRITE_FIXED if writing else IORING_OP_READ_FIXED
        sqe.buf_index = r.buf_index
        r.ctx.stats.io_fixed += 1
    else:
        sqe.opcode = IORING_OP_WRITE if writing else IORING_OP_READ
    sqe.off = r.off + r.done
    sqe.addr = <uint64_t> (r.buf + r.done)
    sqe.len = r.len - r.done
    return PENDING


cdef int read_error(Request *r, int error) noexcept nogil:
    """After `done` bytes. For the page cache a short read would be the end of the file."""
    return <int> r.done if r.done and r.file.flags & OF_DIRECT else error


cdef int read_done(Request *r, int res) noexcept nogil:
    """A short read is not the end of the file: only a read of nothing is."""
    if res == -EINTR or res == -EAGAIN:
        return ring_rw(r, False)
    if res < 0:
        return read_error(r, res)
    r.done += res
    if res > 0 and r.done < r.len:
        return ring_rw(r, False)
    r.ctx.stats.read_bytes += r.done
    return r.done


cdef int write_done(Request *r, int res) noexcept nogil:
    if res == -EINTR or res == -EAGAIN:
        return ring_rw(r, True)
    if res > 0:
        r.done += res
        if r.done < r.len:
            return ring_rw(r, True)
    return write_reply(r, res)


cdef int write_reply(Request *r, int res) noexcept nogil:
    """After `done` bytes and a last result: what was written counts more than an error behind it.

    But not with O_DIRECT: of a short write the kernel makes EIO, which tells less than the error.
    """
    cdef fuse_write_out *out = <fuse_write_out *> r.out
    if res < 0 and (r.done == 0 or r.file.open_flags & O_DIRECT):
        return res
    r.ctx.stats.write_bytes += r.done
    out.size = r.done
    out.padding = 0
    return sizeof(fuse_write_out)


cdef int blocking_read(Request *r) noexcept nogil:
    cdef ssize_t n
    while r.done < r.len:
        n = pread(r.fd, r.buf + r.done, r.len - r.done, <int64_t> (r.off + r.done))
        if n < 0:
            if errno == EINTR:
                continue
            return read_error(r, -errno)
        if n == 0:
            break
        r.done += <uint32_t> n
        if r.file.flags & OF_SYNC_READ:
            break  # memory has no other reason to be short than its end
    r.ctx.stats.read_bytes += r.done
    return r.done


cdef int pooled_write(Request *r) noexcept nogil:
    """blocking_write() on a pool thread."""
    cdef int res = 0
    if r.as_data:
        if r.file.flags & OF_KILLS:
            kill_suidgid(r.fd)
        res = data_take(r.ctx)
    if res == 0:
        res = blocking_write(r)
    data_drop(r.ctx)
    return res


cdef int blocking_write(Request *r) noexcept nogil:
    cdef ssize_t n
    cdef int res = 0
    while r.done < r.len:
        n = pwrite(r.fd, r.buf + r.done, r.len - r.done, <int64_t> (r.off + r.done))
        if n < 0 and errno == EINTR:
            continue
        if n <= 0:
            res = -errno if n < 0 else 0
            break
        r.done += <uint32_t> n
    return write_reply(r, res)


# ----------------------------------------------------------- READ, WRITE


cdef inline int data_request(Request *r, uint64_t fh, uint64_t off, uint32_t size, char *buf,
                             uint32_t flags) noexcept nogil:
    """Aim a READ or WRITE at its open file's fd. flags: that file's at this moment; 0: of no file."""
    r.fd = fh_fd(r, fh, OF_FILE, &r.file)
    if r.fd < 0:
        return r.fd
    r.off = off
    r.len = size
    r.done = 0
    r.buf = buf
    if (flags ^ r.file.open_flags) & server_of(r).config.mirrored and flags:
        mirror_flags(r, flags)
    return 0


cdef inline bint alone(Request *r) noexcept nogil:
    """Is this the only request at hand, and the device fast of late? Then the ring is a detour."""
    return r.file.flags & (OF_DIRECT | OF_REMOTE) == OF_DIRECT and r.ctx.ring != NULL and not r.ctx.inflight \
        and not r.ctx.linked and not uring_ahead(r.ctx.ring) and now_ns() >= r.ctx.patience


cdef int timed(Request *r, Handler io, uint64_t slow) noexcept nogil:
    """Do I/O inline; if it takes long, none is done inline for a while."""
    cdef uint64_t start = now_ns()
    cdef int res = io(r)
    cdef uint64_t end = now_ns()
    if end - start > slow:
        r.ctx.patience = end + PATIENCE_NS
    r.ctx.stats.io_inline += 1
    return res


cdef int op_read(Request *r) noexcept nogil:
    cdef fuse_read_in *arg = <fuse_read_in *> r.op_in
    cdef OpenFile *file
    cdef iovec iov
    cdef ssize_t n
    cdef int res
    if arg.size > r.out_cap and not r.zero_copy:
        return -EINVAL
    res = data_request(r, arg.fh, arg.offset, arg.size, r.out, arg.flags)
    if res < 0:
        return res
    file = r.file
    if r.zero_copy:
        return ring_rw(r, False)
    if file.passthrough:  # O_APPEND: others read and write by the kernel, and may have the lock, see change_begin()
        return patiently(r, blocking_read)
    if file.flags & OF_SYNC_READ:
        r.ctx.stats.io_inline += 1
        return blocking_read(r)
    while not file.flags & OF_ASYNC_READ:
        iov.iov_base = r.buf + r.done
        iov.iov_len = r.len - r.done
        n = preadv2(r.fd, &iov, 1, <int64_t> (r.off + r.done), RWF_NOWAIT)
        if n < 0:
            if errno == EAGAIN or errno == EINTR:
                break
            if errno == EOPNOTSUPP:
                file.flags |= OF_ASYNC_READ
                break
            return read_error(r, -errno)
        r.done += <uint32_t> n
        if n == 0 or r.done == r.len:
            r.ctx.stats.io_inline += 1
            r.ctx.stats.read_bytes += r.done
            return r.done
    if alone(r):
        return timed(r, blocking_read, SLOW_DEVICE_NS)
    if r.ctx.ring != NULL:
        return ring_rw(r, False)
    return later(r, blocking_read)


cdef int op_write(Request *r) noexcept nogil:
    cdef fuse_write_in *arg = <fuse_write_in *> r.op_in
    cdef OpenFile *file
    cdef int res
    if arg.size > r.arg_len and not r.zero_copy:
        return -EINVAL
    res = data_request(r, arg.fh, arg.offset, arg.size, r.arg, arg.flags)
    if res < 0:
        return res
    file = r.file
    # The kernel says so at each write of who may not keep suid and sgid, whether they are there or not; who has
    # written a page it does not say.
    r.as_data = 1 if r.ctx.data_how and arg.write_flags & (FUSE_WRITE_KILL_SUIDGID | FUSE_WRITE_CACHE) else 0
    if arg.write_flags & FUSE_WRITE_CACHE and (file.open_flags & O_APPEND or file.flags & OF_DIRECT):
        # Pages of an mmap, written back by whatever open file is at hand, to where they belong; and
        # the last one only up to the end of the file.
        r.fd = cache_fd(r.ctx, file)
        if r.fd < 0:
            return r.fd
    if file.passthrough:
        return patiently(r, pooled_write)  # see op_read()
    if r.as_data and file.flags & OF_KILLS:
        return later(r, pooled_write)
    if r.zero_copy:
        return ring_rw(r, True)
    if not file.flags & OF_ASYNC_WRITE or alone(r):
        if r.as_data:
            res = data_take(r.ctx)
            if res < 0:
                return res
        elif r.ctx.as_data:
            data_drop(r.ctx)
        res = write_inline(r)
        if res != PENDING:
            return res
    if r.ctx.ring != NULL:
        return ring_rw(r, True)
    return later(r, pooled_write)


cdef int write_inline(Request *r) noexcept nogil:
    """Write what can be written without waiting; PENDING: something is left."""
    cdef OpenFile *file = r.file
    cdef iovec iov
    cdef ssize_t n
    if file.flags & OF_SYNC_WRITE:
        r.ctx.stats.io_inline += 1
        return blocking_write(r)
    if not file.flags & OF_ASYNC_WRITE:
        iov.iov_base = r.buf
        iov.iov_len = r.len
        n = pwritev2(r.fd, &iov, 1, <int64_t> r.off, RWF_NOWAIT)
        if n >= 0:
            r.done = <uint32_t> n
            if r.done == r.len:
                r.ctx.stats.io_inline += 1
                return write_reply(r, 0)
        elif errno == EOPNOTSUPP:
            # No NOWAIT for buffered writes here (ext4): they go to the page cache at memory speed
            # until the source throttles them. Then the ring's workers take the wait.
            if now_ns() >= r.ctx.patience:
                return timed(r, blocking_write, SLOW_NS)
        elif errno != EAGAIN and errno != EINTR:
            return -errno
    if alone(r) and not file.open_flags & (O_SYNC | O_DSYNC):
        return timed(r, blocking_write, SLOW_DEVICE_NS)
    return PENDING
