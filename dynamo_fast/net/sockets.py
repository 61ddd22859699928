"""What both ends do with TCP sockets: options, and that a forked child does not hold them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from collections.abc import Iterable
from typing import Protocol

__all__ = ["SocketHolder", "close_in_forked_children", "descriptors_of", "keep_alive"]


class SocketHolder(Protocol):
    """What owns sockets for as long as it lives: a server, a client."""

    def open_sockets(self) -> Iterable[int]:
        """The descriptor numbers of its open sockets; a negative one is passed over."""


_holders: weakref.WeakSet[SocketHolder] = weakref.WeakSet()


def close_in_forked_children(holder: SocketHolder) -> None:
    """Close the sockets of `holder` in every child that this process forks, for as long as it lives.

    A child that lives on would keep them open when this process dies: its peers would not hear of it, and its ports
    would stay taken. The holder is asked at the fork, so that a socket costs nothing.
    """
    _holders.add(holder)


def descriptors_of(transports: Iterable[asyncio.BaseTransport | None]) -> Iterable[int]:
    """The descriptor numbers of those transports that are open."""
    for transport in transports:
        if transport is not None and not transport.is_closing():  # uvloop does not forget the number of a closed one
            yield transport.get_extra_info("socket").fileno()


def _close_sockets_of_the_parent() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for holder in list(_holders):
        for number in list(holder.open_sockets()):
            if number >= 0:
                # Not closed: the child's copy of a transport may close its number later, which would be another file's.
                os.dup2(null, number, inheritable=False)
    os.close(null)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_sockets_of_the_parent)

_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, option), value)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, option)
    ),
]


def keep_alive(endpoint: socket.socket, user_timeout: float | None = None) -> None:
    """Have the kernel notice within a minute that the machine at the other end is gone. Does nothing if it is known to be.

    With `user_timeout` a connection is lost when what was written has not been acknowledged for so many seconds, or when
    the other end has had no room for it for as long (TCP_USER_TIMEOUT: Linux only). Connections that are accepted inherit
    all of this from the listening socket.
    """
    # An event loop's stand-in for a socket would make a real one for each of these calls, and so cost as much as they.
    # (Of which family is of no matter here, and takes a while to ask.)
    real = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=endpoint.fileno())
    try:
        with contextlib.suppress(OSError):  # some systems do not take it for a connection that was just reset
            for level, option, value in _KEEP_ALIVE:
                real.setsockopt(level, option, value)
            if user_timeout is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
                real.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout * 1000))
    finally:
        real.detach()
