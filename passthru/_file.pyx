"""OPEN, CREATE, TMPFILE, FLUSH, RELEASE."""
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from passthru._abi cimport *
from passthru._backing cimport backing_reserve
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._identity cimport as_caller
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._lock cimport flock_leaving, flock_left, locks_drop_file, locks_drop_owner
from passthru._mode cimport privileged
from passthru._name cimport entry_arg
from passthru._notify cimport notify_attributes
from passthru._openfile cimport (
    appending, direct_writing, file_at, file_close, file_io_flags, file_add, source_fd_flags,
)
from passthru._reply cimport attr_digest, entry_reply
from passthru._request cimport *
from passthru._storage cimport BIG_CUT, cut, open_to_cut
from passthru._wait cimport later, may_wait, patiently
from passthru._walk cimport opened_inode


cdef enum:
    TICK_NS = 20000000
    FMODE_EXEC = 0x20  # __FMODE_EXEC in the flags of an open(2) that is execve(2)'s
    CHANGING = -0x10000002  # open_now(): somebody's change is under way
    PAUSE_MOST_US = 50000


cdef inline uint32_t plain_flags(uint32_t flags) noexcept nogil:
    """What of the caller's open(2) is the source's business too."""
    return (flags & ~<uint32_t> (O_CREAT | O_EXCL | O_NOCTTY | O_NOFOLLOW | FMODE_EXEC)) | O_CLOEXEC


cdef uint32_t source_flags(Request *r, uint32_t flags) noexcept nogil:
    """The flags to open the source with, for those the caller opened the mount with."""
    flags = plain_flags(flags)
    if server_of(r).config.writeback:
        # The page cache reads what it writes a part of, and knows itself where the end is.
        if flags & O_ACCMODE == O_WRONLY:
            flags = (flags & ~<uint32_t> O_ACCMODE) | O_RDWR
        flags &= ~<uint32_t> O_APPEND
    return flags


cdef uint64_t version_of(statx *stx) noexcept nogil:
    """A digest of what changes with a file's content; 0 if a further change might not show in it."""
    cdef timespec now
    cdef uint64_t v
    clock_gettime(CLOCK_REALTIME, &now)
    # A write within the same tick of the source's clock leaves the times as they are.
    if (now.tv_sec - stx.stx_mtime.tv_sec) * 1000000000 + now.tv_nsec - stx.stx_mtime.tv_nsec < TICK_NS:
        return 0
    v = <uint64_t> stx.stx_mtime.tv_sec * 1000000000u + stx.stx_mtime.tv_nsec
    v ^= (<uint64_t> stx.stx_ctime.tv_sec * 1000000000u + stx.stx_ctime.tv_nsec) * 0x9e3779b97f4a7c15u
    v ^= stx.stx_size * 0xc2b2ae3d27d4eb4fu
    return v | 1


