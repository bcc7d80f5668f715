"""Which CPUs the threads run on, and that callers on all others are served too."""
import contextlib
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from _daemon import QUEUE, Daemon, until

CPUS = sorted(os.sched_getaffinity(0))
SWITCH = Path(f"/sys/devices/system/cpu/cpu{CPUS[-1]}/online")

needs_two = pytest.mark.skipif(len(CPUS) < 2, reason="one CPU only")


def use(fs: Daemon, name: str) -> None:
    data = os.urandom(3 << 20)
    (fs.mnt / name).write_bytes(data)
    assert (fs.src / name).read_bytes() == data
    fd = os.open(fs.mnt / name, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert (fs.mnt / name).read_bytes() == data


def by_each_cpu(act: Callable[[int], None]) -> None:
    """On each CPU at the same time."""
    start = threading.Barrier(len(CPUS))

    def on(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})  # this thread only
        start.wait()
        act(cpu)

    with ThreadPoolExecutor(len(CPUS)) as pool:
        list(pool.map(on, CPUS))


def threads(fs: Daemon) -> dict[str, list[set[int]]]:
    """{name: the CPUs of each thread of that name}."""
    found: dict[str, list[set[int]]] = {}
    for task in Path(f"/proc/{fs.pid}/task").iterdir():
        found.setdefault((task / "comm").read_text().strip(), []).append(os.sched_getaffinity(int(task.name)))
    return found


def queue_threads(fs: Daemon) -> list[set[int]]:
    return [cpus for name, all_cpus in threads(fs).items() if name.startswith("queue-") for cpus in all_cpus]


def test_a_thread_for_each_cpu(fs, transport):
    by_each_cpu(lambda cpu: use(fs, f"by {cpu}"))
    if transport == "ring":
        assert sorted(map(sorted, queue_threads(fs))) == [[cpu] for cpu in CPUS]
        assert f"queue-{CPUS[0]}" in threads(fs)
        served = fs.stats().threads
        assert all(served["ring_requests"][(served["kind"] == QUEUE) & (served["cpu"] == cpu)].sum() for cpu in CPUS)
    else:
        assert len(threads(fs)["dev"]) >= 4


@needs_two
@pytest.mark.parametrize("cpu", CPUS[:2])
def test_daemon_that_may_use_one_cpu(mount, transport, cpu):
    os.sched_setaffinity(0, {cpu})
    try:
        fs = mount()
    finally:
        os.sched_setaffinity(0, CPUS)
    by_each_cpu(lambda n: use(fs, f"by {n}"))
    if transport == "ring":
        assert queue_threads(fs) == [{cpu}]
        assert "by 1 thread" in fs.stderr()


@needs_two
def test_one_thread_for_all_queues(mount, transport):
    fs = mount("--threads", "1")
    by_each_cpu(lambda cpu: use(fs, f"by {cpu}"))
    if transport == "ring":
        assert queue_threads(fs) == [set(CPUS)]
        assert "by 1 thread" in fs.stderr()
    else:
        assert len(threads(fs)["dev"]) == 1


def test_more_threads_than_cpus(mount, transport):
    fs = mount("--threads", str(len(CPUS) + 3))
    by_each_cpu(lambda cpu: use(fs, f"by {cpu}"))
    if transport == "ring":
        assert sorted(map(sorted, queue_threads(fs))) == [[cpu] for cpu in CPUS]
    else:
        assert len(threads(fs)["dev"]) == len(CPUS) + 3


def test_threads_for_waiting_may_run_anywhere(fs):
    """They are started by a queue's thread, which is bound to its CPU."""
    (fs.mnt / "f").write_bytes(b"x" * 5000)
    fd = os.open(fs.mnt / "f", os.O_RDWR)
    assert os.copy_file_range(fd, fd, 100, 0, 1000) == 100
    os.close(fd)
    assert threads(fs)["pool"] == [set(CPUS)]


def test_no_spinning_where_others_work(mount, transport):
    """Who yields the CPU to others waits for its turn, and its clients with it."""
    if transport != "ring":
        pytest.skip("readers of /dev/fuse do not spin")
    fs = mount("--spin-us", "200", "--entry-timeout", "0")
    cpu = CPUS[0]

    def ask(count: int) -> float:
        """Sleeps for each request."""
        def lookups() -> None:
            os.sched_setaffinity(0, {cpu})  # this thread only
            for n in range(count):
                with contextlib.suppress(FileNotFoundError):
                    os.stat(fs.mnt / f"none {n}")

        before = fs.stats()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lookups).result()
        after = fs.stats()
        return (after.total("sleeps") - before.total("sleeps")) / count

    hog = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    os.sched_setaffinity(hog.pid, {cpu})
    try:
        ask(4000)  # it takes a while to find out
        assert ask(4000) > 0.5
    finally:
        hog.kill()
        hog.wait()


@needs_two
@pytest.mark.skipif(os.environ.get("PASSTHRU_TEST_HOTPLUG") != "1" or not SWITCH.exists(),
                    reason="PASSTHRU_TEST_HOTPLUG=1 lets it take a CPU offline for a moment, where that can be done")
def test_a_cpu_goes_and_comes(mount, transport):
    before = mount()
    try:
        SWITCH.write_text("0")
        use(before, "while it is gone")
        without = mount()  # the kernel wants a queue for it all the same
        use(without, "without it")
    finally:
        SWITCH.write_text("1")
    until(lambda: os.sched_getaffinity(0) == set(CPUS), "all CPUs back")
    for fs in (before, without):
        by_each_cpu(lambda cpu, fs=fs: use(fs, f"afterwards {cpu}"))
    if transport == "ring":
        until(lambda: sorted(map(sorted, queue_threads(before))) == [[cpu] for cpu in CPUS], "bound again")
        assert len(queue_threads(without)) == len(CPUS) - 1
