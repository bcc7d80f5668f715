# Memory that outlives a daemon: one shared mapping, made before the first daemon is, so at the same addresses in each.
from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef enum:
    INTENTS = 16384

# What a request that cannot be repeated found before it began, and what came of it: see _journal. By /dev/fuse each request
# has one. It lives in the arena if a successor is to read it.
cdef struct Intent:
    uint64_t unique        # of the request, without FUSE_UNIQUE_RESEND; 0: of none. Written last, and first taken away
    uint64_t done          # the same as soon as `result` is known
    int32_t result
    uint32_t known         # ino, btime and the like were asked for
    uint64_t when          # ns, by the clock that filesystems take times from
    uint64_t ino           # of what a name stood for; 0: nothing
    uint64_t btime
    uint64_t to_ino        # RENAME: of the new name
    uint64_t to_btime
    uint64_t size          # of a file that is appended to
    char *region           # memory of the request, mapped and there; NULL: none yet
    uint32_t taken         # number of the daemon that has it
    uint32_t pad[7]

cdef struct Arena:
    uint64_t size
    uint64_t used
    uint32_t daemons       # how many there have been
    uint32_t intents_used  # how many of these were ever taken
    Intent intents[INTENTS]

cdef Arena *arena_new(uint64_t size) noexcept nogil
cdef void *arena_alloc(Arena *a, uint64_t size) noexcept nogil
