# What the daemon and its repeaters agree upon: one change that is to be repeated in the mount.
from libc.stdint cimport uint32_t, uint64_t

from passthru._request cimport Server

cdef enum:
    NAME_ROOM = 256
    # Task.kind
    T_LIMBO = 1            # look up the directory that nobody else finds, and keep it
    T_FILE = 2             # a name of something that is no directory was made
    T_DIRECTORY = 3
    T_DELETE = 4
    T_RMDIR = 5
    T_RENAME = 6
    T_MODIFY = 7
    T_ATTRIB = 8
    T_CLOSE = 9            # what was open for writing is closed
    T_ATTRIB_SELF = 10     # of the directory itself
    T_WALK = 11            # walk to a directory, by its path from the root, which takes both names' room

cdef struct Task:
    uint32_t kind
    uint32_t generation[2]
    uint64_t dir[2]        # nodeids of the directories; LIMBO: that one
    char name[2][NAME_ROOM]

# Nodeids and an fh that are no slots' numbers: of what only a repeater sees.

cdef inline uint64_t phantom_bit() noexcept nogil:
    return <uint64_t> 1 << 63


cdef inline uint64_t limbo() noexcept nogil:
    """The directory that nobody else finds."""
    return <uint64_t> 3 << 62


cdef inline const char *limbo_name() noexcept nogil:
    return b".passthru-limbo"


cdef inline uint64_t repeat_fh() noexcept nogil:
    return ~<uint64_t> 15
