"""Discovery in custom resources of Kubernetes, against a stand-in for its API (kube_api.py)."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from dynamo_fast.config import KubernetesConfig
from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent, Removed
from dynamo_fast.discovery.buckets import EVENT_CHANNELS, MODEL_CARDS
from dynamo_fast.discovery.connect import connect
from dynamo_fast.discovery.kubernetes import KubernetesStore
from dynamo_fast.discovery.kubernetes_access import Access
from dynamo_fast.discovery.kubernetes_identity import PodIdentity, instance_id
from dynamo_fast.discovery.store import RecordEvent, RecordPut, RecordRemoved
from dynamo_fast.errors import CannotConnect, InvalidConfig
from dynamo_fast.wire.instance import Instance
from tests.discovery.kube_api import NAMESPACE, KubeApi, uid
from tests.discovery.records import ENDPOINT, instance
from tests.discovery.waiting import Clock, until

KEY = "test/back_end/a-b.c é"
Make = Callable[..., Discovery]


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    async with KubeApi() as running:
        yield running


@pytest.fixture
async def make(api: KubeApi, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes the discovery of one process of a pod. All are closed at the end."""
    made: list[Discovery] = []

    def make(pod: str = "pod-a", **settings: Any) -> Discovery:
        config = KubernetesConfig(
            pod_name=pod,
            pod_uid=uid(pod),
            namespace=NAMESPACE,
            kubeconfig=str(settings.pop("kubeconfig", None) or api.kubeconfig(tmp_path / "config")),
            **settings,
        )
        made.append(Discovery(KubernetesStore(config, podinfo=tmp_path, account=tmp_path)))
        return made[-1]

    yield make
    for each in made:
        await each.close()


