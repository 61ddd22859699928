"""What a worker and a router advertise can be dialled, on machines with networks of every kind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.namespaces import LIMIT, Machine, environment, machines
from tests.programs import started

SERVE_AND_CALL = """
import asyncio, json, socket
from dynamo_fast import AddressedPushRouter, AddressedRequest, Context, serve
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.wire.address import split_host_port

async def generate(request):
    yield request

def dials(address):
    try:
        socket.create_connection(split_host_port(address), timeout=5).close()
        return True
    except OSError:
        return False

async def main():
    worker = await serve(generate, "a.b.c", MemoryDiscovery())
    (served,) = worker.endpoints.values()
    router = await AddressedPushRouter.create()
    addresses = [served.address.partition("/")[0], router.response_server.address]
    dialled = [dials(each) for each in addresses]
    items = []
    if all(dialled):
        stream = await router.generate(AddressedRequest("x", served.address), Context())
        items = [item.data() async for item in stream]
    print(json.dumps([[each.rpartition(":")[0] for each in addresses], dialled, items]))
    await router.close()
    await worker.close()

asyncio.run(asyncio.wait_for(main(), %d))
"""


Network = Callable[[Machine], None]


def lone(machine: Machine) -> None:
    pass


def ipv4(machine: Machine) -> None:
    machine.add_interface("net0", "10.9.0.1/24")


def ipv6(machine: Machine) -> None:
    machine.add_interface("net0", "fd09::1/64")


def dual_stack(machine: Machine) -> None:
    machine.add_interface("net0", "10.9.0.1/24", "fd09::1/64")


def ipv4_without_ipv6(machine: Machine) -> None:
    machine.set_up("for each in all default; do echo 1 > /proc/sys/net/ipv6/conf/$each/disable_ipv6; done")
    machine.add_interface("net0", "10.9.0.1/24")


def ipv6_default_route(machine: Machine) -> None:
    dual_stack(machine)
    machine.set_up("ip -6 route add default dev net0")


def second_has_the_route(machine: Machine) -> None:
    machine.add_interface("net0", "10.8.0.1/24")
    machine.add_interface("net1", "10.9.0.1/24")
    machine.set_up("ip route add default dev net1")


def docker_comes_first(machine: Machine) -> None:
    machine.set_up(
        "ip link add docker0 type bridge; ip link set docker0 up; ip addr add 172.17.0.1/16 dev docker0; "
        "ip -6 addr add fd17::1/64 dev docker0 nodad"
    )
    machine.add_interface("net0", "10.9.0.1/24")


def docker_alone(machine: Machine) -> None:
    machine.set_up("ip link add docker0 type bridge; ip link set docker0 up; ip addr add 172.17.0.1/16 dev docker0")


def link_local_comes_first(machine: Machine) -> None:
    machine.add_interface("net0", "169.254.3.3/16")
    machine.add_interface("net1", "10.9.0.1/24")


def link_local_and_ipv6(machine: Machine) -> None:
    machine.add_interface("net0", "169.254.3.3/16", "fd09::1/64")


def first_is_down(machine: Machine) -> None:
    machine.add_interface("net0", "10.8.0.1/24")
    machine.add_interface("net1", "10.9.0.1/24")
    machine.set_up("ip link set net0 down")


def first_has_no_carrier(machine: Machine) -> None:
    machine.add_interface("net0", "10.8.0.1/24")
    machine.add_interface("net1", "10.9.0.1/24")
    machine.set_up("ip link set peer-net0 down")


def v6_only_sockets(machine: Machine) -> None:
    ipv4(machine)
    machine.set_up("echo 1 > /proc/sys/net/ipv6/bindv6only")


@pytest.mark.parametrize(
    ("network", "host", "advertised"),
    [
        (lone, "", "127.0.0.1"),
        (lone, "::", "[::1]"),
        (lone, "0.0.0.0", "127.0.0.1"),
        (ipv4, "", "10.9.0.1"),
        (ipv4, "::", "10.9.0.1"),
        (ipv4, "0.0.0.0", "10.9.0.1"),
        (ipv4, "net0", "10.9.0.1"),
        (ipv4_without_ipv6, "", "10.9.0.1"),
        (ipv4_without_ipv6, "::", "10.9.0.1"),
        (ipv6, "", "[fd09::1]"),
        (ipv6, "::", "[fd09::1]"),
        (ipv6, "0.0.0.0", "[fd09::1]"),
        (ipv6, "net0", "[fd09::1]"),
        (dual_stack, "", "10.9.0.1"),
        (dual_stack, "::", "[fd09::1]"),
        (dual_stack, "[::]", "[fd09::1]"),
        (dual_stack, "0.0.0.0", "10.9.0.1"),
        (dual_stack, "net0", "10.9.0.1"),
        (dual_stack, "fd09::1", "[fd09::1]"),
        (ipv6_default_route, "", "10.9.0.1"),
        (ipv6_default_route, "::", "[fd09::1]"),
        (second_has_the_route, "", "10.9.0.1"),
        (docker_comes_first, "", "10.9.0.1"),
        (docker_comes_first, "::", "10.9.0.1"),
        (docker_alone, "", "172.17.0.1"),
        (link_local_comes_first, "", "10.9.0.1"),
        (link_local_comes_first, "net0", "169.254.3.3"),
        (link_local_and_ipv6, "", "[fd09::1]"),
        (first_is_down, "", "10.9.0.1"),
        (first_has_no_carrier, "", "10.9.0.1"),
        (v6_only_sockets, "::", "10.9.0.1"),
    ],
    ids=lambda value: value.__name__ if callable(value) else value or "unset",
)
def test_what_is_advertised_can_be_dialled(network: Network, host: str, advertised: str) -> None:
    with machines() as (machine,):
        network(machine)
        settings = {"DYN_TCP_RPC_HOST": host, "DYN_TCP_RESPONSE_STREAM_HOST": host, "DYNAMO_FAST_LEAVE_DELAY": "0"}
        answer = json.loads(machine.run(SERVE_AND_CALL % LIMIT, settings).stdout)
        assert answer == [[advertised, advertised], [True, True], ["x"]]


STATUS = """
import asyncio, http.client, json
from urllib.parse import urlparse
from dynamo_fast import Worker
from dynamo_fast.discovery.memory import MemoryDiscovery

