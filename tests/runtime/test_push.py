"""Push handlers, beside what tests/compat compares with Dynamo's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.runtime import Context, DistributedRuntime, ResponseSender
from tests.waiting import until

LIMIT = 10
ENDPOINT = "push.test.generate"
NEVER: bool = False
"""Makes an async generator of a function that yields nothing."""


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_SYSTEM_HOST"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")


async def answer(handler: Callable[..., Any]) -> tuple[list[Any], str]:
    """The items of a call, and the text of the error that ended it."""
    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    try:
        runtime.endpoint(ENDPOINT).serve_endpoint(handler)
        client = await runtime.endpoint(ENDPOINT).client()
        await asyncio.wait_for(client.wait_for_instances(), LIMIT)
        stream = await asyncio.wait_for(client.round_robin({}, annotated=False), LIMIT)
        items: list[Any] = []
        try:
            while True:
                items.append(await asyncio.wait_for(stream.__anext__(), LIMIT))
        except StopAsyncIteration:
            return items, ""
        except ValueError as error:
            return items, str(error)
    finally:
        runtime.shutdown()
        await asyncio.wait_for(runtime.ended(), LIMIT)


async def nothing() -> AsyncIterator[Any]:
    if NEVER:
        yield


async def test_what_is_sent_while_the_handler_is_called_comes_after_the_prologue() -> None:
    def handler(request: Any, context: Context, response_sender: ResponseSender) -> AsyncIterator[Any]:
        response_sender.send(1)
        response_sender.send({"two": 2})
        return nothing()

    assert await answer(handler) == ([1, {"two": 2}], "")


async def test_a_handler_may_close_while_it_is_called() -> None:
    def handler(request: Any, context: Context, response_sender: ResponseSender) -> AsyncIterator[Any]:
        response_sender.send(1)
        response_sender.close_with_error("enough")
        return nothing()

    assert await answer(handler) == ([1], "Internal: enough")


async def test_a_handler_that_cannot_be_started_sends_nothing() -> None:
    def handler(request: Any, context: Context, response_sender: ResponseSender) -> AsyncIterator[Any]:
        response_sender.send(1)
        raise ValueError("oh no")

    with pytest.raises(Exception, match="Generate Error: ValueError: oh no"):
        await answer(handler)


async def test_what_waits_for_a_slow_caller_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNAMO_FAST_MAX_PUSHED_BYTES", "3000000")
    sent = 0

    async def handler(request: Any, context: Context, response_sender: ResponseSender) -> AsyncIterator[Any]:
        nonlocal sent
        for _ in range(1000):  # and no turn for the loop, so nothing is read
            response_sender.send("x" * 1_000_000)
            sent += 1
        if NEVER:
            yield

    items, error = await answer(handler)
    assert 3 < sent < 20  # the limit, and what the kernel took
    assert len(items) == sent
    assert "bytes wait for a caller that reads slowly (the limit is 3000000, DYNAMO_FAST_MAX_PUSHED_BYTES)" in error


async def test_a_health_check_calls_a_push_handler_without_a_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("DYN_HEALTH_CHECK_ENABLED", "true"), ("DYN_CANARY_WAIT_TIME", "0.05")):
        monkeypatch.setenv(name, value)
    pulled = []

    async def handler(
        request: Any, context: Context | None = None, response_sender: ResponseSender | None = None
    ) -> AsyncIterator[Any]:
        assert isinstance(context, Context)
        if response_sender is None:
            pulled.append(request)
            yield "pulled"

    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    runtime.endpoint(ENDPOINT).serve_endpoint(handler, health_check_payload={"check": 1})
    await until(lambda: pulled and runtime._hub.status.health().ready)
    runtime.shutdown()
    await asyncio.wait_for(runtime.ended(), LIMIT)
