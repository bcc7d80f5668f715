# The name of what an fd refers to, for calls that take no O_PATH fd (proc_pid_fd(5)). It is a relative one: the
# working directory of every thread that serves is /proc/self/fd, by a mount that nothing leads out of and that stays
# when the process has no /proc any more (see sandbox.py). It is found faster, too.
from passthru._libc cimport snprintf

cdef enum:
    FD_PATH = 16               # bytes that fd_path() takes


cdef inline void fd_path(char *path, int fd) noexcept nogil:
    """Make `path` lead to the very object of `fd`, a symlink too, whatever its names are now."""
    snprintf(path, FD_PATH, "%d", fd)
