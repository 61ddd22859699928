"""`Form`: what the parts of a streamed answer look like on HTTP. Bytes in, bytes out.

The items are JSON as the worker wrote it. They are not read: a line feed in JSON stands between values, never inside a
text, so one that would end a line of the stream is replaced by a space.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_fast.gateway.errors import HttpError
from dynamo_fast.wire.payload import Annotated

__all__ = ["NDJSON", "SSE", "Form", "Item", "Ndjson", "Sse", "one_line"]

Item = bytes | Annotated[bytes]
"""The data of an item, or an item that has something beside its data, or none."""


class Form:
    """The base of all forms."""

    __slots__ = ()

    content_type = ""
    comment = b""
    """What clients ignore; empty if there is no such thing."""

    def items(self, items: Sequence[Item]) -> bytes:
        """Items that came together; at least one."""
        try:
            return self.plain(items)  # type: ignore[arg-type]  # nearly always all of them are
        except TypeError:
            return b"".join(self.plain([item]) if isinstance(item, bytes) else self.annotated(item) for item in items)

    def plain(self, items: Sequence[bytes]) -> bytes:
        """Items that have nothing but their data. Raises TypeError if there is another one."""
        raise NotImplementedError

    def annotated(self, item: Annotated[bytes]) -> bytes:
        """An item that has something beside its data, or no data."""
        raise NotImplementedError

    def error(self, error: HttpError) -> bytes:
        """An error after the head of the answer."""
        raise NotImplementedError

    def end(self) -> bytes:
        """The end of an answer, with or without an error before it."""
        return b""


class Sse(Form):
    """Server-sent events (HTML standard, 9.2), with OpenAI's `[DONE]` at the end."""

    __slots__ = ()

    content_type = "text/event-stream"
    comment = b":\n\n"

    def plain(self, items: Sequence[bytes]) -> bytes:
        """See Form."""
        text = b"\n\ndata: ".join(items)
        if b"\r" in text or text.count(b"\n") != 2 * (len(items) - 1):
            text = b"\n\ndata: ".join(map(one_line, items))
        return b"data: %b\n\n" % text

    def annotated(self, item: Annotated[bytes]) -> bytes:
        """Comments, id, event and data, each in lines of its own."""
        lines = [b": %b" % line for text in item.comments() or () for line in _lines(text)]
        for name, field in ((b"id", item.id()), (b"event", item.event())):
            if field is not None:
                lines.append(b"%b: %b" % (name, b" ".join(_lines(field))))
        data: bytes | None = item.data()
        if data is not None:
            lines.append(b"data: %b" % one_line(data))
        return b"\n".join(lines) + b"\n\n"

    def error(self, error: HttpError) -> bytes:
        """See Form."""
        return b"data: %b\n\n" % error.body()

    def end(self) -> bytes:
        """See Form."""
        return b"data: [DONE]\n\n"


class Ndjson(Form):
    """One JSON value a line. Events and comments have no place in it."""

    __slots__ = ()

    content_type = "application/x-ndjson"

    def plain(self, items: Sequence[bytes]) -> bytes:
        """See Form."""
        text = b"\n".join(items)
        if b"\r" in text or text.count(b"\n") != len(items) - 1:
            text = b"\n".join(map(one_line, items))
        return text + b"\n"

    def annotated(self, item: Annotated[bytes]) -> bytes:
        """See Form."""
        data: bytes | None = item.data()
        return b"" if data is None else one_line(data) + b"\n"

    def error(self, error: HttpError) -> bytes:
        """See Form."""
        return error.body() + b"\n"


SSE, NDJSON = Sse(), Ndjson()


def one_line(data: bytes) -> bytes:
    """JSON without line breaks between its values."""
    return data.replace(b"\r", b" ").replace(b"\n", b" ")


def _lines(text: str) -> list[bytes]:
    """The lines of a text; only CR and LF end one in a stream of events. NUL has no place there."""
    whole = text.encode(errors="backslashreplace").replace(b"\0", b" ")
    return whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
