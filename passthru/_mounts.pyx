"""What the mount table says of a filesystem (proc_pid_mountinfo(5)).

A filesystem that hangs, or that lies about itself, is not asked: its type and its mount's flags are the
kernel's word. Only private copies of mounts are not in the table; those are the administrator's, and asked.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc, strtoul, strtoull
from libc.string cimport memchr, strchr, strlen, strncmp, strstr

from passthru._abi cimport *
from passthru._libc cimport *

cdef enum:
    FUSE_SUPER_MAGIC = 0x65735546
    FIRST_SIZE = 65536
    LARGEST = 64 << 20
    ST_NOSYMFOLLOW = 8192  # statvfs(3) f_flag; the C library has no name for it

cdef struct Kind:
    const char *name       # as in /proc/filesystems; NULL: known by its number only
    uint32_t magic         # statfs(2) f_type
    uint32_t flags

# Filesystems without a block device that hold data, and others with flags. Whatever else has none is the kernel's own state.
cdef enum:
    KINDS = 32
cdef Kind KINDS_OF_DATA[KINDS]
KINDS_OF_DATA[0] = Kind(b"tmpfs", 0x01021994, FS_MEMORY)
KINDS_OF_DATA[1] = Kind(b"ramfs", 0x858458f6, FS_MEMORY)
KINDS_OF_DATA[2] = Kind(b"hugetlbfs", 0x958458f6, FS_MEMORY)
KINDS_OF_DATA[3] = Kind(b"devtmpfs", 0x01021994, FS_MEMORY)
KINDS_OF_DATA[4] = Kind(b"rootfs", 0x858458f6, FS_MEMORY)
KINDS_OF_DATA[5] = Kind(b"nfs", 0x6969, FS_REMOTE)
KINDS_OF_DATA[6] = Kind(b"nfs4", 0x6969, FS_REMOTE | FS_SERVER)
KINDS_OF_DATA[7] = Kind(b"cifs", 0xff534d42, FS_REMOTE | FS_SERVER)
KINDS_OF_DATA[8] = Kind(b"smb3", 0xfe534d42, FS_REMOTE | FS_SERVER)
KINDS_OF_DATA[9] = Kind(b"smbfs", 0x517b, FS_REMOTE | FS_SERVER)
KINDS_OF_DATA[10] = Kind(b"ceph", 0x00c36400, FS_REMOTE)
KINDS_OF_DATA[11] = Kind(b"fuse", FUSE_SUPER_MAGIC, FS_REMOTE)
KINDS_OF_DATA[12] = Kind(b"fuseblk", FUSE_SUPER_MAGIC, FS_REMOTE)
KINDS_OF_DATA[13] = Kind(b"virtiofs", FUSE_SUPER_MAGIC, FS_REMOTE)
KINDS_OF_DATA[14] = Kind(b"9p", 0x01021997, FS_REMOTE)
KINDS_OF_DATA[15] = Kind(b"afs", 0x5346414f, FS_REMOTE | FS_SERVER)
KINDS_OF_DATA[16] = Kind(b"lustre", 0x0bd00bd0, FS_REMOTE)
KINDS_OF_DATA[17] = Kind(b"gfs2", 0x01161970, FS_REMOTE)
KINDS_OF_DATA[18] = Kind(b"beegfs", 0x19830326, FS_REMOTE)
KINDS_OF_DATA[19] = Kind(b"gpfs", 0x47504653, FS_REMOTE)
KINDS_OF_DATA[20] = Kind(b"ocfs2", 0x7461636f, FS_REMOTE)
KINDS_OF_DATA[21] = Kind(b"coda", 0x73757245, FS_REMOTE)
KINDS_OF_DATA[22] = Kind(b"vboxsf", 0x786f4256, FS_REMOTE)
KINDS_OF_DATA[23] = Kind(b"overlay", 0x794c7630, FS_STACKED)
KINDS_OF_DATA[24] = Kind(b"ecryptfs", 0xf15f, FS_STACKED)
KINDS_OF_DATA[25] = Kind(b"btrfs", 0x9123683e, 0)
KINDS_OF_DATA[26] = Kind(b"zfs", 0x2fc12fc1, 0)
KINDS_OF_DATA[27] = Kind(b"bcachefs", 0xca451a4e, 0)
KINDS_OF_DATA[28] = Kind(b"ubifs", 0x24051905, 0)
KINDS_OF_DATA[29] = Kind(b"jffs2", 0x72b6, 0)
KINDS_OF_DATA[30] = Kind(b"hostfs", 0x00c0ffee, 0)  # of user-mode kernels
KINDS_OF_DATA[31] = Kind(b"xfs", 0x58465342, FS_LOCKS_BOTH)


REMOTE = {KINDS_OF_DATA[n].name.decode() for n in range(KINDS) if KINDS_OF_DATA[n].flags & FS_REMOTE}
STACKED = {KINDS_OF_DATA[n].name.decode() for n in range(KINDS) if KINDS_OF_DATA[n].flags & FS_STACKED}

# One reader at a time has the position of the table's fd.
cdef pthread_mutex_t reading
pthread_mutex_init(&reading, NULL)


cdef char *table(int mountinfo) noexcept nogil:
    """The whole mount table, NUL-terminated, to be freed; NULL: it cannot be had."""
    cdef size_t size = FIRST_SIZE, used = 0
    cdef char *text = <char *> malloc(size)
    cdef char *more
    cdef ssize_t n
    if text == NULL or mountinfo < 0:
        free(text)
        return NULL
    pthread_mutex_lock(&reading)
    lseek(mountinfo, 0, SEEK_SET)
    while True:
        if used + 1 == size:
            more = <char *> realloc(text, size * 2) if size < LARGEST else NULL
            if more == NULL:
                break
            text = more
            size *= 2
        n = read(mountinfo, text + used, size - used - 1)
        if n <= 0:
            break
        used += n
    pthread_mutex_unlock(&reading)
    text[used] = 0
    return text


cdef char *field(char *line, unsigned n) noexcept nogil:
    """The start of a line's n-th word (from 0); NULL: there are not so many."""
    while n:
        line = strchr(line, c' ')
        if line == NULL:
            return NULL
        line += 1
        n -= 1
    return line


