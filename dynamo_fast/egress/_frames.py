# cython: freethreading_compatible=True, annotation_typing=False, binding=False
"""`Frames`: what waits of one answer, first in, first out.

A router has one for each open stream, and most of them are empty most of the time. An empty `deque` takes 760 bytes: the
block for its first 64 elements. This takes 56, and no more while one frame waits.

This runs for every item. Where there is a compiler, Cython translates this very file, with the types in `_frames.pxd` (see
setup.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["Frames"]

_WORTH_A_MOVE = 64


class Frames:
    """A queue of frames. A receiver owns it; the connection appends, the consumer takes. On one thread only."""

    __slots__ = ("_at", "_rest", "first")

    def __init__(self) -> None:
        self.first: Any = None
        """The next one; None if none waits."""
        self._rest: list[Any] | None = None
        """Those behind it, from `_at` on; None if there are none."""
        self._at = 0

    def __len__(self) -> int:
        if self.first is None:
            return 0
        return 1 if self._rest is None else 1 + len(self._rest) - self._at

    def __bool__(self) -> bool:
        return self.first is not None

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """All that wait, which go on waiting. Nothing may be taken meanwhile."""
        if self.first is not None:
            yield self.first
            yield from (self._rest or ())[self._at :]

    def append(self, frame: bytes | memoryview) -> None:
        """`frame` is the last one from now on."""
        if self.first is None:
            self.first = frame
        elif self._rest is None:
            self._rest = [frame]
        else:
            self._rest.append(frame)

    def extend(self, frames: list[bytes | memoryview]) -> None:
        """`frames` are the last ones from now on. The list belongs to this queue then."""
        if self._rest is not None:
            self._rest.extend(frames)
        elif self.first is not None:
            self._rest = frames or None
        elif frames:
            self.first = frames[0]
            if len(frames) > 1:
                self._rest, self._at = frames, 1
                frames[0] = None  # type: ignore[call-overload]  # its bytes end with the consumer

    def popleft(self) -> bytes | memoryview:
        """Take the first one. Raises IndexError if none waits."""
        frame: bytes | memoryview | None = self.first
        if frame is None:
            raise IndexError("no frame waits")
        rest = self._rest
        if rest is None:
            self.first = None
            return frame
        at = self._at
        self.first = rest[at]
        rest[at] = None
        at += 1
        if at == len(rest):
            self._rest = None
            at = 0
        elif at >= _WORTH_A_MOVE and at * 2 >= len(rest):  # it need not ever be empty
            del rest[:at]
            at = 0
        self._at = at
        return frame

    def clear(self) -> None:
        """Drop all of them."""
        self.first = self._rest = None
        self._at = 0
