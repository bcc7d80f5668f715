# Names: LOOKUP, and what creates, removes, renames and links them.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from passthru._abi cimport fuse_attr
from passthru._inode cimport Filesystem, Inode
from passthru._libc cimport statx
from passthru._request cimport Request

cdef const char *name_arg(Request *r, uint32_t *at) noexcept nogil
cdef const char *entry_arg(Request *r, uint32_t *at) noexcept nogil
cdef void attr_fill(Request *r, Inode *i, fuse_attr *a, statx *stx) noexcept nogil
cdef int64_t child_lookup(Request *r, Inode *parent, int parent_fd, const char *name, bint fresh,
                          statx *stx) noexcept nogil
cdef int64_t opened_inode(Request *r, int fd, statx *stx) noexcept nogil
cdef int entry_reply(Request *r, char *to, uint32_t node, statx *stx) noexcept nogil
cdef bint dot_or_dotdot(const char *name) noexcept nogil

cdef int op_lookup(Request *r) noexcept nogil
cdef int op_forget(Request *r) noexcept nogil
cdef int op_batch_forget(Request *r) noexcept nogil
cdef int op_mknod(Request *r) noexcept nogil
cdef int op_mkdir(Request *r) noexcept nogil
cdef int op_symlink(Request *r) noexcept nogil
cdef int op_unlink(Request *r) noexcept nogil
cdef int op_rmdir(Request *r) noexcept nogil
cdef int op_rename(Request *r) noexcept nogil
cdef int op_rename2(Request *r) noexcept nogil
cdef int op_link(Request *r) noexcept nogil
