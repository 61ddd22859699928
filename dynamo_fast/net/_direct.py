# cython: freethreading_compatible=True, annotation_typing=False
"""`DirectTransport`: a connection that makes its own system calls; `Poller` watches such connections.

A worker dials a connection for every answer, and most answers are short. A connection of the event loop costs 45,000
instructions to make and to close (uvloop; asyncio: several times as much) and a turn of the loop before the first byte can
be written. One of these costs a few thousand. The kernel connects to an address of its own machine before `connect`
returns, so that the first bytes go out at once.

This runs for every request. Where there is a compiler, Cython translates this very file, with the types in `_direct.pxd`
(see setup.py).
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from typing import Any

_READ_BYTES = 4096  # in one read: little comes in on these connections
_HIGH_WATER, _LOW_WATER = 65536, 16384  # bytes that wait to be written, as in asyncio
_EVENTS = 64  # of one look

# Zero and None where there is no epoll: `Poller.is_offered` says so, and nothing below is used.
_IN, _OUT = getattr(select, "EPOLLIN", 0), getattr(select, "EPOLLOUT", 0)
_NON_BLOCKING = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)
_INET, _INET6, _TCP, _NO_DELAY = socket.AF_INET, socket.AF_INET6, socket.IPPROTO_TCP, socket.TCP_NODELAY
_WOULD_BLOCK = (BlockingIOError, InterruptedError)
_UNDER_WAY = frozenset({0, errno.EINPROGRESS})

_Socket = socket.SocketType  # without the layer in Python: it costs more than the system calls


class Poller:
    """One epoll for the direct connections of one event loop, which watches it as one file.

    To add a connection is one system call. The connector owns it, and ends it with `close`. It holds the connections that
    are open, and those whose protocol is yet to be told of their end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._epoll: Any = None  # until the first connection: a program may make one and use none
        self._transports: dict[int, DirectTransport] = {}
        self._ended: list[DirectTransport] = []
        self._is_dispatching = False
        self._is_closing = False

    @staticmethod
    def is_offered(loop: asyncio.AbstractEventLoop) -> bool:
        """Whether this system and `loop` can watch connections in this way."""
        return hasattr(select, "epoll") and not hasattr(loop, "_proactor")

    def connect(self, host: str, port: int, protocol: Any, first: bytes) -> DirectTransport:
        """Begin to connect to `host`, an IP address, and to write `first`. Raises OSError.

        See `DirectTransport.connected` for whether that is done.
        """
        if self._epoll is None:
            self._epoll = select.epoll()
            self.loop.add_reader(self._epoll.fileno(), self._ready)
        endpoint = _Socket(_INET6 if ":" in host else _INET, _NON_BLOCKING, 0)
        try:
            endpoint.setsockopt(_TCP, _NO_DELAY, 1)
            code = endpoint.connect_ex((host, port))
            if code not in _UNDER_WAY:
                raise OSError(code, os.strerror(code))
            sent = _send(endpoint, first)
            return DirectTransport(self, endpoint, protocol, first, sent)
        except BaseException:
            endpoint.close()
            raise

    def close(self) -> None:
        """Stop watching when the last connection is closed."""
        self._is_closing = True
        self._close_if_unused()

    def open_sockets(self) -> list[int]:
        """See `sockets.SocketHolder`: the epoll. The connections belong to others."""
        return [] if self._epoll is None else [self._epoll.fileno()]

    def _close_if_unused(self) -> None:
        if self._is_closing and self._epoll is not None and not self._transports and not self._ended:
            if not self.loop.is_closed():
                self.loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _add(self, transport: DirectTransport, number: int, events: int) -> None:
        self._epoll.register(number, events)
        self._transports[number] = transport

    def _change(self, number: int, before: int, events: int) -> None:
        # The kernel tells of a reset whatever it is asked for: again and again, while nothing is read or written.
        if not events:
            self._epoll.unregister(number)
        elif before:
            self._epoll.modify(number, events)
        else:
            self._epoll.register(number, events)

    def _remove(self, transport: DirectTransport, number: int, events: int) -> None:
        """Forget `transport`, whose socket is about to be closed, and tell its protocol soon."""
        del self._transports[number]
        if events:
            self._epoll.unregister(number)  # a forked child may hold a copy, with which the kernel would go on
        if not self._ended and not self._is_dispatching:
            self.loop.call_soon(self._tell_ended)
        self._ended.append(transport)

    def _ready(self) -> None:
        self._is_dispatching = True
        try:
            for number, events in self._epoll.poll(0, _EVENTS):
                transport = self._transports.get(number)
                if transport is not None:  # else another connection has closed it just now
                    transport._dispatch(events)
        finally:
            self._is_dispatching = False
            self._tell_ended()

    def _tell_ended(self) -> None:
        while self._ended:
            ended, self._ended = self._ended, []
            for transport in ended:
                transport._tell_lost()
        self._close_if_unused()


