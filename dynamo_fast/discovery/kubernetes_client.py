"""`KubernetesClient`: the four calls to the Kubernetes API that discovery needs, over aiohttp (kubernetes.md 2, 3).

Why not a client library: they bring a model of the whole API, and this file needs a list, a watch, an apply and a
delete of three resources. What they have beyond it, programs that fetch credentials, a pod does not need.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from dynamo_fast.discovery.http_session import aiohttp, enable_keep_alive, session
from dynamo_fast.discovery.kubernetes_access import Access
from dynamo_fast.errors import CannotConnect

__all__ = ["Gone", "KubernetesClient", "Listed", "Rejected", "Resource", "WatchEvent"]

CALL_TIMEOUT = 10.0
"""Seconds for one call."""
WATCH_SECONDS = 290
"""How long a watch is asked for; the server ends it then."""
PAGE = 500
"""Objects of one page of a list."""
MAX_LINE = 16 * 1024 * 1024
"""Bytes of one event of a watch. An object has at most about 1.5 MiB, etcd's limit."""
MAX_LIST = 256 * 1024 * 1024
"""Bytes of one page of a list."""
FIELD_MANAGER = "dynamo-worker"
"""Dynamo's own, so that a worker of either kind replaces what the other one left."""

_GONE = 410

_T = TypeVar("_T")


@dataclass(frozen=True)
class Resource(Generic[_T]):
    """A kind of object, and the type that its JSON is decoded to."""

    path: str
    """Of its API group: `apis/discovery.k8s.io/v1`."""
    plural: str
    type: type[_T]
    label_selector: str = ""
    field_selector: str = ""

    @property
    def query(self) -> dict[str, str]:
        """What of it is wanted."""
        selectors = {"labelSelector": self.label_selector, "fieldSelector": self.field_selector}
        return {name: value for name, value in selectors.items() if value}

    def __str__(self) -> str:
        return self.plural


