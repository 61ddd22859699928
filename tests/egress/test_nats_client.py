"""`NatsRequestClient` on a real NATS server. The worker is a subscription of the test."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from dynamo_fast.config import NatsConfig, ResponseServerConfig
from dynamo_fast.egress.nats_client import NatsRequestClient
from dynamo_fast.egress.request_client import Ack
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import (
    CannotConnect,
    ConnectionTimeout,
    InvalidAddress,
    InvalidConfig,
    RequestTooLarge,
    ResourceExhausted,
    SerializationError,
    Unavailable,
)
from dynamo_fast.net import nats_connection
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from tests.captured import Vector, captured, name_of
from tests.nats_server import NatsServer
from tests.net.certificates import Authority
from tests.waiting import LIMIT, until

SUBJECT = "demo_backend.generate-1f"
Answer = Callable[[Msg], Awaitable[None]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        yield server


@pytest.fixture
async def peer(server: NatsServer) -> AsyncIterator[Client]:
    """A connection of the test's own, to stand for a worker."""
    peer = await nats.connect(server.url)
    yield peer
    await peer.close()


@pytest.fixture
async def client(server: NatsServer) -> AsyncIterator[NatsRequestClient]:
    client = NatsRequestClient(NatsConfig(server=server.url), metrics=RequestPlaneMetrics())
    yield client
    await asyncio.wait_for(client.close(), LIMIT)


async def sent(client: NatsRequestClient, payload: bytes = b"x", **headers: str) -> Ack:
    return await asyncio.wait_for(client.send_request(SUBJECT, payload, headers), LIMIT)


async def connected(client: NatsRequestClient) -> None:
    """Wait until it has its connection, so that the time of a request is none of connecting."""
    client._connection.start()
    await client._connection.connected(LIMIT)


async def flushed(peer: Client) -> None:
    """Wait until the server has read what `peer` wrote. nats-py may write the first ping before that."""
    await peer.flush()
    await peer.flush()


async def serve(peer: Client, answer: Answer) -> None:
    await peer.subscribe(SUBJECT, "q", cb=answer)
    await flushed(peer)


async def accept(message: Msg) -> None:
    await message.respond(b"")


async def test_a_request_and_its_acknowledgement(client: NatsRequestClient, peer: Client) -> None:
    seen: list[Msg] = []

    async def answer(message: Msg) -> None:
        seen.append(message)
        await message.respond(b"")

    await serve(peer, answer)
    assert await sent(client, b"\0payload", **{"request-id": "é", "traceparent": "00-1"}) == Ack(b"")
    (message,) = seen
    assert message.data == b"\0payload"
    assert message.headers is not None
    assert sorted(message.headers) == ["request-id", "traceparent", "x-frontend-send-ts-ns"]
    assert message.headers["request-id"] == "é"
    assert message.headers["x-frontend-send-ts-ns"].isdecimal()
    assert message.reply.startswith("_INBOX.")
    assert client.metrics.nats_errors == 0


@pytest.mark.parametrize("vector", captured("nats_hpub"), ids=name_of)
async def test_what_is_sent_has_the_form_of_the_recordings(
    client: NatsRequestClient, peer: Client, vector: Vector
) -> None:
    """The same headers and payload through our client arrive as the recorded ones do, but for the time."""
    line, _, rest = vector.data.partition(b"\r\n")
    _, subject, _, header_size, total = line.decode().split()
    payload = rest[int(header_size) : int(total)]
    headers = dict(each.split(": ", 1) for each in rest[: int(header_size)].decode().split("\r\n")[1:] if each)
    seen: asyncio.Queue[Msg] = asyncio.Queue()

    async def answer(message: Msg) -> None:
        seen.put_nowait(message)
        await message.respond(b"")

    await peer.subscribe(subject, "q", cb=answer)
    await flushed(peer)
    given = {name: value for name, value in headers.items() if name != "x-frontend-send-ts-ns"}
    await asyncio.wait_for(client.send_request(subject, payload, given), LIMIT)
    message = await seen.get()
    assert message.data == payload
    assert set(message.headers or {}) == set(headers)


@pytest.mark.parametrize("text", [b"Server overloaded: no", b"Server unavailable: gone", b"something else"])
async def test_a_refusal_is_the_payload(client: NatsRequestClient, peer: Client, text: bytes) -> None:
    async def answer(message: Msg) -> None:
        await message.respond(text)

    await serve(peer, answer)
    assert await sent(client) == Ack(text)


