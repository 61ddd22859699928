"""What the comparison with Dynamo (tests/compat) does not show: what is ours alone, and what is not offered."""

from __future__ import annotations

import asyncio
import builtins
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast import AddressedPushRouter, AddressedRequest, ManyIn, errors
from dynamo_fast.runtime import (
    Client,
    Context,
    DistributedRuntime,
    InvalidArgument,
    NotOffered,
    RouterMode,
    dynamo_worker,
)
from dynamo_fast.runtime.exceptions import at_await, at_iterate
from tests.discovery.etcd_server import Etcd, etcd
from tests.waiting import until

LIMIT = 30


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")


def make(backend: str = "file") -> DistributedRuntime:
    return DistributedRuntime(asyncio.get_running_loop(), backend, "tcp")


async def count(request: int) -> AsyncIterator[int]:
    for number in range(request):
        yield number


async def connect(runtime: DistributedRuntime, path: str, instances: int = 1, **options: Any) -> Client:
    client = await runtime.endpoint(path).client(**options)
    await until(lambda: len(client.instance_ids()) >= instances)
    return client


@pytest.mark.parametrize("backend", ["file", "mem"])
async def test_code_in_the_style_of_dynamos_documentation(backend: str) -> None:
    runtime = make(backend)
    endpoint = runtime.endpoint("hello.backend.generate")

    async def generate(request: str, context: Context) -> AsyncIterator[str]:
        for word in request.split():
            yield f"hello {word}"

    serving = endpoint.serve_endpoint(generate)
    client = await endpoint.client()
    await client.wait_for_instances()
    words = [item.data() async for item in await client.round_robin("world sun")]
    assert words == ["hello world", "hello sun"]
    runtime.shutdown()
    assert await asyncio.wait_for(serving, LIMIT) == ()


@pytest.mark.parametrize("turns", [None, 0, 1, 2, 3, 5, 8])
async def test_a_shutdown_before_an_endpoint_serves_is_no_error(turns: int | None) -> None:
    """As in Dynamo 1.3.1 and 1.6.1. `turns` of the loop are between the two; None: the shutdown comes first."""
    runtime = make()
    endpoint = runtime.endpoint("a.b.c")
    if turns is None:
        runtime.shutdown()
    serving = endpoint.serve_endpoint(count)
    for _ in range(turns or 0):
        await asyncio.sleep(0)
    runtime.shutdown()
    assert await asyncio.wait_for(serving, LIMIT) == ()


async def test_workers_that_share_a_folder_take_turns_and_leave() -> None:
    workers = [make() for _ in range(3)]
    serving = []

    for number, worker in enumerate(workers):

        async def who(request: Any, number: int = number) -> AsyncIterator[int]:
            yield number

        serving.append(worker.endpoint("a.b.c").serve_endpoint(who))
    caller = make()
    client = await connect(caller, "a.b.c", 3)
    order = {each.endpoint("a.b.c").connection_id(): number for number, each in enumerate(workers)}
    seen = [await (await client.round_robin(None, annotated=False)).__anext__() for _ in range(6)]
    assert seen == [order[instance_id] for instance_id in sorted(order)] * 2  # ascending, as in 1.6.1
    workers[0].shutdown()
    await asyncio.wait_for(serving[0], LIMIT)
    await until(lambda: len(client.instance_ids()) == 2)  # the news comes by a thread
    seen = [await (await client.round_robin(None, annotated=False)).__anext__() for _ in range(6)]
    assert Counter(seen) == {1: 3, 2: 3}
    for runtime in (*workers, caller):
        runtime.shutdown()
    await asyncio.wait_for(asyncio.gather(*serving), LIMIT)


