"""The filter of system calls that a confined daemon runs with: what it allows, as a BPF program (seccomp(2)).

It is a list of what is allowed. The kernel remembers the calls that are allowed whatever their arguments are, and does
not run the program for them.
"""

from __future__ import annotations

import errno
import fcntl
import signal
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from ._confine import NUMBERS

KILL_PROCESS, TRAP, ERRNO, ALLOW = 0x80000000, 0x00030000, 0x00050000, 0x7FFF0000
X32 = 0x40000000  # bit of the numbers of x86-64's other ABI
AUDIT_ARCH_X86_64 = 0xC000003E

# Opcodes of classic BPF, and where struct seccomp_data has what.
LOAD, AND, JEQ, JGE, RET = 0x20, 0x54, 0x15, 0x35, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16

CLONE_THREAD_FLAGS = 0x00010D00  # CLONE_VM, CLONE_FILES, CLONE_SIGHAND, CLONE_THREAD: a thread ...
CLONE_NEW = 0x7E020000           # ... in the namespaces of its maker
CLONE_FS = 0x200
FAN_MARK_ADD_FILESYSTEM = 0x101
PROT_EXEC = 4
PR_SET_NAME, PR_GET_NAME, PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 15, 16, 23, 24, 38
PR_CAP_AMBIENT, PR_SET_VMA = 47, 0x53564D41
# fcntl(2): copies, flags, locks, the size of pipes. Not whom a signal is sent to: that may be any process.
FCNTLS = tuple(getattr(fcntl, f"F_{name}") for name in (
    "DUPFD DUPFD_CLOEXEC GETFD SETFD GETFL SETFL GETLK SETLK SETLKW OFD_GETLK OFD_SETLK OFD_SETLKW SETPIPE_SZ"
    " GETPIPE_SZ").split())

# Files: by fd, or by a name below the directory of an fd.
FILES = (
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3"
    " flock open openat openat2 stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2"
    " readlink readlinkat getdents64 mkdirat mknodat symlinkat linkat unlinkat renameat2 fchmod fchmodat fchmodat2"
    " fchown fchownat utimensat truncate ftruncate fallocate fsync fdatasync syncfs sync_file_range copy_file_range"
    " fadvise64 readahead umask getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr"
    " fsetxattr removexattr lremovexattr"
    " fremovexattr setxattrat getxattrat listxattrat removexattrat file_getattr file_setattr"
    " name_to_handle_at open_tree").split()
# Acting as callers, and asking what they may.
IDENTITY = (
    "setfsuid setfsgid setgroups capget capset getuid geteuid getgid getegid getgroups getresuid getresgid").split()
# Threads, memory, time, signals, waiting: what the C library and Python's interpreter live on.
RUNTIME = (
    "brk munmap mremap madvise membarrier futex futex_waitv set_robust_list get_robust_list rseq sched_yield"
    " sched_getaffinity sched_setaffinity gettid getpid getppid getcpu rt_sigprocmask rt_sigreturn rt_sigpending"
    " rt_sigtimedwait sigaltstack restart_syscall nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday"
    " time timerfd_create timerfd_settime timerfd_gettime poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait"
    " epoll_pwait epoll_pwait2 eventfd2 pipe2 memfd_create getrandom uname sysinfo getrlimit getrusage times"
    " wait4 waitid exit exit_group").split()
# Rings and sockets that are there already: no new one can be made or connected.
THERE = (
    "io_uring_enter sendto sendmsg recvfrom recvmsg accept accept4 getsockopt getsockname getpeername"
    " setsockopt shutdown").split()

# By name; _confine has the numbers.
IOCTLS = (
    "FS_IOC_GETFLAGS FS_IOC_SETFLAGS FS_IOC_GETVERSION FS_IOC_FSGETXATTR FS_IOC_FSSETXATTR"
    " FUSE_DEV_IOC_CLONE FUSE_DEV_IOC_BACKING_OPEN FUSE_DEV_IOC_BACKING_CLOSE BLKGETSIZE64 BLKSSZGET BLKROGET"
    " FIONREAD FIONBIO FIOCLEX FIONCLEX TCGETS").split()