cdef bint has_word(const char *list, const char *word) noexcept nogil:
    """Is `word` one of the comma-separated words up to the next space?"""
    cdef size_t n = strlen(word)
    while True:
        if strncmp(list, word, n) == 0 and (list[n] == c',' or list[n] == c' ' or list[n] == 0):
            return True
        while list[0] != c',':
            if list[0] == c' ' or list[0] == 0:
                return False
            list += 1
        list += 1


cdef uint32_t flags_of_line(char *line) noexcept nogil:
    cdef char *options = field(line, 5)
    cdef char *rest = strstr(line, " - ")
    cdef char *device = field(line, 2)
    cdef char *at
    cdef uint32_t flags = 0
    cdef unsigned k
    cdef size_t n
    cdef bint found = False
    if options == NULL or rest == NULL or device == NULL:
        return FS_PSEUDO
    if has_word(options, "nosuid"):
        flags |= FS_NOSUID
    if has_word(options, "nodev") and not has_word(options, "nosymfollow"):  # both: it is a confined daemon's own doing
        flags |= FS_NODEV
    if has_word(options, "noexec"):
        flags |= FS_NOEXEC
    rest += 3
    n = 0
    while rest[n] != c' ' and rest[n] != c'.' and rest[n]:  # fuse.subtype
        n += 1
    for k in range(KINDS):
        if strlen(KINDS_OF_DATA[k].name) == n and strncmp(rest, KINDS_OF_DATA[k].name, n) == 0:
            flags |= KINDS_OF_DATA[k].flags
            found = True
    if not found and strtoul(device, NULL, 10) == 0:
        flags |= FS_PSEUDO
    if strncmp(rest, "fuse", 4) == 0:
        # In the last word only: type and source are whatever its owner has said.
        at = field(rest, 2)
        if at == NULL or not (has_word(at, "user_id=0")):
            flags |= FS_FOREIGN
    return flags


