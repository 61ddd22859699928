"""Which address a server binds, and which one it tells others to dial. Both are chosen here, together, by `resolve`.

    the setting          is bound to                    advertises
    empty                what it advertises             the machine's best address, IPv4 preferred
    0.0.0.0              every IPv4 address (1)         the same
    ::                   every address of both (2)      the machine's best address, IPv6 preferred
    an IP address        that one                       that one
    an interface's name  its first address              that one (IPv4 preferred)
    a host's name (3)    the first that can be bound    that one

    (1) of IPv6, too, where the machine has no other address
    (2) of IPv4 only, where IPv6 is switched off
    (3) for the status server only, as in Dynamo

The best address is that of a default route, else that of an interface which leads to other machines, else that of any
interface (see `interfaces.Address.doubtful`), else a loopback address, with a warning. Dynamo 1.6 chooses the same,
except that it does not look at where an interface leads.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from typing import NamedTuple

from dynamo_fast.errors import InvalidConfig
from dynamo_fast.logs import get_logger
from dynamo_fast.net.interfaces import Address, interface_names, is_bindable, machine_addresses, of_interface

__all__ = ["Listening", "resolve"]

logger = get_logger(__name__)


class Listening(NamedTuple):
    """Where a server listens, and what it says of that. IPv6 without brackets."""

    bind_ip: str
    """The address to bind; `::` stands for both families (see `listening_socket`)."""
    advertised_ip: str
    """An address of this machine at which a socket that is bound to `bind_ip` can be dialled."""


def resolve(host: str, variable: str, *, names: bool = False) -> Listening:
    """What a setting means: see the table above. An IPv6 address may stand in brackets.

    Raises InvalidConfig, which names `variable`; OSError if a host's name (accepted only with `names`) is unknown.
    """
    host = host.strip()
    if not host:
        ip = _best_ip(4)
        return Listening(ip, ip)
    ip = _literal(host, variable) or _of_interface(host, variable) or (_named(host, variable) if names else "")
    if not ip:
        accepted = "an IP address, the name of a network interface" + (" or of a host" if names else "")
        raise InvalidConfig(
            f"{variable}={host!r} is not valid: expected {accepted} (interfaces here: {', '.join(interface_names())})"
        )
    return _wildcard(ip) if ip in ("0.0.0.0", "::") else Listening(ip, ip)  # noqa: S104  # it is asked for


def _literal(host: str, variable: str) -> str:
    """The IP address that `host` is, as it is written; empty if it is none."""
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        return ""
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.is_multicast or str(ip) == "255.255.255.255" or (ip.version == 6 and (ip.is_link_local or "%" in str(ip))):
        raise InvalidConfig(
            f"{variable}={host!r} is not valid: other machines cannot dial a multicast, broadcast, link-local or zoned "
            "address"
        )
    return str(ip)


def _of_interface(host: str, variable: str) -> str:
    if host not in interface_names():
        return ""
    found = of_interface(host)
    if not found:
        raise InvalidConfig(f"{variable}={host!r} is not valid: that network interface has no address to dial")
    return found[0]


def _named(host: str, variable: str) -> str:
    try:
        found = [str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except socket.gaierror as error:
        raise socket.gaierror(error.errno, f"{variable}={host!r}: {error.strerror}") from None
    return next(filter(is_bindable, found), found[0])


def _wildcard(ip: str) -> Listening:
    wants_ipv6 = ip == "::"
    advertised = _best_ip(6 if wants_ipv6 else 4)
    both = ":" in advertised or (wants_ipv6 and socket.has_dualstack_ipv6())
    return Listening("::" if both else "0.0.0.0", advertised)  # noqa: S104  # it is asked for


def _best_ip(version: int) -> str:
    """The address that other machines can dial most likely; of IP version `version` where two are equally good."""

    def rank(address: Address) -> tuple[bool, bool, bool]:
        return address.doubtful, address.version != version, not address.routed

    best = min(machine_addresses(), key=rank, default=None)
    if best is not None:
        return best.ip
    _warn_of_loopback()
    return "::1" if version == 6 and is_bindable("::1") else "127.0.0.1"


@functools.cache  # so that it is said once in a process
def _warn_of_loopback() -> None:
    logger.warning(
        "no network interface has an address: advertising a loopback address, which other machines cannot dial"
    )
