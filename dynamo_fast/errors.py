"""The exception tree of dynamo_fast.

    DynamoError                          every error of this package
    |
    +-- InvalidRequest (ValueError)      the caller's mistake; nothing was sent
    |   +-- InvalidAddress               an address, path or endpoint name that does not parse
    |   +-- InvalidConfig                an environment variable or setting that does not parse
    |   +-- InvalidLabel                 a metric label that the package sets itself
    |   +-- SerializationError           a value that the payload codec cannot express
    |   +-- RequestTooLarge              a request over a limit, refused before it was sent
    |
    +-- ProtocolError (ValueError)       the peer's bytes break the protocol
    |   +-- CodecError                   the bytes are not a valid frame
    |   |   +-- MessageTooLarge          a length prefix over the limit (either direction)
    |   |   +-- IncompleteMessage        the bytes end before the message does
    |   |   +-- TrailingBytes            there are bytes after the message
    |   |   +-- ChecksumMismatch         the checksum does not match the bytes
    |   +-- ControlError                 a control message that is not what the protocol allows here
    |   +-- PayloadError                 a body or item that the payload codec cannot decode
    |
    +-- TransportError (ConnectionError) the network, or a process at its other end, failed
    |   +-- CannotConnect                no connection, or it broke before the acknowledgement
    |   |   +-- TlsError                 the TLS handshake failed, or the other end speaks the other way
    |   +-- Disconnected                 the connection to the worker was lost
    |   +-- ConnectionTimeout (TimeoutError)   a step of the transport did not happen in time
    |   +-- ResponseTimeout (TimeoutError)     the worker sent no item within the limit
    |
    +-- RequestRefused                   the worker's server answered "no"; the handler never ran
    |   +-- Unavailable                  no worker serves this endpoint
    |   +-- ResourceExhausted            all workers that serve it are busy
    |
    +-- RemoteError                      the worker's handler, or the worker's server, sent an error
    +-- Cancelled                        the caller's context was killed first

Each error tells a program three things: `error_type`, Dynamo 1.3's word for it; `error_class` and `reason`, the words of
Dynamo 1.6; and `migratable`, whether the same request may be tried on another worker. The words are those of
`dynamo_fast.reasons`.

This module imports nothing else of the package, so that every other module can raise from the one tree.
"""

from __future__ import annotations

from dynamo_fast import reasons

__all__ = [
    "Cancelled",
    "CannotConnect",
    "ChecksumMismatch",
    "CodecError",
    "ConnectionTimeout",
    "ControlError",
    "Disconnected",
    "DynamoError",
    "IncompleteMessage",
    "InvalidAddress",
    "InvalidConfig",
    "InvalidLabel",
    "InvalidRequest",
    "MessageTooLarge",
    "PayloadError",
    "ProtocolError",
    "RemoteError",
    "RequestRefused",
    "RequestTooLarge",
    "ResourceExhausted",
    "ResponseTimeout",
    "SerializationError",
    "TlsError",
    "TrailingBytes",
    "TransportError",
    "Unavailable",
]


class DynamoError(Exception):
    """Base of every error of this package.

    `error_type` is the legacy word of the wire ("Disconnected", "Backend.Unknown", ...), `error_class` and `reason` are
    those of Dynamo 1.6 ("Unavailable", "transport.disconnected", ...).
    """

    error_type: str
    error_class: str
    reason: str
    error_type, error_class, reason = reasons.UNCLASSIFIED

    @property
    def message(self) -> str:
        """The text of the error, without its class."""
        return str(self)

    @property
    def caused_by(self) -> DynamoError | None:
        """The next error of the chain that came over the wire, if it came with one."""
        return self.__cause__ if isinstance(self.__cause__, DynamoError) else None

    @property
    def migratable(self) -> bool:
        """Whether the request may be tried on another worker (looks at the whole chain of causes)."""
        found = {error.reason for error in self.chain()}
        return bool(found & reasons.MIGRATABLE) and not found & reasons.NEVER_MIGRATABLE

    def chain(self) -> list[DynamoError]:
        """This error, then its causes, outermost first. Ends where the chain comes back to itself."""
        chain: list[DynamoError] = []
        error: DynamoError | None = self
        while error is not None and error not in chain:
            chain.append(error)
            error = error.caused_by
        return chain

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


class InvalidRequest(DynamoError, ValueError):
    """The caller's mistake, found before anything was sent.

    `problem` is the text as Dynamo has it. The text of the error is the problem, and then the detail in brackets.
    """

    error_type, error_class, reason = reasons.INVALID_ARGUMENT

    def __init__(self, problem: str = "", detail: str | None = None) -> None:
        super().__init__(problem if detail is None else f"{problem} ({detail})")
        self.problem = problem


