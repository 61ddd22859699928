"""TLS and mutual TLS of both planes, between our own ends; every way in which a handshake fails."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from dynamo_fast import AddressedPushRouter, AddressedRequest, ManyIn, Worker, serve
from dynamo_fast.config import ResponseServerConfig, TcpClientConfig, TcpServerConfig, TlsConfig, WorkerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import CannotConnect, ConnectionTimeout, Disconnected, InvalidConfig, TlsError
from dynamo_fast.ingress.tcp_server import SharedTcpServer
from dynamo_fast.net import tls as tls_module
from dynamo_fast.net.connector import Connector
from dynamo_fast.net.listener import Listener
from dynamo_fast.net.tls import ClientTls, ServerTls
from dynamo_fast.runtime import DistributedRuntime
from tests.namespaces import environment
from tests.net.certificates import Authority, mutual, tls, variables
from tests.waiting import until

LIMIT = 20.0
PLAIN = TlsConfig()
LOOPBACK = TcpServerConfig(host="127.0.0.1")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def generate(request: Any) -> AsyncIterator[Any]:
    for number in range(request["n"]):
        yield {"number": number, "text": "x" * request.get("size", 1)}
    if request.get("raise"):
        raise ValueError("on purpose")


@contextlib.asynccontextmanager
async def ends(worker_tls: TlsConfig, router_tls: TlsConfig) -> AsyncIterator[tuple[AddressedPushRouter, str]]:
    """A router, and the address of a worker with `generate`."""
    starting = Worker.start(MemoryDiscovery(), WorkerConfig(leave_delay=0), LOOPBACK, tls=worker_tls)
    async with await starting as worker:
        served = await worker.serve(generate, "a.b.c")
        server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"), tls=router_tls)
        async with await AddressedPushRouter.create(TcpRequestClient(tls=router_tls), server) as router:
            yield router, served.address


async def items(router: AddressedPushRouter, address: str, request: Any) -> list[Any]:
    async def all_of_them() -> list[Any]:
        return [item.data() async for item in await router.generate(AddressedRequest(request, address))]

    return await asyncio.wait_for(all_of_them(), LIMIT)


# What works


@pytest.mark.parametrize("make", [tls, mutual])
async def test_requests_and_answers_are_encrypted(make: Callable[..., TlsConfig], authority: Authority) -> None:
    config = make(authority, authority.identity())
    async with ends(config, config) as (router, address):
        assert await items(router, address, {"n": 3}) == [{"number": number, "text": "x"} for number in range(3)]
        assert await items(router, address, {"n": 0}) == []
        assert len(await items(router, address, {"n": 2_000})) == 2_000
        (large,) = await items(router, address, {"n": 1, "size": 3_000_000})
        assert len(large["text"]) == 3_000_000
        many = await asyncio.gather(*(items(router, address, {"n": 5}) for _ in range(100)))
        assert [len(each) for each in many] == [5] * 100
        with pytest.raises(Exception, match="on purpose"):
            await items(router, address, {"n": 1, "raise": True})


async def test_a_read_takes_the_memory_of_a_record(authority: Authority) -> None:
    """Of the 256 KiB that the event loops ask for, Python would make a mapping for each record."""

    class Echo(asyncio.Protocol):
        def __init__(self) -> None:
            self.made: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()
            self.read: asyncio.Queue[bytes] = asyncio.Queue()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.made.set_result(cast(asyncio.Transport, transport))

        def data_received(self, data: bytes) -> None:
            self.read.put_nowait(data)

    config = tls(authority, authority.identity())
    accepted = Echo()
    listener = Listener("127.0.0.1", 0, 8, lambda: accepted, tls=ServerTls(config))
    transport, dialled = await Connector(LIMIT, tls=ClientTls(config)).dial("127.0.0.1", listener.port, Echo)
    ends = [(transport, accepted), (await asyncio.wait_for(accepted.made, LIMIT), dialled)]
    peaks = []
    for sender, receiver in ends:
        tracemalloc.start()
        try:
            sender.write(b"small")
            assert await asyncio.wait_for(receiver.read.get(), LIMIT) == b"small"
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    for sender, _ in ends:
        sender.abort()
    listener.close()
    await asyncio.sleep(0)
    assert all(16 * 1024 < peak < 64 * 1024 for peak in peaks), peaks


async def test_a_dropped_stream_stops_the_worker(authority: Authority) -> None:
    stopped = asyncio.Event()

    async def endless(_: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield "x" * 1000
                await asyncio.sleep(0)
        finally:
            stopped.set()

    config = tls(authority, authority.identity())
    worker = await Worker.start(MemoryDiscovery(), WorkerConfig(leave_delay=0), LOOPBACK, tls=config)
    served = await worker.serve(endless, "a.b.c")
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"), tls=config)
    async with await AddressedPushRouter.create(TcpRequestClient(tls=config), server) as router:
        stream = await router.generate(AddressedRequest({}, served.address))
        async for _ in stream:
            break
        await stream.aclose()
        await asyncio.wait_for(stopped.wait(), LIMIT)
    await worker.close()


async def test_a_bidirectional_request(authority: Authority) -> None:
    async def double(requests: AsyncIterator[int]) -> AsyncIterator[int]:
        async for request in requests:
            yield 2 * request

    async def numbers() -> AsyncIterator[int]:
        for number in range(5):
            yield number

    config = mutual(authority, authority.identity())
    worker = await Worker.start(MemoryDiscovery(), WorkerConfig(leave_delay=0), LOOPBACK, tls=config)
    served = await worker.serve(double, "a.b.c", bidirectional=True)
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"), tls=config)
    async with await AddressedPushRouter.create(TcpRequestClient(tls=config), server) as router:
        assert await items(router, served.address, ManyIn(numbers())) == [0, 2, 4, 6, 8]
    await worker.close()


async def test_the_environment_switches_it_on(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(mutual(authority, authority.identity())).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    worker = await serve(generate, "a.b.c", MemoryDiscovery(), WorkerConfig(leave_delay=0))
    (served,) = worker.endpoints.values()
    async with await AddressedPushRouter.create() as router:
        assert len(await items(router, served.address, {"n": 3})) == 3
    with pytest.raises((TlsError, Disconnected)):
        async with await AddressedPushRouter.create(TcpRequestClient(tls=PLAIN)) as router:
            await items(router, served.address, {"n": 3})
    await worker.close()


async def test_the_name_of_the_fleet_may_stand_in_the_certificates(authority: Authority) -> None:
    config = replace(tls(authority, authority.identity("fleet", "workers.internal")), server_name="workers.internal")
    async with ends(config, config) as (router, address):
        assert len(await items(router, address, {"n": 3})) == 3


async def test_without_verification(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    certificate, key = authority.identity("other", "elsewhere.example")
    config = TlsConfig(cert_path=certificate, key_path=key, insecure=True)
    async with ends(config, config) as (router, address):
        assert len(await items(router, address, {"n": 3})) == 3
    assert "the request client verifies no certificate (DYN_TCP_TLS_INSECURE)" in caplog.text


async def test_a_worker_resumes_its_session_with_a_router(authority: Authority) -> None:
    """A full handshake for each answer would cost several times as much."""
    config = mutual(authority, authority.identity())
    async with ends(config, config) as (router, address):
        reused = []
        accepted = router.response_server.take

        def take(subject: str) -> Any:
            (connection,) = router.response_server.strangers
            reused.append(connection._transport.get_extra_info("ssl_object").session_reused)
            return accepted(subject)

        router.response_server.take = take  # type: ignore[method-assign]
        for _ in range(4):
            assert len(await items(router, address, {"n": 3})) == 3
    assert reused == [False, True, True, True]


async def test_a_session_is_not_resumed_for_ever(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new ticket comes with each resumption: the age counts from the last whole handshake."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    context = tls_module.ServerTls(tls(authority, authority.identity())).context
    client = tls_module.ClientTls(tls(authority, authority.identity("client")))

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hi")
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    resumed = []
    for _ in range(6):
        reader = asyncio.StreamReader()
        transport, _ = await client.connect(partial(asyncio.StreamReaderProtocol, reader), "127.0.0.1", port)
        assert await asyncio.wait_for(reader.readexactly(2), LIMIT) == b"hi"
        resumed.append(transport.get_extra_info("ssl_object").session_reused)
        transport.close()
        now[0] += 0.4 * tls_module.SESSION_SECONDS
    listening.close()
    assert resumed == [False, True, True, False, True, True]


async def test_a_replaced_identity_is_shown_at_the_next_dial(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_module, "RELOAD_SECONDS", 0.0)
    client = tls_module.ClientTls(mutual(authority, authority.identity()))
    connection = client.context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="x")
    client._last["somewhere"] = tls_module._Known(connection, 0.0)
    authority.identity()
    with contextlib.suppress(OSError):
        await client.connect(asyncio.Protocol, "127.0.0.1", 1)
    assert not client._last


async def test_without_a_temporary_folder_the_error_says_so(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tls(authority, authority.identity())

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    with pytest.raises(
        InvalidConfig, match="DYN_TCP_TLS_CERT_PATH=.* no temporary folder can be written .*: set TMPDIR"
    ):
        tls_module.ServerTls(config)


async def test_a_handshake_under_way_ends_with_its_listener(authority: Authority) -> None:
    server = SharedTcpServer(LOOPBACK, tls=tls(authority, authority.identity()))
    await server.start()
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    listener = server._listener
    assert listener is not None
    await until(lambda: listener.handshakes)
    await server.close()
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), LIMIT) == b""
    writer.close()
    await until(lambda: not listener.handshakes)


# Identities that are replaced


def peer_certificate(address: str, authority: Authority) -> bytes | None:
    """What the listener at `address` shows to a new connection."""
    host, _, port = address.partition("/")[0].rpartition(":")
    context = ssl.create_default_context(cafile=str(authority.path))
    plain = socket.create_connection((host, int(port)), LIMIT)
    with context.wrap_socket(plain, server_hostname=host) as encrypted:  # which closes it
        return encrypted.getpeercert(binary_form=True)


async def test_an_identity_follows_its_files(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls_module, "RELOAD_SECONDS", 0.0)
    caplog.set_level("INFO")
    config = tls(authority, authority.identity())
    async with ends(config, config) as (router, address):

        async def shown() -> bytes | None:
            return await asyncio.to_thread(peer_certificate, address, authority)

        first = await shown()
        half = authority.identity("half")[0]
        shutil.copy(half, config.cert_path)  # the key not yet
        assert await shown() == first
        assert "is not used, and the last valid one stays: key values mismatch" in caplog.text
        shutil.copy(config.key_path, config.cert_path)
        assert await shown() == first
        os.unlink(config.cert_path)
        assert await shown() == first
        authority.identity()  # both files
        second = await shown()
        assert second != first
        assert f"the certificate in {config.cert_path} was replaced" in caplog.text
        assert len(await items(router, address, {"n": 3})) == 3
        assert await shown() == second


async def test_the_files_are_looked_at_once_in_a_while(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tls(authority, authority.identity())
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    server = tls_module.ServerTls(config)
    before = server._identity._content
    authority.identity()
    server.refresh()
    assert server._identity._content == before
    now[0] += tls_module.RELOAD_SECONDS
    server.refresh()
    assert server._identity._content != before


# What is wrong at the start


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"key_path": ""}, "both DYN_TCP_TLS_CERT_PATH and DYN_TCP_TLS_KEY_PATH must be set .*: DYN_TCP_TLS_KEY_PATH"),
        ({"cert_path": ""}, "DYN_TCP_TLS_CERT_PATH is missing"),
        ({"cert_path": "", "key_path": ""}, "DYN_TCP_TLS_CLIENT_CA_CERT_PATH requires DYN_TCP_TLS_CERT_PATH and"),
        ({"cert_path": "none.crt"}, "DYN_TCP_TLS_CERT_PATH='none.crt' cannot be read: No such file"),
        ({"key_path": "{ca}"}, "are no certificate and its key in PEM: "),
        ({"key_path": "{other}"}, "are no certificate and its key in PEM: key values mismatch"),
        ({"key_path": "{encrypted}"}, "are no certificate and its key in PEM: the key is encrypted"),
        ({"client_ca_cert_path": "{key}"}, "DYN_TCP_TLS_CLIENT_CA_CERT_PATH=.* has no certificates in PEM"),
        ({"ca_cert_path": "none.pem"}, "DYN_TCP_TLS_CA_CERT_PATH='none.pem' cannot be read"),
        ({"ca_cert_path": "{key}"}, "DYN_TCP_TLS_CA_CERT_PATH=.* has no certificates in PEM"),
        ({"ca_cert_path": ""}, "DYN_TCP_TLS_CLIENT_CERT_PATH needs DYN_TCP_TLS_CA_CERT_PATH"),
        ({"client_key_path": ""}, "both DYN_TCP_TLS_CLIENT_CERT_PATH and .* DYN_TCP_TLS_CLIENT_KEY_PATH is missing"),
        ({"client_cert_path": ""}, "both .* DYN_TCP_TLS_CLIENT_CERT_PATH is missing"),
        ({"client_key_path": "{other}"}, "DYN_TCP_TLS_CLIENT_CERT_PATH=.* are no certificate and its key"),
    ],
)
@pytest.mark.parametrize("end", ["worker", "router"])
async def test_what_is_wrong_is_said_at_the_start(
    authority: Authority, tmp_path: Path, end: str, change: dict[str, str], text: str
) -> None:
    good = mutual(authority, authority.identity())
    files = {"ca": str(authority.path), "other": authority.identity("other")[1], "key": good.key_path}
    files["encrypted"] = encrypted(good.key_path, tmp_path)
    values: dict[str, Any] = {name: value.format(**files) for name, value in change.items()}
    config = replace(good, **values)
    starting: Any = Worker.start(MemoryDiscovery(), server_config=LOOPBACK, tls=config)
    if end == "router":
        starting.close()
        starting = AddressedPushRouter.create(tls=config)
    with pytest.raises(InvalidConfig, match=text):
        await starting


def encrypted(key: str, folder: Path) -> str:
    """The key with a password."""
    path = str(folder / "encrypted.key")
    command = ["openssl", "rsa", "-aes128", "-passout", "pass:x", "-in", key, "-out", path]
    if subprocess.run(command, check=False, capture_output=True).returncode:  # trustme's keys are of elliptic curves
        command = ["openssl", "ec", "-aes128", "-passout", "pass:x", "-in", key, "-out", path]
        subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.mark.parametrize("command", [["serve", "engine:generate", "--endpoint", "a.b.c"], ["call", "a.b.c", "1"]])
def test_commands_say_so(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("async def generate(request):\n    yield request\n")
    done = subprocess.run(
        [sys.executable, "-m", "dynamo_fast", *command],
        env=environment({"DYN_FILE_KV": str(tmp_path), "DYN_TCP_TLS_CERT_PATH": "tls.crt"}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    told = "both DYN_TCP_TLS_CERT_PATH and DYN_TCP_TLS_KEY_PATH must be set"
    assert done.stderr.startswith(f"dynamo-fast {command[0]}: error: {told}")


async def test_the_drop_in_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_TCP_TLS_KEY_PATH", "x.key")
    with pytest.raises(ValueError, match="DYN_TCP_TLS_CERT_PATH is missing"):
        DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")


# Handshakes that fail


def expired(authority: Authority) -> tuple[str, str]:
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    return authority.identity("expired", expires=yesterday)


WRONG_WORKERS: dict[str, tuple[Callable[[Authority, Authority], TlsConfig], str]] = {
    "another authority": (
        lambda ours, other: tls(ours, other.identity("other")),
        "the certificate of {peer} is refused: unable to get local issuer certificate|self.signed",
    ),
    "another name": (
        lambda ours, _: tls(ours, ours.identity("named", "worker.example")),
        "the certificate of {peer} is refused: .*IP address mismatch",
    ),
    "expired": (
        lambda ours, _: tls(ours, expired(ours)),
        "the certificate of {peer} is refused: certificate has expired",
    ),
}


@pytest.mark.parametrize("what", WRONG_WORKERS)
async def test_a_router_refuses_a_worker(
    authority: Authority, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, text = WRONG_WORKERS[what]
    worker = make(authority, Authority(tmp_path, "other-ca"))
    async with ends(worker, tls(authority, authority.identity())) as (router, address):
        peer = address.partition("/")[0]
        with pytest.raises(TlsError, match=f"^TCP connection to {peer} failed: {text.format(peer=peer)}"):
            await items(router, address, {"n": 1})
    assert "TLS: refusing a connection of 127.0.0.1" in caplog.text


@pytest.mark.parametrize("shown", ["nothing", "another authority", "expired"])
async def test_a_worker_refuses_a_router(authority: Authority, tmp_path: Path, shown: str) -> None:
    """In TLS 1.3 the router's half of the handshake is done by then: the refusal comes with the first read."""
    worker = mutual(authority, authority.identity())
    router_tls = tls(authority, authority.identity("router"))
    if shown != "nothing":
        other = Authority(tmp_path, "other-ca")
        certificate, key = other.identity("other") if shown == "another authority" else expired(authority)
        router_tls = replace(router_tls, client_cert_path=certificate, client_key_path=key)
    async with ends(worker, router_tls) as (router, address):
        with pytest.raises(CannotConnect, match="failed: .*(broke off TLS|closed the connection|failed)"):
            await items(router, address, {"n": 1})


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that cannot call home is given up after this time."""
    monkeypatch.setattr("dynamo_fast.egress.stream_registry._REFUSED_SECONDS", 0.1)


@pytest.mark.parametrize(
    ("worker", "router", "text"),
    [
        ("plain", "tls", "it speaks plain text"),
        ("tls", "plain", "it dials with TLS, and this process accepts plain text"),
        ("no trust", "tls", "it may not trust the certificate of this process|unknown ca"),
        ("no certificate", "mutual", "peer did not return a certificate"),
    ],
)
async def test_a_worker_that_cannot_call_home_is_an_error_soon(
    authority: Authority, tmp_path: Path, short: None, worker: str, router: str, text: str
) -> None:
    """The request is acknowledged, and no answer can come. Dynamo's router waits for ever then."""
    good = tls(authority, authority.identity())
    listens = replace(good, ca_cert_path="")  # the request plane is the same at both ends
    answers = {
        "plain": TlsConfig(),
        "tls": replace(good, cert_path="", key_path=""),
        "no trust": TlsConfig(ca_cert_path=str(Authority(tmp_path, "other-ca").path)),
        "no certificate": replace(good, cert_path="", key_path=""),
    }[worker]
    server_tls = {"plain": PLAIN, "tls": listens, "mutual": replace(listens, client_ca_cert_path=str(authority.path))}
    running = await Worker.start(MemoryDiscovery(), WorkerConfig(leave_delay=0), LOOPBACK, tls=answers)
    served = await running.serve(generate, "a.b.c")
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"), tls=server_tls[router])
    async with await AddressedPushRouter.create(TcpRequestClient(tls=PLAIN), server) as made:
        with pytest.raises(TlsError, match=f"The worker at 127.0.0.1 cannot open its response stream: .*({text})"):
            await items(made, served.address, {"n": 1})
    await running.close()


