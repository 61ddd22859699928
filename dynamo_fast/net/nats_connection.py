"""`NatsConnection`: the connection of this process with a NATS server (nats.md 4 and 7). Needs nats-py.

nats-py speaks the protocol. What is lost is made again here and not by nats-py: it gives up for good after some errors of
the server, and it keeps what is published during an outage, for callers that have gone. So each connection is a new client
of nats-py, and one loop makes them:

    connect -> subscribe to everything -> wait until it is lost -> pause -> connect ...

A server that does not answer a ping is lost, too, however the network looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import DEFAULT_SUB_PENDING_BYTES_LIMIT, Subscription

from dynamo_fast.config import NatsConfig
from dynamo_fast.errors import CannotConnect, InvalidConfig
from dynamo_fast.logs import get_logger
from dynamo_fast.net import tls
from dynamo_fast.net.sockets import close_in_forked_children

__all__ = ["NatsConnection", "OnMessage", "was_cancelled"]

logger = get_logger(__name__)

OnMessage: TypeAlias = Callable[[Msg], Awaitable[None]]
"""Called with each message of a subscription, one after the other; a coroutine function."""

_CONNECT_SECONDS = 5.0
_PING_SECONDS = 10.0
_PONG_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
_DRAIN_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 4.0
_NEVER = 10**9
_MOST_WAITING = 16_384  # messages of one subscription
_ONE_LINE = str.maketrans("\r\n", "  ")


class NatsConnection:
    """One connection, made again whenever it is lost, and its subscriptions, made again with it.

    A client or a server of the request plane owns it and uses it on one event loop. It owns the task that connects, and the
    client of nats-py. It begins with `start` and ends with `close`.
    """

    def __init__(
        self,
        config: NatsConfig,
        *,
        on_lost: Callable[[], None] | None = None,
        on_overflow: Callable[[str], Awaitable[None]] | None = None,
        max_waiting_bytes: int = DEFAULT_SUB_PENDING_BYTES_LIMIT,
    ) -> None:
        """`on_lost()`: what was published and not answered may be lost. `on_overflow(reply)`: a message was dropped, since
        more than `max_waiting_bytes` of its subscription wait.

        Raises InvalidConfig.
        """
        self.config = config
        self.failure = "it was not tried yet"
        """Why there is no connection."""
        self._connect_options = _options(config)  # raises InvalidConfig, before anything starts
        self._on_lost = on_lost
        self._on_overflow = on_overflow
        self._max_waiting_bytes = max_waiting_bytes
        self._subscriptions: dict[str, _Interest] = {}
        self._subscribing = asyncio.Lock()
        self._client: Client | None = None
        self._newest: Client | None = None  # it may be connecting
        self._decided = asyncio.Event()  # there is a connection, or the server refuses this process
        self._denied = ""
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        close_in_forked_children(self)

    def start(self) -> None:
        """Begin to connect. No effect the second time."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def connected(self, seconds: float | None = None) -> None:
        """Wait for a connection; without `seconds`, as long as it takes.

        Raises CannotConnect if there is none in time, or at once if the server refuses this process.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._decided.wait(), seconds)
        if self._client is None:
            limit = "" if seconds is None or self._decided.is_set() else f" within {seconds:g} s"
            raise CannotConnect(f"no connection with the NATS server at {self.config.address}{limit}: {self.failure}")

    @property
    def max_payload(self) -> int | None:
        """Bytes that a message may have with its headers; None while there is no connection."""
        return None if self._client is None else self._client.max_payload

    def subscribe(self, subject: str, on_message: OnMessage, queue: str = "") -> None:
        """Take the messages of `subject`, from the next connection or the next `subscribed` on."""
        self._subscriptions[subject] = _Interest(on_message, queue)

    async def subscribed(self, seconds: float) -> None:
        """Wait until the server knows every subscription. Raises CannotConnect."""
        await self.connected(seconds)
        client = self._client
        assert client is not None
        try:
            await self._subscribe(client)
        except (nats.errors.Error, OSError, asyncio.TimeoutError) as error:
            raise CannotConnect(
                f"the NATS server at {self.config.address} takes no subscription: {_why(error)}"
            ) from error

    def unsubscribe(self, subject: str) -> None:
        """Take no more messages of `subject`. Those that are here already are still handled."""
        interest = self._subscriptions.pop(subject, None)
        if interest is not None and interest.made is not None:
            task = asyncio.get_running_loop().create_task(_drain(interest.made))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Hand one message to nats-py; waits while too much is unwritten. Raises CannotConnect.

        A line break in the value of a header becomes spaces: older releases of nats-py write it as it is, and what follows
        it would be a header of its own.
        """
        client = self._client
        if headers is not None:
            headers = {name: value.translate(_ONE_LINE) for name, value in headers.items()}
        try:
            if client is None:
                raise CannotConnect(f"no connection with the NATS server at {self.config.address}: {self.failure}")
            await client.publish(subject, payload, reply, headers)
        except (nats.errors.Error, OSError) as error:
            if isinstance(error, CannotConnect):
                raise
            raise CannotConnect(f"the NATS server at {self.config.address} takes no message: {_why(error)}") from error

    async def close(self) -> None:
        """Write what was published, and close. May be called twice."""
        self._closed = True
        if self._leaving:
            await asyncio.wait(self._leaving)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._client = None

    def open_sockets(self) -> Iterator[int]:
        """See SocketHolder."""
        transport = _transport_of(self._newest)
        if transport is not None and not transport.is_closing():
            yield transport.get_extra_info("socket").fileno()

    # The connection ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            if await self._live():
                pause = _FIRST_PAUSE
            if self._closed or was_cancelled():
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _live(self) -> bool:
        """One connection, from its beginning to its end. Returns whether it could be made."""
        client = self._newest = _Client()
        closed = asyncio.Event()
        try:
            if not await self._connect(client, closed):
                return False
            await self._watch(client)
            client.drop()
            logger.warning("the NATS server at %s is lost: %s", self.config.address, self.failure)
            return True
        finally:
            is_lost, self._client = self._client is not None, None
            if is_lost:
                self._decided.clear()
            for interest in self._subscriptions.values():
                interest.made = None
            for leaving in self._leaving:
                leaving.cancel()
            if is_lost and self._on_lost is not None:
                self._on_lost()
            await _end(client, closed)

    async def _connect(self, client: _Client, closed: asyncio.Event) -> bool:
        async def on_closed() -> None:
            closed.set()
            client.lost.set()

        try:
            options = _options(self.config)  # read again: files may have been replaced
            connecting = client.connect(**options, error_cb=self._on_error, closed_cb=on_closed)
            await asyncio.wait_for(connecting, 2 * _CONNECT_SECONDS)
            if not client.is_connected:
                raise ConnectionResetError("it closed the connection")
            await self._subscribe(client)
        except Exception as error:  # nats-py raises what it likes when a server says nonsense
            self._failed(error, refused=isinstance(error, ConnectionError) and client.must_say_who)
            return False
        if self.failure:
            logger.info("connected with the NATS server at %s", self.config.address)
        self.failure = ""
        self._client = client
        self._decided.set()
        return True

    def _failed(self, error: Exception, *, refused: bool) -> None:
        """`refused`: the server has read who this process is, and closed the connection. Its reason can get lost then."""
        was_refused = "authorization violation" in self.failure.lower() and isinstance(error, ConnectionError)
        if not was_refused and not isinstance(error, nats.errors.NoServersError):  # then `_on_error` got the reason
            self.failure = "authorization violation: it closed the connection" if refused else _why(error)
        logger.warning("no connection with the NATS server at %s: %s", self.config.address, self.failure)
        if isinstance(error, ssl.SSLCertVerificationError) or "authorization violation" in self.failure.lower():
            self._decided.set()
        else:
            self._decided.clear()

    async def _watch(self, client: _Client) -> None:
        """Wait until the connection is lost or closed, or the server does not answer."""
        while not client.lost.is_set():
            try:
                await asyncio.wait_for(client.lost.wait(), _PING_SECONDS)
            except asyncio.TimeoutError:
                try:
                    await asyncio.wait_for(client.rtt(int(_PONG_SECONDS)), 2 * _PONG_SECONDS)
                except (nats.errors.Error, OSError, asyncio.TimeoutError) as error:
                    self.failure = f"no answer to a ping: {_why(error)}"
                    return
        self.failure = self.failure or _why(client.last_error or nats.errors.UnexpectedEOF())

    async def _subscribe(self, client: Client) -> None:
        """Make the subscriptions that `client` does not have, and wait until the server has read them."""
        async with self._subscribing:
            self._denied = ""
            for subject, interest in list(self._subscriptions.items()):
                if interest.made is None:
                    interest.made = await client.subscribe(
                        subject,
                        interest.queue,
                        cb=interest.on_message,
                        pending_msgs_limit=_MOST_WAITING,
                        pending_bytes_limit=self._max_waiting_bytes,
                    )
            await asyncio.wait_for(client.rtt(int(_PONG_SECONDS)), 2 * _PONG_SECONDS)
            if self._denied:
                raise nats.errors.Error(self._denied)

    async def _on_error(self, error: Exception) -> None:
        """What nats-py cannot raise to a caller."""
        if isinstance(error, nats.errors.SlowConsumerError):
            if self._on_overflow is not None:
                await self._on_overflow(error.reply)
            return
        self.failure = _why(error)
        if "permissions violation for subscription" in self.failure:
            self._denied = self.failure
        if self._client is not None:
            logger.warning("the NATS server at %s: %s", self.config.address, self.failure)


