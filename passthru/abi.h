/* SPDX-License-Identifier: MIT */
/*
 * The kernel ABI that passthru speaks: FUSE (fuse(4), Documentation/filesystems/fuse/;
 * which versions: init.py), FUSE over io_uring, io_uring(7), and the system calls that
 * older C libraries do not wrap (their numbers: syscalls.h). Own declarations with the
 * kernel's names, so that the build needs no recent kernel headers; every
 * layout is asserted at the end of its section.
 */
#ifndef PASSTHRU_ABI_H
#define PASSTHRU_ABI_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE /* <sys/mman.h> before glibc 2.37 */
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_WRITE /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif
#ifndef STATX_MNT_ID_UNIQUE /* Linux 6.8; not used again, and no number of mountinfo */
#define STATX_MNT_ID_UNIQUE 0x4000u
#endif

/* The numbers of system calls: CALL_openat2 and so on. */
enum {
#define CALL(name, number) CALL_##name = number,
#include "syscalls.h"
#undef CALL
};

#define ABI_SIZE(type, size) \
	_Static_assert(sizeof(type) == (size), #type " has another size")
#define ABI_AT(type, member, at) \
	_Static_assert(offsetof(type, member) == (at), #type "." #member " lies elsewhere")

/* ------------------------------------------------------------------ FUSE */

enum { FUSE_ROOT_ID = 1 };

enum fuse_opcode {
	FUSE_LOOKUP = 1,
	FUSE_FORGET = 2,
	FUSE_GETATTR = 3,
	FUSE_SETATTR = 4,
	FUSE_READLINK = 5,
	FUSE_SYMLINK = 6,
	FUSE_MKNOD = 8,
	FUSE_MKDIR = 9,
	FUSE_UNLINK = 10,
	FUSE_RMDIR = 11,
	FUSE_RENAME = 12,
	FUSE_LINK = 13,
	FUSE_OPEN = 14,
	FUSE_READ = 15,
	FUSE_WRITE = 16,
	FUSE_STATFS = 17,
	FUSE_RELEASE = 18,
	FUSE_FSYNC = 20,
	FUSE_SETXATTR = 21,
	FUSE_GETXATTR = 22,
	FUSE_LISTXATTR = 23,
	FUSE_REMOVEXATTR = 24,
	FUSE_FLUSH = 25,
	FUSE_INIT = 26,
	FUSE_OPENDIR = 27,
	FUSE_READDIR = 28,
	FUSE_RELEASEDIR = 29,
	FUSE_FSYNCDIR = 30,
	FUSE_GETLK = 31,
	FUSE_SETLK = 32,
	FUSE_SETLKW = 33,
	FUSE_ACCESS = 34,
	FUSE_CREATE = 35,
	FUSE_INTERRUPT = 36,
	FUSE_BMAP = 37,
	FUSE_DESTROY = 38,
	FUSE_IOCTL = 39,
	FUSE_POLL = 40,
	FUSE_NOTIFY_REPLY = 41,
	FUSE_BATCH_FORGET = 42,
	FUSE_FALLOCATE = 43,
	FUSE_READDIRPLUS = 44,
	FUSE_RENAME2 = 45,
	FUSE_LSEEK = 46,
	FUSE_COPY_FILE_RANGE = 47,
	FUSE_SETUPMAPPING = 48,
	FUSE_REMOVEMAPPING = 49,
	FUSE_SYNCFS = 50,
	FUSE_TMPFILE = 51,
	FUSE_STATX = 52,
	FUSE_COPY_FILE_RANGE_64 = 53,
	FUSE_OPCODES = 64, /* size of tables indexed by opcode */
};

/* Those of fuse_init_in.flags and flags2 that C code asks for; all are in init.py, which chooses. */
#define FUSE_SECURITY_CTX (1ull << 32)
#define FUSE_DIRECT_IO_ALLOW_MMAP (1ull << 36)

/* fuse_setattr_in.valid */
enum {
	FATTR_MODE = 1 << 0,
	FATTR_UID = 1 << 1,
	FATTR_GID = 1 << 2,
	FATTR_SIZE = 1 << 3,
	FATTR_ATIME = 1 << 4,
	FATTR_MTIME = 1 << 5,
	FATTR_FH = 1 << 6,
	FATTR_ATIME_NOW = 1 << 7,
	FATTR_MTIME_NOW = 1 << 8,
	FATTR_LOCKOWNER = 1 << 9,
	FATTR_CTIME = 1 << 10,
	FATTR_KILL_SUIDGID = 1 << 11,
};

/* fuse_open_out.open_flags */
enum {
	FOPEN_DIRECT_IO = 1 << 0,
	FOPEN_KEEP_CACHE = 1 << 1,
	FOPEN_NONSEEKABLE = 1 << 2,
	FOPEN_CACHE_DIR = 1 << 3,
	FOPEN_STREAM = 1 << 4,
	FOPEN_NOFLUSH = 1 << 5,
	FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6,
	FOPEN_PASSTHROUGH = 1 << 7,
	FOPEN_IO_URING_ZERO_COPY = 1 << 8,
};

enum {
	FUSE_RELEASE_FLUSH = 1 << 0,
	FUSE_RELEASE_FLOCK_UNLOCK = 1 << 1,
	FUSE_GETATTR_FH = 1 << 0,
	FUSE_LK_FLOCK = 1 << 0,
	FUSE_WRITE_CACHE = 1 << 0,
	FUSE_WRITE_LOCKOWNER = 1 << 1,
	FUSE_WRITE_KILL_SUIDGID = 1 << 2,
	FUSE_FSYNC_FDATASYNC = 1 << 0,
	FUSE_OPEN_KILL_SUIDGID = 1 << 0,
	FUSE_SETXATTR_ACL_KILL_SGID = 1 << 0,
	FUSE_ATTR_SUBMOUNT = 1 << 0,
	FUSE_IOCTL_COMPAT = 1 << 0,
	FUSE_IOCTL_DIR = 1 << 4,
	FUSE_EXT_GROUPS = 32,
};

struct fuse_attr {
	uint64_t ino, size, blocks;
	uint64_t atime, mtime, ctime;
	uint32_t atimensec, mtimensec, ctimensec;
	uint32_t mode, nlink, uid, gid, rdev, blksize, flags;
};

struct fuse_sx_time {
	int64_t tv_sec;
	uint32_t tv_nsec;
	int32_t reserved;
};

struct fuse_statx {
	uint32_t mask, blksize;
	uint64_t attributes;
	uint32_t nlink, uid, gid;
	uint16_t mode, spare0;
	uint64_t ino, size, blocks, attributes_mask;
	struct fuse_sx_time atime, btime, ctime, mtime;
	uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
	uint64_t spare2[14];
};

struct fuse_kstatfs {
	uint64_t blocks, bfree, bavail, files, ffree;
	uint32_t bsize, namelen, frsize, padding, spare[6];
};

struct fuse_file_lock {
	uint64_t start, end;
	uint32_t type, pid;
};

struct fuse_in_header {
	uint32_t len, opcode;
	uint64_t unique, nodeid;
	uint32_t uid, gid, pid;
	uint16_t total_extlen; /* in units of 8 bytes */
	uint16_t padding;
};

struct fuse_out_header {
	uint32_t len;
	int32_t error;
	uint64_t unique;
};

struct fuse_entry_out {
	uint64_t nodeid, generation, entry_valid, attr_valid;
	uint32_t entry_valid_nsec, attr_valid_nsec;
	struct fuse_attr attr;
};

struct fuse_attr_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec, dummy;
	struct fuse_attr attr;
};

struct fuse_statx_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec, flags;
	uint64_t spare[2];
	struct fuse_statx stat;
};

