"""The budget of descriptors, on figures that the test sets; in a real process see tests/ingress/test_descriptors.py."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from dynamo_fast.net import descriptors
from dynamo_fast.net.descriptors import Descriptors


class End:
    """What promises descriptors."""

    def __init__(self, budget: Descriptors, *, calls: bool = False) -> None:
        self.promised = self.opened = 0
        self.budget = budget
        budget.add(self, calls=calls)

    def descriptors(self) -> tuple[int, int]:
        return self.promised, self.opened

    def promise(self, count: int = 1, requests: int = 0) -> bool:
        promised = self.budget.promise(count, requests)
        self.promised += count * promised
        return promised


class Process:
    """A process with a limit and files in use; time stands still until it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int = 100, in_use: int = 10) -> None:
        self.limit, self.in_use, self.now, self.counts = limit, in_use, 1000.0, 0
        monkeypatch.setattr(descriptors, "monotonic", lambda: self.now)
        self.budget = Descriptors(lambda: self.limit, self.count)

    def count(self, limit: int) -> int:
        self.counts += 1
        return self.in_use


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    return Process(monkeypatch)


def test_as_many_are_promised_as_there_are(process: Process) -> None:
    """Of 100 a quarter is a reserve, and 10 are in use."""
    end = End(process.budget)
    assert [end.promise() for _ in range(70)] == [True] * 65 + [False] * 5
    assert process.budget.shortage() == (
        "10 of 100 open files are in use and 65 more promised to requests, 25 are a reserve: raise the limit (ulimit -n)"
    )
    assert not end.promise(2)


def test_a_promise_may_be_of_two(process: Process) -> None:
    end = End(process.budget)
    assert [end.promise(2) for _ in range(34)] == [True] * 32 + [False] * 2
    assert end.promise(1)


def test_both_ends_draw_on_the_same(process: Process) -> None:
    worker, router = End(process.budget), End(process.budget, calls=True)
    assert all(worker.promise() for _ in range(30))
    assert sum(router.promise() for _ in range(100)) == 35


def test_what_is_opened_is_counted_once(process: Process) -> None:
    end = End(process.budget)
    assert all(end.promise() for _ in range(65))
    end.promised, end.opened, process.in_use = 0, 65, 75
    process.now += 10
    assert not end.promise()
    process.in_use = 74
    process.now += 10
    assert end.promise()


def test_what_other_code_opens_counts(process: Process) -> None:
    end = End(process.budget)
    assert end.promise()
    process.in_use = 74
    process.now += 1.0
    assert not end.promise()


def test_a_refusal_is_never_older_than_a_moment(process: Process) -> None:
    end = End(process.budget)
    assert all(end.promise() for _ in range(65))
    end.promised = 0  # all of them were given up since the last count
    assert end.promise()


def test_a_promise_costs_no_count_most_of_the_time(process: Process) -> None:
    end = End(process.budget)
    assert all(end.promise() for _ in range(60))
    assert process.counts == 1


def test_the_limit_may_be_raised(process: Process) -> None:
    end = End(process.budget)
    assert sum(end.promise() for _ in range(1000)) == 65
    process.limit = 1000
    assert sum(end.promise() for _ in range(1000)) == 1000 - 128 - 10 - 65


def test_a_worker_leaves_half_to_the_calls_of_its_process(process: Process) -> None:
    worker, router = End(process.budget), End(process.budget, calls=True)
    taken = 0
    while worker.promise(1, taken):
        taken += 1
    assert taken == 32
    assert sum(router.promise() for _ in range(taken)) == taken


def test_an_end_that_is_gone_promises_nothing(process: Process) -> None:
    end, other = End(process.budget), End(process.budget)
    assert all(end.promise() for _ in range(65))
    del end
    gc.collect()
    assert other.promise()


def test_a_forked_child_has_promised_nothing(process: Process) -> None:
    end = End(process.budget)
    assert all(end.promise() for _ in range(65))
    process.budget.forget()
    assert process.budget.promise()


def test_without_a_limit_everything_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Process(monkeypatch, limit=sys.maxsize, in_use=0).budget
    assert all(budget.promise() for _ in range(1000))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of open files")
@pytest.mark.parametrize("where", ["/proc/self/fd", "/nowhere"], ids=["as it is", "without proc"])
def test_the_files_of_this_process_are_counted(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_OPEN_FILES", where)
    before = descriptors._count(20_000)
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(300)]
    try:
        assert 200 <= descriptors._count(20_000) - before <= 400  # other files come and go
    finally:
        for file in files:
            os.close(file)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of open files")
@pytest.mark.parametrize("where", ["/proc/self/fd", "/nowhere"], ids=["as it is", "without proc"])
def test_a_process_without_a_free_descriptor_can_still_count(where: str) -> None:
    program = f"""
import os, resource
from dynamo_fast.net import descriptors
descriptors._OPEN_FILES = {where!r}
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        os.dup(0)
except OSError:
    print(descriptors._count(64), descriptors.PROCESS.promise())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["64", "False"]
