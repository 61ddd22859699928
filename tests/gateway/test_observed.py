"""What the gateway tells of its requests: observers, metrics, spans."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.gateway.conftest import Stage
from tests.observability.recorded import Recorded, recorded
from tests.waiting import until

__all__ = ["recorded"]

Begin = Callable[..., Awaitable[Stage]]


class Told:
    """An observer of everything, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def request_started(self, endpoint: str, model: str | None, request_id: str) -> Told:
        self.events.append(("started", endpoint, model, request_id))
        return self

    def items(self, count: int) -> None:
        self.events.append(("items", count))

    def ended(self, status: int, error: str | None) -> None:
        self.events.append(("ended", status, error))


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
@pytest.mark.parametrize(
    ("body", "ended"),
    [
        ({"items": [1, 2, 3]}, (200, None)),
        ({"items": [1], "error": "ValueError"}, (400, "RemoteError: ValueError: on purpose")),
        ({"error": "RuntimeError"}, (500, "RemoteError: RuntimeError: on purpose")),
    ],
)
async def test_an_observer_hears_of_a_request_its_items_and_its_end(
    begin: Begin, body: dict[str, Any], accept: str, ended: tuple[int, str | None]
) -> None:
    told = Told()
    stage = await begin(observers=[told])
    async with stage.post(body, headers={"Accept": accept, "X-Request-Id": "mine"}) as response:
        await response.read()
    started, *items, end = told.events
    assert started == ("started", "a.b.c", None, "mine")
    assert sum(count for _, count in items) == len(body.get("items", ()))
    assert end == ("ended", *ended)


async def test_an_observer_hears_that_a_client_has_gone(begin: Begin) -> None:
    told = Told()
    stage = await begin(observers=[told])
    async with stage.post({"items": [1], "hangs": True}):
        pass
    await until(lambda: told.events[-1] == ("ended", 499, "the client has gone"))


class Broken(Told):
    """An observer whose method of this name raises."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self._method = method

    def request_started(self, endpoint: str, model: str | None, request_id: str) -> Told:
        self._break("request_started")
        return super().request_started(endpoint, model, request_id)

    def items(self, count: int) -> None:
        super().items(count)
        self._break("items")

    def ended(self, status: int, error: str | None) -> None:
        super().ended(status, error)
        self._break("ended")

    def _break(self, method: str) -> None:
        if method == self._method:
            raise LookupError(f"{method}, on purpose")


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
@pytest.mark.parametrize("method", ["request_started", "items", "ended"])
async def test_an_observer_that_raises_is_left_out_and_the_request_goes_on(
    begin: Begin, method: str, accept: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken, told = Broken(method), Told()
    stage = await begin(observers=[broken, told])
    for _ in range(2):  # the id is free again
        async with stage.post({"items": [1, 2]}, headers={"Accept": accept, "X-Request-Id": "mine"}) as response:
            assert response.status == 200
            assert await response.text() in ("data: 1\n\ndata: 2\n\ndata: [DONE]\n\n", "[1,2]")
    started, *items, end = told.events[: len(told.events) // 2]
    assert (started[0], end) == ("started", ("ended", 200, None))
    assert sum(count for _, count in items) == 2
    assert caplog.text.count(f"LookupError: {method}, on purpose") == 1
    async with stage.client.get("/metrics") as response:
        assert "dynamo_fast_gateway_inflight_requests 0.0" in await response.text()


async def test_metrics(stage: Stage) -> None:
    async with stage.post({"items": [1, 2]}) as response:
        await response.read()
    async with stage.post({"error": "ValueError"}) as response:
        await response.read()
    async with stage.client.get("/metrics") as response:
        assert response.content_type == "text/plain"
        lines = (await response.text()).splitlines()
    assert 'dynamo_fast_gateway_requests_total{endpoint="a.b.c",status="200"} 1.0' in lines
    assert 'dynamo_fast_gateway_requests_total{endpoint="a.b.c",status="400"} 1.0' in lines
    assert "dynamo_fast_gateway_items_total 2.0" in lines
    assert "dynamo_fast_gateway_inflight_requests 0.0" in lines
    assert "dynamo_fast_gateway_time_to_first_item_seconds_count 1.0" in lines
    assert "dynamo_fast_gateway_request_duration_seconds_count 2.0" in lines
    assert any(line.startswith("dynamo_request_plane_inflight_requests ") for line in lines)


async def test_a_request_is_a_span_above_the_routers(recorded: Recorded, begin: Begin) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    stage = await begin()
    async with stage.post({"items": [1]}, headers={"traceparent": parent}) as response:
        await response.read()
        answered = response.headers["traceparent"]
    await until(lambda: {"http-request", "handle_payload"} <= {span.name for span in recorded.spans})
    spans = {span.name: span for span in recorded.spans}
    assert {span.trace_id for span in spans.values()} == {parent.split("-")[1]}
    request = spans["http-request"]
    assert (request.kind, request.parent_id) == ("SERVER", parent.split("-")[2])
    assert request.attributes["http.response.status_code"] == "200"
    assert answered.split("-")[2] == request.span_id
    above = {span.span_id: span for span in recorded.spans}
    step = spans["handle_payload"]
    while step.name != "http-request":
        step = above[step.parent_id]
