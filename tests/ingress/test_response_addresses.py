"""Where a requester may have the worker dial: its answer, and the input of a bidirectional request."""

from __future__ import annotations

import pytest

from dynamo_fast.config import WorkerConfig
from dynamo_fast.errors import InvalidAddress, InvalidConfig, Unavailable
from dynamo_fast.ingress.response_addresses import ResponseAddresses
from tests.ingress.conftest import Start, address_of
from tests.ingress.requester import Requester
from tests.ingress.test_bidirectional import Conversation, dialled
from tests.ingress.test_push_handler import begun, data_of

LONG = f"[fe80::1%{'z' * 100}]:80"


def allowed(networks: str, address: str) -> bool:
    try:
        ResponseAddresses(WorkerConfig(response_networks=networks)).check(address)
    except Unavailable as error:
        assert str(error).startswith("Server unavailable: ")
        assert address in str(error)
        return False
    return True


@pytest.mark.parametrize(
    ("networks", "address", "is_allowed"),
    [
        ("", "203.0.113.9:1", True),
        ("", "[2001:db8::1]:1", True),
        ("10.0.0.0/8", "10.255.0.1:80", True),
        ("10.0.0.0/8", "11.0.0.1:80", False),
        ("10.0.0.0/8", "[fd00::1]:80", False),
        ("10.0.0.0/8,fd00::/8", "[fd00::1]:80", True),
        ("10.0.0.0/8, fd00::/8", "fd00::1:80", True),  # as Dynamo 1.3.1 writes it
        ("fd00::/8", "10.0.0.1:80", False),
        ("10.0.0.0/8", "[::ffff:10.0.0.1]:80", True),
        ("10.0.0.0/8", "[::ffff:11.0.0.1]:80", False),
        ("::ffff:10.0.0.0/104", "10.0.0.1:80", True),
        ("::ffff:10.0.0.0/104", "[::ffff:11.0.0.1]:80", False),
        ("::/0", "[::ffff:10.0.0.1]:80", False),
        ("::/0", "10.0.0.1:80", False),
        ("0.0.0.0/0", "[::ffff:10.0.0.1]:80", True),
        ("192.0.2.7", "192.0.2.7:80", True),
        ("192.0.2.7", "192.0.2.8:80", False),
        ("10.0.0.0/8", "0.0.0.0:80", False),
        ("fe80::/10", "[fe80::1%eth0]:80", True),
    ],
)
def test_networks(networks: str, address: str, is_allowed: bool) -> None:
    assert allowed(networks, address) is is_allowed


@pytest.mark.parametrize(
    "address", ["", "host:80", "10.0.0.1", "10.0.0.1:65536", "10.0.0.1:+1", LONG, "::1:" + "1" * 5000]
)
@pytest.mark.parametrize("networks", ["", "0.0.0.0/0"])
def test_what_is_no_address(networks: str, address: str) -> None:
    with pytest.raises(InvalidAddress):
        ResponseAddresses(WorkerConfig(response_networks=networks)).check(address)


@pytest.mark.parametrize("networks", ["10.0.0.0/33", "10.0.0.1/8", "localhost", "10.0.0.0/8;fd00::/8"])
def test_a_setting_that_is_no_network(networks: str) -> None:
    with pytest.raises(InvalidConfig, match=r"^DYNAMO_FAST_RESPONSE_NETWORKS='.*' is not valid: expected IP networks"):
        WorkerConfig.from_env({"DYNAMO_FAST_RESPONSE_NETWORKS": networks})


async def test_an_answer_outside_the_networks_is_refused(start: Start) -> None:
    worker = await start(response_networks="127.0.0.0/9")
    async with Requester(address_of(worker)) as requester:
        for address in ("127.128.0.1:1", "10.0.0.1:1", "[::1]:1", "[::ffff:127.128.0.1]:1"):
            info = requester.connection_info("x", address=address)
            requester.send(requester.control("x", connection_info=info), b"1")
            assert await requester.ack() == (
                f"Server unavailable: this worker may not dial {address} for its response "
                "(DYNAMO_FAST_RESPONSE_NETWORKS)"
            )
        assert await data_of(await begun(requester, [1])) == [1]
        (served,) = worker.endpoints.values()
        assert served.metrics.inflight == 0


async def test_an_ipv4_address_written_as_ipv6_is_dialled(start: Start) -> None:
    worker = await start(response_networks="127.0.0.0/8")
    async with Requester(address_of(worker)) as requester:
        info = requester.connection_info("x", address=f"[::ffff:127.0.0.1]:{requester.port}")
        subject = requester.subject
        requester.send(requester.control("x", connection_info=info), b"[1]")
        assert await requester.ack() == ""
        answer = await requester.dialled(subject)
        await answer.read()
        assert await data_of(answer) == [1]


async def test_an_input_outside_the_networks_is_refused(start: Start) -> None:
    worker = await start(Conversation(), bidirectional=True, response_networks="127.0.0.0/8")
    async with Requester(address_of(worker)) as requester:
        info = requester.connection_info("x", "request", address="10.0.0.1:1")
        control = requester.control("x", request_type="many_in", request_stream_connection_info=info)
        requester.send(control, b"")
        assert (await requester.ack()).startswith("Server unavailable: this worker may not dial 10.0.0.1:1 ")
        await dialled(requester)


@pytest.mark.parametrize("info", [{"transport": "quic", "info": "{}"}, {"transport": "tcp_server", "info": "nothing"}])
async def test_an_input_that_cannot_be_dialled_is_refused(start: Start, info: dict[str, str]) -> None:
    worker = await start(Conversation(), bidirectional=True)
    async with Requester(address_of(worker)) as requester:
        control = requester.control("x", request_type="many_in", request_stream_connection_info=info)
        requester.send(control, b"")
        assert (await requester.ack()).startswith("Server unavailable: unreadable request: ")
