from __future__ import annotations

import socket

import pytest

from dynamo_fast.errors import InvalidConfig
from dynamo_fast.net.addresses import Listening, resolve


@pytest.mark.parametrize(
    ("host", "ip"),
    [
        ("127.0.0.1", "127.0.0.1"),
        (" 127.0.0.1 ", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("lo", "127.0.0.1"),
        ("169.254.1.1", "169.254.1.1"),
    ],
)
def test_one_address_is_bound_and_advertised(host: str, ip: str) -> None:
    assert resolve(host, "V") == Listening(ip, ip)


def test_a_wildcard_advertises_an_address_of_the_machine() -> None:
    assert resolve("", "V").bind_ip == resolve("", "V").advertised_ip
    for host in ("0.0.0.0", "::", "[::]"):
        assert resolve(host, "V").bind_ip in ("0.0.0.0", "::")
        assert resolve(host, "V").advertised_ip not in ("0.0.0.0", "::")


@pytest.mark.parametrize("host", ["localhost", "nowhere0", "1.2.3", "127.1", "256.0.0.1", "[lo]", "0", "::1%nowhere0"])
def test_hosts_that_are_none_say_what_is_accepted(host: str) -> None:
    with pytest.raises(InvalidConfig, match=r"^V='.*' is not valid: "):
        resolve(host, "V")
    with pytest.raises(InvalidConfig, match=r"expected an IP address, the name of a network interface \(interfaces"):
        resolve("nowhere0", "V")


@pytest.mark.parametrize("host", ["224.0.0.1", "255.255.255.255", "ff02::1", "fe80::1", "fe80::1%lo", "::1%lo"])
def test_addresses_that_others_cannot_dial_are_refused(host: str) -> None:
    with pytest.raises(InvalidConfig, match=r"^V='.*' is not valid: other machines cannot dial"):
        resolve(host, "V")


def test_names_of_hosts_where_they_are_accepted() -> None:
    listening = resolve("localhost", "V", names=True)
    assert listening.bind_ip == listening.advertised_ip
    assert listening.bind_ip in ("127.0.0.1", "::1")
    assert resolve("::1", "V", names=True) == Listening("::1", "::1")
    with pytest.raises(socket.gaierror, match="V='nowhere.invalid': "):
        resolve("nowhere.invalid", "V", names=True)