struct fuse_forget_in { uint64_t nlookup; };
struct fuse_forget_one { uint64_t nodeid, nlookup; };
struct fuse_batch_forget_in { uint32_t count, dummy; };
struct fuse_getattr_in { uint32_t getattr_flags, dummy; uint64_t fh; };
struct fuse_statx_in { uint32_t getattr_flags, reserved; uint64_t fh; uint32_t sx_flags, sx_mask; };
struct fuse_mknod_in { uint32_t mode, rdev, umask, padding; };
struct fuse_mkdir_in { uint32_t mode, umask; };
struct fuse_rename_in { uint64_t newdir; };
struct fuse_rename2_in { uint64_t newdir; uint32_t flags, padding; };
struct fuse_link_in { uint64_t oldnodeid; };
struct fuse_setattr_in {
	uint32_t valid, padding;
	uint64_t fh, size, lock_owner, atime, mtime, ctime;
	uint32_t atimensec, mtimensec, ctimensec;
	uint32_t mode, unused4, uid, gid, unused5;
};
struct fuse_open_in { uint32_t flags, open_flags; };
struct fuse_create_in { uint32_t flags, mode, umask, open_flags; };
struct fuse_open_out { uint64_t fh; uint32_t open_flags; int32_t backing_id; };
struct fuse_release_in { uint64_t fh; uint32_t flags, release_flags; uint64_t lock_owner; };
struct fuse_flush_in { uint64_t fh; uint32_t unused, padding; uint64_t lock_owner; };
struct fuse_read_in {
	uint64_t fh, offset;
	uint32_t size, read_flags;
	uint64_t lock_owner;
	uint32_t flags, padding;
};
struct fuse_write_in {
	uint64_t fh, offset;
	uint32_t size, write_flags;
	uint64_t lock_owner;
	uint32_t flags, padding;
};
struct fuse_write_out { uint32_t size, padding; };
struct fuse_fsync_in { uint64_t fh; uint32_t fsync_flags, padding; };
struct fuse_setxattr_in { uint32_t size, flags, setxattr_flags, padding; };
struct fuse_getxattr_in { uint32_t size, padding; };
struct fuse_lk_in { uint64_t fh, owner; struct fuse_file_lock lk; uint32_t lk_flags, padding; };
struct fuse_access_in { uint32_t mask, padding; };
struct fuse_interrupt_in { uint64_t unique; };
struct fuse_ioctl_in { uint64_t fh; uint32_t flags, cmd; uint64_t arg; uint32_t in_size, out_size; };
struct fuse_ioctl_out { int32_t result; uint32_t flags, in_iovs, out_iovs; };
struct fuse_fallocate_in { uint64_t fh, offset, length; uint32_t mode, padding; };
struct fuse_lseek_in { uint64_t fh, offset; uint32_t whence, padding; };
struct fuse_lseek_out { uint64_t offset; };
struct fuse_copy_file_range_in { uint64_t fh_in, off_in, nodeid_out, fh_out, off_out, len, flags; };
struct fuse_copy_file_range_out { uint64_t bytes_copied; };
struct fuse_syncfs_in { uint64_t padding; };
struct fuse_ext_header { uint32_t size, type; };

