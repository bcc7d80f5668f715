"""inotify in the mount: what changes beside it is repeated in it by processes of ours, whose requests change nothing.

One thread reads what fanotify(7) tells of the source, and does nothing else, since what is not read yet the kernel merges.
Another one has the repeaters (_repeater.pyx) do one change after the other, each as a Task. What requests come of that,
repeated() answers, before all other layers, out of the task alone: a repeater's request is never served by the source.

Who is a repeater is known by its pid. That is a child process of the daemon with a single thread, which the daemon does
not wait for before it has ended serving: so the number is nobody else's, even if the repeater has died.

The kernel must not be led to take what exists for removed. So what is removed or renamed has to have been looked up for
the very same task: from that look-up on the directory's lock is held, and the name stands for what we have said. If no
look-up came, since the kernel knew the name, the answer is ESTALE, upon which it looks up and asks again. Said is the inode
that the event names, if the kernel knows it and nobody's lock of it would be waited for; else a phantom, of which only
a nodeid exists, and which does not outlast the next look-up of that name.
"""
import os

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset, strcmp, strlen, strrchr

from passthru._abi cimport *
from passthru._confine cimport confine_thread
from passthru._fdpath cimport FD_PATH, fd_path
from passthru._identity cimport data_drop
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._log cimport LOG_DEBUG, LOG_LINE, log_line
from passthru._name cimport entry_arg
from passthru._notify cimport notify_attributes
from passthru._ops cimport BY_OPEN_FILE, op_flags, op_in_size
from passthru._repeat cimport *
from passthru._reply cimport attr_fill
from passthru._request cimport *
from passthru._serve cimport context_close, context_open
from passthru._server cimport ServerCore
from passthru._stats cimport T_WATCH
from passthru._watch cimport number_in

cdef enum:
    FAN_REPORT_TARGET_FID = 0x1000  # not in older headers, as in _watch
    FAN_RENAME = 0x10000000
    INFO_FID = 1
    INFO_DFID_NAME = 2
    INFO_DFID = 3
    INFO_OLD_NAME = 10
    INFO_NEW_NAME = 12
    REPEATERS = 4          # so many directories may be locked by others at a time
    ROWS = 64
    BUFFER = 262144
    QUEUE_MOST = 100000    # changes that wait
    STUCK_MS = 1000        # then another repeater goes on with the rest

cdef struct Metadata:      # fanotify_event_metadata
    uint32_t event_len
    unsigned char vers
    unsigned char reserved
    unsigned short metadata_len
    uint64_t mask
    int32_t fd
    int32_t pid

cdef struct Info:          # fanotify_event_info_fid
    unsigned char info_type
    unsigned char pad
    unsigned short len
    uint32_t fsid[2]
    uint32_t handle_bytes
    int32_t handle_type

cdef struct Change:        # an event that waits; its bytes follow
    Change *next
    uint32_t length
    char bytes[1]

cdef struct Slot:          # a repeater, and what it does now
    uint32_t pid           # 0: not known as yet; for good otherwise
    int sock
    bint busy
    bint late              # it has been waited for longer than usual
    bint gone
    uint64_t child         # nodeid of what the task is about: of an inode or a phantom
    uint64_t none          # that of its phantom
    uint64_t ino
    uint32_t seen          # its names that were looked up since anything was removed or renamed: bits
    bint directory
    Task task

cdef struct Repeat_:
    Server *server
    Context ctx
    int fd
    int wake               # an eventfd: there is something to be told
    int halt               # an eventfd: stop
    uint32_t stop
    uint32_t active        # somebody watches
    int pid
    int told_by            # a socket: whether somebody watches; -1: always
    Slot slots[REPEATERS]
    unsigned count
    # What was there before, which is to be told too
    uint64_t (*watch)(void *watcher, int fd, statx *stx, uint32_t flags) noexcept nogil
    void *watcher
    # Under `lock`:
    pthread_mutex_t lock
    Change *first
    Change *last
    uint32_t queued
    uint32_t lost
    uint32_t reading       # the reader's thread runs


# -------------------------------------------------------------------- answers

cdef uint64_t phantom_of(uint64_t ino, bint directory) noexcept nogil:
    """The nodeid that stands for something of which the kernel is to know no more than that."""
    return phantom_bit() | <uint64_t> directory << 61 | (ino * 0x9e3779b97f4a7c15u) >> 3


