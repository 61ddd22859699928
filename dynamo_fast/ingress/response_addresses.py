"""`ResponseAddresses`: which addresses a worker may dial for a request.

A request names the address of its response stream; a bidirectional request also names the address of its input. Both are
checked before the request is acknowledged: a wrong address leads to a refusal, not to a call without an answer.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from dynamo_fast.config import IpNetwork, WorkerConfig
from dynamo_fast.errors import InvalidAddress, Unavailable
from dynamo_fast.wire.address import split_host_port

__all__ = ["ResponseAddresses", "host_and_port"]

_LONGEST = 100  # characters: 39 of an IPv6 address, a zone, brackets and a port
host_and_port = lru_cache(maxsize=4096)(split_host_port)


class ResponseAddresses:
    """The networks of `DYNAMO_FAST_RESPONSE_NETWORKS`; if it is empty, every address is allowed.

    An endpoint owns it. It remembers the addresses that it has checked.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._networks = tuple(_unmapped(network) for network in config.allowed_networks)
        self.check = lru_cache(maxsize=4096)(self._check)
        """`check(address)` raises InvalidAddress if it is not `IP:PORT`, Unavailable if it is in none of the networks."""

    def _check(self, address: str) -> None:
        if len(address) > _LONGEST:  # a zone may have any length, and addresses are cached
            raise InvalidAddress(f"a response address of {len(address)} characters exceeds the limit of {_LONGEST}")
        host, _ = host_and_port(address)
        if self._networks and not self._lies_within(host):
            raise Unavailable(
                f"Server unavailable: this worker may not dial {address} for its response (DYNAMO_FAST_RESPONSE_NETWORKS)"
            )

    def _lies_within(self, host: str) -> bool:
        address = ipaddress.ip_address(host)
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        return any(address in network for network in self._networks)


def _unmapped(network: IpNetwork) -> IpNetwork:
    """The IPv4 network that an IPv4-mapped one (::ffff:a.b.c.d) stands for; any other as it is."""
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((int(mapped), network.prefixlen - 96))
    return network