struct fuse_dirent {
	uint64_t ino, off;
	uint32_t namelen, type;
	char name[];
};

struct fuse_init_in {
	uint32_t major, minor, max_readahead, flags, flags2, unused[11];
};

struct fuse_init_out {
	uint32_t major, minor, max_readahead, flags;
	uint16_t max_background, congestion_threshold;
	uint32_t max_write, time_gran;
	uint16_t max_pages, map_alignment;
	uint32_t flags2, max_stack_depth;
	uint16_t request_timeout, unused[11];
};

/* What is written without having been asked for: its code is fuse_out_header.error, unique is 0. See _notify.pyx. */
enum fuse_notify_code {
	FUSE_NOTIFY_POLL = 1,
	FUSE_NOTIFY_INVAL_INODE = 2,
	FUSE_NOTIFY_INVAL_ENTRY = 3,
	FUSE_NOTIFY_STORE = 4,
	FUSE_NOTIFY_RETRIEVE = 5,
	FUSE_NOTIFY_DELETE = 6,
	FUSE_NOTIFY_RESEND = 7,    /* 7.40 */
	FUSE_NOTIFY_INC_EPOCH = 8, /* 7.44 */
	FUSE_NOTIFY_PRUNE = 9,     /* 7.45 */
	FUSE_NOTIFY_CODES = 16,    /* size of tables indexed by code */
};

/* fuse_notify_inval_entry_out.flags; 7.38 */
enum { FUSE_EXPIRE_ONLY = 1 << 0 };

/* fuse_in_header.unique of a request that is sent again */
#define FUSE_UNIQUE_RESEND (1ull << 63)

struct fuse_notify_poll_wakeup_out { uint64_t kh; };
struct fuse_notify_inval_inode_out { uint64_t ino; int64_t off, len; };
struct fuse_notify_inval_entry_out { uint64_t parent; uint32_t namelen, flags; }; /* and the name, with its NUL */
struct fuse_notify_delete_out { uint64_t parent, child; uint32_t namelen, padding; }; /* the same */
struct fuse_notify_retrieve_out { uint64_t notify_unique, nodeid, offset; uint32_t size, padding; };
struct fuse_notify_prune_out { uint32_t count, padding; uint64_t spare; }; /* and the nodeids */

struct fuse_backing_map { int32_t fd; uint32_t flags; uint64_t padding; };

#define FUSE_DEV_IOC_CLONE _IOR(229, 0, uint32_t)
#define FUSE_DEV_IOC_BACKING_OPEN _IOW(229, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)
#define FUSE_DEV_IOC_SYNC_INIT _IO(229, 3)

