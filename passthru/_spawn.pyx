"""A process that shares its maker's files: clone(2) with CLONE_FILES, which fork(2) of the C library has not."""
import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t

from passthru._libc cimport *

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

cdef extern from *:
    """
    #include <signal.h>
    #include <stdint.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #include <errno.h>
    #include "abi.h"
    #ifndef PR_GET_TID_ADDRESS
    #define PR_GET_TID_ADDRESS 40
    #endif
    /* As fork(3) does it: the C library keeps the number of a thread, which the kernel is to write anew. */
    static long passthru_spawn(void)
    {
        uint64_t *tid = NULL;
        struct { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls; } a = {0};
        if (prctl(PR_GET_TID_ADDRESS, &tid, 0, 0, 0) < 0)
            return -1;
        a.flags = 0x00000400 /* CLONE_FILES */ | 0x01000000 /* CLONE_CHILD_SETTID */ | 0x00200000 /* CLONE_CHILD_CLEARTID */;
        a.child_tid = (uint64_t)(uintptr_t)tid;
        a.exit_signal = SIGCHLD;
        return syscall(CALL_clone3, &a, sizeof(a));
    }
    """
    long passthru_spawn()


def spawn():
    """os.fork(), but both have one table of files. By a process with no other threads. Raises OSError."""
    cdef long pid
    cdef int failed
    PyOS_BeforeFork()
    pid = passthru_spawn()
    failed = errno
    if pid == 0:
        PyOS_AfterFork_Child()
        return 0
    PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(failed, os.strerror(failed), "clone3(2)")
    return pid
