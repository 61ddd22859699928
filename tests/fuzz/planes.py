"""Chosen bytes into the connections of both planes, on real sockets, and what must hold whatever the bytes are.

    answers      a worker's response connection, at the router
    sessions     a worker's session of many answers, at the router
    acks         a worker's acknowledgements, at the router
    requests     a router's request connection, at the worker
    controls     a router's control messages on a response connection, at the worker
    inputs       a router's request stream of a bidirectional request, at the worker

Each plane has one object that lives as long as the event loop; `play` sends it the bytes of one `Script` and checks that

- nothing reaches the event loop's exception handler;
- each call ends with an answer or with a documented error (a DynamoError);
- afterwards every table is as it was before, and no request is counted as running.

It goes through public entry points and real sockets only. The fence in `Loop` keeps mutated addresses from being dialled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from inspect import isgetsetdescriptor
from typing import Any

import msgspec

from dynamo_fast.codec import BACKEND
from dynamo_fast.config import ResponseServerConfig, TcpClientConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.request_client import Ack, RequestPlaneClient
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import DynamoError
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from dynamo_fast.wire.payload import PayloadCodec
from tests.waiting import until

__all__ = ["PLANES", "Choices", "Plane", "Playing", "Script", "opened"]

LIMIT = 20.0
"""Seconds after which something that should end is taken for hanging."""
RESET = struct.pack("ii", 1, 0)
MAX_FRAME = 1 << 20


# What is sent -----------------------------------------------------------------------------------------------------------


class Choices:
    """Decisions out of bytes: the fuzzer changes the bytes, and with them the decisions."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, count: int) -> int:
        """A number from 0 to count - 1 (at most 255)."""
        self._at += 1
        return self._data[self._at - 1] % count if self._at <= len(self._data) else 0

    def one(self, values: Any) -> Any:
        """One of the values."""
        return values[self.below(len(values))]

    def some(self, count: int) -> bytes:
        """So many bytes, or as many as are left."""
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> bytes:
        """What is left."""
        return self._data[self._at :]


DEEP = b"[" * 3000 + b"]" * 3000
HOSTILE_JSON: tuple[bytes, ...] = (
    b"null",
    b"1",
    b'""',
    b"[]",
    b"{}",
    DEEP,
    b'{"a":' * 3000 + b"1" + b"}" * 3000,
    b"[" * 3000,
    b"1" * 5000,
    b"-1",
    b"1e400",
    b"1e-400",
    b"18446744073709551616",
    b"NaN",
    b'"\\ud800"',
    b'"\xff"',
    b'"\\u0000\\n\\u001b[31m\\u202e"',
    b'"' + b"x" * 10_000 + b'"',
    b'{"a":1,"a":[2]}',
    b'"127.0.0.1:' + b"1" * 4301 + b'"',
    b'"[fe80::1%\\u0000]:1"',
    b'{"caused_by":' * 600 + b"{}" + b"}" * 600,
    b'{"message":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"Backend":{"Backend":1}}',
    b"",
)
HOSTILE_MSGPACK: tuple[bytes, ...] = (
    b"\x91" * 3000 + b"\x01",
    b"\x81\xa1a" * 3000 + b"\x01",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xa2\xff\xff",
    b"\x81\x80\x01",
    b"\x81" + b"\x91" * 900 + b"\x01\x01",
    b"\xd7\xff" + b"\xff" * 8,
    b"\xc7\x04\x05abcd",
    b"\xcf" + b"\xff" * 8,
    b"\xca\x7f\xc0\x00\x00",
    b"\xc1",
    b"",
)


RAW_SCRIPTS = (b"\0\0\0\1", b"\2\0\6\1", b"\1\0\7\1")
"""The choices of scripts whose stream is what follows: whole and closed; in pieces and half-closed; in pieces and reset."""


