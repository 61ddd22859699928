"""TLS of both planes: contexts from `TlsConfig`, identities that follow their files, errors that say what is wrong.

The bytes inside a TLS connection are those of a plain one (tls.md 1). `Connector` dials with a `ClientTls`, `Listener`
accepts with a `ServerTls`; nothing else knows of TLS.

An identity (a certificate and its key) is read again while the process runs, because short-lived certificates are replaced
on disk. OpenSSL leaves a context without an identity if the new pair does not fit together. So the new pair is loaded into
a scratch context first: if that fails, the old one stays in use, with a warning.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple, TypeVar

from dynamo_fast.config import TlsConfig
from dynamo_fast.errors import InvalidConfig, TlsError
from dynamo_fast.logs import get_logger
from dynamo_fast.wire.address import join_host_port

__all__ = [
    "ClientTls",
    "ServerTls",
    "accepting",
    "client_tls",
    "is_alert",
    "is_hello",
    "load_identity",
    "lost",
    "reason",
    "server_tls",
]

logger = get_logger(__name__)

_HELLO, _ALERT = b"\x16\x03", b"\x15\x03"
_RECORD = 16 * 1024
"""The most bytes that a record has."""
RELOAD_SECONDS = 10.0
"""The files of an identity are compared at most this often, when a connection is made. (Dynamo: every 30 s.)"""
SESSION_SECONDS = 3600.0
"""How long after a whole handshake its session is resumed. Each resumption brings a new ticket: without a limit, a
certificate that has expired would be accepted for ever."""
_MOST_SESSIONS = 1024

_Dialled = TypeVar("_Dialled", bound=asyncio.Protocol)


def server_tls(config: TlsConfig, what: str) -> ServerTls | None:
    """How to accept connections; None: in plain text. `what` listens, for the log. Raises InvalidConfig."""
    if not config.listens:
        return None
    found = ServerTls(config)
    logger.info("TLS: %s accepts TLS%s", what, " with client certificates" if config.client_ca_cert_path else "")
    return found


def client_tls(config: TlsConfig, what: str) -> ClientTls | None:
    """How to dial; None: in plain text. `what` dials, for the log. Raises InvalidConfig."""
    if not config.dials:
        if config.listens:
            logger.warning(
                "TLS: %s dials in plain text, though this process accepts TLS: set DYN_TCP_TLS_CA_CERT_PATH", what
            )
        return None
    if config.insecure:
        logger.warning("TLS: %s verifies no certificate (DYN_TCP_TLS_INSECURE)", what)
    if config.client_ca_cert_path and not config.client_cert_path:
        logger.warning(
            "TLS: this process asks for client certificates, and %s shows none: set DYN_TCP_TLS_CLIENT_CERT_PATH", what
        )
    return ClientTls(config)


class _Identity:
    """A certificate and its key, in a context. Owned by a `ServerTls` or `ClientTls`; needs no end."""

    def __init__(self, context: ssl.SSLContext, certificate: str, key: str, names: tuple[str, str]) -> None:
        """`names`: of the variables with the paths. Raises InvalidConfig."""
        self._context = context
        self._paths = certificate, key
        self._names = names
        self._content = self._read()
        self._next_look = time.monotonic() + RELOAD_SECONDS
        try:
            load_identity(self._context, *self._content)
        except (ssl.SSLError, ValueError) as error:
            raise InvalidConfig(
                f"{names[0]}={certificate!r} and {names[1]}={key!r} are no certificate and its key in PEM: "
                f"{reason(error)}"
            ) from None
        except OSError as error:
            raise InvalidConfig(
                f"{names[0]}={certificate!r} cannot be used: OpenSSL reads a key from a file only, and no temporary folder "
                f"can be written ({error}): set TMPDIR"
            ) from None

    def refresh(self) -> bool:
        """Take over what is in the files now, if it is another pair that fits together. Returns whether it was."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + RELOAD_SECONDS
        try:
            content = self._read()
            if content == self._content:
                return False
            load_identity(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *content)
            load_identity(self._context, *content)
        except (InvalidConfig, OSError, ValueError) as error:  # SSLError is an OSError
            logger.warning(
                "TLS: the new certificate in %s is not used, and the last valid one stays: %s",
                self._paths[0],
                reason(error),
            )
            return False
        self._content = content
        logger.info("TLS: the certificate in %s was replaced, and is used from now on", self._paths[0])
        return True

    def _read(self) -> tuple[bytes, bytes]:
        found = [_read(path, name) for path, name in zip(self._paths, self._names, strict=True)]
        return found[0], found[1]


