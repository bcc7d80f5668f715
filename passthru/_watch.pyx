"""Changes beside the mount: what fanotify(7) tells of the source becomes what the kernel is told of its caches.

A thread of its own reads the events, finds by inode number what the kernel knows, and notifies it. What may wait for a
lock of the mount's (names of a directory, pages of a file) goes to further threads: a directory whose lock somebody holds
keeps one of them, and nobody else waits for it. No thread that answers requests takes part.
"""
import os

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

from passthru._abi cimport *
from passthru._changes cimport Changes, changes_moved, changes_note, changes_note_all, changes_overtaken, name_key
from passthru._confine cimport confine_thread
from passthru._inode cimport *
from passthru._libc cimport *
from passthru._notify cimport notify_attributes, notify_entry, notify_epoch, notify_pages
from passthru._request cimport Context, Server
from passthru._serve cimport context_close, context_open
from passthru._server cimport ServerCore
from passthru._stats cimport T_WATCH

cdef enum:
    # Not in older headers (Linux 5.17): the handle of what a name is of, and
    FAN_REPORT_TARGET_FID = 0x1000
    FAN_RENAME = 0x10000000  # both names in one event
    # fanotify_event_info_header.info_type
    INFO_FID = 1
    INFO_DFID_NAME = 2
    INFO_DFID = 3
    INFO_OLD_NAME = 10
    INFO_NEW_NAME = 12
    # file_handle.handle_type, and where it has the inode number
    HANDLE_INO32 = 1       # tmpfs: in its second and third word
    HANDLE_INO64 = 0x81
    HANDLE_BTRFS = 0x4d
    TMPFS = 0x01021994
    ROWS = 64              # filesystems that are watched
    WORKERS = 32           # directories that may be stuck at a time
    STUCK_NS = 20000000
    AGAINS = 3
    AGAIN_MOST = 65536
    QUEUE_MOST = 100000    # notifications that wait for one worker
    FEW = 8                # of these the queue is short
    BUFFER = 262144

cdef uint64_t[AGAINS] AGAIN_NS  # when what may have overtaken a reply is said again
AGAIN_NS[0] = 4000000
AGAIN_NS[1] = 64000000
AGAIN_NS[2] = 1000000000

cdef struct Metadata:      # fanotify_event_metadata
    uint32_t event_len
    uint8_t vers
    uint8_t reserved
    uint16_t metadata_len
    uint64_t mask
    int32_t fd
    int32_t pid

cdef struct Info:          # fanotify_event_info_fid; the handle's bytes and perhaps a name follow
    uint8_t info_type
    uint8_t pad
    uint16_t len
    uint32_t fsid[2]
    uint32_t handle_bytes
    int32_t handle_type

cdef struct Row:
    uint64_t fsid
    uint16_t fs
    bint memory
    bint shared            # another row has the same filesystem

cdef struct Job:           # a notification that may wait, or is to be repeated
    Job *next
    uint64_t due
    uint64_t key           # of the name, or the inode's number: see _changes
    uint32_t node
    uint32_t length        # of the name; 0: it is of the inode itself
    bint moves             # from or to it a directory was moved, into another one
    char name[1]

cdef struct Watch_

cdef struct Worker:
    Watch_ *watch
    pthread_cond_t work
    Job *first
    Job *last
    uint32_t queued
    uint32_t node          # what it tells of now; 0: nothing
    uint64_t since
    uint32_t stuck         # the directory that it is kept for; 0: none
    bint running

cdef struct Watch_:
    Server *server
    Context ctx
    int fd
    int wake
    uint32_t stop
    int pid
    Changes changes
    Row rows[ROWS]
    unsigned nrows
    uint32_t rows_of       # InodeTable.fs_changes when they were read
    uint32_t watched       # rows that were marked
    # Under `lock`:
    pthread_mutex_t lock
    Worker workers[WORKERS]
    unsigned primary
    uint32_t jobs          # queued or in work, of all workers
    uint32_t threads
    bint lost              # not all could be queued
    Job *again[AGAINS]
    Job *again_last[AGAINS]
    uint32_t agains
    bint moves             # what the event tells of: see Job
    char *buffer


