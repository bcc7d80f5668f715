# What the daemon tells the kernel by itself.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from passthru._abi cimport FUSE_NOTIFY_INVAL_INODE, fuse_out_header
from passthru._libc cimport write
from passthru._request cimport Server

cdef struct InvalInode:        # fuse_notify_inval_inode_out behind its header
    fuse_out_header out
    uint64_t ino
    int64_t off
    int64_t len

cdef struct Retrieve:          # fuse_notify_retrieve_out behind its header
    fuse_out_header out
    uint64_t notify_unique
    uint64_t nodeid
    uint64_t offset
    uint32_t size
    uint32_t padding


cdef inline void notify_inode(Server *s, uint64_t nodeid, int64_t off) noexcept nogil:
    """The attributes, and if off >= 0 the pages from there on: what is dirty comes as WRITEs before this returns."""
    cdef InvalInode n
    n.out.len = sizeof(n)
    n.out.error = FUSE_NOTIFY_INVAL_INODE
    n.out.unique = 0
    n.ino = nodeid
    n.off = off
    n.len = 0
    write(s.fuse_fd, &n, sizeof(n))


cdef inline void notify_attributes(Server *s, uint64_t nodeid) noexcept nogil:
    """The attributes that the kernel keeps of an inode are not good any more; its pages are."""
    notify_inode(s, nodeid, -1)
