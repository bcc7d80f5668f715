"""Messages of threads that must not wait.

A message goes into a pipe, in one piece, and a Python thread (log.py) takes it out and to its target. If the pipe
is full the message is lost, and counted. Before the pipe is there messages go to fd 2.
"""
from libc.errno cimport errno
from libc.stdint cimport uint32_t

from passthru._abi cimport atomic_add32, atomic_get32, atomic_swap32
from passthru._libc cimport EAGAIN, POLLOUT, dprintf, poll, pollfd, snprintf, write

cdef enum:
    PATIENCE_MS = 100      # of a trace, which is worth little with gaps

cdef int pipe_fd = -1
cdef int wanted = LOG_INFO
cdef uint32_t lost
cdef uint32_t given        # lines to the pipe, and
cdef uint32_t taken        # those of them that have come to the target


cdef void deliver(char kind, const char *text) noexcept nogil:
    cdef char line[LOG_LINE + 2]
    cdef pollfd p
    cdef int n
    cdef int to = pipe_fd  # use() may change it meanwhile
    if to < 0:
        dprintf(2, "%s%s\n", b"" if kind == c't' else b"passthru: ", text)
        return
    n = snprintf(line, sizeof(line), "%c%s\n", kind, text)
    if n >= <int> sizeof(line):
        n = sizeof(line) - 1
        line[n - 1] = c'\n'
    if write(to, line, n) == n:
        atomic_add32(&given, 1)
        return
    if kind == c't' and errno == EAGAIN:
        p.fd = to
        p.events = POLLOUT
        if poll(&p, 1, PATIENCE_MS) == 1 and write(to, line, n) == n:
            atomic_add32(&given, 1)
            return
    atomic_add32(&lost, 1)


cdef void log_line(int level, const char *text) noexcept nogil:
    """Log one line (without its end)."""
    if level <= wanted:
        deliver(<char> (c'0' + level), text)


cdef void log_trace(const char *text) noexcept nogil:
    """Log a line of --debug-fuse: whatever the level, and as it is."""
    deliver(c't', text)


cdef void log_drain() noexcept nogil:
    """Wait until all messages are with their target, but not for long. May be called by a signal handler."""
    cdef int _tries
    for _tries in range(100):
        if atomic_get32(&taken) == atomic_get32(&given):
            break
        poll(NULL, 0, 10)


def use(int fd):
    """Messages go to this pipe from now on, which must be non-blocking; -1: to fd 2."""
    global pipe_fd
    pipe_fd = fd


def set_level(int level):
    """Messages of higher numbers than this are dropped."""
    global wanted
    wanted = level


def take_lost():
    """How many messages did not find room, since the last call."""
    return atomic_swap32(&lost, 0)


def delivered(unsigned lines):
    """So many more lines of the pipe have come to their target."""
    atomic_add32(&taken, lines)


def emit(int level, bytes text):
    """For tests: a message, as the serving threads log it."""
    cdef const char *t = text
    with nogil:
        log_line(level, t)