cdef void phantom(uint64_t node, bint directory, fuse_attr *a) noexcept nogil:
    memset(a, 0, sizeof(fuse_attr))
    a.ino = node & 0xffffffffffffu
    a.mode = S_IFDIR | 0o700 if directory else S_IFREG | 0o600
    a.nlink = 2 if directory else 1


cdef enum:
    NOBODY = 65534         # owner of what cannot be asked any more: in a sticky directory nobody's link is followed


cdef int attributes(Request *r, uint64_t node, bint directory, fuse_attr *a) noexcept nogil:
    """What the kernel is told of an inode: what it is, 1; where it is gone for good, something of that type, 0.

    -errno: it cannot be asked just now. Told to have no size, a file that others have mapped would lose their data.
    """
    cdef InodeTable *t = &server_of(r).inodes
    cdef Inode *i = NULL if node & phantom_bit() else inode_at(t, node)
    cdef statx stx
    cdef int fd, res
    if i == NULL:
        phantom(node, directory, a)
        return 0
    if t.fs[i.fs].flags & FS_REMOTE:  # which may not answer
        return -ENOMEM
    fd = inode_fd(t, i, <uint32_t> node)
    if fd >= 0:
        res = -errno if c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), &stx) < 0 else 1
        if res > 0:
            attr_fill(r, i, a, &stx)
            a.mode &= ~<uint32_t> (S_ISUID | S_ISGID)  # these are told elsewhere: docs/security.md
        inode_unpin(i)
        return res
    if fd != -ESTALE:
        return -ENOMEM
    phantom(node, directory, a)
    a.mode = <uint32_t> i.type << 12 | 0o600
    a.ino = i.ino ^ t.fs[i.fs].salt
    a.uid = a.gid = NOBODY
    return 0


cdef int entry(Request *r, uint64_t node, uint64_t ino, bint directory, bint removing) noexcept nogil:
    """The reply that names something, which is not to be kept; 0: the kernel has forgotten it."""
    cdef fuse_entry_out *out = <fuse_entry_out *> r.out
    cdef int res
    memset(out, 0, sizeof(fuse_entry_out))
    if not node & phantom_bit():
        if not inode_again(&server_of(r).inodes, <uint32_t> node, ino):
            return 0
        out.generation = inode_at(&server_of(r).inodes, node).generation
    out.nodeid = node
    r.ctx.stats.lookups += 1
    res = attributes(r, node, directory, &out.attr)
    if res < 0:
        r.ctx.stats.forgets += 1
        inode_forget(&server_of(r).inodes, node, 1)
        return -ENOMEM  # after which the kernel keeps the name
    # Of a file with several names one is gone already, and the kernel is about to take one away.
    if res > 0 and removing and not directory:
        out.attr.nlink += 1
    return sizeof(fuse_entry_out)


cdef int looked_up(Request *r, Slot *k) noexcept nogil:
    cdef Task *t = &k.task
    cdef uint32_t at = 0
    cdef const char *name = entry_arg(r, &at)
    if name == NULL:
        return -EINVAL
    if t.kind == T_LIMBO:
        if r.h.nodeid != FUSE_ROOT_ID or strcmp(name, limbo_name()) != 0:
            return -ENOENT
        return entry(r, limbo(), 0, True, False)
    if r.h.nodeid == t.dir[0] and strcmp(name, t.name[0]) == 0:
        if t.kind == T_FILE or t.kind == T_DIRECTORY:
            return -ENOENT
        k.seen |= 1
        return entry(r, k.child, k.ino, k.directory, t.kind == T_DELETE) or \
            entry(r, k.none, 0, k.directory, False)  # just forgotten: nobody watches it
    if t.kind == T_RENAME and r.h.nodeid == t.dir[1] and strcmp(name, t.name[1]) == 0:
        k.seen |= 2
    return -ENOENT


cdef bint about(Request *r, Slot *k) noexcept nogil:
    """Is the request for the name that the task is about?"""
    cdef uint32_t at = 0
    cdef const char *name = entry_arg(r, &at)
    return name != NULL and r.h.nodeid == k.task.dir[0] and strcmp(name, k.task.name[0]) == 0


cdef int gone(Slot *k, uint32_t needed) noexcept nogil:
    """The answer to a request that removes or renames: not without a look-up under the lock that is held now."""
    cdef uint32_t seen = k.seen
    k.seen = 0
    return 0 if seen & needed == needed else -ESTALE