# ---------------------------------------------------------------- filesystems

cdef uint64_t number_in(bint memory, int32_t kind, uint32_t length, const char *handle) noexcept nogil:
    """The inode number in a file handle; 0: it is of no kind that is known."""
    cdef uint32_t words[3]
    cdef uint64_t ino = 0
    if length < 8:
        return 0
    memcpy(words, handle, 12 if length >= 12 else 8)
    if kind == HANDLE_INO32:
        if not memory:
            return words[0]
        return words[1] | <uint64_t> words[2] << 32 if length >= 12 else 0
    if kind == HANDLE_INO64 or HANDLE_BTRFS <= kind <= HANDLE_BTRFS + 2:
        memcpy(&ino, handle, 8)
    return ino


cdef uint64_t watch_row(void *watcher, int fd, statx *stx, uint32_t flags) noexcept nogil:
    """Have what changes on a filesystem told, of which `fd` is a directory. Its fsid; 0: not all of it would be."""
    cdef Watch_ *w = <Watch_ *> watcher
    cdef file_handle_max fh
    cdef statfs sf
    cdef uint64_t fsid
    if flags & (FS_REMOTE | FS_STACKED | FS_PSEUDO | FS_FOREIGN | FS_SERVER) or atomic_get32(&w.watched) >= ROWS:
        return 0
    if fstatfs(fd, &sf) < 0 or sys_name_to_handle_at(fd, &fh) < 0:
        return 0
    if (sf.f_type == TMPFS) != (flags & FS_MEMORY != 0):
        return 0
    if number_in(sf.f_type == TMPFS, fh.handle_type, fh.handle_bytes, <char *> fh.f_handle) != stx.stx_ino:
        return 0
    memcpy(&fsid, &sf.f_fsid, 8)
    if not fsid or fanotify_mark(w.fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM,
                                 FAN_CREATE | FAN_DELETE | FAN_RENAME | FAN_MODIFY | FAN_ATTRIB |
                                 FAN_CLOSE_WRITE | FAN_ONDIR,
                                 fd, NULL) < 0:
        return 0
    return fsid


cdef void read_rows(Watch_ *w) noexcept nogil:
    """Which filesystems are watched now."""
    cdef InodeTable *t = &w.server.inodes
    cdef uint32_t n
    cdef unsigned k
    cdef Row *row
    w.rows_of = atomic_get32(&t.fs_changes)
    w.nrows = 0
    for n in range(atomic_get32(&t.fs_count)):
        if w.nrows < ROWS and t.fs[n].live and t.fs[n].flags & FS_COHERENT:
            row = &w.rows[w.nrows]
            row.fsid = t.fs[n].fsid
            row.fs = <uint16_t> n
            row.memory = t.fs[n].flags & FS_MEMORY != 0
            row.shared = False
            for k in range(w.nrows):
                if w.rows[k].fsid == row.fsid:
                    w.rows[k].shared = row.shared = True
            w.nrows += 1
    atomic_set32(&w.watched, w.nrows)


# -------------------------------------------------------------- notifications

cdef void told(Watch_ *w) noexcept nogil:
    w.ctx.stats.watch_notified += 1


cdef void again(Watch_ *w, Job *j, unsigned step) noexcept nogil:
    """Say it once more, later: it may have passed a reply by that told what was so before."""
    if step >= AGAINS or w.agains >= AGAIN_MOST:
        free(j)
        return
    j.due = now_ns() + AGAIN_NS[step]
    j.next = NULL
    if w.again[step] == NULL:
        w.again[step] = j
    else:
        w.again_last[step].next = j
    w.again_last[step] = j
    w.agains += 1


cdef Job *job(uint32_t node, uint64_t key, const char *name, uint32_t length) noexcept nogil:
    cdef Job *j = <Job *> malloc(sizeof(Job) + length)
    if j != NULL:
        j.next = NULL
        j.node = node
        j.key = key
        j.length = length
        j.moves = False
        if length:
            memcpy(j.name, name, length)
        j.name[length] = 0
    return j


