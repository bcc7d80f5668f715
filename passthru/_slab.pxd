# Numbered slots of one size: nodeids and the `fh` of open files are slot numbers.
from libc.stdint cimport uint16_t, uint32_t

from passthru._abi cimport atomic_getp
from passthru._arena cimport Arena

cdef enum:
    SLAB_SHARDS = 16
    CHUNK_BITS = 10
    CHUNK_SLOTS = 1 << CHUNK_BITS
    SLAB_CHUNKS = 1 << 16  # 64 Mi slots

cdef struct Chunk:
    char *items
    uint16_t *links        # free list, linked by slot + 1
    uint32_t number
    uint32_t used
    uint32_t fresh         # slots from here on were never used
    uint16_t free
    uint16_t shard
    bint listed            # on its shard's list of chunks with room
    Chunk *next
    Chunk *prev

cdef struct Shard:
    uint32_t lock
    Chunk *room            # chunks with free slots
    Chunk *bare            # empty chunks whose memory was given back
    char pad[40]           # one cache line each

cdef struct Slab:
    Shard shards[SLAB_SHARDS]
    size_t item
    uint32_t chunks        # next chunk number
    void **directory       # Chunk * by number, NULL where there is none yet
    char pad[64]           # what is written at each allocation lies apart from what each look-up reads
    uint32_t *live         # slots in use: `count`, or in the status page
    uint32_t count
    Arena *arena           # where its chunks are; NULL: in memory of this process's own

ctypedef bint (*InUse)(void *item) noexcept nogil

cdef int slab_init(Slab *s, size_t item) noexcept nogil
cdef int slab_init_in(Slab *s, size_t item, Arena *arena) noexcept nogil
cdef void slab_adopt(Slab *s, InUse in_use) noexcept nogil
cdef void slab_destroy(Slab *s) noexcept nogil
cdef uint32_t slab_alloc(Slab *s, unsigned shard) noexcept nogil
cdef void slab_free(Slab *s, uint32_t index) noexcept nogil


cdef inline void *slab_at(Slab *s, size_t index) noexcept nogil:
    """The item at `index` or NULL, without a lock. The caller knows whether it is in use."""
    cdef Chunk *c
    if index >= (<size_t> SLAB_CHUNKS << CHUNK_BITS):
        return NULL
    c = <Chunk *> atomic_getp(&s.directory[index >> CHUNK_BITS])
    if c == NULL or c.items == NULL:
        return NULL
    return c.items + (index & (CHUNK_SLOTS - 1)) * s.item
