"""What the daemon tells the kernel without having been asked: notifications (struct fuse_out_header with unique 0).

All are one write(2) to the connection's fd, whatever the transport, and done when that returns: 0, or -errno. What the
kernel answers by is a result, and left to the caller: -ENOENT, it does not know the inode or the name; -ENOTDIR, the
nodeid has become another one's;
-ENOTEMPTY and -EBUSY, a directory or mount point that notify_delete() cannot take away; -ENOTCONN, the connection has
ended. Any other error (-EINVAL: the kernel is older than the notification) is counted, StatsHeader.notify_failed,
and each notification's first one is logged.

The write may wait, and for what decides who may call. Each of them holds `killsb`, a lock of the connection that only an
unmount takes for itself, and not while it waits for a request. Beyond that:

- notify_attributes(), notify_epoch(), notify_resend(), notify_poll() and notify_retrieve() take spinlocks only.
  Any thread may call them, a queue's own too.
- notify_pages() waits for the lock of each page, and for its being written: for the READs and WRITEs of that file that
  are under way, and for those by which it has what is dirty written.
- notify_entry() and notify_delete() take the directory's i_rwsem for themselves. Whoever looks up, makes or removes a name
  in it holds that until the daemon has answered. notify_delete() takes the i_rwsem of the child as well, which is
  held by writes, truncations and, for a directory, by whoever works in it.
- notify_prune() may drop an inode's last reference, and then waits for its pages as notify_pages() does.

A thread that serves a queue or reads /dev/fuse must call none of the last three groups, nor one of a pool whose threads
such requests may need: each would wait for what it has to answer itself. No lock of ours may be held either.

FUSE_NOTIFY_STORE is not used: pages come from the source, by READs, and are never handed in.
"""
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen

from passthru._abi cimport *
from passthru._libc cimport *
from passthru._log cimport LOG_LINE, LOG_WARNING, log_line
from passthru._request cimport Server

cdef const char *NAMES[FUSE_NOTIFY_CODES]
NAMES[FUSE_NOTIFY_POLL] = "POLL"
NAMES[FUSE_NOTIFY_INVAL_INODE] = "INVAL_INODE"
NAMES[FUSE_NOTIFY_INVAL_ENTRY] = "INVAL_ENTRY"
NAMES[FUSE_NOTIFY_RETRIEVE] = "RETRIEVE"
NAMES[FUSE_NOTIFY_DELETE] = "DELETE"
NAMES[FUSE_NOTIFY_RESEND] = "RESEND"
NAMES[FUSE_NOTIFY_INC_EPOCH] = "INC_EPOCH"
NAMES[FUSE_NOTIFY_PRUNE] = "PRUNE"


cdef struct Message:
    fuse_out_header head
    char body[32]          # the notification's struct


cdef int notify(Server *s, unsigned code, const void *body, size_t size, const void *rest, size_t rest_size) noexcept nogil:
    """Write a notification: its struct, and what follows that."""
    cdef Message m
    cdef iovec parts[2]
    cdef ssize_t sent
    cdef int res
    ASSERT(size <= sizeof(m.body))
    m.head.len = <uint32_t> (sizeof(m.head) + size + rest_size)
    m.head.error = <int32_t> code
    m.head.unique = 0
    memcpy(m.body, body, size)
    if rest_size:
        parts[0].iov_base = &m
        parts[0].iov_len = sizeof(m.head) + size
        parts[1].iov_base = <void *> rest
        parts[1].iov_len = rest_size
        sent = writev(s.fuse_fd, parts, 2)
    else:
        sent = write(s.fuse_fd, &m, m.head.len)
    res = -errno if sent < 0 else 0
    if res < 0 and res not in (-ENOENT, -ENOTDIR, -ENOTEMPTY, -EBUSY, -ENOTCONN):
        failed(s, code, -res)
    return res


cdef void failed(Server *s, unsigned code, int error) noexcept nogil:
    cdef char line[LOG_LINE]
    cdef char text[100]
    atomic_add32(&s.stats.notify_failed, 1)
    if atomic_swap32(&s.notify_said[code], 1):
        return
    snprintf(line, sizeof(line), "notification %s: %s: the kernel may keep what is not so any more", NAMES[code],
             strerror_r(error, text, sizeof(text)))
    log_line(LOG_WARNING, line)


