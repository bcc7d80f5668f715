"""Open files and directories.

The kernel's `fh` is a slot number of Server.files. A file that the kernel reads and writes itself
may have no source fd until an operation wants one; one that is open with O_APPEND or O_DIRECT has a second for what
the page cache writes.
"""
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free

from passthru._abi cimport *
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._identity cimport data_drop
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._request cimport *
from passthru._slab cimport CHUNK_BITS, slab_adopt, slab_alloc, slab_destroy, slab_free


# ----------------------------------------------------------------- table

cdef uint32_t file_add(Server *s, unsigned shard, uint32_t node, int fd, unsigned kind) noexcept nogil:
    """The `fh` of a file whose inode inode_reserve() has counted it, with its source fd, which it takes over.

    0: out of memory; fd is closed and the count given back.
    """
    cdef uint32_t index = slab_alloc(&s.files, shard)
    cdef OpenFile *file
    if not index:
        if fd >= 0:
            close(fd)
        inode_drop(&s.inodes, node, 0, 1)
        return 0
    file = <OpenFile *> slab_at(&s.files, index)
    file.node = node
    file.fd = fd
    file.cache_fd = -1
    file.kind = kind
    return index


cdef void file_close(Server *s, uint32_t index) noexcept nogil:
    """RELEASE, RELEASEDIR."""
    cdef InodeTable *t = &s.inodes
    cdef OpenFile *file = <OpenFile *> slab_at(&s.files, index)
    cdef uint32_t node
    cdef int fd
    if file == NULL:  # a repeater's, which is in no slot
        return
    node = file.node
    fd = file.fd
    if file.kind == OF_FILE and direct_writing(file.open_flags):
        direct_writer(t, inode_at(t, node), -1)
    file.kind = OF_FREE
    if file.pinned:
        inode_unpin(inode_at(t, node))
    if file.cache_fd >= 0:
        close(file.cache_fd)
    free(file.buf)
    slab_free(&s.files, index)
    if fd >= 0:
        close(fd)
    inode_drop(t, node, 0, 1)


cdef void files_destroy(Server *s) noexcept nogil:
    """Close and free everything; no thread uses the table any more."""
    cdef uint64_t n
    cdef OpenFile *file
    if s.files.directory == NULL:
        return
    for n in range(<uint64_t> s.files.chunks << CHUNK_BITS):
        file = <OpenFile *> slab_at(&s.files, n)
        if file != NULL and file.kind != OF_FREE:
            if file.fd >= 0:
                close(file.fd)
            if file.cache_fd >= 0:
                close(file.cache_fd)
            free(file.buf)
    slab_destroy(&s.files)


# ------------------------------------------------------------- taking over

cdef bint file_in_use(void *item) noexcept nogil:
    return (<OpenFile *> item).kind != OF_FREE


cdef void files_adopt(Server *s) noexcept nogil:
    """Take an arena's open files over from a process that has died, and count them at their inodes (table_reset()).

    What no reply has told of nobody can use, and what a RELEASE has begun to close is closed: their fds are left to
    the caller to close. Directories go on from the offset that the next READDIR says.
    """
    cdef uint64_t n
    cdef OpenFile *file
    cdef Inode *i
    slab_adopt(&s.files, file_in_use)
    for n in range(<uint64_t> s.files.chunks << CHUNK_BITS):
        file = <OpenFile *> slab_at(&s.files, n)
        if file == NULL or file.kind == OF_FREE:
            continue
        i = inode_at(&s.inodes, file.node)
        if i == NULL or not file.opened_by or file.released_by:
            file.kind = OF_FREE
            continue
        file.buf = NULL  # it lay in the other's memory
        file.buf_pos = file.buf_end = file.busy = 0
        file.next_off = -1
        i.opens += 1
        if file.pinned:
            i.pins += 1
        if file.kind == OF_FILE and direct_writing(file.open_flags) and i.direct < MANY:
            i.direct += 1
    slab_adopt(&s.files, file_in_use)