cdef int open_reply(Request *r, fuse_open_out *out, uint32_t node, Inode *i, int fd, uint32_t flags,
                    statx *stx, int32_t backing) noexcept nogil:
    """Make an open file of fd, which it takes over, and tell the kernel how to use it. 0 or -ENOMEM.

    With a backing id fd may be -1, and the inode's pin is the file's until it is closed.
    """
    cdef Server *s = server_of(r)
    cdef uint32_t index = file_add(s, r.ctx.id, node, fd, OF_FILE)
    cdef OpenFile *file
    cdef uint64_t version
    cdef int keep = s.config.keep_cache
    if not index:
        return -ENOMEM
    r.ctx.stats.opens += 1
    file = <OpenFile *> slab_at(&s.files, index)
    file.open_flags = flags
    file.seen_attr = 0
    file.flags = file_io_flags(s.inodes.fs[i.fs].flags, flags)
    if direct_writing(flags):
        direct_writer(&s.inodes, i, 1)
    out.fh = index
    out.open_flags = FOPEN_PARALLEL_DIRECT_WRITES
    out.backing_id = backing
    if backing:
        out.open_flags |= FOPEN_PASSTHROUGH
        file.passthrough = 1
        r.ctx.stats.opens_passthrough += 1
        if appending(flags):
            out.open_flags |= FOPEN_DIRECT_IO  # reads and writes come here, see backing_reserve()
    else:
        # Pages cached at an earlier open are good if the file is still what it was then. An open
        # for writing may change it before the next one.
        version = version_of(stx)
        if keep == KEEP_ALL or (keep and version and i.cached == version):
            out.open_flags |= FOPEN_KEEP_CACHE
        i.cached = version
        if s.inodes.fs[i.fs].flags & FS_REMOTE and stx.stx_mode & (S_ISUID | S_ISGID):
            file.flags |= OF_KILLS
        elif s.config.zero_copy and (flags & O_DIRECT or stx.stx_size >= s.config.zero_copy_min):
            out.open_flags |= FOPEN_IO_URING_ZERO_COPY
        # Or the kernel does all direct writes to a file one after the other, and goes on from a
        # short direct read with a buffered one. Without the capability it would refuse mmap(2).
        # Nor does the size of what the kernel makes up tell how much there is to read.
        if s.config.direct_io or (flags & O_DIRECT and s.config.direct_opens) or s.inodes.fs[i.fs].flags & FS_PSEUDO or \
                (s.config.writeback and (appending(flags) or flags & O_ACCMODE == O_WRONLY)):
            out.open_flags |= FOPEN_DIRECT_IO
    # FLUSH gives up its caller's record locks, and brings errors that close(2) of a remote
    # source tells. Otherwise it is a round trip for nothing.
    if not s.config.locks and not s.inodes.fs[i.fs].flags & FS_REMOTE:
        out.open_flags |= FOPEN_NOFLUSH
    return 0


