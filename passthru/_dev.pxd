# The /dev/fuse transport.
from libc.stdint cimport uint32_t

from passthru._arena cimport Intent
from passthru._request cimport Context, Request, Server

cdef struct DevThread:
    Context ctx
    int fd                 # (cloned) /dev/fuse: requests are answered where they were read
    int tid
    uint32_t lock          # of `free`
    DevRequest *free
    uint32_t out           # requests with the pool
    int error              # the errno that ended the thread, ENODEV after unmount

cdef struct DevRequest:
    Request req            # first
    DevThread *thread
    char *region
    char *in_buf
    size_t in_size
    DevRequest *next
    Intent none            # its intent, where nobody takes over

cdef int dev_open(DevThread *t, Server *s, int fd) noexcept nogil
cdef void dev_serve(DevThread *t) noexcept nogil
cdef void dev_close(DevThread *t) noexcept nogil
