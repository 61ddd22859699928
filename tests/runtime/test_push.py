"""Push handlers, beside what tests/compat compares with Dynamo's own."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.llm.exceptions import HttpError
from dynamo_fast.runtime import Context, DistributedRuntime, EngineShutdown, InvalidArgument, ResponseSender
from tests.waiting import until

LIMIT = 30
ROOT = Path(__file__).parents[2]
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
        except (ValueError, InvalidArgument) as error:
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
    assert 3 <= sent < 20  # the limit, and what the kernel took
    assert len(items) == sent
    assert "bytes wait for a caller that reads slowly (the limit is 3000000, DYNAMO_FAST_MAX_PUSHED_BYTES)" in error


@pytest.mark.parametrize("where", ["the call", "a thread of the call", "a thread of the generator"])
async def test_what_is_sent_before_the_loop_can_write_it_has_the_same_limit(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("DYNAMO_FAST_MAX_PUSHED_BYTES", "3000000")
    refusals: list[str] = []

    def send(sender: ResponseSender) -> None:
        try:
            for _ in range(1000):
                sender.send("x" * 1_000_000)
        except RuntimeError as error:
            refusals.append(str(error))

    def in_a_thread(sender: ResponseSender) -> None:
        thread = threading.Thread(target=send, args=(sender,))
        thread.start()
        thread.join()

    async def generate(sender: ResponseSender) -> AsyncIterator[Any]:
        in_a_thread(sender)
        if NEVER:
            yield

    def handler(request: Any, context: Context, response_sender: ResponseSender) -> AsyncIterator[Any]:
        if where == "a thread of the generator":
            return generate(response_sender)
        (send if where == "the call" else in_a_thread)(response_sender)
        return nothing()

    items, error = await answer(handler)
    assert (len(items), error) == (3, "")  # the envelope of each makes the fourth one too many
    assert "(the limit is 3000000, DYNAMO_FAST_MAX_PUSHED_BYTES)" in refusals[0]


async def test_what_another_task_pushes_is_written_at_once() -> None:
    """The handler itself waits until its caller has the item."""
    arrived = asyncio.Event()

    async def handler(request: Any, context: Context, response_sender: ResponseSender) -> AsyncIterator[Any]:
        async def send() -> None:
            await asyncio.sleep(0)
            response_sender.send("item")

        sending = asyncio.ensure_future(send())
        await arrived.wait()
        await sending
        if NEVER:
            yield

    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    runtime.endpoint(ENDPOINT).serve_endpoint(handler)
    client = await runtime.endpoint(ENDPOINT).client()
    await asyncio.wait_for(client.wait_for_instances(), LIMIT)
    stream = await asyncio.wait_for(client.round_robin({}, annotated=False), LIMIT)
    try:
        assert await asyncio.wait_for(stream.__anext__(), LIMIT) == "item"
    finally:
        arrived.set()
        runtime.shutdown()
        await asyncio.wait_for(runtime.ended(), LIMIT)


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


def dynamos_decorator() -> Callable[[Any], Any]:
    """`push_egress_capable`, with which Dynamo's TensorRT workers make their handlers push; skips without the wheel."""
    pattern = "frontend-1.6.1/lib/python*/site-packages/dynamo/trtllm/request_handlers/push_egress.py"
    found = sorted((ROOT / ".peers").glob(pattern))
    if not found:
        pytest.skip("no ai-dynamo 1.6.1: `make peers` makes .peers/frontend-1.6.1, which needs the package index")
    spec = importlib.util.spec_from_file_location("push_egress", found[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    decorator: Callable[[Any], Any] = module.push_egress_capable
    return decorator


async def test_a_handler_of_dynamos_own_push_decorator_is_pushed() -> None:
    class Engine:
        def __init__(self) -> None:
            self.served: list[str] = []

        @dynamos_decorator()
        async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
            self.served.append(type(context).__name__)
            for number in range(300):
                yield {"token_ids": [number], "index": 0}
                await asyncio.sleep(0)

    engine = Engine()
    items, error = await answer(engine.generate)
    assert (items, error) == ([{"token_ids": [number], "index": 0} for number in range(300)], "")
    assert engine.served == ["Context"]


@pytest.mark.parametrize("raised", [InvalidArgument("oh no"), EngineShutdown("oh no"), HttpError(404, "oh no")])
async def test_the_errors_of_such_a_handler_keep_their_kind(raised: Exception) -> None:
    class Engine:
        @dynamos_decorator()
        async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
            yield 1
            raise raised

    kinds = {"InvalidArgument": "oh no", "EngineShutdown": "Unavailable: oh no"}
    expected = kinds.get(type(raised).__name__, 'NotFound: {"message":"oh no","code":404}')
    assert await answer(Engine().generate) == ([1], expected)
