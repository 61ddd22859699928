"""`Formatter`: frames and events as lines of text or of JSON."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from dynamo_fast.inspect.describe import Frame
from dynamo_fast.inspect.events import Closed, Event, Failed, FrameSeen, Opened
from dynamo_fast.inspect.values import abbreviated, json_line, jsonable
from dynamo_fast.wire.text import printable

__all__ = ["Formatter"]

_STYLES = {"<": "32", ">": "36", "kind": "1", "damage": "1;31", "error": "31", "dim": "2"}
_BAD_KINDS = {"damage", "error", "refusal"}


class Formatter:
    """Frames and events as lines: text for people, or a JSON object for tools. Lines hold printable characters only.

    Text is coloured with `colour`. Long values are abbreviated, and parts that are the same in most frames are left out,
    unless `full` is set. It holds these settings and nothing else.
    """

    def __init__(self, *, as_json: bool = False, colour: bool = False, full: bool = False) -> None:
        self._as_json = as_json
        self._colour = colour
        self._full = full

    def event(self, event: Event) -> list[str]:
        """The lines of an event: one, or two for a connection whose beginning is not in the capture."""
        if isinstance(event, FrameSeen):
            return [self.frame(event.frame, number=event.number, time=event.time)]
        if isinstance(event, Closed):
            return [self.note(f"closed ({event.how})", event.number)]
        if isinstance(event, Failed):
            return [self.note(event.reason, event.number)]
        lines = [self._opened(event)]
        if event.midway:
            lines.append(
                self.note("the beginning of this connection was not captured: who dialled is a guess", event.number)
            )
        return lines

    def frame(self, frame: Frame, *, number: int | None = None, time: float | None = None) -> str:
        """The line of a frame, with the number of its connection and its time (seconds since 1970), if they are given."""
        if self._as_json:
            return self._json(frame, number, time)
        words = [
            *([self._styled("dim", _clock(time))] if time is not None else []),
            *([f"#{number}"] if number is not None else []),
            self._styled(frame.direction, frame.direction),
            self._styled("damage" if frame.kind in _BAD_KINDS else "kind", f"{frame.kind:<9}"),
            self._styled("dim", f"@{frame.offset} {_sizes(frame)}"),
        ]
        parts = frame.content.items() if self._full else _parts(frame)
        words += (f"{self._styled('dim', name + '=')}{abbreviated(value, self._full)}" for name, value in parts)
        words += (self._styled("error", f"! {printable(problem)}") for problem in frame.problems)
        return " ".join(words)

    def note(self, text: str, number: int | None = None) -> str:
        """A line about a connection, or about the whole input."""
        if self._as_json:
            connection = {} if number is None else {"connection": number}
            return json_line({**connection, "kind": "note", "text": text})
        return self._styled("dim", ("" if number is None else f"#{number} ") + printable(text))

    def _opened(self, event: Opened) -> str:
        number, dialler, listener = event.number, event.dialler, event.listener
        if self._as_json:
            line = {"connection": number, "kind": "connection", "dialler": dialler, "listener": listener}
            return json_line(line)
        return self._styled("kind", printable(f"#{number} {dialler} dials {listener}"))

    def _json(self, frame: Frame, number: int | None, time: float | None) -> str:
        line: dict[str, Any] = {
            "connection": number,
            "time": time,
            "direction": frame.direction,
            "kind": frame.kind,
            "offset": frame.offset,
            "size": frame.size,
            "lengths": frame.lengths,
            "content": jsonable(frame.content),
            "problems": frame.problems,
        }
        return json_line({name: value for name, value in line.items() if value not in (None, {}, [])})

    def _styled(self, style: str, text: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._colour else text


def _clock(time: float) -> str:
    return datetime.fromtimestamp(time, timezone.utc).strftime("%H:%M:%S.%f")


def _sizes(frame: Frame) -> str:
    parts = " + ".join(f"{name} {size}" for name, size in frame.lengths.items())
    return f"{frame.size} B ({parts})" if parts else f"{frame.size} B"


def _parts(frame: Frame) -> Iterable[tuple[str, Any]]:
    """The parts to show: of a request those that differ between requests, of an item those inside its envelopes."""
    content = frame.content
    if frame.kind == "request" and isinstance(content.get("control"), dict):
        return _request_parts(content)
    if frame.kind == "final":
        return []
    if frame.kind in ("item", "event", "error") and not content["data"]["complete_final"]:
        inner = content["data"].get("data")
        return inner.items() if isinstance(inner, dict) else content.items()
    return content.items()


def _request_parts(content: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    control, headers = content["control"], content.get("headers")
    to = control.get("connection_info")
    info = to.get("info") if isinstance(to, dict) else to
    yield "path", content["path"]
    yield "id", control.get("id")
    if isinstance(headers, dict) and "traceparent" in headers:
        yield "traceparent", headers["traceparent"]
    if control.get("request_type") != "single_in":
        yield "request_type", control.get("request_type")
    if control.get("metadata"):
        yield "metadata", control["metadata"]
    if isinstance(info, dict):
        yield "answer_to", info.get("address")
        yield "subject", info.get("subject")
    else:
        yield "connection_info", to
    yield "payload_codec", control.get("payload_codec")
    if "body" in content:
        yield "body", content["body"]
