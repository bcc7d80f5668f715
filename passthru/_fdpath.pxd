# The name of what an fd refers to, for calls that take no O_PATH fd (proc_pid_fd(5)).
from passthru._libc cimport snprintf

cdef enum:
    FD_PATH = 32               # bytes that fd_path() takes


cdef inline void fd_path(char *path, int fd) noexcept nogil:
    """Make `path` lead to the very object of `fd`, a symlink too, whatever its names are now."""
    snprintf(path, FD_PATH, "/proc/self/fd/%d", fd)
