"""The filter of system calls, run by an interpreter of the BPF that seccomp(2) has."""
import errno
import signal
import struct

import pytest

from passthru import _confine, seccomp
from passthru.seccomp import ALLOW, ERRNO, KILL_PROCESS, TRAP

PID = 4711
ARCH = seccomp.AUDIT_ARCH_X86_64
RULES = seccomp.rules(PID)
PROGRAM = seccomp.program(ARCH, _confine.CALLS, RULES)
FORBIDDEN = (
    "execve execveat ptrace process_vm_readv process_vm_writev mount umount2 move_mount fsopen fsmount fsconfig"
    " mount_setattr setns pivot_root chroot bpf kexec_load init_module finit_module delete_module socket socketpair"
    " connect bind listen pidfd_open pidfd_getfd perf_event_open userfaultfd io_uring_setup keyctl add_key swapon"
    " reboot settimeofday clock_settime setuid setresuid personality seccomp quotactl chdir fchdir fork"
    " vfork iopl ioperm fanotify_init").split()


def verdict(name: str | int, *arguments: int, arch: int = ARCH, program: bytes = PROGRAM) -> int:
    """What becomes of a call."""
    number = name if isinstance(name, int) else _confine.CALLS[name]
    data = struct.pack("=iIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    at, a = 0, 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == seccomp.LOAD:
            (a,) = struct.unpack_from("=I", data, k)
        elif op == seccomp.AND:
            a &= k
        elif op == seccomp.JEQ:
            at += yes if a == k else no
        elif op == seccomp.JGE:
            at += yes if a >= k else no
        elif op == seccomp.RET:
            return k
        else:
            raise AssertionError(f"opcode {op:#x}")


def test_every_call_without_condition_is_allowed_and_no_other():
    free = {_confine.CALLS[name] for name, rule in RULES.items() if not rule.when and name in _confine.CALLS}
    bound = {_confine.CALLS[name] for name, rule in RULES.items() if rule.when and name in _confine.CALLS}
    for number in range(1000):
        if number in free:
            assert verdict(number, 1, 2, 3) == ALLOW
        elif number not in bound:
            assert verdict(number) == TRAP


def test_names_are_known():
    """What this architecture lacks is of another one."""
    old = "open stat lstat access readlink dup2 poll select epoll_wait time getrlimit".split()
    assert [name for name in RULES if name not in _confine.CALLS and name not in old] == []


@pytest.mark.parametrize("name", [n for n in FORBIDDEN if n in _confine.CALLS])
def test_forbidden(name):
    assert verdict(name, 1, 1, 1) == TRAP


def test_other_architectures_end_it():
    assert verdict("read", arch=0x40000003) == KILL_PROCESS
    assert verdict(seccomp.X32 | 1) == KILL_PROCESS


@pytest.mark.parametrize(("name", "arguments", "wanted"), [
    ("mmap", (0, 4096, 3), ALLOW), ("mmap", (0, 4096, 7), TRAP),
    ("mprotect", (0, 4096, 1), ALLOW), ("mprotect", (0, 4096, 5), TRAP),
    ("kill", (PID, 15), ALLOW), ("kill", (1, 15), TRAP), ("kill", (0xFFFFFFFFFFFFFFFF, 9), TRAP),
    ("tgkill", (PID, 99, 10), ALLOW), ("tgkill", (1, 1, 9), TRAP),
    ("unshare", (0x200,), ALLOW), ("unshare", (0x20200,), TRAP), ("unshare", (0x10000000,), TRAP),
    # CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | SETTLS | PARENT_SETTID | CHILD_CLEARTID, as pthread_create(3)
    ("clone", (0x003D0F00,), ALLOW), ("clone", (17,), TRAP), ("clone", (0x003D0F00 | 0x20000000,), TRAP),
    ("clone", (0x003D0F00 | 0x00020000,), TRAP), ("clone", (0x4111,), TRAP),
    ("clone3", (1 << 40, 88), ERRNO | errno.ENOSYS),
    ("prctl", (15,), ALLOW), ("prctl", (4, 1), TRAP), ("prctl", (22, 2), TRAP), ("prctl", (0x59616D61, 1), TRAP),
    ("ioctl", (3, 0x4010E501), ALLOW), ("ioctl", (3, 0x80086601), ALLOW), ("ioctl", (3, 0x5412), TRAP),
    ("ioctl", (3, 0xC0045877), TRAP), ("ioctl", (3, 0x4004E500 | 3), TRAP),
    ("open_by_handle_at", (5,), ALLOW), ("open_by_handle_at", (0xFFFFFF9C,), TRAP),
    ("open_by_handle_at", (0xFFFFFFFFFFFFD8EE,), TRAP),
    ("rt_sigaction", (signal.SIGUSR1,), ALLOW), ("rt_sigaction", (signal.SIGSYS,), TRAP),
])
def test_conditions(name, arguments, wanted):
    assert verdict(name, *arguments) == wanted


def test_a_call_that_is_not_there_is_left_out():
    other = seccomp.program(0xC00000B7, {"read": 63}, RULES)
    assert verdict(63, arch=0xC00000B7, program=other) == ALLOW
    assert verdict(62, arch=0xC00000B7, program=other) == TRAP
    assert verdict(seccomp.X32 | 63, arch=0xC00000B7, program=other) == TRAP  # no second ABI there
    assert verdict("read", program=other) == KILL_PROCESS


def test_jumps_stay_inside():
    code = list(struct.iter_unpack("=HBBI", PROGRAM))
    assert len(code) < 4096
    for at, (op, yes, no, _) in enumerate(code):
        if op in (seccomp.JEQ, seccomp.JGE):
            assert at + 1 + max(yes, no) < len(code)
    assert code[-1][0] == seccomp.RET
