# The ioctls that FUSE can carry.
from passthru._request cimport Request

cdef int op_ioctl(Request *r) noexcept nogil
