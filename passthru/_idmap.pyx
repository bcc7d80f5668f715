"""Ids that differ in the mount and in the source (--map-uid, --map-gid).

An id that is in no pair is the same on both sides, unless it is there the other side of a pair: then it has no
counterpart. For the kernel that is the id -1, as which nobody acts and which nobody owns: it shows as that of
"nobody", and the kernel lets nobody write to such a file.
"""
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy, memmove

from passthru._abi cimport FATTR_GID, FATTR_UID, fuse_setattr_in
from passthru._libc cimport EOVERFLOW
from passthru._request cimport IdMap, IdPair, NO_ID, Request, Server, server_of

cdef enum:
    # POSIX ACLs as attributes (linux/posix_acl_xattr.h): a version, then entries.
    ACL_HEAD = 4
    ACL_USER = 2
    ACL_GROUP = 8

cdef struct AclEntry:
    uint16_t tag
    uint16_t perm
    uint32_t id


cdef inline uint32_t side_of(IdPair *p, bint source) noexcept nogil:
    return p.source if source else p.mount


cdef inline uint32_t counterpart(IdMap *m, uint32_t id, bint source, uint32_t others) noexcept nogil:
    """What an id is on the side of the source, or of the mount; others: what those in no pair are, if not NO_ID."""
    cdef unsigned n
    for n in range(m.count):
        if id - side_of(&m.pairs[n], not source) < m.pairs[n].count:
            return side_of(&m.pairs[n], source) + (id - side_of(&m.pairs[n], not source))
    if others != NO_ID:
        return others
    for n in range(m.count):
        if id - side_of(&m.pairs[n], source) < m.pairs[n].count:
            return NO_ID
    return id


cdef uint32_t id_to_source(IdMap *m, uint32_t id) noexcept nogil:
    """The source's id for one of the mount; NO_ID: it has none."""
    return counterpart(m, id, True, m.others_act_as) if id != NO_ID else NO_ID


cdef uint32_t id_to_mount(IdMap *m, uint32_t id) noexcept nogil:
    """What the mount shows for an id of the source; NO_ID: it has none."""
    return counterpart(m, id, False, m.others_show_as)


cdef int setattr_to_source(Server *s, fuse_setattr_in *arg) noexcept nogil:
    """The owner and group to be set. 0, or -EOVERFLOW if one has no counterpart."""
    if arg.valid & FATTR_UID:
        arg.uid = id_to_source(&s.uids, arg.uid)
        if arg.uid == NO_ID:
            return -EOVERFLOW
    if arg.valid & FATTR_GID:
        arg.gid = id_to_source(&s.gids, arg.gid)
        if arg.gid == NO_ID:
            return -EOVERFLOW
    return 0


cdef inline IdMap *map_of(Server *s, AclEntry *e) noexcept nogil:
    """Where an entry's id belongs; NULL: it has none."""
    return &s.uids if e.tag == ACL_USER else &s.gids if e.tag == ACL_GROUP else NULL


cdef long acl_to_mount(Server *s, char *acl, long size) noexcept nogil:
    """An ACL of the source as the mount shows it; its size. Who has no counterpart cannot be asking: left out."""
    cdef AclEntry e
    cdef IdMap *m
    cdef long at = ACL_HEAD, to = ACL_HEAD
    while at + <long> sizeof(e) <= size:
        memcpy(&e, acl + at, sizeof(e))
        at += sizeof(e)
        m = map_of(s, &e)
        if m != NULL:
            e.id = id_to_mount(m, e.id)
            if e.id == NO_ID:
                continue
        memmove(acl + to, &e, sizeof(e))
        to += sizeof(e)
    return to if size >= ACL_HEAD else size


cdef int acl_to_source(Server *s, char *acl, long size) noexcept nogil:
    """An ACL that is to be set, in place. 0, or -EOVERFLOW if an id has no counterpart."""
    cdef AclEntry e
    cdef IdMap *m
    cdef long at = ACL_HEAD
    while at + <long> sizeof(e) <= size:
        memcpy(&e, acl + at, sizeof(e))
        m = map_of(s, &e)
        if m != NULL:
            e.id = id_to_source(m, e.id)
            if e.id == NO_ID:
                return -EOVERFLOW
            memcpy(acl + at, &e, sizeof(e))
        at += sizeof(e)
    return 0


cdef bint acl_returns(Server *s, char *acl, long size) noexcept nogil:
    """Would this ACL of the source be the same after it was shown and set again?"""
    cdef AclEntry e
    cdef IdMap *m
    cdef uint32_t shown
    cdef long at = ACL_HEAD
    while at + <long> sizeof(e) <= size:
        memcpy(&e, acl + at, sizeof(e))
        m = map_of(s, &e)
        if m != NULL:
            shown = id_to_mount(m, e.id)
            if shown == NO_ID or id_to_source(m, shown) != e.id:
                return False
        at += sizeof(e)
    return True


cdef int map_caller(Request *r) noexcept nogil:
    """A layer before the handlers: they see the caller with the source's ids."""
    cdef Server *s = server_of(r)
    r.h.uid = id_to_source(&s.uids, r.h.uid)
    r.h.gid = id_to_source(&s.gids, r.h.gid)
    return s.mapped(r)
