# The forms of FUSE over io_uring. Cold: what the loop needs is left behind as numbers.
from passthru._ring cimport Worker

cdef enum:
    # Numbers that the status page has as well; their names: _dialect.pyx.
    D_PER_ENTRY = 1
    D_BUFRING = 2          # kernel 7.3-rc with the "buffer rings" series
    D_BUFPOOL = 3          # Linux 7.3

cdef int worker_register(Worker *w, int fuse_fd) noexcept nogil
cdef void worker_spoil(Worker *w) noexcept nogil
