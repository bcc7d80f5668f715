"""CPU lists, the plan of queues, and news of CPUs."""
import os

import pytest

from passthru import cpus
from passthru.cpus import Share


@pytest.mark.parametrize("text, numbers", [
    ("0\n", [0]), ("0-3\n", [0, 1, 2, 3]), ("0-1,4,6-7", [0, 1, 4, 6, 7]), ("", []), ("\n", [])])
def test_cpu_list(text, numbers):
    assert cpus.cpu_list(text) == numbers


def plan(monkeypatch, possible: list[int], allowed: set[int], threads: int = 0) -> list[Share]:
    monkeypatch.setattr(cpus, "possible_cpus", lambda: possible)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed)
    return cpus.queue_plan(threads)


def queues(found: list[Share]) -> list[int]:
    return sorted(q for share in found for q in share.qids)


def test_one_queue_each(monkeypatch):
    assert plan(monkeypatch, [0, 1, 2], {0, 1, 2}) == [Share((n,), (n,)) for n in range(3)]


def test_every_possible_cpu_has_its_queue(monkeypatch):
    """Of CPUs that are offline or not ours too: the kernel waits for all."""
    one, five = plan(monkeypatch, list(range(8)), {1, 5})
    assert (one.cpus, five.cpus) == ((1,), (5,))
    assert queues([one, five]) == list(range(8))
    assert 1 in one.qids and 5 in five.qids
    assert abs(len(one.qids) - len(five.qids)) <= 1


def test_more_cpus_allowed_than_possible(monkeypatch):
    assert plan(monkeypatch, [0], {0, 1}) == [Share((0,), (0,))]
    assert plan(monkeypatch, [0, 1], {7}) == [Share((7,), (0, 1))]


@pytest.mark.parametrize("threads, shares", [
    (1, [(0, 1, 2, 3, 4)]), (2, [(0, 1), (2, 3, 4)]), (4, [(0,), (1,), (2,), (3, 4)]),
    (5, [(0,), (1,), (2,), (3,), (4,)]), (200, [(0,), (1,), (2,), (3,), (4,)])])
def test_fewer_threads_than_cpus(monkeypatch, threads, shares):
    found = plan(monkeypatch, list(range(5)), set(range(5)), threads)
    assert [share.cpus for share in found] == shares
    assert [share.qids for share in found] == shares


def test_fewer_threads_than_cpus_and_others_besides(monkeypatch):
    found = plan(monkeypatch, list(range(8)), {2, 3, 6, 7}, 2)
    assert [share.cpus for share in found] == [(2, 3), (6, 7)]
    assert [share.qids for share in found] == [(2, 3, 0, 4), (6, 7, 1, 5)]


def test_this_machine():
    assert queues(cpus.queue_plan()) == cpus.possible_cpus() == queues(cpus.queue_plan(1))


@pytest.mark.parametrize("count, depth, fits", [
    (1, 16, 16), (1, 1024, 1024), (64, 1024, 254), (4096, 16, 2), (20000, 16, 1)])
def test_a_ring_has_room_for_its_queues(count, depth, fits):
    assert cpus.entries([Share((0,), tuple(range(count)))], depth) == fits


@pytest.mark.parametrize("message, yes", [
    (b"online@/devices/system/cpu/cpu1\0ACTION=online\0SUBSYSTEM=cpu\0", True),
    (b"offline@/devices/system/cpu/cpu12\0ACTION=offline\0", True),
    (b"offline@/devices/system/memory/memory12\0ACTION=offline\0", False),
    (b"add@/devices/system/cpu/cpu1\0", False),
    (b"online@/devices/system/cpu/cpu1/cpu\0", False),
    (b"libudev\0online@/devices/system/cpu/cpu1\0", False), (b"", False)])
def test_hotplug_messages(message, yes):
    assert cpus.is_hotplug(message) is yes


def test_nothing_has_changed():
    news = cpus.Hotplug()
    news.changed()
    assert not news.changed()
    news.close()