cdef int answer(Request *r, Slot *k) noexcept nogil:
    """Of a repeater's request: what its task is about is done, nothing else is."""
    cdef uint32_t opcode = r.h.opcode
    cdef Task *t = &k.task
    cdef fuse_attr_out *attr = <fuse_attr_out *> r.out
    cdef fuse_open_out *opened = <fuse_open_out *> r.out
    cdef int res
    if op_flags(opcode) & BY_OPEN_FILE or (
            opcode in (FUSE_GETATTR, FUSE_STATX, FUSE_GETXATTR) and not r.h.nodeid & phantom_bit()) or (
            opcode == FUSE_LOOKUP and t.kind == T_WALK):
        # What the kernel does by the way in whosever time: FORGETs and the like; what it wants to know for its checks.
        return server_of(r).unrepeated(r)
    if r.ctx.as_data:
        data_drop(r.ctx)
    if opcode < FUSE_OPCODES:
        r.ctx.stats.ops[opcode] += 1
    r.settled = r.patient = 0
    r.counted[0] = r.counted[1] = 0
    if sizeof(fuse_in_header) + op_in_size(opcode) > r.h.len:
        return -EINVAL
    if opcode == FUSE_LOOKUP:
        return looked_up(r, k)
    if (opcode == FUSE_MKNOD and t.kind == T_FILE) or (opcode == FUSE_MKDIR and t.kind == T_DIRECTORY):
        return entry(r, k.child, 0, t.kind == T_DIRECTORY, False) if about(r, k) else -EACCES
    if (opcode == FUSE_UNLINK and t.kind == T_DELETE) or (opcode == FUSE_RMDIR and t.kind == T_RMDIR):
        return gone(k, 1) if about(r, k) else -EACCES
    if opcode in (FUSE_RENAME, FUSE_RENAME2) and t.kind == T_RENAME:
        return gone(k, 3) if about(r, k) else -EACCES
    if opcode in (FUSE_SETATTR, FUSE_OPEN) and not k.directory and r.h.nodeid != k.child and r.h.nodeid != k.none:
        return -ESTALE  # the name is another file's by what the kernel knows: it is to look
    if opcode == FUSE_SETATTR and t.kind in (T_MODIFY, T_ATTRIB, T_ATTRIB_SELF):
        memset(attr, 0, sizeof(fuse_attr_out))
        res = attributes(r, r.h.nodeid, k.directory, &attr.attr)
        if res < 0:
            return res
        # Not the true time: by its change the kernel tells, when it asks next, that pages that it keeps are old.
        attr.attr.mtimensec ^= 1
        return sizeof(fuse_attr_out)
    if opcode == FUSE_OPEN and t.kind == T_CLOSE:
        memset(opened, 0, sizeof(fuse_open_out))
        opened.fh = repeat_fh()
        opened.open_flags = FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE | FOPEN_NOFLUSH
        return sizeof(fuse_open_out)
    if opcode == FUSE_GETATTR and r.h.nodeid & phantom_bit():
        memset(attr, 0, sizeof(fuse_attr_out))
        phantom(r.h.nodeid, r.h.nodeid == limbo() or k.directory, &attr.attr)
        return sizeof(fuse_attr_out)
    if opcode == FUSE_GETXATTR:
        return -ENODATA
    return -EACCES


cdef int repeated(Request *r) noexcept nogil:
    """The layer before all others: see Server.dispatch."""
    cdef Server *s = server_of(r)
    cdef Repeat_ *p = <Repeat_ *> s.repeat
    cdef uint32_t opcode = r.h.opcode
    cdef unsigned n
    if opcode in (FUSE_RELEASE, FUSE_FLUSH) and r.h.len >= sizeof(fuse_in_header) + op_in_size(opcode) and \
            (<fuse_release_in *> r.op_in).fh == repeat_fh():
        r.ctx.stats.ops[opcode] += 1
        return 0
    for n in range(p.count):
        if p.slots[n].pid and p.slots[n].pid == r.h.pid:
            return answer(r, &p.slots[n])
    if r.h.nodeid & phantom_bit() and opcode != FUSE_FORGET:
        if opcode < FUSE_OPCODES:
            r.ctx.stats.ops[opcode] += 1
        return -ESTALE
    return s.unrepeated(r)


# -------------------------------------------------------------------- repeaters

