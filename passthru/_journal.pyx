"""Before each request of a mount that a successor may take over: nothing is done twice, and nothing fails for being done.

The kernel sends a request again (FUSE_NOTIFY_RESEND, FUSE_UNIQUE_RESEND in its number) that a dead daemon has read and not
answered. The dead one may have done it, in part, or not at all. Most may be done again: reads, writes to a place, locks,
attributes. Of the others the daemon notes an Intent before it begins, with what was there, and its result when it has one.
From both a successor finds out what has come of it. It is a layer before the handlers, as _gate and _trace are; where nobody
takes over it is not there.

What is asked of a name before it is made or removed (ino and time of birth) tells our own doing from somebody else's. In the
mount nobody else can change the name meanwhile, since the kernel holds its directory's lock until we answer.
"""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp

from passthru._abi cimport *
from passthru._arena cimport Arena, Intent
from passthru._entry cimport op_lookup
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._file cimport created, source_flags
from passthru._identity cimport data_drop
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._name cimport entry_arg, name_arg
from passthru._openfile cimport appending, file_at, files_opened_by, source_fd_flags
from passthru._ops cimport GIVES_ENTRY, GIVES_FILE, op_flags
from passthru._request cimport *
from passthru._slab cimport slab_at

cdef enum:
    GO_ON = -0x10000003    # again(): it is to be done, once more or for the first time


cdef inline uint64_t key_of(Request *r) noexcept nogil:
    return r.h.unique & ~FUSE_UNIQUE_RESEND


cdef uint64_t now_real(int clock) noexcept nogil:
    cdef timespec t
    clock_gettime(clock, &t)
    return <uint64_t> t.tv_sec * 1000000000u + t.tv_nsec


cdef inline uint64_t born(statx *stx) noexcept nogil:
    return <uint64_t> stx.stx_btime.tv_sec * 1000000000u + stx.stx_btime.tv_nsec if stx.stx_mask & STATX_BTIME else 0


cdef bint look(Request *r, uint64_t nodeid, const char *name, statx *stx) noexcept nogil:
    """What is a name of a directory now: stx_ino is 0 if there is nothing. False: it cannot be asked without waiting."""
    cdef InodeTable *t = &server_of(r).inodes
    cdef Inode *dir = inode_at(t, nodeid)
    cdef int fd, res
    stx.stx_ino = 0
    if name == NULL or dir == NULL or t.fs[dir.fs].flags & FS_REMOTE:
        return False
    fd = inode_fd(t, dir, <uint32_t> nodeid)
    if fd < 0:
        return False
    res = c_statx(fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, stx_mask(), stx)
    if res < 0:
        stx.stx_ino = 0
        res = 0 if errno == ENOENT else -1
    inode_unpin(dir)
    return res == 0


cdef inline bint same(statx *stx, uint64_t ino, uint64_t btime) noexcept nogil:
    return stx.stx_ino == ino and born(stx) == btime


cdef bint journaled(uint32_t opcode) noexcept nogil:
    """Is it one that cannot simply be done again?"""
    return opcode in (
        FUSE_MKDIR, FUSE_MKNOD, FUSE_SYMLINK, FUSE_LINK, FUSE_CREATE, FUSE_TMPFILE, FUSE_OPEN, FUSE_OPENDIR, FUSE_UNLINK,
        FUSE_RMDIR, FUSE_RENAME, FUSE_RENAME2, FUSE_SETXATTR, FUSE_REMOVEXATTR, FUSE_WRITE, FUSE_RELEASE,
        FUSE_RELEASEDIR, FUSE_FSYNC, FUSE_FSYNCDIR)


# ------------------------------------------------------- before it is done

cdef uint64_t newdir_of(Request *r) noexcept nogil:
    if r.h.opcode == FUSE_RENAME2:
        return (<fuse_rename2_in *> r.op_in).newdir
    return (<fuse_rename_in *> r.op_in).newdir


cdef OpenFile *appended(Request *r) noexcept nogil:
    """The open file of a WRITE that goes to the end, wherever that is; else NULL."""
    cdef fuse_write_in *arg = <fuse_write_in *> r.op_in
    cdef OpenFile *file
    if arg.write_flags & FUSE_WRITE_CACHE:
        return NULL
    file = file_at(server_of(r), arg.fh, OF_FILE)
    if file == NULL or file.fd < 0 or not (appending(file.open_flags) or appending(arg.flags)):
        return NULL
    return file


