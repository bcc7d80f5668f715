"""System calls that Python has no wrapper for: the mount API, statx mount ids, FUSE ioctls.

All raise OSError; those that may wait release the GIL.
"""
import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t
from libc.string cimport memset

from passthru._abi cimport *
from passthru._libc cimport *


cdef int check(int r, what) except -1:
    if r < 0:
        raise OSError(-r, os.strerror(-r), what)
    return r


def clone_mount(int fd, unsigned clear, unsigned set, bint recursive, bint private=True):
    """An O_PATH fd of the same object in a copy of its mount (open_tree(2), mount_setattr(2)).

    clear, set: MOUNT_ATTR_ bits; recursive: with the mounts below; private: those that are made later do not appear.
    """
    return check(sys_clone_mount(fd, clear, set, recursive, private), "open_tree")


def fsopen(bytes fstype):
    """fsopen(2), close-on-exec."""
    return check(sys_fsopen(fstype, FSOPEN_CLOEXEC), "fsopen")


def fsconfig_string(int fd, bytes key, bytes value):
    """fsconfig(2) FSCONFIG_SET_STRING."""
    check(sys_fsconfig(fd, FSCONFIG_SET_STRING, key, value, 0), os.fsdecode(key))


def fsconfig_flag(int fd, bytes key):
    """fsconfig(2) FSCONFIG_SET_FLAG."""
    check(sys_fsconfig(fd, FSCONFIG_SET_FLAG, key, NULL, 0), os.fsdecode(key))


def fsconfig_create(int fd):
    """fsconfig(2) FSCONFIG_CMD_CREATE; with SYNC_INIT it waits until INIT is answered."""
    cdef int r
    with nogil:
        r = sys_fsconfig(fd, FSCONFIG_CMD_CREATE, NULL, NULL, 0)
    check(r, "fsconfig")


def fsmount(int fd, unsigned attributes):
    """fsmount(2): an fd of the new, detached mount."""
    return check(sys_fsmount(fd, FSMOUNT_CLOEXEC, attributes), "fsmount")


def move_mount(int mount_fd, int target_fd):
    """move_mount(2) of a detached mount onto the object that target_fd refers to."""
    check(sys_move_mount(mount_fd, "", target_fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH), "move_mount")


def umount(bytes target, int flags):
    """umount2(2)."""
    cdef int r
    cdef const char *path = target
    with nogil:
        r = -errno if c_umount2(path, flags) < 0 else 0
    check(r, os.fsdecode(target))


def remount(bytes target, unsigned long flags):
    """mount(2) with MS_REMOUNT: the flags, MS_ bits, are then those of the superblock and of this mount."""
    cdef int r
    cdef const char *path = target
    with nogil:
        r = -errno if c_mount(NULL, path, NULL, flags | MS_REMOUNT, NULL) < 0 else 0
    check(r, os.fsdecode(target))


def enter_mount_namespace(int fd):
    """setns(2) with CLONE_NEWNS; the calling process must have one thread."""
    check(-errno if c_setns(fd, CLONE_NEWNS) < 0 else 0, "setns")


def sync_mount(bytes target):
    """Write back what a mount's page cache holds (syncfs(2)), as far as it can be."""
    cdef int fd
    cdef const char *path = target
    with nogil:
        fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW)
        if fd >= 0:
            syncfs(fd)
            close(fd)


def mount_identity(int fd):
    """(st_dev, mount id) of an object, without asking its filesystem (AT_STATX_DONT_SYNC)."""
    cdef statx stx
    cdef int r
    with nogil:
        r = c_statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_MNT_ID, &stx)
    check(-errno if r < 0 else 0, "statx")
    return os.makedev(stx.stx_dev_major, stx.stx_dev_minor), stx.stx_mnt_id


def mount_of_name(int directory, bytes name):
    """The number of the topmost mount at a name in a directory, without asking its filesystem; 0: nothing is there."""
    cdef statx stx
    cdef int r
    cdef const char *path = name
    with nogil:
        r = c_statx(directory, path, AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_MNT_ID, &stx)
        r = -errno if r < 0 else 0
    if r == -ENOENT:
        return 0
    check(r, os.fsdecode(name))
    return stx.stx_mnt_id


def clone_fuse_fd(int fd, int new):
    """Make `new`, an fd of /dev/fuse that it takes over, one more of the connection of `fd`, with a queue of its own
    (FUSE_DEV_IOC_CLONE)."""
    cdef uint32_t session = fd
    if ioctl(new, FUSE_DEV_IOC_CLONE, &session) < 0:
        e = errno
        os.close(new)
        raise OSError(e, os.strerror(e), "FUSE_DEV_IOC_CLONE")
    return new


def sync_init(int fd):
    """Make mount(2) wait for INIT's answer (FUSE_DEV_IOC_SYNC_INIT, Linux 6.18). False if unknown."""
    return ioctl(fd, FUSE_DEV_IOC_SYNC_INIT) == 0


def thread_name(bytes name):
    """What ps(1) and top(1) call the calling thread: up to 15 bytes."""
    prctl(PR_SET_NAME, <const char *> name)


def new_user_namespace():
    """unshare(2) into a user namespace and a mount namespace of one's own; the process must have one thread."""
    check(-errno if unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0 else 0, "unshare")


def try_io_uring():
    """Make an io_uring and close it: is it allowed?"""
    cdef io_uring_params p
    memset(&p, 0, sizeof(p))
    close(check(sys_io_uring_setup(1, &p), "io_uring_setup"))


def try_file_handle(int fd):
    """Has the filesystem of an object file handles (name_to_handle_at(2))?"""
    cdef file_handle_max fh
    check(sys_name_to_handle_at(fd, &fh), "name_to_handle_at")


def try_fanotify(int fd):
    """May this process watch the whole filesystem of an object, with names (fanotify(7))?"""
    cdef int group = fanotify_init(FAN_REPORT_DFID_NAME | FAN_CLOEXEC, 0)
    check(-errno if group < 0 else 0, "fanotify_init")
    try:
        check(-errno if fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_MODIFY, fd, NULL) < 0 else 0,
              "fanotify_mark")
    finally:
        close(group)