class InvalidAddress(InvalidRequest):
    """An address, endpoint path or endpoint name that does not parse."""


class InvalidConfig(InvalidRequest):
    """A setting that does not parse; names the variable, its value and what is accepted."""


class InvalidLabel(InvalidRequest):
    """A metric label that the package sets itself. `label` is its name."""

    def __init__(self, problem: str, *, label: str) -> None:
        super().__init__(problem)
        self.label = label


class SerializationError(InvalidRequest):
    """A value that the payload codec cannot express.

    `path` is its place in the whole value, such as `$.a[0]`, where it is known. `by_type` says that no value of this
    Python type can be expressed.
    """

    def __init__(self, problem: str, *, path: str | None = None, by_type: bool = False) -> None:
        super().__init__(problem, None if path is None else f"at {path}")
        self.path = path
        self.by_type = by_type


class RequestTooLarge(InvalidRequest):
    """A request over a limit; refused before it was sent. `size` and `limit` are in bytes."""

    def __init__(self, problem: str, detail: str | None = None, *, size: int, limit: int) -> None:
        super().__init__(problem, detail)
        self.size = size
        self.limit = limit


class ProtocolError(DynamoError, ValueError):
    """The peer's bytes break the protocol. Dynamo has no type of its own for this: it is `Internal` there."""


class CodecError(ProtocolError):
    """The bytes are not a valid frame."""


class MessageTooLarge(CodecError):
    """A message over the limit: refused on its length prefix. `size` and `limit` are in bytes."""

    def __init__(self, message: str, *, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class IncompleteMessage(CodecError):
    """The bytes end before the message does."""


class TrailingBytes(CodecError):
    """There are bytes after the message."""


class ChecksumMismatch(CodecError):
    """The checksum in the prefix does not match the bytes."""


class ControlError(ProtocolError):
    """A control message (handshake, prologue, stop, kill, sentinel, ...) that the protocol does not allow here."""


class PayloadError(ProtocolError):
    """A request body or a response item that its payload codec cannot decode."""


class TransportError(DynamoError, ConnectionError):
    """The network, or the process at its other end, failed."""

    error_type, error_class, reason = reasons.UNAVAILABLE


class CannotConnect(TransportError):
    """No connection to the worker, or it broke before the request was acknowledged."""

    error_type, error_class, reason = reasons.CANNOT_CONNECT


class TlsError(CannotConnect):
    """The TLS handshake failed: a certificate, or one end speaks TLS and the other plain text."""


class Disconnected(TransportError):
    """The connection to the worker was lost after the worker had acknowledged the request."""

    error_type, error_class, reason = reasons.DISCONNECTED


class ConnectionTimeout(TransportError, TimeoutError):
    """A step of the transport (connect, acknowledgement, call-home) did not happen in time."""

    error_type, error_class, reason = reasons.CONNECTION_TIMEOUT


class ResponseTimeout(TransportError, TimeoutError):
    """The worker sent no item within the limit."""

    error_type, error_class, reason = reasons.RESPONSE_TIMEOUT


class RequestRefused(DynamoError):
    """The worker's server did not take the request; the handler never ran."""

    error_type, error_class, reason = reasons.UNAVAILABLE


class Unavailable(RequestRefused):
    """No worker serves this endpoint, there or anywhere."""

    error_type, error_class, reason = reasons.WORKER_UNAVAILABLE.older()


class ResourceExhausted(RequestRefused):
    """All workers that serve this endpoint are busy."""

    error_type, error_class, reason = reasons.WORKER_OVERLOADED.older()


class RemoteError(DynamoError):
    """An error that the worker sent: in the prologue (the handler could not be started) or as an item of the stream.

    `error_type`, `error_class` and `reason` are the worker's; `public` is its message for the end user, if it gave one.
    """

    def __init__(
        self,
        message: str,
        *,
        error_type: str = reasons.UNCLASSIFIED.error_type,
        error_class: str = reasons.UNCLASSIFIED.error_class,
        reason: str = reasons.UNCLASSIFIED.reason,
        public: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.error_class = error_class
        self.reason = reason
        self.public = public

    @classmethod
    def of(cls, words: reasons.Words, message: str) -> RemoteError:
        """An error with these words."""
        return cls(message, error_type=words.error_type, error_class=words.error_class, reason=words.reason)


class Cancelled(DynamoError):
    """The caller's context was killed before the answer began."""

    error_type, error_class, reason = reasons.CANCELLED


def _rebuild(cls: type[DynamoError], args: tuple[object, ...], state: dict[str, object]) -> DynamoError:
    """Unpickle an error whose constructor takes keywords; pickle passes `args` alone."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error
