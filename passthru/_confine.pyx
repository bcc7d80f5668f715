"""What confines this process: capabilities(7), mount_namespaces(7), seccomp(2), and who may look into its memory.

What concerns a thread only, its capabilities, each thread does for itself before it serves; a filter is for all.
All raise OSError.
"""
import os

from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport abort

from passthru._abi cimport *
from passthru._libc cimport *
from passthru._log cimport LOG_ERROR, log_drain, log_line


cdef extern from * nogil:
    """
    #include <linux/audit.h>
    #include <linux/filter.h>
    #include <linux/seccomp.h>

    static const struct passthru_call { const char *name; int number; } passthru_calls[] = {
    #define CALL(name, number) { #name, number },
    #include "syscalls.h"
    #undef CALL
    };
    enum { PASSTHRU_CALLS = sizeof(passthru_calls) / sizeof(passthru_calls[0]) };

    /* 0: an architecture whose numbers nobody has looked at. */
    #if defined(__x86_64__) && !defined(__ILP32__)
    enum { PASSTHRU_ARCH = (int)AUDIT_ARCH_X86_64 };
    #elif defined(__aarch64__) && defined(__LP64__) && defined(__AARCH64EL__)
    enum { PASSTHRU_ARCH = (int)AUDIT_ARCH_AARCH64 };
    #else
    enum { PASSTHRU_ARCH = 0 };
    #endif

    #ifdef __SANITIZE_ADDRESS__
    enum { PASSTHRU_SANITIZED = 1 };
    #else
    enum { PASSTHRU_SANITIZED = 0 };
    #endif

    #ifndef SYS_SECCOMP /* the C library has no siginfo code for it */
    #define SYS_SECCOMP 1
    #endif

    static void (*passthru_violated)(int number);
    static void passthru_on_sigsys(int sig, siginfo_t *info, void *context)
    {
        (void)context;
        if (info->si_code == SYS_SECCOMP)
            passthru_violated(info->si_syscall);
        raise(sig); /* by its default action now: the end */
    }
    static int passthru_catch_sigsys(void (*violated)(int))
    {
        passthru_violated = violated;
        struct sigaction a = { .sa_sigaction = passthru_on_sigsys };
        sigset_t one;
        a.sa_flags = SA_SIGINFO | SA_RESETHAND | SA_NODEFER;
        sigemptyset(&one);
        sigaddset(&one, SIGSYS);
        if (sigaction(SIGSYS, &a, NULL) < 0)
            return -errno;
        return -pthread_sigmask(SIG_UNBLOCK, &one, NULL);
    }
    static int passthru_filter(const void *program, unsigned count)
    {
        struct sock_fprog p = { .len = (unsigned short)count, .filter = (struct sock_filter *)program };
        long r = syscall(CALL_seccomp, SECCOMP_SET_MODE_FILTER,
                         SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW, &p);
        return r < 0 ? -errno : r > 0 ? -ESRCH : 0; /* > 0: a thread that has a filter of its own */
    }
    static int passthru_set_caps(uint64_t mask)
    {
        struct { uint32_t version; int pid; } header = { _LINUX_CAPABILITY_VERSION_3, 0 };
        struct { uint32_t effective, permitted, inheritable; } data[2];
        if (syscall(CALL_capget, &header, data) < 0)
            return -errno;
        for (int i = 0; i < 2; i++) {
            data[i].permitted &= (uint32_t)(mask >> 32 * i);
            data[i].effective &= data[i].permitted;
            data[i].inheritable = 0;
        }
        return syscall(CALL_capset, &header, data) < 0 ? -errno : 0;
    }
    static int passthru_cut(uint64_t mask)
    {
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        /* The bounding set: what nobody can get any more, whatever is executed. Only with CAP_SETPCAP. */
        for (int cap = 0; cap < 64 && prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
            if (!(mask >> cap & 1))
                prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
        return passthru_set_caps(mask);
    }
    static int passthru_pivot(int root)
    {
        /* What was the root comes to lie over the new one, and is taken away, with all that is below it. */
        if (fchdir(root) < 0 || syscall(CALL_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
            return -errno;
        return 0;
    }
    """
    struct passthru_call:
        const char *name
        int number
    passthru_call passthru_calls[1]
    enum:
        PASSTHRU_CALLS, PASSTHRU_ARCH, PASSTHRU_SANITIZED
    int passthru_catch_sigsys(void (*violated)(int) noexcept nogil)
    int passthru_filter(const void *program, unsigned count)
    int passthru_cut(uint64_t mask)
    int passthru_pivot(int root)


# Of the calling architecture: {name: number}, and its AUDIT_ARCH_, or 0: no filter is made for it.
CALLS = {}
for _n in range(PASSTHRU_CALLS):
    CALLS[(<bytes> passthru_calls[_n].name).decode()] = passthru_calls[_n].number