cdef int collect(Repeat_ *p, Slot *k, int ms) noexcept nogil:
    """Has a repeater done what it was told? What came of it; 0: not known as yet. ms: for how long to wait."""
    cdef pollfd fds[2]
    cdef int32_t res = 0
    cdef ssize_t n
    fds[0].fd = k.sock
    fds[1].fd = p.halt
    fds[0].events = fds[1].events = POLLIN
    fds[0].revents = fds[1].revents = 0
    if poll(fds, 2 if ms else 1, ms) <= 0 or not fds[0].revents:
        return 0
    n = read(k.sock, &res, sizeof(res))
    if n < <ssize_t> sizeof(res):
        k.gone = True  # its pid stays its own, and it asks for nothing any more
        return 0
    k.busy = False
    if res == 0:
        p.ctx.stats.repeat_told += k.task.kind not in (T_LIMBO, T_WALK)
    else:
        # Those: the kernel has forgotten the directory, which nobody watches.
        p.ctx.stats.repeat_dropped += res not in (-ESTALE, -ENOTDIR) and k.task.kind != T_WALK
        if res not in (-ESTALE, -ENOTDIR):
            said(&k.task, -res)
    return res


cdef void said(Task *t, int error) noexcept nogil:
    cdef char line[LOG_LINE]
    cdef char text[100]
    cdef char name[NAME_ROOM]
    cdef unsigned n
    for n in range(NAME_ROOM):  # a message is one line
        name[n] = t.name[0][n] if not 0 < t.name[0][n] < 32 else c'?'
    name[NAME_ROOM - 1] = 0
    snprintf(line, sizeof(line), "--inotify: %s: not repeated (%u): %s", name, t.kind,
             strerror_r(error, text, sizeof(text)))
    log_line(LOG_DEBUG, line)


cdef bint same(uint64_t a, uint64_t b) noexcept nogil:
    """Is it one directory? Limbo is not: its lock is held by repeaters only."""
    return a == b and a != 0 and a != limbo()


cdef bint meets(Task *a, Task *b) noexcept nogil:
    return same(a.dir[0], b.dir[0]) or same(a.dir[0], b.dir[1]) or same(a.dir[1], b.dir[0]) or same(a.dir[1], b.dir[1])


cdef Slot *free_slot(Repeat_ *p, Task *t) noexcept nogil:
    """A repeater for a task; NULL: none, or what is to be told before is not told yet."""
    cdef Slot *found = NULL
    cdef unsigned n
    for n in range(p.count):
        if p.slots[n].busy and not p.slots[n].gone:
            collect(p, &p.slots[n], 0)
        if p.slots[n].gone:
            continue
        if not p.slots[n].busy:
            if found == NULL:
                found = &p.slots[n]
        elif meets(t, &p.slots[n].task):
            if not p.slots[n].late:  # a busy machine is no lock
                p.slots[n].late = True
                collect(p, &p.slots[n], 2 * STUCK_MS)
            if p.slots[n].busy:
                return NULL
            if found == NULL and not p.slots[n].gone:
                found = &p.slots[n]
    return found


cdef void walk_to(Repeat_ *p, uint64_t node) noexcept nogil:
    """Have a directory found by its path: the kernel has its inode, since somebody watches it, but not the way there."""
    cdef Inode *i = inode_at(&p.server.inodes, node)
    cdef char here[FD_PATH]
    cdef char root[4096]
    cdef char path[4096]
    cdef char *below = path
    cdef ssize_t n, m
    cdef Task t
    cdef int fd
    if i == NULL or node == FUSE_ROOT_ID:
        return
    fd = inode_fd(&p.server.inodes, i, <uint32_t> node)
    if fd < 0:
        return
    fd_path(here, fd)
    n = readlinkat(AT_FDCWD, here, path, sizeof(path) - 1)
    inode_unpin(i)
    fd_path(here, p.server.root_fd)
    m = readlinkat(AT_FDCWD, here, root, sizeof(root) - 1)
    if n <= 0 or m <= 0:
        return
    path[n] = 0
    if m > 1:  # else the root is the source's
        if n <= m or memcmp(path, root, m) != 0:
            return
        below = path + m
    if below[0] != c'/' or below[1] == 0 or strlen(below + 1) >= sizeof(t.name):
        return
    memset(&t, 0, sizeof(t))
    t.kind = T_WALK
    memcpy(<char *> t.name, below + 1, strlen(below + 1) + 1)
    give(p, &t, 0, 0, False)


