"""Listening sockets, and accepting that survives running out of descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

from dynamo_fast.logs import get_logger
from dynamo_fast.net.sockets import keep_alive
from dynamo_fast.net.tls import ServerTls
from dynamo_fast.net.tls_accept import Handshake
from dynamo_fast.wire.address import join_host_port

__all__ = ["Listener", "listening_at", "listening_socket"]

logger = get_logger(__name__)

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 0.005, 1.0
_SECONDS_BETWEEN_WARNINGS = 60.0
# After a burst of this many connections those that were accepted get a turn of the loop.
_ACCEPTS_PER_TURN = 64
# A look costs two system calls. What is accepted between two of them comes out of the reserve.
_ACCEPTS_PER_LOOK = 4
_RESERVE = 32
# Of TLS, at once; at a further one the oldest makes way.
_MOST_HANDSHAKES = 1024


@contextlib.contextmanager
def listening_at(ip: str, port: int) -> Iterator[None]:
    """An OSError of the block says which address was asked for."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        why = os.strerror(error.errno)
        raise OSError(error.errno, f"cannot listen on {join_host_port(ip, port)}: {why}") from error


def listening_socket(
    ip: str, port: int, backlog: int, user_timeout: float | None = None, *, reuse_port: bool = False
) -> socket.socket:
    """A listening TCP socket whose connections are kept alive, and write at once; `::` takes IPv4, too.

    `reuse_port`: other processes of this user may listen on the port, too, and share its connections. Raises OSError if
    the port is taken, ValueError if the system cannot share ports.
    """
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    both = ip == "::" and socket.has_dualstack_ipv6()
    with listening_at(ip, port):
        endpoint = socket.create_server(
            (ip, port), family=family, backlog=backlog, dualstack_ipv6=both, reuse_port=reuse_port
        )
    # asyncio switches Nagle's delay off only where the number of the protocol says TCP, which connections have from here.
    endpoint = socket.socket(endpoint.family, endpoint.type, socket.IPPROTO_TCP, endpoint.detach())
    endpoint.setblocking(False)
    keep_alive(endpoint, user_timeout)
    return endpoint


