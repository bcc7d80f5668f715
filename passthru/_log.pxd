# Messages of threads that must not wait.
cdef enum:
    # Levels, those of syslog(3).
    LOG_ERROR = 3
    LOG_WARNING = 4
    LOG_INFO = 6
    LOG_DEBUG = 7
    LOG_LINE = 512         # bytes of one, with its NUL

cdef void log_line(int level, const char *text) noexcept nogil
cdef void log_trace(const char *text) noexcept nogil
cdef void log_drain() noexcept nogil