cdef int tell(Repeat_ *p, Task *t, uint64_t child, uint64_t ino, bint directory) noexcept nogil:
    cdef int res = give(p, t, child, ino, directory)
    cdef unsigned n
    if res == -ESTALE:
        for n in range(2):
            if t.dir[n] and not t.dir[n] & phantom_bit():
                walk_to(p, t.dir[n])
        res = give(p, t, child, ino, directory)
    return res


cdef int give(Repeat_ *p, Task *t, uint64_t child, uint64_t ino, bint directory) noexcept nogil:
    """Have a change repeated, and wait for that, but not for long. What came of it, if that is known."""
    cdef Slot *k = free_slot(p, t)
    if k == NULL:
        p.ctx.stats.repeat_dropped += 1
        said(t, EBUSY)
        return 0
    k.task = t[0]
    k.child = child
    k.none = phantom_of(ino, directory)
    k.ino = ino
    k.directory = directory
    k.seen = 0
    k.busy = True
    k.late = False
    if write(k.sock, t, sizeof(Task)) < 0:
        k.gone = True
        p.ctx.stats.repeat_dropped += 1
        return 0
    return collect(p, k, STUCK_MS)


# ----------------------------------------------------------------------- events

cdef struct Known:
    uint64_t node          # 0: it is not known
    uint64_t ino
    uint32_t generation


cdef void look_for(Repeat_ *p, unsigned row, Info *info, Known *k) noexcept nogil:
    """What the kernel knows of that which a file handle is of."""
    cdef InodeTable *t = &p.server.inodes
    cdef char *handle = <char *> (info + 1)
    cdef Inode *i
    cdef uint32_t node
    k.node = 0
    k.ino = number_in(t.fs[row].flags & FS_MEMORY != 0, info.handle_type, info.handle_bytes, handle)
    node = inode_numbered(t, row, k.ino) if k.ino else 0
    i = inode_at(t, node) if node else NULL
    if i == NULL:
        return
    k.generation = 0 if node == FUSE_ROOT_ID else i.generation
    if i.handle_len and i.handle_len <= INLINE_HANDLE and (
            i.handle_len != info.handle_bytes or memcmp(i.handle.here, handle, i.handle_len) != 0):
        return  # another one had this number
    if inode_numbered(t, row, k.ino) == node:  # else the nodeid has become another one's meanwhile
        k.node = node


cdef bint removed(Repeat_ *p, uint64_t node) noexcept nogil:
    """Is it sure that something is gone for good?"""
    cdef InodeTable *t = &p.server.inodes
    cdef Inode *i = inode_at(t, node)
    cdef statx stx
    cdef bint gone
    cdef int fd
    if i == NULL:
        return False
    fd = inode_fd(t, i, <uint32_t> node)
    if fd < 0:
        return fd == -ESTALE
    gone = c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), &stx) == 0 and stx.stx_nlink == 0
    inode_unpin(i)
    return gone


cdef void set_place(Task *t, unsigned n, Known *dir, const char *name) noexcept nogil:
    """dir: NULL: the one that nobody else finds."""
    cdef size_t length = strlen(name)
    t.dir[n] = dir.node if dir != NULL else limbo()
    t.generation[n] = dir.generation if dir != NULL else 0
    if length >= NAME_ROOM:
        length = NAME_ROOM - 1
    memcpy(t.name[n], name, length)
    t.name[n][length] = 0


cdef void found_above(Repeat_ *p, unsigned row, Info *info, Task *task) noexcept nogil:
    """The name of a directory that the kernel does not know, for it may know the one above: an event does not say."""
    cdef InodeTable *t = &p.server.inodes
    cdef file_handle_max fh
    cdef statx stx
    cdef char name[4096]
    cdef char path[FD_PATH]
    cdef char *last
    cdef int fd, above = -1, mount
    cdef Known dir
    cdef Inode *i
    cdef ssize_t n
    dir.node = 0
    if info.handle_bytes > sizeof(fh.f_handle):
        return
    fh.handle_bytes = info.handle_bytes
    fh.handle_type = info.handle_type
    memcpy(fh.f_handle, <char *> (info + 1), info.handle_bytes)
    mount = fs_fd(t, row)
    if mount < 0:
        return
    fd = sys_open_by_handle_at(mount, &fh, O_PATH | O_CLOEXEC)
    fs_unpin(t, row)
    if fd < 0:
        return
    if c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), &stx) < 0 or stx.stx_nlink == 0:  # gone: it has no name
        close(fd)
        return
    above = sys_openat_here(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC)
    if above >= 0 and c_statx(above, "", AT_EMPTY_PATH, stx_mask(), &stx) == 0 and on_fs(&t.fs[row], &stx):
        dir.node = inode_numbered(t, row, stx.stx_ino)
        i = inode_at(t, dir.node) if dir.node else NULL
        dir.generation = 0 if i == NULL or dir.node == FUSE_ROOT_ID else i.generation
        if inode_numbered(t, row, stx.stx_ino) != dir.node:
            dir.node = 0
    if above >= 0:
        close(above)
    if dir.node:
        fd_path(path, fd)
        n = readlinkat(AT_FDCWD, path, name, sizeof(name) - 1)
        name[n if n > 0 else 0] = 0
        last = strrchr(name, c'/')
        if last != NULL and last[1]:
            set_place(task, 0, &dir, last + 1)
    close(fd)


