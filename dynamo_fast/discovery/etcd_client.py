"""etcd's v3 interface, as its own HTTP gateway offers it on the client port: JSON over aiohttp.

Why not a client library: those of Python that speak gRPC bring 20 MB of it and a release of protobuf that must fit
everything else in the process; this file needs seven calls. aiohttp is widely used and kept well.

A gateway or a balancer may answer in place of etcd. So the HTTP status and the shape of every answer are checked.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from dynamo_fast.config import EtcdConfig
from dynamo_fast.discovery.etcd_messages import Done, Token
from dynamo_fast.discovery.etcd_tls import tls_context
from dynamo_fast.discovery.http_session import aiohttp, enable_keep_alive, session
from dynamo_fast.errors import CannotConnect, InvalidConfig

__all__ = ["EtcdClient", "Refused", "Silent", "encode", "prefix_range"]

CALL_TIMEOUT = 5.0
"""Seconds for one server to answer a call."""
_MAX_ANSWER = 64 * 1024 * 1024
_MAX_CALLS = 32
"""Connections for calls; those of watches come on top."""
_MAX_OPERATIONS = 128
"""Of one transaction; etcd's default limit."""
_WITH_LEADER = {"Grpc-Metadata-hasleader": "true"}
"""A server that is cut off from its leader ends such a watch, instead of hearing nothing."""
_UNAUTHENTICATED = 16
_TRY_ANOTHER = {1, 2, 4, 8, 13, 14}
"""gRPC's codes for a server that cannot answer at the moment: it has no leader, it stops, it is overloaded."""

_T = TypeVar("_T")


