"""Our router, and workers of real Dynamo."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.base import Added, DiscoveryEvent
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import CannotConnect, Disconnected, RemoteError
from dynamo_fast.wire.address import EndpointId, join_host_port
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.payload import PayloadCodec
from tests.interop.peers import Peer, environment
from tests.waiting import until

LIMIT = 30.0
CODECS = pytest.mark.parametrize("codec", list(PayloadCodec), ids=lambda codec: codec.value)


@pytest.fixture
async def router() -> AsyncIterator[AddressedPushRouter]:
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    async with await AddressedPushRouter.create(response_server=server) as router:
        inflight = router.metrics.inflight
        yield router
        assert router.metrics.inflight == inflight
        assert router.response_server.pending == 0


async def find(peer: Peer, endpoint: str = "generate") -> Instance:
    found: asyncio.Future[Instance] = asyncio.get_running_loop().create_future()

    def look(event: DiscoveryEvent) -> None:
        if isinstance(event, Added) and not found.done():
            found.set_result(event.instance)

    discovery = FileDiscovery(peer.folder)
    await discovery.watch(EndpointId("peer", "worker", endpoint), look)
    try:
        return await asyncio.wait_for(found, LIMIT)
    finally:
        await discovery.close()


async def begin(
    router: AddressedPushRouter,
    peer: Peer,
    request: Any,
    context: Context | None = None,
    *,
    codec: PayloadCodec | None = None,
    endpoint: str = "generate",
) -> ResponseStream:
    instance = await find(peer, endpoint)
    addressed = AddressedRequest(
        request, instance.tcp_address, instance.endpoint_instance_id, codec or instance.payload_codec
    )
    return await asyncio.wait_for(router.generate(addressed, context), LIMIT)


async def items_of(stream: ResponseStream) -> list[Any]:
    async def collect() -> list[Any]:
        return [item.data() async for item in stream]

    return await asyncio.wait_for(collect(), LIMIT)


async def test_the_codec_is_the_one_that_the_worker_asks_for(worker: Peer) -> None:
    instance = await find(worker)
    assert instance.payload_codec is (PayloadCodec.JSON if worker.version == "1.3.1" else PayloadCodec.MSGPACK)


@CODECS
@pytest.mark.parametrize("n", [0, 1, 5000])
async def test_many_items_one_and_none(router: AddressedPushRouter, worker: Peer, codec: PayloadCodec, n: int) -> None:
    stream = await begin(router, worker, {"mode": "count", "n": n}, codec=codec)
    assert await items_of(stream) == [{"number": number} for number in range(n)]


@CODECS
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "",
        'größe 日本語 🦕 \u2028 \x7f \x00 " \\ /',
        [0.1, -0.0, 1e-7, 1.5e-5, 1e15, 1e16, 1.25e20, 1e300, 5e-324, 2.0],
        [0, -1, 127, 128, 255, 256, 65535, 65536, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), -129],
        {"a": {"b": [{"c": [[], {}, [None]]}]}, "": 1, "é": [True, False]},
        [[[[[[[[[[1]]]]]]]]]],
    ],
    ids=["none", "true", "empty", "unicode", "floats", "integers", "nested", "deep"],
)
async def test_values_come_back_as_they_went(
    router: AddressedPushRouter, worker: Peer, codec: PayloadCodec, value: Any
) -> None:
    (answer,) = await items_of(await begin(router, worker, {"mode": "echo", "value": value}, codec=codec))
    assert repr(answer) == repr(value)  # repr tells 2.0 from 2, and -0.0 from 0.0


@CODECS
async def test_five_megabytes_both_ways(router: AddressedPushRouter, worker: Peer, codec: PayloadCodec) -> None:
    value = {"text": "x" * 5_000_000}
    (answer,) = await items_of(await begin(router, worker, {"mode": "echo", "value": value}, codec=codec))
    assert answer == value


async def test_two_hundred_requests_at_once(router: AddressedPushRouter, worker: Peer) -> None:
    async def one(number: int) -> list[Any]:
        return await items_of(await begin(router, worker, {"mode": "count", "n": number % 7}))

    answers = await asyncio.gather(*map(one, range(200)))
    assert [len(answer) for answer in answers] == [number % 7 for number in range(200)]


async def test_id_and_metadata_arrive(router: AddressedPushRouter, worker: Peer) -> None:
    context = Context("größe 1", {"b": "2", "a": "1 \n"})
    (answer,) = await items_of(await begin(router, worker, {"mode": "context"}, context))
    assert answer == {"id": "größe 1", "metadata": {"a": "1 \n", "b": "2"}}


@CODECS
@pytest.mark.parametrize("after", [0, 3])
async def test_a_handler_that_raises(
    router: AddressedPushRouter, worker: Peer, codec: PayloadCodec, after: int
) -> None:
    request = {"mode": "raise", "after": after, "kind": "ValueError"}
    stream = await begin(router, worker, request, codec=codec)
    for number in range(after):
        assert (await stream.__anext__()).data() == number
    with pytest.raises(RemoteError, match="^ValueError: on purpose$") as caught:
        await asyncio.wait_for(stream.__anext__(), LIMIT)
    assert caught.value.error_type == "Backend.InvalidArgument"
    assert (caught.value.error_class, caught.value.reason) == ("InvalidRequest", "backend.invalid_argument")
    assert not caught.value.migratable
    assert await items_of(stream) == []


async def test_a_handler_that_cannot_be_called(router: AddressedPushRouter, worker: Peer) -> None:
    with pytest.raises(CannotConnect, match="failed before response stream: Generate Error: AttributeError"):
        await begin(router, worker, {}, endpoint="broken")


async def test_an_endpoint_that_nobody_serves(router: AddressedPushRouter, worker: Peer) -> None:
    address = (await find(worker)).tcp_address
    with pytest.raises(Exception, match="(?i)unknown endpoint") as caught:
        await asyncio.wait_for(router.generate(AddressedRequest.new({}, f"{address}x")), LIMIT)
    assert type(caught.value).__name__ == "Unavailable"


@pytest.mark.parametrize("how", ["stop", "kill", "close", "drop"])
async def test_the_worker_sees_how_a_request_was_given_up(router: AddressedPushRouter, worker: Peer, how: str) -> None:
    key, context = str(uuid.uuid4()), Context()
    stream = await begin(router, worker, {"mode": "watch", "key": key}, context)
    assert (await stream.__anext__()).data() == 0
    if how == "stop":
        context.stop_generating()
        await items_of(stream)
    elif how == "kill":
        context.kill()
        assert await items_of(stream) == []
    elif how == "close":
        stream.close()
    else:
        del stream
    (flags,) = await items_of(await begin(router, worker, {"key": key}, endpoint="flags"))
    assert flags == [True, how != "stop"]


# A worker that dies


async def is_disconnected(call: Any) -> None:
    """An error: not a hang, and not a clean end. (The deadlines of a call are longer than the limit.)"""
    with pytest.raises(Disconnected):
        await asyncio.wait_for(call, LIMIT)


async def test_a_worker_killed_in_mid_stream(router: AddressedPushRouter, doomed_worker: Peer) -> None:
    stream = await begin(router, doomed_worker, {"mode": "watch", "key": "none"})
    assert (await stream.__anext__()).data() == 0
    doomed_worker.process.kill()
    await is_disconnected(items_of(stream))


async def test_a_worker_killed_before_its_prologue(router: AddressedPushRouter, doomed_worker: Peer) -> None:
    instance = await find(doomed_worker, "blocked")
    call = asyncio.ensure_future(router.generate(AddressedRequest.for_instance({}, instance)))
    await until(lambda: router.response_server.connections and not router.response_server.pending)
    assert not call.done()
    doomed_worker.process.kill()
    await is_disconnected(call)


async def test_a_worker_killed_before_it_dials_back(router: AddressedPushRouter, doomed_worker: Peer) -> None:
    # What it dials is a socket that takes its connection and nothing more: to the router it has not dialled.
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        router.response_server.address = join_host_port(*elsewhere.getsockname())
        instance = await find(doomed_worker)
        call = asyncio.ensure_future(
            router.generate(AddressedRequest.for_instance({"mode": "count", "n": 1}, instance))
        )
        dialled, _ = await asyncio.get_running_loop().run_in_executor(None, elsewhere.accept)
        await until(lambda: router.response_server.call_home)  # the acknowledgement has come, too
        doomed_worker.process.kill()
        await is_disconnected(call)
        dialled.close()


# From the command line


def test_call(worker: Peer) -> None:
    command = [sys.executable, "-m", "dynamo_fast", "call", "peer.worker.generate"]
    settings = {**environment(worker.folder), "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1"}
    settings["PYTHONPATH"] = os.pathsep.join(sys.path)

    def call(request: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, json.dumps(request)], env=settings, capture_output=True, text=True, timeout=LIMIT, check=False
        )

    good = call({"mode": "count", "n": 3})
    assert (good.returncode, good.stderr) == (0, "")
    assert [json.loads(line) for line in good.stdout.splitlines()] == [{"number": number} for number in range(3)]
    bad = call({"mode": "raise", "after": 1, "kind": "RuntimeError"})
    assert (bad.returncode, bad.stdout) == (1, "0\n")
    assert bad.stderr == "dynamo-fast call: error: RuntimeError: on purpose\n"
