# The C library, as this project uses it (section 2 and 3 man pages): the one list. Which part a function stands in
# says who may call it; tests/unit/test_tables.py compares the first part with the system call filter (seccomp.py).
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

from passthru._abi cimport mode_t

cdef extern from "abi.h" nogil:
    enum:
        O_PATH, O_NOFOLLOW, O_CLOEXEC, O_DIRECTORY, O_DIRECT, O_APPEND, O_TRUNC, O_CREAT, O_EXCL
        O_RDONLY, O_WRONLY, O_RDWR, O_ACCMODE, O_SYNC, O_DSYNC, O_TMPFILE, O_NOATIME, O_NOCTTY
        O_NONBLOCK
        AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW, AT_REMOVEDIR
        AT_NO_AUTOMOUNT, AT_EACCESS, AT_STATX_FORCE_SYNC, AT_STATX_DONT_SYNC
        S_IFMT, S_IFDIR, S_IFREG, S_IFBLK, S_ISUID, S_ISGID, S_IXGRP
        STATX_BASIC_STATS, STATX_BTIME, STATX_MNT_ID, STATX_MNT_ID_UNIQUE, STATX_MODE
        STATX_ATTR_APPEND
        S_ISVTX
        UTIME_NOW, UTIME_OMIT
        RWF_NOWAIT
        PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_POPULATE, MAP_FIXED
        EFD_CLOEXEC, EFD_NONBLOCK
        CLONE_FS
        PATH_MAX
        EPERM, ENOENT, EINTR, EFAULT, EIO, EBADF, EAGAIN, ENOMEM, EACCES, EBUSY, EEXIST, EXDEV, ENODEV, EISDIR
        ENOTDIR, EINVAL, ENFILE, EMFILE, ENOSPC, ERANGE, ENOSYS, ENODATA, EOVERFLOW
        EOPNOTSUPP, ENOLCK, ENOTCONN, ECONNABORTED, ESTALE, ECANCELED, ENAMETOOLONG, ELOOP, ENOTTY
        EWOULDBLOCK, EDEADLK, ENOTEMPTY, EROFS, ETXTBSY, ENXIO
        F_SETFL, F_RDLCK, F_WRLCK, F_UNLCK, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW
        LOCK_SH, LOCK_EX, LOCK_UN, LOCK_NB
        SEEK_SET, SEEK_DATA, SEEK_HOLE
        FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
        CLOCK_REALTIME, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC
        MFD_CLOEXEC, MADV_DONTNEED, MADV_COLLAPSE, MADV_DONTDUMP, MADV_POPULATE_WRITE, MADV_REMOVE
        POLLIN, POLLOUT
        SIGUSR1, SIGSEGV, SIGBUS, SIGABRT, SIGSYS, SIG_SETMASK
        PR_SET_NAME, PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE
        ST_NOSUID, ST_NODEV, ST_NOEXEC
        CPU_SETSIZE
        # mount(2), setns(2), fanotify(7)
        CLONE_NEWNS, CLONE_NEWUSER, MS_REC, MS_SLAVE, MS_REMOUNT
        FAN_REPORT_DFID_NAME, FAN_REPORT_FID, FAN_CLOEXEC, FAN_NONBLOCK, FAN_UNLIMITED_QUEUE
        FAN_MARK_ADD, FAN_MARK_FILESYSTEM
        FAN_MODIFY, FAN_ATTRIB, FAN_CLOSE_WRITE, FAN_CREATE, FAN_DELETE, FAN_ONDIR, FAN_Q_OVERFLOW

    # ioctl(2)
    const unsigned long FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_GETVERSION, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
    const unsigned long BLKGETSIZE64, BLKSSZGET, BLKROGET, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TCGETS

    struct statx_timestamp:
        int64_t tv_sec
        uint32_t tv_nsec
    struct statx:
        uint32_t stx_mask
        uint32_t stx_blksize
        uint64_t stx_attributes
        uint32_t stx_nlink
        uint32_t stx_uid
        uint32_t stx_gid
        uint16_t stx_mode
        uint64_t stx_ino
        uint64_t stx_size
        uint64_t stx_blocks
        uint64_t stx_attributes_mask
        statx_timestamp stx_atime
        statx_timestamp stx_btime
        statx_timestamp stx_ctime
        statx_timestamp stx_mtime
        uint32_t stx_rdev_major
        uint32_t stx_rdev_minor
        uint32_t stx_dev_major
        uint32_t stx_dev_minor
        uint64_t stx_mnt_id
    struct timespec:
        long tv_sec
        long tv_nsec
    struct iovec:
        void *iov_base
        size_t iov_len
    ctypedef struct fsid_t:
        pass
    struct statfs:
        long f_type
        fsid_t f_fsid
        long f_bsize
        uint64_t f_blocks
        uint64_t f_bfree
        uint64_t f_bavail
        uint64_t f_files
        uint64_t f_ffree
        long f_namelen
        long f_frsize
    struct dirent64:
        uint64_t d_ino
        int64_t d_off
        unsigned short d_reclen
        unsigned char d_type
        char d_name[256]
    struct statvfs_buf "statvfs":
        unsigned long f_flag
    struct flock:
        short l_type
        short l_whence
        int64_t l_start
        int64_t l_len
        int l_pid
    struct pollfd:
        int fd
        short events
        short revents
    ctypedef struct cpu_set_t:
        pass
    ctypedef struct sigset_t:
        pass
    struct signal_action "sigaction":
        void (*sa_handler)(int) noexcept nogil
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_attr_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    ctypedef unsigned long pthread_t
    void *MAP_FAILED

    # ---- System calls of the daemon at work: its filter allows them.
    int c_statx "statx"(int fd, const char *path, int flags, unsigned mask, statx *buf)
    int open(const char *path, int flags, ...)
    int openat(int fd, const char *path, int flags, ...)
    int close(int fd)
    int dup(int fd)
    int fstatfs(int fd, statfs *buf)
    int fstatvfs(int fd, statvfs_buf *buf)
    ssize_t readlinkat(int fd, const char *path, char *buf, size_t n)
    int mkdirat(int fd, const char *path, mode_t mode)
    int mknodat(int fd, const char *path, mode_t mode, uint64_t dev)
    int symlinkat(const char *target, int fd, const char *path)
    int unlinkat(int fd, const char *path, int flags)
    int linkat(int fd, const char *a, int fd2, const char *b, int flags)
    int fchownat(int fd, const char *path, unsigned uid, unsigned gid, int flags)
    int fchmod(int fd, mode_t mode)
    int fchmodat(int fd, const char *path, mode_t mode, int flags)
    int faccessat(int fd, const char *path, int mode, int flags)
    int utimensat(int fd, const char *path, const timespec times[2], int flags)
    int truncate(const char *path, int64_t size)
    int ftruncate(int fd, int64_t size)
    int fallocate(int fd, int mode, int64_t offset, int64_t length)
    int fsync(int fd)
    int fdatasync(int fd)
    int syncfs(int fd)
    int64_t lseek(int fd, int64_t off, int whence)
    ssize_t copy_file_range(int fd, int64_t *off, int fd2, int64_t *off2, size_t n, unsigned flags)
    ssize_t read(int fd, void *buf, size_t n)
    ssize_t write(int fd, const void *buf, size_t n)
    ssize_t writev(int fd, const iovec *iov, int n)
    ssize_t pread(int fd, void *buf, size_t n, int64_t off)
    ssize_t pwrite(int fd, const void *buf, size_t n, int64_t off)
    ssize_t preadv2(int fd, const iovec *iov, int n, int64_t off, int flags)
    ssize_t pwritev2(int fd, const iovec *iov, int n, int64_t off, int flags)
    ssize_t getxattr(const char *path, const char *name, void *value, size_t size)
    ssize_t listxattr(const char *path, char *list, size_t size)
    int setxattr(const char *path, const char *name, const void *value, size_t size, int flags)
    int removexattr(const char *path, const char *name)
    ssize_t fgetxattr(int fd, const char *name, void *value, size_t size)
    mode_t umask(mode_t mask)
    int ioctl(int fd, unsigned long request, ...)
    int fcntl(int fd, int cmd, ...)
    int c_flock "flock"(int fd, int operation)
    int poll(pollfd *fds, unsigned long n, int ms)
    int memfd_create(const char *name, unsigned flags)
    int eventfd(unsigned value, int flags)
    int fanotify_mark(int fd, unsigned flags, uint64_t mask, int dirfd, const char *path)
    int clock_gettime(int clock, timespec *t)
    int sched_yield()
    int usleep(unsigned usec)
    int unshare(int flags)
    int sched_getcpu()
    int sched_getaffinity(int pid, size_t size, cpu_set_t *mask)
    int sched_setaffinity(int pid, size_t size, cpu_set_t *mask)
    int prctl(int option, ...)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
    int change_signal "sigaction"(int sig, const signal_action *act, signal_action *old)
    void *mmap(void *addr, size_t n, int prot, int flags, int fd, int64_t off)
    int mprotect(void *addr, size_t n, int prot)
    int munmap(void *addr, size_t n)
    int madvise(void *addr, size_t n, int advice)

    # ---- Those of the start, and of the keeper: a confined daemon would end with most of them.
    int c_mount "mount"(const char *source, const char *target, const char *fstype, unsigned long flags,
                        const void *data)
    int c_umount2 "umount2"(const char *target, int flags)
    int c_setns "setns"(int fd, int nstype)
    int c_chroot "chroot"(const char *path)
    int c_fchdir "fchdir"(int fd)
    int fanotify_init(unsigned flags, unsigned event_f_flags)

    # ---- Functions without system calls of their own. Threads, mutexes and memory have what the C library needs.
    uint64_t makedev(unsigned major, unsigned minor)
    unsigned major(uint64_t dev)
    unsigned minor(uint64_t dev)
    void *aligned_alloc(size_t align, size_t size)
    int snprintf(char *buf, size_t n, const char *fmt, ...)
    int dprintf(int fd, const char *fmt, ...)
    char *strerror_r(int error, char *buf, size_t size)
    void CPU_ZERO(cpu_set_t *mask)
    void CPU_SET(unsigned cpu, cpu_set_t *mask)
    int sigfillset(sigset_t *set)
    int sigdelset(sigset_t *set, int sig)
    int pthread_mutex_init(pthread_mutex_t *m, void *attr)
    int pthread_mutex_lock(pthread_mutex_t *m)
    int pthread_mutex_unlock(pthread_mutex_t *m)
    int pthread_mutex_destroy(pthread_mutex_t *m)
    int pthread_condattr_init(pthread_condattr_t *a)
    int pthread_condattr_setclock(pthread_condattr_t *a, int clock)
    int pthread_condattr_destroy(pthread_condattr_t *a)
    int pthread_cond_init(pthread_cond_t *c, pthread_condattr_t *attr)
    int pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
    int pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const timespec *t)
    int pthread_cond_signal(pthread_cond_t *c)
    int pthread_cond_broadcast(pthread_cond_t *c)
    int pthread_cond_destroy(pthread_cond_t *c)
    int pthread_attr_init(pthread_attr_t *a)
    int pthread_attr_setstacksize(pthread_attr_t *a, size_t n)
    int pthread_attr_destroy(pthread_attr_t *a)
    int pthread_create(pthread_t *t, pthread_attr_t *a, void *(*fn)(void *) noexcept nogil, void *arg)
    int pthread_detach(pthread_t t)