@pytest.mark.parametrize("mode", [RouterMode.LeastLoaded, RouterMode.PowerOfTwoChoices, RouterMode.DeviceAwareWeighted])
async def test_generate_follows_the_mode_of_the_client(mode: RouterMode) -> None:
    workers = [make(), make()]
    release = asyncio.Event()

    async def wait(request: Any) -> AsyncIterator[int]:
        await release.wait()
        yield 1

    serving = [worker.endpoint("a.b.c").serve_endpoint(wait) for worker in workers]
    client = await connect(workers[0], "a.b.c", 2, router_mode=mode)
    streams = [await client.generate(None) for _ in range(10)]
    loads = [entry.in_flight for entry in client._router.table]
    assert loads == [5, 5]
    streams.append(await client.device_aware_weighted(None))
    release.set()
    for stream in streams:
        assert [item.data() async for item in stream] == [1]
    assert [entry.in_flight for entry in client._router.table] == [0, 0]
    for worker in workers:
        worker.shutdown()
    await asyncio.wait_for(asyncio.gather(*serving), LIMIT)


async def test_a_context_that_outlives_its_calls_keeps_none_of_them() -> None:
    runtime = make("mem")
    serving = runtime.endpoint("a.b.c").serve_endpoint(count)
    client = await connect(runtime, "a.b.c")
    context = Context()
    for _ in range(3):
        assert len([item async for item in await client.round_robin(2, context=context)]) == 2
    stream = await client.round_robin(2, context=context)
    del stream
    await until(lambda: not context.request._callbacks)  # the future that brought it is dropped in the next turn
    with pytest.raises(errors.Unavailable):
        await client.direct(1, 5, context=context)
    assert not context.request._callbacks
    runtime.shutdown()
    await serving


async def test_the_inactivity_limit_ends_the_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS", "0.2")
    runtime = make("mem")

    async def stall(request: Any) -> AsyncIterator[int]:
        yield 1
        await asyncio.get_running_loop().create_future()

    monkeypatch.setenv("DYNAMO_FAST_CANCEL_GRACE", "0.1")
    serving = runtime.endpoint("a.b.c").serve_endpoint(stall)
    client = await connect(runtime, "a.b.c")
    stream = await client.round_robin(None, annotated=False)
    assert await stream.__anext__() == 1
    with pytest.raises(ValueError, match="^DeadlineExceeded: backend response inactivity timeout$"):
        await stream.__anext__()
    with pytest.raises(errors.Unavailable, match="No workers available"):
        await client.round_robin(None)
    runtime.shutdown()
    await asyncio.wait_for(serving, LIMIT)


async def test_a_trace_goes_through_a_chain_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_LOGGING_JSONL", "1")
    runtime = make("mem")

    async def last(request: Any, context: Context) -> AsyncIterator[Any]:
        yield [context.id(), context.trace_id, context.parent_span_id, context.span_id]

    async def middle(request: Any, context: Context) -> AsyncIterator[Any]:
        yield [context.id(), context.trace_id, context.parent_span_id, context.span_id]
        client = await connect(runtime, "a.b.last")
        async for item in await client.round_robin(None, annotated=False, context=context):
            yield item
        async for item in await client.round_robin(None, annotated=False):
            yield item

    serving = [
        runtime.endpoint(f"a.b.{name}").serve_endpoint(each) for name, each in (("last", last), ("middle", middle))
    ]
    client = await connect(runtime, "a.b.middle")
    first, second, apart = [item.data() async for item in await client.round_robin(None)]
    assert first[:2] == second[:2]
    assert first[2] is not None  # the caller's span
    assert second[2] not in (None, first[2], first[3])  # the span of the call between the two
    assert apart[0] != first[0]
    assert apart[1] != first[1]
    monkeypatch.delenv("DYN_LOGGING_JSONL")
    assert Context().trace_headers() is None
    runtime.shutdown()
    await asyncio.wait_for(asyncio.gather(*serving), LIMIT)


async def test_shutdown_may_be_called_from_another_thread() -> None:
    runtime = make("mem")
    serving = runtime.endpoint("a.b.c").serve_endpoint(count)
    await connect(runtime, "a.b.c")
    thread = threading.Thread(target=runtime.shutdown)
    thread.start()
    assert await asyncio.wait_for(serving, LIMIT) == ()
    thread.join()


