"""For benchmarks: READ, WRITE and FSYNC answered without the source, to show the ceiling of a transport.

READ gives what the payload buffer happens to hold, so this is for nobody's real data.
"""
from passthru._abi cimport *
from passthru._libc cimport *
from passthru._request cimport *


cdef int null_read(Request *r) noexcept nogil:
    cdef fuse_read_in *arg = <fuse_read_in *> r.op_in
    if arg.size > r.out_cap:
        return -EINVAL
    r.ctx.stats.read_bytes += arg.size
    return <int> arg.size


cdef int null_write(Request *r) noexcept nogil:
    cdef fuse_write_in *arg = <fuse_write_in *> r.op_in
    cdef fuse_write_out *out = <fuse_write_out *> r.out
    if arg.size > r.arg_len:
        return -EINVAL
    r.ctx.stats.write_bytes += arg.size
    out.size = arg.size
    out.padding = 0
    return sizeof(fuse_write_out)


cdef int null_fsync(Request *r) noexcept nogil:
    return 0