class DirectTransport:
    """One connection: what `asyncio.Transport` offers of writing and of closing, with the same meaning.

    The protocol owns it and gets `data_received`, `eof_received`, `pause_writing`, `resume_writing` and, once it was
    connected, `connection_lost`, as asyncio calls them. `connection_made` is not called.
    """

    def __init__(self, poller: Poller, endpoint: Any, protocol: Any, first: bytes, sent: int) -> None:
        """`sent` bytes of `first` are written on `endpoint`; -1: it does not take any yet."""
        self.connected = sent >= 0
        """Whether the other end has taken the connection. If not, await `wait`."""
        self._poller = poller
        self._socket = endpoint
        self._number: int = endpoint.fileno()
        self._protocol = protocol
        self._waiter: asyncio.Future[None] | None = None
        self._closing = False  # nothing more is read, and no write is taken
        self._closed = False
        self._ends_writing = False  # after what waits
        self._paused = False
        self._error: OSError | None = None
        self._unsent: list[memoryview] = []
        self._size = 0  # bytes in it
        self._events = _IN
        if sent < len(first):
            self._events |= _OUT
            self._keep(first, max(sent, 0))
        self._poller._add(self, self._number, self._events)

    async def wait(self) -> None:
        """Wait until it is connected. Raises OSError; after that, or if this is cancelled, it is closed."""
        self._waiter = self._poller.loop.create_future()
        try:
            await self._waiter
        except BaseException:
            self.abort()
            raise
        finally:
            self._waiter = None

    def is_closing(self) -> bool:
        return self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`socket` and `peername`."""
        if name == "socket":
            return self._socket
        if name == "peername" and not self._closed:
            try:
                return self._socket.getpeername()
            except OSError:
                return default
        return default

    def get_write_buffer_size(self) -> int:
        return self._size

    def write(self, data: bytes) -> None:
        """Write now what the kernel takes, and the rest later. Nothing is written after `close` or `write_eof`."""
        if self._closing or self._ends_writing:
            return
        if self._unsent:
            self._keep(data, 0)
        else:
            try:
                sent = _send(self._socket, data)
            except OSError as error:
                self._fail(error)
                return
            if sent == len(data):
                return
            self._keep(data, max(sent, 0))
            self._watch(self._events | _OUT)
        if self._size > _HIGH_WATER and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """See asyncio.WriteTransport."""
        return True

    def write_eof(self) -> None:
        """Finish writing: an end of file follows what was written."""
        if self._closing or self._ends_writing:
            return
        self._ends_writing = True
        if not self._unsent:
            self._shut_down()

    def close(self) -> None:
        """Close when what was written has left."""
        if self._closing:
            return
        self._closing = True
        if self._unsent:
            self._watch(_OUT)
        else:
            self._end()

    def abort(self) -> None:
        """Close now; what the kernel has not taken is dropped."""
        self._closing = True
        if not self._closed:
            self._end()

    def _dispatch(self, events: int) -> None:
        """Called by the poller."""
        try:
            if not self.connected:
                self._finish_connecting()
            if self._unsent and events != _IN:
                self._flush()
            if self._events & _IN and not self._closing and events != _OUT:
                self._read()
        except Exception as error:  # a bug of the protocol
            self._poller.loop.call_exception_handler(
                {"message": "a protocol failed", "exception": error, "protocol": self._protocol}
            )
            self.abort()

    def _finish_connecting(self) -> None:
        error = self._pending_error()
        if error is None:
            self.connected = True
        else:
            self._fail(error)
        if self._waiter is not None and not self._waiter.done():
            if error is None:
                self._waiter.set_result(None)
            else:
                self._waiter.set_exception(error)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except _WOULD_BLOCK:
            return
        except OSError as error:
            self._fail(error)
            return
        if data:
            self._protocol.data_received(data)
        elif not self._protocol.eof_received():
            self.close()
        elif not self._closing:
            self._watch(self._events & ~_IN)

    def _flush(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                sent = _send(self._socket, unsent[0])
                if sent < 0:
                    return
                self._size -= sent
                if sent < len(unsent[0]):
                    unsent[0] = unsent[0][sent:]
                else:
                    del unsent[0]
        except OSError as error:
            self._fail(error)
            return
        finally:
            if self._paused and self._size <= _LOW_WATER and not self._closing:
                self._paused = False
                self._protocol.resume_writing()
        if self._unsent:  # the protocol has written more
            return
        if self._closing:
            if not self._closed:
                self._end()
            return
        if self._ends_writing:
            self._shut_down()
        self._watch(self._events & ~_OUT)

    def _keep(self, data: bytes, sent: int) -> None:
        rest = memoryview(data)[sent:]
        self._unsent.append(rest)
        self._size += len(rest)

    def _watch(self, events: int) -> None:
        if events != self._events and not self._closed:
            self._poller._change(self._number, self._events, events)
            self._events = events

    def _shut_down(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # it is lost already, which the next read says
            pass

    def _pending_error(self) -> OSError | None:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(code, os.strerror(code)) if code else None

    def _fail(self, error: OSError | None) -> None:
        self._closing = True
        self._error = error
        if not self._closed:
            self._end()

    def _end(self) -> None:
        self._closed = True
        self._unsent.clear()
        self._size = 0
        self._poller._remove(self, self._number, self._events)
        self._socket.close()

    def _tell_lost(self) -> None:
        """Called by the poller, once."""
        protocol, self._protocol = self._protocol, None  # break the reference cycle
        error, self._error = self._error, None  # its traceback refers to this transport
        if self.connected:
            protocol.connection_lost(error)


def _send(endpoint: Any, data: Any) -> int:
    """How many bytes the kernel has taken; -1 if it takes none now. Raises OSError."""
    try:
        sent: int = endpoint.send(data)
    except _WOULD_BLOCK:
        return -1
    return sent