URING_REGISTERS = (
    "IORING_REGISTER_PERSONALITY IORING_REGISTER_BUFFERS2 IORING_REGISTER_BUFFERS_UPDATE"
    " IORING_REGISTER_IOWQ_MAX_WORKERS").split()


@dataclass(frozen=True)
class When:
    """A condition for a call: the low 32 bits of argument number `argument`, with `mask`, are `value`, or are not."""

    argument: int
    value: int
    mask: int = 0xFFFFFFFF
    equal: bool = True


@dataclass(frozen=True)
class Rule:
    """What becomes of a call: allowed if one of the conditions holds, or there is none; else the action."""

    when: tuple[When, ...] = ()
    otherwise: int = TRAP


def rules(pid: int) -> dict[str, Rule]:
    """By name, what the process `pid` may call; all else ends it."""
    found = {name: Rule() for name in [*FILES, *IDENTITY, *RUNTIME, *THERE]}
    found.update({
        "ioctl": Rule(tuple(When(1, NUMBERS[name]) for name in IOCTLS)),
        "fcntl": Rule(tuple(When(1, command) for command in FCNTLS)),
        "io_uring_register": Rule(tuple(When(1, NUMBERS[name]) for name in URING_REGISTERS)),
        "prlimit64": Rule((When(0, 0),)),  # its own limits
        # No new code: neither mapped nor made out of data.
        "mmap": Rule((When(2, 0, PROT_EXEC),)),
        "mprotect": Rule((When(2, 0, PROT_EXEC),)),
        # Threads, but no processes. The arguments of clone3 cannot be seen; without it the C library takes clone.
        "clone": Rule((When(0, CLONE_THREAD_FLAGS, CLONE_THREAD_FLAGS | CLONE_NEW),)),
        "clone3": Rule((When(1, 0xFFFFFFFF),), ERRNO | errno.ENOSYS),  # never: its second argument is a size
        "unshare": Rule((When(0, CLONE_FS),)),
        # What is found below the source is watched, if the source is.
        "fanotify_mark": Rule((When(1, FAN_MARK_ADD_FILESYSTEM),)),
        "prctl": Rule(tuple(When(0, option) for option in (
            PR_SET_NAME, PR_GET_NAME, PR_SET_VMA, PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_CAP_AMBIENT,
            PR_SET_NO_NEW_PRIVS))),
        # By a handle only from a real fd: not in the kernel's own filesystems (FD_PIDFS_ROOT and kin).
        "open_by_handle_at": Rule((When(0, 0, 0x80000000),)),
        "kill": Rule((When(0, pid),)),
        "tgkill": Rule((When(0, pid),)),
        # Who breaks the rules does not hide it.
        "rt_sigaction": Rule((When(0, signal.SIGSYS, equal=False),)),
    })
    return found


def _instruction(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, k)


def _block(rule: Rule) -> bytes:
    """What comes after the number of a call has been found to be the rule's. It ends with a RET in any case."""
    out = b""
    for w in rule.when:
        out += _instruction(LOAD, ARGUMENTS + 8 * w.argument)
        if w.mask != 0xFFFFFFFF:
            out += _instruction(AND, w.mask)
        out += _instruction(JEQ, w.value, 0, 1) if w.equal else _instruction(JEQ, w.value, 1, 0)
        out += _instruction(RET, ALLOW)
    return out + _instruction(RET, rule.otherwise if rule.when else ALLOW)


def program(arch: int, calls: Mapping[str, int], allowed: Mapping[str, Rule]) -> bytes:
    """The BPF program for an architecture (AUDIT_ARCH_) with these numbers of calls; names it lacks are left out."""
    out = _instruction(LOAD, ARCHITECTURE) + _instruction(JEQ, arch, 1, 0) + _instruction(RET, KILL_PROCESS)
    out += _instruction(LOAD, NUMBER)
    if arch == AUDIT_ARCH_X86_64:
        out += _instruction(JGE, X32, 0, 1) + _instruction(RET, KILL_PROCESS)
    # Those with conditions first: for the others the kernel mostly does not come here.
    for name, rule in sorted(allowed.items(), key=lambda item: not item[1].when):
        if name in calls:
            block = _block(rule)
            out += _instruction(JEQ, calls[name], 0, len(block) // 8) + block
    return out + _instruction(RET, TRAP)
