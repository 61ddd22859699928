"""Our worker, and clients of real Dynamo."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.config import TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.ingress.answer import Batch
from dynamo_fast.ingress.worker import Worker
from tests.ingress.test_descriptors import address_from, few_descriptors
from tests.interop.peers import VERSIONS, PeerClient
from tests.waiting import until

LIMIT = 30.0
ENDPOINT = "ours.worker.generate"
LOOPBACK = TcpServerConfig(host="127.0.0.1")


class HttpError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Engine:
    """What the worker does with a request is in the request, and what it saw of the request is here."""

    def __init__(self) -> None:
        self.ended: dict[str, asyncio.Future[tuple[bool, bool]]] = {}
        self.gate = asyncio.Event()
        self.waiting = 0

    def end_of(self, context_id: str) -> asyncio.Future[tuple[bool, bool]]:
        return self.ended.setdefault(context_id, asyncio.get_running_loop().create_future())

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
        try:
            async for item in getattr(self, request["mode"])(request, context):
                yield item
        finally:
            end = self.end_of(context.id())
            if not end.done():
                end.set_result((context.is_stopped(), context.is_killed()))

    async def count(self, request: Any, _: Context) -> AsyncIterator[Any]:
        for number in range(request["n"]):
            yield {"number": number}

    async def batches(self, request: Any, _: Context) -> AsyncIterator[Any]:
        yield Batch({"number": number} for number in range(request["n"]))

    async def echo(self, request: Any, _: Context) -> AsyncIterator[Any]:
        yield request["value"]

    async def fail(self, request: Any, _: Context) -> AsyncIterator[Any]:
        for number in range(request["after"]):
            yield number
        raise EXCEPTIONS[request["kind"]]

    async def unserialisable(self, _: Any, __: Context) -> AsyncIterator[Any]:
        yield 1
        yield {"a": object()}
        yield 2

    async def envelopes(self, _: Any, __: Context) -> AsyncIterator[Any]:
        yield {"_dynamo_annotated": True, "event": "note", "comment": ["a", "b"], "id": "7", "data": [1]}
        yield None
        yield {"_dynamo_annotated": False, "event": "plain"}
        yield {"_dynamo_annotated": True, "event": "error", "comment": ["one", "two"]}

    async def about(self, _: Any, context: Context) -> AsyncIterator[Any]:
        yield {"id": context.id(), "metadata": context.metadata}

    async def endless(self, _: Any, __: Context) -> AsyncIterator[Any]:
        """Ignores its context altogether."""
        number = 0
        while True:
            yield number
            number += 1
            await asyncio.sleep(0.01)

    async def self_stopped(self, _: Any, context: Context) -> AsyncIterator[Any]:
        yield 1
        yield 2
        context.stop_generating()
        yield 3

    async def gated(self, _: Any, __: Context) -> AsyncIterator[Any]:
        yield "before"
        self.waiting += 1
        await self.gate.wait()
        yield "after"


EXCEPTIONS: dict[str, BaseException] = {
    "RuntimeError": RuntimeError("boom"),
    "ValueError": ValueError("boom"),
    "TimeoutError": TimeoutError("boom"),
    "ConnectionRefusedError": ConnectionRefusedError("boom"),
    "ConnectionResetError": ConnectionResetError("boom"),
    "CancelledError": asyncio.CancelledError("boom"),
    "http 400": HttpError(400, "boom"),
    "http 503": HttpError(503, "boom"),
}
#: What the caller reads, in the words of 1.3.1 and in those of 1.6.1 (runtime.md 4.5).
TEXTS = {
    "RuntimeError": ("BackendUnknown: RuntimeError: boom", "Internal: RuntimeError: boom"),
    "ValueError": ("BackendInvalidArgument: ValueError: boom", "InvalidRequest: ValueError: boom"),
    "TimeoutError": ("BackendConnectionTimeout: TimeoutError: boom", "DeadlineExceeded: TimeoutError: boom"),
    "ConnectionRefusedError": (
        "BackendCannotConnect: ConnectionRefusedError: boom",
        "Unavailable: ConnectionRefusedError: boom",
    ),
    "ConnectionResetError": (
        "BackendDisconnected: ConnectionResetError: boom",
        "Unavailable: ConnectionResetError: boom",
    ),
    "CancelledError": ("BackendCancelled: CancelledError: boom", "Cancelled: CancelledError: boom"),
    # Our errors are 1.6.1's, so that 1.3.1 shows the plain type, not the Backend one of its own workers.
    "http 400": (
        'InvalidArgument: {"message":"boom","code":400}',
        'InvalidRequest: {"message":"boom","code":400}',
    ),
    "http 503": ('Unavailable: {"message":"boom","code":503}', 'Unavailable: {"message":"boom","code":503}'),
}


class Bench:
    """A worker of ours with an engine, and a client of Dynamo that has found it."""

    def __init__(self, worker: Worker, engine: Engine, client: PeerClient) -> None:
        self.worker = worker
        self.engine = engine
        self.client = client

    @property
    def is_old(self) -> bool:
        return self.client.version == "1.3.1"

    async def call(self, mode: str, **options: Any) -> tuple[list[Any], list[str] | None]:
        names = ("method", "instance", "stop_after", "drop_after", "envelopes", "context_id", "metadata")
        about = {name: options.pop(name) for name in names if name in options}
        return await self.client.call(ENDPOINT, {"mode": mode, **options}, **about)


@pytest.fixture(params=VERSIONS)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """It ends although the real client does not begin: else what it leaves disturbs the tests that follow."""
    async with AsyncExitStack() as stack:
        client = await PeerClient.start(request.param, tmp_path)
        stack.push_async_callback(client.close)
        worker = await Worker.start(FileDiscovery(tmp_path), WorkerConfig(leave_delay=0.05, cancel_grace=0.2), LOOPBACK)
        stack.push_async_callback(worker.close)
        engine = Engine()
        stack.callback(engine.gate.set)
        await worker.serve(engine.generate, ENDPOINT)
        await client.wait_for(ENDPOINT, 1)
        yield Bench(worker, engine, client)
    leftover = {task for task in asyncio.all_tasks() if "Request.run" in str(task.get_coro())}
    assert not leftover


async def test_values_and_numbers_of_items(bench: Bench) -> None:
    for n in (0, 1, 3000):
        for mode in ("count", "batches"):
            assert await bench.call(mode, n=n) == ([{"number": number} for number in range(n)], None)
    values: list[Any] = [
        None,
        "größe 日本語 🦕",
        [0.1, 1e-7, 1e16, 2.0],
        [2**64 - 1, -(2**63)],
        {"a": [{"b": [[], {}]}]},
    ]
    for value in values:
        assert await bench.call("echo", value=value) == ([value], None)
    large = "x" * 5_000_000
    assert await bench.call("echo", value=large) == ([large], None)


async def test_every_way_to_choose_an_instance(bench: Bench) -> None:
    (instance,) = await bench.client.wait_for(ENDPOINT, 1)
    assert instance == bench.worker.discovery.connection_id
    for options in ({"method": "random"}, {"method": "generate"}, {"method": "direct", "instance": instance}):
        assert await bench.call("count", n=2, **options) == ([{"number": 0}, {"number": 1}], None)


async def test_id_and_metadata(bench: Bench) -> None:
    items, _ = await bench.call("about", context_id="größe 1", metadata={"b": "2", "a": "1"})
    assert items == [{"id": "größe 1", "metadata": {"a": "1", "b": "2"}}]


async def test_two_hundred_requests_at_once(bench: Bench) -> None:
    answers = await asyncio.gather(*(bench.call("count", n=number % 5) for number in range(200)))
    assert [len(items) for items, error in answers if error is None] == [number % 5 for number in range(200)]


@pytest.mark.parametrize("kind", EXCEPTIONS)
async def test_the_words_of_an_exception(bench: Bench, kind: str) -> None:
    for after in (0, 2):
        items, error = await bench.call("fail", kind=kind, after=after)
        assert items == list(range(after))
        assert error == ["ValueError", TEXTS[kind][0 if bench.is_old else 1]]
    assert await bench.call("count", n=1) == ([{"number": 0}], None)  # no error of a handler makes the client avoid us


async def test_an_item_that_cannot_be_serialised(bench: Bench) -> None:
    items, error = await bench.call("unserialisable")
    assert items == [1]
    assert error is not None
    codec = "json" if bench.is_old else "msgpack"
    word = "Unknown" if bench.is_old else "Internal"
    assert error[1].startswith(
        f"{word}: critical error: failed serializing Python response as {codec}: unsupported type"
    )
    assert (await bench.call("count", n=1))[1] is None


async def test_envelopes(bench: Bench) -> None:
    items, error = await bench.call("envelopes", envelopes=True)
    assert items == [
        [[1], "note", ["a", "b"], "7"],
        [None, None, None, None],
        [{"_dynamo_annotated": False, "event": "plain"}, None, None, None],
    ]
    assert error == ["ValueError", "one, two" if bench.is_old else "Internal: one, two"]


async def test_a_handler_that_cannot_be_called(bench: Bench) -> None:
    async def no_generator(request: Any) -> Any:
        return request

    await bench.worker.serve(no_generator, "ours.worker.broken", adapt=False)
    await bench.client.wait_for("ours.worker.broken", 1)
    items, error = await bench.client.call("ours.worker.broken", {})
    word = "CannotConnect" if bench.is_old else "Unavailable"
    text = "Worker generate() failed before response stream: Generate Error: AttributeError: 'coroutine' object has no"
    assert (items, error and error[0]) == ([], "Exception")
    assert error is not None
    assert error[1].startswith(f"{word}: {text}")


async def test_stop_and_drop_reach_a_handler_that_does_not_look(bench: Bench) -> None:
    items, error = await bench.call("endless", context_id="stopped", stop_after=3)
    assert error is None
    assert len(items) >= 3
    assert await asyncio.wait_for(bench.engine.end_of("stopped"), LIMIT) == (True, False)
    items, error = await bench.call("endless", context_id="dropped", drop_after=3)
    assert (len(items), error) == (3, None)
    assert await asyncio.wait_for(bench.engine.end_of("dropped"), LIMIT) == (True, True)


async def test_what_was_yielded_before_a_handler_stops_its_own_context(bench: Bench) -> None:
    word = "Disconnected" if bench.is_old else "Unavailable"
    expected = ["ValueError", f"{word}: Stream ended before generation completed"]
    assert await bench.call("self_stopped") == ([1, 2], expected)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_shutdown_past_its_deadline_is_told_as_what_may_be_tried_elsewhere(
    version: str, tmp_path: Path
) -> None:
    config = WorkerConfig(leave_delay=0.0, shutdown_timeout=0.2)
    one = TcpServerConfig(host="127.0.0.1", engine_request_limit=1, request_queue_limit=10)
    worker = await Worker.start(FileDiscovery(tmp_path), config, one)
    engine = Engine()
    await worker.serve(engine.generate, ENDPOINT)
    client = await PeerClient.start(version, tmp_path)
    try:
        await client.wait_for(ENDPOINT, 1)
        begun = asyncio.ensure_future(client.call(ENDPOINT, {"mode": "gated"}))
        await until(lambda: engine.waiting)
        waiting = asyncio.ensure_future(client.call(ENDPOINT, {"mode": "gated"}))
        await until(lambda: worker.admission.queued)
        await asyncio.wait_for(worker.close(), LIMIT)
        word = "BackendEngineShutdown" if version == "1.3.1" else "Unavailable"
        assert await begun == (["before"], ["ValueError", f"{word}: engine shutting down"])
        items, error = await waiting
        assert (items, error is None) == ([], False)
        # Its caller gives up the call that it was about to have answered, as it hears that the worker has left.
        word = "Disconnected" if version == "1.3.1" else "Unavailable"
        assert error == ["Exception", f"{word}: Worker disconnected before response stream was established"]
    finally:
        await client.close()


async def test_shutdown_under_load_loses_no_request(bench: Bench) -> None:
    calls = [asyncio.ensure_future(bench.call("gated")) for _ in range(20)]
    await until(lambda: bench.engine.waiting == 20)
    await bench.call("count", n=1)  # a client gives up a call whose stream it does not have yet: it has them all now
    closing = asyncio.ensure_future(bench.worker.close())
    await bench.client.wait_for(ENDPOINT, 0)
    assert not closing.done()
    bench.engine.gate.set()
    answers = await asyncio.gather(*calls)
    assert answers == [(["before", "after"], None)] * 20
    await asyncio.wait_for(closing, LIMIT)


async def test_leaving_and_coming_back(bench: Bench) -> None:
    (served,) = bench.worker.endpoints.values()
    await served.unregister()
    await bench.client.wait_for(ENDPOINT, 0)
    _, error = await bench.call("count", n=1)
    assert error is not None
    assert error[1] == f"Unavailable: No workers available for endpoint {ENDPOINT.replace('.', '/')}"
    await served.register()
    await bench.client.wait_for(ENDPOINT, 1)
    assert await bench.call("count", n=1) == ([{"number": 0}], None)


async def test_a_worker_that_is_full_says_so(tmp_path: Path) -> None:
    settings = TcpServerConfig(host="127.0.0.1", worker_pool_size=1, work_queue_size=2)
    worker = await Worker.start(FileDiscovery(tmp_path), WorkerConfig(leave_delay=0.0), settings)
    engine = Engine()
    await worker.serve(engine.generate, ENDPOINT)
    client = await PeerClient.start("1.6.1", tmp_path)
    await client.wait_for(ENDPOINT, 1)
    calls = [asyncio.ensure_future(client.call(ENDPOINT, {"mode": "gated"})) for _ in range(6)]
    await until(lambda: sum(call.done() for call in calls) >= 3)
    assert (worker.admission.running, worker.admission.queued) == (1, 2)
    engine.gate.set()
    answers = await asyncio.gather(*calls)
    refused = [error for _, error in answers if error is not None]
    assert len(refused) == 3
    assert all("CapacityExhausted: " in error[1] for error in refused)
    await client.close()
    await worker.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_address_outside_the_networks_is_refused_at_once(version: str, tmp_path: Path) -> None:
    settings = WorkerConfig(leave_delay=0.0, response_networks="10.0.0.0/8")
    worker = await Worker.start(FileDiscovery(tmp_path), settings, LOOPBACK)
    await worker.serve(Engine().generate, ENDPOINT)
    client = await PeerClient.start(version, tmp_path)
    await client.wait_for(ENDPOINT, 1)
    items, error = await client.call(ENDPOINT, {"mode": "count", "n": 1})
    assert items == []
    assert error is not None
    assert "Unavailable: Server unavailable: this worker may not dial " in error[1]
    await client.close()
    await worker.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_worker_without_descriptors_says_so(version: str, tmp_path: Path) -> None:
    client = await PeerClient.start(version, tmp_path)
    try:
        await calls_without_descriptors(client, tmp_path)
    finally:  # uvloop waits for a process that it has started, and hangs
        await client.close()


async def calls_without_descriptors(client: PeerClient, tmp_path: Path) -> None:
    async with few_descriptors(128, environment={"DYN_FILE_KV": str(tmp_path)}) as process:
        await address_from(process)
        await client.wait_for("a.b.c", 1)
        calls = [asyncio.ensure_future(client.call("a.b.c", 1)) for _ in range(200)]
        errors: list[str] = []
        for call in asyncio.as_completed(calls):
            items, error = await call
            if error is None:
                assert items == ["done"]
                continue
            errors.append(error[1])
            if len(errors) == 1:  # the first refusal: whatever was acknowledged may be answered now
                assert process.stdin is not None
                process.stdin.write(b"\n")
        assert any("Server overloaded: " in error and "of 128 open files" in error for error in errors)
        assert all("Server overloaded: " in error or "are busy" in error for error in errors)
