"""A process that shares its maker's files: clone(2) with CLONE_FILES, which fork(2) of the C library has not."""
import os

from libc.errno cimport errno

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
        struct { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls; } how = {0};
        if (prctl(PR_GET_TID_ADDRESS, &tid, 0, 0, 0) < 0)
            return -1;
        how.flags = 0x01200400; /* CLONE_FILES, CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID */
        how.child_tid = (uint64_t)(uintptr_t)tid;
        how.exit_signal = SIGCHLD;
        return syscall(CALL_clone3, &how, sizeof(how));
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
