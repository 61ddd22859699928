"""Draw the pictures of docs/page.md: `python -m scripts.page_pictures [SECONDS]`.

A gateway, five workers, and traffic of a minute, in this process; then Chromium and `dynamo-fast top` look at it.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from rich.console import Console

from dynamo_fast import AddressedPushRouter, Context, FileDiscovery, TcpStreamServer, Worker
from dynamo_fast.cli.top_screen import Screen
from dynamo_fast.config import GatewayConfig, ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.gateway import Routers, app
from dynamo_fast.gateway.server import Server
from dynamo_fast.gateway.state import Snapshot
from dynamo_fast.llm import ModelCard, ModelType
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance, TransportType
from tests.gateway.browser import Tab, find_chromium, open_browser

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
MODEL = "granite-4-tiny"
ANSWER = re.findall(
    r"\S+",
    "A request plane carries each request to one worker and streams the answer back, item by item. The router picks the "
    "worker, the worker dials back, and what it yields is on your screen a moment later.",
)


# The workers ----------------------------------------------------------------------------------------------------------


async def chat(request: Any, context: Context) -> AsyncIterator[Any]:
    """Stream the answer as chunks of a chat, at the pace of a small model."""
    await asyncio.sleep(random.lognormvariate(math.log(0.03), 0.5))
    if random.random() < request.get("failing", 0.0):
        raise RuntimeError("CUDA out of memory: tried to allocate 2.00 GiB")
    for word in ANSWER:
        if context.is_stopped():
            return
        yield {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": f"{word} "}}]}
        await asyncio.sleep(random.lognormvariate(math.log(0.02), 0.4))


async def embed(request: Any, context: Context) -> AsyncIterator[Any]:
    """One vector."""
    await asyncio.sleep(random.lognormvariate(math.log(0.008), 0.3))
    yield {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 0.125]}]}


async def search(request: Any, context: Context) -> AsyncIterator[Any]:
    """A few hits, one after the other."""
    for number in range(request.get("hits", 12)):
        await asyncio.sleep(0.04)
        yield {"hit": number + 1, "title": f"Chapter {number + 1}", "score": round(0.97 - number * 0.04, 2)}


async def start_worker(folder: Path, serves: dict[str, tuple[Any, ModelCard | None]]) -> Worker:
    """One process's worth."""
    worker = await Worker.start(FileDiscovery(folder), WorkerConfig(leave_delay=0), TcpServerConfig(host="127.0.0.1"))
    for endpoint, (handler, card) in serves.items():
        await worker.serve(handler, endpoint, model=card)
    return worker


# The traffic ------------------------------------------------------------------------------------------------------------


async def load(client: aiohttp.ClientSession) -> None:
    """Requests in waves, until it is cancelled."""
    async with asyncio.TaskGroup() as running:
        for turn in range(100_000):
            per_turn = 1.3 + 0.9 * math.sin(turn / 60)
            for _ in range(int(per_turn) + (random.random() < per_turn % 1)):
                body = {"model": MODEL, "messages": [], "stream": True, "failing": 0.006}
                running.create_task(post(client, "/v1/chat/completions", body))
            if random.random() < 0.5:
                running.create_task(post(client, "/v1/embeddings", {"model": "bge-small", "input": "x"}))
            await asyncio.sleep(0.1)


async def post(client: aiohttp.ClientSession, path: str, body: Any) -> None:
    """One request, whatever comes of it."""
    async with client.post(path, data=msgspec.json.encode(body)) as answer:
        await answer.read()


# The pictures -----------------------------------------------------------------------------------------------------------


async def draw_page(tab: Tab) -> None:
    """In light with a request, in dark with a chat, and on a phone."""
    await tab.until("document.querySelectorAll('#changes li').length && samples.length > 30")
    await tab.evaluate("$('endpoint').value = 'demo.tools.search', $('body').value = '{\"hits\": 30}', showCurl()")
    await tab.evaluate("$('send').click()")
    await tab.until("document.querySelectorAll('#items li').length > 15")
    (FIGURES / "page-light.png").write_bytes(await tab.picture())
    await tab.show_as(1440, 900, "dark")
    await tab.evaluate("choose($('tab-chat')), $('message').value = 'What is a request plane?', $('say').click()")
    await tab.until("document.querySelector('.facts')")
    (FIGURES / "page-dark.png").write_bytes(await tab.picture())
    await tab.show_as(390, 844, "light", 2)
    await tab.evaluate("new Promise(done => setTimeout(done, 1500))")  # the charts have the new width
    (FIGURES / "page-phone.png").write_bytes(await tab.picture(whole=False))


async def draw_top(client: aiohttp.ClientSession, url: str) -> None:
    """As `dynamo-fast top URL` draws it."""
    console = Console(record=True, width=120, force_terminal=True, file=sys.stderr)
    screen = Screen(url)
    async with client.get("/_state") as answer:
        first = msgspec.json.decode(await answer.read(), type=Snapshot)
    screen.draw(first, console.width)
    await asyncio.sleep(1.0)
    async with client.get("/_state") as answer:
        second = msgspec.json.decode(await answer.read(), type=Snapshot)
    console.print(screen.draw(msgspec.structs.replace(second, samples=second.samples[-1:]), console.width))
    svg = console.export_svg(title="dynamo-fast top", unique_id="top")
    text = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    await asyncio.to_thread((FIGURES / "top.svg").write_text, text, encoding="utf-8")


async def main(seconds: float) -> None:
    program = find_chromium()
    assert program is not None, "apt-get install chromium"
    text = ModelCard.text
    chats = text(MODEL, model_type=ModelType.Chat, aliases=["granite"])
    vectors = text("bge-small", model_type=ModelType.Embedding)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [
            *[await start_worker(folder, {"demo.llm.generate": (chat, chats)}) for _ in range(3)],
            await start_worker(folder, {"demo.embedder.embed": (embed, vectors)}),
            await start_worker(folder, {"demo.tools.search": (search, None)}),
        ]
        discovery = FileDiscovery(folder)
        answers = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
        router = await stack.enter_async_context(await AddressedPushRouter.create(response_server=answers))
        routers = await stack.enter_async_context(await Routers.open(discovery, router, retries=2))
        config = GatewayConfig(port=8080, show_errors=True)
        server = await Server.start(app(routers, config), config)
        client = await stack.enter_async_context(aiohttp.ClientSession(server.url))
        dead = Instance(
            EndpointId("demo", "llm", "generate"), 0xDEAD, TransportType("tcp", "127.0.0.1:1/dead/generate")
        )
        traffic = asyncio.ensure_future(load(client))
        await asyncio.sleep(seconds - 8)
        workers.append(await start_worker(folder, {"demo.llm.generate": (chat, chats)}))
        await discovery.register(dead)
        await asyncio.sleep(4)
        await workers.pop(0).close()
        async with open_browser(program) as browser, browser.tab(server.url) as tab:
            await asyncio.sleep(4)
            await draw_page(tab)
            assert tab.problems == [], tab.problems
        await draw_top(client, server.url)
        traffic.cancel()
        await asyncio.gather(traffic, return_exceptions=True)
        await server.close()
        for worker in workers:
            await worker.close()
        await discovery.close()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 75))
