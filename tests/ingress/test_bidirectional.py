"""Bidirectional endpoints: the captured frames of Dynamo, and our own router at the other end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast.codec import TcpRequestCodec, TwoPartCodec
from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.context import Context
from dynamo_fast.egress.request_sender import ManyIn
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import CannotConnect, SerializationError
from dynamo_fast.net import connector
from dynamo_fast.wire.payload import PayloadCodec
from tests.captured import Vector, captured, name_of
from tests.ingress.conftest import Start, address_of
from tests.ingress.requester import PATIENCE, Answer, Requester, control_frame, request_frame, two_part
from tests.ingress.test_push_handler import data_of, kept_alive, refused

DATA = captured("bidi_data")[0].data
CONTROLS = {vector.kind.removeprefix("bidi_ctl_"): vector.data for vector in captured("bidi_ctl_*")}


class Conversation:
    """A handler that answers each request as it comes, and says how its input ended."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[tuple[bool, bool]] = asyncio.get_running_loop().create_future()

    async def __call__(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for request in requests:
            yield {"got": request}
        self.ended.set_result((context.is_stopped(), context.is_killed()))
        yield "done"


async def dialled(requester: Requester, **changes: Any) -> tuple[Answer, Answer]:
    """The request stream, which must be dialled first, and the response stream."""
    request_info = requester.connection_info("1", "request")
    request_subject = requester.subject
    info = requester.connection_info("1")
    response_subject = requester.subject
    control = requester.control(
        "1", request_type="many_in", connection_info=info, request_stream_connection_info=request_info, **changes
    )
    requester.send(control, b"")
    assert await requester.ack() == ""
    first = await requester.dialled(request_subject)
    assert first.handshake.header == {"subject": request_subject, "stream_type": "request"}
    second = await requester.dialled(response_subject)
    prologue = await second.read()
    assert prologue is not None
    assert prologue.header == {"error": None}
    return first, second


async def test_the_input_is_kept_alive(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = kept_alive(connector, monkeypatch)
    async with Requester(address_of(await start(Conversation(), bidirectional=True))) as requester:
        first, second = await dialled(requester)
        assert await asyncio.wait_for(alive, PATIENCE)
        first.send(control_frame("sentinel"))
        assert await data_of(second) == ["done"]


async def test_a_conversation_in_captured_frames(start: Start) -> None:
    async with Requester(address_of(await start(Conversation(), bidirectional=True))) as requester:
        requests, answer = await dialled(requester)
        item = json.loads(bytes(TwoPartCodec().decode_message(DATA).data))
        requests.send(DATA)
        first = await answer.read()
        assert first is not None
        assert first.item["data"]["data"] == {"got": item}
        requests.send(DATA)
        requests.send(CONTROLS["sentinel"])
        requests.writer.write_eof()
        assert await data_of(answer) == [{"got": item}, "done"]
        assert await requests.rest() == b""  # the worker writes nothing but its handshake


@pytest.mark.parametrize(
    ("closing", "flags"),
    [
        (CONTROLS["stop"], (True, False)),
        (CONTROLS["kill"], (True, True)),
        (control_frame("other"), (True, True)),
        (two_part(b'"sentinel"', b"data"), (True, True)),
        (two_part(b"", b""), (True, True)),
        (two_part(b"", b"not json"), (True, True)),
        (b"\xff" * 24, (True, True)),
        (b"", (True, True)),
    ],
    ids=["stop", "kill", "unknown", "both", "empty", "no item", "garbage", "end of file"],
)
async def test_how_an_input_ends(start: Start, closing: bytes, flags: tuple[bool, bool]) -> None:
    conversation = Conversation()
    async with Requester(address_of(await start(conversation, bidirectional=True))) as requester:
        requests, answer = await dialled(requester)
        requests.send(closing)
        requests.writer.write_eof()
        assert await asyncio.wait_for(conversation.ended, PATIENCE) == flags
        assert await answer.rest() == b""  # neither a final marker nor a sentinel


@pytest.mark.parametrize("vector", captured("req_bidi_*"), ids=name_of)
async def test_the_captured_request(start: Start, vector: Vector) -> None:
    """Its answer would go to an address of long ago: it is taken, and nothing else goes wrong."""
    worker = await start(Conversation(), bidirectional=True, connect_timeout=0.2)
    async with Requester(address_of(worker)) as requester:
        payload = bytes(TcpRequestCodec().decode_message(vector.data).payload)
        requester.writer.write(request_frame(requester.path, payload))
        assert await requester.ack() == ""
        (served,) = worker.endpoints.values()
        await asyncio.wait_for(served.handler.drained(), PATIENCE)


async def test_a_single_request_for_a_bidirectional_endpoint(start: Start) -> None:
    async with Requester(address_of(await start(Conversation(), bidirectional=True))) as requester:
        assert "takes a stream of requests" in (await refused(await requester.call({})))["error"]
        answer = await requester.call({}, request_type="many_in")
        assert "it has a body" in (await refused(answer))["error"]


# Our own router


@pytest.fixture
async def router() -> AsyncIterator[AddressedPushRouter]:
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    async with await AddressedPushRouter.create(response_server=server) as router:
        yield router
        assert router.response_server.pending == 0
        assert not router.response_server._inputs


async def begin(
    router: AddressedPushRouter, address: str, items: Any, codec: PayloadCodec = PayloadCodec.MSGPACK, **options: Any
) -> Any:
    request = AddressedRequest(ManyIn(items), address, payload_codec=codec)
    return await asyncio.wait_for(router.generate(request, options.get("context")), PATIENCE)


async def collected(stream: Any) -> list[Any]:
    async def collect() -> list[Any]:
        return [item.data() async for item in stream]

    return await asyncio.wait_for(collect(), PATIENCE)


@pytest.mark.parametrize("codec", list(PayloadCodec), ids=lambda codec: codec.value)
async def test_both_ends_talk(start: Start, router: AddressedPushRouter, codec: PayloadCodec) -> None:
    worker = await start(Conversation(), bidirectional=True)
    heard = asyncio.Event()

    async def items() -> AsyncIterator[Any]:
        yield 1
        await heard.wait()
        for number in range(2, 1000):
            yield number

    stream = await begin(router, address_of(worker), items(), codec)
    assert (await stream.__anext__()).data() == {"got": 1}
    heard.set()
    assert await collected(stream) == [*({"got": number} for number in range(2, 1000)), "done"]


@pytest.mark.parametrize("how", ["stop", "kill", "close"])
async def test_cancelling_reaches_the_input(start: Start, router: AddressedPushRouter, how: str) -> None:
    conversation = Conversation()
    worker = await start(conversation, bidirectional=True)
    context = Context()
    closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def items() -> AsyncIterator[Any]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set_result(None)

    stream = await begin(router, address_of(worker), items(), context=context)
    assert (await stream.__anext__()).data() == {"got": 1}
    {"stop": context.stop_generating, "kill": context.kill, "close": stream.close}[how]()
    assert await collected(stream) in ([], ["done"])
    await asyncio.wait_for(closed, PATIENCE)
    stopped, _ = await asyncio.wait_for(conversation.ended, PATIENCE)
    assert stopped


async def test_an_input_that_fails_is_the_callers_to_hear(start: Start, router: AddressedPushRouter) -> None:
    worker = await start(Conversation(), bidirectional=True)

    async def raises() -> AsyncIterator[Any]:
        yield 1
        raise LookupError("no more")

    async def unserialisable() -> AsyncIterator[Any]:
        yield object()

    with pytest.raises(LookupError, match="no more"):
        await collected(await begin(router, address_of(worker), raises()))
    worker = await start(Conversation(), bidirectional=True)
    with pytest.raises(SerializationError, match="unsupported type"):
        await collected(await begin(router, address_of(worker), unserialisable()))


async def test_a_unary_endpoint_refuses_an_input(start: Start, router: AddressedPushRouter) -> None:
    async def items() -> AsyncIterator[Any]:
        yield 1

    worker = await start()
    with pytest.raises(Exception, match="it has no body") as caught:
        await begin(router, address_of(worker), items())
    assert not isinstance(caught.value, CannotConnect)  # the caller's own mistake
