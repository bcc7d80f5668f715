# What the daemon tells the kernel without having been asked. Which threads may say what: _notify.pyx.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from passthru._request cimport Server

# By any thread:
cdef int notify_attributes(Server *s, uint64_t nodeid) noexcept nogil
cdef int notify_epoch(Server *s) noexcept nogil
cdef int notify_resend(Server *s) noexcept nogil
cdef int notify_poll(Server *s, uint64_t kh) noexcept nogil
cdef int notify_retrieve(Server *s, uint64_t unique, uint64_t nodeid, uint64_t offset, uint32_t size) noexcept nogil
# By threads that nobody's requests wait for:
cdef int notify_pages(Server *s, uint64_t nodeid, int64_t off, int64_t length) noexcept nogil
cdef int notify_entry(Server *s, uint64_t parent, const char *name, bint expire_only) noexcept nogil
cdef int notify_delete(Server *s, uint64_t parent, uint64_t child, const char *name) noexcept nogil
cdef int notify_prune(Server *s, const uint64_t *nodeids, uint32_t count) noexcept nogil