cdef int execute_check(Server *s, Inode *i, int opath) noexcept nogil:
    """May a file be executed through the mount? 0, -EACCES, or -ESTALE: the kernel is to look at it again.

    Not a program that gets rights of its own and that others may write. Who executes a file of the source beside
    the mount keeps all from writing to it (ETXTBSY); who executes it here keeps only those in the mount from
    that. So the program could be changed under a process that has got its rights already.
    """
    cdef statx stx
    cdef char path[FD_PATH]
    if c_statx(opath, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0:
        return 0
    if not privileged(&stx) and i.told:
        i.told = 0  # the kernel gives rights by the mode that it was told last
        return -ESTALE
    if stx.stx_mode & 0o022:
        if stx.stx_mode & S_ISUID or stx.stx_mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP:
            return -EACCES
    elif stx.stx_uid == 0:
        return 0
    fd_path(path, opath)
    return -EACCES if getxattr(path, "security.capability", NULL, 0) > 0 else 0


cdef int open_source(Request *r, int opath, uint32_t flags, bint kill) noexcept nogil:
    """The source fd for a file that is opened with these flags, or -errno. kill: see cut()."""
    cdef char path[FD_PATH]
    cdef int fd, to, res
    fd_path(path, opath)
    # Bits go with the truncation, and that comes when nothing can refuse it any more.
    fd = open(path, flags & ~<uint32_t> O_TRUNC if kill else flags)
    if fd < 0 and fds_short(&server_of(r).inodes, errno):
        fd = open(path, flags & ~<uint32_t> O_TRUNC if kill else flags)
    if fd < 0:
        return -errno
    if not kill:
        return fd
    to = fd if flags & O_ACCMODE in (O_WRONLY, O_RDWR) else open_to_cut(r, opath)  # 3 is neither, but truncates
    res = cut(r, <uint32_t> r.h.nodeid, to, 0, True) if to >= 0 else to
    if to >= 0 and to != fd:
        close(to)
    if res < 0:
        close(fd)
    return res if res < 0 else fd


cdef inline void change_ends(Server *s, Inode *i, unsigned own) noexcept nogil:
    if own:
        change_end(&s.inodes, i)


cdef int op_open(Request *r) noexcept nogil:
    cdef unsigned pause = 1000
    cdef int res = open_now(r)
    while res == CHANGING:  # a long copy takes seconds, and many may wait for it
        usleep(pause)
        pause = min(2 * pause, PAUSE_MOST_US)
        res = open_now(r)
    return res


cdef int open_now(Request *r) noexcept nogil:
    """op_open(), or on a thread that may wait CHANGING: not before somebody's change is done."""
    cdef Server *s = server_of(r)
    cdef fuse_open_in *arg = <fuse_open_in *> r.op_in
    cdef fuse_open_out *out = <fuse_open_out *> r.out
    cdef uint32_t flags = source_flags(r, arg.flags)
    cdef bint kill = (arg.open_flags & FUSE_OPEN_KILL_SUIDGID) != 0 and (flags & O_TRUNC) != 0
    cdef Inode *i
    cdef statx stx
    cdef int32_t backing = 0
    cdef bint pooled = may_wait(r)
    cdef bint writing = s.config.passthrough and flags & O_ACCMODE != O_RDONLY  # a file to be passed through
    cdef bint known = False
    cdef unsigned own = 0
    cdef int fd, opath, res
    if pooled and r.interrupted:
        return -EINTR
    opath = request_pin(r, &i)
    if opath < 0:
        return opath
    if i.type != S_IFREG >> 12:
        inode_unpin(i)
        return -EINVAL  # the kernel opens nothing else here, and a FIFO would keep the thread
    if arg.flags & FMODE_EXEC and not (s.inodes.fs[i.fs].flags | s.inodes.enforced) & FS_NOSUID:
        res = execute_check(s, i, opath)
        if res < 0:
            inode_unpin(i)
            return res
    if writing or flags & O_TRUNC:
        known = c_statx(opath, "", AT_EMPTY_PATH, stx_mask(), &stx) == 0
    if flags & O_TRUNC and not pooled and known and stx.stx_size > BIG_CUT:
        inode_unpin(i)
        return patiently(r, op_open)
    if flags & O_TRUNC and s.config.passthrough and not pooled:
        if not change_begin(&s.inodes, i, True):
            inode_unpin(i)
            return patiently(r, op_open)
        own = 1
    if known:
        i.appends = (stx.stx_attributes & STATX_ATTR_APPEND) != 0
    # Only by requests does the kernel say which writers may keep suid and sgid. And it would map a file of its own for
    # writing that the source lets be appended to only.
    backing = backing_reserve(r.ctx, i, <uint32_t> r.h.nodeid, opath, flags, not i.appends and (
        not writing or (known and not stx.stx_mode & (S_ISUID | S_ISGID))), own)
    if backing < 0:
        change_ends(s, i, own)
        inode_unpin(i)
        return CHANGING if pooled else patiently(r, op_open)
    if backing and i.appends and flags & O_ACCMODE == O_RDWR:
        # It became append-only while others, who have it open, have it passed through.
        change_ends(s, i, own)
        inode_unpin(i)
        inode_drop(&s.inodes, <uint32_t> r.h.nodeid, 0, 1)
        return -EBUSY
    if backing and flags & O_ACCMODE == O_RDONLY and not flags & O_TRUNC:
        # Nothing to open: the kernel reopens the backing file as the caller wants it. It takes
        # the errors of that for ours, so what may fail (ETXTBSY, EROFS) is opened here first.
        res = open_reply(r, out, <uint32_t> r.h.nodeid, i, -1, flags, NULL, backing)
        if res < 0:
            inode_unpin(i)
            return res
        (<OpenFile *> slab_at(&s.files, out.fh)).pinned = 1
        return sizeof(fuse_open_out)
    # Somebody's lease (F_SETLEASE) is waited for by a pool's thread.
    if not pooled:
        flags |= O_NONBLOCK
    fd = open_source(r, opath, flags, kill)
    if fd in (-EPERM, -EACCES) and s.config.writeback and plain_flags(arg.flags) != flags & ~<uint32_t> O_NONBLOCK:
        # An append-only file, or one that an ordinary user's daemon may only write: not by the page cache then.
        flags = plain_flags(arg.flags) | (flags & O_NONBLOCK)
        fd = open_source(r, opath, flags, kill)
    change_ends(s, i, own)
    flags = (flags & ~<uint32_t> O_NONBLOCK) | (arg.flags & O_NONBLOCK)
    if fd == -EWOULDBLOCK and not flags & O_NONBLOCK:
        inode_unpin(i)
        inode_drop(&s.inodes, <uint32_t> r.h.nodeid, 0, 1)
        return patiently(r, op_open)
    if fd >= 0 and not (pooled and not flags & O_NONBLOCK):
        fcntl(fd, F_SETFL, source_fd_flags(flags, s.inodes.fs[i.fs].flags & FS_REMOTE))
    if fd >= 0 and not backing and c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), &stx) < 0:
        res = -errno
        close(fd)
        fd = res
    if fd < 0:
        inode_unpin(i)
        inode_drop(&s.inodes, <uint32_t> r.h.nodeid, 0, 1)
        return fd
    res = open_reply(r, out, <uint32_t> r.h.nodeid, i, fd, flags & ~<uint32_t> O_TRUNC, &stx, backing)
    inode_unpin(i)
    if res == 0 and backing and known:
        (<OpenFile *> slab_at(&s.files, out.fh)).seen_attr = attr_digest(&stx)
    return res if res < 0 else <int> sizeof(fuse_open_out)


