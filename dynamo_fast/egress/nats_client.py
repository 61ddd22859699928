"""`NatsRequestClient`: requests by way of a NATS server (nats.md 3). Needs nats-py.

    caller                              NATS server                      worker
    HPUB <subject> <inbox>.<token>  ->  HMSG                         ->  takes the request, or refuses it
    MSG <inbox>.<token>             <-                               <-  PUB <inbox>.<token>: empty, or why not

The subject is the address in the worker's record, as it stands. One inbox takes all acknowledgements; the token says which
request is meant. The answer itself comes over the response plane, as with every transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache

from nats.aio.msg import Msg

from dynamo_fast.config import NatsConfig
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.request_client import Ack, RequestPlaneClient
from dynamo_fast.errors import (
    CannotConnect,
    ConnectionTimeout,
    DynamoError,
    InvalidAddress,
    RequestTooLarge,
    ResourceExhausted,
    SerializationError,
    Unavailable,
)
from dynamo_fast.net.nats_connection import NatsConnection, was_cancelled
from dynamo_fast.observability.metrics import REQUEST_PLANE, RequestPlaneMetrics
from dynamo_fast.wire.headers import FRONTEND_SEND_TS_NS
from dynamo_fast.wire.text import printable

__all__ = ["NatsRequestClient"]

_NO_TOKEN = re.compile(r"[\s*>\x00-\x1f\x7f]")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SIZE_OF_NO_HEADERS = len("NATS/1.0\r\n\r\n")
_SIZE_BESIDE_A_HEADER = len(": \r\n")
_NO_RESPONDERS = "503"


class NatsRequestClient(RequestPlaneClient):
    """The NATS transport of the request plane.

    Owns a connection with the NATS server, made for the first request, and one task that publishes. Requests wait while
    there is no connection, each for its own time at most. A router owns the client and calls it on one event loop; `close`
    ends it.
    """

    def __init__(self, config: NatsConfig | None = None, *, metrics: RequestPlaneMetrics = REQUEST_PLANE) -> None:
        """`config`: by default as the environment says. Raises InvalidConfig."""
        self.loop = asyncio.get_running_loop()
        self.config = NatsConfig.from_env() if config is None else config
        self.metrics = metrics
        self._connection = NatsConnection(self.config, on_lost=self._lost)
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._connection.subscribe(f"{self._inbox}.*", self._on_reply)
        self._tokens = itertools.count(1)
        self._pending: dict[str, _Request] = {}  # every request, until its acknowledgement
        self._unsent: OrderedDict[str, _Request] = OrderedDict()
        self._has_unsent = asyncio.Event()
        self._deadlines: Deadlines[_Request] = Deadlines(self.loop, self.config.request_timeout, self._time_out)
        self._publisher: asyncio.Task[None] | None = None
        self._closed = False

    def send_request(self, address: str, payload: bytes, headers: Mapping[str, str]) -> asyncio.Future[Ack]:
        """See RequestPlaneClient. `address` is a NATS subject; the time of sending is added to the headers."""
        subject = _subject(address)
        headers = {**headers, FRONTEND_SEND_TS_NS: str(time.time_ns())}
        request = _Request(str(next(self._tokens)), subject, payload, headers, self.loop.create_future())
        if self._closed:
            raise CannotConnect(f"NATS request to {printable(subject)} failed: the client was closed")
        limit = self._connection.max_payload
        if limit is not None:
            request.check_size(limit)
        if len(self._pending) >= self.config.max_waiting:
            request.future.set_exception(
                ResourceExhausted(f"{len(self._pending)} requests over NATS wait already: try again later")
            )
            return request.future
        self._pending[request.token] = self._unsent[request.token] = request
        self._deadlines.add(request)
        self._has_unsent.set()
        if self._publisher is None:
            self._connection.start()
            self._publisher = self.loop.create_task(self._publish_all())
        return request.future

    async def close(self) -> None:
        """See RequestPlaneClient."""
        self._closed = True
        self._deadlines.close()
        if self._publisher is not None:
            self._publisher.cancel()
            await asyncio.wait([self._publisher])
        for request in list(self._pending.values()):
            self._fail(request, "the client was closed")
        await self._connection.close()

    # Publishing -------------------------------------------------------------------------------------------------------

    async def _publish_all(self) -> None:
        while not self._closed and not was_cancelled():
            await self._has_unsent.wait()
            try:
                await self._connection.connected()
            except CannotConnect as refusal:  # of this process: it would not help to wait
                for request in list(self._unsent.values()):
                    self._fail(request, str(refusal))
            if self._unsent:
                _, request = self._unsent.popitem(last=False)
                await self._publish(request)
            if not self._unsent:
                self._has_unsent.clear()

    async def _publish(self, request: _Request) -> None:
        if request.future.done():  # the caller gave it up
            self._settled(request)
            return
        request.published = True
        try:
            request.check_size(self._connection.max_payload)
            reply = f"{self._inbox}.{request.token}"
            await self._connection.publish(request.subject, request.payload, reply, request.headers)
        except RequestTooLarge as error:
            self._settled(request)
            request.set_exception(error)
        except CannotConnect as error:
            self._fail(request, str(error))
        finally:
            request.payload = b""  # it lives until its acknowledgement

    # How requests end -------------------------------------------------------------------------------------------------

    async def _on_reply(self, message: Msg) -> None:
        request = self._pending.get(message.subject.rpartition(".")[2])
        if request is None:
            return
        headers = message.headers or {}
        if headers.get("Status") == _NO_RESPONDERS and not message.data:
            self.metrics.nats_errors += 1
            self._settled(request)
            request.set_exception(Unavailable(f"NATS request to {printable(request.subject)} failed: no worker has it"))
            return
        self._settled(request)
        if not request.future.done():
            text = message.data or headers.get("Nats-Service-Error", "").encode()
            request.future.set_result(Ack(text))

    def _time_out(self, request: _Request) -> None:
        limit = f"within {self.config.request_timeout:g} s"
        if not request.published:
            where, why = self.config.address, self._connection.failure
            self._fail(request, f"no connection with the NATS server at {where} {limit}" + (f": {why}" if why else ""))
            return
        self.metrics.nats_errors += not request.future.done()
        self._settled(request)
        subject, failure = printable(request.subject), self._connection.failure
        request.set_exception(
            ConnectionTimeout(
                f"NATS request to {subject} timed out: no acknowledgement {limit}"
                + (f" ({failure})" if failure else "")
            )
        )

    def _lost(self) -> None:
        """The connection is lost, and with it what was published and not acknowledged."""
        for request in list(self._pending.values()):
            if request.published:
                self._fail(request, f"the NATS server at {self.config.address} is lost: {self._connection.failure}")

    def _fail(self, request: _Request, why: str) -> None:
        self._settled(request)
        if not request.future.done():
            self.metrics.nats_errors += 1
            request.set_exception(CannotConnect(f"NATS request to {printable(request.subject)} failed: {why}"))

    def _settled(self, request: _Request) -> None:
        self._pending.pop(request.token, None)
        self._unsent.pop(request.token, None)
        self._deadlines.discard(request)


class _Request:
    """A request between the call and its acknowledgement. The client's table holds it; it ends when `future` is done."""

    __slots__ = ("future", "headers", "payload", "published", "size", "subject", "token")

    def __init__(
        self, token: str, subject: str, payload: bytes, headers: dict[str, str], future: asyncio.Future[Ack]
    ) -> None:
        """Raises SerializationError for headers that cannot be written."""
        self.token = token
        self.subject = subject
        self.payload = payload
        self.headers = headers
        self.future = future
        self.published = False
        self.size = len(payload) + _size_of(headers)
        """Bytes as the NATS server counts them: with the headers."""

    def check_size(self, limit: int | None) -> None:
        """Raises RequestTooLarge."""
        if limit is not None and self.size > limit:
            raise RequestTooLarge(
                "Request payload is too large for this deployment. Reduce the input size or metadata size and retry.",
                f"It takes {self.size} bytes with its headers; max_payload of the NATS server is {limit}.",
                size=self.size,
                limit=limit,
            )

    def set_exception(self, error: DynamoError) -> None:
        """Fail it, unless it has ended already."""
        with contextlib.suppress(asyncio.InvalidStateError):
            self.future.set_exception(error)


@lru_cache(maxsize=4096)
def _subject(address: str) -> str:
    """The subject of a record. Raises InvalidAddress for one that NATS does not publish to."""
    if not all(address.split(".")) or _NO_TOKEN.search(address):
        raise InvalidAddress(
            f"Invalid NATS subject '{printable(address)}'", "expected words with dots between, without space, * and >"
        )
    return address


def _size_of(headers: Mapping[str, str]) -> int:
    """Bytes of the headers of a message. Raises SerializationError for what no header can be."""
    size = _SIZE_OF_NO_HEADERS
    for name, value in headers.items():
        try:
            size += len(name) + len(value.strip().encode()) + _SIZE_BESIDE_A_HEADER
        except UnicodeEncodeError as error:
            raise SerializationError(f"the headers of the request cannot be written: {error}") from None
        if not _HEADER_NAME.fullmatch(name):
            raise SerializationError(f"{printable(name)!r} cannot be the name of a header over NATS")
    return size
