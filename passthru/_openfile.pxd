# Open files and directories: what the kernel's `fh` stands for, and the source fds to it.
from libc.stdint cimport uint32_t, uint64_t

from passthru._identity cimport data_drop
from passthru._inode cimport OpenFile
from passthru._libc cimport EBADF, O_ACCMODE, O_APPEND, O_DIRECT, O_NONBLOCK, O_RDONLY
from passthru._request cimport Context, Request, Server, server_of
from passthru._slab cimport slab_at

cdef uint32_t file_add(Server *s, unsigned shard, uint32_t node, int fd, unsigned kind) noexcept nogil
cdef void file_close(Server *s, uint32_t index) noexcept nogil
cdef void files_destroy(Server *s) noexcept nogil
cdef void files_adopt(Server *s) noexcept nogil
cdef void files_opened_by(Server *s, uint64_t unique) noexcept nogil
cdef int file_open(Server *s, OpenFile *file) noexcept nogil
cdef int cache_fd(Context *ctx, OpenFile *file) noexcept nogil
cdef uint32_t file_io_flags(uint32_t fs_flags, uint32_t open_flags) noexcept nogil
cdef void mirror_flags(Request *r, uint32_t flags) noexcept nogil


cdef inline bint direct_writing(uint32_t open_flags) noexcept nogil:
    return open_flags & O_DIRECT and open_flags & O_ACCMODE != O_RDONLY


cdef inline bint appending(uint32_t open_flags) noexcept nogil:
    return open_flags & O_APPEND and open_flags & O_ACCMODE != O_RDONLY


cdef inline uint32_t source_fd_flags(uint32_t flags, bint remote) noexcept nogil:
    """F_SETFL's for a source fd of a file that its caller has open with these: io_uring may wait where that is no wait."""
    return flags if remote else flags & ~<uint32_t> O_NONBLOCK


cdef inline OpenFile *file_at(Server *s, uint64_t fh, unsigned kind) noexcept nogil:
    """The open file or directory `fh`, or NULL."""
    cdef OpenFile *file = <OpenFile *> slab_at(&s.files, fh)
    if file == NULL or file.kind != kind:
        return NULL
    return file


cdef inline int file_fd(Server *s, OpenFile *file) noexcept nogil:
    """The source fd of an open file, opened now if the kernel has done without so far; or -errno."""
    if file.fd >= 0:
        return file.fd
    return file_open(s, file)


cdef inline int fh_fd(Request *r, uint64_t fh, unsigned kind, OpenFile **file) noexcept nogil:
    """The source fd of the open file or directory `fh`, which `file` becomes; or -errno."""
    file[0] = file_at(server_of(r), fh, kind)
    if file[0] == NULL:
        return -EBADF
    if file[0].fd >= 0:
        return file[0].fd
    data_drop(r.ctx)
    return file_fd(server_of(r), file[0])