class _Interest:
    """One subscription: what is asked for, and what the present connection has of it."""

    __slots__ = ("made", "on_message", "queue")

    def __init__(self, on_message: OnMessage, queue: str) -> None:
        self.on_message = on_message
        self.queue = queue
        self.made: Subscription | None = None


class _Client(Client):
    """nats-py, which says at once that its connection is lost, and keeps its credentials for TLS if that was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = asyncio.Event()
        """The connection is lost, or was closed."""

    def drop(self) -> None:
        """Forget what was not written yet, and wake those who wait until it is.

        nats-py would write it before it closes: to a lost connection that raises, in a task of its own, and then it neither
        closes nor says that it is lost.
        """
        self.lost.set()
        self._pending, self._pending_data_size = [], 0
        while self._flush_queue is not None and not self._flush_queue.empty():
            flushed = self._flush_queue.get_nowait()
            if not flushed.done():
                flushed.set_result(None)

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        """Write what waits first: nats-py writes a ping past it, and then the answer says nothing about it."""
        if self._pending and self._transport is not None:
            self._transport.writelines(self._pending)
            self._pending, self._pending_data_size = [], 0
        await super()._send_ping(future)

    async def _process_op_err(self, e: Exception) -> None:
        """nats-py calls this when the connection is lost."""
        self.drop()
        await super()._process_op_err(e)

    @property
    def must_say_who(self) -> bool:
        """Whether the server asks who this process is."""
        return bool(self._server_info.get("auth_required"))

    def _connect_command(self) -> bytes:
        if "tls" in self.options and not self._server_info.get("tls_required"):
            raise nats.errors.Error("it offers no TLS, and NATS_SERVER says tls://")
        return super()._connect_command()


def _options(config: NatsConfig) -> dict[str, Any]:
    """What nats-py's `connect` is called with. Raises InvalidConfig."""
    return {
        "servers": config.server,
        "name": "dynamo_fast",
        "allow_reconnect": False,
        "connect_timeout": _CONNECT_SECONDS,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0,
        "ping_interval": _NEVER,  # see `_watch`
        "flush_timeout": _PONG_SECONDS,
        **_credentials(config),
        **({"tls": _tls_context(config)} if config.uses_tls else {}),
    }


