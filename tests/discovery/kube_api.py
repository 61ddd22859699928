"""A stand-in for the Kubernetes API: as much of it as discovery uses, and its faults on demand.

Lists with selectors and pages, watches with versions and bookmarks, server-side apply, delete; 410 in both forms; any
status in place of any answer; TLS and bearer tokens. It runs on the event loop of its test. A real API server cannot be
installed from the package index: what differs there, no test here can see.
"""

from __future__ import annotations

import asyncio
import copy
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

NAMESPACE = "tests"
KINDS = {
    "endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
    "pods": ("v1", "Pod"),
    "dynamoworkermetadatas": ("nvidia.com/v1alpha1", "DynamoWorkerMetadata"),
}
LABELS = {"nvidia.com/dynamo-discovery-enabled": "true", "nvidia.com/dynamo-discovery-backend": "kubernetes"}

Json = dict[str, Any]


def uid(pod: str) -> str:
    return f"uid-{pod}"


@dataclass(frozen=True)
class Call:
    """One request, as it came in. `verb` is LIST, WATCH, PATCH or DELETE."""

    verb: str
    resource: str
    name: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(eq=False)
class _Watcher:
    resource: str
    query: dict[str, str]
    events: asyncio.Queue[Json | None] = field(default_factory=asyncio.Queue)