async def test_what_is_not_offered_says_so() -> None:
    runtime = make("mem")
    endpoint = runtime.endpoint("a.b.c")
    for attempt in (
        lambda: DistributedRuntime(None, "file", "tcp", response_plane="quic"),
        runtime.to_capsule,
    ):
        with pytest.raises(NotOffered, match="not offered"):
            attempt()
    with pytest.raises(TypeError, match="argument 'router_mode'"):
        endpoint.client(5)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidConfig, match="Invalid response_plane value 'x'. Valid values: 'tcp', 'quic'"):
        DistributedRuntime(None, "file", "tcp", response_plane="x")
    runtime.shutdown()


def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "aiohttp":
            raise ImportError("no aiohttp")
        return real(name, *rest)

    modules = __import__("sys").modules
    needing = ("dynamo_fast.discovery.etcd", "dynamo_fast.discovery.http_session")
    for module in [each for each in modules if each.startswith(needing)]:
        monkeypatch.delitem(modules, module)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(errors.InvalidConfig, match=r"pip install 'dynamo-fast\[etcd\]'"):
        DistributedRuntime(None, "etcd", "tcp")


def test_errors_are_those_of_both_worlds() -> None:
    cause = ConnectionResetError("reset")
    error = errors.Disconnected("Stream ended before generation completed")
    error.__cause__ = cause
    shown = at_iterate(error)
    assert str(shown) == "Unavailable: Stream ended before generation completed"
    assert all(isinstance(shown, each) for each in (ValueError, errors.Disconnected, ConnectionError))
    assert shown.__cause__ is cause
    assert shown.migratable
    assert type(at_iterate(error)) is type(shown)
    large = at_await(errors.RequestTooLarge("Too large.", "It takes 5 bytes.", size=5, limit=4))
    assert str(large) == "InvalidRequest: Too large."
    assert isinstance(large, errors.RequestTooLarge)
    assert (large.size, large.limit) == (5, 4)
    public = errors.RemoteError("no", error_class="InvalidRequest", public={"type": "message", "message": "said so"})
    assert isinstance(at_iterate(public), InvalidArgument)
    assert str(at_iterate(public)) == "said so"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


async def test_a_worker_and_a_caller_meet_in_etcd(server: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_ENDPOINTS", server.url)
    monkeypatch.setenv("ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS", "5")
    monkeypatch.delenv("DYN_DISCOVERY_BACKEND", raising=False)  # etcd is the default
    answers = []

    @dynamo_worker()
    async def worker(runtime: DistributedRuntime) -> None:
        caller = make("etcd")
        serving = runtime.endpoint("a.b.c").serve_endpoint(count)
        client = await connect(caller, "a.b.c")
        assert client.instance_ids() == [runtime.endpoint("a.b.c").connection_id()]
        answers.extend([item async for item in await client.random(3, annotated=False)])
        # The caller may see the record before etcd has answered the worker. A shutdown before that fails the registration.
        while runtime._hub.status.health().endpoints != {"c": True}:
            await asyncio.sleep(0.01)
        runtime.shutdown()
        await asyncio.wait_for(serving, LIMIT)
        await until(lambda: not client.instance_ids())
        caller.shutdown()
        await asyncio.wait_for(caller.ended(), LIMIT)

    await asyncio.wait_for(worker(), 3 * LIMIT)
    assert answers == [0, 1, 2]


async def test_a_bidirectional_endpoint_is_served() -> None:
    async def converse(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield {"got": request}

    async def requests() -> AsyncIterator[int]:
        yield 1
        yield 2

    runtime = make()
    serving = runtime.endpoint("a.b.c").serve_bidirectional_endpoint(converse)
    (instance,) = (await connect(runtime, "a.b.c")).instances()
    async with await AddressedPushRouter.create() as router:
        stream = await router.generate(AddressedRequest.new(ManyIn(requests()), instance.transport.address))
        assert [item.data() async for item in stream] == [{"got": 1}, {"got": 2}]
    runtime.shutdown()
    assert await asyncio.wait_for(serving, LIMIT) == ()