cdef void begin(Request *r, Intent *it) noexcept nogil:
    """Note what there is before the request is done."""
    cdef uint32_t at = 0
    cdef const char *name
    cdef OpenFile *file
    cdef statx stx
    it.known = 0
    it.done = 0
    it.ino = it.to_ino = 0
    if r.h.opcode in (FUSE_MKDIR, FUSE_MKNOD, FUSE_SYMLINK, FUSE_LINK, FUSE_CREATE, FUSE_UNLINK, FUSE_RMDIR, FUSE_RENAME,
                      FUSE_RENAME2):
        it.when = now_real(CLOCK_REALTIME_COARSE)
        name = entry_arg(r, &at)
        it.known = look(r, r.h.nodeid, name, &stx)
        it.ino = stx.stx_ino
        it.btime = born(&stx) if it.ino else 0
        if it.known and r.h.opcode in (FUSE_RENAME, FUSE_RENAME2):
            it.known = look(r, newdir_of(r), entry_arg(r, &at), &stx)
            it.to_ino = stx.stx_ino
            it.to_btime = born(&stx) if it.to_ino else 0
    elif r.h.opcode == FUSE_WRITE:
        file = appended(r)
        if file == NULL:
            it.unique = 0
            return
        it.known = c_statx(file.fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) == 0
        it.size = stx.stx_size
    atomic_fence()
    it.unique = key_of(r)
    if r.h.opcode in (FUSE_RELEASE, FUSE_RELEASEDIR):
        file = file_at(server_of(r), (<fuse_release_in *> r.op_in).fh,
                       OF_FILE if r.h.opcode == FUSE_RELEASE else OF_DIR)
        if file != NULL:
            # In this order: what has the mark a successor closes, and then the slot may be another file's.
            file.released_by = it.unique
            atomic_fence()
            it.result = 0
            it.done = it.unique
    atomic_fence()


cdef void ended(Request *r, int result) noexcept nogil:
    """Note what has come of it, before anybody is told."""
    cdef Intent *it = r.intent
    cdef uint32_t flags = op_flags(r.h.opcode)
    cdef fuse_entry_out *entry
    cdef fuse_open_out *opened
    cdef OpenFile *file
    if result > 0 and flags & GIVES_FILE:
        entry = <fuse_entry_out *> r.out
        opened = <fuse_open_out *> (entry + 1 if flags & GIVES_ENTRY else entry)
        file = <OpenFile *> slab_at(&server_of(r).files, opened.fh)
        atomic_fence()
        file.opened_by = key_of(r)
    if it.unique == key_of(r) and it.done != it.unique:
        it.result = result
        if result > 0 and r.h.opcode == FUSE_WRITE:
            it.result = <int> (<fuse_write_out *> r.out).size
        atomic_fence()
        it.done = it.unique


cdef void journal_complete(Request *r, int result) noexcept nogil:
    """Instead of the transport's own completer, on the pool's thread."""
    if journaled(r.h.opcode):
        ended(r, result)
    r.answered(r, result)


cdef int journal(Request *r) noexcept nogil:
    cdef int result
    if not journaled(r.h.opcode):
        return server_of(r).journaled(r)
    if r.ctx.as_data and r.h.opcode != FUSE_WRITE:
        data_drop(r.ctx)  # who has few rights sees less of names
    result = GO_ON
    if r.h.unique & FUSE_UNIQUE_RESEND:
        result = again(r)
    elif r.h.opcode != FUSE_OPEN and r.h.opcode != FUSE_OPENDIR:
        begin(r, r.intent)
    if result == GO_ON:
        result = server_of(r).journaled(r)
    if result != PENDING:  # else it is the pool's now, and perhaps answered already
        ended(r, result)
    return result


# ------------------------------------------------------- after a death

