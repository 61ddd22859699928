"""The addresses of this machine, as its kernel knows them. Nothing is sent to find out.

Everywhere: the address from which a default route sends. On Linux also the addresses of each network interface; on
other Unix systems their IPv4 addresses only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Address", "interface_names", "is_bindable", "machine_addresses", "of_interface"]

# SIOCGIFADDR and SIOCGIFFLAGS: Linux, and the BSDs with macOS.
_GET_ADDRESS, _GET_FLAGS = (0x8915, 0x8913) if sys.platform == "linux" else (0xC0206921, 0xC0206911)
_UP, _LOOPBACK, _RUNNING = 0x1, 0x8, 0x40

# /proc/net/if_inet6: the scope of a link-local address, and the flags of an address.
_LINK_SCOPE = 0x20
_TEMPORARY, _DUPLICATE, _DEPRECATED, _TENTATIVE = 0x01, 0x08, 0x20, 0x40

_CONTAINER_BRIDGES = ("docker", "br-", "veth", "virbr", "cni", "podman", "lxcbr", "lxdbr", "vmnet", "vboxnet")
"""How the interfaces are named that lead to containers and virtual machines of this machine, not to others."""


class Address(NamedTuple):
    """An IP address of this machine, without IPv6's link-local ones: those cannot be dialled without a zone."""

    ip: str
    routed: bool
    """Whether a default route sends from it."""
    doubtful: bool
    """Whether other machines may be unable to dial it: IPv4 link-local, an interface that is down or has no carrier,
    `lo`, or a bridge to containers."""

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.ip else 4


def machine_addresses() -> Iterator[Address]:
    """Every address that others may dial: those of the default routes, then those of the interfaces, in their order."""
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        # Connecting a datagram socket sends nothing: it only makes the kernel choose the source address.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            ip = ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])
            if not ip.is_loopback and not (ip.version == 6 and ip.is_link_local):
                yield Address(str(ip), routed=True, doubtful=False)
    for name in interface_names():
        flags = _flags(name)
        away = bool(flags & _UP and flags & _RUNNING and not flags & _LOOPBACK)
        away = away and not name.startswith(_CONTAINER_BRIDGES)
        for text in of_interface(name):
            ip = ipaddress.ip_address(text)
            if not ip.is_loopback:
                yield Address(text, routed=False, doubtful=not away or ip.is_link_local)


def interface_names() -> list[str]:
    """The network interfaces, in the kernel's order."""
    return [name for _, name in socket.if_nameindex()]


def of_interface(name: str) -> list[str]:
    """The addresses of an interface that can be dialled: IPv4 first, then those of IPv6 that last."""
    return [*_interface_ipv4(name), *_interface_ipv6(name)]


def is_bindable(ip: str) -> bool:
    """Whether a socket can be bound to `ip`: it is an address of this machine, and its family is switched on."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((ip, 0))
    except OSError:
        return False
    return True


def _interface_ipv4(name: str) -> Iterator[str]:
    answer = _ask(_GET_ADDRESS, name)
    if answer is not None:
        yield socket.inet_ntoa(answer[20:24])


def _interface_ipv6(name: str) -> list[str]:
    found: list[tuple[bool, str]] = []
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as table:
        for line in table:
            digits, _, _, scope, flags, interface = line.split()
            state = int(flags, 16)
            if interface == name and int(scope, 16) != _LINK_SCOPE and not state & (_DUPLICATE | _TENTATIVE):
                passing = bool(state & (_TEMPORARY | _DEPRECATED))
                found.append((passing, str(ipaddress.ip_address(bytes.fromhex(digits)))))
    return [ip for _, ip in sorted(found, key=lambda each: each[0])]


def _flags(name: str) -> int:
    answer = _ask(_GET_FLAGS, name)
    return 0 if answer is None else int(struct.unpack_from("H", answer, 16)[0])


def _ask(question: int, name: str) -> bytes | None:
    """What the kernel answers about an interface; None if it has no such thing."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    request = struct.pack("256s", name.encode()[:15])
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return fcntl.ioctl(probe.fileno(), question, request)
    return None