cdef int created(Request *r, int fd, uint32_t flags) noexcept nogil:
    """The reply to CREATE and TMPFILE for the new source fd, which it takes over."""
    cdef Server *s = server_of(r)
    cdef file_handle_max handle
    cdef statx stx
    cdef char path[FD_PATH]
    cdef uint32_t node = 0
    cdef int64_t found
    cdef int32_t backing = 0
    cdef Inode *i
    cdef fuse_open_out *out
    cdef int fs, opath, res
    if c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), &stx) < 0:
        res = -errno
        close(fd)
        return res
    fs = fs_get(&s.inodes, &stx)
    if fs >= 0:
        if s.config.passthrough:  # its backing file wants an O_PATH fd at once
            fd_path(path, fd)
            opath = open(path, O_PATH | O_CLOEXEC)
            if opath >= 0:
                node = inode_add(&s.inodes, r.ctx.id, fs, &stx, opath, NULL)
        elif s.inodes.fs[fs].flags & FS_HANDLES and sys_name_to_handle_at(fd, &handle) == 0:
            node = inode_add(&s.inodes, r.ctx.id, fs, &stx, -1, &handle)
        if node:
            r.ctx.stats.lookups += 1
        fs_put(&s.inodes, fs)
    if not node:
        fd_path(path, fd)
        opath = open(path, O_PATH | O_CLOEXEC)
        found = opened_inode(r, opath, &stx) if opath >= 0 else -errno
        if found < 0:
            close(fd)
            return <int> found
        node = <uint32_t> found
    entry_reply(r, r.out, node, &stx)
    i = inode_at(&s.inodes, node)  # its lookup is ours, so nobody frees it
    opath = -1
    if s.config.passthrough:
        opath = inode_fd(&s.inodes, i, node)
    if opath < 0:
        atomic_add32(&i.pins, 1)
        while atomic_get32(&i.pins) & EVICTING:
            sched_yield()
    backing = backing_reserve(r.ctx, i, node, opath, flags, opath >= 0 and not stx.stx_mode & (S_ISUID | S_ISGID), 0)
    if backing < 0:  # not a new file, then, but one that somebody changes: the kernel is to look again
        inode_unpin(i)
        close(fd)
        inode_forget(&s.inodes, node, 1)
        r.ctx.stats.forgets += 1
        return -ESTALE
    out = <fuse_open_out *> (r.out + sizeof(fuse_entry_out))
    res = open_reply(r, out, node, i, fd, flags, &stx, backing)
    inode_unpin(i)
    if res < 0:
        inode_forget(&s.inodes, node, 1)
        r.ctx.stats.forgets += 1
        return res
    (<OpenFile *> slab_at(&s.files, out.fh)).seen_attr = attr_digest(&stx)
    return sizeof(fuse_entry_out) + sizeof(fuse_open_out)


