"""Which address a server binds, and which one it tells others to dial."""

from __future__ import annotations

import array
import contextlib
import ipaddress
import socket
import struct

from dynamo_fast.errors import InvalidConfig

__all__ = ["advertised_ip", "local_ip"]


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
