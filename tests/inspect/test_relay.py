"""The relay between a router and a worker of ours, and between plain sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.codec import TcpRequestDecoder, TcpRequestMessage, TwoPartDecoder
from dynamo_fast.config import ResponseServerConfig, TcpServerConfig
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import InvalidAddress, InvalidRequest, RemoteError, Unavailable
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.inspect import Event, Formatter, Relay
from dynamo_fast.net.interfaces import is_bindable
from dynamo_fast.wire.address import split_host_port
from dynamo_fast.wire.control import RequestControlMessage, TcpStreamConnectionInfo
from dynamo_fast.wire.payload import PayloadCodec
from tests.inspect.test_conversation import HANDSHAKE, ITEM, PROLOGUE, SENTINEL, request_frame

LIMIT = 20.0


class Lines(list[dict[str, Any]]):
    """What a relay has reported, as the lines of JSON that `tap` prints."""

    def __init__(self) -> None:
        self._more = asyncio.Event()

    def add(self, event: Event) -> None:
        self += map(json.loads, Formatter(as_json=True).event(event))
        self._more.set()

    async def until(self, is_enough: Callable[[Lines], bool]) -> Lines:
        """Itself, as soon as it is enough."""

        async def wait() -> None:
            while not is_enough(self):
                self._more.clear()
                await self._more.wait()

        await asyncio.wait_for(wait(), LIMIT)
        return self

    async def closed(self, count: int) -> Lines:
        """Itself, once so many connections are closed."""
        return await self.until(lambda lines: sum("closed" in line.get("text", "") for line in lines) >= count)

    def kinds(self, connection: int) -> list[str]:
        return [
            line["direction"] + line["kind"] for line in self if line["connection"] == connection and "size" in line
        ]

    @property
    def notes(self) -> list[str]:
        return [line["text"] for line in self if line["kind"] == "note"]


async def handler(request: Any) -> AsyncIterator[Any]:
    for number in range(request["n"]):
        yield {"token": number}
    if "error" in request:
        raise ValueError(request["error"])
    if "wait" in request:
        await asyncio.Event().wait()


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    worker = await Worker.start(FileDiscovery(tmp_path), server_config=TcpServerConfig(host="127.0.0.1"))
    await worker.serve(handler, "tap.worker.generate")
    yield worker
    await worker.close()


@pytest.fixture
async def router() -> AsyncIterator[AddressedPushRouter]:
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    async with await AddressedPushRouter.create(response_server=server) as router:
        yield router


async def relayed(
    worker: Worker, lines: Lines, *, answers: bool = True, listen: str = "127.0.0.1:0"
) -> tuple[Relay, str]:
    """A relay in front of the worker, and the address to call it at."""
    (served,) = worker.endpoints.values()
    upstream, _, path = served.address.partition("/")
    relay = Relay(upstream, lines.add, answers=answers)
    await relay.start(listen)
    return relay, f"{relay.address}/{path}"


async def items(router: AddressedPushRouter, address: str, request: Any, codec: PayloadCodec) -> list[Any]:
    async def collect() -> list[Any]:
        stream = await router.generate(AddressedRequest(request, address, payload_codec=codec))
        return [item.data() async for item in stream]

    return await asyncio.wait_for(collect(), LIMIT)


@pytest.mark.parametrize("codec", list(PayloadCodec))
async def test_both_planes_of_a_call(worker: Worker, router: AddressedPushRouter, codec: PayloadCodec) -> None:
    lines = Lines()
    relay, address = await relayed(worker, lines)
    assert await items(router, address, {"n": 2}, codec) == [{"token": 0}, {"token": 1}]
    await lines.closed(1)
    with pytest.raises(RemoteError, match="ValueError: no"):
        await items(router, address, {"n": 0, "error": "no"}, codec)
    await lines.closed(2)
    assert lines.kinds(1) == [">request", "<ack", ">request", "<ack"]
    assert lines.kinds(2) == ["<handshake", "<prologue", "<item", "<item", "<final", "<sentinel"]
    assert lines.kinds(3)[:3] == ["<handshake", "<prologue", "<error"]
    assert (lines[0]["kind"], lines[0]["listener"]) == ("connection", worker.server.transport("").address.rstrip("/"))
    request = lines[1]["content"]
    assert request["body"] == {"n": 2}
    assert request["control"]["connection_info"]["info"]["address"] == router.response_server.address
    await relay.close()
    await lines.closed(3)


@pytest.mark.skipif(not is_bindable("::1"), reason="IPv6 is switched off on this machine")
async def test_a_relay_on_ipv6(tmp_path: Path) -> None:
    worker = await Worker.start(FileDiscovery(tmp_path), server_config=TcpServerConfig(host="::1"))
    await worker.serve(handler, "tap.worker.generate")
    server = await TcpStreamServer.create(ResponseServerConfig(host="::1"))
    async with await AddressedPushRouter.create(response_server=server) as router:
        lines = Lines()
        relay, address = await relayed(worker, lines, listen="[::1]:0")
        assert address.startswith("[::1]:")
        assert await items(router, address, {"n": 1}, PayloadCodec.JSON) == [{"token": 0}]
        await lines.closed(1)
        assert lines.kinds(2) == ["<handshake", "<prologue", "<item", "<final", "<sentinel"]
        await relay.close()
    await worker.close()


async def test_answers_that_are_not_to_be_seen(worker: Worker, router: AddressedPushRouter) -> None:
    lines = Lines()
    relay, address = await relayed(worker, lines, answers=False)
    assert await items(router, address, {"n": 1}, PayloadCodec.JSON) == [{"token": 0}]
    assert {line["connection"] for line in lines} == {1}
    with pytest.raises(Unavailable, match="unknown endpoint nope"):
        await items(router, f"{relay.address}/nope", {"n": 1}, PayloadCodec.JSON)
    await lines.until(lambda lines: "<refusal" in lines.kinds(1))
    await relay.close()


async def test_a_kill_goes_through(worker: Worker, router: AddressedPushRouter) -> None:
    lines = Lines()
    relay, address = await relayed(worker, lines)
    stream = await asyncio.wait_for(router.generate(AddressedRequest({"n": 1, "wait": 1}, address)), LIMIT)
    await asyncio.wait_for(stream.__anext__(), LIMIT)
    stream.close()
    await lines.until(lambda lines: ">kill" in lines.kinds(2))
    await lines.closed(1)
    await relay.close()


# Plain sockets ---------------------------------------------------------------------------------------------------------


class Upstream:
    """A listener that takes one connection."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def start(self) -> str:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.accepted.put_nowait((reader, writer))

        self.server = await asyncio.start_server(accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.wait_for(self.accepted.get(), LIMIT)


async def through() -> tuple[Relay, Lines, Upstream, asyncio.StreamReader, asyncio.StreamWriter]:
    lines, upstream = Lines(), Upstream()
    relay = Relay(await upstream.start(), lines.add)
    await relay.start("127.0.0.1:0")
    reader, writer = await asyncio.open_connection(*split_host_port(relay.address))
    return relay, lines, upstream, reader, writer


def request_to(address: str) -> bytes:
    info = TcpStreamConnectionInfo(address, "s", "i").to_connection_info()
    return request_frame(json.loads(RequestControlMessage("i", info).encode()), headers=b'{"a":"b"}', body=b'{"x":1}')


async def test_the_answer_is_asked_for_and_nothing_else_is_changed() -> None:
    relay, lines, upstream, _, writer = await through()
    sent = request_to("127.0.0.1:1")
    writer.write(sent[:50])
    await writer.drain()
    writer.write(sent[50:])
    far_reader, far_writer = await upstream.connection()
    decoder = TcpRequestDecoder()
    messages: list[TcpRequestMessage] = []
    while not messages:
        messages = decoder.feed(await asyncio.wait_for(far_reader.read(1 << 16), LIMIT))
    message = messages[0]
    assert (bytes(message.endpoint_path), bytes(message.headers)) == (b"1/a", b'{"a":"b"}')
    (two_part,) = TwoPartDecoder().feed(bytes(message.payload))
    assert bytes(two_part.data) == b'{"x":1}'
    control = RequestControlMessage.decode(two_part.header)
    answer_address = TcpStreamConnectionInfo.from_connection_info(control.connection_info).address
    assert answer_address not in ("127.0.0.1:1", relay.address)
    assert split_host_port(answer_address)[0] == "127.0.0.1"
    assert lines[1]["size"] == len(sent)
    for each in (writer, far_writer):
        each.close()
    await lines.closed(1)
    await relay.close()
    upstream.server.close()


@pytest.mark.parametrize(
    "data",
    [
        request_frame({"no": "control message"}),
        request_frame({"id": "i", "request_type": "single_in", "response_type": "many_out",
                       "connection_info": {"transport": "other", "info": ""}}),
        request_frame(body=b""),
        b"\x00\x03a/b\xff\xff" + b"x" * 65535 + b"\xff\xff\xff\xff and more",
        b"GET / HTTP/1.1\r\n\r\n" * 40,
    ],
    ids=lambda data: repr(data)[:30],
)  # fmt: skip
async def test_what_is_no_request_passes_as_it_is(data: bytes) -> None:
    relay, lines, upstream, reader, writer = await through()
    writer.write(data)
    writer.write_eof()
    far_reader, far_writer = await upstream.connection()
    assert await asyncio.wait_for(far_reader.read(), LIMIT) == data
    far_writer.write(b"whatever")
    far_writer.close()
    assert await asyncio.wait_for(reader.read(), LIMIT) == b"whatever"
    writer.close()
    await lines.closed(1)
    await relay.close()
    upstream.server.close()


async def test_a_half_closed_connection_still_answers() -> None:
    relay, lines, upstream, reader, writer = await through()
    writer.write_eof()
    far_reader, far_writer = await upstream.connection()
    assert await asyncio.wait_for(far_reader.read(), LIMIT) == b""
    far_writer.write(bytes(4))
    assert await asyncio.wait_for(reader.readexactly(4), LIMIT) == bytes(4)
    far_writer.close()
    assert await asyncio.wait_for(reader.read(), LIMIT) == b""
    writer.close()
    assert (await lines.closed(1)).notes == ["closed (FIN)"]
    await relay.close()
    upstream.server.close()


@pytest.mark.parametrize("from_router", [True, False])
async def test_a_reset_stays_a_reset(from_router: bool) -> None:
    relay, lines, upstream, reader, writer = await through()
    far_reader, far_writer = await upstream.connection()
    here, there = (writer, far_reader) if from_router else (far_writer, reader)
    connection: socket.socket = here.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    here.transport.abort()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(there.read(), LIMIT)
    assert (await lines.closed(1)).notes == ["closed (RST)"]
    await relay.close()
    for each in (writer, far_writer):
        each.close()
    upstream.server.close()


async def test_an_upstream_that_refuses() -> None:
    lines = Lines()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        upstream = f"127.0.0.1:{unused.getsockname()[1]}"
        relay = Relay(upstream, lines.add)
        await relay.start("127.0.0.1:0")
        reader, writer = await asyncio.open_connection(*split_host_port(relay.address))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), LIMIT)
    assert lines.notes[0].startswith(f"{upstream} cannot be dialled: ")
    writer.close()
    await relay.close()