ABI_SIZE(struct fuse_attr, 88);
ABI_SIZE(struct fuse_statx, 256);
ABI_SIZE(struct fuse_kstatfs, 80);
ABI_SIZE(struct fuse_file_lock, 24);
ABI_SIZE(struct fuse_in_header, 40);
ABI_AT(struct fuse_in_header, total_extlen, 36);
ABI_SIZE(struct fuse_out_header, 16);
ABI_SIZE(struct fuse_entry_out, 128);
ABI_SIZE(struct fuse_attr_out, 104);
ABI_SIZE(struct fuse_statx_out, 288);
ABI_SIZE(struct fuse_statx_in, 24);
ABI_SIZE(struct fuse_setattr_in, 88);
ABI_AT(struct fuse_setattr_in, mode, 68);
ABI_SIZE(struct fuse_open_out, 16);
ABI_SIZE(struct fuse_release_in, 24);
ABI_SIZE(struct fuse_flush_in, 24);
ABI_SIZE(struct fuse_read_in, 40);
ABI_SIZE(struct fuse_write_in, 40);
ABI_SIZE(struct fuse_lk_in, 48);
ABI_SIZE(struct fuse_ioctl_in, 32);
ABI_SIZE(struct fuse_ioctl_out, 16);
ABI_SIZE(struct fuse_fallocate_in, 32);
ABI_SIZE(struct fuse_lseek_in, 24);
ABI_SIZE(struct fuse_copy_file_range_in, 56);
ABI_SIZE(struct fuse_dirent, 24);
ABI_SIZE(struct fuse_backing_map, 16);
ABI_SIZE(struct fuse_notify_poll_wakeup_out, 8);
ABI_SIZE(struct fuse_notify_inval_inode_out, 24);
ABI_SIZE(struct fuse_notify_inval_entry_out, 16);
ABI_AT(struct fuse_notify_inval_entry_out, flags, 12);
ABI_SIZE(struct fuse_notify_delete_out, 24);
ABI_AT(struct fuse_notify_delete_out, namelen, 16);
ABI_SIZE(struct fuse_notify_retrieve_out, 32);
ABI_SIZE(struct fuse_notify_prune_out, 16);
ABI_SIZE(struct fuse_init_in, 64);
ABI_SIZE(struct fuse_init_out, 64);
ABI_AT(struct fuse_init_out, flags2, 32);

/* ---------------------------------------------------- FUSE over io_uring */

enum {
	FUSE_IO_URING_CMD_REGISTER = 1,
	FUSE_IO_URING_CMD_COMMIT_AND_FETCH = 2,
	FUSE_IO_URING_CMD_ADD_QUEUE = 3,   /* 7.3 */
	FUSE_IO_URING_CMD_ADD_BUFPOOL = 4, /* 7.3 */
	/* fuse_uring_cmd_req.flags of ADD_QUEUE (7.3) */
	FUSE_URING_ZERO_COPY = 1 << 0,
	/* fuse_uring_cmd_req.flags of REGISTER (buffer rings) */
	FUSE_URING_BUFRING = 1 << 0,
	FUSE_URING_PINNED_HEADERS = 1 << 1,
	FUSE_URING_PINNED_BUFFERS = 1 << 2,
	FUSE_URING_BUFRING_ZERO_COPY = 1 << 3,
	/* fuse_uring_ent_in_out.flags */
	FUSE_URING_ENT_ZERO_COPY = 1 << 0,
};

struct fuse_uring_ent_in_out {
	uint64_t flags, commit_id;
	uint32_t payload_sz;
	uint32_t location; /* bufpool: byte offset; bufring: u16 buf_id; else unused */
	uint64_t reserved;
};

/* A header slot: what one ring entry exchanges with the kernel beside its payload. */
struct fuse_uring_req_header {
	char in_out[128]; /* fuse_in_header, on the way back fuse_out_header */
	char op_in[128];
	struct fuse_uring_ent_in_out ring_ent_in_out;
};

/* The command area of a 128 byte SQE, as in 6.14 to 7.3 ... */
struct fuse_uring_cmd_req {
	uint64_t flags, commit_id;
	uint16_t qid;
	uint8_t padding[6];
	uint64_t uaddr; /* ADD_BUFPOOL; REGISTER with zero-copy: u16 ent_zero_copy_buf_index */
	uint32_t len, reserved;
};

/* ... and with buffer rings. */
struct fuse_uring_bufring_req {
	uint64_t flags, commit_id;
	uint16_t qid, padding;
	uint32_t buf_size;
	uint16_t queue_depth, padding2;
	uint32_t padding3;
};

ABI_SIZE(struct fuse_uring_ent_in_out, 32);
ABI_SIZE(struct fuse_uring_req_header, 288);
ABI_AT(struct fuse_uring_req_header, ring_ent_in_out, 256);
ABI_SIZE(struct fuse_uring_cmd_req, 40);
ABI_AT(struct fuse_uring_cmd_req, qid, 16);
ABI_AT(struct fuse_uring_cmd_req, uaddr, 24);
ABI_AT(struct fuse_uring_bufring_req, buf_size, 20);
ABI_AT(struct fuse_uring_bufring_req, queue_depth, 24);

/* -------------------------------------------------------------- io_uring */

struct io_uring_sqe {
	uint8_t opcode, flags;
	uint16_t ioprio;
	int32_t fd;
	uint64_t off;  /* low 32 bits: cmd_op */
	uint64_t addr;
	uint32_t len, op_flags;
	uint64_t user_data;
	uint16_t buf_index, personality;
	uint32_t file_index;
	uint64_t cmd[10]; /* addr3 and padding; 80 bytes with SQE128 */
};

struct io_uring_cqe {
	uint64_t user_data;
	int32_t res;
	uint32_t flags;
};

