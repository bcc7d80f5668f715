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
        /* CLONE_FILES, CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID. clone3(2) is none for services with RestrictNamespaces=. */
        const unsigned long flags = 0x01200400 | SIGCHLD;
        uint64_t *tid = NULL;
        if (prctl(PR_GET_TID_ADDRESS, &tid, 0, 0, 0) < 0)
            return -1;
    #ifdef __aarch64__
        return syscall(CALL_clone, flags, NULL, NULL, 0, tid);
    #else
        return syscall(CALL_clone, flags, NULL, NULL, tid, 0);
    #endif
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
        raise OSError(failed, os.strerror(failed), "clone(2)")
    return pid