cdef int notify_attributes(Server *s, uint64_t nodeid) noexcept nogil:
    """The attributes that the kernel keeps of an inode are not good any more, nor are its ACLs; its pages are."""
    return notify_pages(s, nodeid, -1, 0)


cdef int notify_pages(Server *s, uint64_t nodeid, int64_t off, int64_t length) noexcept nogil:
    """The attributes and the pages from byte `off` on, `length` bytes, 0: to the end.

    What is dirty comes as WRITEs before this returns. off < 0: no pages, and nothing that has to be waited for.
    """
    cdef fuse_notify_inval_inode_out n
    n.ino = nodeid
    n.off = off
    n.len = length
    return notify(s, FUSE_NOTIFY_INVAL_INODE, &n, sizeof(n), NULL, 0)


cdef int notify_entry(Server *s, uint64_t parent, const char *name, bint expire_only) noexcept nogil:
    """What the kernel knows of a name in a directory is not good any more; the directory's attributes are not either.

    expire_only: it is looked up again before it is used (7.38; older kernels do as without). Else it goes from the
    cache at once with all that is below it: mounts are detached, and working directories and open files there lose
    their names.
    """
    cdef fuse_notify_inval_entry_out n
    n.parent = parent
    n.namelen = <uint32_t> strlen(name)
    n.flags = FUSE_EXPIRE_ONLY if expire_only else 0
    return notify(s, FUSE_NOTIFY_INVAL_ENTRY, &n, sizeof(n), name, n.namelen + 1)


cdef int notify_delete(Server *s, uint64_t parent, uint64_t child, const char *name) noexcept nogil:
    """The name, which was that of the inode `child`, has been removed: as notify_entry(), and who watches it hears so.

    -ENOENT: the name is another inode's. -ENOTEMPTY, -EBUSY: a directory with names in use, or a mount point.
    """
    cdef fuse_notify_delete_out n
    memset(&n, 0, sizeof(n))
    n.parent = parent
    n.child = child
    n.namelen = <uint32_t> strlen(name)
    return notify(s, FUSE_NOTIFY_DELETE, &n, sizeof(n), name, n.namelen + 1)


cdef int notify_epoch(Server *s) noexcept nogil:
    """Every name that the kernel knows is looked up again before it is used (7.44)."""
    return notify(s, FUSE_NOTIFY_INC_EPOCH, "", 0, NULL, 0)


cdef int notify_resend(Server *s) noexcept nogil:
    """Every request that was read from /dev/fuse and is not answered comes again (7.40).

    Its number then has FUSE_UNIQUE_RESEND, and the answer to the number without that is refused. What a ring's entry
    holds does not come again.
    """
    return notify(s, FUSE_NOTIFY_RESEND, "", 0, NULL, 0)


cdef int notify_prune(Server *s, const uint64_t *nodeids, uint32_t count) noexcept nogil:
    """The kernel forgets those of the inodes that nobody uses: FORGETs follow (7.45)."""
    cdef fuse_notify_prune_out n
    memset(&n, 0, sizeof(n))
    n.count = count
    return notify(s, FUSE_NOTIFY_PRUNE, &n, sizeof(n), nodeids, count * sizeof(uint64_t))


cdef int notify_poll(Server *s, uint64_t kh) noexcept nogil:
    """Who polls the file of that number is to ask again. The number comes with POLL, which is not served as yet."""
    cdef fuse_notify_poll_wakeup_out n
    n.kh = kh
    return notify(s, FUSE_NOTIFY_POLL, &n, sizeof(n), NULL, 0)


cdef int notify_retrieve(Server *s, uint64_t unique, uint64_t nodeid, uint64_t offset, uint32_t size) noexcept nogil:
    """Have the kernel send what it holds of a file's pages: a request NOTIFY_REPLY of that number.

    By the ring it comes to the queue of the CPU that this is called on.
    """
    cdef fuse_notify_retrieve_out n
    n.notify_unique = unique
    n.nodeid = nodeid
    n.offset = offset
    n.size = size
    n.padding = 0
    return notify(s, FUSE_NOTIFY_RETRIEVE, &n, sizeof(n), NULL, 0)
