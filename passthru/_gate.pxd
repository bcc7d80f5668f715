# Who is let in.
from passthru._request cimport Request

cdef int gate(Request *r) noexcept nogil