cdef int op_create(Request *r) noexcept nogil:
    cdef fuse_create_in *arg = <fuse_create_in *> r.op_in
    cdef uint32_t at = 0
    cdef const char *name = entry_arg(r, &at)
    cdef Inode *parent
    cdef int dir_fd, fd
    if name == NULL:
        return -EINVAL
    dir_fd = request_pin(r, &parent)
    if dir_fd < 0:
        return dir_fd
    fd = as_caller(r, arg.umask & 0o777, create_or_open, dir_fd, name)
    inode_unpin(parent)
    return fd if fd < 0 else created(r, fd, source_flags(r, arg.flags) & ~<uint32_t> O_TRUNC)


cdef int create_or_open(Request *r, int dir_fd, const char *name, bint overridden) noexcept nogil:
    """The new file's fd, or if somebody else has just made it, perhaps that one's; -errno."""
    cdef fuse_create_in *arg = <fuse_create_in *> r.op_in
    cdef uint32_t flags = source_flags(r, arg.flags)
    cdef bint refused
    cdef int fd
    cdef unsigned attempt = 0
    while attempt < 4:
        attempt += 1
        fd = openat(dir_fd, name, flags | O_CREAT | O_EXCL | O_NOFOLLOW, arg.mode & 0o7777)
        if fd < 0 and fds_short(&server_of(r).inodes, errno):
            continue
        if fd >= 0 or errno != EEXIST or arg.flags & O_EXCL:
            return fd if fd >= 0 else -errno
        # The kernel takes it for new, and has checked nothing. ESTALE has it look again, and check.
        refused = overridden or (arg.open_flags & FUSE_OPEN_KILL_SUIDGID and r.h.uid == 0)
        fd = -ESTALE if refused else open_own(r, dir_fd, name, flags)
        if fd != -ENOENT:
            return fd
    return -ESTALE


