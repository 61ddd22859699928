"""What happens on connections, in order: what `read_capture` yields and what a `Relay` reports.

Each connection has a number, counted from 1. It begins with `Opened` and ends with `Closed`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynamo_fast.inspect.describe import Frame

__all__ = ["Closed", "Event", "Failed", "FrameSeen", "Opened"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection from `dialler` to `listener`, both `IP:PORT`.

    `midway` is true if a capture does not hold its beginning: then the dialler is a guess.
    """

    number: int
    dialler: str
    listener: str
    midway: bool = False


@dataclass(frozen=True, slots=True)
class FrameSeen:
    """A frame of a connection. `time` is in seconds since 1970, None if it is not known."""

    number: int
    frame: Frame
    time: float | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """The end of a connection. `how` is "FIN", "RST" or the reason why no more of it is seen."""

    number: int
    how: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Something failed beside the frames: the capture file is damaged, or a relay cannot connect.

    `number` is None if it concerns no connection.
    """

    reason: str
    number: int | None = None


Event = Opened | FrameSeen | Closed | Failed