def _credentials(config: NatsConfig) -> dict[str, Any]:
    """How this process says who it is: the first that is complete, in Dynamo's order."""
    if config.username and config.password:
        return {"user": config.username, "password": config.password}
    if config.token:
        return {"token": config.token}
    if config.nkey:
        _check_nkey(config.nkey)
        return {"nkeys_seed_str": config.nkey}
    if config.credentials_file:
        _check_credentials_file(config.credentials_file)
        return {"user_credentials": config.credentials_file}
    if "@" in config.server:
        return {}
    return {"user": "user", "password": "user"}


def _check_nkey(seed: str) -> None:
    try:
        import nkeys
    except ModuleNotFoundError as error:
        raise InvalidConfig(f"NATS_AUTH_NKEY needs nkeys: pip install 'dynamo-fast[nats]' ({error})") from error
    try:
        nkeys.from_seed(bytearray(seed.strip().encode()))
    except Exception:  # whatever its parts raise
        raise InvalidConfig("NATS_AUTH_NKEY is not valid: expected the seed of an nkey, SU...") from None


def _check_credentials_file(path: str) -> None:
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"NATS_AUTH_CREDENTIALS_FILE={path!r} cannot be read: {_why(error)}") from None
    if "BEGIN NATS USER JWT" not in text or "BEGIN USER NKEY SEED" not in text:
        raise InvalidConfig(f"NATS_AUTH_CREDENTIALS_FILE={path!r} has no user JWT with its nkey seed")
    try:
        import nkeys  # noqa: F401
    except ModuleNotFoundError as error:
        raise InvalidConfig(
            f"NATS_AUTH_CREDENTIALS_FILE needs nkeys: pip install 'dynamo-fast[nats]' ({error})"
        ) from error