class KubeApi:
    """One API server with one namespace. `async with`: it listens while the context lasts."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, token: Callable[[], str] | None = None) -> None:
        self.calls: list[Call] = []
        self.faults: dict[str, tuple[int, str]] = {}
        """What to answer in place of the truth: `"LIST pods"` -> (status, message)."""
        self.times: dict[str, int] = {}
        """How often a fault happens; without a number, until it is removed."""
        self.held: asyncio.Event | None = None
        """Applies are carried out, and answered only once it is set."""
        self.page = 0
        """Objects of a page; 0: as many as the client asks for."""
        self.gone: str | None = None
        """How the next watches end: `event` or `status`, 410 both."""
        self._tls = tls
        self._token = token
        self._objects: dict[str, dict[str, Json]] = {resource: {} for resource in KINDS}
        self._history: list[tuple[int, str, Json]] = []
        self._version = 10
        self._oldest = 0
        self._watchers: list[_Watcher] = []
        self._news = asyncio.Event()
        self._runner: web.ServerRunner | None = None
        self.port = 0

    async def __aenter__(self) -> KubeApi:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Refuse connections, and break those that are there."""
        self.end_watches()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def kubeconfig(self, file: Path, **user: str) -> Path:
        """Write a kubeconfig for this server."""
        content = {
            "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": user}],
        }
        file.write_text(json.dumps(content))  # JSON is YAML
        return file

    # What is in the cluster

    def slice(self, name: str, ready: dict[str, bool | None], uids: dict[str, str] | None = None) -> None:
        """An EndpointSlice: pods and whether they are ready."""
        endpoints = [
            {
                "addresses": ["10.0.0.1"],
                "conditions": {} if state is None else {"ready": state},
                "targetRef": {
                    "kind": "Pod",
                    "name": pod,
                    "namespace": NAMESPACE,
                    "uid": (uids or {}).get(pod, uid(pod)),
                },
            }
            for pod, state in ready.items()
        ]
        self.put("endpointslices", name, {"addressType": "IPv4", "endpoints": endpoints, "ports": []})

    def pod(self, name: str, containers: dict[str, bool]) -> None:
        """A Pod: its containers and whether they are ready."""
        statuses = [
            {"name": each, "ready": ready, "restartCount": 0, "image": "i", "imageID": "i"}
            for each, ready in containers.items()
        ]
        spec = {"containers": [{"name": each} for each in containers]}
        self.put("pods", name, {"spec": spec, "status": {"phase": "Running", "containerStatuses": statuses}}, uid(name))

    def metadata(self, name: str, data: Any, owner: str | None = None) -> None:
        """A custom resource, as another process would write it."""
        reference = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid(name) if owner is None else owner}
        self.put("dynamoworkermetadatas", name, {"spec": {"data": data}}, owners=[reference] if owner != "" else [])

    def put(
        self, resource: str, name: str, content: Json, own_uid: str = "", owners: list[Json] | None = None
    ) -> tuple[Json, bool]:
        """Create or replace an object, unless it is so already. Returns it, and whether it is new."""
        before = self._objects[resource].get(name)
        meta = {
            "name": name,
            "namespace": NAMESPACE,
            "uid": own_uid
            or (before or {"metadata": {"uid": f"{resource}-{name}-{self._version}"}})["metadata"]["uid"],
            "labels": dict(LABELS),
            "generation": 1 if before is None else before["metadata"]["generation"] + 1,
            "ownerReferences": owners or [],
        }
        api_version, kind = KINDS[resource]
        found = {"apiVersion": api_version, "kind": kind, "metadata": meta, **copy.deepcopy(content)}
        if before is not None and all(before.get(each) == found.get(each) for each in content):
            return before, False
        self._objects[resource][name] = found
        self._publish("ADDED" if before is None else "MODIFIED", resource, found)
        return found, before is None

    def delete(self, resource: str, name: str) -> None:
        self._publish("DELETED", resource, self._objects[resource].pop(name))

    def data(self, name: str) -> Any:
        """`spec.data` of a custom resource; None if there is no such resource."""
        found = self._objects["dynamoworkermetadatas"].get(name)
        return None if found is None else found["spec"]["data"]

    def meta(self, resource: str, name: str) -> Json:
        found: Json = self._objects[resource][name]["metadata"]
        return found

    # Faults

    def end_watches(self) -> None:
        """As the server does after some minutes."""
        for each in self._watchers:
            each.events.put_nowait(None)

    def bookmark(self) -> None:
        """Tell every watch the version that it is at."""
        for each in self._watchers:
            api_version, kind = KINDS[each.resource]
            meta = {"resourceVersion": str(self._version)}
            event = {"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": api_version, "metadata": meta}}
            each.events.put_nowait(event)

    def forget(self) -> None:
        """Compact: a watch cannot begin before now."""
        self._history.clear()
        self._oldest = self._version

    # What was asked

    async def called(self, what: str, count: int = 1) -> list[Call]:
        """Wait until so many calls like `"WATCH pods"` were made; returns them."""
        while True:
            found = [each for each in self.calls if f"{each.verb} {each.resource}" == what]
            if len(found) >= count:
                return found
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 10)

    async def watching(self, resource: str, count: int = 1) -> None:
        """Wait until so many watches of it are open."""
        while len([each for each in self._watchers if each.resource == resource]) < count:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 10)

    # The server

    def _publish(self, kind: str, resource: str, found: Json) -> None:
        self._version += 1
        found["metadata"]["resourceVersion"] = str(self._version)
        event = {"type": kind, "object": copy.deepcopy(found)}
        self._history.append((self._version, resource, event))
        for each in self._watchers:
            if each.resource == resource and _selects(each.query, found):
                each.events.put_nowait(event)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        resource = next((each for each in parts if each in KINDS), "")
        query = dict(request.query)
        verb = ("WATCH" if query.get("watch") == "true" else "LIST") if request.method == "GET" else request.method
        name = "" if parts[-1] == resource else parts[-1]
        call = Call(verb, resource, name, query, dict(request.headers), await request.read())
        self.calls.append(call)
        self._news.set()
        if self._token is not None and request.headers.get("Authorization") != f"Bearer {self._token()}":
            return _status(401, "Unauthorized")
        if (fault := self._fault(f"{verb} {resource}")) is not None:
            return _status(*fault)
        if f"namespaces/{NAMESPACE}/" not in request.path or not resource:
            return _status(404, "the server could not find the requested resource")
        if verb == "WATCH":
            return await self._watch(request, call)
        answer = {"LIST": self._list, "PATCH": self._apply, "DELETE": self._delete}[verb](call)
        if verb == "PATCH" and self.held is not None:
            await self.held.wait()
        return answer

    def _fault(self, what: str) -> tuple[int, str] | None:
        if what in self.times:
            self.times[what] -= 1
            if self.times[what] < 0:
                return None
        return self.faults.get(what)

    def _list(self, call: Call) -> web.Response:
        found = [each for _, each in sorted(self._objects[call.resource].items()) if _selects(call.query, each)]
        first, size = int(call.query.get("continue", 0)), self.page or int(call.query["limit"])
        meta = {"resourceVersion": str(self._version)}
        if first + size < len(found):
            meta["continue"] = str(first + size)
        api_version, kind = KINDS[call.resource]
        return web.json_response(
            {
                "kind": f"{kind}List",
                "apiVersion": api_version,
                "metadata": meta,
                "items": found[first : first + size],
            },
            dumps=_dumps,
        )

    def _apply(self, call: Call) -> web.Response:
        if call.headers.get("Content-Type") != "application/apply-patch+yaml" or "fieldManager" not in call.query:
            return _status(415, "an apply needs application/apply-patch+yaml and a fieldManager")
        sent = json.loads(call.body)
        if sent["metadata"]["name"] != call.name:
            return _status(400, f"the name {sent['metadata']['name']!r} is not the one of the URL")
        found, is_new = self.put(
            call.resource, call.name, {"spec": sent["spec"]}, owners=sent["metadata"]["ownerReferences"]
        )
        return web.json_response(found, status=201 if is_new else 200, dumps=_dumps)

    def _delete(self, call: Call) -> web.Response:
        if call.name not in self._objects[call.resource]:
            return _status(404, f"{call.name} not found")
        self.delete(call.resource, call.name)
        return web.json_response({"kind": "Status", "apiVersion": "v1", "status": "Success"})

    async def _watch(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        start = int(call.query["resourceVersion"])
        if self.gone == "status":
            return _status(410, "too old resource version")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if self.gone == "event" or start < self._oldest:
            status = {
                "kind": "Status",
                "code": 410,
                "reason": "Expired",
                "message": f"too old resource version: {start}",
            }
            await _send(response, {"type": "ERROR", "object": status})
            return response
        watcher = _Watcher(call.resource, call.query)
        for version, resource, event in self._history:
            if resource == call.resource and version > start and _selects(call.query, event["object"]):
                watcher.events.put_nowait(event)
        self._watchers.append(watcher)
        self._news.set()
        try:
            while (event_or_end := await watcher.events.get()) is not None:
                await _send(response, event_or_end)
        except ConnectionError:
            pass
        finally:
            self._watchers.remove(watcher)
        return response


def _dumps(value: Any) -> str:
    """As Go writes it: compact, and maps in the order of their keys."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


async def _send(response: web.StreamResponse, event: Json) -> None:
    await response.write(_dumps(event).encode() + b"\n")


def _status(code: int, message: str) -> web.Response:
    content = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}
    return web.json_response(content, status=code)


def _selects(query: dict[str, str], found: Json) -> bool:
    """Whether the object has the labels, and the name, that the query asks for."""
    labels = [each.split("=") for each in query.get("labelSelector", "").split(",") if each]
    fields = [each.split("=") for each in query.get("fieldSelector", "").split(",") if each]
    meta = found["metadata"]
    return all(meta["labels"].get(key) == value for key, value in labels) and all(
        key == "metadata.name" and meta["name"] == value for key, value in fields
    )
