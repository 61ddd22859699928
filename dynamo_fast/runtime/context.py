"""`Context` as `dynamo.runtime` has it: around the context of the request plane (runtime.md 4.8)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from dynamo_fast.context import Context as RequestContext
from dynamo_fast.observability.spans import SpanHandle, TracedContext
from dynamo_fast.runtime.exceptions import argument_error

__all__ = ["Context", "ContextMetadata", "SpanProxy"]


class Context:
    """The id, the metadata and the cancellation of a request: `Context(id=None, metadata=None)`.

    It wraps one context of the request plane, which holds the state. A caller makes it and passes it to its calls, or a
    worker makes it and passes it to its handler. It needs no end: a call unlinks itself when its answer ends.
    """

    __slots__ = ("__weakref__", "_request")

    def __init__(self, id: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
        if id is not None and not isinstance(id, str):
            raise argument_error("id", id, "PyString")
        self._request = RequestContext(id, _checked(metadata))

    @classmethod
    def of(cls, request: RequestContext) -> Context:
        """Wrap the context of an incoming request, for its handler."""
        context = cls.__new__(cls)
        context._request = request
        return context

    def child(self) -> RequestContext:
        """A new context for a call, with the current id, metadata and trace of this one."""
        return RequestContext(self._request.id(), self._request.metadata, self._request.trace_headers())

    @property
    def request(self) -> RequestContext:
        """The context of the request plane."""
        return self._request

    def __repr__(self) -> str:
        return f"<builtins.Context object at {id(self):#x}>"

    def id(self) -> str:
        """The request's id."""
        return self._request.id()

    @property
    def metadata(self) -> ContextMetadata:
        """A live view of the metadata. Assigning replaces the contents."""
        return ContextMetadata(self._request.metadata)

    @metadata.setter
    def metadata(self, metadata: Mapping[str, str]) -> None:
        self._request.metadata = _checked(metadata)

    def is_stopped(self) -> bool:
        """Whether the caller has stopped or killed the request."""
        return self._request.is_stopped()

    def is_killed(self) -> bool:
        """Whether the caller has killed the request."""
        return self._request.is_killed()

    def stop_generating(self) -> None:
        """Stop the answer, and tell the worker. From any thread."""
        self._request.stop_generating()

    def async_killed_or_stopped(self) -> asyncio.Future[bool]:
        """A future of the running loop that is True once the context is stopped. Raises RuntimeError without a loop."""
        loop = asyncio.get_running_loop()
        return loop.create_task(self._request.async_killed_or_stopped())

    def detached(self, id: str) -> Context:
        """A context with the same metadata and trace that is not cancelled with this one."""
        if not isinstance(id, str):
            raise argument_error("id", id, "PyString")
        return Context.of(RequestContext(id, self._request.metadata, self._request.trace_headers()))

    def notify_first_token(self) -> None:
        """Do nothing: only Dynamo's frontend uses it."""

    @property
    def trace_id(self) -> str | None:
        """The id of the request's trace; None if the request has none, or if this process does not follow traces."""
        return self._trace_part(1)

    @property
    def span_id(self) -> str | None:
        """The id of the request's span, or None as `trace_id`."""
        return self._trace_part(2)

    @property
    def parent_span_id(self) -> str | None:
        """The id of the caller's span, or None as `trace_id`."""
        return self._request.parent_span_id

    def trace_headers(self) -> dict[str, str] | None:
        """The trace headers for calls that are made on behalf of this request."""
        return self._request.trace_headers()

    def current_span(self) -> SpanProxy:
        """The span of the request. It records nothing unless spans are exported."""
        request = self._request
        return SpanProxy(SpanHandle(request.span.recorded) if isinstance(request, TracedContext) else None)

    def start_span(self, name: str, attrs: Mapping[str, Any] | None = None) -> SpanProxy:
        """A new span below that of the request, until `close` or the end of its `with` block. As `current_span`."""
        request = self._request
        return SpanProxy(request.span.child(name, attrs) if isinstance(request, TracedContext) else None)

    def _trace_part(self, index: int) -> str | None:
        parent = (self._request.trace_headers() or {}).get("traceparent")
        return parent.split("-")[index] if parent else None


class ContextMetadata:
    """Text by text, in the order of the keys: a view of a context's metadata."""

    __slots__ = ("_contents",)

    def __init__(self, contents: dict[str, str]) -> None:
        self._contents = contents

    def keys(self) -> list[str]:
        """The keys."""
        return sorted(self._contents)

    def values(self) -> list[str]:
        """The values, in the order of their keys."""
        return [self._contents[key] for key in self.keys()]

    def items(self) -> list[tuple[str, str]]:
        """Both."""
        return [(key, self._contents[key]) for key in self.keys()]

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default`."""
        return self._contents.get(key, default)

    def pop(self, key: str, default: str | None = None) -> str:
        """Take the value out; a `default` of None is none, as in Dynamo: KeyError."""
        if key not in self._contents and default is not None:
            return default
        return self._contents.pop(key)

    def clear(self) -> None:
        """Take everything out."""
        self._contents.clear()

    def copy(self) -> dict[str, str]:
        """The contents."""
        return dict(self.items())

    def __getitem__(self, key: str) -> str:
        return self._contents[key]

    def __setitem__(self, key: str, value: str) -> None:
        for name, text in (("key", key), ("value", value)):
            if not isinstance(text, str):
                raise argument_error(name, text, "PyString")
        self._contents[key] = value

    def __delitem__(self, key: str) -> None:
        del self._contents[key]

    def __contains__(self, key: object) -> bool:
        return key in self._contents

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._contents)

    def __repr__(self) -> str:
        return json.dumps(self.copy(), ensure_ascii=False)


class SpanProxy:
    """A span for a handler. Without a recorded span every method does nothing."""

    __slots__ = ("_span",)

    def __init__(self, span: SpanHandle | None = None) -> None:
        self._span = span

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute: a text, a truth value, a number, or a list of such; others are written as text."""
        if self._span is not None:
            self._span.set_attribute(key, value)

    def add_event(self, name: str, attrs: Mapping[str, Any] | None = None) -> None:
        """Something happened now."""
        if self._span is not None:
            self._span.add_event(name, attrs)

    def set_status(self, status: str, description: str | None = None) -> None:
        """How the step went. Raises ValueError for a status other than `ok` and `error`."""
        if not isinstance(status, str):
            raise argument_error("status", status, "PyString")
        if status not in ("ok", "error"):
            raise ValueError(f'set_status: expected "ok" or "error", got "{status}"')
        if self._span is not None:
            self._span.set_status(status == "ok", description)

    def close(self) -> None:
        """End a span that `start_span` has begun. The worker ends the request's own."""
        if self._span is not None:
            self._span.close()

    def __enter__(self) -> SpanProxy:
        if self._span is not None:
            self._span.enter()
        return self

    def __exit__(self, *error: object) -> Literal[False]:
        self.close()
        return False


def _checked(metadata: Mapping[str, str] | None) -> dict[str, str]:
    contents = dict(metadata) if metadata is not None else {}
    for each in (*contents, *contents.values()):
        if not isinstance(each, str):
            raise argument_error("metadata", each, "PyString")
    return contents