async def test_an_error_of_a_micro_service_is_a_refusal(client: NatsRequestClient, peer: Client) -> None:
    """Dynamo's own caller takes it for an acceptance, and waits for ever."""

    async def answer(message: Msg) -> None:
        await peer.publish(
            message.reply, b"", headers={"Nats-Service-Error": "broken", "Nats-Service-Error-Code": "500"}
        )

    await serve(peer, answer)
    assert await sent(client) == Ack(b"broken")


async def test_no_responders_is_unavailable_at_once(client: NatsRequestClient) -> None:
    with pytest.raises(Unavailable, match=rf"^NATS request to {SUBJECT} failed: no worker has it$"):
        await sent(client)
    assert client.metrics.nats_errors == 1


async def test_a_worker_that_is_silent(server: NatsServer, peer: Client) -> None:
    async def answer(message: Msg) -> None:
        pass

    await serve(peer, answer)
    client = NatsRequestClient(NatsConfig(server=server.url, request_timeout=0.3))
    await connected(client)
    with pytest.raises(ConnectionTimeout, match=r"timed out: no acknowledgement within 0\.3 s"):
        await sent(client)
    await client.close()


async def test_a_message_may_be_as_large_as_the_server_takes_with_its_headers(
    tmp_path: Path, client: NatsRequestClient, peer: Client
) -> None:
    """Dynamo compares the message without its headers, and then marks a healthy worker."""
    await serve(peer, accept)
    await sent(client)  # it knows the limit now
    beside = len("NATS/1.0\r\nx-frontend-send-ts-ns: 1795623306177056365\r\nk: v\r\n\r\n")
    limit = 1_048_576
    assert await sent(client, bytes(limit - beside), k="v") == Ack(b"")
    with pytest.raises(RequestTooLarge) as raised:
        await sent(client, bytes(limit - beside + 1), k="v")
    assert (raised.value.size, raised.value.limit) == (limit + 1, limit)
    assert str(limit) in str(raised.value)
    assert str(limit + 1) in str(raised.value)
    assert client.metrics.nats_errors == 0


async def test_the_first_request_is_checked_before_it_is_sent_too(client: NatsRequestClient, peer: Client) -> None:
    await serve(peer, accept)
    with pytest.raises(RequestTooLarge):
        await sent(client, bytes(1_100_000))
    assert await sent(client) == Ack(b"")  # the connection is as it was


@pytest.mark.parametrize("address", ["", "a b", "a.*", "a.>", "a..b", ".a", "a\r\nPUB x 0"])
async def test_an_address_that_is_no_subject(client: NatsRequestClient, address: str) -> None:
    with pytest.raises(InvalidAddress, match="Invalid NATS subject"):
        client.send_request(address, b"", {})


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"a": "\ud800"}, {"": "x"}, {"a\r\nb": "c"}, {"a\n": "c"}])
async def test_headers_that_cannot_be_written(client: NatsRequestClient, headers: dict[str, str]) -> None:
    with pytest.raises(SerializationError):
        client.send_request(SUBJECT, b"", headers)


