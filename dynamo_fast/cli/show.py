"""How frames look: a line of text each, for people, or a line of JSON, for tools."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

import orjson

from dynamo_fast.cli.frames import Frame
from dynamo_fast.wire.text import printable, printable_json

__all__ = ["Look", "elided"]

_MAX_TEXT = 80
_MAX_ENTRIES = 12
_MAX_DEPTH = 12
_MAX_FULL_DEPTH = 200
_STYLES = {"<": "32", ">": "36", "kind": "1", "damage": "1;31", "error": "31", "dim": "2"}
_BAD_KINDS = {"damage", "error", "refusal"}


class Look:
    """Text or JSON, coloured or not, whole or elided."""

    def __init__(self, *, as_json: bool = False, colour: bool = False, full: bool = False) -> None:
        self.as_json = as_json
        self._colour = colour
        self._full = full

    def frame(self, frame: Frame, *, number: int | None = None, time: float | None = None) -> str:
        """The line of a frame, which came on the connection of that number, at that time (seconds since 1970)."""
        if self.as_json:
            return self._json(frame, number, time)
        words = [
            *([self._styled("dim", _clock(time))] if time is not None else []),
            *([f"#{number}"] if number is not None else []),
            self._styled(frame.direction, frame.direction),
            self._styled("damage" if frame.kind in _BAD_KINDS else "kind", f"{frame.kind:<9}"),
            self._styled("dim", f"@{frame.offset} {_sizes(frame)}"),
        ]
        parts = frame.content.items() if self._full else _parts(frame)
        words += (f"{self._styled('dim', name + '=')}{elided(value, self._full)}" for name, value in parts)
        words += (self._styled("error", f"! {printable(problem)}") for problem in frame.problems)
        return " ".join(words)

    def opened(self, number: int, dialler: str, listener: str) -> str:
        """The line that introduces a connection."""
        if self.as_json:
            line = {"connection": number, "kind": "connection", "dialler": dialler, "listener": listener}
            return _json_line(line)
        return self._styled("kind", printable(f"#{number} {dialler} dials {listener}"))

    def note(self, text: str, number: int | None = None) -> str:
        """A line about the connection, or about the whole input."""
        if self.as_json:
            note = (
                {"kind": "note", "text": text}
                if number is None
                else {"connection": number, "kind": "note", "text": text}
            )
            return _json_line(note)
        return self._styled("dim", ("" if number is None else f"#{number} ") + printable(text))

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
        return _json_line({name: value for name, value in line.items() if value not in (None, {}, [])})

    def _styled(self, style: str, text: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._colour else text


def _json_line(value: Any) -> str:
    return printable_json(orjson.dumps(value).decode())


def _clock(time: float) -> str:
    return datetime.fromtimestamp(time, timezone.utc).strftime("%H:%M:%S.%f")


def _sizes(frame: Frame) -> str:
    parts = " + ".join(f"{name} {size}" for name, size in frame.lengths.items())
    return f"{frame.size} B ({parts})" if parts else f"{frame.size} B"


def _parts(frame: Frame) -> Iterable[tuple[str, Any]]:
    """What there is to show: of a request, what differs between requests; of an item, what is in its envelopes."""
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


# Values ----------------------------------------------------------------------------------------------------------------


def elided(value: Any, full: bool = False, depth: int = 0) -> str:
    """`value` as JSON-like text of a humane length; all of it with `full`. Bytes are h'hex', as CBOR writes them."""
    if isinstance(value, str):
        return _text(value, full)
    if isinstance(value, bytes):
        return _bytes(value, full)
    if isinstance(value, dict):
        entries = [
            f"{_key(key, full)}:{elided(each, full, depth + 1)}" for key, each in _first(value.items(), full, depth)
        ]
        return "{" + _joined(entries, len(value)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + _joined([elided(each, full, depth + 1) for each in _first(value, full, depth)], len(value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = str(value)
    return printable(text, len(text) if full else _MAX_TEXT)


def _first(entries: Iterable[Any], full: bool, depth: int) -> list[Any]:
    if depth > (_MAX_FULL_DEPTH if full else _MAX_DEPTH):
        return []
    limit = math.inf if full else _MAX_ENTRIES
    shown = list(entries)
    return shown if len(shown) <= limit else shown[: int(limit) // 2]


def _joined(entries: list[str], count: int) -> str:
    left = count - len(entries)
    return ",".join([*entries, f"… {left} more"] if left else entries)


def _key(key: Any, full: bool) -> str:
    return _text(key, full) if isinstance(key, str) else elided(key, full, _MAX_DEPTH)


def _text(text: str, full: bool) -> str:
    left = len(text) - _MAX_TEXT
    shown = text if full or left <= 0 else text[:_MAX_TEXT]
    quoted = printable_json(orjson.dumps(shown).decode())
    return quoted if shown is text else f"{quoted}… {left} more"


def _bytes(data: bytes, full: bool) -> str:
    left = len(data) - _MAX_TEXT // 2
    return f"h'{data.hex()}'" if full or left <= 0 else f"h'{data[: _MAX_TEXT // 2].hex()}'… {left} more"


def jsonable(value: Any, depth: int = 0) -> Any:
    """`value` with what JSON does not have in forms that it has: bytes are {"hex": "..."}, keys are texts."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, (dict, list, tuple)) and depth > _MAX_FULL_DEPTH:
        return elided(value)
    if isinstance(value, dict):
        return {_json_key(key): jsonable(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(each, depth + 1) for each in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return orjson.Fragment(str(value))
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _json_key(key: Any) -> str:
    return key if isinstance(key, str) else elided(key)