class Rejected(CannotConnect):
    """The API answered with an error; `status` is that of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Gone(CannotConnect):
    """The API no longer has the version that a watch was to begin at: list again."""


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str | None = msgspec.field(default=None, name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Status(msgspec.Struct):
    code: int = 0
    reason: str | None = None
    message: str | None = None


class _RawEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


@dataclass(frozen=True)
class Listed:
    """The objects, as JSON, and the version after which a watch begins."""

    version: str
    items: list[msgspec.Raw]


@dataclass(frozen=True)
class WatchEvent:
    """`kind` is ADDED, MODIFIED, DELETED or BOOKMARK; the object is JSON."""

    kind: str
    object: msgspec.Raw


class KubernetesClient:
    """Calls to one API server, in one namespace.

    Owns the connections. Made and used on one event loop, in a `KubernetesStore`'s thread; ends with `close`.
    """

    def __init__(self, access: Access, namespace: str) -> None:
        self._access = access
        self._namespace = namespace
        self._session = session(access.tls, 0)

    async def close(self) -> None:
        """Close the connections; may be called twice."""
        await self._session.close()

    async def list(self, resource: Resource[Any]) -> Listed:
        """Every object, from as many pages as there are. Raises Rejected, CannotConnect."""
        items: list[msgspec.Raw] = []
        query = {**resource.query, "limit": str(PAGE)}
        while True:
            content = await self._call("GET", resource, query=query, timeout=CALL_TIMEOUT)
            page = _decode(content, _List, f"a list of {resource}")
            items += page.items or []
            if not page.metadata.continue_:
                return Listed(page.metadata.resource_version, items)
            query["continue"] = page.metadata.continue_

    async def watch(self, resource: Resource[Any], version: str) -> AsyncGenerator[WatchEvent, None]:
        """The changes after `version`, until the server ends the watch, as it does after some minutes.

        Raises Gone, also where the API says so by an HTTP status; Rejected and CannotConnect.
        """
        query = {
            **resource.query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            "resourceVersion": version,
        }
        timeout = aiohttp.ClientTimeout(sock_connect=CALL_TIMEOUT, sock_read=WATCH_SECONDS + 20)
        with self._reaching():
            async with self._request("GET", resource, query=query, timeout=timeout) as response:
                await self._check(response, f"watch {resource}")
                enable_keep_alive(response)
                async for line in _lines(response):
                    yield _event(_decode(line, _RawEvent, f"an event of {resource}"))

    async def apply(self, resource: Resource[_T], name: str, body: bytes, timeout: float = CALL_TIMEOUT) -> _T:
        """Create the object, or change it to be so (server-side apply). Returns it. Raises Rejected, CannotConnect."""
        content = await self._call(
            "PATCH",
            resource,
            name,
            query={"force": "true", "fieldManager": FIELD_MANAGER},
            headers={"Content-Type": "application/apply-patch+yaml"},  # of which JSON is a part
            data=body,
            timeout=timeout,
        )
        return _decode(content, resource.type, f"the {resource} {name}")

    async def delete(self, resource: Resource[Any], name: str) -> None:
        """Delete the object, if it is there. Raises Rejected, CannotConnect."""
        try:
            await self._call("DELETE", resource, name, data=b"{}", timeout=CALL_TIMEOUT)
        except Rejected as rejection:
            if rejection.status != 404:
                raise

    async def _call(
        self,
        method: str,
        resource: Resource[Any],
        name: str = "",
        *,
        query: Mapping[str, str] = {},
        headers: Mapping[str, str] = {},
        data: bytes | None = None,
        timeout: float,
    ) -> bytes:
        limit = aiohttp.ClientTimeout(total=timeout)
        with self._reaching():
            async with self._request(
                method, resource, name, query=query, headers=headers, data=data, timeout=limit
            ) as response:
                await self._check(response, f"{_VERBS[method]} {resource}")
                return await _whole(response, MAX_LIST)

    def _request(
        self,
        method: str,
        resource: Resource[Any],
        name: str = "",
        *,
        query: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
        headers: Mapping[str, str] = {},
        data: bytes | None = None,
    ) -> Any:
        url = f"{self._access.server}/{resource.path}/namespaces/{self._namespace}/{resource.plural}"
        return self._session.request(
            method,
            f"{url}/{name}" if name else url,
            params=query,
            headers={"Accept": "application/json", **self._access.headers(), **headers},
            data=data,
            timeout=timeout,
            server_hostname=self._access.tls_name,
            allow_redirects=False,
        )

    async def _check(self, response: aiohttp.ClientResponse, what: str) -> None:
        """Raises Gone or Rejected, with what the API said and what would help."""
        if response.status in (200, 201):
            return
        status = _Status()
        content = await _whole(response, MAX_LINE)
        try:
            status = msgspec.json.decode(content, type=_Status)
        except msgspec.MsgspecError:
            pass
        text = status.message or content[:200].decode("utf-8", "replace") or "no reason given"
        if response.status == _GONE:
            raise Gone(f"the Kubernetes API cannot {what} from there: {text}")
        hint = _HINTS.get(response.status, "")
        raise Rejected(
            f"the Kubernetes API at {self._access.server} refused to {what} in namespace {self._namespace}: HTTP "
            f"{response.status}, {text}{hint}",
            response.status,
        )

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """What aiohttp raises becomes CannotConnect."""
        try:
            yield
        except CannotConnect:  # which is an OSError, too
            raise
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise CannotConnect(f"the Kubernetes API at {self._access.server} cannot be reached: {reason}") from error


_VERBS = {"GET": "list", "PATCH": "apply", "DELETE": "delete"}
_HINTS = {
    401: "; the token is not valid (any more)",
    403: "; the service account needs a Role: see deploy/kubernetes/rbac.yaml",
    404: "; the custom resource is not installed: see deploy/kubernetes/crd.yaml",
}


def _event(raw: _RawEvent) -> WatchEvent:
    """Raises Gone or Rejected for the event ERROR."""
    if raw.type != "ERROR":
        return WatchEvent(raw.type, raw.object)
    status = _decode(raw.object, _Status, "the error of a watch")
    if status.code == _GONE:
        raise Gone(f"the Kubernetes API ended a watch: {status.message}")
    raise Rejected(f"the Kubernetes API ended a watch: {status.message or status.reason}", status.code)


def _decode(content: bytes | msgspec.Raw, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CannotConnect(f"not {what}: {error}: {bytes(content)[:200]!r}") from None


async def _lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    line = b""
    async for chunk in response.content.iter_any():
        *lines, line = (line + chunk).split(b"\n")
        for each in lines:
            if each.strip():
                yield each
        _check_size(len(line), MAX_LINE)
    if line.strip():
        yield line


async def _whole(response: aiohttp.ClientResponse, limit: int) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        _check_size(size, limit)
    return b"".join(chunks)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise CannotConnect(f"the Kubernetes API sent {size} bytes of one answer (the limit is {limit})")
