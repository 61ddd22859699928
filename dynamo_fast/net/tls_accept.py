"""`Handshake`: a connection that was accepted, until its TLS handshake is done.

The event loops accept TLS themselves, but do not tell of a handshake that failed. A router must know: the worker that it
waits for may be the one whose handshake failed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar, cast

from dynamo_fast.net.tls import ServerTls, accepting, reason

__all__ = ["Handshake", "HandshakeOwner"]

_T = TypeVar("_T")


class HandshakeOwner(Protocol):
    """What a handshake asks of the listener."""

    handshakes: dict[Handshake, None]
    """Those under way, the oldest first."""

    def is_closed(self) -> bool:
        """Whether no connection is wanted any more."""

    def refused(self, host: str, why: str) -> None:
        """The handshake of a connection from `host` failed."""


class Handshake(asyncio.Protocol):
    """Begins as the protocol of a plain connection, and hands the encrypted one over to the true protocol.

    The listener makes one for each connection. It ends when the handshake is done, failed, or timed out. What the other
    end sends together with the end of its handshake waits here, because the true protocol must be told of its transport
    first.
    """

    def __init__(self, owner: HandshakeOwner, tls: ServerTls, protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        self._owner = owner
        self._tls = tls
        self._protocol = protocol
        self._early: list[bytes] = []
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._tls.refresh()
        self._owner.handshakes[self] = None
        loop = asyncio.get_running_loop()
        accepting.set(transport.get_extra_info("socket").fileno())
        shaking = loop.start_tls(
            self._transport,
            self,
            self._tls.context,
            server_side=True,
            ssl_handshake_timeout=self._tls.handshake_timeout,
        )
        # Its first step replaces this protocol, here and now: uvloop may read before a task has had its turn.
        self._task = loop.create_task(self._shake(_Begun(shaking)))

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def eof_received(self) -> None:
        self._ended = True

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = True

    def abort(self) -> None:
        """There is no room for it any more."""
        if self._transport is not None:
            self._transport.abort()

    async def _shake(self, shaking: Awaitable[asyncio.Transport | None]) -> None:
        transport, owner = self._transport, self._owner
        assert transport is not None
        host = (transport.get_extra_info("peername") or ("?",))[0]
        try:
            encrypted = await shaking
        except OSError as error:
            transport.abort()
            if not owner.is_closed():
                owner.refused(host, _explain(error, self._tls.handshake_timeout))
            return
        except BaseException:
            transport.abort()
            raise
        finally:
            owner.handshakes.pop(self, None)
        if encrypted is None or self._ended:
            return
        if owner.is_closed():
            encrypted.abort()
        else:
            self._hand_over(encrypted)

    def _hand_over(self, encrypted: asyncio.Transport) -> None:
        protocol = cast(asyncio.Protocol, self._protocol())
        encrypted.set_protocol(protocol)
        protocol.connection_made(encrypted)
        for data in self._early:
            protocol.data_received(data)


class _Begun(Awaitable[_T]):
    """A coroutine whose first step is made at once; a task awaits the rest. `Handshake` makes and awaits it."""

    def __init__(self, coroutine: Coroutine[Any, Any, _T]) -> None:
        self._coroutine = coroutine
        self._waits_for = coroutine.send(None)

    def __await__(self) -> Generator[Any, Any, _T]:
        waits_for, coroutine = self._waits_for, self._coroutine
        while True:
            try:
                try:
                    value = yield waits_for
                except BaseException as error:  # it belongs to the coroutine
                    waits_for = coroutine.throw(error)
                else:
                    waits_for = coroutine.send(value)
            except StopIteration as end:
                result: _T = end.value
                return result


def _explain(error: OSError, seconds: float) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return reason(error)
    if isinstance(error, ConnectionAbortedError):  # so asyncio and uvloop say that it took too long
        return f"no handshake came within {seconds:g} s"
    return "it closed the connection during the handshake: it may not trust the certificate of this process"
