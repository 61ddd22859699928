"""The gateway before real Dynamo workers, asked by curl and by OpenAI's own client; and beside the real frontend."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from benchmarks import model_folder
from dynamo_fast import AddressedPushRouter, EndpointId, FileDiscovery
from dynamo_fast.config import GatewayConfig, ResponseServerConfig
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.gateway import Routers, app
from dynamo_fast.gateway.server import Server
from tests.interop.frontends import ROUTES, Model, chat_request, environment, frontend, model_worker
from tests.interop.peers import LIMIT, ROOT, VERSIONS, interpreter, peer_worker
from tests.waiting import until

GENERATE, FLAGS = EndpointId("peer", "worker", "generate"), EndpointId("peer", "worker", "flags")


@asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[tuple[Server, Routers]]:
    """A gateway that finds workers in `folder`."""
    discovery = FileDiscovery(folder)
    response_server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    config = GatewayConfig(port=0)
    async with (
        await AddressedPushRouter.create(response_server=response_server) as router,
        await Routers.open(discovery, router, retries=config.retries) as routers,
    ):
        server = await Server.start(app(routers, config), config)
        try:
            yield server, routers
        finally:
            await server.close()
            await discovery.close()


async def curl(*arguments: str) -> str:
    """What curl prints."""
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    process = await asyncio.create_subprocess_exec(
        "curl", "-sN", "--max-time", str(LIMIT), *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return output.decode()


@pytest.fixture(params=VERSIONS)
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The folder of a real worker that serves `peer.worker.generate`."""
    with peer_worker(request.param, tmp_path):
        yield tmp_path


async def test_curl_streams_from_a_real_worker(real: Path) -> None:
    async with gateway(real) as (server, routers):
        await asyncio.wait_for(until(lambda: routers.find(GENERATE)), LIMIT)
        url = f"{server.url}/peer/worker/generate"
        events = 'data: {"number":0}\n\ndata: {"number":1}\n\ndata: [DONE]\n\n'
        asked = json.dumps({"mode": "count", "n": 2})
        assert await curl("-d", asked, url) == events
        assert await curl("--http1.0", "-d", asked, url) == events
        assert await curl("-d", asked, "-H", "Accept: application/json", url) == '[{"number":0},{"number":1}]'
        assert await curl("-d", asked, "-H", "Accept: application/x-ndjson", url) == '{"number":0}\n{"number":1}\n'
        assert json.loads(
            await curl("-d", '{"mode":"context"}', "-H", "x-request-id: me", "-H", "x-dynamo-metadata-k: v", "-H",
                       "Accept: application/json", url)
        ) == [{"id": "me", "metadata": {"k": "v"}}]  # fmt: skip


@pytest.mark.parametrize(("after", "kind", "status"), [(0, "ValueError", 400), (0, "RuntimeError", 500)])
async def test_errors_of_a_real_worker(real: Path, after: int, kind: str, status: int) -> None:
    async with gateway(real) as (server, routers), aiohttp.ClientSession() as client:
        await asyncio.wait_for(until(lambda: routers.find(GENERATE)), LIMIT)
        url, asked = f"{server.url}/peer/worker/generate", {"mode": "raise", "after": after, "kind": kind}
        async with client.post(url, json=asked) as response:
            assert response.status == status
            assert "on purpose" not in await response.text()
        async with client.post(url, json={**asked, "after": 2}) as response:
            text = await response.text()
            assert response.status == 200
            assert text.startswith("data: 0\n\ndata: 1\n\n")
            assert f'"code":{status}' in text
            assert text.endswith("}\n\ndata: [DONE]\n\n")


async def test_a_real_worker_is_told_that_the_client_has_gone(real: Path) -> None:
    async with gateway(real) as (server, routers), aiohttp.ClientSession() as client:
        await asyncio.wait_for(until(lambda: routers.find(GENERATE) and routers.find(FLAGS)), LIMIT)
        url = f"{server.url}/peer/worker"
        async with client.post(f"{url}/generate", json={"mode": "watch", "key": "x"}) as response:
            assert (await response.content.readline()) == b"data: 0\n"
        headers = {"Accept": "application/json"}
        async with client.post(f"{url}/flags", json={"key": "x"}, headers=headers) as response:
            ((stopped, _),) = await response.json()
            assert stopped


