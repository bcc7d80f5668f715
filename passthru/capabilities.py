"""What this process may do: capabilities(7), and ids of others."""
from __future__ import annotations

import os
from typing import Final

CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SETPCAP: Final = 8
CAP_LINUX_IMMUTABLE: Final = 9
CAP_IPC_LOCK: Final = 14
CAP_SYS_PTRACE: Final = 19
CAP_SYS_ADMIN: Final = 21
CAP_SYS_RESOURCE: Final = 24
CAP_MKNOD: Final = 27
CAP_SETFCAP: Final = 31
CAP_MAC_OVERRIDE: Final = 32
CAP_MAC_ADMIN: Final = 33

INITIAL_USER_NS: Final = 0xEFFFFFFD  # PROC_USER_INIT_INO


def status() -> dict[str, int]:
    """CapEff, CapBnd, and NoNewPrivs of this process (proc_pid_status(5))."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as f:
        pairs = [line.split(":", 1) for line in f]
    return {name: int(value, 16) for name, value in pairs if name in ("CapEff", "CapBnd", "NoNewPrivs")}


def capable(cap: int) -> bool:
    """Has this process capability number `cap` (capabilities(7))?"""
    return bool(status()["CapEff"] >> cap & 1)


def capable_of_all(cap: int) -> bool:
    """capable() in the first user namespace, and not only in a container's: capable() of the kernel."""
    return capable(cap) and os.stat("/proc/self/ns/user").st_ino == INITIAL_USER_NS


def can_act_as_caller() -> bool:
    """May this process change its ids to any, here and not only in a user namespace of one user?"""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/setgroups", encoding="ascii") as f:
        groups = f.read().strip() == "allow"
    return groups and capable(CAP_SETGID) and capable(CAP_SETUID)