struct io_sqring_offsets {
	uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
	uint64_t user_addr;
};

struct io_cqring_offsets {
	uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
	uint64_t user_addr;
};

struct io_uring_params {
	uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle;
	uint32_t features, wq_fd, resv[3];
	struct io_sqring_offsets sq_off;
	struct io_cqring_offsets cq_off;
};

struct io_uring_rsrc_register {
	uint32_t nr, flags;
	uint64_t resv2, data, tags;
};

struct io_uring_rsrc_update2 {
	uint32_t offset, resv;
	uint64_t data, tags;
	uint32_t nr, resv2;
};

enum {
	IORING_OP_NOP = 0,
	IORING_OP_FSYNC = 3,
	IORING_OP_READ_FIXED = 4,
	IORING_OP_WRITE_FIXED = 5,
	IORING_OP_FALLOCATE = 17,
	IORING_OP_READ = 22,
	IORING_OP_WRITE = 23,
	IORING_OP_URING_CMD = 46,
};

enum {
	IORING_FSYNC_DATASYNC = 1 << 0,
	IOSQE_IO_LINK = 1 << 2,
	IOSQE_ASYNC = 1 << 4,
	IOSQE_CQE_SKIP_SUCCESS = 1 << 6,
	IORING_URING_CMD_FIXED = 1 << 0,
	IORING_SETUP_CQSIZE = 1 << 3,
	IORING_SETUP_CLAMP = 1 << 4,
	IORING_SETUP_SUBMIT_ALL = 1 << 7,
	IORING_SETUP_TASKRUN_FLAG = 1 << 9,
	IORING_SETUP_R_DISABLED = 1 << 6,
	IORING_SETUP_NO_MMAP = 1 << 14,
	IORING_SETUP_SQE128 = 1 << 10,
	IORING_SETUP_SINGLE_ISSUER = 1 << 12,
	IORING_SETUP_DEFER_TASKRUN = 1 << 13,
	IORING_FEAT_SINGLE_MMAP = 1 << 0,
	IORING_FEAT_NODROP = 1 << 1,
	IORING_SQ_CQ_OVERFLOW = 1 << 1,
	IORING_SQ_TASKRUN = 1 << 2,
	IORING_ENTER_GETEVENTS = 1 << 0,
	IORING_REGISTER_BUFFERS2 = 15,
	IORING_REGISTER_BUFFERS_UPDATE = 16,
	IORING_REGISTER_PERSONALITY = 9,
	IORING_REGISTER_RESTRICTIONS = 11,
	IORING_REGISTER_ENABLE_RINGS = 12,
	IORING_REGISTER_IOWQ_MAX_WORKERS = 19,
	IORING_RESTRICTION_REGISTER_OP = 0,
	IORING_RESTRICTION_SQE_OP = 1,
	IORING_RESTRICTION_SQE_FLAGS_ALLOWED = 2,
	IORING_RSRC_REGISTER_SPARSE = 1 << 0,
};

#define IORING_OFF_SQ_RING 0
#define IORING_OFF_SQES 0x10000000

ABI_SIZE(struct io_uring_sqe, 128);
ABI_AT(struct io_uring_sqe, user_data, 32);
ABI_AT(struct io_uring_sqe, cmd, 48);
ABI_SIZE(struct io_uring_cqe, 16);
ABI_SIZE(struct io_uring_params, 120);
ABI_AT(struct io_uring_params, cq_off, 80);
ABI_SIZE(struct io_uring_rsrc_register, 32);
ABI_SIZE(struct io_uring_rsrc_update2, 32);

static inline int sys_io_uring_setup(unsigned entries, struct io_uring_params *p)
{
	int r = (int)syscall(CALL_io_uring_setup, entries, p);
	return r < 0 ? -errno : r;
}

static inline int sys_io_uring_enter(int fd, unsigned to_submit, unsigned min_complete,
				     unsigned flags)
{
	int r = (int)syscall(CALL_io_uring_enter, fd, to_submit, min_complete, flags, NULL, 0);
	return r < 0 ? -errno : r;
}

static inline int sys_io_uring_register(int fd, unsigned op, void *arg, unsigned nr)
{
	int r = (int)syscall(CALL_io_uring_register, fd, op, arg, nr);
	return r < 0 ? -errno : r;
}

/* --------------------------------------------- other system calls, -errno */

/* glibc's set*id wrappers change every thread; these change the caller only. */
static inline int sys_setfsuid(uid_t uid) { return (int)syscall(CALL_setfsuid, uid); }
static inline int sys_setfsgid(gid_t gid) { return (int)syscall(CALL_setfsgid, gid); }
static inline int sys_setgroups(size_t n, const gid_t *list)
{
	return syscall(CALL_setgroups, n, list) < 0 ? -errno : 0;
}