ARCH = PASSTHRU_ARCH & 0xffffffff
PROC = PROC_FD
# What the filter may have to tell apart, by the kernel's names: requests of ioctl(2), operations of io_uring_register(2).
NUMBERS = {
    "FS_IOC_GETFLAGS": FS_IOC_GETFLAGS, "FS_IOC_SETFLAGS": FS_IOC_SETFLAGS, "FS_IOC_GETVERSION": FS_IOC_GETVERSION,
    "FS_IOC_FSGETXATTR": FS_IOC_FSGETXATTR, "FS_IOC_FSSETXATTR": FS_IOC_FSSETXATTR,
    "FUSE_DEV_IOC_CLONE": FUSE_DEV_IOC_CLONE, "FUSE_DEV_IOC_BACKING_OPEN": FUSE_DEV_IOC_BACKING_OPEN,
    "FUSE_DEV_IOC_BACKING_CLOSE": FUSE_DEV_IOC_BACKING_CLOSE,
    "BLKGETSIZE64": BLKGETSIZE64, "BLKSSZGET": BLKSSZGET, "BLKROGET": BLKROGET,
    "FIONREAD": FIONREAD, "FIONBIO": FIONBIO, "FIOCLEX": FIOCLEX, "FIONCLEX": FIONCLEX, "TCGETS": TCGETS,
    "IORING_REGISTER_PERSONALITY": IORING_REGISTER_PERSONALITY, "IORING_REGISTER_BUFFERS2": IORING_REGISTER_BUFFERS2,
    "IORING_REGISTER_BUFFERS_UPDATE": IORING_REGISTER_BUFFERS_UPDATE,
    "IORING_REGISTER_IOWQ_MAX_WORKERS": IORING_REGISTER_IOWQ_MAX_WORKERS,
}

cdef uint64_t kept = 0
cdef bint cutting = False


cdef void violated(int number) noexcept nogil:
    """The message before the end, from a signal handler: only what may be called there."""
    cdef char line[160]
    cdef const char *name = b"unknown"
    cdef unsigned i
    for i in range(<unsigned> PASSTHRU_CALLS):
        if passthru_calls[i].number == number:
            name = passthru_calls[i].name
    snprintf(line, sizeof(line),
             "system call %d (%s) is not among those of this daemon (--sandbox): the daemon ends", number, name)
    log_line(LOG_ERROR, line)
    log_drain()


cdef int check(int r, what) except -1:
    if r < 0:
        raise OSError(-r, os.strerror(-r), what)
    return r


SANITIZED = bool(PASSTHRU_SANITIZED)  # its runtime has a thread of its own, from the process's start


def keep_capabilities(uint64_t mask):
    """What cut_thread() leaves from now on: a bit for each number of capabilities(7)."""
    global kept, cutting
    kept = mask
    cutting = True


def cut_capabilities(uint64_t mask):
    """The calling thread has no capability beyond `mask` any more, and gets none, nor do threads that it starts."""
    check(passthru_cut(mask), "capset")


cdef void confine_thread() noexcept nogil:
    if cutting and (passthru_cut(kept) < 0 or prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0):
        abort()  # never with more than was promised


def cut_thread():
    """The calling thread keeps what keep_capabilities() has said, and gets no new privileges."""
    with nogil:
        confine_thread()


def no_new_privileges():
    """No program that this thread executes gets more rights than it has: prctl(2), PR_SET_NO_NEW_PRIVS."""
    check(-errno if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 else 0, "PR_SET_NO_NEW_PRIVS")


def undumpable():
    """Nobody but root looks into this process, and no core is written: prctl(2), PR_SET_DUMPABLE."""
    check(-errno if prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 else 0, "PR_SET_DUMPABLE")


def own_mounts():
    """A mount namespace of the calling thread's own: what others mount appears, what is mounted here does not."""
    check(-errno if unshare(CLONE_NEWNS) < 0 else 0, "unshare")
    check(-errno if c_mount(NULL, b"/", NULL, MS_REC | MS_SLAVE, NULL) < 0 else 0, "mount")


def open_tree(bytes path):
    """An O_PATH fd of a directory, in a private copy of its mount that begins there: '..' does not lead out."""
    return check(sys_open_tree(path), os.fsdecode(path))


def change_root(int fd):
    """The directory `fd` is the root from now on, of all threads that share theirs; the working directory stays."""
    cdef int here = open(b".", O_PATH | O_DIRECTORY | O_CLOEXEC)
    cdef int r
    check(-errno if here < 0 else 0, ".")
    r = -errno if c_fchdir(fd) < 0 or c_chroot(b".") < 0 else 0
    c_fchdir(here)
    close(here)
    check(r, "chroot")


def pivot(int root):
    """The mount `root` is the root of the namespace, and of all in it; all others go. The working directory is '/'."""
    check(passthru_pivot(root), "pivot_root")


def change_mount(int fd, unsigned set, unsigned clear):
    """Set and clear MOUNT_ATTR_ bits of the mount that begins at `fd`."""
    check(sys_mount_change(fd, set, clear), "mount_setattr")


def install_filter(bytes program):
    """From now on all threads make only the system calls that this BPF program allows; another one ends the process."""
    check(passthru_catch_sigsys(violated), "SIGSYS")
    check(passthru_filter(<const char *> program, len(program) // 8), "seccomp")