cdef int open_own(Request *r, int dir_fd, const char *name, uint32_t flags) noexcept nogil:
    """An fd of the caller's own file, opened as the caller; -ENOENT: it has gone, -ESTALE: it is not the caller's.

    Spares programs that race with each other the second ESTALE, which open(2) returns. The owner's bits alone decide
    on an owner, so that it does not matter that the caller's groups are not known. Of a directory open(2) with O_CREAT
    says -EISDIR to everybody.
    """
    cdef statx stx
    cdef char path[FD_PATH]
    cdef unsigned wanted = 6 if flags & O_ACCMODE == O_RDWR else 2 if flags & (O_ACCMODE | O_TRUNC) else 4
    cdef InodeTable *t = &server_of(r).inodes
    cdef unsigned fs = inode_at(t, r.h.nodeid).fs
    cdef uint32_t counted
    cdef int fd = -1
    cdef int opath = sys_openat_here(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    if opath < 0:
        return -ENOENT if opath == -ENOENT else -ESTALE
    if c_statx(opath, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0:
        stx.stx_mode = 0
    if not server_of(r).config.identity or stx.stx_mode & S_IFMT != S_IFREG or stx.stx_uid != r.h.uid or \
            stx.stx_mode >> 6 & wanted != wanted:
        close(opath)
        return -EISDIR if stx.stx_mode & S_IFMT == S_IFDIR else -ESTALE
    fd_path(path, opath)
    if changes_begin(t, fs, stx.stx_ino, True, &counted):
        fd = open(path, flags | O_NONBLOCK)
        changes_end(t, counted)
    close(opath)
    if fd < 0:
        return -ESTALE
    fcntl(fd, F_SETFL, source_fd_flags(flags, False))
    return fd


cdef int op_tmpfile(Request *r) noexcept nogil:
    cdef fuse_create_in *arg = <fuse_create_in *> r.op_in
    cdef Inode *parent
    cdef int fd
    cdef int dir_fd = request_pin(r, &parent)
    if dir_fd < 0:
        return dir_fd
    fd = as_caller(r, arg.umask & 0o777, make_tmpfile, dir_fd, ".")
    inode_unpin(parent)
    return fd if fd < 0 else created(r, fd, source_flags(r, arg.flags))


cdef int make_tmpfile(Request *r, int dir_fd, const char *name, bint overridden) noexcept nogil:
    cdef fuse_create_in *arg = <fuse_create_in *> r.op_in
    cdef int fd = openat(dir_fd, name, source_flags(r, arg.flags) | O_TMPFILE | (arg.flags & O_EXCL), arg.mode & 0o7777)
    return fd if fd >= 0 else -errno


# ---------------------------------------------------------- FLUSH, RELEASE

cdef int op_flush(Request *r) noexcept nogil:
    """close(2) of one of the caller's fds: where the source is remote, it may have errors to tell."""
    cdef fuse_flush_in *arg = <fuse_flush_in *> r.op_in
    cdef Server *s = server_of(r)
    cdef OpenFile *file = file_at(s, arg.fh, OF_FILE)
    if file == NULL:
        return -EBADF
    r.fd = file.fd
    if file.flocked:
        flock_leaving(s, file.node, <uint32_t> arg.fh)
    if s.inodes.fs[inode_at(&s.inodes, file.node).fs].flags & FS_REMOTE:
        return later(r, blocking_flush)
    locks_drop_owner(s, file.node, arg.lock_owner)
    attributes_changed(s, file)
    return 0


cdef void attributes_changed(Server *s, OpenFile *file) noexcept nogil:
    """Have the kernel ask for the attributes of a passthrough file that was open for writing, if they have changed.

    Of writes through an mmap of the backing file it knows nothing. They have not if they are what they were at the
    open or CREATE, or what SETATTR has told since: of a reply of SETATTR the kernel knows that nothing older replaced it.
    A reply of GETATTR may be dropped there for an older one that came first.
    """
    cdef statx stx
    cdef uint32_t now
    if not file.passthrough or file.open_flags & O_ACCMODE == O_RDONLY:
        return
    if file.fd >= 0 and c_statx(file.fd, "", AT_EMPTY_PATH, stx_mask(), &stx) == 0:
        now = attr_digest(&stx)
        if now == file.seen_attr or now == inode_at(&s.inodes, file.node).told_attr:
            return
        file.seen_attr = now
    notify_attributes(s, file.node)


cdef int blocking_flush(Request *r) noexcept nogil:
    cdef fuse_flush_in *arg = <fuse_flush_in *> r.op_in
    cdef int fd
    locks_drop_owner(server_of(r), file_at(server_of(r), arg.fh, OF_FILE).node, arg.lock_owner)
    if r.fd < 0:
        return 0
    fd = dup(r.fd)
    if fd < 0:
        return -errno
    return -errno if close(fd) < 0 else 0


cdef int op_release(Request *r) noexcept nogil:
    cdef fuse_release_in *arg = <fuse_release_in *> r.op_in
    cdef Server *s = server_of(r)
    cdef OpenFile *file = file_at(s, arg.fh, OF_FILE)
    cdef Inode *i
    cdef statx stx
    if file == NULL:
        return -EBADF
    i = inode_at(&s.inodes, file.node)
    if s.inodes.fs[i.fs].flags & FS_REMOTE:
        return later(r, blocking_release)
    # The end of a removed file's last fd is the end of the file.
    if i.fd < 0 and file.fd >= 0 and c_statx(file.fd, "", AT_EMPTY_PATH, stx_mask(), &stx) == 0 and \
            stx.stx_nlink == 0 and stx.stx_blocks > BIG_CUT >> 9:
        return later(r, blocking_release)
    return blocking_release(r)


cdef int blocking_release(Request *r) noexcept nogil:
    cdef Server *s = server_of(r)
    cdef uint32_t fh = <uint32_t> (<fuse_release_in *> r.op_in).fh
    cdef OpenFile *file = <OpenFile *> slab_at(&s.files, fh)
    cdef uint32_t node = file.node
    cdef bint flocked = file.flocked
    locks_drop_file(s, node, fh)
    if not s.config.locks:
        attributes_changed(s, file)  # there was no FLUSH
    file_close(s, fh)
    if flocked:
        flock_left(s, node, fh)
    r.ctx.stats.releases += 1
    return 0
