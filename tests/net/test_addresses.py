from __future__ import annotations

import pytest

from dynamo_fast.errors import InvalidConfig
from dynamo_fast.net.addresses import advertised_ip, local_ip


def test_hosts() -> None:
    assert local_ip("127.0.0.1", "V") == "127.0.0.1"
    assert local_ip("[::1]", "V") == local_ip("::1", "V") == "::1"
    assert local_ip("lo", "V") == "127.0.0.1"
    assert local_ip("", "V")
    assert advertised_ip("127.0.0.1") == "127.0.0.1"
    assert advertised_ip("0.0.0.0") not in ("0.0.0.0", "")


@pytest.mark.parametrize("host", ["localhost", "nowhere0", "1.2.3", "256.0.0.1"])
def test_hosts_that_are_none_say_what_is_accepted(host: str) -> None:
    with pytest.raises(
        InvalidConfig, match=r"^V='.*' is not valid: expected an IP address or the name of a network inter"
    ):
        local_ip(host, "V")