class Script:
    """What one connection says: `frames` and how they are cut, and how it ends."""

    def __init__(self, data: bytes, compose: Callable[[Choices], bytes]) -> None:
        choices = Choices(data)
        self.end = choices.one(("close", "reset", "half-close"))
        self.is_killed = choices.below(4) == 3
        self.cut = choices.one((0, 0, 1, 2, 7, 24, 25, 100, 1000))
        if choices.below(2):
            self.stream = choices.rest()
        else:
            self.stream = b"".join(compose(choices) for _ in range(1 + choices.below(4)))

    def chunks(self) -> list[bytes]:
        """The stream in pieces, of which there are not too many."""
        size = max(self.cut, len(self.stream) // 64, 1) if self.cut else len(self.stream) or 1
        return [self.stream[at : at + size] for at in range(0, len(self.stream), size)]


def two_part(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">QQQ", len(header), len(data), 0) + header + data


def mux_frame(stream: int, kind: int, body: bytes) -> bytes:
    return struct.pack(">II", stream, kind << 24 | len(body) & 0xFF_FFFF) + body


def damaged(choices: Choices, text: bytes) -> bytes:
    """`text`, with a few bytes replaced."""
    for _ in range(choices.below(3)):
        at = choices.below(256) * (len(text) + 1) // 256
        text = text[:at] + choices.some(choices.below(4)) + text[at + choices.below(4) :]
    return text


def json_object(choices: Choices, entries: Mapping[str, Any]) -> bytes:
    """An object with `entries`, of which some may have a hostile value, be left out, or come twice."""
    parts = [(name, json.dumps(value).encode()) for name, value in entries.items()]
    for _ in range(choices.below(3)):
        at = choices.below(len(parts) + 1)
        name = parts[at][0] if at < len(parts) else choices.one(("x", "", "id", "info", "data", "error", "typed_error"))
        how = choices.below(4)
        if how == 0 and at < len(parts):
            del parts[at]
            if not parts:
                break
        elif how == 1:
            parts.insert(at, (name, choices.one(HOSTILE_JSON)))
        else:
            parts[at : at + 1] = [(name, choices.one(HOSTILE_JSON))]
    return damaged(choices, b"{" + b",".join(json.dumps(name).encode() + b":" + value for name, value in parts) + b"}")


def item(choices: Choices) -> bytes:
    """The body of a data frame, in either format."""
    inner = choices.one(
        (
            {"data": 1},
            {"event": "error", "error": {"class": "Internal", "reason": "backend.unknown", "message": "m"}},
            {"event": "error", "comment": ["a", "b"]},
            {"id": "i", "event": "e", "comment": ["c"]},
        )
    )
    how = choices.below(6)
    if how == 0:
        return json_object(choices, {"data": inner, "complete_final": bool(choices.below(2))})
    if how == 1:
        return b'{"data":' + json_object(choices, inner) + b',"complete_final":false}'
    if how == 2:
        return damaged(choices, msgspec.msgpack.encode({"data": inner, "complete_final": bool(choices.below(2))}))
    if how == 3:
        hostile: bytes = choices.one(HOSTILE_MSGPACK)
        return b"\x82\xa4data" + hostile + b"\xaecomplete_final\xc2"
    return bytes(choices.one((b'{"complete_final":true}', *HOSTILE_JSON, *HOSTILE_MSGPACK)))


def word(choices: Choices) -> bytes:
    """A frame of a control word, right or wrong."""
    text = choices.one((b'"stop"', b'"kill"', b'"sentinel"', b'"Stop"', b" ", *HOSTILE_JSON))
    return two_part(damaged(choices, text), b"" if choices.below(4) else b"x")


# The event loop ---------------------------------------------------------------------------------------------------------


class Loop:
    """What the planes share: the running loop, its troubles, and the fence around what may be dialled."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.troubles: list[str] = []
        self.ports: set[int] = set()
        self.loop.set_exception_handler(self._trouble)
        connect = self.loop.create_connection

        async def fenced(factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
            if host != "127.0.0.1" or port not in self.ports:
                raise ConnectionRefusedError(f"{host}:{port} is beyond the fence")
            return await connect(factory, host, port, **options)

        self.loop.create_connection = fenced  # type: ignore[method-assign, assignment]

    def close(self) -> None:
        """Take the fence away."""
        del self.loop.create_connection

    def _trouble(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.troubles.append(f"{context.get('message')}: {context.get('exception')!r}")

    async def until(self, holds: Callable[[], Any], what: str) -> None:
        """Give the loop turns until it holds."""
        until = time.monotonic() + LIMIT
        while not holds():
            assert time.monotonic() < until, f"it does not end: {what}"
            await asyncio.sleep(0)


class Peer:
    """Our end of one connection: a plain socket. What comes in is read and forgotten."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._loop = loop
        self._socket = connection
        self.received = bytearray()
        self.reading = loop.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._loop.sock_recv(self._socket, 1 << 16):
                self.received += data

    async def send(self, chunks: list[bytes]) -> None:
        """Each in a write of its own, with turns of the loop between."""
        with contextlib.suppress(OSError):  # it was closed meanwhile, as bad bytes deserve
            for chunk in chunks:
                await self._loop.sock_sendall(self._socket, chunk)
                await asyncio.sleep(0)
                await asyncio.sleep(0)

    async def end(self, how: str) -> None:
        """End it. After a half-close the other end must close, and is waited for."""
        with contextlib.suppress(OSError):
            if how == "half-close":
                self._socket.shutdown(socket.SHUT_WR)
                await asyncio.wait([self.reading], timeout=LIMIT)
                assert self.reading.done(), "the other end does not close"
            elif how == "reset":
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await cancelled(self.reading)
        self._socket.close()


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel it, and wait until it has ended."""
    task.cancel()
    await asyncio.wait([task])


async def dialled(loop: asyncio.AbstractEventLoop, address: str) -> Peer:
    host, _, port = address.partition("/")[0].rpartition(":")
    connection = socket.socket()
    connection.setblocking(False)
    await loop.sock_connect(connection, (host, int(port)))
    return Peer(loop, connection)


# Planes -----------------------------------------------------------------------------------------------------------------


class Plane:
    """One kind of connection and the object behind it."""

    def __init__(self, shared: Loop) -> None:
        self.shared = shared
        self.loop = shared.loop
        self._before: dict[str, int] = {}

    async def start(self) -> None:
        """Make the object."""

    def compose(self, choices: Choices) -> bytes:
        """A frame that the peer may send, mostly with something wrong in it."""
        raise NotImplementedError

    def edges(self) -> Iterator[bytes]:
        """Streams with each hostile value in each place of this plane's frames."""
        raise NotImplementedError

    async def talk(self, script: Script) -> None:
        """Be the peer."""
        raise NotImplementedError

    def roots(self) -> list[object]:
        """The objects whose tables must be as before."""
        raise NotImplementedError

    async def play(self, data: bytes) -> None:
        """Send what `data` says; raises AssertionError if what must hold does not."""
        before = self._before = self._before or tables(self.roots())
        await self.talk(Script(data, self.compose))
        try:
            await self.shared.until(lambda: tables(self.roots()) == before, "tables as before")
        except AssertionError:
            now = tables(self.roots())
            changed = {name: (before.get(name), now.get(name)) for name in {*before, *now}}
            raise AssertionError(
                f"left: { {name: each for name, each in changed.items() if each[0] != each[1]} }"
            ) from None
        assert not self.shared.troubles, self.shared.troubles

    async def close(self) -> None:
        """Close the object."""


def tables(roots: list[object]) -> dict[str, int]:
    """How many entries each table has that can be reached from `roots` through objects of this package."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    left: list[tuple[str, object]] = [(type(root).__name__, root) for root in roots]
    while left:
        path, value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (Deadlines, dict, set, list, deque)):
            found[path] = len(value)
            if isinstance(value, (dict, list, set)):
                each = list(value.values()) if isinstance(value, dict) else list(value)
                left += [(f"{path}[]", one) for one in each if _is_ours(one)]
        elif _is_ours(value):
            running = [name for name in ("running", "inflight") if isinstance(getattr(value, name, None), int)]
            found.update({f"{path}.{name}": getattr(value, name) for name in running})
            if type(value).__module__.startswith("dynamo_fast.observability."):
                continue  # counts only grow
            names = {
                *getattr(value, "__dict__", ()),
                *(n for kind in type(value).__mro__ for n in getattr(kind, "__slots__", ())),
                *(n for kind in type(value).__mro__ for n, each in vars(kind).items() if isgetsetdescriptor(each)),
            }
            for name in names:
                if name not in ("__weakref__", "__dict__") and hasattr(value, name):
                    left.append((f"{path}.{name}", getattr(value, name)))
    return found


def _is_ours(value: object) -> bool:
    return type(value).__module__.startswith("dynamo_fast.") and not isinstance(value, (type, DynamoError))


class _Accepting(RequestPlaneClient):
    """A request transport that says yes to everything and tells what it was given."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def send_request(self, address: str, payload: bytes, headers: Mapping[str, str]) -> asyncio.Future[Ack]:
        self.payloads.append(payload)
        ack: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        ack.set_result(Ack(b""))
        return ack

    async def close(self) -> None:
        pass


class Answers(Plane):
    """A worker's response connection, at the router."""

    async def start(self) -> None:
        self._client = _Accepting()
        config = ResponseServerConfig(host="127.0.0.1", max_message_size=MAX_FRAME)
        server = await TcpStreamServer.create(config)
        self._router = AddressedPushRouter(self._client, server, metrics=RequestPlaneMetrics())

    def roots(self) -> list[object]:
        return [self._router.response_server, self._router.metrics]

    def compose(self, choices: Choices) -> bytes:
        how = choices.below(6)
        if how == 0:
            return two_part(json_object(choices, {"subject": "s", "stream_type": "response"}))
        if how == 1:
            typed = {"class": "Internal", "message": "m", "caused_by": {"error_type": "Disconnected"}}
            return two_part(json_object(choices, {"error": choices.one((None, "text")), "typed_error": typed}))
        if how == 2:
            return word(choices)
        if how == 3:
            return damaged(choices, two_part(b"", item(choices)))
        return two_part(b"", item(choices))

    def edges(self) -> Iterator[bytes]:
        for value in HOSTILE_JSON:
            yield two_part(value)
            yield two_part(b'{"error":"x","typed_error":' + value + b"}")
            yield two_part(b'{"error":' + value + b"}")
            started = two_part(b'{"error":null}')
            yield started + two_part(value)
            yield started + two_part(b"", b'{"data":{"data":' + value + b'},"complete_final":false}')
            yield started + two_part(b"", b'{"data":{"event":"error","error":' + value + b'},"complete_final":false}')
        for value in HOSTILE_MSGPACK:
            yield two_part(b'{"error":null}') + two_part(b"", value)

    async def talk(self, script: Script) -> None:
        context = Context()
        codec = PayloadCodec.MSGPACK if script.cut % 2 else PayloadCodec.JSON
        request = AddressedRequest({}, "127.0.0.1:1/x", payload_codec=codec)
        call = self.loop.create_task(self._call(request, context))
        await self.shared.until(lambda: self._client.payloads or call.done(), "the call is made")
        payload = self._client.payloads.pop()
        control = json.loads(payload[24 : 24 + struct.unpack_from(">Q", payload)[0]])
        info = json.loads(control["connection_info"]["info"])
        handshake = json.dumps({"subject": info["subject"], "stream_type": "response"}).encode()
        peer = await dialled(self.loop, info["address"])
        begins = two_part(handshake) + (two_part(b'{"error":null}') if script.cut not in (1, 7, 25) else b"")
        chunks = script.chunks()
        await peer.send([begins, *chunks] if script.cut else [begins + b"".join(chunks)])
        if script.is_killed:
            context.kill()
        await peer.end(script.end)
        await asyncio.wait_for(call, LIMIT)

    async def _call(self, request: AddressedRequest, context: Context) -> None:
        with contextlib.suppress(DynamoError):
            async with await self._router.generate(request, context) as stream:
                async for each in stream:
                    each.data(), each.is_error(), each.comments()

    async def close(self) -> None:
        await self._router.close()


class Sessions(Answers):
    """A worker's session of the multiplexed plane (mux.md), at the router."""

    async def start(self) -> None:
        self._client = _Accepting()
        config = ResponseServerConfig(host="127.0.0.1", max_message_size=MAX_FRAME, mux="auto")
        server = await TcpStreamServer.create(config)
        self._router = AddressedPushRouter(self._client, server, metrics=RequestPlaneMetrics())

    def compose(self, choices: Choices) -> bytes:
        kind = choices.one((1, 2, 3, 3, 3, 4, 5, 6, 32, 33, 34, choices.below(256)))
        body = choices.one((b"", b"unknown", b'{"error":"x"}', item(choices), b"x" * 16_384, b"12345678"))
        return damaged(choices, mux_frame(choices.one((1, 1, 1, 0, 2, 3)), kind, body))

    def edges(self) -> Iterator[bytes]:
        for value in (*HOSTILE_JSON, *HOSTILE_MSGPACK):
            for kind in (1, 2, 3, 4, 34):
                yield mux_frame(1, kind, value)
        for kind in range(40):
            for stream in (0, 1, 2, 2**32 - 1):
                yield mux_frame(stream, kind, b"") + mux_frame(stream, kind, b"12345678")

    async def talk(self, script: Script) -> None:
        context = Context()
        call = self.loop.create_task(self._call(AddressedRequest({}, "127.0.0.1:1/x", mux=1), context))
        await self.shared.until(lambda: self._client.payloads or call.done(), "the call is made")
        payload = self._client.payloads.pop()
        control = json.loads(payload[24 : 24 + struct.unpack_from(">Q", payload)[0]])
        info = json.loads(control["connection_info"]["info"])
        handshake = {"mux": 1, "session": control["dynamo_fast_mux"]["session"], "worker": "w"}
        peer = await dialled(self.loop, info["address"])
        await peer.send([two_part(json.dumps(handshake).encode())])
        await self.shared.until(lambda: len(peer.received) >= 20, "the router says HELLO")
        begins = mux_frame(1, 1, info["subject"].encode()) + (mux_frame(1, 2, b"") if script.cut != 1 else b"")
        await peer.send([begins, *script.chunks()])
        if script.is_killed:
            context.kill()
        await peer.end(script.end)
        await asyncio.wait_for(call, LIMIT)


class Acks(Plane):
    """A worker's acknowledgements, at the router."""

    async def start(self) -> None:
        self._client = TcpRequestClient(
            TcpClientConfig(max_message_size=MAX_FRAME, request_timeout=0.02), metrics=RequestPlaneMetrics()
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        port = self._listener.getsockname()[1]
        self.shared.ports.add(port)
        self._address = f"127.0.0.1:{port}/1/a/b/c"
        self._serving = self.loop.create_task(self._serve())
        await self.talk(Script(b"", self.compose))  # so that the pool, which stays, is there
        await until(lambda: not any(pool.connections for pool in self._client._pools.values()))

    def roots(self) -> list[object]:
        return [self._client]

    def compose(self, choices: Choices) -> bytes:
        text = choices.one(
            (b"", b"", b"Server overloaded: x", b"Server unavailable: \n\x1b", b"\xff\xfe", b"x" * 10_000)
        )
        return damaged(choices, struct.pack(">I", len(text)) + text)

    def edges(self) -> Iterator[bytes]:
        for size in (0, 1, MAX_FRAME, MAX_FRAME + 1, (1 << 32) - 1):
            yield struct.pack(">I", size) + b"\xff" * 10

    async def talk(self, script: Script) -> None:
        self._script = script
        count = 1 + len(script.stream) % 3
        acks = [self._client.send_request(self._address, b"payload", {}) for _ in range(count)]
        if script.is_killed:
            acks[0].cancel()
        for ended in await asyncio.wait_for(asyncio.gather(*acks, return_exceptions=True), LIMIT):
            assert isinstance(ended, (Ack, DynamoError, asyncio.CancelledError)), repr(ended)

    async def _serve(self) -> None:
        """Each connection: the pool opens another one if the first does not last until its requests are sent."""
        while True:
            connection, _ = await self.loop.sock_accept(self._listener)
            peer = Peer(self.loop, connection)
            await peer.send(self._script.chunks())
            await peer.end(self._script.end)

    async def close(self) -> None:
        await cancelled(self._serving)
        await self._client.close()
        self._listener.close()


class _AtWorker(Plane):
    """A worker, and a router of plain sockets that it dials."""

    bidirectional = False

    async def start(self) -> None:
        config = WorkerConfig(leave_delay=0.0, cancel_grace=0.01, close_timeout=LIMIT, max_input_size=MAX_FRAME)
        server = TcpServerConfig(host="127.0.0.1", max_message_size=MAX_FRAME)
        self._worker = await Worker.start(MemoryDiscovery(), config, server)
        handler: Any = self._converse if self.bidirectional else self._generate
        self._served = await self._worker.serve(handler, "a.b.c", bidirectional=self.bidirectional)
        self._router = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._router.setblocking(False)
        self.port = self._router.getsockname()[1]
        self.shared.ports.add(self.port)
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._accepting = self.loop.create_task(self._accept())

    def roots(self) -> list[object]:
        return [self._worker]

    @property
    def path(self) -> bytes:
        return self._served.address.partition("/")[2].encode()

    def info(self, context: str = "id", **changes: Any) -> dict[str, str]:
        info = {"address": f"127.0.0.1:{self.port}", "subject": "s", "context": context, "stream_type": "response"}
        return {"transport": "tcp_server", "info": json.dumps({**info, **changes})}

    def frame(self, control: bytes, body: bytes, headers: bytes = b"") -> bytes:
        payload = two_part(control, body)
        return b"".join(
            (
                struct.pack(">H", len(self.path)) + self.path,
                struct.pack(">H", len(headers)) + headers,
                struct.pack(">I", len(payload)) + payload,
            )
        )

    async def connected(self) -> Peer:
        """To the worker's server."""
        return await dialled(self.loop, self._served.address)

    async def dialled_back(self) -> Peer:
        """The next connection of the worker to the router, whose handshake has come."""
        peer = await asyncio.wait_for(self._peers.get(), LIMIT)
        await self.shared.until(lambda: len(peer.received) > 24 or peer.reading.done(), "a handshake")
        return peer

    async def settled(self) -> None:
        await asyncio.wait_for(self._served.handler.drained(), LIMIT)
        while not self._peers.empty():
            await self._peers.get_nowait().end("close")

    async def _accept(self) -> None:
        while True:
            connection, _ = await self.loop.sock_accept(self._router)
            self._peers.put_nowait(Peer(self.loop, connection))

    async def _generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        for number in range(4):
            yield number
            await asyncio.sleep(0)
        yield {"echo": request}

    async def _converse(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for each in requests:
            yield each

    async def close(self) -> None:
        await cancelled(self._accepting)
        await self.settled()
        await self._worker.close()
        self._router.close()


class Requests(_AtWorker):
    """A router's request connection, at the worker."""

    def compose(self, choices: Choices) -> bytes:
        inner: dict[str, Any] = {"address": f"127.0.0.1:{self.port}", "subject": "s", "context": "id"}
        info = json_object(choices, {**inner, "stream_type": "response"}).decode("utf-8", "replace")
        control = json_object(
            choices,
            {
                "id": "id",
                "request_type": choices.one(("single_in", "many_in")),
                "response_type": "many_out",
                "payload_codec": choices.one(("json", "msgpack")),
                "connection_info": {"transport": "tcp_server", "info": info},
                "metadata": {"a": "b"},
                "frontend_send_ts_ns": 1,
            },
        )
        body = choices.one((b"1", b"{}", *HOSTILE_JSON, *HOSTILE_MSGPACK))
        headers = choices.one((b"", b'{"x-frontend-send-ts-ns":"%s"}' % (b"1" * 5000), b'{"traceparent":"00-"}', DEEP))
        frame = self.frame(control, body, headers or json_object(choices, {"x-frontend-send-ts-ns": "1"}))
        return damaged(choices, frame) if choices.below(4) == 3 else frame

    def edges(self) -> Iterator[bytes]:
        plain = {"id": "id", "request_type": "single_in", "response_type": "many_out", "connection_info": self.info()}
        control = json.dumps(plain).encode()
        good = self.frame(control, b"1")
        for value in HOSTILE_JSON:
            yield good + self.frame(value, b"1") + good
            yield good + self.frame(control[:-1] + b',"x":' + value + b"}", b"1") + good
            yield good + self.frame(control[:-1] + b',"metadata":{"a":' + value + b"}}", b"1") + good
            info = {"transport": "tcp_server", "info": value.decode("utf-8", "replace")}
            yield good + self.frame(json.dumps({**plain, "connection_info": info}).encode(), b"1") + good
            yield good + self.frame(control, value) + good
            yield good + self.frame(control, b"1", b'{"x-frontend-send-ts-ns":' + value + b"}") + good
        for value in HOSTILE_MSGPACK:
            yield good + self.frame(control[:-1] + b',"payload_codec":"msgpack"}', value) + good
        yield good + self.frame(control, b"1", b'{"x-frontend-send-ts-ns":"' + b"1" * 5000 + b'"}') + good

    async def talk(self, script: Script) -> None:
        peer = await self.connected()
        await peer.send(script.chunks())
        await peer.end(script.end)
        await asyncio.wait_for(self._served.handler.drained(), LIMIT)

    async def start(self) -> None:
        await super().start()
        self._answers = self.loop.create_task(self._read_answers())

    async def _read_answers(self) -> None:
        """The router reads every answer to its end: the worker closes once it has written all."""
        while True:
            await (await self._peers.get()).end("half-close")

    async def close(self) -> None:
        await cancelled(self._answers)
        await super().close()


class Controls(_AtWorker):
    """A router's control messages on a response connection, at the worker."""

    def edges(self) -> Iterator[bytes]:
        return map(two_part, HOSTILE_JSON)

    def compose(self, choices: Choices) -> bytes:
        frame = word(choices)
        return damaged(choices, frame) if choices.below(3) == 2 else frame

    async def talk(self, script: Script) -> None:
        requests = await self.connected()
        control = {
            "id": "id",
            "request_type": "single_in",
            "response_type": "many_out",
            "payload_codec": "msgpack" if script.cut % 2 else "json",
            "connection_info": self.info(),
        }
        await requests.send([self.frame(json.dumps(control).encode(), b"\x01" if script.cut % 2 else b"1")])
        answer = await self.dialled_back()
        await answer.send(script.chunks())
        await answer.end(script.end)
        await self.settled()
        await requests.end("close")


class Inputs(_AtWorker):
    """A router's request stream of a bidirectional request, at the worker."""

    bidirectional = True

    def edges(self) -> Iterator[bytes]:
        for value in (*HOSTILE_JSON, *HOSTILE_MSGPACK):
            yield two_part(b"", value)
            yield two_part(value)

    def compose(self, choices: Choices) -> bytes:
        how = choices.below(4)
        if how == 0:
            return word(choices)
        body = choices.one((b"1", b'{"a":[1]}', b"\x81\xa1a\x01", *HOSTILE_JSON, *HOSTILE_MSGPACK))
        return damaged(choices, two_part(b"", body)) if how == 1 else two_part(b"", body)

    async def talk(self, script: Script) -> None:
        requests = await self.connected()
        control = {
            "id": "id",
            "request_type": "many_in",
            "response_type": "many_out",
            "payload_codec": "msgpack" if script.cut % 2 else "json",
            "connection_info": self.info(),
            "request_stream_connection_info": self.info(stream_type="request"),
        }
        await requests.send([self.frame(json.dumps(control).encode(), b"")])
        source = await self.dialled_back()
        answer = await self.dialled_back()
        await source.send(script.chunks())
        if script.is_killed:
            await answer.end("reset")
        await source.end(script.end)
        if not script.is_killed:
            await answer.end("half-close")
        await self.settled()
        await requests.end("close")


PLANES: dict[str, type[Plane]] = {
    "answers": Answers,
    "sessions": Sessions,
    "acks": Acks,
    "requests": Requests,
    "controls": Controls,
    "inputs": Inputs,
}


@contextlib.asynccontextmanager
async def opened(name: str) -> AsyncIterator[Plane]:
    """The plane of that name, on the running loop; at the end it is closed, and the loop must have seen no trouble."""
    shared = Loop()
    plane = PLANES[name](shared)
    await plane.start()
    try:
        yield plane
    finally:
        await plane.close()
        shared.close()
    assert not shared.troubles, f"{BACKEND}: {shared.troubles}"


class Playing:
    """A plane on a loop that runs only while an input is played: for those who call from outside a loop."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._opened = opened(name)
        self._plane = loop.run_until_complete(self._opened.__aenter__())

    def play(self, data: bytes) -> None:
        """See `Plane.play`."""
        self._loop.run_until_complete(self._plane.play(data))

    def edges(self) -> list[bytes]:
        """Inputs with each hostile value in each place."""
        return [begins + stream for stream in self._plane.edges() for begins in RAW_SCRIPTS]

    def close(self) -> None:
        """Close the plane and its loop."""
        self._loop.run_until_complete(self._opened.__aexit__(None, None, None))
        self._loop.close()
