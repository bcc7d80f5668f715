# The names in a request's arguments.
from libc.stdint cimport uint32_t
from libc.string cimport memchr

from passthru._request cimport Request


cdef inline bint dot_or_dotdot(const char *name) noexcept nogil:
    return name[0] == c'.' and (name[1] == 0 or (name[1] == c'.' and name[2] == 0))


cdef inline const char *name_arg(Request *r, uint32_t *at) noexcept nogil:
    """The NUL-terminated string at `at` in the arguments, `at` moved behind it; NULL: none there."""
    cdef char *s = r.arg + at[0]
    cdef char *end
    if at[0] >= r.arg_len:
        return NULL
    end = <char *> memchr(s, 0, r.arg_len - at[0])
    if end == NULL:
        return NULL
    at[0] = <uint32_t> (end + 1 - r.arg)
    return s


cdef inline const char *entry_arg(Request *r, uint32_t *at) noexcept nogil:
    """name_arg() for a directory entry's name; NULL also for what is not one component."""
    cdef uint32_t start = at[0]
    cdef const char *name = name_arg(r, at)
    if name == NULL or name[0] == 0 or dot_or_dotdot(name) or \
            memchr(name, c'/', at[0] - start) != NULL:
        return NULL
    return name