class Heard:
    """The events of one watch, in order."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[DiscoveryEvent] = asyncio.Queue()
        self.put = self._events.put_nowait

    async def next(self) -> DiscoveryEvent:
        return await asyncio.wait_for(self._events.get(), 10)

    @property
    def empty(self) -> bool:
        return self._events.empty()


def record(number: int = 1, address: str = "127.0.0.1:1/x") -> dict[str, Any]:
    """`spec.data` with one endpoint."""
    content: Instance = instance(number, address=address)
    return {"endpoints": {f"{KEY}/{number:x}": json.loads(content.encode())}, "model_cards": {}, "event_channels": {}}


# Who a process is


def test_the_instance_id_is_the_hash_that_dynamo_has() -> None:
    """Three values that real processes had."""
    found = [instance_id(name) for name in ("pod-a", "pod-b", "pod-a-other")]
    assert [f"{each:x}" for each in found] == ["2f232d726471", "1700f5c68bf2fa", "1074dc53ed44b0"]


@pytest.mark.parametrize(
    ("settings", "resource"),
    [
        ({}, "pod-a"),
        ({"container_name": "side"}, "pod-a"),
        ({"mode": "container", "container_name": "side"}, "pod-a-side"),
        ({"mode": "container", "container_name": "main"}, "pod-a"),
    ],
)
def test_the_resource_has_the_name_of_the_pod_or_of_its_container(
    settings: dict[str, Any], resource: str, tmp_path: Path
) -> None:
    config = KubernetesConfig(pod_name="pod-a", pod_uid="u", **settings)
    assert PodIdentity.find(config, tmp_path).resource == resource


def test_a_file_of_the_pod_comes_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "pod_name").write_text("from-file\n")
    (tmp_path / "pod_uid").write_text("uid-from-file\n")
    found = PodIdentity.find(KubernetesConfig(pod_name="other", pod_uid="other"), tmp_path)
    assert (found.pod, found.uid) == ("from-file", "uid-from-file")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"pod_uid": "u"}, "POD_NAME not available from file or environment: set it, or mount .*pod_name"),
        ({"pod_name": "p"}, "POD_UID not available"),
        ({"pod_name": "p", "pod_uid": "u", "mode": "container"}, "CONTAINER_NAME is required when DYN_KUBE_DISCOVERY"),
    ],
)
def test_what_a_process_does_not_know_of_itself_is_named(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=text):
        PodIdentity.find(KubernetesConfig(**settings), tmp_path)


# The way to the API


def test_without_a_way_to_the_api_the_error_says_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InvalidConfig, match="no kubeconfig .*KUBERNETES_SERVICE_HOST is not set"):
        Access.find(KubernetesConfig(), tmp_path)
    with pytest.raises(InvalidConfig, match="token does not exist"):
        Access.find(KubernetesConfig(service_host="10.0.0.1"), tmp_path)


CONTEXT = {"contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}], "current-context": "x"}


def kubeconfig(cluster: dict[str, Any], user: dict[str, Any]) -> dict[str, Any]:
    return {**CONTEXT, "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": user}]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[", "cannot be read"),
        ("a: b: c", "cannot be read"),
        ([1], "is not a mapping"),
        ({}, "current-context is None, and contexts has no such entry"),
        (CONTEXT, "the context's cluster is 'c', and clusters has no such entry"),
        (kubeconfig({"server": "10.0.0.1"}, {}), "server '10.0.0.1' is not a URL"),
        (kubeconfig({"server": "https://a"}, {"exec": {"command": "aws"}}), "'exec' is not offered"),
        (kubeconfig({"server": "https://a", "certificate-authority": "no.pem"}, {}), "No such file .*no.pem"),
        (kubeconfig({"server": "https://a", "certificate-authority-data": "%"}, {}), "cannot be read"),
        (kubeconfig({"server": "https://a"}, {"client-certificate": "x.pem"}), "No such file .*x.pem"),
        (kubeconfig({"server": "https://a"}, {"client-key-data": "eA=="}), "needs both, or neither"),
    ],
)
def test_a_wrong_kubeconfig_is_named_with_its_field(content: Any, text: str, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InvalidConfig, match=text) as caught:
        Access.find(KubernetesConfig(kubeconfig=str(file)), tmp_path)
    assert str(file) in str(caught.value)


# Putting records


async def test_a_record_is_put_as_the_real_one_puts_it(api: KubeApi, make: Make) -> None:
    discovery = make()
    await discovery.register(instance(7))
    (call,) = await api.called("PATCH dynamoworkermetadatas")
    assert call.query == {"force": "true", "fieldManager": "dynamo-worker"}
    assert call.headers["Content-Type"] == "application/apply-patch+yaml"
    assert json.loads(call.body) == {
        "apiVersion": "nvidia.com/v1alpha1",
        "kind": "DynamoWorkerMetadata",
        "metadata": {
            "name": "pod-a",
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": "pod-a",
                    "uid": "uid-pod-a",
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": {
            "data": {
                "endpoints": {f"{KEY}/7": json.loads(instance(7).encode())},
                "model_cards": {},
                "event_channels": {},
                "event_sources": {},
            }
        },
    }


async def test_every_bucket_has_its_field(api: KubeApi, make: Make) -> None:
    store = make().store
    await store.bucket(MODEL_CARDS).put("a/b/c/1", b'{"type":"Model"}')
    await store.bucket(EVENT_CHANNELS).put("a/b/kv-events/2", b'{"type":"EventChannel"}')
    assert api.data("pod-a") == {
        "endpoints": {},
        "model_cards": {"a/b/c/1": {"type": "Model"}},
        "event_channels": {"a/b/kv-events/2": {"type": "EventChannel"}},
        "event_sources": {},
    }
    assert await store.bucket(MODEL_CARDS).remove("a/b/c/1")
    assert not await store.bucket(MODEL_CARDS).remove("a/b/c/1")
    assert api.data("pod-a")["model_cards"] == {}


async def test_a_process_that_leaves_has_no_records(api: KubeApi, make: Make) -> None:
    discovery = make()
    await discovery.register(instance(1))
    await discovery.register(instance(2))
    discovery.withdraw()
    await until(lambda: api.data("pod-a")["endpoints"] == {})
    with pytest.raises(Exception, match="has left discovery"):
        await discovery.register(instance(3))
    await discovery.close()
    assert api.data("pod-a")["endpoints"] == {}


async def test_a_container_clears_what_its_predecessor_left(api: KubeApi, make: Make) -> None:
    api.metadata("pod-a-side", record())
    discovery = make(mode="container", container_name="side")
    await discovery.list()
    assert api.data("pod-a-side") is None
    await discovery.register(instance(1))
    assert json.loads((await api.called("PATCH dynamoworkermetadatas"))[0].body)["metadata"]["ownerReferences"][0] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "pod-a",
        "uid": "uid-pod-a",
        "controller": False,
        "blockOwnerDeletion": False,
    }


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "HTTP 401, no; the token is not valid"),
        (403, "HTTP 403, no; the service account needs a Role: see deploy/kubernetes/rbac.yaml"),
        (404, "HTTP 404, no; the custom resource is not installed: see deploy/kubernetes/crd.yaml"),
        (422, "HTTP 422, no$"),
    ],
)
async def test_an_apply_that_is_refused_registers_nothing(api: KubeApi, make: Make, status: int, text: str) -> None:
    discovery = make()
    api.faults["PATCH dynamoworkermetadatas"] = (status, "no")
    with pytest.raises(CannotConnect, match=text):
        await discovery.register(instance(1))
    api.faults.clear()
    await discovery.register(instance(2))
    assert list(api.data("pod-a")["endpoints"]) == [f"{KEY}/2"]


async def test_a_refused_apply_leaves_the_older_record(api: KubeApi, make: Make) -> None:
    discovery = make()
    await discovery.register(instance(1))
    api.faults["PATCH dynamoworkermetadatas"] = (403, "no")
    with pytest.raises(CannotConnect):
        await discovery.register(instance(1, address="127.0.0.1:2/x"))
    api.faults.clear()
    await discovery.register(instance(5))
    assert api.data("pod-a")["endpoints"][f"{KEY}/1"]["transport"] == {"tcp": "127.0.0.1:1/x"}


async def test_an_apply_is_tried_again_that_failed_for_the_moment(
    api: KubeApi, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo_fast.discovery.kubernetes.RETRIES", (0.0, 0.0))
    discovery = make()
    api.faults["PATCH dynamoworkermetadatas"] = (409, "conflict")
    api.times["PATCH dynamoworkermetadatas"] = 2
    await discovery.register(instance(1))
    assert list(api.data("pod-a")["endpoints"]) == [f"{KEY}/1"]
    api.times["PATCH dynamoworkermetadatas"] = 3
    with pytest.raises(CannotConnect, match="HTTP 409, conflict"):
        await discovery.register(instance(2))


async def test_a_resource_that_was_deleted_is_put_back(
    api: KubeApi, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    await make().register(instance(1))
    await api.watching("dynamoworkermetadatas")
    api.delete("dynamoworkermetadatas", "pod-a")
    await until(lambda: api.data("pod-a") is not None)
    assert list(api.data("pod-a")["endpoints"]) == [f"{KEY}/1"]
    assert "pod-a was deleted by another process: it is put back" in caplog.text


async def test_a_resource_is_put_back_though_the_api_fails_at_first(api: KubeApi, make: Make, clock: Clock) -> None:
    await make().register(instance(1))
    await api.watching("dynamoworkermetadatas")
    api.faults["PATCH dynamoworkermetadatas"] = (403, "not now")
    applies = len(await api.called("PATCH dynamoworkermetadatas"))
    api.delete("dynamoworkermetadatas", "pod-a")
    turning = asyncio.ensure_future(_turn(clock))
    await api.called("PATCH dynamoworkermetadatas", applies + 2)
    api.faults.clear()
    await until(lambda: api.data("pod-a") is not None)
    turning.cancel()
    assert list(api.data("pod-a")["endpoints"]) == [f"{KEY}/1"]


async def test_a_process_that_leaves_during_its_first_write_leaves_nothing(api: KubeApi, make: Make) -> None:
    discovery = make()
    api.held = asyncio.Event()
    registering = asyncio.ensure_future(discovery.register(instance(1)))
    await until(lambda: api.data("pod-a") is not None)
    closing = asyncio.ensure_future(discovery.close())
    await asyncio.sleep(0)
    api.held.set()
    await closing
    await asyncio.wait([registering])
    registering.exception()
    assert api.data("pod-a")["endpoints"] == {}


async def test_our_own_write_is_no_second_process(api: KubeApi, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Its answer was lost, so its generation is not known."""
    store = make().store
    assert isinstance(store, KubernetesStore)
    await store.bucket(MODEL_CARDS).put("a/b/c/1", b'{"type":"Model","n":1}')
    await api.watching("dynamoworkermetadatas")
    store._generation -= 1
    api.end_watches()
    await api.called("WATCH dynamoworkermetadatas", 2)
    api.metadata("pod-a", {**api.data("pod-a"), "further": {}})
    await until(lambda: store._generation == api.meta("dynamoworkermetadatas", "pod-a")["generation"])
    assert "another process" not in caplog.text


