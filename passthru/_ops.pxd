# Opcode dispatch.
from libc.stdint cimport uint32_t

from passthru._request cimport Request

cdef enum:
    # Flags of an operation.
    OWN_WAIT = 1           # the handler itself sends what waits away
    BY_OPEN_FILE = 2       # by a file that is open already, or the kernel's own doing: see _gate
    IN_DIRECTORY = 4       # a name, or a listing: ENOTDIR where the root is no directory
    # What its reply hands out, see undelivered():
    GIVES_ENTRY = 8        # a lookup, in the fuse_entry_out at its beginning
    GIVES_FILE = 16        # an open file or directory: a fuse_open_out, after the entry if there is one
    GIVES_LIST = 32        # entries before names
    TAKES_LOCK = 64        # the lock of a file in the source, see change_begin() in _inode

cdef int dispatch(Request *r) noexcept nogil
cdef uint32_t op_in_size(uint32_t opcode) noexcept nogil
cdef const char *op_name(uint32_t opcode) noexcept nogil
cdef uint32_t op_flags(uint32_t opcode) noexcept nogil
cdef void undelivered(Request *r, int result) noexcept nogil
cdef void ops_init(bint null_io) noexcept nogil