class ServerTls:
    """What a listener needs to accept TLS. Owned by the server that listens; needs no end."""

    def __init__(
        self, config: TlsConfig, variables: tuple[str, str] = ("DYN_TCP_TLS_CERT_PATH", "DYN_TCP_TLS_KEY_PATH")
    ) -> None:
        """`variables`: where certificate and key were set, for errors. Raises InvalidConfig."""
        self.context = _AcceptingContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.handshake_timeout = config.handshake_timeout
        self._identity = _Identity(self.context, config.cert_path, config.key_path, variables)
        if config.client_ca_cert_path:
            self.context.verify_mode = ssl.CERT_REQUIRED
            _trust(self.context, config.client_ca_cert_path, "DYN_TCP_TLS_CLIENT_CA_CERT_PATH")

    def refresh(self) -> None:
        """Call it before each handshake: the certificate may have been replaced."""
        self._identity.refresh()


class _AcceptingContext(ssl.SSLContext):
    """Sends the alert of a handshake that failed. The event loops close the connection with the alert unsent."""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """See ssl.SSLContext."""
        made = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        assert isinstance(made, _Accepted)
        made.outgoing, made.descriptor = outgoing, accepting.get()
        return made


_read_some = ssl.SSLObject.read  # without `super`, which costs more than the call


class _Connection(ssl.SSLObject):
    """One connection. The event loop owns it."""

    def read(self, len: int = _RECORD, buffer: bytearray | None = None) -> bytes | int:  # type: ignore[override]
        """See ssl.SSLObject. The event loops ask for 256 KiB, and get what is in one record.

        Python allocates what is asked for. So much is a mapping of its own: three system calls and a page fault for each
        record.
        """
        return _read_some(self, len if len < _RECORD else _RECORD, buffer)  # noqa: FURB136  # a call costs more


class _Accepted(_Connection):
    """The server's side of one connection."""

    outgoing: ssl.MemoryBIO
    descriptor: int

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                os.write(self.descriptor, self.outgoing.read() or _NOT_TLS)
            raise


_AcceptingContext.sslobject_class = _Accepted
_NOT_TLS = _ALERT + b"\x03\x00\x02\x02\x46"
"""OpenSSL has no alert for what is not TLS at all: this one is fatal, "protocol version"."""
accepting: ContextVar[int] = ContextVar("accepting", default=-1)
"""The descriptor of the connection whose handshake begins."""


class ClientTls:
    """What a connector needs to dial with TLS. Owned by the client or worker that dials; needs no end.

    It remembers the last connection with each other end. The next handshake resumes its session, which takes no
    certificates: that matters to a worker, which dials for every answer.
    """

    def __init__(self, config: TlsConfig) -> None:
        """Raises InvalidConfig."""
        self._last: OrderedDict[str, _Known] = OrderedDict()
        self.context = _ResumingContext(self._last)
        self.handshake_timeout = config.handshake_timeout
        self._server_name = config.server_name
        self._identity: _Identity | None = None
        if config.client_cert_path:
            names = "DYN_TCP_TLS_CLIENT_CERT_PATH", "DYN_TCP_TLS_CLIENT_KEY_PATH"
            self._identity = _Identity(self.context, config.client_cert_path, config.client_key_path, names)
        if config.insecure:
            self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        else:
            _trust(self.context, config.ca_cert_path, "DYN_TCP_TLS_CA_CERT_PATH")

    async def connect(
        self, protocol: Callable[[], _Dialled], host: str, port: int
    ) -> tuple[asyncio.Transport, _Dialled]:
        """As `create_connection` of the event loop. Raises TlsError, which says what is wrong, and OSError."""
        loop = asyncio.get_running_loop()
        address = join_host_port(host, port)
        if self._identity is not None and self._identity.refresh():
            self._last.clear()  # a session that is resumed shows no certificate
        _other_end.set(address)
        try:
            transport, made = await loop.create_connection(
                protocol,
                host,
                port,
                ssl=self.context,
                server_hostname=self._server_name or host,
                ssl_handshake_timeout=self.handshake_timeout,
            )
        except OSError as error:
            raise _explain(error, address, self.handshake_timeout) from error
        self._remember(address, transport.get_extra_info("ssl_object"))
        return transport, made

    def _remember(self, address: str, connection: ssl.SSLObject) -> None:
        before = self._last.get(address)
        resumed = before is not None and connection.session_reused
        self._last[address] = _Known(connection, before.since if resumed and before else time.monotonic())
        self._last.move_to_end(address)
        if len(self._last) > _MOST_SESSIONS:
            self._last.popitem(last=False)