class Listener:
    """A listening TCP socket whose connections get a protocol each.

    The event loop accepts from a duplicate of the socket. When the descriptors of the process run short, the duplicate
    is closed: connections then wait in the kernel's backlog. It is opened again when there is room, which is looked for
    after 5 ms, then after twice as long each time, up to a second. A warning is logged, at most once a minute.

    Owns both sockets; `close` ends it, and leaves the connections that were accepted alone. One event loop.
    """

    def __init__(
        self,
        ip: str,
        port: int,
        backlog: int,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        user_timeout: float | None = None,
        tls: ServerTls | None = None,
        refused: Callable[[str, str], None] | None = None,
        backed_off: Callable[[], None] | None = None,
        reuse_port: bool = False,
    ) -> None:
        """Listen on `ip` and `port` (0: chosen by the system); see `keep_alive` for `user_timeout`. Raises OSError.

        `reuse_port`: see `listening_socket`.

        `tls`: None for plain text. `refused` is told of each handshake that failed: the address, and why.
        `backed_off` is told each time that accepting pauses.
        """
        self._tls = tls
        self.handshakes: dict[Handshake, None] = {}
        """TLS handshakes under way, the oldest first."""
        self._tell_refused = refused
        self._tell_backed_off = backed_off
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._backlog = backlog
        self._highest = _highest_descriptor()
        self._accepts_per_look = self._before_look = _ACCEPTS_PER_LOOK
        self._back_off = 0.0
        self._warn_after = self._tell_refused_after = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._server: asyncio.AbstractServer | None = None
        self.paused = False
        """Whether nothing is accepted, for lack of descriptors."""
        self._socket = listening_socket(ip, port, backlog, user_timeout, reuse_port=reuse_port)
        self.ip = ip
        self.port: int = self._socket.getsockname()[1]
        self._opening = self._loop.create_task(self._open())

    def close(self) -> None:
        """Stop accepting; the connections that there are stay. May be called again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for each in list(self.handshakes):
            each.abort()
        # A connection that was accepted in this turn gets its transport in the next, as long as its server is open.
        self._loop.call_soon(self._close_server)
        self._socket.close()

    def open_sockets(self) -> Iterator[int]:
        """The numbers of its open sockets."""
        yield self._socket.fileno()
        for endpoint in getattr(self._server, "sockets", None) or ():
            yield endpoint.fileno()

    def pause(self, error: OSError) -> None:
        """Accept nothing for now, because of `error`; tell of it."""
        if self.paused or self.is_closed():
            return
        self.paused = True
        if self._tell_backed_off is not None:
            self._tell_backed_off()
        now = self._loop.time()
        if now >= self._warn_after:
            self._warn_after = now + _SECONDS_BETWEEN_WARNINGS
            logger.warning("cannot accept connections on port %d for now: %s", self.port, error)
        # Not here and now: the connection that is being accepted belongs to the server.
        self._loop.call_soon(self._wait_for_room)

    async def _open(self) -> None:
        if self.is_closed():  # before this task had its turn
            return
        try:
            endpoint = _Duplicate(self, self._socket, self._backlog)
        except OSError as error:
            self.pause(error)
            return
        try:
            server = await self._loop.create_server(self._accepted, sock=endpoint, backlog=_ACCEPTS_PER_TURN)
        except BaseException:
            endpoint.close()
            raise
        if self.is_closed() or self.paused:  # since it began to open
            server.close()
            return
        self._server = server
        self._socket.listen(self._backlog)  # uvloop has told the kernel its own number

    def _accepted(self) -> asyncio.BaseProtocol:
        self._before_look -= 1
        if not self._before_look:
            self._look()
        return self._protocol() if self._tls is None else self._handshake(self._tls)

    def _handshake(self, tls: ServerTls) -> Handshake:
        if len(self.handshakes) >= _MOST_HANDSHAKES:
            next(iter(self.handshakes)).abort()
        return Handshake(self, tls, self._protocol)

    def refused(self, host: str, why: str) -> None:
        """See `HandshakeOwner`."""
        now = self._loop.time()
        if now >= self._tell_refused_after:
            self._tell_refused_after = now + _SECONDS_BETWEEN_WARNINGS
            logger.warning("TLS: refusing a connection of %s to port %d: %s", host, self.port, why)
        if self._tell_refused is not None:
            self._tell_refused(host, why)

    def _look(self) -> None:
        """Pause if descriptors run short: uvloop accepts to the last one, and then resets what comes."""
        self._before_look = self._accepts_per_look
        if _next_descriptor() > self._highest:
            self._highest = _highest_descriptor()  # the limit may be another by now
            if _next_descriptor() > self._highest:
                self.pause(OSError(errno.EMFILE, f"all descriptors up to {self._highest} are in use (see ulimit -n)"))

    def _wait_for_room(self) -> None:
        if self.is_closed():
            return
        self._close_server()
        self._back_off = min(max(2 * self._back_off, _FIRST_BACK_OFF), _LONGEST_BACK_OFF)
        self._timer = self._loop.call_later(self._back_off, self._look_for_room)

    def _look_for_room(self) -> None:
        self._timer = None
        self._highest = _highest_descriptor()
        if _next_descriptor(beside=1) > self._highest:  # the lowest one is for the duplicate, which has just left it
            self._wait_for_room()
            return
        self._back_off = 0.0
        # The descriptors kept in reserve may be in use, and this one be the only one: look each time from now on.
        self._accepts_per_look = self._before_look = 1
        self.paused = False
        self._opening = self._loop.create_task(self._open())

    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._socket.fileno() < 0

    def _close_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()


class _Duplicate(socket.socket):
    """What an event loop of pure Python accepts from: it calls these methods, where uvloop takes the descriptor only."""

    def __init__(self, listener: Listener, original: socket.socket, backlog: int) -> None:
        super().__init__(original.family, original.type, original.proto, fileno=os.dup(original.fileno()))
        self.setblocking(False)
        self._listener = listener
        self._backlog = backlog

    def listen(self, backlog: int = 0, /) -> None:
        """The loop's number says how many it accepts in one turn; the kernel is told the true one."""
        super().listen(self._backlog)

    def accept(self) -> tuple[socket.socket, Any]:
        if self._listener.paused or self._listener.is_closed():
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in _OUT_OF_RESOURCES:
                raise
            self._listener.pause(error)
            raise BlockingIOError from error


def _next_descriptor(beside: int = 0) -> int:
    """The number that the next descriptor of this process gets, the lowest that is free; `beside`: after so many others."""
    opened: list[int] = []
    try:
        while len(opened) <= beside:
            opened.append(os.dup(0))
    except OSError as error:
        return 0 if error.errno == errno.EBADF else sys.maxsize
    finally:
        for each in opened:
            os.close(each)
    return opened[-1]


def _highest_descriptor() -> int:
    """The highest number that a connection may have, so that a few descriptors are left for everything else."""
    with contextlib.suppress(ImportError):  # Windows has no limit
        import resource

        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files != resource.RLIM_INFINITY:
            return files - 1 - min(_RESERVE, files // 8)
    return sys.maxsize
