# Security labels of what is made (FUSE_SECURITY_CTX).
from passthru._request cimport Context, Request

cdef int label_take(Request *r) noexcept nogil
cdef void label_drop(Context *ctx) noexcept nogil