cdef void changed(Repeat_ *p, unsigned row, uint64_t mask, Info **dirs, char **names, unsigned n,
                  Info *target) noexcept nogil:
    """Repeat what one event tells, if the kernel knows of where it was.

    The kernel has merged events of one name that were not read yet: they come in the order in which they are usual.
    """
    cdef InodeTable *t = &p.server.inodes
    cdef Known dir, to, it
    cdef bint directory = mask & FAN_ONDIR != 0
    cdef bint itself = names[0] == NULL or strcmp(names[0], ".") == 0
    cdef uint64_t child, none
    cdef Inode *i
    cdef Task task
    memset(&task, 0, sizeof(task))
    memset(&to, 0, sizeof(to))
    memset(&it, 0, sizeof(it))
    look_for(p, row, dirs[0], &dir)
    if n > 1:
        look_for(p, row, dirs[1], &to)
    if itself and not (mask & FAN_ATTRIB and directory):
        return
    if itself and not dir.node:
        found_above(p, row, dirs[0], &task)
    if not dir.node and not to.node and not task.dir[0]:
        return
    p.ctx.stats.repeat_events += 1
    if target != NULL:
        look_for(p, row, target, &it)
    child = it.node
    none = phantom_of(it.ino, directory)
    i = inode_at(t, child) if child else NULL
    if i != NULL and (i.type == S_IFDIR >> 12) != directory:
        i = NULL
    if itself:
        if dir.node:
            notify_attributes(p.server, dir.node)
            task.kind = T_ATTRIB_SELF
            set_place(&task, 0, &dir, "")
            if tell(p, &task, dir.node, dir.ino, True) != -ESTALE:
                return
            task.dir[0] = 0
            found_above(p, row, dirs[0], &task)  # the kernel has just forgotten it
        if task.dir[0]:
            task.kind = T_ATTRIB
            tell(p, &task, none, it.ino, True)
        return
    if mask & FAN_RENAME:
        task.kind = T_RENAME
        if dir.node:
            set_place(&task, 0, &dir, names[0])
        else:
            set_place(&task, 0, NULL, "f")
        if to.node:
            set_place(&task, 1, &to, names[1])
        else:
            set_place(&task, 1, NULL, "t")
        if i == NULL or i.opens or not dir.node or not to.node or child == FUSE_ROOT_ID:
            child = none
        tell(p, &task, child, it.ino, directory)
        return
    if not dir.node:
        return
    set_place(&task, 0, &dir, names[0])
    if mask & FAN_CREATE:
        task.kind = T_DIRECTORY if directory else T_FILE
        tell(p, &task, none, it.ino, directory)
    if i == NULL:
        child = none
    if mask & (FAN_MODIFY | FAN_ATTRIB | FAN_CLOSE_WRITE) and not directory:
        if i != NULL:
            notify_attributes(p.server, child)
        if mask & FAN_MODIFY:
            task.kind = T_MODIFY
            tell(p, &task, child, it.ino, False)
        if mask & FAN_ATTRIB:
            task.kind = T_ATTRIB
            tell(p, &task, child, it.ino, False)
        if mask & FAN_CLOSE_WRITE and (i == NULL or i.type == S_IFREG >> 12):
            task.kind = T_CLOSE
            tell(p, &task, child, it.ino, False)
    if mask & FAN_DELETE:
        # With the directory's lock that of what is removed is waited for, which who has it open may hold.
        if i != NULL and (i.opens or (directory and not removed(p, child))):
            child = none
        task.kind = T_RMDIR if directory else T_DELETE
        tell(p, &task, child, it.ino, directory)