cdef uint32_t flags_by_asking(int fd) noexcept nogil:
    """For a private copy of a mount."""
    cdef statvfs_buf v
    cdef statfs sf
    cdef statx stx
    cdef uint32_t flags = 0
    cdef unsigned k
    cdef bint found = False
    if fstatfs(fd, &sf) < 0 or fstatvfs(fd, &v) < 0 or \
            c_statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &stx) < 0:
        return FS_PSEUDO
    for k in range(KINDS):
        if <uint32_t> sf.f_type == KINDS_OF_DATA[k].magic and not found:
            flags |= KINDS_OF_DATA[k].flags
            found = True
    if <uint32_t> sf.f_type == FUSE_SUPER_MAGIC:
        flags |= FS_FOREIGN  # FUSE: whose, it cannot be asked
    if not found and stx.stx_dev_major == 0:
        flags |= FS_PSEUDO
    if v.f_flag & ST_NOSUID:
        flags |= FS_NOSUID
    if v.f_flag & ST_NODEV and not v.f_flag & ST_NOSYMFOLLOW:
        flags |= FS_NODEV
    if v.f_flag & ST_NOEXEC:
        flags |= FS_NOEXEC
    return flags


cdef uint32_t mount_facts(int mountinfo, int fd, uint64_t mount_id, statx *stx) noexcept nogil:
    """FS_ flags of the mount of that number in mountinfo(5), on which the object `fd`, with those attributes, lies.

    A private copy of a mount is not in the table: then another mount of the same device tells, and at last the
    filesystem itself is asked.
    """
    cdef char *text = table(mountinfo)
    cdef char *line = text
    cdef char *end
    cdef char device[32]
    cdef char *at
    cdef size_t n = snprintf(device, sizeof(device), "%u:%u ", stx.stx_dev_major, stx.stx_dev_minor)
    cdef uint32_t flags = 0
    cdef bint found = False
    while line != NULL and line[0]:
        end = strchr(line, c'\n')
        if end != NULL:
            end[0] = 0
        at = field(line, 2)
        if strtoull(line, NULL, 10) == mount_id:
            flags = flags_of_line(line)
            found = True
            break
        if not found and at != NULL and strncmp(at, device, n) == 0:
            flags = flags_of_line(line)
            found = True
        line = end + 1 if end != NULL else NULL
    free(text)
    return flags if found else flags_by_asking(fd)


cdef void mounts_each(int mountinfo, void (*note)(void *, uint64_t, uint32_t) noexcept nogil, void *whom) noexcept nogil:
    """Tell `note` the number and the FS_ flags of every mount."""
    cdef char *text = table(mountinfo)
    cdef char *line = text
    cdef char *end
    while line != NULL and line[0]:
        end = strchr(line, c'\n')
        if end != NULL:
            end[0] = 0
        note(whom, strtoull(line, NULL, 10), flags_of_line(line))
        line = end + 1 if end != NULL else NULL
    free(text)


cdef bint mounts_below(int mountinfo, const char *path) noexcept nogil:
    """May something be mounted below the directory that `path` (of /proc/self/fd) leads to? In doubt, yes."""
    cdef char where[PATH_MAX]
    cdef ssize_t n = readlinkat(AT_FDCWD, path, where, PATH_MAX)
    cdef char *text
    cdef char *line
    cdef char *end
    cdef char *target
    cdef bint found = False
    if n <= 0 or n == PATH_MAX or where[0] != c'/':
        return True
    if n == 1:
        n = 0  # "/"
    # Names that the table shows in another way, and those that are gone: in doubt.
    if memchr(where, c' ', n) != NULL or memchr(where, c'\\', n) != NULL or memchr(where, c'\n', n) != NULL \
            or memchr(where, c'\t', n) != NULL or memchr(where, c'#', n) != NULL:
        return True
    text = table(mountinfo)
    if text == NULL:
        return True
    line = text
    while line != NULL and line[0] and not found:
        end = strchr(line, c'\n')
        if end != NULL:
            end[0] = 0
        target = field(line, 4)
        if target == NULL or (strncmp(target, where, n) == 0 and target[n] == c'/' and target[n + 1] != c' '):
            found = True
        line = end + 1 if end != NULL else NULL
    free(text)
    return found