def live(host, port):
    connection = http.client.HTTPConnection(host, port, timeout=%d)
    connection.request("GET", "/live")
    return connection.getresponse().status

async def main():
    worker = await Worker.start(MemoryDiscovery())
    url = urlparse(worker.status.url)
    loop = asyncio.get_running_loop()
    found = [await loop.run_in_executor(None, live, host, url.port) for host in (url.hostname, %r)]
    print(json.dumps([url.hostname, found]))
    await worker.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("network", "host", "advertised", "also"),
    [
        (ipv4, "0.0.0.0", "10.9.0.1", "127.0.0.1"),
        (ipv4, "::", "10.9.0.1", "::1"),
        (ipv6, "0.0.0.0", "fd09::1", "::1"),
        (ipv6, "::", "fd09::1", "127.0.0.1"),
        (dual_stack, "::", "fd09::1", "10.9.0.1"),
        (dual_stack, "net0", "10.9.0.1", "10.9.0.1"),
        (lone, "::1", "::1", "::1"),
    ],
    ids=lambda value: value.__name__ if callable(value) else value,
)
def test_the_status_server_can_be_dialled(network: Network, host: str, advertised: str, also: str) -> None:
    with machines() as (machine,):
        network(machine)
        answer = machine.run(STATUS % (LIMIT, also), {"DYN_SYSTEM_PORT": "0", "DYN_SYSTEM_HOST": host}).stdout
        assert json.loads(answer) == [advertised, [503, 503]]


def test_a_machine_without_addresses_says_so_once() -> None:
    script = f"import logging; logging.basicConfig(format='%(message)s')\n{SERVE_AND_CALL % LIMIT}"
    with machines() as (machine,):
        program = machine.run(script, {"DYNAMO_FAST_LEAVE_DELAY": "0"})
        assert program.stderr.count("advertising a loopback address, which other machines cannot dial") == 1
        assert machine.run(script, {"DYN_TCP_RPC_HOST": "lo", "DYN_TCP_RESPONSE_STREAM_HOST": "::1"}).stderr == ""
        machine.add_interface("net0", "10.9.0.1/24")
        assert machine.run(script).stderr == ""


@pytest.mark.parametrize("host", ["", "::", "0.0.0.0", "net0"])
@pytest.mark.parametrize("addresses", [("10.9.0.1/24", "10.9.0.2/24"), ("fd09::1/64", "fd09::2/64")], ids=["v4", "v6"])
def test_a_request_from_one_machine_to_another(host: str, addresses: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("async def generate(request):\n    yield request\n")
    settings = environment(
        {
            "DYN_FILE_KV": str(tmp_path / "kv"),
            "DYN_TCP_RPC_HOST": host,
            "DYN_TCP_RESPONSE_STREAM_HOST": host,
            "DYNAMO_FAST_LEAVE_DELAY": "0",
        }
    )
    tool = [sys.executable, "-m", "dynamo_fast"]
    with machines(2) as (one, two):
        one.link(two, *addresses)
        serving = one.command(*tool, "serve", "engine:generate", "--endpoint", "a.b.c")
        with started(serving, settings, tmp_path) as worker:
            assert worker.stdout is not None
            assert addresses[0].partition("/")[0] in worker.stdout.readline()
            calling = two.command(*tool, "call", "a.b.c", '"hello"')
            called = subprocess.run(calling, env=settings, capture_output=True, text=True, timeout=LIMIT, check=False)
            assert (called.returncode, called.stdout, called.stderr) == (0, '"hello"\n', "")
