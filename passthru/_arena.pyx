"""Memory that outlives a daemon: a shared mapping that a holder makes and each daemon inherits at the same addresses.

Nothing in it is given back, but for the pages of what is empty: pieces are chunks of tables and requests' buffers, which are
used again. Pages are there when they are touched; what is reserved costs addresses only.
"""
from libc.stdint cimport uint32_t, uint64_t

from passthru._abi cimport page_up, spin_lock, spin_unlock
from passthru._libc cimport (
    MADV_DONTDUMP, MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE, madvise, mmap,
)


cdef uint32_t lock  # not in the arena: a daemon may die with it


cdef Arena *arena_new(uint64_t size) noexcept nogil:
    """An empty one of so many bytes of addresses, or NULL."""
    cdef void *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    cdef Arena *a = <Arena *> m
    if m == MAP_FAILED:
        return NULL
    madvise(m, size, MADV_DONTDUMP)  # a dump would take its time, and all wait for the process's end
    a.size = size
    a.used = page_up(sizeof(Arena))
    return a


cdef void *arena_alloc(Arena *a, uint64_t size) noexcept nogil:
    """Zeroed pages for so many bytes, for good; NULL: no addresses are left."""
    cdef uint64_t at
    size = page_up(size)
    spin_lock(&lock)
    at = a.used
    if at + size <= a.size:
        a.used = at + size
    spin_unlock(&lock)
    if at + size > a.size:
        return NULL
    return <char *> a + at
