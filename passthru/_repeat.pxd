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

cdef extern from *:
    """
    /* Nodeids and an fh that are no slots' numbers: of what only a repeater sees. */
    #define PASSTHRU_PHANTOM (1ULL << 63)
    #define PASSTHRU_LIMBO (1ULL << 62 | PASSTHRU_PHANTOM)
    #define PASSTHRU_REPEAT_FH (~(uint64_t)15)
    #define PASSTHRU_LIMBO_NAME ".passthru-limbo"
    """
    const uint64_t PHANTOM "PASSTHRU_PHANTOM"
    const uint64_t LIMBO "PASSTHRU_LIMBO"
    const uint64_t REPEAT_FH "PASSTHRU_REPEAT_FH"
    const char *LIMBO_NAME "PASSTHRU_LIMBO_NAME"
