"""Which endpoints clients may call: all by default, else those of `DYNAMO_FAST_GATEWAY_ENDPOINTS`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dynamo_fast.config import GatewayConfig
from dynamo_fast.errors import InvalidConfig
from dynamo_fast.llm import ModelCard
from tests.cli.test_main import run
from tests.gateway.chats import chats
from tests.gateway.conftest import Stage, engine
from tests.waiting import until

Begin = Callable[..., Awaitable[Stage]]
GENEROUS = 10.0


async def served(begin: Begin, permitted: str) -> Stage:
    """A gateway before `a.b.c` and `a.b.inside`, each of which has a model."""
    stage = await begin(endpoints=permitted)
    await stage.worker.serve(engine, "a.b.inside")
    return stage


@pytest.mark.parametrize("permitted", ["a/b/c", "a.b.c", "x/y/z, a/b/c", "a/*/c", "*/*/c"])
async def test_an_endpoint_that_is_not_permitted_does_not_exist(begin: Begin, permitted: str) -> None:
    everything = await begin()
    stage = await served(begin, permitted)
    await until(lambda: len(everything.routers.endpoints()) == 2)
    await until(lambda: len(stage.routers.endpoints()) == 2)
    async with stage.post({"items": [1]}) as response:
        assert response.status == 200
    async with stage.post({}, "/a/b/inside") as response:
        hidden = response.status, await response.json()
    async with stage.post({}, "/a/b/nothing") as response:
        nothing = response.status, await response.json()
    assert hidden[0] == 404
    assert str(hidden).replace("inside", "nothing") == str(nothing)
    async with everything.post({"items": [1]}, "/a/b/inside") as response:
        assert response.status == 200


async def test_lists_and_the_page_show_what_is_permitted(begin: Begin) -> None:
    stage = await served(begin, "a/b/c")
    await until(lambda: len(stage.routers.endpoints()) == 2)
    async with stage.client.get("/v1/endpoints") as response:
        assert list((await response.json())["endpoints"]) == ["a.b.c"]

    async with stage.client.get("/_events") as response:
        while b'"a.b.c"' not in (line := await asyncio.wait_for(response.content.readline(), GENEROUS)):
            pass
        assert b"inside" not in line


async def test_models_are_listed_and_asked_accordingly(begin: Begin) -> None:
    stage = await begin(chats, endpoints="a/b/m")
    await stage.worker.serve(chats, "a.b.m", model=ModelCard.text("m", aliases=["other"]))
    await stage.worker.serve(chats, "a.b.inside", model=ModelCard.text("inside", aliases=["other"]))
    await until(lambda: {"m", "inside"} <= stage.routers.models().keys())
    async with stage.client.get("/v1/models") as response:
        assert [each["id"] for each in (await response.json())["data"]] == ["m", "other"]
    for name, status in (("m", 200), ("inside", 404), ("other", 200)):
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
        async with stage.post(body, "/v1/chat/completions") as response:
            assert response.status == status
    async with stage.client.get("/v1/models/inside") as response:
        assert response.status == 404


@pytest.mark.parametrize("given", [",", "a/b", "a/b/c,", "a//c", "a/b/c/d", "a/b*/c", "a.b/c"])
def test_a_list_that_cannot_be_meant_is_an_error(given: str) -> None:
    """It must not come to mean all endpoints, or other ones."""
    with pytest.raises(InvalidConfig, match="DYNAMO_FAST_GATEWAY_ENDPOINTS=.* such as demo/backend/generate"):
        GatewayConfig.from_env({"DYNAMO_FAST_GATEWAY_ENDPOINTS": given})


@pytest.mark.parametrize("given", ["", "a/b"])
def test_so_is_such_an_option(tmp_path: Path, given: str) -> None:
    refused = run(tmp_path, "gateway", "--endpoints", given)
    assert refused.returncode == 2
    assert f"argument --endpoints: {given!r} is not valid: expected endpoints" in refused.stderr


def test_a_name_may_have_dots_between_slashes() -> None:
    assert GatewayConfig(endpoints="a.x/b/c").permitted == {("a.x", "b", "c")}