cdef void alone_with(int fd) noexcept nogil:
    """The calling thread has no fd in common with the others, and only this one.

    No signal ends a wait for a lock of the mount's. If the daemon is killed meanwhile, whoever has the lock waits for an
    answer: it comes when all others' fds are closed, upon which the keeper aborts the connection. This thread keeps the
    memory of the process: no ring may be mapped from its file, see setup_here() in _uring.
    """
    sys_close_range(0, fd - 1, CLOSE_RANGE_UNSHARE)
    sys_close_range(fd + 1, 0xffffffffu, 0)


cdef void *work(void *arg) noexcept nogil:
    """A thread that waits for locks of the mount's."""
    cdef Worker *k = <Worker *> arg
    cdef Watch_ *w = k.watch
    cdef Job *j
    cdef bint few
    confine_thread()
    alone_with(w.server.fuse_fd)
    pthread_mutex_lock(&w.lock)
    while True:
        while k.first == NULL and not atomic_get32(&w.stop):
            k.stuck = 0
            pthread_cond_wait(&k.work, &w.lock)
        if atomic_get32(&w.stop):
            break
        j = k.first
        k.first = j.next
        k.queued -= 1
        k.node = j.node
        k.since = now_ns()
        few = k.queued <= FEW
        pthread_mutex_unlock(&w.lock)
        if j.length and few and (j.moves or changes_moved(&w.changes)):
            poll(NULL, 0, 1)  # who looks up the other name wants this directory's lock, and does not wait for it
        if j.length:
            notify_entry(w.server, j.node, j.name, True)
        else:
            notify_pages(w.server, j.node, 0, 0)
        free(j)
        pthread_mutex_lock(&w.lock)
        k.node = 0
        w.jobs -= 1
    k.running = False
    w.threads -= 1
    pthread_mutex_unlock(&w.lock)
    return NULL


cdef bint worker_start(Watch_ *w, Worker *k) noexcept nogil:
    cdef pthread_attr_t attr
    cdef pthread_t thread
    cdef int failed
    if k.running:
        return True
    k.watch = w
    pthread_cond_init(&k.work, NULL)
    pthread_attr_init(&attr)
    pthread_attr_setstacksize(&attr, 65536)
    failed = pthread_create(&thread, &attr, work, k)
    pthread_attr_destroy(&attr)
    if failed:
        return False
    pthread_detach(thread)
    k.running = True
    w.threads += 1
    return True


cdef void enqueue(Worker *k, Job *j) noexcept nogil:
    j.next = NULL
    if k.first == NULL:
        k.first = j
    else:
        k.last.next = j
    k.last = j
    k.queued += 1


cdef bint queued(Worker *k, Job *j) noexcept nogil:
    """Is a worker about to say that in any case? Of many it may be overlooked."""
    cdef Job *q = k.first if k.queued <= FEW else k.last
    while q != NULL:
        if q.node == j.node and q.length == j.length and memcmp(q.name, j.name, j.length) == 0:
            return True
        q = q.next
    return False


cdef bint push(Watch_ *w, Job *j) noexcept nogil:
    """Have a worker say it, after what was to be said of the same directory before. False: it is not said twice."""
    cdef Worker *k
    cdef unsigned n
    cdef bint pushed = False
    if j == NULL:
        w.lost = True
        return False
    pthread_mutex_lock(&w.lock)
    k = &w.workers[w.primary]
    for n in range(WORKERS):
        if w.workers[n].stuck == j.node:
            k = &w.workers[n]
    if k.first != NULL and queued(k, j):
        free(j)
    elif k.queued >= QUEUE_MOST or not worker_start(w, k):
        w.lost = True
        free(j)
    else:
        enqueue(k, j)
        w.jobs += 1
        pushed = True
        pthread_cond_signal(&k.work)
    pthread_mutex_unlock(&w.lock)
    return pushed


