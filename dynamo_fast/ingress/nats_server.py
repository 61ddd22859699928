"""`NatsRequestServer`: takes requests from a NATS server (nats.md 2 and 3). Needs nats-py.

Each endpoint of each worker has a subject of its own, which its record names. The acknowledgement of a request is the reply
to its message: empty if it is accepted, else the reason why not, in the words that both releases of Dynamo take for a
refusal (see `tcp_server`).

Dynamo's own workers subscribe to the slug of namespace and component, and publish the names as they are: callers do not
reach one with an upper-case letter. Here the record names the subject that is subscribed to.
"""

from __future__ import annotations

import asyncio
import re

from nats.aio.msg import Msg

from dynamo_fast.config import NatsConfig, TcpServerConfig
from dynamo_fast.errors import CannotConnect, RequestRefused
from dynamo_fast.ingress.request_server import Accept, RequestServer
from dynamo_fast.logs import get_logger
from dynamo_fast.net.nats_connection import NatsConnection
from dynamo_fast.observability.limited_log import LimitedLog
from dynamo_fast.wire.instance import TransportType
from dynamo_fast.wire.model_card import slug

__all__ = ["KIND", "NatsRequestServer", "subject_of"]

logger = get_logger(__name__)

KIND = "nats_tcp"
"""Of the records: requests come over NATS, answers go over TCP."""
_QUEUE = "q"
_NO_TOKEN = re.compile(r"[\s.*>\x00-\x1f\x7f]")
_SHOWN = 300  # characters of a refusal in the log: it may carry what the peer sent
_OVERFLOW = b"Server overloaded: more requests came at once than this worker reads"


class NatsRequestServer(RequestServer):
    """The request-plane server of a process on NATS. Made and used on one event loop.

    The worker owns it. It owns the connection with the NATS server. Messages that came and were not looked at yet are
    limited by `TcpServerConfig.buffered_bytes`; further ones are refused. It ends with `close`.
    """

    def __init__(self, limits: TcpServerConfig | None = None, config: NatsConfig | None = None) -> None:
        """`limits`, `config`: by default as the environment says. Raises InvalidConfig."""
        self.config = NatsConfig.from_env() if config is None else config
        limits = TcpServerConfig.from_env() if limits is None else limits
        self._log = LimitedLog(asyncio.get_running_loop(), logger)
        self._connection = NatsConnection(
            self.config, on_overflow=self._refuse_overflow, max_waiting_bytes=limits.buffered_bytes
        )
        self._subjects: dict[str, str] = {}  # by path
        self._endpoints: dict[str, Accept] = {}  # by subject

    async def start(self) -> None:
        """Connect. Raises CannotConnect if the NATS server is not reached in time, or refuses this process."""
        self._connection.start()
        await self._connection.connected(self.config.startup_timeout)

    def transport(self, path: str) -> TransportType:
        """`nats_tcp`, and the subject of the endpoint."""
        subject = self._subjects.get(path)
        if subject is None:
            subject = self._subjects[path] = self._free(subject_of(path))
        return TransportType(KIND, subject)

    def register(self, path: str, accept: Accept, alias: str = "") -> None:
        """See `RequestServer`. There are no aliases: callers use the subject of the record."""
        subject = self.transport(path).address
        is_new = subject not in self._endpoints
        self._endpoints[subject] = accept
        if is_new:
            self._connection.subscribe(subject, self._take, _QUEUE)

    async def listening(self) -> None:
        """Wait until the NATS server knows every subject. Raises CannotConnect."""
        await self._connection.subscribed(self.config.request_timeout)

    def unregister(self, path: str) -> None:
        """Leave the subject: the NATS server tells callers that it has no subscriber. What was accepted runs on."""
        subject = self._subjects.pop(path, None)
        if subject is not None and self._endpoints.pop(subject, None) is not None:
            self._connection.unsubscribe(subject)

    async def close(self) -> None:
        """See `RequestServer`."""
        await self._connection.close()
        self._log.close()

    def _free(self, subject: str) -> str:
        """`subject`, or the same with a number: different names can have one slug."""
        taken, number, free = set(self._subjects.values()), 2, subject
        while free in taken:
            free, number = f"{subject}-{number}", number + 1
        return free

    async def _take(self, message: Msg) -> None:
        acknowledgement = self._answer(message)
        if not message.reply:
            return
        try:
            await self._connection.publish(message.reply, acknowledgement)
        except CannotConnect as error:
            self._log.tell("lost", "an acknowledgement is lost: %s", error)

    def _answer(self, message: Msg) -> bytes:
        """Empty, or the refusal."""
        accept = self._endpoints.get(message.subject)
        try:
            if accept is None:  # it came while the subject was being left
                raise RequestRefused(f"Server unavailable: unknown endpoint {message.subject}")
            accept(message.data, message.headers or {})
        except RequestRefused as refusal:
            text = str(refusal)
            self._log.tell("refused", "refusing a request to %s: %r", message.subject, text[:_SHOWN])
            return text.encode("utf-8", "replace")
        return b""

    async def _refuse_overflow(self, reply: str) -> None:
        self._log.tell("overflow", "refusing a request: more came at once than this worker reads")
        if reply:
            try:
                await self._connection.publish(reply, _OVERFLOW)
            except CannotConnect as error:
                self._log.tell("lost", "a refusal is lost: %s", error)


def subject_of(path: str) -> str:
    """The subject of an endpoint, from the path `<id hex>/<namespace>/<component>/<endpoint>`."""
    instance, _, names = path.partition("/")
    component, _, name = names.rpartition("/")
    return f"{slug(component) or '_'}.{_NO_TOKEN.sub('_', name) or '_'}-{instance}"