/* Drop and raise effective capabilities of the calling thread (bits of 0..31). 0 or -errno. */
static inline int sys_cap_change(uint32_t drop, uint32_t raise)
{
	struct { uint32_t version; int pid; } header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct { uint32_t effective, permitted, inheritable; } data[2];
	if (syscall(CALL_capget, &header, data) < 0)
		return -errno;
	data[0].effective = (data[0].effective & ~drop) | (data[0].permitted & raise);
	return syscall(CALL_capset, &header, data) < 0 ? -errno : 0;
}

static inline int sys_has_cap(uint32_t tid, unsigned cap)
{
	struct { uint32_t version; int pid; } header = { _LINUX_CAPABILITY_VERSION_3, (int)tid };
	struct { uint32_t effective, permitted, inheritable; } data[2];
	return tid && syscall(CALL_capget, &header, data) == 0 && data[0].effective >> cap & 1;
}

/*
 * /proc is this fd, by its name in the working directory (_fdpath.pxd): a confined daemon has no path to it. 0: the
 * daemon itself.
 */
enum { PROC_FD = 99 };

static inline FILE *sys_proc_open(uint32_t tid, const char *name)
{
	char path[48];
	if (tid)
		snprintf(path, sizeof(path), "%d/%u/%s", PROC_FD, tid, name);
	else
		snprintf(path, sizeof(path), "%d/%d/%s", PROC_FD, (int)getpid(), name);
	return fopen(path, "re");
}

/* The first bytes of such a file; how many, or < 0. */
static inline long sys_proc_read(uint32_t tid, const char *name, char *to, size_t size)
{
	char path[48];
	long n;
	int fd;
	snprintf(path, sizeof(path), "%d/%u/%s", PROC_FD, tid ? tid : (uint32_t)getpid(), name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, to, size);
	close(fd);
	return n;
}

/* Have a thread's ids the meaning that they have here? */
static inline int sys_same_map(uint32_t tid, const char *map)
{
	static char ours[2][512];  /* they stay what they are; who reads them first writes them, several the same */
	static long known[2];
	char theirs[512];
	int which = map[0] == 'g';
	long n = __atomic_load_n(&known[which], __ATOMIC_ACQUIRE);
	if (n <= 0) {
		n = sys_proc_read(0, map, theirs, sizeof(theirs));
		if (n <= 0)
			return 0;
		memcpy(ours[which], theirs, n);
		__atomic_store_n(&known[which], n, __ATOMIC_RELEASE);
	}
	return sys_proc_read(tid, map, theirs, sizeof(theirs)) == n && memcmp(ours[which], theirs, n) == 0;
}

/*
 * Is that thread in our own user namespace? One that maps all ids to themselves is not told from it: that would
 * take the right to look into the thread (/proc/PID/ns). Only root makes such.
 */
static inline int sys_same_users(uint32_t tid) { return sys_same_map(tid, "uid_map") && sys_same_map(tid, "gid_map"); }

/* Has that thread a capability (0..31) in our own user namespace? */
static inline int sys_is_capable(uint32_t tid, unsigned cap) { return sys_has_cap(tid, cap) && sys_same_users(tid); }

/* Has the user namespace of a thread, which is not ours, this id? map: uid_map or gid_map. */
static inline int sys_id_known(uint32_t tid, const char *map, uint32_t id)
{
	unsigned long inside, outside, count;
	int known = 0;
	FILE *f = sys_proc_open(tid, map);
	while (f && !known && fscanf(f, "%lu %lu %lu", &inside, &outside, &count) == 3)
		known = id - outside < count && id >= outside;
	if (f)
		fclose(f);
	return known;
}

/* Has that thread a capability over what belongs to these ids: here, or in a user namespace that has both? */
static inline int sys_is_capable_over(uint32_t tid, unsigned cap, uint32_t uid, uint32_t gid)
{
	return sys_has_cap(tid, cap) &&
		(sys_same_users(tid) || (sys_id_known(tid, "uid_map", uid) && sys_id_known(tid, "gid_map", gid)));
}

/* /proc/TID/status, to be read on from its first supplementary group; NULL: it cannot be found out. */
static inline FILE *sys_groups_open(uint32_t tid)
{
	char word[32];
	int c = 0;
	FILE *f = tid ? sys_proc_open(tid, "status") : NULL;
	if (!f)
		return NULL;
	/* The line's first word counts only: a process may have any name, and that stands in a line before. */
	while (c != EOF && fscanf(f, "%31s", word) == 1 && strcmp(word, "Groups:") != 0)
		while ((c = fgetc(f)) != EOF && c != '\n')
			;
	if (!feof(f) && c != EOF)
		return f;
	fclose(f);
	return NULL;
}

