"""Listening sockets, and an accept loop that survives running out of descriptors."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from dynamo_fast.net.sockets import keep_alive

__all__ = ["Listener", "listening_socket"]

logger = logging.getLogger(__name__)

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 0.005, 1.0
# After a burst of this many connections those that were accepted get a turn of the loop.
_ACCEPTS_PER_TURN = 64


def listening_socket(ip: str, port: int, backlog: int) -> socket.socket:
    """A listening TCP socket whose connections are kept alive; `::` takes IPv4, too.

    Raises OSError if the port is taken.
    """
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    both = ip == "::" and socket.has_dualstack_ipv6()
    endpoint = socket.create_server((ip, port), family=family, backlog=backlog, dualstack_ipv6=both)
    endpoint.setblocking(False)
    keep_alive(endpoint)
    return endpoint


class Listener:
    """A listening TCP socket whose connections get a protocol each.

    When the process runs out of descriptors or memory, it accepts nothing for 5 ms, then twice as long each time up to
    a second, and says so once: the connections wait in the backlog meanwhile.
    """

    def __init__(self, ip: str, port: int, backlog: int, protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._tasks: set[asyncio.Task[None]] = set()
        self._back_off = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._socket = listening_socket(ip, port, backlog)
        self.ip = ip
        self.port: int = self._socket.getsockname()[1]
        self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        """Stop accepting; the connections that there are stay."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue  # it was gone before we came to it
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                self._pause(error)
                return
            self._back_off = 0.0
            connection.setblocking(False)
            task = self._loop.create_task(self._attach(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _attach(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:
            connection.close()  # reset before it was set up

    def _pause(self, error: OSError) -> None:
        if self._back_off == 0.0:
            logger.warning("cannot accept connections on port %d for now: %s", self.port, error)
        self._back_off = min(max(2 * self._back_off, _FIRST_BACK_OFF), _LONGEST_BACK_OFF)
        self._loop.remove_reader(self._socket)
        self._timer = self._loop.call_later(self._back_off, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._loop.add_reader(self._socket, self._accept)