cdef void unstick(Watch_ *w) noexcept nogil:
    """If the worker waits for somebody's lock, let it wait, and another one go on with what is not of that directory."""
    cdef Worker *k = &w.workers[w.primary]
    cdef Worker *other = NULL
    cdef Job *j
    cdef Job *rest
    cdef unsigned n
    pthread_mutex_lock(&w.lock)
    if k.node and now_ns() - k.since > STUCK_NS:
        for n in range(WORKERS):
            if n != w.primary and not w.workers[n].stuck and not w.workers[n].node and worker_start(w, &w.workers[n]):
                other = &w.workers[n]
                w.primary = n
                break
    if other != NULL:
        w.ctx.stats.watch_stuck += 1
        k.stuck = k.node
        rest = k.first
        k.first = NULL
        k.queued = 0
        while rest != NULL:
            j = rest
            rest = j.next
            enqueue(k if j.node == k.stuck else other, j)
        pthread_cond_signal(&other.work)
    pthread_mutex_unlock(&w.lock)


cdef void say(Watch_ *w, uint32_t node, uint64_t ino, unsigned step) noexcept nogil:
    """Attributes have changed. Waits for nobody."""
    told(w)
    notify_attributes(w.server, node)
    if changes_overtaken(&w.changes, ino) or step:
        again_of(w, node, ino, NULL, 0, step)


cdef void say_name(Watch_ *w, uint32_t node, uint64_t key, const char *name, uint32_t length, unsigned step) noexcept nogil:
    cdef Job *j = job(node, key, name, length)
    if j != NULL:
        j.moves = w.moves
    if push(w, j):
        told(w)
    if changes_overtaken(&w.changes, key) or step:
        again_of(w, node, key, name, length, step)


cdef void again_of(Watch_ *w, uint32_t node, uint64_t key, const char *name, uint32_t length, unsigned step) noexcept nogil:
    cdef Job *j
    if step < AGAINS:
        j = job(node, key, name, length)
        if j != NULL:
            again(w, j, step)


cdef void repeat_due(Watch_ *w) noexcept nogil:
    cdef uint64_t now = now_ns()
    cdef unsigned step
    cdef Job *j
    for step in range(AGAINS):
        while w.again[step] != NULL and w.again[step].due <= now:
            j = w.again[step]
            w.again[step] = j.next
            w.agains -= 1
            if j.length:
                say_name(w, j.node, j.key, j.name, j.length, step + 1)
            else:
                say(w, j.node, j.key, step + 1)
            free(j)


cdef void forget_all(Watch_ *w) noexcept nogil:
    """Nobody knows what has changed: the kernel is to ask for everything again."""
    cdef InodeTable *t = &w.server.inodes
    cdef uint64_t n
    cdef Inode *i
    changes_note_all(&w.changes)
    notify_epoch(w.server)
    told(w)
    for n in range(1, <uint64_t> t.slab.chunks << 10):
        i = inode_at(t, n)
        if i != NULL and not atomic_get32(&w.stop):
            notify_attributes(w.server, n)
            told(w)


# --------------------------------------------------------------------- events

cdef void changed(Watch_ *w, Row *row, uint64_t dir, const char *name, uint32_t length, uint64_t ino,
                  bint data) noexcept nogil:
    """A name in a directory, or something itself (`ino`), has changed."""
    cdef InodeTable *t = &w.server.inodes
    cdef uint32_t node = inode_numbered(t, row.fs, dir) if dir else 0
    cdef Inode *i
    cdef bint known = node != 0
    if node:
        say(w, node, dir, 0)
        say_name(w, node, name_key(dir, name), name, length, 0)
    node = inode_numbered(t, row.fs, ino) if ino else 0
    if node:
        known = True
        say(w, node, ino, 0)
        i = inode_at(t, node)
        if data and i != NULL and i.opens and not i.passthrough and not w.server.config.writeback:
            if push(w, job(node, ino, NULL, 0)):  # mapped pages
                told(w)
    if not known:
        w.ctx.stats.watch_unknown += 1