def test_a_token_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(json.dumps(kubeconfig({"server": "https://a"}, {"token": "secret"})))
    assert "secret" not in repr(Access.find(KubernetesConfig(kubeconfig=str(file)), tmp_path))


async def test_a_second_process_of_the_pod_is_named(api: KubeApi, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    await make().register(instance(1))
    await api.watching("dynamoworkermetadatas")
    await make().register(instance(2))
    await until(lambda: "another process writes the resource pod-a" in caplog.text)
    assert "DYN_KUBE_DISCOVERY_MODE=container" in caplog.text


async def test_without_an_api_a_registration_says_where_it_looked(api: KubeApi, make: Make) -> None:
    discovery = make()
    await api.stop()
    with pytest.raises(CannotConnect, match=f"the Kubernetes API at {api.url} cannot be reached"):
        await discovery.register(instance(1))


# Seeing records


async def test_an_instance_is_seen_while_its_pod_is_ready(api: KubeApi, make: Make) -> None:
    ours, theirs, heard = make("pod-a"), make("pod-b"), Heard()
    await theirs.watch(ENDPOINT, heard.put)
    await ours.register(instance(1))
    assert await theirs.list(ENDPOINT) == []
    api.slice("s1", {"pod-a": True})
    assert await heard.next() == Added(instance(1))
    api.slice("s2", {"pod-a": True})
    api.slice("s1", {"pod-a": False})
    api.slice("s2", {"pod-a": None})
    assert await heard.next() == Removed(instance(1))
    api.slice("s1", {"pod-a": True})
    assert await heard.next() == Added(instance(1))
    assert await theirs.list() == [instance(1)]
    await ours.unregister(instance(1))
    assert await heard.next() == Removed(instance(1))
    assert heard.empty


async def test_in_container_mode_the_containers_are_ready(api: KubeApi, make: Make) -> None:
    one = make("pod-a", mode="container", container_name="main")
    other = make("pod-a", mode="container", container_name="side")
    heard = Heard()
    await one.watch(ENDPOINT, heard.put)
    await one.register(instance(one.connection_id))
    await other.register(instance(other.connection_id))
    api.pod("pod-a", {"main": False, "side": True})
    assert await heard.next() == Added(instance(other.connection_id))
    api.pod("pod-a", {"main": True, "side": True})
    assert await heard.next() == Added(instance(one.connection_id))
    api.delete("pods", "pod-a")
    assert {(await heard.next()), (await heard.next())} == {
        Removed(instance(one.connection_id)),
        Removed(instance(other.connection_id)),
    }


@pytest.mark.parametrize("owner", ["uid-of-an-earlier-pod", ""])
async def test_the_records_of_an_earlier_pod_of_the_name_do_not_count(api: KubeApi, make: Make, owner: str) -> None:
    api.slice("s", {"pod-a": True})
    api.metadata("pod-a", record(), owner)
    assert await make("pod-b").list() == []


async def test_two_pods_of_one_name_exclude_it_until_one_is_gone(
    api: KubeApi, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    api.metadata("pod-a", record())
    api.slice("s1", {"pod-a": True})
    heard = Heard()
    await make("pod-b").watch(ENDPOINT, heard.put)
    assert await heard.next() == Added(instance(1))
    api.slice("s2", {"pod-a": True}, {"pod-a": "another"})
    assert await heard.next() == Removed(instance(1))
    assert "pod-a is not used: 2 pods of that name are ready" in caplog.text
    api.delete("endpointslices", "s2")
    assert await heard.next() == Added(instance(1))


async def test_a_worker_that_starts_again_in_its_pod_is_followed(api: KubeApi, make: Make) -> None:
    api.metadata("pod-a", record(address="127.0.0.1:1/x"))
    api.slice("s", {"pod-a": True})
    heard = Heard()
    await make("pod-b").watch(ENDPOINT, heard.put)
    assert await heard.next() == Added(instance(1))
    api.metadata("pod-a", record(address="127.0.0.1:2/x"))
    assert await heard.next() == Added(instance(1, address="127.0.0.1:2/x"))


async def test_a_resource_that_was_made_again_is_two_events(api: KubeApi, make: Make) -> None:
    api.metadata("pod-a", record())
    api.slice("s", {"pod-a": True})
    heard = Heard()
    await make("pod-b").watch(ENDPOINT, heard.put)
    assert await heard.next() == Added(instance(1))
    await api.watching("dynamoworkermetadatas")
    api.forget()  # what happens now is not told by a watch, but by a list
    api.delete("dynamoworkermetadatas", "pod-a")
    api.metadata("pod-a", record())
    assert await heard.next() == Removed(instance(1))
    assert await heard.next() == Added(instance(1))


async def test_data_that_cannot_be_read_leaves_the_last_that_could(
    api: KubeApi, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    api.metadata("pod-a", record())
    api.slice("s", {"pod-a": True})
    reader, heard = make("pod-b"), Heard()
    await reader.watch(ENDPOINT, heard.put)
    assert await heard.next() == Added(instance(1))
    unreadable: list[Any] = [None, [], {"endpoints": 3}]
    for content in unreadable:
        api.metadata("pod-a", content)
    both = record(1)
    both["endpoints"][f"{KEY}/2"] = {"transport": "pigeon"}
    api.metadata("pod-a", {**both, "event_channels": None})
    await until(lambda: "ignoring the discovery record" in caplog.text)
    assert await reader.list() == [instance(1)]
    api.metadata("pod-a", {})
    assert await heard.next() == Removed(instance(1))
    assert heard.empty
    assert caplog.text.count("its last content stays in force") == 1


async def test_model_cards_and_event_channels_come_and_go(api: KubeApi, make: Make) -> None:
    api.slice("s", {"pod-a": True})
    ours, theirs = make("pod-a").store, make("pod-b").store
    events: asyncio.Queue[RecordEvent[bytes]] = asyncio.Queue()
    await theirs.bucket(MODEL_CARDS).watch("a/", events.put_nowait)
    await ours.bucket(MODEL_CARDS).put("a/b/c/1", b'{"n":1,"type":"Model"}')
    await ours.bucket(MODEL_CARDS).put("b/b/c/1", b'{"type":"Model"}')
    assert await asyncio.wait_for(events.get(), 10) == RecordPut("a/b/c/1", b'{"n":1,"type":"Model"}')
    await ours.bucket(MODEL_CARDS).remove("a/b/c/1")
    assert await asyncio.wait_for(events.get(), 10) == RecordRemoved("a/b/c/1", b'{"n":1,"type":"Model"}')
    assert [each.key for each in await theirs.bucket(MODEL_CARDS).list()] == ["b/b/c/1"]
    assert await theirs.bucket(EVENT_CHANNELS).list() == []


# Faults of the API


@pytest.fixture
def hundred(api: KubeApi) -> KubeApi:
    """An API with a hundred workers, in pages of seven."""
    api.page = 7
    for number in range(100):
        api.metadata(f"pod-{number}", record(number))
    api.slice("s", {f"pod-{number}": True for number in range(100)})
    return api


async def test_a_list_in_pages_is_read_to_its_end(hundred: KubeApi, make: Make) -> None:
    assert len(await make("pod-x").list(ENDPOINT)) == 100
    assert len(await hundred.called("LIST dynamoworkermetadatas")) == 15


@pytest.mark.parametrize("fault", ["end", "bookmark", "event", "status", "500"])
async def test_no_change_is_lost_when_a_watch_ends(api: KubeApi, make: Make, fault: str, clock: Clock) -> None:
    api.metadata("pod-a", record(1))
    api.slice("s", {"pod-a": True, "pod-b": True})
    heard = Heard()
    await make("pod-x").watch(ENDPOINT, heard.put)
    assert await heard.next() == Added(instance(1))
    await api.watching("dynamoworkermetadatas")
    if fault in ("event", "status"):
        api.gone = fault
    elif fault == "500":
        api.faults["WATCH dynamoworkermetadatas"] = (500, "etcd is slow")
    elif fault == "bookmark":
        api.bookmark()
    watches = len(await api.called("WATCH dynamoworkermetadatas"))
    api.end_watches()
    api.metadata("pod-b", record(2))
    api.delete("dynamoworkermetadatas", "pod-a")
    if fault == "bookmark":
        api.forget()
    await clock.turn(1.0)
    await api.called("WATCH dynamoworkermetadatas", watches + 1)
    api.gone = None
    api.faults.clear()
    turning = asyncio.ensure_future(_turn(clock))
    assert {await heard.next(), await heard.next()} == {Added(instance(2)), Removed(instance(1))}
    turning.cancel()
    assert heard.empty


async def _turn(clock: Clock) -> None:
    while True:
        await clock.turn(0.5)
        await asyncio.sleep(0)


@pytest.mark.parametrize("what", ["LIST endpointslices", "LIST dynamoworkermetadatas"])
async def test_a_list_that_is_refused_is_said(api: KubeApi, make: Make, what: str) -> None:
    """The real one waits for ever, and says nothing."""
    api.faults[what] = (403, 'cannot list "x"')
    reader = make()
    with pytest.raises(
        CannotConnect, match=f'refused to list {what[5:]} in namespace tests: HTTP 403, cannot list "x"'
    ):
        await reader.list()
    api.faults.clear()
    assert await reader.list() == []


async def test_a_token_is_read_anew_for_each_request(tmp_path: Path) -> None:
    """And a service account's token goes over TLS, to a server that the account's CA has signed."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    token = tmp_path / "token"
    token.write_text("first\n")
    async with KubeApi(tls=tls, token=lambda: token.read_text().strip()) as api:
        config = KubernetesConfig(
            pod_name="pod-a",
            pod_uid=uid("pod-a"),
            namespace=NAMESPACE,
            service_host="127.0.0.1",
            service_port=api.port,
            kubeconfig="",
        )
        store = KubernetesStore(config, podinfo=tmp_path, account=tmp_path)
        discovery = Discovery(store)
        await discovery.register(instance(1))
        token.write_text("second\n")
        await discovery.register(instance(2))
        assert [call.headers["Authorization"] for call in await api.called("PATCH dynamoworkermetadatas", 2)] == [
            "Bearer first",
            "Bearer second",
        ]
        token.unlink()
        with pytest.raises(CannotConnect, match="no token for the Kubernetes API: .*token cannot be read"):
            await discovery.register(instance(3))
        token.write_text("third")
        await discovery.close()


async def test_a_server_that_the_ca_has_not_signed_is_refused(tmp_path: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with KubeApi(tls=tls) as api:
        config = KubernetesConfig(
            pod_name="p", pod_uid="u", kubeconfig=str(api.kubeconfig(tmp_path / "config", token="x"))
        )
        discovery = Discovery(KubernetesStore(config, podinfo=tmp_path))
        with pytest.raises(CannotConnect, match="CERTIFICATE_VERIFY_FAILED"):
            await discovery.list()
        await discovery.close()


async def test_the_backend_has_a_name(api: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {
        "POD_NAME": "pod-a",
        "POD_UID": "u",
        "POD_NAMESPACE": NAMESPACE,
        "KUBECONFIG": str(api.kubeconfig(tmp_path / "config")),
    }.items():
        monkeypatch.setenv(variable, value)
    discovery = connect("kubernetes")
    assert discovery.connection_id == instance_id("pod-a")
    assert await discovery.list() == []
    await discovery.close()
