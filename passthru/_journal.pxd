# What a successor needs to know of requests that cannot be repeated.
from passthru._request cimport Request, Server

cdef int journal(Request *r) noexcept nogil
cdef void journal_complete(Request *r, int result) noexcept nogil
