"""`Form`: what the parts of a streamed answer look like on HTTP. Bytes in, bytes out.

The items are JSON as the worker wrote it. They are not read: a line feed in JSON stands between values, never inside a
text, so one that would end a line of the stream is replaced by a space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dynamo_fast.wire.payload import Annotated

__all__ = ["NDJSON", "SSE", "Form", "one_line"]


class Form(NamedTuple):
    """One of the two."""

    content_type: str
    items: Callable[[Sequence[bytes]], bytes]
    """Items that have nothing but their data; at least one."""
    annotated: Callable[[Annotated[bytes]], bytes]
    """An item that has something beside its data, or none."""
    error: Callable[[bytes], bytes]
    """The JSON object of an error."""
    end: bytes
    """The end of an answer, with or without an error before it."""
    comment: bytes
    """What clients ignore; empty if there is no such thing."""


def one_line(data: bytes) -> bytes:
    """JSON without line breaks between its values."""
    return data.replace(b"\r", b" ").replace(b"\n", b" ")


def _sse_items(items: Sequence[bytes]) -> bytes:
    text = b"\n\ndata: ".join(items)
    if b"\r" in text or text.count(b"\n") != 2 * (len(items) - 1):
        text = b"\n\ndata: ".join(map(one_line, items))
    return b"data: %b\n\n" % text


def _sse_annotated(item: Annotated[bytes]) -> bytes:
    """Comments, id, event and data, each in lines of its own (HTML standard, 9.2.5)."""
    lines = [b": %b" % line for text in item.comments() or () for line in _lines(text)]
    for name, text in ((b"id", item.id()), (b"event", item.event())):
        if text is not None:
            lines.append(b"%b: %b" % (name, b" ".join(_lines(text))))
    data: bytes | None = item.data()
    if data is not None:
        lines.append(b"data: %b" % one_line(data))
    return b"\n".join(lines) + b"\n\n"


def _lines(text: str) -> list[bytes]:
    """The lines of a text; only CR and LF end one in a stream of events. An id must not have NUL."""
    whole = text.encode(errors="backslashreplace").replace(b"\0", b" ")
    return whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


def _ndjson_items(items: Sequence[bytes]) -> bytes:
    text = b"\n".join(items)
    if b"\r" in text or text.count(b"\n") != len(items) - 1:
        text = b"\n".join(map(one_line, items))
    return text + b"\n"


def _ndjson_annotated(item: Annotated[bytes]) -> bytes:
    data: bytes | None = item.data()
    return b"" if data is None else one_line(data) + b"\n"


SSE = Form(
    content_type="text/event-stream",
    items=_sse_items,
    annotated=_sse_annotated,
    error=b"data: %b\n\n".__mod__,
    end=b"data: [DONE]\n\n",
    comment=b":\n\n",
)
NDJSON = Form(
    content_type="application/x-ndjson",
    items=_ndjson_items,
    annotated=_ndjson_annotated,
    error=b"%b\n".__mod__,
    end=b"",
    comment=b"",
)