cdef void event(Repeat_ *p, Metadata *m, char *start) noexcept nogil:
    cdef InodeTable *t = &p.server.inodes
    cdef char *at = start + m.metadata_len
    cdef char *end = start + m.event_len
    cdef char *names[2]
    cdef Info *dirs[2]
    cdef Info *target = NULL
    cdef Info *info
    cdef uint64_t fsid
    cdef uint32_t row
    cdef unsigned n = 0
    while at + sizeof(Info) <= end:
        info = <Info *> at
        if info.len < sizeof(Info) or at + info.len > end or info.handle_bytes > info.len - sizeof(Info):
            break
        if info.info_type == INFO_FID:
            target = info
        elif n < 2 and info.info_type in (INFO_DFID_NAME, INFO_OLD_NAME, INFO_NEW_NAME, INFO_DFID):
            dirs[n] = info
            names[n] = NULL
            if info.info_type != INFO_DFID:
                names[n] = at + sizeof(Info) + info.handle_bytes
                if memchr(names[n], 0, info.len - sizeof(Info) - info.handle_bytes) == NULL:
                    break
            n += 1
        at += info.len
    # Without a directory: how many names a file has has changed. The kernel tells that with the name's own event.
    if n == 0 or (m.mask & FAN_RENAME and n < 2):
        return
    memcpy(&fsid, dirs[0].fsid, 8)
    for row in range(atomic_get32(&t.fs_count)):
        if t.fs[row].live and t.fs[row].flags & FS_COHERENT and t.fs[row].fsid == fsid:
            changed(p, row, m.mask, dirs, names, n, target)


cdef void *read_on(void *arg) noexcept nogil:
    """The reader's thread: what it leaves to the kernel for long is merged there."""
    cdef Repeat_ *p = <Repeat_ *> arg
    cdef char *buffer = <char *> malloc(BUFFER)
    cdef pollfd fds[2]
    cdef Metadata m
    cdef Change *c
    cdef ssize_t n
    cdef char *at
    cdef uint64_t one = 1
    confine_thread()
    fds[0].fd = p.fd
    fds[1].fd = p.halt
    fds[0].events = fds[1].events = POLLIN
    while buffer != NULL and not atomic_get32(&p.stop):
        poll(fds, 2, -1)
        n = read(p.fd, buffer, BUFFER)
        at = buffer
        while n >= <ssize_t> sizeof(Metadata):
            memcpy(&m, at, sizeof(m))
            if m.event_len < sizeof(Metadata) or m.event_len > n:
                break
            c = NULL
            if m.mask & FAN_Q_OVERFLOW:
                atomic_add32(&p.lost, 1)
            elif m.pid != p.pid and atomic_get32(&p.active):
                c = <Change *> malloc(sizeof(Change) + m.event_len) if p.queued < QUEUE_MOST else NULL
                if c == NULL:
                    atomic_add32(&p.lost, 1)
            if c != NULL:
                c.next = NULL
                c.length = m.event_len
                memcpy(c.bytes, at, m.event_len)
                pthread_mutex_lock(&p.lock)
                if p.first == NULL:
                    p.first = c
                else:
                    p.last.next = c
                p.last = c
                p.queued += 1
                pthread_mutex_unlock(&p.lock)
                if p.queued == 1:
                    write(p.wake, &one, 8)
            at += m.event_len
            n -= m.event_len
    free(buffer)
    atomic_set32(&p.reading, 0)
    return NULL


cdef bint reader_start(Repeat_ *p) noexcept nogil:
    cdef pthread_attr_t attr
    cdef pthread_t thread
    cdef int failed
    pthread_attr_init(&attr)
    pthread_attr_setstacksize(&attr, 65536)
    atomic_set32(&p.reading, 1)
    failed = pthread_create(&thread, &attr, read_on, p)
    pthread_attr_destroy(&attr)
    if failed:
        atomic_set32(&p.reading, 0)
        return False
    pthread_detach(thread)
    return True


