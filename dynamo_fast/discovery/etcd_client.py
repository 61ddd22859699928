"""etcd's v3 interface, as its own HTTP gateway offers it on the client port: JSON over aiohttp.

Why not a client library: those of Python that speak gRPC bring 20 MB of it and a release of protobuf that must fit
everything else in the process; what is needed here is seven calls. aiohttp is widely used and kept well.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from dynamo_fast.config import EtcdConfig
from dynamo_fast.errors import CannotConnect, InvalidConfig

try:
    import aiohttp
except ImportError as error:
    raise InvalidConfig("the discovery backend 'etcd' needs aiohttp: pip install 'dynamo-fast[etcd]'") from error

__all__ = ["EtcdClient", "Refused", "encode", "prefix_range"]

_CALL_TIMEOUT = 5.0
_MAX_LINE = 64 * 1024 * 1024
_UNAUTHENTICATED = 16


class Refused(CannotConnect):
    """etcd answered "no"; `code` is gRPC's."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class EtcdClient:
    """Calls to one of several etcd servers. Made and used on one event loop."""

    def __init__(self, config: EtcdConfig) -> None:
        self._urls = [url.strip().rstrip("/") for url in config.endpoints.split(",") if url.strip()]
        if not self._urls or not all(url.startswith(("http://", "https://")) for url in self._urls):
            raise InvalidConfig(f"ETCD_ENDPOINTS={config.endpoints!r} is not valid: expected URLs, http:// or https://")
        self._config = config
        self._token = ""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=_tls(config)),
            json_serialize=lambda value: orjson.dumps(value).decode(),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections; may be called twice."""
        await self._session.close()

    async def call(self, name: str, body: Mapping[str, Any], timeout: float = _CALL_TIMEOUT) -> dict[str, Any]:
        """The answer to a call, e.g. `kv/range`.

        Raises Refused if etcd says no, CannotConnect if no server answers within `timeout` seconds each.
        """
        if self._config.username and not self._token:
            await self._authenticate(timeout)
        try:
            return await self._try_all(name, body, timeout)
        except Refused as refusal:
            if refusal.code != _UNAUTHENTICATED or not self._config.username:
                raise
        await self._authenticate(timeout)  # tokens expire
        return await self._try_all(name, body, timeout)

    async def stream(self, name: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The answers to a call that goes on. Raises Refused, and CannotConnect when the connection is lost."""
        url = self._urls[0]
        try:
            async with self._post(url, name, body, aiohttp.ClientTimeout(sock_connect=_CALL_TIMEOUT)) as response:
                line = b""
                async for chunk in response.content.iter_any():
                    *lines, line = (line + chunk).split(b"\n")
                    if len(line) > _MAX_LINE:
                        raise CannotConnect(f"etcd sent {len(line)} bytes without an end (the limit is {_MAX_LINE})")
                    for each in lines:
                        yield _answer(each, response.status)
                if line:
                    yield _answer(line, response.status)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise self._lost(url, error) from error
        raise self._lost(url, None)

    def forget_token(self) -> None:
        """Authenticate again before the next call."""
        self._token = ""

    async def _authenticate(self, timeout: float) -> None:
        self._token = ""
        body = {"name": self._config.username, "password": self._config.password}
        self._token = (await self._try_all("auth/authenticate", body, timeout))["token"]

    async def _try_all(self, name: str, body: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        for url in tuple(self._urls):  # as they stand now: other calls move them meanwhile
            try:
                async with self._post(url, name, body, aiohttp.ClientTimeout(total=timeout)) as response:
                    return _answer(await response.read(), response.status)
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
                if isinstance(error, Refused):
                    raise
                lost = self._lost(url, error)
        raise lost

    def _post(self, url: str, name: str, body: Mapping[str, Any], timeout: aiohttp.ClientTimeout) -> Any:
        headers = {"Authorization": self._token} if self._token else {}
        return self._session.post(f"{url}/v3/{name}", json=body, headers=headers, timeout=timeout)

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
    """The fields of a request that is about all keys that begin with `prefix` (which does not end with U+10FFFF)."""
    end = prefix.encode()[:-1] + bytes([prefix.encode()[-1] + 1])
    return {"key": encode(prefix), "range_end": encode(end)}


def _answer(line: bytes, status: int) -> dict[str, Any]:
    try:
        answer = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise Refused(f"etcd answered {status} {line[:200]!r}, which is no JSON", 0) from None
    error = answer.get("error")
    if error is not None:
        details = error if isinstance(error, dict) else answer
        message = details.get("message") or error
        raise Refused(f"etcd refused: {message}", int(details.get("code") or details.get("grpc_code") or 0))
    result: dict[str, Any] = answer.get("result", answer)
    return result


def _tls(config: EtcdConfig) -> ssl.SSLContext | bool:
    """True: what the system trusts."""
    if not (config.ca and config.client_cert and config.client_key):
        return ssl.create_default_context(cadata=config.ca) if config.ca else True
    try:
        context = ssl.create_default_context(cadata=config.ca)
        with tempfile.TemporaryDirectory() as folder:  # 0700: OpenSSL reads a key from a file only
            certificate, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
            certificate.write_text(config.client_cert)
            key.write_text(config.client_key)
            context.load_cert_chain(certificate, key)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidConfig(
            f"ETCD_AUTH_CA, ETCD_AUTH_CLIENT_CERT or ETCD_AUTH_CLIENT_KEY is not valid: expected PEM text ({error})"
        ) from None
    return context