@contextmanager
def text_worker(folder: Path, version: str, *models: Model) -> Iterator[None]:
    """A real worker that serves models of text."""
    described = [dataclasses.asdict(each) | {"endpoint": each.endpoint or f"t.worker.{each.name}"} for each in models]
    command = [str(interpreter(version)), "-m", "tests.interop.model_worker", "peer", json.dumps(described)]
    with subprocess.Popen(command, env=environment(folder), cwd=ROOT, stdin=subprocess.PIPE) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("version", VERSIONS)
async def test_openais_client_asks_real_workers_of_text(tmp_path: Path, version: str) -> None:
    path = str(model_folder.write(tmp_path / "tiny"))  # which the real `register_model` needs for text, too
    models = (
        Model("chat", "chat_text", input="Text", kinds=["Chat"], path=path),
        Model("complete", "complete_text", input="Text", kinds=["Completions"], path=path),
        Model("embed", "embed_text", input="Text", kinds=["Embedding"], path=path),
    )
    with text_worker(tmp_path, version, *models):
        async with (
            gateway(tmp_path / "store") as (server, routers),
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        ):
            names = {each.name for each in models}
            await until(lambda: names <= routers.models().keys() and len(routers.endpoints()) == len(models))
            assert {each.id async for each in await client.models.list()} == names
            messages: Any = [{"role": "user", "content": "hi"}]
            answer = await client.chat.completions.create(model="chat", messages=messages)
            assert answer.choices[0].message.content == "you said hi "
            stream = await client.chat.completions.create(model="chat", messages=messages, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert parts == ["you ", "said ", "hi ", ""]
            completion = await client.completions.create(model="complete", prompt="hi")
            assert completion.choices[0].text == "after hi"
            embedded = await client.embeddings.create(model="embed", input=["a", "bc"])
            assert [each.embedding for each in embedded.data] == [[0.5, 1.0], [0.5, 2.0]]
            response = await client.responses.create(model="chat", input="hi")
            assert response.output_text == "you said hi "


@pytest.mark.frontend
async def test_answers_are_those_of_the_real_frontend(tmp_path: Path) -> None:
    """The same worker, asked through both: the same JSON, but for ids and times that each makes itself.

    And but for `role`, of which the real frontend passes on the first only.
    """
    model = Model("m", "chat_text", endpoint="t.worker.m", input="Text", kinds=["Chat", "Completions"])
    with frontend("1.6.1", tmp_path) as front, model_worker("native", front, model):
        async with gateway(tmp_path / "store") as (server, routers), aiohttp.ClientSession() as client:
            await until(lambda: routers.find(EndpointId("t", "worker", "m")))
            for path, body in (
                (ROUTES["Chat"], chat_request("m", "hi there")),
                (ROUTES["Chat"], chat_request("m", "hi there", stream=True)),
                ("/v1/responses", {"model": "m", "input": "hi there", "instructions": "be nice"}),
                ("/v1/responses", {"model": "m", "input": "hi there", "stream": True}),
            ):
                theirs = await asyncio.to_thread(front.post, path, body)
                async with client.post(f"{server.url}{path}", json=body) as response:
                    ours = await response.text()
                assert response.status == theirs.status == 200
                assert _neutral(ours) == _neutral(theirs.text)


def _neutral(text: str) -> Any:
    """An answer, or its events, without what differs in each run, and without what is null."""
    if not text.startswith(("data:", "event:")):
        return _without(json.loads(text))
    events = [dict(line.split(": ", 1) for line in event.splitlines()) for event in text.split("\n\n") if event]
    return [
        {**event, "data": event["data"] if event["data"] == "[DONE]" else _without(json.loads(event["data"]))}
        for event in events
    ]


def _without(value: Any) -> Any:
    if isinstance(value, list):
        return [_without(each) for each in value]
    if not isinstance(value, dict):
        return value
    made = ("id", "item_id", "created_at", "completed_at", "presence_penalty", "frequency_penalty", "role")
    return {name: _without(each) for name, each in value.items() if each is not None and name not in made}
