"""Listening sockets: which address to bind and advertise, and an accept loop that survives running out of descriptors.

Both ends of the request plane listen: a worker for requests, a router for the answers. What they share is here.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable

from dynamo_fast.errors import InvalidConfig

__all__ = ["Listener", "advertised_ip", "keep_alive", "listening_socket", "local_ip"]

logger = logging.getLogger(__name__)

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 0.005, 1.0
_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, option), value)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, option)
    ),
]
# After a burst of this many connections those that were accepted get a turn of the loop.
_ACCEPTS_PER_TURN = 64


def local_ip(host: str, variable: str) -> str:
    """The IP address that a setting means: an address (IPv6 with or without brackets) or an interface's name.

    Empty: the address from which this machine reaches others, 127.0.0.1 if there is none. A wildcard is returned as it
    is. Raises InvalidConfig, naming `variable`.
    """
    if not host:
        return _routable_ip() or "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    address = _interface_ip(host)
    if address is None:
        raise InvalidConfig(
            f"{variable}={host!r} is not valid: expected an IP address or the name of a network interface with one "
            f"(here: {', '.join(name for _, name in socket.if_nameindex())})"
        )
    return address


def advertised_ip(ip: str) -> str:
    """The address that others can dial for a socket bound to `ip`: a wildcard stands for the routable one."""
    return _routable_ip() or "127.0.0.1" if ipaddress.ip_address(ip).is_unspecified else ip


def _routable_ip() -> str | None:
    # Connecting a datagram socket sends nothing: it only makes the kernel choose the source address.
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            return str(probe.getsockname()[0])
    return None


def _interface_ip(name: str) -> str | None:
    """The first address of a network interface, IPv4 preferred. Linux and BSD; None if there is none."""
    if name not in (known for _, known in socket.if_nameindex()):
        return None
    return _interface_ipv4(name) or _interface_ipv6(name)


def _interface_ipv4(name: str) -> str | None:
    import fcntl

    ioctl_get_address = 0x8915
    request = array.array("B", struct.pack("256s", name.encode()[:15]))
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe.fileno(), ioctl_get_address, request)
        return socket.inet_ntoa(request.tobytes()[20:24])
    return None


def _interface_ipv6(name: str) -> str | None:
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as table:
        for line in table:
            fields = line.split()
            if fields[5] == name and fields[3] != "20":  # 20: link-local, which cannot be dialled without a zone
                return str(ipaddress.ip_address(bytes.fromhex(fields[0])))
    return None


def keep_alive(endpoint: socket.socket) -> None:
    """Have the kernel notice within a minute that the machine at the other end is gone. Does nothing if it is known to be.

    Connections that are accepted inherit it from the listening socket.
    """
    # An event loop's stand-in for a socket would make a real one for each of these calls, and so cost as much as they.
    # (Of which family is of no matter here, and takes a while to ask.)
    real = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=endpoint.fileno())
    try:
        with contextlib.suppress(OSError):  # some systems do not take it for a connection that was just reset
            for level, option, value in _KEEP_ALIVE:
                real.setsockopt(level, option, value)
    finally:
        real.detach()


def listening_socket(ip: str, port: int, backlog: int) -> socket.socket:
    """A listening TCP socket whose connections are kept alive. Raises OSError if the port is taken."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    endpoint = socket.create_server((ip, port), family=family, backlog=backlog)
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
