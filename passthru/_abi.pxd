# Cython's view of abi.h. Layouts are asserted there; here are only names.
from libc.stdint cimport (int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t)

ctypedef unsigned int mode_t
ctypedef unsigned int uid_t
ctypedef unsigned int gid_t

cdef extern from "abi.h" nogil:
    enum:
        FUSE_ROOT_ID
    enum:
        FUSE_LOOKUP
        FUSE_FORGET
        FUSE_GETATTR
        FUSE_SETATTR
        FUSE_READLINK
        FUSE_SYMLINK
        FUSE_MKNOD
        FUSE_MKDIR
        FUSE_UNLINK
        FUSE_RMDIR
        FUSE_RENAME
        FUSE_LINK
        FUSE_OPEN
        FUSE_READ
        FUSE_WRITE
        FUSE_STATFS
        FUSE_RELEASE
        FUSE_FSYNC
        FUSE_SETXATTR
        FUSE_GETXATTR
        FUSE_LISTXATTR
        FUSE_REMOVEXATTR
        FUSE_FLUSH
        FUSE_INIT
        FUSE_OPENDIR
        FUSE_READDIR
        FUSE_RELEASEDIR
        FUSE_FSYNCDIR
        FUSE_GETLK
        FUSE_SETLK
        FUSE_SETLKW
        FUSE_ACCESS
        FUSE_CREATE
        FUSE_INTERRUPT
        FUSE_BMAP
        FUSE_DESTROY
        FUSE_IOCTL
        FUSE_POLL
        FUSE_NOTIFY_REPLY
        FUSE_BATCH_FORGET
        FUSE_FALLOCATE
        FUSE_READDIRPLUS
        FUSE_RENAME2
        FUSE_LSEEK
        FUSE_COPY_FILE_RANGE
        FUSE_SETUPMAPPING
        FUSE_REMOVEMAPPING
        FUSE_SYNCFS
        FUSE_TMPFILE
        FUSE_STATX
        FUSE_COPY_FILE_RANGE_64
        FUSE_OPCODES
    enum:
        FUSE_NOTIFY_POLL
        FUSE_NOTIFY_INVAL_INODE
        FUSE_NOTIFY_INVAL_ENTRY
        FUSE_NOTIFY_STORE
        FUSE_NOTIFY_RETRIEVE
        FUSE_NOTIFY_DELETE
        FUSE_NOTIFY_RESEND
        FUSE_NOTIFY_INC_EPOCH
        FUSE_NOTIFY_PRUNE
        FUSE_NOTIFY_CODES
        FUSE_EXPIRE_ONLY
    enum:
        FATTR_MODE
        FATTR_UID
        FATTR_GID
        FATTR_SIZE
        FATTR_ATIME
        FATTR_MTIME
        FATTR_FH
        FATTR_ATIME_NOW
        FATTR_MTIME_NOW
        FATTR_LOCKOWNER
        FATTR_CTIME
        FATTR_KILL_SUIDGID
    enum:
        FOPEN_DIRECT_IO
        FOPEN_KEEP_CACHE
        FOPEN_NONSEEKABLE
        FOPEN_CACHE_DIR
        FOPEN_STREAM
        FOPEN_NOFLUSH
        FOPEN_PARALLEL_DIRECT_WRITES
        FOPEN_PASSTHROUGH
        FOPEN_IO_URING_ZERO_COPY
    enum:
        FUSE_RELEASE_FLUSH
        FUSE_RELEASE_FLOCK_UNLOCK
        FUSE_GETATTR_FH
        FUSE_LK_FLOCK
        FUSE_WRITE_CACHE
        FUSE_WRITE_LOCKOWNER
        FUSE_WRITE_KILL_SUIDGID
        FUSE_FSYNC_FDATASYNC
        FUSE_OPEN_KILL_SUIDGID
        FUSE_SETXATTR_ACL_KILL_SGID
        FUSE_ATTR_SUBMOUNT
        FUSE_IOCTL_COMPAT
        FUSE_IOCTL_DIR
        FUSE_EXT_GROUPS
    enum:
        FUSE_IO_URING_CMD_REGISTER
        FUSE_IO_URING_CMD_COMMIT_AND_FETCH
        FUSE_IO_URING_CMD_ADD_QUEUE
        FUSE_IO_URING_CMD_ADD_BUFPOOL
        FUSE_URING_ZERO_COPY
        FUSE_URING_BUFRING
        FUSE_URING_PINNED_HEADERS
        FUSE_URING_PINNED_BUFFERS
        FUSE_URING_BUFRING_ZERO_COPY
        FUSE_URING_ENT_ZERO_COPY
    enum:
        IORING_OP_NOP
        IORING_OP_FSYNC
        IORING_OP_READ_FIXED
        IORING_OP_WRITE_FIXED
        IORING_OP_FALLOCATE
        IORING_OP_READ
        IORING_OP_WRITE
        IORING_OP_URING_CMD
    enum:
        IORING_FSYNC_DATASYNC
        IOSQE_IO_LINK
        IOSQE_ASYNC
        IOSQE_CQE_SKIP_SUCCESS
        IORING_URING_CMD_FIXED
        IORING_SETUP_CQSIZE
        IORING_SETUP_CLAMP
        IORING_SETUP_SUBMIT_ALL
        IORING_SETUP_TASKRUN_FLAG
        IORING_SETUP_SQE128
        IORING_SETUP_SINGLE_ISSUER
        IORING_SETUP_DEFER_TASKRUN
        IORING_FEAT_SINGLE_MMAP
        IORING_FEAT_NODROP
        IORING_SQ_CQ_OVERFLOW
        IORING_SQ_TASKRUN
        IORING_ENTER_GETEVENTS
        IORING_REGISTER_BUFFERS2
        IORING_REGISTER_BUFFERS_UPDATE
        IORING_REGISTER_PERSONALITY
        IORING_REGISTER_IOWQ_MAX_WORKERS
        IORING_REGISTER_RESTRICTIONS
        IORING_REGISTER_ENABLE_RINGS
        IORING_RESTRICTION_REGISTER_OP
        IORING_RESTRICTION_SQE_OP
        IORING_RESTRICTION_SQE_FLAGS_ALLOWED
        IORING_SETUP_R_DISABLED
        IORING_SETUP_NO_MMAP
        IORING_RSRC_REGISTER_SPARSE
    enum:
        CAP_CHOWN
        CAP_DAC_OVERRIDE
        CAP_FOWNER
        CAP_LINUX_IMMUTABLE
        CAP_SETFCAP
        CAP_FSETID
        CAP_SYS_ADMIN
    enum:
        OPEN_TREE_CLONE
        FSOPEN_CLOEXEC
        FSCONFIG_SET_FLAG
        FSCONFIG_SET_STRING
        FSCONFIG_CMD_CREATE
        FSMOUNT_CLOEXEC
        MOVE_MOUNT_F_EMPTY_PATH
        MOVE_MOUNT_T_EMPTY_PATH
    enum:
        IORING_OFF_SQ_RING
        IORING_OFF_SQES
        DEBUG_BUILD
    const unsigned long FUSE_DEV_IOC_CLONE
    const unsigned long FUSE_DEV_IOC_BACKING_OPEN
    const unsigned long FUSE_DEV_IOC_BACKING_CLOSE
    const unsigned long FUSE_DEV_IOC_SYNC_INIT
    const uint64_t FUSE_SECURITY_CTX
    const uint64_t FUSE_DIRECT_IO_ALLOW_MMAP
    const uint64_t FUSE_UNIQUE_RESEND
    struct fuse_attr:
        uint64_t ino
        uint64_t size
        uint64_t blocks
        uint64_t atime
        uint64_t mtime
        uint64_t ctime
        uint32_t atimensec
        uint32_t mtimensec
        uint32_t ctimensec
        uint32_t mode
        uint32_t nlink
        uint32_t uid
        uint32_t gid
        uint32_t rdev
        uint32_t blksize
        uint32_t flags
    struct fuse_sx_time:
        int64_t tv_sec
        uint32_t tv_nsec
        int32_t reserved
    struct fuse_statx:
        uint32_t mask
        uint32_t blksize
        uint64_t attributes
        uint32_t nlink
        uint32_t uid
        uint32_t gid
        uint16_t mode
        uint16_t spare0
        uint64_t ino
        uint64_t size
        uint64_t blocks
        uint64_t attributes_mask
        fuse_sx_time atime
        fuse_sx_time btime
        fuse_sx_time ctime
        fuse_sx_time mtime
        uint32_t rdev_major
        uint32_t rdev_minor
        uint32_t dev_major
        uint32_t dev_minor
        uint64_t spare2[14]
    struct fuse_kstatfs:
        uint64_t blocks
        uint64_t bfree
        uint64_t bavail
        uint64_t files
        uint64_t ffree
        uint32_t bsize
        uint32_t namelen
        uint32_t frsize
        uint32_t padding
        uint32_t spare[6]
    struct fuse_file_lock:
        uint64_t start
        uint64_t end
        uint32_t type
        uint32_t pid
    struct fuse_in_header:
        uint32_t len
        uint32_t opcode
        uint64_t unique
        uint64_t nodeid
        uint32_t uid
        uint32_t gid
        uint32_t pid
        uint16_t total_extlen
        uint16_t padding
    struct fuse_out_header:
        uint32_t len
        int32_t error
        uint64_t unique
    struct fuse_entry_out:
        uint64_t nodeid
        uint64_t generation
        uint64_t entry_valid
        uint64_t attr_valid
        uint32_t entry_valid_nsec
        uint32_t attr_valid_nsec
        fuse_attr attr
    struct fuse_attr_out:
        uint64_t attr_valid
        uint32_t attr_valid_nsec
        uint32_t dummy
        fuse_attr attr
    struct fuse_statx_out:
        uint64_t attr_valid
        uint32_t attr_valid_nsec
        uint32_t flags
        uint64_t spare[2]
        fuse_statx stat
    struct fuse_forget_in:
        uint64_t nlookup
    struct fuse_forget_one:
        uint64_t nodeid
        uint64_t nlookup
    struct fuse_batch_forget_in:
        uint32_t count
        uint32_t dummy
    struct fuse_getattr_in:
        uint32_t getattr_flags
        uint32_t dummy
        uint64_t fh
    struct fuse_statx_in:
        uint32_t getattr_flags
        uint32_t reserved
        uint64_t fh
        uint32_t sx_flags
        uint32_t sx_mask
    struct fuse_mknod_in:
        uint32_t mode
        uint32_t rdev
        uint32_t umask
        uint32_t padding
    struct fuse_mkdir_in:
        uint32_t mode
        uint32_t umask
    struct fuse_rename_in:
        uint64_t newdir
    struct fuse_rename2_in:
        uint64_t newdir
        uint32_t flags
        uint32_t padding
    struct fuse_link_in:
        uint64_t oldnodeid
    struct fuse_setattr_in:
        uint32_t valid
        uint32_t padding
        uint64_t fh
        uint64_t size
        uint64_t lock_owner
        uint64_t atime
        uint64_t mtime
        uint64_t ctime
        uint32_t atimensec
        uint32_t mtimensec
        uint32_t ctimensec
        uint32_t mode
        uint32_t unused4
        uint32_t uid
        uint32_t gid
        uint32_t unused5
    struct fuse_open_in:
        uint32_t flags
        uint32_t open_flags
    struct fuse_create_in:
        uint32_t flags
        uint32_t mode
        uint32_t umask
        uint32_t open_flags
    struct fuse_open_out:
        uint64_t fh
        uint32_t open_flags
        int32_t backing_id
    struct fuse_release_in:
        uint64_t fh
        uint32_t flags
        uint32_t release_flags
        uint64_t lock_owner
    struct fuse_flush_in:
        uint64_t fh
        uint32_t unused
        uint32_t padding
        uint64_t lock_owner
    struct fuse_read_in:
        uint64_t fh
        uint64_t offset
        uint32_t size
        uint32_t read_flags
        uint64_t lock_owner
        uint32_t flags
        uint32_t padding
    struct fuse_write_in:
        uint64_t fh
        uint64_t offset
        uint32_t size
        uint32_t write_flags
        uint64_t lock_owner
        uint32_t flags
        uint32_t padding
    struct fuse_write_out:
        uint32_t size
        uint32_t padding
    struct fuse_fsync_in:
        uint64_t fh
        uint32_t fsync_flags
        uint32_t padding
    struct fuse_setxattr_in:
        uint32_t size
        uint32_t flags
        uint32_t setxattr_flags
        uint32_t padding
    struct fuse_getxattr_in:
        uint32_t size
        uint32_t padding
    struct fuse_lk_in:
        uint64_t fh
        uint64_t owner
        fuse_file_lock lk
        uint32_t lk_flags
        uint32_t padding
    struct fuse_access_in:
        uint32_t mask
        uint32_t padding
    struct fuse_interrupt_in:
        uint64_t unique
    struct fuse_ioctl_in:
        uint64_t fh
        uint32_t flags
        uint32_t cmd
        uint64_t arg
        uint32_t in_size
        uint32_t out_size
    struct fuse_ioctl_out:
        int32_t result
        uint32_t flags
        uint32_t in_iovs
        uint32_t out_iovs
    struct fuse_fallocate_in:
        uint64_t fh
        uint64_t offset
        uint64_t length
        uint32_t mode
        uint32_t padding
    struct fuse_lseek_in:
        uint64_t fh
        uint64_t offset
        uint32_t whence
        uint32_t padding
    struct fuse_lseek_out:
        uint64_t offset
    struct fuse_copy_file_range_in:
        uint64_t fh_in
        uint64_t off_in
        uint64_t nodeid_out
        uint64_t fh_out
        uint64_t off_out
        uint64_t len
        uint64_t flags
    struct fuse_copy_file_range_out:
        uint64_t bytes_copied
    struct fuse_syncfs_in:
        uint64_t padding
    struct fuse_ext_header:
        uint32_t size
        uint32_t type
    struct fuse_dirent:
        uint64_t ino
        uint64_t off
        uint32_t namelen
        uint32_t type
        char name[0]
    struct fuse_notify_poll_wakeup_out:
        uint64_t kh
    struct fuse_notify_inval_inode_out:
        uint64_t ino
        int64_t off
        int64_t len
    struct fuse_notify_inval_entry_out:
        uint64_t parent
        uint32_t namelen
        uint32_t flags
    struct fuse_notify_delete_out:
        uint64_t parent
        uint64_t child
        uint32_t namelen
        uint32_t padding
    struct fuse_notify_retrieve_out:
        uint64_t notify_unique
        uint64_t nodeid
        uint64_t offset
        uint32_t size
        uint32_t padding
    struct fuse_notify_prune_out:
        uint32_t count
        uint32_t padding
        uint64_t spare
    struct fuse_backing_map:
        int32_t fd
        uint32_t flags
        uint64_t padding
    struct fuse_init_in:
        uint32_t major
        uint32_t minor
        uint32_t max_readahead
        uint32_t flags
        uint32_t flags2
        uint32_t unused[11]
    struct fuse_init_out:
        uint32_t major
        uint32_t minor
        uint32_t max_readahead
        uint32_t flags
        uint16_t max_background
        uint16_t congestion_threshold
        uint32_t max_write
        uint32_t time_gran
        uint16_t max_pages
        uint16_t map_alignment
        uint32_t flags2
        uint32_t max_stack_depth
        uint16_t request_timeout
        uint16_t unused[11]
    struct fuse_uring_ent_in_out:
        uint64_t flags
        uint64_t commit_id
        uint32_t payload_sz
        uint32_t location
        uint64_t reserved
    struct fuse_uring_req_header:
        char in_out[128]
        char op_in[128]
        fuse_uring_ent_in_out ring_ent_in_out
    struct fuse_uring_cmd_req:
        uint64_t flags
        uint64_t commit_id
        uint16_t qid
        uint64_t uaddr
        uint32_t len
        uint32_t reserved
    struct fuse_uring_bufring_req:
        uint64_t flags
        uint64_t commit_id
        uint16_t qid
        uint32_t buf_size
        uint16_t queue_depth
    struct io_uring_sqe:
        uint8_t opcode
        uint8_t flags
        uint16_t ioprio
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint32_t op_flags
        uint64_t user_data
        uint16_t buf_index
        uint16_t personality
        uint32_t file_index
        uint64_t cmd[10]
    struct io_uring_cqe:
        uint64_t user_data
        int32_t res
        uint32_t flags
    struct io_sqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t ring_entries
        uint32_t flags
        uint32_t dropped
        uint32_t array
        uint32_t resv1
        uint64_t user_addr
    struct io_cqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t ring_entries
        uint32_t overflow
        uint32_t cqes
        uint32_t flags
        uint32_t resv1
        uint64_t user_addr
    struct io_uring_params:
        uint32_t sq_entries
        uint32_t cq_entries
        uint32_t flags
        uint32_t sq_thread_cpu
        uint32_t sq_thread_idle
        uint32_t features
        uint32_t wq_fd
        uint32_t resv[3]
        io_sqring_offsets sq_off
        io_cqring_offsets cq_off
    struct io_uring_rsrc_register:
        uint32_t nr
        uint32_t flags
        uint64_t resv2
        uint64_t data
        uint64_t tags
    struct io_uring_rsrc_update2:
        uint32_t offset
        uint32_t resv
        uint64_t data
        uint64_t tags
        uint32_t nr
        uint32_t resv2
    struct file_handle_max:
        uint32_t handle_bytes
        int32_t handle_type
        unsigned char f_handle[128]
    int sys_io_uring_setup(unsigned entries, io_uring_params *p)
    int sys_io_uring_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags)
    int sys_io_uring_register(int fd, unsigned op, void *arg, unsigned nr)
    int sys_setfsuid(uid_t uid)
    int sys_setfsgid(gid_t gid)
    int sys_setgroups(size_t n, const gid_t *list)
    int sys_cap_fsetid(int up)
    enum:
        PROC_FD
        PAGE
    bint sys_is_capable(uint32_t tid, unsigned cap)
    bint sys_is_capable_over(uint32_t tid, unsigned cap, uint32_t uid, uint32_t gid)
    bint sys_in_group(uint32_t tid, uint32_t gid)
    unsigned sys_groups_of(uint32_t tid, gid_t *list, unsigned most)
    int sys_cap_drop_resource()
    int sys_cap_override()
    int sys_cap_change(uint32_t drop, uint32_t up)
    int sys_gettid()
    long sys_getdents64(int fd, void *buf, size_t len)
    int sys_fchmodat2(int fd, const char *path, mode_t mode, int flags)
    int sys_faccessat2(int fd, const char *path, int mode, int flags)
    int sys_renameat2(int fd, const char *a, int fd2, const char *b, unsigned flags)
    int sys_openat_here(int fd, const char *name, int flags)
    int sys_tgkill(int tid, int sig)
    int sys_close_range(unsigned first, unsigned last, unsigned flags)
    enum:
        CLOSE_RANGE_UNSHARE
    int sys_name_to_handle_at(int fd, file_handle_max *fh)
    int sys_open_by_handle_at(int mount_fd, file_handle_max *fh, int flags)
    int sys_clone_bare(int fd)
    int sys_clone_mount(int fd, unsigned clear, unsigned set, int recursive, int private)
    int sys_mount_change(int fd, unsigned set, unsigned clear)
    int sys_open_tree(const char *path)
    int sys_fsopen(const char *fs, unsigned flags)
    int sys_fsconfig(int fd, unsigned cmd, const char *key, const char *value, int aux)
    int sys_fsmount(int fd, unsigned flags, unsigned attr)
    int sys_move_mount(int fd, const char *a, int fd2, const char *b, unsigned flags)
    uint64_t page_down(uint64_t n)
    uint64_t page_up(uint64_t n)
    int leading_zeros(uint64_t v)
    uint64_t now_ns()
    void atomic_fence()
    uint32_t atomic_add32(uint32_t *p, uint32_t n)
    uint32_t atomic_sub32(uint32_t *p, uint32_t n)
    uint32_t atomic_get32(uint32_t *p)
    void atomic_set32(uint32_t *p, uint32_t v)
    uint32_t atomic_swap32(uint32_t *p, uint32_t v)
    int atomic_cas32(uint32_t *p, uint32_t old, uint32_t v)
    int32_t atomic_geti(int32_t *p)
    void atomic_seti(int32_t *p, int32_t v)
    int atomic_casi(int32_t *p, int32_t old, int32_t v)
    void * atomic_getp(void **p)
    void atomic_setp(void **p, void *v)
    void * atomic_swapp(void **p, void *v)
    int atomic_casp(void **p, void *old, void *v)
    void spin_lock(uint32_t *lock)
    void spin_unlock(uint32_t *lock)
    void ASSERT(bint cond)
