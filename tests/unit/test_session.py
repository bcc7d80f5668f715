"""Parts of a session that need no kernel: CPU lists and the plan of queues."""
import os

import pytest

from passthru import session


@pytest.mark.parametrize("text, cpus", [
    ("0\n", [0]), ("0-3\n", [0, 1, 2, 3]), ("0-1,4,6-7", [0, 1, 4, 6, 7]), ("", []), ("\n", [])])
def test_cpu_list(text, cpus):
    assert session.cpu_list(text) == cpus


def plan(monkeypatch, possible: list[int], allowed: set[int]) -> dict[int, list[int]]:
    monkeypatch.setattr(session, "possible_cpus", lambda: possible)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed)
    return session.queue_plan()


def test_one_queue_each(monkeypatch):
    assert plan(monkeypatch, [0, 1, 2], {0, 1, 2}) == {0: [0], 1: [1], 2: [2]}


def test_every_possible_cpu_has_its_queue(monkeypatch):
    """Of CPUs that are offline or not ours too: the kernel waits for all."""
    found = plan(monkeypatch, list(range(8)), {1, 5})
    assert sorted(found) == [1, 5]
    assert sorted(q for qids in found.values() for q in qids) == list(range(8))
    assert 1 in found[1] and 5 in found[5]
    assert abs(len(found[1]) - len(found[5])) <= 1


def test_more_cpus_allowed_than_possible(monkeypatch):
    assert plan(monkeypatch, [0], {0, 1}) == {0: [0]}


def test_this_machine():
    assert sorted(q for qids in session.queue_plan().values() for q in qids) == session.possible_cpus()


def test_parameter(monkeypatch, tmp_path):
    monkeypatch.setattr(session, "PARAMETER", str(tmp_path / "none"))
    assert session.ring_parameter() == ""
    (tmp_path / "some").write_text("Y\n")
    monkeypatch.setattr(session, "PARAMETER", str(tmp_path / "some"))
    assert session.ring_parameter() == "Y"
