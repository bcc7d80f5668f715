# --debug-fuse.
from passthru._request cimport Server

cdef void trace_switch(Server *s, bint on) noexcept nogil