def _tls_context(config: NatsConfig) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if config.tls_insecure:
        logger.warning("NATS: no certificate is verified (NATS_TLS_INSECURE)")
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif config.tls_ca_cert_path:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load(config.tls_ca_cert_path, "NATS_TLS_CA_CERT_PATH", context.load_verify_locations)
    if config.tls_client_cert_path:
        _load(
            config.tls_client_cert_path,
            "NATS_TLS_CLIENT_CERT_PATH",
            lambda path: context.load_cert_chain(path, config.tls_client_key_path),
        )
    return context


def _load(path: str, variable: str, load: Callable[[str], object]) -> None:
    try:
        load(path)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidConfig(f"{variable}={path!r} cannot be used: {_why(error)}") from None


async def _drain(subscription: Subscription) -> None:
    with contextlib.suppress(nats.errors.Error, OSError, asyncio.TimeoutError):  # the connection is lost: so is it
        await asyncio.wait_for(subscription.drain(), _DRAIN_SECONDS)  # type: ignore[no-untyped-call]


def was_cancelled() -> bool:
    """Whether this task was asked to end: nats-py can swallow that. Python 3.10 cannot tell, and says no."""
    return bool(getattr(asyncio.current_task(), "cancelling", int)())


async def _end(client: Client, closed: asyncio.Event) -> None:
    """Close, in a limited time. nats-py waits for ever for a server that reads nothing."""
    was_connected = client.is_connected
    with contextlib.suppress(Exception):
        await asyncio.wait_for(client.close(), _CLOSE_SECONDS)
    transport = _transport_of(client)
    if transport is not None:
        transport.abort()
    if was_connected:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(closed.wait(), _CLOSE_SECONDS)


def _transport_of(client: Client | None) -> Any:
    """The socket transport below nats-py, which does not show it."""
    return getattr(getattr(getattr(client, "_transport", None), "_io_writer", None), "transport", None)


def _why(error: BaseException) -> str:
    """What went wrong, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS: {tls.reason(error)}"
    if isinstance(error, asyncio.TimeoutError):
        return str(error).removeprefix("nats: ") or "no answer in time"
    return str(error).removeprefix("nats: ") or type(error).__name__