@pytest.mark.parametrize("said", [HANDSHAKE + PROLOGUE + ITEM + SENTINEL, b"\xff" * 24, ITEM, b"short"])
async def test_an_answer_that_was_not_asked_for(said: bytes) -> None:
    lines = Lines()
    relay = Relay("127.0.0.1:1", lines.add)
    await relay.start("127.0.0.1:0")
    reader, writer = await asyncio.open_connection(*split_host_port(relay.answer_address))
    writer.write(said)
    writer.write_eof()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), LIMIT)
    assert "does not bring an expected answer" in lines.notes[0]
    writer.close()
    await relay.close()


async def test_where_a_relay_may_listen() -> None:
    for listen in ("0.0.0.0:0", "[::]:0", "192.0.2.1:0"):
        with pytest.raises(InvalidRequest, match="listens on loopback only"):
            await Relay("127.0.0.1:1", Lines().add).start(listen)
    for listen in ("localhost:0", "127.0.0.1", "9999"):
        with pytest.raises(InvalidAddress):
            await Relay("127.0.0.1:1", Lines().add).start(listen)
    with pytest.raises(InvalidAddress):
        Relay("upstream", Lines().add)


async def test_the_connections_are_closed_with_the_relay() -> None:
    relay, _, upstream, reader, writer = await through()
    _, far_writer = await upstream.connection()
    await asyncio.wait_for(relay.close(), LIMIT)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), LIMIT)
    for each in (writer, far_writer):
        each.close()
    upstream.server.close()
