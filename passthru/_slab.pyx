"""Slot allocator: O(1), sharded by serving thread, giving empty chunks' memory back."""
from libc.stdint cimport uint16_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from passthru._abi cimport *
from passthru._arena cimport arena_alloc
from passthru._libc cimport *


cdef int slab_init(Slab *s, size_t item) noexcept nogil:
    """Slots of `item` bytes; slot 0 is never given out. 0 or -ENOMEM."""
    return slab_init_in(s, item, NULL)


cdef int slab_init_in(Slab *s, size_t item, Arena *arena) noexcept nogil:
    """slab_init(), with all that slots are in an arena, if there is one: slab_adopt()."""
    memset(s, 0, sizeof(Slab))
    s.item = item
    s.live = &s.count
    s.arena = arena
    if arena != NULL:
        s.directory = <void **> arena_alloc(arena, SLAB_CHUNKS * sizeof(void *))
    else:
        s.directory = <void **> calloc(SLAB_CHUNKS, sizeof(void *))  # untouched pages cost nothing
    if s.directory == NULL:
        return -ENOMEM
    return 0


cdef void slab_destroy(Slab *s) noexcept nogil:
    cdef uint32_t i
    cdef Chunk *c
    if s.directory == NULL or s.arena != NULL:  # an arena ends with the last process that has it
        return
    for i in range(s.chunks):
        c = <Chunk *> s.directory[i]
        if c != NULL:
            if c.items != NULL:
                munmap(c.items, chunk_bytes(s))
            free(c.links)
            free(c)
    free(s.directory)
    s.directory = NULL


cdef inline size_t chunk_bytes(Slab *s) noexcept nogil:
    return page_up(s.item * CHUNK_SLOTS)


cdef void list_add(Shard *sh, Chunk *c) noexcept nogil:
    c.listed = True
    c.prev = NULL
    c.next = sh.room
    if c.next != NULL:
        c.next.prev = c
    sh.room = c


cdef void list_del(Shard *sh, Chunk *c) noexcept nogil:
    c.listed = False
    if c.prev != NULL:
        c.prev.next = c.next
    else:
        sh.room = c.next
    if c.next != NULL:
        c.next.prev = c.prev


cdef Chunk *chunk_new(Slab *s, Shard *sh, unsigned shard) noexcept nogil:
    """A chunk with memory, once per CHUNK_SLOTS allocations. Called under the shard's lock."""
    cdef Chunk *c = sh.bare
    cdef uint32_t number
    cdef void *m
    if c != NULL:
        sh.bare = c.next
    else:
        number = atomic_add32(&s.chunks, 1)
        if number >= SLAB_CHUNKS:
            atomic_sub32(&s.chunks, 1)
            return NULL
        if s.arena != NULL:
            c = chunk_in(s)
            if c == NULL:
                return NULL
            c.number = number
            c.shard = shard
            return chunk_ready(s, sh, c)
        c = <Chunk *> calloc(1, sizeof(Chunk))
        if c == NULL:
            return NULL
        c.links = <uint16_t *> malloc(CHUNK_SLOTS * sizeof(uint16_t))
        if c.links == NULL:
            free(c)
            return NULL
        c.number = number
        c.shard = shard
    if c.items == NULL:
        m = mmap(NULL, chunk_bytes(s), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if m == MAP_FAILED:
            c.next = sh.bare
            sh.bare = c
            return NULL
        c.items = <char *> m
    return chunk_ready(s, sh, c)


cdef Chunk *chunk_in(Slab *s) noexcept nogil:
    """A chunk of an arena's memory, with its list and its slots."""
    cdef char *m = <char *> arena_alloc(s.arena, PAGE + chunk_bytes(s))
    cdef Chunk *c = <Chunk *> m
    if m == NULL:
        return NULL
    c.links = <uint16_t *> (m + sizeof(Chunk))
    c.items = m + PAGE
    return c


cdef Chunk *chunk_ready(Slab *s, Shard *sh, Chunk *c) noexcept nogil:
    c.free = 0
    c.fresh = 1 if c.number == 0 else 0
    c.used = c.fresh  # slot 0 counts as used for good
    atomic_setp(&s.directory[c.number], c)
    list_add(sh, c)
    return c


cdef uint32_t slab_alloc(Slab *s, unsigned shard) noexcept nogil:
    """A zeroed slot's number, 0 if there is no memory."""
    cdef Shard *sh = &s.shards[shard % SLAB_SHARDS]
    cdef Chunk *c
    cdef uint32_t slot
    spin_lock(&sh.lock)
    c = sh.room
    if c == NULL:
        c = chunk_new(s, sh, shard % SLAB_SHARDS)
        if c == NULL:
            spin_unlock(&sh.lock)
            return 0
    if c.free:
        slot = c.free - 1
        c.free = c.links[slot]
    else:
        slot = c.fresh
        c.fresh += 1
    c.used += 1
    if not c.free and c.fresh == CHUNK_SLOTS:
        list_del(sh, c)
    spin_unlock(&sh.lock)
    atomic_add32(s.live, 1)
    memset(c.items + slot * s.item, 0, s.item)
    return (c.number << CHUNK_BITS) | slot


cdef void slab_free(Slab *s, uint32_t index) noexcept nogil:
    """Give a slot back. A chunk that becomes empty beside another one gives its memory back."""
    cdef Chunk *c = <Chunk *> s.directory[index >> CHUNK_BITS]
    cdef Shard *sh = &s.shards[c.shard]
    cdef uint32_t slot = index & (CHUNK_SLOTS - 1)
    cdef bint empty = False
    spin_lock(&sh.lock)
    ASSERT(c.used > 0)
    c.links[slot] = c.free
    c.free = <uint16_t> (slot + 1)
    c.used -= 1
    if not c.listed:
        list_add(sh, c)
    if c.used == 0 and (c.next != NULL or c.prev != NULL):
        list_del(sh, c)
        empty = True
    spin_unlock(&sh.lock)
    atomic_sub32(s.live, 1)
    if empty:
        # The addresses stay: who looks at a slot without a lock finds zeroes.
        madvise(c.items, chunk_bytes(s), MADV_REMOVE if s.arena != NULL else MADV_DONTNEED)
        spin_lock(&sh.lock)
        c.next = sh.bare
        sh.bare = c
        spin_unlock(&sh.lock)


cdef void slab_adopt(Slab *s, InUse in_use) noexcept nogil:
    """Take over what an arena's slots were left as by a process that has died: which are free is found by looking.

    Its lists may be half linked, its locks nobody's. No other thread uses the slab.
    """
    cdef uint32_t n, live = 0
    cdef int k
    cdef Chunk *c
    for n in range(SLAB_SHARDS):
        memset(&s.shards[n], 0, sizeof(Shard))
    s.chunks = 0
    for n in range(SLAB_CHUNKS):
        c = <Chunk *> s.directory[n]
        if c == NULL:
            continue
        s.chunks = n + 1
        c.free = 0
        c.used = 0
        c.fresh = CHUNK_SLOTS
        c.listed = False
        for k in range(CHUNK_SLOTS - 1, -1, -1):
            if n == 0 and k == 0:
                c.used += 1
            elif in_use(c.items + k * s.item):
                c.used += 1
                live += 1
            else:
                c.links[k] = c.free
                c.free = <uint16_t> (k + 1)
        if c.free:
            list_add(&s.shards[c.shard], c)
    atomic_set32(s.live, live)
