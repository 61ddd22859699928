"""`TcpStreamServer`: what workers dial back to (transport.md section 4).

One listener for all requests of a router. Each request registers a subject; the worker that answers it dials, names the
subject in its handshake, and its connection is that request's from then on.
"""

from __future__ import annotations

import asyncio
from functools import partial

from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.context import Context
from dynamo_fast.egress.request_sender import ManyIn, RequestSender
from dynamo_fast.egress.response_connection import ResponseConnection
from dynamo_fast.egress.stream_registry import StreamRegistry
from dynamo_fast.errors import ResourceExhausted
from dynamo_fast.net.descriptors import PROCESS
from dynamo_fast.net.listener import Listener
from dynamo_fast.wire.address import join_host_port
from dynamo_fast.wire.payload import PayloadCodec

__all__ = ["TcpStreamServer"]


class TcpStreamServer(StreamRegistry):
    """The response server of a router: its registry, and the listener that workers dial. Make it with `create`.

    Owns the listener; `close` ends it, and all that is in the registry. One event loop.
    """

    def __init__(self, config: ResponseServerConfig) -> None:
        super().__init__(config)
        ip = local_ip(config.host, "DYN_TCP_RESPONSE_STREAM_HOST")
        self._listener = Listener(ip, config.port, config.backlog, partial(ResponseConnection, self))
        self.address = join_host_port(advertised_ip(ip), self._listener.port)

    @classmethod
    async def create(cls, config: ResponseServerConfig | None = None) -> TcpStreamServer:
        """Listen as `config` says, by default as the environment does. Raises InvalidConfig, OSError."""
        return cls(ResponseServerConfig.from_env() if config is None else config)

    async def close(self) -> None:
        """Stop listening; calls that wait fail with Disconnected, streams under way are cut and their workers told."""
        self._listener.close()
        self.end_streams()
        await asyncio.sleep(0)  # the transports close in the next turn

    def register(self, context: Context) -> ResponseReceiver:
        """A new subject, whose answer will be cancelled by `context`.

        Raises ResourceExhausted if as many streams are open as may be, or if the process has no descriptor for the
        worker's connection, and Disconnected once the server is closed.
        """
        if len(self._waiting) + len(self.connections) >= self._max_streams:
            raise ResourceExhausted(
                f"{self._max_streams} response streams are open already, as many as DYNAMO_FAST_MAX_STREAMS allows"
            )
        _promise_descriptor()
        return super().register(context)

    def register_input(self, source: ManyIn, codec: PayloadCodec, receiver: ResponseReceiver) -> RequestSender:
        """A second subject for the same request, on which the worker will dial for its input. Raises ResourceExhausted."""
        _promise_descriptor()
        return super().register_input(source, codec, receiver)

    def descriptors(self) -> tuple[int, int]:
        """See `net.descriptors.Promiser`."""
        return len(self._waiting) + len(self._inputs), len(self.connections) - len(self.handshakes)


def _promise_descriptor() -> None:
    if not PROCESS.promise():
        raise ResourceExhausted(f"This process has no descriptor for the worker's connection: {PROCESS.shortage()}")