async def test_a_line_feed_in_a_header_adds_no_header(
    client: NatsRequestClient, peer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever release of nats-py there is: not all of them replace it."""
    seen: list[Msg] = []
    handed: list[str] = []
    publish = Client.publish

    async def noted(to: Client, subject: str, payload: bytes = b"", reply: str = "", headers: Any = None) -> None:
        handed.extend((headers or {}).values())
        await publish(to, subject, payload, reply, headers)

    async def answer(message: Msg) -> None:
        seen.append(message)
        await message.respond(b"")

    await serve(peer, answer)
    with monkeypatch.context() as patch:
        patch.setattr(Client, "publish", noted)
        await sent(client, b"x", **{"request-id": "a\r\nevil: 1"})
    assert handed[0] == "a  evil: 1"
    assert (seen[0].headers or {})["request-id"] == "a  evil: 1"
    assert "evil" not in (seen[0].headers or {})


async def test_more_than_may_wait_are_refused(server: NatsServer, peer: Client) -> None:
    async def answer(message: Msg) -> None:
        pass

    await serve(peer, answer)
    client = NatsRequestClient(NatsConfig(server=server.url, max_waiting=2))
    waiting = [client.send_request(SUBJECT, b"x", {}) for _ in range(2)]
    with pytest.raises(ResourceExhausted, match="2 requests over NATS wait already"):
        await sent(client)
    await client.close()
    for each in waiting:
        with pytest.raises(CannotConnect, match="the client was closed"):
            await each
    with pytest.raises(CannotConnect, match="the client was closed"):
        await sent(client)


async def test_many_at_once(client: NatsRequestClient, peer: Client) -> None:
    async def answer(message: Msg) -> None:
        await message.respond(message.data)

    await serve(peer, answer)
    acks = await asyncio.gather(*(sent(client, str(number).encode()) for number in range(1_000)))
    assert acks == [Ack(str(number).encode()) for number in range(1_000)]


# The server ----------------------------------------------------------------------------------------------------------


async def test_no_server(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)  # it is not started
    client = NatsRequestClient(NatsConfig(server=server.url, request_timeout=2))
    with pytest.raises(
        CannotConnect, match=rf"no connection with the NATS server at {server.url} within 2 s: .*Errno 111"
    ):
        await sent(client)
    await client.close()


async def test_a_server_that_comes_late(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    client = NatsRequestClient(NatsConfig(server=server.url))
    waiting = client.send_request(SUBJECT, b"x", {})
    await until(lambda: "Errno" in client._connection.failure)
    with server, pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, LIMIT)
    await client.close()


async def test_the_server_has_read_what_was_written_before_the_ping_that_asks(server: NatsServer) -> None:
    """A relay before the real server sees what is written, in order: nats-py alone writes the ping first."""
    written: list[bytes] = []
    over = asyncio.Event()
    port = int(server.url.rpartition(":")[2])

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)

        async def answers() -> None:
            while data := await from_server.read(65_536):
                writer.write(data)

        answering = asyncio.create_task(answers())
        while line := await reader.readline():
            written.append(line.split()[0])
            to_server.write(line)
        to_server.close()
        await answering
        writer.close()
        await asyncio.gather(to_server.wait_closed(), writer.wait_closed())
        over.set()

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as listener:
        client = nats_connection._Client()
        await client.connect(f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        await client.subscribe(SUBJECT, cb=accept)
        await client.rtt()
        await client.close()
        await asyncio.wait_for(over.wait(), LIMIT)
    assert written == [b"CONNECT", b"PING", b"SUB", b"PING"]


async def test_an_outage(server: NatsServer, client: NatsRequestClient) -> None:
    """What was sent fails at once; what comes meanwhile waits, and goes out when the server is there again."""
    silent = await nats.connect(server.url, allow_reconnect=False)

    async def answer(message: Msg) -> None:
        came.set()

    came = asyncio.Event()
    await serve(silent, answer)
    lost = client.send_request(SUBJECT, b"x", {})
    await asyncio.wait_for(came.wait(), LIMIT)
    server.stop()
    with pytest.raises(CannotConnect, match=f"NATS request to {SUBJECT} failed: the NATS server at .* is lost"):
        await asyncio.wait_for(lost, LIMIT)
    waiting = client.send_request(SUBJECT, b"x", {})
    server.start()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, LIMIT)
    peer = await nats.connect(server.url)
    await serve(peer, accept)
    assert await sent(client) == Ack(b"")
    await peer.close()
    await silent.close()


async def test_a_frozen_server_does_not_hold_up_the_end(server: NatsServer) -> None:
    client = NatsRequestClient(NatsConfig(server=server.url, request_timeout=0.5))
    await connected(client)
    server.freeze()
    many = [client.send_request(SUBJECT, bytes(1_000_000), {}) for _ in range(12)]
    for each in many:
        with pytest.raises((ConnectionTimeout, CannotConnect)):
            await asyncio.wait_for(each, LIMIT)
    await asyncio.wait_for(client.close(), LIMIT)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not tell a task that it was cancelled")
async def test_a_frozen_server_does_not_hold_up_a_program_that_closes_nothing(server: NatsServer) -> None:
    """nats-py swallows the cancellation that `asyncio.run` ends the tasks with."""
    client = NatsRequestClient(NatsConfig(server=server.url, request_timeout=0.5))
    await connected(client)
    others = asyncio.all_tasks()
    server.freeze()
    many = [client.send_request(SUBJECT, bytes(1_000_000), {}) for _ in range(12)]
    await asyncio.wait(many)
    assert all(isinstance(each.exception(), (ConnectionTimeout, CannotConnect)) for each in many)
    running = {asyncio.current_task()}
    tasks = (asyncio.all_tasks() | others) - running
    for task in tasks:
        task.cancel()
    _, left = await asyncio.wait(tasks, timeout=LIMIT)
    assert left == set()


async def test_a_frozen_server_is_given_up(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo_fast.net.nats_connection._PING_SECONDS", 0.1)
    monkeypatch.setattr("dynamo_fast.net.nats_connection._PONG_SECONDS", 1)
    client = NatsRequestClient(NatsConfig(server=server.url))
    with pytest.raises(Unavailable):
        await sent(client)
    server.freeze()
    with pytest.raises(CannotConnect, match="is lost: no answer to a ping"):
        await sent(client)
    await client.close()


@pytest.mark.parametrize("more", [0, 8], ids=["some of it waits", "nothing more is taken"])
async def test_what_waits_to_be_written_fails_with_the_connection(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    """nats-py would write it to the connection that is lost, fail, and say nothing until the next ping."""
    monkeypatch.setattr("dynamo_fast.net.nats_connection._PING_SECONDS", 3600)
    monkeypatch.setattr("dynamo_fast.net.nats_connection._PONG_SECONDS", 3600)
    client = NatsRequestClient(NatsConfig(server=server.url, request_timeout=3600))
    with pytest.raises(Unavailable):
        await sent(client)
    server.freeze()
    connection = client._connection._client
    assert connection is not None
    requests = []
    while not connection._pending_data_size:
        requests.append(client.send_request(SUBJECT, bytes(500_000), {}))
        await until(lambda: not client._unsent)
        for _ in range(10):  # the turns in which nats-py writes it, if the socket takes it
            await asyncio.sleep(0)
    requests += [client.send_request(SUBJECT, bytes(500_000), {}) for _ in range(more)]
    small = client.send_request(SUBJECT, b"x", {})
    if not more:
        await until(lambda: not client._unsent)
    server.stop()
    for each in requests[: len(requests) - more]:
        with pytest.raises(CannotConnect, match="the NATS server at .* is lost: "):
            await asyncio.wait_for(each, LIMIT)
    server.start()
    for each in (*requests, small):
        with pytest.raises((CannotConnect, Unavailable)):
            await asyncio.wait_for(each, LIMIT)
    with pytest.raises(Unavailable):
        await sent(client)
    await client.close()


async def test_what_is_not_permitted_is_said(tmp_path: Path) -> None:
    permissions = 'authorization { users: [{user: user, password: user, permissions: {publish: "other"}}] }'
    with NatsServer(tmp_path, permissions) as server:
        client = NatsRequestClient(NatsConfig(server=server.url, request_timeout=2))
        await connected(client)
        with pytest.raises(ConnectionTimeout, match="permissions violation for publish"):
            await sent(client)
        await client.close()


async def test_a_router_counts_and_delivers_the_errors(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_SERVER", server.url)
    metrics = RequestPlaneMetrics()
    response_server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    async with AddressedPushRouter(TcpRequestClient(), response_server, metrics=metrics) as router:
        with pytest.raises(Unavailable):
            await router.generate(AddressedRequest(1, SUBJECT, kind="nats_tcp"))
    assert (metrics.inflight, metrics.nats_errors, metrics.tcp_errors) == (0, 1, 0)
    (family,) = [each for each in metrics.collect() if each.name == "dynamo_transport_nats_errors"]
    (sample,) = family.samples
    assert (sample.name, sample.labels, sample.value) == (
        "dynamo_transport_nats_errors_total",
        {"error_type": "request_failed"},
        1,
    )


# Who this process is -------------------------------------------------------------------------------------------------


def an_nkey() -> tuple[str, str]:
    """A seed and its public key."""
    import nkeys

    pair = nkeys.from_seed(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER))
    return pair.seed.decode(), pair.public_key.decode()


SEED, PUBLIC = an_nkey()
USER = "authorization { user: alice, password: secret }"
TOKEN = "authorization { token: secret }"
NKEY = f"authorization {{ users: [{{nkey: {PUBLIC}}}] }}"


@pytest.mark.parametrize(
    ("configuration", "settings"),
    [
        (USER, {"username": "alice", "password": "secret"}),
        (USER, {"username": "alice", "password": "secret", "token": "wrong"}),
        (TOKEN, {"token": "secret"}),
        (TOKEN, {"username": "incomplete", "token": "secret"}),
        (NKEY, {"nkey": SEED}),
        ("authorization { user: user, password: user }", {}),
    ],
)
async def test_credentials(tmp_path: Path, configuration: str, settings: dict[str, Any]) -> None:
    with NatsServer(tmp_path, configuration) as server:
        client = NatsRequestClient(NatsConfig(server=server.url, **settings))
        with pytest.raises(Unavailable):
            await sent(client)
        await client.close()


async def test_credentials_in_the_url(tmp_path: Path) -> None:
    with NatsServer(tmp_path, USER) as server:
        client = NatsRequestClient(NatsConfig(server=server.url.replace("//", "//alice:secret@")))
        with pytest.raises(Unavailable):
            await sent(client)
        await client.close()


REFUSED = "(?i)authorization violation|reset by peer"
"""The server closes the connection behind its reason, which can get lost then."""


@pytest.mark.parametrize("settings", [{}, {"token": "wrong"}, {"username": "alice", "password": "wrong"}])
async def test_wrong_credentials_fail_at_once(tmp_path: Path, settings: dict[str, Any]) -> None:
    with NatsServer(tmp_path, USER) as server:
        client = NatsRequestClient(NatsConfig(server=server.url, request_timeout=1_000, **settings))
        for _ in range(2):
            with pytest.raises(CannotConnect, match=REFUSED) as raised:
                await sent(client)
            assert "wrong" not in str(raised.value)
        await client.close()


async def test_a_credentials_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "user.creds"
    with pytest.raises(InvalidConfig, match="NATS_AUTH_CREDENTIALS_FILE=.*No such file"):
        NatsRequestClient(NatsConfig(credentials_file=str(path)))
    path.write_text("nothing")
    with pytest.raises(InvalidConfig, match="has no user JWT with its nkey seed"):
        NatsRequestClient(NatsConfig(credentials_file=str(path)))
    with pytest.raises(InvalidConfig, match="NATS_AUTH_NKEY is not valid") as raised:
        NatsRequestClient(NatsConfig(nkey="SUsecret"))
    assert "SUsecret" not in str(raised.value)


# TLS -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def tls_block(authority: Authority, *, verify: bool = False) -> str:
    certificate, key = authority.identity("server")
    return f"tls {{ cert_file: {json.dumps(certificate)}, key_file: {json.dumps(key)}, " + (
        f"ca_file: {json.dumps(str(authority.path))}, verify: true }}" if verify else "}"
    )


def tls_settings(authority: Authority, which: str) -> dict[str, Any]:
    certificate, key = authority.identity("client")
    trust: dict[str, Any] = {"tls_ca_cert_path": str(authority.path)}
    choices: dict[str, dict[str, Any]] = {
        "trusted": trust,
        "insecure": {"tls_insecure": True},
        "mutual": {**trust, "tls_client_cert_path": certificate, "tls_client_key_path": key},
    }
    return choices[which]


@pytest.mark.parametrize("which", ["trusted", "insecure", "mutual"])
async def test_tls(tmp_path: Path, authority: Authority, which: str) -> None:
    with NatsServer(tmp_path, tls_block(authority, verify=which == "mutual"), "tls") as server:
        client = NatsRequestClient(NatsConfig(server=server.url, **tls_settings(authority, which)))
        with pytest.raises(Unavailable):
            await sent(client)
        await client.close()


async def test_a_certificate_that_is_not_trusted(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path, "other")
    with NatsServer(tmp_path, tls_block(authority), "tls") as server:
        client = NatsRequestClient(NatsConfig(server=server.url, tls_ca_cert_path=str(other.path)))
        with pytest.raises(CannotConnect, match="its certificate is refused"):
            await sent(client)
        await client.close()


async def test_a_server_without_tls_does_not_hear_the_password(tmp_path: Path) -> None:
    """nats-py alone would go on in plain text."""
    with NatsServer(tmp_path, USER) as server:
        url = server.url.replace("nats://", "tls://")
        client = NatsRequestClient(NatsConfig(server=url, username="alice", password="secret", request_timeout=2))
        with pytest.raises(CannotConnect, match="it offers no TLS, and NATS_SERVER says tls://"):
            await sent(client)
        await client.close()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"tls_ca_cert_path": "/ca"},
            r"NATS TLS is configured \(NATS_TLS_CA_CERT_PATH\) but NATS_SERVER does not use the 'tls://' scheme: "
            "nats://localhost:4222",
        ),
        (
            {"tls_client_cert_path": "/c"},
            "must be set together to enable NATS mTLS: NATS_TLS_CLIENT_KEY_PATH is missing",
        ),
        (
            {"server": "tls://h", "tls_ca_cert_path": "/no/ca"},
            "NATS_TLS_CA_CERT_PATH='/no/ca' cannot be used: .*No such",
        ),
    ],
)
async def test_settings_that_do_not_fit(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        NatsRequestClient(NatsConfig(**settings))


@pytest.mark.parametrize(
    "url", ["localhost", "http://h", "nats://", "nats://a:1,nats://b:2", "nats://h:x", "nats://h h"]
)
def test_a_server_that_is_no_url(url: str) -> None:
    with pytest.raises(InvalidConfig, match="NATS_SERVER=.* is not valid: expected one URL, nats://HOST:PORT"):
        NatsConfig.from_env({"NATS_SERVER": url})
    assert "secret" not in repr(NatsConfig(server="nats://u:secret@h"))
