"""The bytes of streams: what a worker puts into its items cannot break out of an event or of a line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_fast import Annotated, Context
from dynamo_fast.gateway.forms import NDJSON, SSE, Sse
from tests.gateway.conftest import Stage

Begin = Callable[..., Awaitable[Stage]]
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(VALUES, min_size=1, max_size=4), st.sampled_from([None, 1, "\r"]))
def test_each_item_is_one_event_and_one_line(values: list[Any], indent: Any) -> None:
    items = [json.dumps(value, indent=indent).encode() for value in values]
    events = SSE.items(items).decode().split("\n\n")
    assert events.pop() == ""
    assert [json.loads(event.removeprefix("data: ")) for event in events] == values
    lines = NDJSON.items(items).decode().split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == values


@pytest.mark.parametrize(
    ("item", "event"),
    [
        (Annotated(b"1", None, "my-event"), b"event: my-event\ndata: 1\n\n"),
        (Annotated(b"1", "7", None, ["one", "two\nthree\rfour\r\nfive"]),
         b": one\n: two\n: three\n: four\n: five\nid: 7\ndata: 1\n\n"),
        (Annotated(None, None, "tick"), b"event: tick\n\n"),
        (Annotated(b"1\n2", "a\nb", "c\rd"), b"id: a b\nevent: c d\ndata: 1 2\n\n"),
        (Annotated(b"1", "a\0b"), b"id: a b\ndata: 1\n\n"),
    ],
)  # fmt: skip
def test_what_stands_beside_the_data(item: Annotated[bytes], event: bytes) -> None:
    assert SSE.annotated(item) == event


async def annotating(request: Any, context: Context) -> AsyncIterator[Any]:
    """Yields an event, a comment without data, and data."""
    yield {"_dynamo_annotated": True, "data": 1, "event": "first", "id": "7"}
    yield {"_dynamo_annotated": True, "comment": ["a comment"]}
    yield 2


@pytest.mark.parametrize(
    ("accept", "text"),
    [
        ("text/event-stream", "id: 7\nevent: first\ndata: 1\n\n: a comment\n\ndata: 2\n\ndata: [DONE]\n\n"),
        ("application/x-ndjson", "1\n2\n"),
        ("application/json", "[1,2]"),
    ],
)
async def test_annotations_of_a_worker_are_events_and_comments(begin: Begin, accept: str, text: str) -> None:
    stage = await begin(annotating)
    async with stage.post(None, headers={"Accept": accept}) as response:
        assert await response.text() == text


async def test_a_silent_stream_gets_comments(begin: Begin) -> None:
    stage = await begin(keep_alive=0.02)
    async with stage.post({"items": [1], "hangs": True}) as response:
        lines = [await response.content.readline() for _ in range(6)]
    assert lines == [b"data: 1\n", b"\n", b":\n", b"\n", b":\n", b"\n"]


async def test_the_head_does_not_wait_for_a_late_first_item_forever(begin: Begin) -> None:
    stage = await begin(keep_alive=0.02)
    async with stage.post({"hangs": True}) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        assert await response.content.readline() == b":\n"


async def test_many_items_of_every_size_arrive_whole(begin: Begin) -> None:
    stage = await begin()
    items = ["x" * size for size in (*range(0, 2_000, 7), 100_000, 1, 300_000, 2)]
    async with stage.post({"items": items}) as response:
        events = (await response.text()).split("\n\n")
    assert [json.loads(event.removeprefix("data: ")) for event in events[:-2]] == items
    assert events[-2:] == ["data: [DONE]", ""]


async def test_a_fault_of_the_gateway_after_the_head_cuts_the_connection(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def faulty(self: Sse) -> bytes:
        raise LookupError("on purpose")

    stage = await begin()
    async with stage.post({"items": [1], "hangs": True}, headers={"X-Request-Id": "mine"}) as response:
        assert await response.content.readline() == b"data: 1\n"
        monkeypatch.setattr(Sse, "end", faulty)
        stage.server.cut()
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    assert "the answer to the request mine is cut" in caplog.text
