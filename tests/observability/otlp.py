"""A collector: a receiver of OpenTelemetry's protocol on this machine, and spans as the tests look at them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

LIMIT = 20.0


@dataclass(frozen=True)
class Span:
    """One exported span."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, str | bool]
    events: list[str]
    error: str | None
    service: str


class Collector:
    """What came, from both servers: each of their threads calls `add`, the test waits for spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.sent_with: list[dict[str, str]] = []
        self._changed = threading.Condition()
        self.grpc_port = 0
        self.http_port = 0

    def add(self, request: Any, headers: dict[str, str]) -> None:
        with self._changed:
            self.sent_with.append(headers)
            self.spans += list(_spans(request))
            self._changed.notify_all()

    def wait_for(self, enough: Callable[[list[Span]], bool]) -> list[Span]:
        """Block until the spans are enough. Call it with `asyncio.to_thread` where a loop runs."""
        with self._changed:
            if not self._changed.wait_for(lambda: enough(self.spans), LIMIT):
                raise AssertionError(f"these spans only: {[each.name for each in self.spans]}")
            return list(self.spans)


def named(spans: list[Span], name: str) -> list[Span]:
    return [each for each in spans if each.name == name]


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector that takes spans over gRPC and over HTTP."""
    found = Collector()
    with _http(found), _grpc(found):
        yield found


@contextmanager
def _grpc(found: Collector) -> Iterator[None]:
    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  # the name is gRPC's
            found.add(request, dict(context.invocation_metadata()))
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)  # type: ignore[no-untyped-call]
    found.grpc_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


@contextmanager
def _http(found: Collector) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name is http.server's
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path != "/v1/traces":  # 1.6.1 sends its logs, too
                self.send_response(200)
                self.end_headers()
                return
            request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
            found.add(request, {name.lower(): value for name, value in self.headers.items()})
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Not on standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.http_port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _spans(request: Any) -> Iterator[Span]:
    for resource in request.resource_spans:
        service = str(_values(resource.resource.attributes)["service.name"])
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    span.name,
                    span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    _values(span.attributes),
                    [event.name for event in span.events],
                    span.status.message if span.status.code == 2 else None,
                    service,
                )


def _values(attributes: Any) -> dict[str, str | bool]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