cdef Intent *noted(Request *r) noexcept nogil:
    """What the dead daemon has noted of a request, as this request's own; NULL: it had not begun."""
    cdef Arena *a = server_of(r).arena
    cdef Intent *mine = r.intent
    cdef Intent *it
    cdef uint64_t key = key_of(r)
    cdef uint32_t n
    for n in range(atomic_get32(&a.intents_used)):
        it = &a.intents[n]
        if it.unique == key and it != mine:
            mine.unique = 0
            atomic_fence()
            mine.done = it.done
            mine.result = it.result
            mine.known = it.known
            mine.when = it.when
            mine.ino = it.ino
            mine.btime = it.btime
            mine.to_ino = it.to_ino
            mine.to_btime = it.to_btime
            mine.size = it.size
            atomic_fence()
            mine.unique = key
            atomic_fence()
            it.unique = 0
            return mine
    return mine if mine.unique == key else NULL


cdef int again(Request *r) noexcept nogil:
    """A request that a dead daemon had read. Its result, if there is nothing more to be done; else GO_ON."""
    cdef uint32_t opcode = r.h.opcode
    cdef Intent *it
    r.settled = r.patient = 0  # as dispatch() does
    r.counted[0] = r.counted[1] = 0
    data_drop(r.ctx)
    if op_flags(opcode) & GIVES_FILE:
        files_opened_by(server_of(r), key_of(r))
    if opcode in (FUSE_OPEN, FUSE_OPENDIR, FUSE_TMPFILE):
        return GO_ON
    it = noted(r)
    if it == NULL:
        begin(r, r.intent)
        return GO_ON
    if it.done == it.unique:
        if it.result < 0:
            return it.result
        return done_before(r, it)
    if opcode in (FUSE_MKDIR, FUSE_MKNOD, FUSE_SYMLINK, FUSE_LINK, FUSE_CREATE):
        return made_before(r, it)
    if opcode in (FUSE_UNLINK, FUSE_RMDIR):
        return removed_before(r, it)
    if opcode in (FUSE_RENAME, FUSE_RENAME2):
        return renamed_before(r, it)
    if opcode == FUSE_WRITE:
        return appended_before(r, it)
    if opcode == FUSE_SETXATTR:
        return GO_ON if not set_before(r) else 0
    if opcode == FUSE_REMOVEXATTR:
        return unset_before(r)
    return GO_ON


cdef int done_before(Request *r, Intent *it) noexcept nogil:
    """It was done, with success: what is left is to answer."""
    if r.h.opcode in (FUSE_MKDIR, FUSE_MKNOD, FUSE_SYMLINK, FUSE_LINK):
        return entry_there(r)
    if r.h.opcode == FUSE_CREATE:
        return open_made(r)
    if r.h.opcode == FUSE_WRITE:
        return written(r, <uint32_t> it.result)
    return 0


cdef int written(Request *r, uint32_t size) noexcept nogil:
    cdef fuse_write_out *out = <fuse_write_out *> r.out
    out.size = size
    out.padding = 0
    return sizeof(fuse_write_out)


cdef int made_before(Request *r, Intent *it) noexcept nogil:
    cdef uint32_t at = 0
    cdef statx stx
    cdef Inode *i
    cdef const char *name = entry_arg(r, &at)
    if not it.known or it.ino or not look(r, r.h.nodeid, name, &stx) or not stx.stx_ino:
        return GO_ON
    if r.h.opcode == FUSE_LINK:
        i = inode_at(&server_of(r).inodes, (<fuse_link_in *> r.op_in).oldnodeid)
        return entry_there(r) if i != NULL and i.ino == stx.stx_ino else GO_ON
    if stx.stx_mask & STATX_BTIME and born(&stx) < it.when:
        return GO_ON  # somebody has put it there that is older
    if r.h.opcode == FUSE_CREATE:
        return open_made(r) if stx.stx_mode & S_IFMT == S_IFREG else GO_ON
    return entry_there(r)


cdef int entry_there(Request *r) noexcept nogil:
    """The reply to what has made a name: it is that of a LOOKUP."""
    cdef int result = op_lookup(r)
    return -ESTALE if result > 0 and not (<fuse_entry_out *> r.out).nodeid else result


