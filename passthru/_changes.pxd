# What has changed beside the mount of late, and what was told the kernel meanwhile: so that no reply with a long timeout
# tells what was so before a change, although the notification of the change has passed it by (docs/coherent.md).
#
# Both are kept by a hash of the inode number, or of a directory's and a name in it: two that share a cell cost a look-up
# too many, never one too few.
from libc.stdint cimport int32_t, uint32_t, uint64_t

from passthru._abi cimport atomic_add32, atomic_get32, atomic_set32, atomic_swap32, now_ns

cdef enum:
    CELLS = 4096
    GRACE_MS = 1000        # a reply has arrived in the kernel's tables after so long
    MOVING_MS = 1

cdef struct Changes:
    uint32_t count             # events so far
    uint32_t moved             # when (ms) a reply was given last upon which the kernel may move a directory
    char pad[56]
    uint32_t last[CELLS]       # the number of the last event there
    uint32_t given[CELLS]      # when (ms) a reply was given last that a notification may overtake


cdef inline unsigned cell_of(uint64_t ino) noexcept nogil:
    return <unsigned> ((ino * 0x9e3779b97f4a7c15u) >> 52)


cdef inline uint64_t name_key(uint64_t dir, const char *name) noexcept nogil:
    """What stands for a name in a directory, where otherwise an inode number does."""
    cdef uint64_t h = dir ^ 0xcbf29ce484222325u
    cdef size_t n = 0
    while name[n]:
        h = (h ^ <unsigned char> name[n]) * 0x100000001b3u
        n += 1
    return h


cdef inline uint32_t changes_now(Changes *c) noexcept nogil:
    """To be taken before the source is asked."""
    return atomic_get32(&c.count)


cdef inline bint changes_since(Changes *c, uint64_t ino, uint32_t since) noexcept nogil:
    """Has an inode, or a name, perhaps changed? To be asked when its look-up is counted: who hears of a change finds it."""
    return <int32_t> (atomic_add32(&c.last[cell_of(ino)], 0) - since) > 0  # a write, which nothing passes


cdef inline uint32_t now_ms() noexcept nogil:
    return <uint32_t> (now_ns() // 1000000)


cdef inline void changes_given(Changes *c, uint64_t ino) noexcept nogil:
    """A reply is about to be given that the kernel does not put in order with notifications; before changes_since()."""
    atomic_swap32(&c.given[cell_of(ino)], now_ms())


cdef inline void changes_note(Changes *c, uint64_t ino) noexcept nogil:
    """An inode, or a name, has changed; before the kernel is told."""
    atomic_swap32(&c.last[cell_of(ino)], atomic_add32(&c.count, 1) + 1)


cdef inline void changes_note_all(Changes *c) noexcept nogil:
    """Nobody knows what has changed."""
    cdef uint32_t count = atomic_add32(&c.count, 1) + 1
    cdef unsigned n
    for n in range(CELLS):
        atomic_swap32(&c.last[n], count)


cdef inline bint changes_overtaken(Changes *c, uint64_t ino) noexcept nogil:
    """Might a notification of now overtake a reply?"""
    return now_ms() - atomic_add32(&c.given[cell_of(ino)], 0) < GRACE_MS


cdef inline void changes_moving(Changes *c) noexcept nogil:
    """A reply is about to be given that has the kernel move a directory which it knows, if that has another name now.

    It tries the lock of the directory where that was before, but does not wait for it: its caller gets ESTALE
    if a notification of names has the lock, or waits for it, both times that it looks.
    """
    atomic_set32(&c.moved, now_ms())


cdef inline bint changes_moved(Changes *c) noexcept nogil:
    """Is the kernel perhaps moving a directory now?"""
    return now_ms() - atomic_get32(&c.moved) <= MOVING_MS
