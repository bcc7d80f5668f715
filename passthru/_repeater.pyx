"""A repeater: a process that does in the mount what was done in the source, so that who watches the mount hears of it.

It makes system calls on the mount, and the daemon, which knows it by its pid, answers the requests that come of them
without touching the source (_repeat.pyx). Directories are opened by nodeid, as file handles of FUSE have it: no path is
walked, and what the kernel has forgotten, and so nobody watches, is not found.
"""
from libc.errno cimport errno
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy, strchr, strcmp

from passthru._abi cimport *
from passthru._libc cimport *
from passthru._repeat cimport *

cdef int walk(int root, char *path) noexcept nogil:
    """Look up each directory on the way, by no link and to no other filesystem. 0 or -errno."""
    cdef int fd = root, below
    cdef char *slash
    while path[0]:
        slash = strchr(path, c'/')
        if slash != NULL:
            slash[0] = 0
        below = -EINVAL
        if strcmp(path, "..") != 0:
            below = sys_openat_here(fd, path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        if fd != root:
            close(fd)
        if below < 0:
            return below
        fd = below
        if slash == NULL:
            break
        path = slash + 1
    if fd != root:
        close(fd)
    return 0


cdef bint plain(const char *name) noexcept nogil:
    """Is it a name, and no path? Whoever has taken over the daemon is not to have more than the mount changed."""
    return memchr(name, 0, NAME_ROOM) != NULL and name[0] and strchr(name, c'/') == NULL and \
        strcmp(name, ".") != 0 and strcmp(name, "..") != 0


cdef enum:
    O_WRONLY_ = 1
    O_NONBLOCK_ = 0o4000
    HANDLE_FUSE = 0x81     # FILEID_INO64_GEN


cdef int open_node(int root, uint64_t node, uint32_t generation) noexcept nogil:
    """An O_PATH fd of the directory with that nodeid, or -errno. No request comes of it."""
    cdef file_handle_max fh
    cdef uint32_t words[3]
    words[0] = <uint32_t> (node >> 32)
    words[1] = <uint32_t> node
    words[2] = generation
    fh.handle_bytes = sizeof(words)
    fh.handle_type = HANDLE_FUSE
    memcpy(fh.f_handle, words, sizeof(words))
    return sys_open_by_handle_at(root, &fh, O_PATH | O_DIRECTORY | O_CLOEXEC)


cdef int result(int r) noexcept nogil:
    return -errno if r < 0 else 0


cdef int touch(int fd, const char *name, bint attributes, int flags) noexcept nogil:
    """To the kernel a time of change alone is changed data, both times are changed attributes."""
    cdef timespec times[2]
    times[0].tv_sec = times[1].tv_sec = 0
    times[0].tv_nsec = UTIME_NOW if attributes else UTIME_OMIT
    times[1].tv_nsec = UTIME_NOW
    return result(utimensat(fd, name, times, flags))


cdef int wait_for(int fd) noexcept nogil:
    """Has who holds the directory's lock let it go? To be asked before another lock is taken, for which others wait."""
    return result(unlinkat(fd, "\001", 0))


cdef int again(Task *t, int first, int second) noexcept nogil:
    cdef int fd
    if t.kind == T_FILE:
        return result(mknodat(first, t.name[0], S_IFREG | 0o600, 0))
    if t.kind == T_DIRECTORY:
        return result(mkdirat(first, t.name[0], 0o700))
    if t.kind == T_DELETE:
        return result(unlinkat(first, t.name[0], 0))
    if t.kind == T_RMDIR:
        return result(unlinkat(first, t.name[0], AT_REMOVEDIR))
    if t.kind == T_MODIFY or t.kind == T_ATTRIB:
        return touch(first, t.name[0], t.kind == T_ATTRIB, AT_SYMLINK_NOFOLLOW)
    if t.kind == T_ATTRIB_SELF:
        return touch(first, "", True, AT_EMPTY_PATH)
    if t.kind == T_CLOSE:
        fd = sys_openat_here(first, t.name[0], O_WRONLY_ | O_NONBLOCK_ | O_NOFOLLOW | O_CLOEXEC)
        if fd < 0:
            return fd
        return result(close(fd))
    if t.dir[0] != t.dir[1]:  # this takes a lock of the whole filesystem before those of the directories
        if t.dir[0] != limbo():
            wait_for(first)
        if t.dir[1] != limbo():
            wait_for(second)
    return sys_renameat2(first, t.name[0], second, t.name[1], 0)


cdef int repeat(Task *t, int root, int *kept) noexcept nogil:
    cdef int fds[2]
    cdef int res
    cdef unsigned k
    if t.kind == T_LIMBO:
        kept[0] = sys_openat_here(root, limbo_name(), O_PATH | O_DIRECTORY | O_CLOEXEC)
        return kept[0] if kept[0] < 0 else 0
    if t.kind == T_WALK:
        return walk(root, <char *> t.name) if memchr(t.name, 0, sizeof(t.name)) != NULL else -EINVAL
    for k in range(2 if t.kind == T_RENAME else 1):
        if t.kind != T_ATTRIB_SELF and not plain(t.name[k]):
            return -EINVAL
    fds[0] = fds[1] = -1
    res = 0
    for k in range(2 if t.kind == T_RENAME else 1):
        fds[k] = kept[0] if t.dir[k] == limbo() else open_node(root, t.dir[k], t.generation[k])
        if fds[k] < 0:
            res = fds[k]
            break
    if res == 0:
        res = again(t, fds[0], fds[1])
    for k in range(2):
        if fds[k] >= 0 and fds[k] != kept[0]:
            close(fds[k])
    return res


cdef class Repeater:
    """Does what comes by `sock`, on the mount of which `root` is an fd; both stay the caller's."""
    cdef int sock, root, kept

    def __cinit__(self, int sock, int root):
        self.sock = sock
        self.root = root
        self.kept = -1

    def work(self, int mountinfo):
        """Until the mount table, of which `mountinfo` is an fd, has changed: True; or the daemon has gone."""
        cdef pollfd fds[2]
        cdef Task t
        cdef int32_t res
        cdef ssize_t n = 0
        cdef bint changed = False
        fds[0].fd = self.sock
        fds[0].events = POLLIN
        fds[1].fd = mountinfo
        fds[1].events = 0  # POLLERR comes unasked
        with nogil:
            while True:
                fds[0].revents = fds[1].revents = 0
                if poll(fds, 2, -1) < 0:
                    continue
                if fds[1].revents:
                    changed = True
                    break
                n = read(self.sock, &t, sizeof(t))
                if n < <ssize_t> sizeof(t):
                    break
                res = repeat(&t, self.root, &self.kept)
                if write(self.sock, &res, sizeof(res)) < 0:
                    break
        return changed

    def close(self):
        """Give up what is kept of the mount."""
        if self.kept >= 0:
            close(self.kept)
            self.kept = -1
