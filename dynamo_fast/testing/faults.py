"""`FaultProxy`: a TCP proxy on loopback that does harm when a test says so. It runs on the event loop of the test.

async with FaultProxy("127.0.0.1:4000") as proxy:       # dial proxy.address in place of 127.0.0.1:4000
    proxy.delay = 0.2                                   # seconds by which each byte is late
    proxy.stall()                                       # nothing flows, and neither end is told
    proxy.cut()                                         # every connection is reset
    proxy.corrupt()                                     # one bit of the next bytes is the other one
    proxy.refuse()                                      # new connections are reset
    proxy.heal()                                        # the network is well again
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from types import TracebackType
from typing import cast

from dynamo_fast.wire.address import join_host_port, split_host_port

__all__ = ["FaultProxy"]

_RESET = struct.pack("ii", 1, 0)
_HAIR = 0.001
"""uvloop's clock has whole milliseconds."""


class FaultProxy:
    """Passes bytes on between those that dial it and one target.

    Owns its listener and all connections through it; `async with` opens and closes it. One event loop.
    """

    def __init__(self, target: str) -> None:
        """`target`: IP:PORT. Raises InvalidAddress."""
        self._target = split_host_port(target)
        self.delay = 0.0
        """Seconds by which bytes are late, in both directions; from their arrival on. Their order stays."""
        self.connections = 0
        """Connections that were accepted so far."""
        self._links: set[_Link] = set()
        self._refuses = False
        self._stalls = False
        self._corrupts = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Where the proxy listens: IP:PORT."""
        return join_host_port(*self._server.sockets[0].getsockname()[:2])

    def cut(self) -> None:
        """Reset every connection, at both ends. New ones are accepted."""
        for link in list(self._links):
            link.reset()

    def refuse(self) -> None:
        """Reset new connections; those that are open go on."""
        self._refuses = True

    def stall(self) -> None:
        """Hold back every byte, of open connections and of new ones, until `heal`."""
        self._stalls = True

    def corrupt(self) -> None:
        """Flip one bit of the next bytes that one of those that dial sends: the first byte of them is wrong."""
        self._corrupts = True

    def heal(self) -> None:
        """End `refuse`, `stall`, `corrupt` and `delay`. What was held back arrives now."""
        self._refuses = self._stalls = self._corrupts = False
        self.delay = 0.0
        for link in self._links:
            for pipe in link.pipes:
                pipe.flush()

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.get_running_loop().create_server(self._accepted, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks)
        while self._links:  # noqa: ASYNC110  # the transports close in the next turns
            await asyncio.sleep(0)

    # For the connections

    @property
    def stalled(self) -> bool:
        """Whether bytes are held back."""
        return self._stalls

    def harmed(self, data: bytes) -> bytes:
        """What those that dial have sent, with the harm that is due."""
        if not self._corrupts:
            return data
        self._corrupts = False
        return bytes([data[0] ^ 1]) + data[1:]

    def lost(self, link: _Link) -> None:
        """Both connections of the link are closed."""
        self._links.discard(link)

    def _accepted(self) -> _End:
        link = _Link(self)
        self.connections += 1
        self._links.add(link)
        task = asyncio.get_running_loop().create_task(self._connect(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return link.dialler

    async def _connect(self, link: _Link) -> None:
        try:
            if self._refuses:
                raise ConnectionRefusedError
            await asyncio.get_running_loop().create_connection(lambda: link.target, *self._target)
        except OSError:
            link.reset()
            return
        for pipe in link.pipes:
            pipe.pass_on()
        if link.dialler.transport is None:
            link.reset()  # it was lost meanwhile


class _Link:
    """One connection through the proxy, which is two: the one that was dialled, and the one to the target."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.dialler, self.target = _End(self), _End(self)
        self.pipes = (
            _Pipe(proxy, self.dialler, self.target, harms=True),
            _Pipe(proxy, self.target, self.dialler, harms=False),
        )
        self.dialler.outgoing, self.target.outgoing = self.pipes
        self.is_reset = False

    def reset(self) -> None:
        self.is_reset = True
        for end in (self.dialler, self.target):
            if end.transport is not None:
                end.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.transport.abort()
        self.ended()

    def ended(self) -> None:
        if self.dialler.transport is None and self.target.transport is None:
            self.proxy.lost(self)


class _End(asyncio.Protocol):
    """One of the two connections of a link."""

    def __init__(self, link: _Link) -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self.outgoing: _Pipe
        """What comes from here goes there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.link.is_reset:  # before this was there
            self.link.reset()

    def data_received(self, data: bytes) -> None:
        self.outgoing.feed(data)

    def eof_received(self) -> bool:
        self.outgoing.feed(b"")
        return True  # the other direction may go on

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        other = self.link.target if self is self.link.dialler else self.link.dialler
        if other.transport is not None and error is not None:
            self.link.reset()
        elif other.transport is not None:
            other.transport.close()
        self.link.ended()


class _Pipe:
    """One direction of a link. An end of file is `b""`, and keeps its place behind the bytes."""

    def __init__(self, proxy: FaultProxy, source: _End, target: _End, *, harms: bool) -> None:
        self._proxy = proxy
        self._source = source
        self._target = target
        self._harms = harms
        self._held: deque[tuple[float, bytes]] = deque()
        """What has not been written, and when it is due."""

    def feed(self, data: bytes) -> None:
        if data and self._harms:
            data = self._proxy.harmed(data)
        loop = asyncio.get_running_loop()
        due = loop.time() + self._proxy.delay
        self._held.append((due, data))
        if self._proxy.delay:
            loop.call_at(due, self.pass_on)
        else:
            self.pass_on()

    def pass_on(self) -> None:
        """Write what is due."""
        now = asyncio.get_running_loop().time() + _HAIR
        while self._held and self._held[0][0] <= now and self._ready():
            self._write(self._held.popleft()[1])

    def flush(self) -> None:
        """Write everything."""
        while self._held and self._ready():
            self._write(self._held.popleft()[1])

    def _ready(self) -> bool:
        return self._target.transport is not None and not self._proxy.stalled

    def _write(self, data: bytes) -> None:
        transport = self._target.transport
        assert transport is not None
        if data:
            transport.write(data)
        elif not transport.is_closing():
            with contextlib.suppress(
                OSError
            ):  # the other side has reset the connection, and the loop does not know yet
                transport.write_eof()