cdef void event(Watch_ *w, Metadata *m, char *start) noexcept nogil:
    cdef char *at = start + m.metadata_len
    cdef char *end = start + m.event_len
    cdef char *names[2]
    cdef uint32_t lengths[2]
    cdef Info *dirs[2]
    cdef Info *target = NULL
    cdef Info *info
    cdef Row *row
    cdef uint64_t fsid, ino, dir
    cdef unsigned n = 0, k, j
    cdef bint own = m.pid == w.pid
    cdef bint entry = m.mask & (FAN_CREATE | FAN_DELETE | FAN_RENAME) != 0
    w.ctx.stats.watch_events += 1
    if m.mask & FAN_Q_OVERFLOW:
        w.ctx.stats.watch_overflows += 1
        forget_all(w)
        return
    while at + sizeof(Info) <= end:
        info = <Info *> at
        if info.len < sizeof(Info) or at + info.len > end or info.handle_bytes > info.len - sizeof(Info):
            break
        if info.info_type == INFO_FID:
            target = info
        elif n < 2 and info.info_type in (INFO_DFID_NAME, INFO_OLD_NAME, INFO_NEW_NAME, INFO_DFID):
            dirs[n] = info
            names[n] = at + sizeof(Info) + info.handle_bytes
            if info.info_type != INFO_DFID and memchr(names[n], 0, info.len - sizeof(Info) - info.handle_bytes) == NULL:
                break
            lengths[n] = <uint32_t> strlen(names[n]) if info.info_type != INFO_DFID else 0
            n += 1
        at += info.len
    if n == 0 and target == NULL:
        return
    info = target if target != NULL else dirs[0]
    memcpy(&fsid, info.fsid, 8)
    for k in range(w.nrows):
        row = &w.rows[k]
        if row.fsid != fsid:
            continue
        if own and not row.shared:
            w.ctx.stats.watch_own += 1
            return
        ino = number_in(row.memory, target.handle_type, target.handle_bytes, <char *> (target + 1)) if target != NULL else 0
        if ino == 0 and not entry and n:  # of the directory itself
            ino = number_in(row.memory, dirs[0].handle_type, dirs[0].handle_bytes, <char *> (dirs[0] + 1))
        if ino:
            changes_note(&w.changes, ino)
        w.moves = n == 2 and m.mask & FAN_ONDIR and (
            dirs[0].handle_bytes != dirs[1].handle_bytes or memcmp(dirs[0] + 1, dirs[1] + 1, dirs[0].handle_bytes) != 0)
        for j in range(n if entry else 0):
            dir = number_in(row.memory, dirs[j].handle_type, dirs[j].handle_bytes, <char *> (dirs[j] + 1))
            if dir:
                changes_note(&w.changes, dir)
                changes_note(&w.changes, name_key(dir, names[j]))
                changed(w, row, dir, names[j], lengths[j], ino if j == 0 else 0, False)
        w.moves = False
        if not entry or not n:
            changed(w, row, 0, NULL, 0, ino, m.mask & FAN_MODIFY != 0)


cdef void serve(Watch_ *w) noexcept nogil:
    cdef pollfd fds[2]
    cdef uint64_t count
    cdef uint64_t now, due
    cdef ssize_t n
    cdef char *at
    cdef Metadata m
    cdef int timeout
    cdef unsigned k
    fds[0].fd = w.fd
    fds[1].fd = w.wake
    fds[0].events = fds[1].events = POLLIN
    while not atomic_get32(&w.stop):
        n = read(w.fd, w.buffer, BUFFER)
        if n > 0:
            if w.rows_of != atomic_get32(&w.server.inodes.fs_changes):
                read_rows(w)
            at = w.buffer
            while n >= <ssize_t> sizeof(Metadata):
                memcpy(&m, at, sizeof(m))  # events begin at multiples of 4, and this has a mask of 8 bytes
                if m.event_len < sizeof(Metadata) or m.event_len > n:
                    break
                event(w, &m, at)
                at += m.event_len
                n -= m.event_len
        else:
            timeout = -1
            if w.agains:
                now = now_ns()
                for k in range(AGAINS):
                    if w.again[k] != NULL:
                        due = w.again[k].due
                        due = (due - now) // 1000000 + 1 if due > now else 0
                        timeout = <int> due if timeout < 0 or due < timeout else timeout
            if atomic_get32(&w.jobs) and (timeout < 0 or timeout > 10):
                timeout = 10
            fds[1].revents = 0
            poll(fds, 2, timeout)
            if fds[1].revents:
                read(w.wake, &count, 8)
        if w.agains:
            repeat_due(w)
        if atomic_get32(&w.jobs):
            unstick(w)
        if w.lost:
            w.lost = False
            w.ctx.stats.watch_overflows += 1
            forget_all(w)


