# The part of ServerCore that tests reach into.
from passthru._request cimport Server

cdef class ServerCore:
    cdef Server s
    cdef object stats_buffer
    cdef char *stats_base
