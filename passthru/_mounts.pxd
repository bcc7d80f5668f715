# What the mount table (proc_pid_mountinfo(5)) says of a filesystem. Asking it asks no filesystem, which might not answer.
from libc.stdint cimport uint32_t, uint64_t

from passthru._libc cimport statx

cdef enum:
    # Filesystem.flags
    FS_HANDLES = 1         # inodes can be opened by handle
    FS_MEMORY = 2          # tmpfs and kin: I/O never waits for a device
    FS_REMOTE = 4          # any operation may wait for a network or another daemon
    FS_NO_BACKING = 8      # its files cannot be passed through by the kernel
    FS_STACKED = 16        # what lies below it may be remote
    FS_PSEUDO = 32         # procfs and kin: no data, but the kernel's own state
    FS_FOREIGN = 64        # a user's own: what it says is up to that user
    FS_SERVER = 128        # a server decides who may do what, and mode bits do not tell
    # Those of its mount (mount(2)):
    FS_NOSUID = 256
    FS_NODEV = 512
    FS_NOEXEC = 1024
    FS_LOCKS_BOTH = 4096   # copying takes the lock of what is copied from too
    FS_MOUNT_FLAGS = FS_NOSUID | FS_NODEV | FS_NOEXEC
    FS_COHERENT = 2048     # we hear of each change beside the mount, see _watch

cdef uint32_t mount_facts(int mountinfo, int fd, uint64_t mount_id, statx *stx) noexcept nogil
cdef bint mounts_below(int mountinfo, const char *path) noexcept nogil
cdef void mounts_each(int mountinfo, void (*note)(void *, uint64_t, uint32_t) noexcept nogil, void *whom) noexcept nogil