cdef void files_opened_by(Server *s, uint64_t unique) noexcept nogil:
    """Close what a request has opened whose reply the kernel has not got: it is done again. Rare, so linear."""
    cdef uint64_t n
    cdef OpenFile *file
    for n in range(<uint64_t> s.files.chunks << CHUNK_BITS):
        file = <OpenFile *> slab_at(&s.files, n)
        if file != NULL and file.kind != OF_FREE and file.opened_by == unique:
            file_close(s, <uint32_t> n)


# ------------------------------------------------------------ source fds

cdef int file_open(Server *s, OpenFile *file) noexcept nogil:
    """file_fd() for a file's first operation that is not a read or write which the kernel does itself."""
    cdef char path[FD_PATH]
    cdef Inode *i = inode_at(&s.inodes, file.node)
    cdef int opath, fd
    if i == NULL:
        return -ESTALE
    opath = inode_fd(&s.inodes, i, file.node)
    if opath < 0:
        return opath
    fd_path(path, opath)
    fd = open(path, file.open_flags)
    if fd < 0 and fds_short(&s.inodes, errno):
        fd = open(path, file.open_flags)
    if fd < 0:
        fd = -errno
    inode_unpin(i)
    if fd >= 0 and not atomic_casi(&file.fd, -1, fd):
        close(fd)
        fd = file.fd
    return fd


cdef int cache_fd(Context *ctx, OpenFile *file) noexcept nogil:
    """A second fd of a file, without O_DIRECT and O_APPEND. -errno if it cannot be had."""
    cdef char path[FD_PATH]
    cdef int fd = atomic_geti(&file.cache_fd)
    if fd >= 0:
        return fd
    data_drop(ctx)
    fd_path(path, file.fd)
    fd = open(path, (file.open_flags & (O_ACCMODE | O_SYNC | O_DSYNC | O_NOATIME)) | O_CLOEXEC)
    if fd < 0:
        return -errno
    if not atomic_casi(&file.cache_fd, -1, fd):
        close(fd)
        fd = file.cache_fd
    return fd


# ----------------------------------------------------------------- flags

cdef uint32_t file_io_flags(uint32_t fs_flags, uint32_t open_flags) noexcept nogil:
    """How a file is read and written best, by its filesystem and open(2) flags."""
    cdef uint32_t f = 0
    if fs_flags & FS_MEMORY:
        return OF_SYNC_READ | OF_SYNC_WRITE
    if open_flags & O_DIRECT:
        f |= OF_ASYNC_READ | OF_ASYNC_WRITE | OF_DIRECT
    if open_flags & (O_SYNC | O_DSYNC):
        f |= OF_ASYNC_WRITE
    if fs_flags & FS_REMOTE:
        f |= OF_ASYNC_READ | OF_ASYNC_WRITE | OF_REMOTE
    return f


cdef void mirror_flags(Request *r, uint32_t flags) noexcept nogil:
    """Do to the source's file what fcntl(F_SETFL) has done to the caller's: O_APPEND, O_DIRECT and the like."""
    cdef Server *s = server_of(r)
    cdef OpenFile *file = r.file
    cdef Inode *i = inode_at(&s.inodes, file.node)
    cdef uint32_t new = (file.open_flags & ~s.config.mirrored) | (flags & s.config.mirrored)
    data_drop(r.ctx)  # O_NOATIME is the owner's
    if fcntl(r.fd, F_SETFL, source_fd_flags(new, file.flags & OF_REMOTE)) < 0:
        return  # the source knows no O_DIRECT, or not yet
    if direct_writing(new) != direct_writing(file.open_flags):
        direct_writer(&s.inodes, i, 1 if direct_writing(new) else -1)
    file.open_flags = new
    file.flags = file_io_flags(s.inodes.fs[i.fs].flags, new) | (file.flags & OF_KILLS)