cdef void serve(Repeat_ *p) noexcept nogil:
    cdef pollfd fds[2]
    cdef uint64_t count
    cdef Metadata m
    cdef Change *c
    cdef char word
    cdef ssize_t n
    fds[0].fd = p.wake
    fds[1].fd = p.told_by
    fds[0].events = fds[1].events = POLLIN
    while not atomic_get32(&p.stop):
        p.ctx.stats.repeat_dropped += atomic_swap32(&p.lost, 0)
        if p.told_by >= 0:
            fds[1].revents = 0
            if poll(&fds[1], 1, 0) > 0:
                n = read(p.told_by, &word, 1)
                if n < 1:
                    p.told_by = -1
                else:
                    atomic_set32(&p.active, word == c'1')
        pthread_mutex_lock(&p.lock)
        c = p.first
        if c != NULL:
            p.first = c.next
            p.queued -= 1
        pthread_mutex_unlock(&p.lock)
        if c == NULL:
            fds[0].revents = 0
            poll(fds, 2 if p.told_by >= 0 else 1, -1)
            if fds[0].revents:
                read(p.wake, &count, 8)
            continue
        memcpy(&m, c.bytes, sizeof(m))
        event(p, &m, c.bytes)
        free(c)


cdef uint64_t repeat_row(void *watcher, int fd, statx *stx, uint32_t flags) noexcept nogil:
    """InodeTable.watch: a filesystem was found below the source."""
    cdef Repeat_ *p = <Repeat_ *> watcher
    cdef uint64_t fsid = p.watch(p.watcher, fd, stx, flags)
    if fsid:
        mark(p, fd)
    return fsid


cdef int mark(Repeat_ *p, int fd) noexcept nogil:
    return -errno if fanotify_mark(
        p.fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM,
        FAN_CREATE | FAN_DELETE | FAN_RENAME | FAN_MODIFY | FAN_ATTRIB | FAN_CLOSE_WRITE | FAN_ONDIR, fd, NULL) < 0 else 0


cdef class Repeat:
    """Has changes beside the mount repeated in it. To be made after Watch, before anything is served.

    always: whether anybody watches or not. Raises OSError.
    """
    cdef ServerCore core
    cdef Repeat_ p

    def __cinit__(self, ServerCore core, bint always):
        cdef Repeat_ *p = &self.p
        cdef InodeTable *t = &core.s.inodes
        cdef int r
        self.core = core
        memset(p, 0, sizeof(Repeat_))
        p.fd = p.wake = p.halt = p.told_by = -1
        p.server = &core.s
        p.pid = os.getpid()
        p.active = always
        pthread_mutex_init(&p.lock, NULL)
        p.fd = fanotify_init(FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_REPORT_DFID_NAME |
                             FAN_REPORT_FID | FAN_REPORT_TARGET_FID, 0)
        if p.fd < 0:
            raise OSError(errno, os.strerror(errno), "fanotify_init")
        p.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        p.halt = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        r = mark(p, t.fs[0].mount_fd)
        if r < 0:
            raise OSError(-r, os.strerror(-r), "fanotify_mark")
        p.watch = t.watch
        p.watcher = t.watcher
        t.watch = repeat_row
        t.watcher = p
        core.s.repeat = p
        core.s.unrepeated = core.s.dispatch
        core.s.dispatch = repeated

    @staticmethod
    def repeaters():
        """How many there are at the most."""
        return REPEATERS

    def trust(self, list repeaters, int told_by):
        """Before serve(). repeaters: (pid, socket) of each, none of which has been told anything; the sockets stay the
        caller's, as does `told_by`: a socket that tells whether anybody watches, by '1' or '0'; -1: none does.

        From now on requests of these pids are answered without the source.
        """
        cdef unsigned n
        self.p.told_by = told_by
        for n in range(len(repeaters)):
            self.p.slots[n].sock = repeaters[n][1]
            self.p.slots[n].pid = repeaters[n][0]
        self.p.count = len(repeaters)

    def serve(self):
        """Until stop()."""
        cdef Repeat_ *p = &self.p
        cdef Task t
        cdef unsigned n
        cdef int r
        with nogil:
            confine_thread()
            r = context_open(&p.ctx, p.server, T_WATCH, -1)
            if r == 0:
                memset(&t, 0, sizeof(t))
                t.kind = T_LIMBO
                for n in range(p.count):
                    p.slots[n].task = t
                    p.slots[n].busy = True
                    write(p.slots[n].sock, &t, sizeof(t))
                    collect(p, &p.slots[n], 5000)
                reader_start(p)
                serve(p)
            context_close(&p.ctx)
        if r < 0:
            raise OSError(-r, os.strerror(-r))

    def stop(self):
        """End serve()."""
        cdef uint64_t one = 1
        atomic_set32(&self.p.stop, 1)
        write(self.p.halt, &one, 8)
        write(self.p.wake, &one, 8)

    @property
    def ended(self):
        """Has the reader's thread ended?"""
        return not atomic_get32(&self.p.reading)
