"""Who may call, from where, and how it is encrypted: the token, CORS, TLS. All of it is off by default."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from dynamo_fast.config import GatewayConfig
from dynamo_fast.errors import InvalidConfig
from tests.gateway.conftest import Stage
from tests.net.certificates import Authority

Begin = Callable[..., Awaitable[Stage]]


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", "secret", "bearer secret", "Bearer s\u00e9cret", "Basic c2VjcmV0"]
)
async def test_without_the_token_everything_but_health_is_401(begin: Begin, given: str | None) -> None:
    stage = await begin(token="secret")
    headers = {} if given is None else {"Authorization": given}
    for path in ("/v1/models", "/v1/endpoints", "/metrics"):
        async with stage.client.get(path, headers=headers) as response:
            assert response.status == 401
    for path in ("/a/b/c", "/a/b/nothing", "/v1/chat/completions"):
        async with stage.post({"items": [1]}, path, headers=headers) as response:
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    async with stage.client.get("/health") as response:
        assert response.status == 200


async def test_with_the_token_it_answers(begin: Begin) -> None:
    stage = await begin(token="secret")
    async with stage.post({"items": [1]}, headers={"Authorization": "Bearer secret"}) as response:
        assert response.status == 200


async def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(GatewayConfig(token="secret"))


JSON = {"Content-Type": "application/json"}


async def test_pages_of_other_origins_may_not_call_by_default(stage: Stage) -> None:
    async with stage.post({"items": [1]}, headers={"Origin": "https://a.example", **JSON}) as response:
        assert "Access-Control-Allow-Origin" not in response.headers
    question = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with stage.client.options("/a/b/c", headers=question) as response:
        assert response.status == 405


@pytest.mark.parametrize("path", ["/a/b/c", "/v1/chat/completions"])
@pytest.mark.parametrize("given", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
@pytest.mark.parametrize("header", [{"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
async def test_what_a_page_may_send_without_asking_is_refused(
    stage: Stage, path: str, given: str | None, header: dict[str, str]
) -> None:
    """A form, for one: its answer would not be shown to the page, but its request would be carried out."""
    headers = header if given is None else {**header, "Content-Type": given}
    async with stage.post({"items": [1]}, path, headers=headers, skip_auto_headers=["Content-Type"]) as response:
        assert response.status == 415
        assert "application/json" in (await response.json())["error"]["message"]
    async with stage.post(
        {"items": [1]}, headers={**header, "Content-Type": "Application/JSON; charset=utf-8"}
    ) as response:
        assert response.status == 200


async def test_a_program_that_is_no_browser_may_send_any_type(stage: Stage) -> None:
    async with stage.post({"items": [1]}, headers={"Content-Type": "text/plain"}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("[::1].evil.example", 403),
        ("localhost:8080", 200),
        ("LOCALHOST.", 200),
        ("app.localhost", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("10.0.0.1", 200),
    ],
)
async def test_a_name_that_was_made_to_point_here_is_refused(stage: Stage, host: str, status: int) -> None:
    """DNS rebinding: only the name tells such a page from one of this gateway."""
    for path in ("/v1/endpoints", "/v1/models", "/_state", "/metrics"):
        async with stage.client.get(path, headers={"Host": host}) as response:
            assert response.status == status
    async with stage.post({"items": [1]}, headers={"Host": host}) as response:
        assert response.status == status
        assert ("a proxy must set the header `Host: localhost`" in await response.text()) == (status == 403)


@pytest.mark.parametrize("settings", [{"token": "secret"}, {"host": "0.0.0.0"}])
async def test_with_a_token_or_for_other_machines_any_name_will_do(begin: Begin, settings: dict[str, str]) -> None:
    stage = await begin(**settings)
    headers = {"Host": "dynamo.example", "Authorization": "Bearer secret"}
    async with stage.post({"items": [1]}, headers=headers) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("cors", "origin", "allowed"),
    [
        ("https://a.example, https://b.example", "https://b.example", "https://b.example"),
        ("https://a.example", "https://evil.example", None),
        ("*", "https://any.example", "*"),
    ],
)
async def test_pages_of_the_origins_that_are_named_may_call(
    begin: Begin, cors: str, origin: str, allowed: str | None
) -> None:
    stage = await begin(cors=cors)
    async with stage.post({"items": [1], "hangs": True}, headers={"Origin": origin, **JSON}) as response:
        assert response.headers.get("Access-Control-Allow-Origin") == allowed
        assert response.headers["Vary"] == "Origin"
    question = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
    async with stage.client.options("/v1/chat/completions", headers=question) as response:
        assert response.status == 204
        assert response.headers.get("Access-Control-Allow-Origin") == allowed
        assert response.headers["Access-Control-Allow-Headers"] == "x-a"


async def test_what_is_remembered_for_one_origin_is_not_shown_to_another(begin: Begin) -> None:
    """A cache may keep the answer to a request without an origin, as a program sends it, and give it to a page."""

    async def varied(request: web.Request) -> web.Response:
        return web.Response(headers={"Vary": "Accept"})

    stage = await begin(cors="https://a.example", routes=[web.get("/varied", varied)])
    for path in ("/v1/models", "/v1/endpoints", "/health", "/", "/nothing"):
        async with stage.client.get(path) as response:
            assert response.headers["Vary"] == "Origin"
            assert "Access-Control-Allow-Origin" not in response.headers
    async with stage.post({"items": [1]}) as response:
        assert response.headers["Vary"] == "Origin"
    async with stage.client.get("/varied") as response:
        assert response.headers["Vary"] == "Accept, Origin"


async def test_without_cors_no_answer_varies(stage: Stage) -> None:
    async with stage.client.get("/v1/models", headers={"Origin": "https://a.example"}) as response:
        assert "Vary" not in response.headers


async def test_https(begin: Begin, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.identity()
    stage = await begin(tls_cert=certificate, tls_key=key)
    assert stage.server.url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context(cafile=str(authority.path))
    async with stage.post({"items": [1, 2]}, ssl=context) as response:
        assert await response.text() == "data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
    async with stage.post({"items": [1], "hangs": True}, ssl=context) as response:
        assert await response.content.readline() == b"data: 1\n"
    with pytest.raises(aiohttp.ClientError):
        await stage.client.get(stage.server.url.replace("https", "http") + "/health")


def test_https_needs_both_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="DYNAMO_FAST_GATEWAY_TLS_KEY is missing"):
        _ = GatewayConfig(tls_cert="x").listens_with_tls


async def test_a_certificate_that_cannot_be_read_names_the_setting(begin: Begin, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="DYNAMO_FAST_GATEWAY_TLS_CERT"):
        await begin(tls_cert=str(tmp_path / "none"), tls_key=str(tmp_path / "none"))