/* Is a group among the supplementary ones of that thread? 0 also if that cannot be found out. */
static inline int sys_in_group(uint32_t tid, uint32_t gid)
{
	unsigned group;
	int in = 0;
	FILE *f = sys_groups_open(tid);
	while (f && !in && fscanf(f, "%u", &group) == 1)
		in = group == gid;
	if (f)
		fclose(f);
	return in;
}

/* The first `most` supplementary groups of that thread; how many they are. */
static inline unsigned sys_groups_of(uint32_t tid, gid_t *list, unsigned most)
{
	unsigned n = 0, group;
	FILE *f = sys_groups_open(tid);
	while (f && n < most && fscanf(f, "%u", &group) == 1)
		list[n++] = group;
	if (f)
		fclose(f);
	return n;
}

/* With CAP_SYS_RESOURCE, writes for others would pass by their quotas. */
static inline int sys_cap_drop_resource(void) { return sys_cap_change(1u << CAP_SYS_RESOURCE, 0); }

/* Without CAP_FSETID suid and sgid go with a write. */
static inline int sys_cap_fsetid(int raise) { return sys_cap_change(raise ? 0 : 1u << CAP_FSETID, raise ? 1u << CAP_FSETID : 0); }

/* What setfsuid(2) took. */
static inline int sys_cap_override(void) { return sys_cap_change(0, 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH); }

static inline int sys_gettid(void) { return (int)syscall(CALL_gettid); }

static inline long sys_getdents64(int fd, void *buf, size_t len)
{
	long r = syscall(CALL_getdents64, fd, buf, len);
	return r < 0 ? -errno : r;
}

static inline int sys_fchmodat2(int fd, const char *path, mode_t mode, int flags)
{
	return syscall(CALL_fchmodat2, fd, path, mode, flags) < 0 ? -errno : 0;
}

static inline int sys_faccessat2(int fd, const char *path, int mode, int flags)
{
	return syscall(CALL_faccessat2, fd, path, mode, flags) < 0 ? -errno : 0;
}

static inline int sys_renameat2(int fd, const char *a, int fd2, const char *b, unsigned flags)
{
	return syscall(CALL_renameat2, fd, a, fd2, b, flags) < 0 ? -errno : 0;
}

/* openat(2) of a name that must not lead into another mount: -EXDEV. */
static inline int sys_openat_here(int fd, const char *name, int flags)
{
	struct open_how how = { .flags = (uint64_t)flags, .resolve = RESOLVE_NO_XDEV };
	int r = (int)syscall(CALL_openat2, fd, name, &how, sizeof(how));
	return r < 0 ? -errno : r;
}

static inline int sys_close_range(unsigned first, unsigned last, unsigned flags)
{
	return syscall(CALL_close_range, first, last, flags) < 0 ? -errno : 0;
}

static inline int sys_tgkill(int tid, int sig)
{
	return syscall(CALL_tgkill, getpid(), tid, sig) < 0 ? -errno : 0;
}

/* A file handle with room for every filesystem's (name_to_handle_at(2)). */
struct file_handle_max {
	uint32_t handle_bytes;
	int32_t handle_type;
	unsigned char f_handle[128];
};

