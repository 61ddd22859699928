"""`Frames`, the queue of an answer: it behaves as a deque does, and an empty one takes little."""

from __future__ import annotations

import random
import sys
from collections import deque
from typing import Any

import pytest

from dynamo_fast.egress import _frames
from tests.interpreted import interpreted

BOTH = pytest.mark.parametrize("module", [_frames, interpreted(_frames)], ids=["imported", "interpreted"])


@BOTH
@pytest.mark.parametrize("seed", range(20))
def test_it_is_a_queue(module: Any, seed: int) -> None:
    """What a deque does after the same random calls; it need not ever be empty meanwhile."""
    dice = random.Random(seed)
    ours, model = module.Frames(), deque[bytes]()
    numbers = iter(range(10**6))
    for _ in range(2_000):
        call = dice.choices(["append", "extend", "popleft", "clear"], [40, 8, 60, 0.2])[0]
        if call == "append":
            frame = b"%d" % next(numbers)
            ours.append(frame)
            model.append(frame)
        elif call == "extend":
            frames = [b"%d" % next(numbers) for _ in range(dice.choice([0, 1, 2, 5, 200]))]
            model.extend(frames)
            ours.extend(frames)
        elif call == "clear":
            ours.clear()
            model.clear()
        elif model:
            assert ours.popleft() == model.popleft()
        assert len(ours) == len(model)
        assert bool(ours) == bool(model)
        if dice.random() < 0.01:
            assert list(ours) == list(model)
    assert list(ours) == list(model)


@BOTH
def test_nothing_can_be_taken_from_an_empty_one(module: Any) -> None:
    frames = module.Frames()
    with pytest.raises(IndexError, match="no frame waits"):
        frames.popleft()
    frames.append(b"a")
    assert frames.popleft() == b"a"
    with pytest.raises(IndexError, match="no frame waits"):
        frames.popleft()


class Frame(bytes):
    """One that says when it is gone."""

    gone: list[bytes]

    def __del__(self) -> None:
        self.gone.append(bytes(self))


@BOTH
@pytest.mark.parametrize("together", [True, False])
def test_a_frame_that_was_taken_is_not_kept(module: Any, together: bool) -> None:
    """A frame may have a mebibyte, and others wait behind it."""
    Frame.gone = []
    frames = module.Frames()
    names = [b"a", b"b", b"c"]
    if together:
        frames.extend([Frame(name) for name in names])
    else:
        for name in names:
            frames.append(Frame(name))
    for number, name in enumerate(names, start=1):
        assert frames.popleft() == name
        assert Frame.gone == names[:number]


@BOTH
def test_a_queue_that_is_never_empty_does_not_grow(module: Any) -> None:
    frames = module.Frames()
    frames.extend([b"first", b"second", b"third"])
    for _ in range(10_000):
        frames.append(b"next")
        frames.popleft()
    assert len(frames) == 3
    assert len(frames._rest) < 200  # what was taken is moved away from time to time


def test_an_empty_one_takes_little() -> None:
    assert sys.getsizeof(_frames.Frames()) <= 80
    assert sys.getsizeof(deque()) > 500
