# Payload memory: READ and WRITE.
from passthru._request cimport Request

cdef struct Payloads:          # the payload memory of one queue
    char *base
    size_t size                # of one payload, bytes
    unsigned count

cdef int payloads_map(Payloads *p, unsigned count, size_t size) noexcept nogil
cdef char *payload_map(Payloads *p) noexcept nogil
cdef void payload_unmap(Payloads *p, char *payload) noexcept nogil
cdef void payloads_gather(Payloads *p, char *at) noexcept nogil
cdef void payloads_unmap(Payloads *p) noexcept nogil


cdef int op_read(Request *r) noexcept nogil
cdef int op_write(Request *r) noexcept nogil


cdef inline char *payload_at(Payloads *p, unsigned n) noexcept nogil:
    return p.base + n * p.size