class Refused(CannotConnect):
    """etcd answered with an error; `code` is gRPC's."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Silent(CannotConnect):
    """A watch had no message within its time limit; its connection may be dead, without an error."""


class EtcdClient:
    """Calls to one of several etcd servers.

    Owns the connections, the list of servers (the next one to ask comes first) and the token of the user. Made and used
    on one event loop, in an `EtcdStore`'s thread; ends with `close`.
    """

    def __init__(self, config: EtcdConfig) -> None:
        self._urls = [url.strip().rstrip("/") for url in config.endpoints.split(",") if url.strip()]
        if not self._urls or not all(url.startswith(("http://", "https://")) for url in self._urls):
            raise InvalidConfig(f"ETCD_ENDPOINTS={config.endpoints!r} is not valid: expected URLs, http:// or https://")
        self._config = config
        self._token = ""
        tls = tls_context(config)
        self._calls, self._streams = session(tls, _MAX_CALLS), session(tls, 0)

    async def close(self) -> None:
        """Close the connections; may be called twice."""
        await self._calls.close()
        await self._streams.close()

    async def call(self, name: str, body: Mapping[str, Any], answer: type[_T], timeout: float = CALL_TIMEOUT) -> _T:
        """The answer to a call, e.g. `kv/range`, as the type `answer` (a msgspec Struct, or dict).

        Raises Refused if etcd answers with an error, CannotConnect if no server gives a valid answer within `timeout`
        seconds each.
        """
        if self._config.username and not self._token:
            await self._authenticate(timeout)
        try:
            return await self._try_all(name, body, answer, timeout)
        except Refused as refusal:
            if refusal.code != _UNAUTHENTICATED or not self._config.username:
                raise
        await self._authenticate(timeout)  # tokens expire
        return await self._try_all(name, body, answer, timeout)

    async def delete(self, keys: Sequence[str], timeout: float) -> None:
        """Delete these keys, all at once if they are not too many for one transaction. Raises CannotConnect, Refused."""
        for first in range(0, len(keys), _MAX_OPERATIONS):
            chunk = keys[first : first + _MAX_OPERATIONS]
            deletions = [{"requestDeleteRange": {"key": encode(key)}} for key in chunk]
            await self.call("kv/txn", {"success": deletions}, Done, timeout)

    async def stream(
        self, name: str, body: Mapping[str, Any], answer: type[_T], silence: float
    ) -> AsyncGenerator[_T, None]:
        """The answers to a call that goes on.

        Raises Silent if no answer comes for `silence` seconds, Refused, and CannotConnect when the connection is lost.
        After any of these the next call goes to another server, if there is one.
        """
        url = self._urls[0]
        answers = self._answers(url, name, body, answer)
        try:
            while True:
                try:
                    yield await asyncio.wait_for(answers.__anext__(), silence)
                except asyncio.TimeoutError:
                    self._lost(url, None)
                    raise Silent(f"etcd at {url} said nothing for {silence:g} s") from None
                except StopAsyncIteration:
                    raise self._lost(url, None) from None
                except Refused:
                    self._lost(url, None)
                    raise
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    raise self._lost(url, error) from error
        finally:
            await answers.aclose()

    def forget_token(self) -> None:
        """Authenticate again before the next call."""
        self._token = ""

    async def _answers(self, url: str, name: str, body: Mapping[str, Any], answer: type[_T]) -> Any:
        timeout = aiohttp.ClientTimeout(sock_connect=CALL_TIMEOUT)
        async with self._post(self._streams, url, name, body, timeout=timeout, **_WITH_LEADER) as response:
            enable_keep_alive(response)
            line = b""
            async for chunk in response.content.iter_any():
                *lines, line = (line + chunk).split(b"\n")
                _check_size(len(line))
                for each in lines:
                    yield _read(each, response.status, answer)
            if line:
                yield _read(line, response.status, answer)

    async def _authenticate(self, timeout: float) -> None:
        self._token = ""
        body = {"name": self._config.username, "password": self._config.password}
        self._token = (await self._try_all("auth/authenticate", body, Token, timeout)).token

    async def _try_all(self, name: str, body: Mapping[str, Any], answer: type[_T], timeout: float) -> _T:
        limit = aiohttp.ClientTimeout(total=timeout)
        for url in tuple(self._urls):  # as they stand now: other calls move them meanwhile
            try:
                return await self._ask(url, name, body, answer, limit)
            except Refused as refusal:
                if refusal.code not in _TRY_ANOTHER:
                    raise
                lost = self._lost(url, refusal)
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
                lost = self._lost(url, error)
        raise lost

    async def _ask(
        self, url: str, name: str, body: Mapping[str, Any], answer: type[_T], limit: aiohttp.ClientTimeout
    ) -> _T:
        for attempt in range(2):
            try:
                async with self._post(self._calls, url, name, body, timeout=limit) as response:
                    return _read(await _whole(response), response.status, answer)
            except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
                raise
            except aiohttp.ClientConnectionError:  # an idle connection that was closed as it was used again
                if attempt:
                    raise
        raise AssertionError("the second attempt returns or raises")

    def _post(
        self,
        session: aiohttp.ClientSession,
        url: str,
        name: str,
        body: Mapping[str, Any],
        *,
        timeout: aiohttp.ClientTimeout,
        **headers: str,
    ) -> Any:
        if self._token:
            headers["Authorization"] = self._token
        return session.post(f"{url}/v3/{name}", json=body, headers=headers, timeout=timeout, allow_redirects=False)

    def _lost(self, url: str, cause: BaseException | None) -> CannotConnect:
        """The error to raise; the next call goes to another server, unless another call has seen to that already."""
        if self._urls[0] == url:
            self._urls.append(self._urls.pop(0))
        error = CannotConnect(
            f"Unable to connect to etcd server at {self._config.endpoints}. Check etcd server status"
            + (f" ({type(cause).__name__}: {cause})" if cause is not None else "")
        )
        error.__cause__ = cause
        return error


def encode(text: str | bytes) -> str:
    """A key or a value, as the gateway wants it."""
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def prefix_range(prefix: str) -> dict[str, str]:
    """The fields of a request for all keys that begin with `prefix` (which does not end with U+10FFFF)."""
    end = prefix.encode()[:-1] + bytes([prefix.encode()[-1] + 1])
    return {"key": encode(prefix), "range_end": encode(end)}


# Answers


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        _check_size(size)
    return b"".join(chunks)


def _check_size(size: int) -> None:
    if size > _MAX_ANSWER:
        raise CannotConnect(f"etcd sent {size} bytes of one answer (the limit is {_MAX_ANSWER})")


def _read(line: bytes, status: int, answer: type[_T]) -> _T:
    """The answer. Raises Refused if it is an error of etcd, CannotConnect if it is not an answer of etcd."""
    try:
        value = msgspec.json.decode(line)
        if isinstance(value, dict):
            _check_refusal(value, status)
            if status == 200:
                return msgspec.convert(value.get("result", value), answer, strict=False)
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, Refused):
            raise
    raise CannotConnect(f"not an answer of etcd, or an incomplete one: HTTP {status}, {line[:200]!r}")


def _check_refusal(value: dict[str, Any], status: int) -> None:
    """An error of etcd is `{"error": TEXT or {...}, "code": N, "message": TEXT}`; later releases leave `error` out."""
    error = value.get("error")
    details = error if isinstance(error, dict) else value
    code = details.get("code", details.get("grpc_code"))
    message = details.get("message") or error
    if (error is not None or status != 200) and isinstance(code, int) and isinstance(message, str):
        raise Refused(f"etcd refused: {message}", code)