class _Known(NamedTuple):
    """The last connection with another end, and the time of the whole handshake that its session began with."""

    connection: ssl.SSLObject
    since: float


class _ResumingContext(ssl.SSLContext):
    """Begins each handshake with the session of the last connection to the same other end."""

    def __new__(cls, _: object) -> _ResumingContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, last: Mapping[str, _Known]) -> None:
        self._last = last
        self.minimum_version = ssl.TLSVersion.TLSv1_2

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """See ssl.SSLContext. The event loops call it, and offer no way to name a session."""
        last = self._last.get(_other_end.get())
        if last is not None and time.monotonic() - last.since < SESSION_SECONDS:
            session = last.connection.session
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)


_ResumingContext.sslobject_class = _Connection
_other_end: ContextVar[str] = ContextVar("_other_end", default="")
"""Whom the task dials whose handshake begins."""


def is_hello(data: bytes) -> bool:
    """Whether bytes that came where plain text was expected begin a TLS handshake."""
    return data.startswith(_HELLO)


def is_alert(data: bytes) -> bool:
    """Whether bytes that came where plain text was expected are the answer of a TLS server that understood nothing."""
    return data.startswith(_ALERT)


def lost(error: BaseException | None, address: str) -> BaseException | None:
    """Why a connection with `address` was lost: TlsError if the other end broke off its half of the handshake late.

    In TLS 1.3 a server looks at the client's certificate when the client's half is done already.
    """
    return TlsError(f"{address} broke off TLS: {reason(error)}") if isinstance(error, ssl.SSLError) else error


def _explain(error: OSError, address: str, seconds: float) -> OSError:
    """What a failed handshake with `address` means; an error of the network as it is."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsError(f"the certificate of {address} is refused: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        if error.reason in _PLAIN:
            return TlsError(f"{address} speaks plain text, and this process dials with TLS")
        return TlsError(f"no TLS with {address}: {reason(error)}")
    if isinstance(error, ConnectionAbortedError):  # so asyncio and uvloop say that it took too long
        return TlsError(
            f"{address} answered no TLS handshake within {seconds:g} s: it speaks plain text, or does not respond"
        )
    if isinstance(error, ConnectionResetError):
        return TlsError(f"{address} closed the connection during the TLS handshake")
    return error


_PLAIN = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE"})


def _trust(context: ssl.SSLContext, path: str, variable: str) -> None:
    content = _read(path, variable)
    try:
        context.load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise InvalidConfig(f"{variable}={path!r} has no certificates in PEM: {reason(error)}") from None


def _read(path: str, variable: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidConfig(f"{variable}={path!r} cannot be read: {error.strerror}") from None


def load_identity(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Let `context` show this certificate. Raises ssl.SSLError, ValueError for an encrypted key, and OSError.

    OpenSSL reads files only. What was read is written to files of our own, because the given ones may change now.
    """
    with tempfile.TemporaryDirectory() as folder:  # 0700
        files = Path(folder, "cert.pem"), Path(folder, "key.pem")
        files[0].write_bytes(certificate)
        files[1].write_bytes(key)
        context.load_cert_chain(*files, password=_no_password)


def _no_password() -> str:
    raise ValueError("the key is encrypted: give it without a password")


def reason(error: BaseException) -> str:
    """What went wrong, in words."""
    if isinstance(error, ssl.SSLError) and error.reason in _PLAIN:
        return "it speaks plain text"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(error)
