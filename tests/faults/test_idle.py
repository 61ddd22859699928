"""Faults that strike while nothing is said: on an idle request connection, and where a connection is being made.

Here a fault strikes an idle connection first, and a second later a call is made over the same pool.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

import pytest

from dynamo_fast.config import TcpClientConfig
from dynamo_fast.egress.router import AddressedRequest
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import CannotConnect, ConnectionTimeout
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from dynamo_fast.testing import clock
from tests.egress.raw_worker import LIMIT, RawWorker, two_part
from tests.faults import proxy
from tests.faults.frames import Side
from tests.faults.proxy import Fault
from tests.faults.world import TURNED, Seen, World, together

OK, TIMEOUT = "ok", "ConnectionTimeout"


def alone(call: Coroutine[Any, Any, Seen]) -> Seen:
    """What `call` comes to on a turned clock; it must leave nothing behind."""
    (seen,), trouble = clock.run(together(call))
    assert seen.trouble + trouble == []
    return seen


async def strike_idle(fault: Fault, to: Side) -> Seen:
    seen = Seen()
    async with World(TURNED) as world:
        await world.call("bystander-once", "", Seen())  # refused: it opens the connection and leaves nothing
        (link,) = world.requests.links
        (pipe,) = [each for each in link.pipes if each.side is to]
        before = world.sizes()
        fault(pipe, b"", 0)
        await asyncio.sleep(1)
        called_at = world.loop.time()
        await world.call("answer", "", seen)
        seen.after = world.loop.time() - called_at
        for each in (world.requests, world.responses):
            each.disarm()
        await asyncio.sleep(2 * TURNED.requests.frame_timeout)
        grown = {path for path, size in world.sizes().items() if size > before.get(path, 0)}
        seen.trouble += [f"{path} has grown" for path in grown if "_pools" not in path]
    return seen


@pytest.mark.parametrize(
    ("fault", "to", "expected"),
    [
        (proxy.cut, Side.WORKER, OK),
        (proxy.finish, Side.WORKER, OK),
        (proxy.end_forward, Side.ROUTER, OK),
        (proxy.end_forward, Side.WORKER, OK),  # the worker closes its end, too
        (proxy.stall, Side.WORKER, TIMEOUT),
        (proxy.dribble, Side.WORKER, OK),
        (proxy.dribble, Side.ROUTER, OK),
        (proxy.garbage, Side.ROUTER, OK),  # an answer to nothing: the router opens another connection
        (proxy.garbage, Side.WORKER, TIMEOUT),  # the beginning of a long frame, which the request continues
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(getattr(value, "value", value)),
)
def test_an_idle_request_connection(fault: Fault, to: Side, expected: str) -> None:
    seen = alone(strike_idle(fault, to))
    assert seen.end == expected
    if expected == TIMEOUT:
        assert seen.migratable
        assert seen.after == pytest.approx(TURNED.client.request_timeout, abs=0.1)


def unanswered() -> tuple[socket.socket, list[socket.socket]]:
    """A port whose queue is full: whatever dials it is not answered."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    others = []
    for _ in range(3):
        other = socket.socket()
        other.setblocking(False)
        other.connect_ex(listener.getsockname())
        others.append(other)
    return listener, others


def refused() -> tuple[socket.socket, list[socket.socket]]:
    """A port that nothing listens on, and that nothing else can take."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    return taken, []


@pytest.mark.parametrize(
    ("port", "error", "seconds"),
    [(refused, CannotConnect, 0.0), (unanswered, (CannotConnect, ConnectionTimeout), 5.0)],
    ids=["refused", "unanswered"],
)
def test_a_worker_that_cannot_be_dialled(port: Any, error: type[Exception], seconds: float) -> None:
    async def call() -> Seen:
        listener, others = port()
        seen = Seen()
        async with World(TURNED) as world:
            began, before = world.loop.time(), world.sizes()
            address = f"127.0.0.1:{listener.getsockname()[1]}/nowhere"
            with pytest.raises(error) as raised:
                await world.router.generate(AddressedRequest({}, address))
            assert raised.value.migratable  # type: ignore[attr-defined]
            assert world.loop.time() - began == pytest.approx(seconds, abs=0.1)
            await asyncio.sleep(1)
            grown = {path: size for path, size in world.sizes().items() if size > before.get(path, 0)}
            seen.trouble += [f"{path} has grown" for path in grown if path != "client._pools"]
        for each in (listener, *others):
            each.close()
        return seen

    alone(call())


@pytest.mark.parametrize("port", [refused, unanswered])
def test_a_router_that_cannot_be_dialled(port: Any) -> None:
    """Its caller waits for the call home: the worker has no other way to tell it. The handler is not called."""

    async def call() -> Seen:
        listener, others = port()
        seen = Seen()
        async with World(TURNED) as world:
            told = b":%d" % int(world.router.response_server.address.rpartition(":")[2])
            elsewhere = b":%d" % listener.getsockname()[1]
            world.requests.rewrite = lambda frame: frame.replace(told, elsewhere)
            began, before = world.loop.time(), world.sizes()
            with pytest.raises(ConnectionTimeout):
                await world.router.generate(world.request("answer"))
            assert world.loop.time() - began == pytest.approx(TURNED.server.call_home_timeout, abs=0.1)
            assert world.calls == 0
            grown = {path: size for path, size in world.sizes().items() if size > before.get(path, 0)}
            seen.trouble += [f"{path} has grown" for path in grown if "_pools" not in path and "server._" not in path]
            assert world.worker.admission.running == 0
        for each in (listener, *others):
            each.close()
        return seen

    alone(call())


async def test_the_beginning_of_an_answer_to_nothing_ends_the_connection() -> None:
    """Left there, it would shift what follows: after three zeros every refusal is an empty text, which is a yes."""
    payload = two_part(b'{"id":"1","connection_info":{"transport":"tcp_server","info":"{}"}}', b"{}")
    client = TcpRequestClient(TcpClientConfig(), metrics=RequestPlaneMetrics())
    async with RawWorker() as worker:
        first = client.send_request(worker.address, payload, {})
        request = await worker.request()
        request.writer.write(bytes(4) + bytes(3))
        assert (await asyncio.wait_for(first, LIMIT)).text == b""
        second = client.send_request(worker.address, payload, {})
        (await worker.request()).acknowledge(b"Server unavailable: no")
        assert (await asyncio.wait_for(second, LIMIT)).text == b"Server unavailable: no"
        await client.close()
