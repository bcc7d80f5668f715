"""OPENDIR, READDIR, READDIRPLUS, RELEASEDIR.

Offsets are the source's own cookies (d_off), so seekdir(3) works as there. Entries that
getdents64(2) gave beyond what a reply holds stay with the open directory for the next request.
"""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strlen

from passthru._abi cimport *
from passthru._file cimport version_of
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._name cimport dot_or_dotdot
from passthru._openfile cimport file_at, file_close, file_add
from passthru._reply cimport entry_reply
from passthru._request cimport *
from passthru._walk cimport child_lookup

cdef enum:
    BUFFER = 32768


cdef int op_opendir(Request *r) noexcept nogil:
    cdef Server *s = server_of(r)
    cdef fuse_open_out *out = <fuse_open_out *> r.out
    cdef Inode *i
    cdef statx stx
    cdef uint64_t version
    cdef uint32_t index
    cdef int fd, flags
    cdef int opath = request_pin(r, &i)
    if opath < 0:
        return opath
    flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | ((<fuse_open_in *> r.op_in).flags & O_NOATIME)
    fd = openat(opath, ".", flags)
    if fd < 0 and fds_short(&s.inodes, errno):
        fd = openat(opath, ".", flags)
    if fd < 0:
        fd = -errno
        inode_unpin(i)
        return fd
    inode_reserve(&s.inodes, i, False, False, False, 0)
    index = file_add(s, r.ctx.id, <uint32_t> r.h.nodeid, fd, OF_DIR)
    if not index:
        inode_unpin(i)
        return -ENOMEM
    r.ctx.stats.opens += 1
    out.fh = index
    # The kernel keeps listings, and drops one when the directory's mtime shows a change; or now.
    out.open_flags = FOPEN_CACHE_DIR if s.config.keep_cache else 0
    if s.config.keep_cache == KEEP_ALL:
        out.open_flags |= FOPEN_KEEP_CACHE
    elif s.config.keep_cache and c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), &stx) == 0:
        version = version_of(&stx)
        if version and version == i.cached:
            out.open_flags |= FOPEN_KEEP_CACHE
        i.cached = version
    out.backing_id = 0
    inode_unpin(i)
    return sizeof(fuse_open_out)


cdef inline uint32_t record(uint32_t header, uint32_t namelen) noexcept nogil:
    return (header + sizeof(fuse_dirent) + namelen + 7) & ~7u


cdef int refill(OpenFile *file) noexcept nogil:
    """Read more entries. Bytes, 0 at the end, or -errno."""
    cdef long n
    if file.buf == NULL:
        file.buf = <char *> malloc(BUFFER)
        if file.buf == NULL:
            return -ENOMEM
    n = sys_getdents64(file.fd, file.buf, BUFFER)
    file.buf_pos = 0
    file.buf_end = <uint32_t> n if n > 0 else 0
    return <int> n


cdef int fill(Request *r, OpenFile *file, int64_t off, uint32_t cap, bint plus) noexcept nogil:
    """Entries from cookie `off` on, as many as fit `cap`. Bytes or -errno."""
    cdef uint32_t header = sizeof(fuse_entry_out) if plus else 0
    cdef uint32_t used = 0, size, namelen
    cdef dirent64 *d
    cdef char *to
    cdef fuse_dirent *f
    cdef fuse_entry_out *e
    cdef statx stx
    cdef int64_t node
    cdef InodeTable *t = &server_of(r).inodes
    cdef Inode *dir = inode_at(t, r.h.nodeid)
    cdef uint64_t salt
    cdef int dir_fd = -1, n
    if dir == NULL:
        return -ESTALE
    salt = t.fs[dir.fs].salt
    if off != file.next_off:
        if lseek(file.fd, off, SEEK_SET) < 0:
            return -errno
        file.next_off = off
        file.buf_pos = file.buf_end = 0
    if plus:
        dir_fd = request_pin(r, &dir)
        if dir_fd < 0:
            return dir_fd
    while True:
        if file.buf_pos == file.buf_end:
            n = refill(file)
            if n <= 0:
                if n < 0 and used == 0:
                    if plus:
                        inode_unpin(dir)
                    return n
                break
        d = <dirent64 *> (file.buf + file.buf_pos)
        namelen = <uint32_t> strlen(d.d_name)
        size = record(header, namelen)
        if used + size > cap:
            break
        to = r.out + used
        f = <fuse_dirent *> (to + header)
        f.ino = d.d_ino ^ salt
        f.off = <uint64_t> d.d_off
        f.namelen = namelen
        f.type = d.d_type
        if plus:
            e = <fuse_entry_out *> to
            # "." and ".." carry no lookup, nor does a name that went away meanwhile.
            node = 0
            if not dot_or_dotdot(d.d_name):
                node = child_lookup(r, dir, dir_fd, d.d_name, False, &stx)
            if node > 0:
                entry_reply(r, to, <uint32_t> node, &stx)
                f.type = stx.stx_mode >> 12
            else:
                memset(e, 0, sizeof(fuse_entry_out))
                e.attr.ino = d.d_ino ^ salt
                e.attr.mode = <uint32_t> d.d_type << 12
        memcpy(<char *> f + sizeof(fuse_dirent), d.d_name, namelen)
        memset(<char *> f + sizeof(fuse_dirent) + namelen, 0, size - header - sizeof(fuse_dirent) - namelen)
        used += size
        file.buf_pos += d.d_reclen
        file.next_off = d.d_off
    if plus:
        inode_unpin(dir)
    return <int> used


cdef int list_request(Request *r, bint plus) noexcept nogil:
    cdef fuse_read_in *arg = <fuse_read_in *> r.op_in
    cdef OpenFile *file = file_at(server_of(r), arg.fh, OF_DIR)
    cdef OpenFile own
    cdef uint32_t cap
    cdef int res
    if file == NULL:
        return -EBADF
    cap = arg.size if arg.size < r.out_cap else r.out_cap
    if not atomic_swap32(&file.busy, 1):
        res = fill(r, file, <int64_t> arg.offset, cap, plus)
        atomic_set32(&file.busy, 0)
        return res
    # Somebody else reads by this open directory just now (its first reader was killed, say). Waiting for
    # a queue's thread is not for us: read by an fd of our own.
    memset(&own, 0, sizeof(own))
    own.fd = openat(file.fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if own.fd < 0:
        return -errno
    res = fill(r, &own, <int64_t> arg.offset, cap, plus)
    close(own.fd)
    free(own.buf)
    return res


cdef int op_readdir(Request *r) noexcept nogil:
    return list_request(r, False)


cdef int op_readdirplus(Request *r) noexcept nogil:
    return list_request(r, True)


cdef int op_releasedir(Request *r) noexcept nogil:
    cdef uint64_t fh = (<fuse_release_in *> r.op_in).fh
    if file_at(server_of(r), fh, OF_DIR) == NULL:
        return -EBADF
    file_close(server_of(r), <uint32_t> fh)
    r.ctx.stats.releases += 1
    return 0
