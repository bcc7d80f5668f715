"""--debug-fuse: each request and its reply as a line, in the form of libfuse's.

It is a layer before the handlers: Server.dispatch leads here while it is on, and costs nothing while it is off.
What is answered later is seen by putting our functions before Request.finish and Request.complete. Linked
commits (_ring) have no moment when the reply is known, so there are none meanwhile.
"""
from libc.stdint cimport uint64_t

from passthru._abi cimport atomic_get32, atomic_set32, fuse_out_header
from passthru._libc cimport snprintf, strerror_r
from passthru._log cimport LOG_LINE, log_trace
from passthru._ops cimport op_name
from passthru._request cimport *
from passthru._uring cimport Uring

cdef void request_line(Request *r, Uring *ring) noexcept nogil:
    cdef char line[LOG_LINE]
    cdef const char *name = op_name(r.h.opcode)
    if name == NULL:
        name = "???"
    snprintf(line, sizeof(line), "%s unique: %lu, opcode: %s (%u), nodeid: %lu, insize: %u, pid: %u",
             b"cqe" if ring != NULL else b"dev", r.h.unique, name, r.h.opcode, r.h.nodeid, r.h.len, r.h.pid)
    log_trace(line)


cdef void reply_line(uint64_t unique, int result) noexcept nogil:
    cdef char line[LOG_LINE]
    cdef char text[100]
    if result == NOREPLY:
        return
    if result >= 0:
        snprintf(line, sizeof(line), "   unique: %lu, success, outsize: %u", unique,
                 <unsigned> (sizeof(fuse_out_header) + result))
    else:
        snprintf(line, sizeof(line), "   unique: %lu, error: %d (%s), outsize: %u", unique, result,
                 strerror_r(-result, text, sizeof(text)), <unsigned> sizeof(fuse_out_header))
    log_trace(line)


cdef void traced_complete(Request *r, int result) noexcept nogil:
    """Instead of Request.complete, on the pool's thread."""
    if atomic_get32(&server_of(r).tracing):
        reply_line(r.h.unique, result)
    r.completed(r, result)


cdef int traced_finish(Request *r, int res) noexcept nogil:
    """Instead of Request.finish."""
    cdef int result = r.finished(r, res)
    if result != PENDING:
        if atomic_get32(&server_of(r).tracing):
            reply_line(r.h.unique, result)
    else:
        hook_finish(r)
    return result


cdef void hook_finish(Request *r) noexcept nogil:
    """After PENDING, on the ring's thread, which alone takes completions. With the pool `finish` means nothing."""
    if r.finish != traced_finish:
        r.finished = r.finish
        r.finish = traced_finish


cdef int trace(Request *r) noexcept nogil:
    cdef Server *s = server_of(r)
    cdef Context *ctx = r.ctx
    cdef Uring *ring = ctx.ring
    cdef Linker link = ctx.link
    cdef uint64_t unique = r.h.unique
    cdef int result
    request_line(r, ring)
    if r.complete != traced_complete:
        r.completed = r.complete
        r.complete = traced_complete
    ctx.link = NULL
    result = s.traced(r)
    ctx.link = link
    if result != PENDING:
        reply_line(unique, result)
    elif ring != NULL:
        hook_finish(r)
    # By /dev/fuse the request is the pool's now, and perhaps answered already.
    return result


cdef void trace_switch(Server *s, bint on) noexcept nogil:
    """Switch it on or off, while requests are served or before. One thread at a time."""
    if on and not s.tracing:
        s.traced = s.dispatch
        atomic_set32(&s.tracing, 1)
        s.dispatch = trace
    elif not on and s.tracing:
        s.dispatch = s.traced
        atomic_set32(&s.tracing, 0)