async def test_one_refusal_leaves_the_calls_to_others_alone(authority: Authority, short: None) -> None:
    config = tls(authority, authority.identity())
    async with ends(config, config) as (router, address):
        host, _, port = router.response_server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), LIMIT) is not None
        writer.close()
        assert len(await items(router, address, {"n": 3})) == 3


# One end speaks TLS, the other plain text


async def test_a_plain_router_and_a_tls_worker(authority: Authority) -> None:
    async with ends(tls(authority, authority.identity()), PLAIN) as (router, address):
        with pytest.raises(
            TlsError, match=r"failed: .* speaks TLS, and this process dials in plain text \(see DYN_TCP"
        ):
            await items(router, address, {"n": 1})


async def test_a_tls_router_and_a_plain_worker(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    async with ends(PLAIN, tls(authority, authority.identity())) as (router, address):
        with pytest.raises(TlsError, match="failed: .* closed the connection during the TLS handshake"):
            await items(router, address, {"n": 1})
    assert "it speaks TLS, and this process accepts plain text" in caplog.text


@pytest.mark.parametrize("side", ["router", "worker"])
async def test_a_handshake_has_a_limit(authority: Authority, side: str, caplog: pytest.LogCaptureFixture) -> None:
    """The other end takes the connection and says nothing."""
    config = replace(tls(authority, authority.identity()), handshake_timeout=1)
    if side == "router":
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}/x"
            async with await AddressedPushRouter.create(TcpRequestClient(tls=config)) as router:
                with pytest.raises(TlsError, match="answered no TLS handshake within 1 s"):
                    await items(router, address, {"n": 1})
        return
    server = SharedTcpServer(LOOPBACK, tls=config)
    await server.start()
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    assert await asyncio.wait_for(reader.read(), LIMIT) == b""
    writer.close()
    await server.close()
    assert "refusing a connection of 127.0.0.1" in caplog.text
    assert "no handshake came within 1 s" in caplog.text


async def test_handshakes_under_way_are_limited(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo_fast.net.listener._MOST_HANDSHAKES", 4)
    server = SharedTcpServer(LOOPBACK, tls=tls(authority, authority.identity()))
    await server.start()
    host, _, port = server.address.rpartition(":")
    reader, first = await asyncio.open_connection(host, int(port))
    others = [await asyncio.open_connection(host, int(port)) for _ in range(4)]
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), LIMIT) == b""  # long before the limit of its handshake
    for writer in [first, *(writer for _, writer in others)]:
        writer.close()
    await server.close()


async def test_a_dead_address_is_no_fault_of_tls(authority: Authority) -> None:
    config = tls(authority, authority.identity())
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}/x"
        async with await AddressedPushRouter.create(TcpRequestClient(TcpClientConfig(), tls=config)) as router:
            with pytest.raises((CannotConnect, ConnectionTimeout)) as caught:
                await items(router, address, {"n": 1})
    assert not isinstance(caught.value, TlsError)