cdef int open_made(Request *r) noexcept nogil:
    """The reply to a CREATE of a file that is there: as who has made it may have it open, whatever its mode is."""
    cdef fuse_create_in *arg = <fuse_create_in *> r.op_in
    cdef uint32_t flags = source_flags(r, arg.flags) & ~<uint32_t> O_TRUNC
    cdef char path[FD_PATH]
    cdef uint32_t at = 0
    cdef Inode *dir
    cdef statx stx
    cdef int fd, opath
    cdef int dir_fd = request_pin(r, &dir)
    if dir_fd < 0:
        return dir_fd
    opath = sys_openat_here(dir_fd, entry_arg(r, &at), O_PATH | O_NOFOLLOW | O_CLOEXEC)
    inode_unpin(dir)
    if opath < 0:
        return GO_ON
    # Somebody may have put another file there meanwhile, beside the mount, that the caller may not open.
    if c_statx(opath, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0 or stx.stx_mode & S_IFMT != S_IFREG or \
            (server_of(r).config.identity and stx.stx_uid != r.h.uid):
        close(opath)
        return -ESTALE
    fd_path(path, opath)
    fd = open(path, flags | O_NONBLOCK)
    fd = -errno if fd < 0 else fd
    close(opath)
    if fd < 0:
        return fd
    fcntl(fd, F_SETFL, source_fd_flags(flags, False))
    return created(r, fd, flags)


cdef int removed_before(Request *r, Intent *it) noexcept nogil:
    cdef uint32_t at = 0
    cdef statx stx
    if not it.known or not it.ino or not look(r, r.h.nodeid, entry_arg(r, &at), &stx):
        return GO_ON
    return GO_ON if same(&stx, it.ino, it.btime) else 0


cdef int renamed_before(Request *r, Intent *it) noexcept nogil:
    cdef uint32_t at = 0
    cdef statx stx, to
    cdef const char *name = entry_arg(r, &at)
    cdef const char *newname = entry_arg(r, &at)
    if not it.known or not it.ino or it.ino == it.to_ino:
        return GO_ON
    if not look(r, r.h.nodeid, name, &stx) or not look(r, newdir_of(r), newname, &to):
        return GO_ON
    # Where what was renamed is at its new name it has been done, whatever is at the old one: nothing, what was exchanged
    # for it, a whiteout, or by now somebody else's.
    return 0 if same(&to, it.ino, it.btime) else GO_ON


cdef int appended_before(Request *r, Intent *it) noexcept nogil:
    """What is at the place where the data was to come? All of it, a part, or nothing."""
    cdef fuse_write_in *arg = <fuse_write_in *> r.op_in
    cdef OpenFile *file = appended(r)
    cdef char path[FD_PATH]
    cdef statx stx
    cdef uint64_t there
    cdef uint32_t at = 0, some
    cdef ssize_t n
    cdef int fd
    if file == NULL or not it.known or arg.size > r.arg_len:
        return GO_ON
    if c_statx(file.fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0 or stx.stx_size <= it.size:
        return GO_ON
    there = stx.stx_size - it.size
    some = arg.size if there > arg.size else <uint32_t> there
    fd_path(path, file.fd)
    fd = open(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return GO_ON
    while at < some:
        n = pread(fd, r.ctx.scratch, min(<uint32_t> SCRATCH_SIZE, some - at), <int64_t> (it.size + at))
        if n <= 0 or memcmp(r.ctx.scratch, r.arg + at, n) != 0:
            break
        at += <uint32_t> n
    close(fd)
    if at < some:
        return GO_ON  # it is somebody else's, who appends beside the mount
    while at < arg.size:
        n = write(file.fd, r.arg + at, arg.size - at)
        if n <= 0:
            return written(r, at)
        at += <uint32_t> n
    return written(r, at)


cdef bint set_before(Request *r) noexcept nogil:
    """SETXATTR: is the value that is there the one to be set? With XATTR_CREATE setting it again would fail."""
    cdef fuse_setxattr_in *arg = <fuse_setxattr_in *> r.op_in
    cdef char path[FD_PATH]
    cdef uint32_t at = 0
    cdef const char *name = name_arg(r, &at)
    cdef Inode *i
    cdef ssize_t n
    cdef int fd
    if name == NULL or arg.size > r.arg_len - at or arg.size > SCRATCH_SIZE:
        return False
    fd = request_pin(r, &i)
    if fd < 0:
        return False
    fd_path(path, fd)
    n = getxattr(path, name, r.ctx.scratch, SCRATCH_SIZE)
    inode_unpin(i)
    return n == arg.size and memcmp(r.ctx.scratch, r.arg + at, n) == 0


cdef int unset_before(Request *r) noexcept nogil:
    cdef int result = server_of(r).journaled(r)
    return 0 if result == -ENODATA else result
