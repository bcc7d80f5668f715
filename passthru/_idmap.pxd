# Ids that differ in the mount and in the source (--map-uid, --map-gid).
from libc.stdint cimport uint32_t

from passthru._abi cimport fuse_setattr_in
from passthru._request cimport IdMap, Request, Server

cdef uint32_t id_to_source(IdMap *m, uint32_t id) noexcept nogil
cdef uint32_t id_to_mount(IdMap *m, uint32_t id) noexcept nogil
cdef int setattr_to_source(Server *s, fuse_setattr_in *arg) noexcept nogil
cdef long acl_to_mount(Server *s, char *acl, long size) noexcept nogil
cdef int acl_to_source(Server *s, char *acl, long size) noexcept nogil
cdef bint acl_returns(Server *s, char *acl, long size) noexcept nogil
cdef int map_caller(Request *r) noexcept nogil