cdef class Watch:
    """Has the kernel told of what changes beside the mount. serve() is called by one thread, its own; the rest by the maker.

    To be made before anything is served. Raises OSError: fanotify(7) cannot be had.
    """
    cdef ServerCore core
    cdef Watch_ w

    def __cinit__(self, ServerCore core):
        cdef InodeTable *t = &core.s.inodes
        cdef Filesystem *f = &t.fs[0]
        cdef statx stx
        cdef Watch_ *w = &self.w
        self.core = core
        memset(w, 0, sizeof(Watch_))
        w.fd = w.wake = -1
        w.server = &core.s
        w.pid = os.getpid()
        pthread_mutex_init(&w.lock, NULL)
        w.fd = fanotify_init(FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_REPORT_DFID_NAME |
                             FAN_REPORT_FID | FAN_REPORT_TARGET_FID, 0)
        if w.fd < 0:
            raise OSError(errno, os.strerror(errno), "fanotify_init")
        w.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        w.buffer = <char *> malloc(BUFFER)
        if w.buffer == NULL:
            raise MemoryError()
        if f.mount_fd >= 0 and c_statx(f.mount_fd, "", AT_EMPTY_PATH, stx_mask(), &stx) == 0:
            f.fsid = watch_row(w, f.mount_fd, &stx, f.flags)
            if f.fsid:
                f.flags |= FS_COHERENT
                read_rows(w)
                t.watcher = w
                t.watch = watch_row
                core.s.changes = &w.changes

    @property
    def source_told(self):
        """Changes of the source are told; else only short timeouts will do."""
        return self.core.s.changes != NULL

    def serve(self):
        """Until stop()."""
        cdef int r
        with nogil:
            confine_thread()
            r = context_open(&self.w.ctx, self.w.server, T_WATCH, -1)
            if r == 0:
                serve(&self.w)
            context_close(&self.w.ctx)
        if r < 0:
            raise OSError(-r, os.strerror(-r))

    def expire(self, bytes directory, bytes name):
        """A name is perhaps something else now, of which no event tells. directory: its path, below the source's root.

        In filesystems below the source there are no directories to be found so: names there are kept for less long.
        """
        cdef InodeTable *t = &self.core.s.inodes
        cdef statx stx
        cdef const char *path = directory
        cdef const char *what = name
        cdef uint32_t length = len(name)
        cdef uint32_t node = 0
        cdef uint64_t key = 0
        cdef int fd
        with nogil:
            fd = sys_openat_here(self.core.s.root_fd, path, O_PATH | O_DIRECTORY | O_CLOEXEC)
            if fd >= 0:
                if c_statx(fd, "", AT_EMPTY_PATH, stx_mask(), &stx) == 0:
                    key = name_key(stx.stx_ino, what)
                    changes_note(&self.w.changes, key)
                    node = inode_numbered(t, 0, stx.stx_ino)
                close(fd)
            if node:
                push(&self.w, job(node, key, what, length))

    def stop(self):
        """End serve(), and the threads that wait for no lock."""
        cdef uint64_t one = 1
        cdef unsigned n
        atomic_set32(&self.w.stop, 1)
        write(self.w.wake, &one, 8)
        pthread_mutex_lock(&self.w.lock)
        for n in range(WORKERS):
            if self.w.workers[n].running:
                pthread_cond_signal(&self.w.workers[n].work)
        pthread_mutex_unlock(&self.w.lock)

    def close(self):
        """After serve(): False, a thread still waits for a lock of the mount's."""
        if self.w.fd >= 0:
            close(self.w.fd)
            self.w.fd = -1
        return self.w.threads == 0