/* The handle of the object that `fd` refers to. */
static inline int sys_name_to_handle_at(int fd, struct file_handle_max *fh)
{
	int mount_id;
	fh->handle_bytes = sizeof(fh->f_handle);
	return syscall(CALL_name_to_handle_at, fd, "", fh, &mount_id, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

static inline int sys_open_by_handle_at(int mount_fd, struct file_handle_max *fh, int flags)
{
	int r = (int)syscall(CALL_open_by_handle_at, mount_fd, fh, flags);
	return r < 0 ? -errno : r;
}

/* ------------------------------------------------------- mount API, -errno */

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#ifndef OPEN_TREE_CLONE /* <sys/mount.h> from glibc 2.36 on has these, too */
#define OPEN_TREE_CLONE 1
#define FSOPEN_CLOEXEC 1
#define FSMOUNT_CLOEXEC 1
#define MOVE_MOUNT_F_EMPTY_PATH 0x4
#define MOVE_MOUNT_T_EMPTY_PATH 0x40
enum { FSCONFIG_SET_FLAG = 0, FSCONFIG_SET_STRING = 1, FSCONFIG_CMD_CREATE = 6 };
#endif

struct mount_setattr_args { uint64_t attr_set, attr_clr, propagation, userns_fd; };
ABI_SIZE(struct mount_setattr_args, 32);

/*
 * A copy of the mount that `fd` lies on, with these MOUNT_ATTR_ bits cleared and set; `recursive`: with
 * what is mounted below; `private`: not with what will be. An O_PATH fd, which the copy lives as long as.
 */
static inline int sys_clone_mount(int fd, unsigned clear, unsigned set, int recursive, int private)
{
	struct mount_setattr_args a = {
		.attr_clr = clear, .attr_set = set, .propagation = private ? MS_PRIVATE : 0 };
	unsigned flags = AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0);
	int r = (int)syscall(CALL_open_tree, fd, "", flags | OPEN_TREE_CLONE | O_CLOEXEC);
	if (r >= 0 && syscall(CALL_mount_setattr, r, "", flags, &a, sizeof(a)) < 0) {
		int e = errno;
		close(r);
		return -e;
	}
	return r < 0 ? -errno : r;
}

/*
 * A private copy of the mount that the directory `fd` lies on, which begins there, without what is mounted
 * below (open_tree(2)): an O_PATH fd, which the copy lives as long as.
 */
static inline int sys_clone_bare(int fd)
{
	int r = (int)syscall(CALL_open_tree, fd, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | O_CLOEXEC);
	return r < 0 ? -errno : r;
}

/* Set and clear MOUNT_ATTR_ bits of the mount that begins at `fd`. */
static inline int sys_mount_change(int fd, unsigned set, unsigned clear)
{
	struct mount_setattr_args a = { .attr_set = set, .attr_clr = clear };
	return syscall(CALL_mount_setattr, fd, "", AT_EMPTY_PATH, &a, sizeof(a)) < 0 ? -errno : 0;
}

/* A private copy of the mount that begins at the directory `path`: open_tree(2), OPEN_TREE_CLONE. */
static inline int sys_open_tree(const char *path)
{
	int r = (int)syscall(CALL_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | O_CLOEXEC);
	return r < 0 ? -errno : r;
}

static inline int sys_fsopen(const char *fs, unsigned flags)
{
	int r = (int)syscall(CALL_fsopen, fs, flags);
	return r < 0 ? -errno : r;
}

static inline int sys_fsconfig(int fd, unsigned cmd, const char *key, const char *value, int aux)
{
	return syscall(CALL_fsconfig, fd, cmd, key, value, aux) < 0 ? -errno : 0;
}

static inline int sys_fsmount(int fd, unsigned flags, unsigned attr)
{
	int r = (int)syscall(CALL_fsmount, fd, flags, attr);
	return r < 0 ? -errno : r;
}

static inline int sys_move_mount(int fd, const char *a, int fd2, const char *b, unsigned flags)
{
	return syscall(CALL_move_mount, fd, a, fd2, b, flags) < 0 ? -errno : 0;
}

/* ------------------------------------------------------------------ cpu */

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield" ::: "memory");
#endif
}

/* Memory is asked for, and given to the kernel, in whole pages of the smallest size that there is. */
enum { PAGE = 4096 };

static inline uint64_t page_down(uint64_t n) { return n & ~(uint64_t)(PAGE - 1); }
static inline uint64_t page_up(uint64_t n) { return page_down(n + PAGE - 1); }

/* How many of the highest bits are 0; v is not. */
static inline int leading_zeros(uint64_t v) { return __builtin_clzll(v); }

static inline uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --------------------------------------------------- atomics and spinlock */

static inline void atomic_fence(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static inline uint32_t atomic_add32(uint32_t *p, uint32_t n) { return __atomic_fetch_add(p, n, __ATOMIC_ACQ_REL); }
static inline uint32_t atomic_sub32(uint32_t *p, uint32_t n) { return __atomic_fetch_sub(p, n, __ATOMIC_ACQ_REL); }
static inline uint32_t atomic_get32(uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void atomic_set32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint32_t atomic_swap32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
static inline int atomic_cas32(uint32_t *p, uint32_t old, uint32_t v)
{
	return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline int32_t atomic_geti(int32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void atomic_seti(int32_t *p, int32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline int atomic_casi(int32_t *p, int32_t old, int32_t v)
{
	return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline void *atomic_getp(void **p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void atomic_setp(void **p, void *v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void *atomic_swapp(void **p, void *v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
static inline int atomic_casp(void **p, void *old, void *v)
{
	return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/*
 * For critical sections of a few dozen instructions without a system call. A
 * holder may be preempted, and pinned threads share CPUs with their clients,
 * so waiting yields.
 */
static inline void spin_lock(uint32_t *lock)
{
	while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE)) {
		for (int i = 0; __atomic_load_n(lock, __ATOMIC_RELAXED); i++) {
			if (i < 100)
				cpu_relax();
			else
				sched_yield();
		}
	}
}
static inline void spin_unlock(uint32_t *lock) { __atomic_store_n(lock, 0, __ATOMIC_RELEASE); }

#ifdef PASSTHRU_DEBUG
#define DEBUG_BUILD 1
#define ASSERT(cond) \
	do { \
		if (!(cond)) { \
			fprintf(stderr, "passthru: assertion failed: %s (%s:%d)\n", #cond, __FILE__, __LINE__); \
			abort(); \
		} \
	} while (0)
#else
#define DEBUG_BUILD 0
#define ASSERT(cond) ((void)0)
#endif

#endif
