"""A router and a worker in each process of uvicorn and of gunicorn, which forks them after everything was imported."""

from __future__ import annotations

import json
import signal
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.namespaces import environment
from tests.programs import started
from tests.waiting import until_in_thread

LIMIT = 20.0
APP = """
import json, os
import dynamo_fast.runtime
from dynamo_fast import AddressedPushRouter, FileDiscovery, PushRouter, Worker

class Server:
    async def start(self):
        self.worker = await Worker.start(FileDiscovery())
        await self.worker.serve(self.answer, "demo.backend.generate")
        self.router = await AddressedPushRouter.create()
        self.push = await PushRouter.create("demo.backend.generate", FileDiscovery(), self.router)

    async def stop(self):
        self.push.close()
        await self.router.close()
        await self.worker.close()

    async def answer(self, request):
        yield os.getpid()

    async def ask(self):
        async with await self.push.generate({}) as stream:
            return [item.data() async for item in stream]

server = Server()

async def app(scope, receive, send):
    if scope["type"] == "http":
        body = json.dumps([os.getpid(), *await server.ask()]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
        return
    for step, do in (("startup", server.start), ("shutdown", server.stop)):
        await receive()
        await do()
        await send({"type": f"lifespan.{step}.complete"})
"""
SERVERS = {
    "uvicorn": ["uvicorn", "server:app", "--workers", "2", "--host", "127.0.0.1", "--port", "{}"],
    "gunicorn": ["gunicorn", "server:app", "--workers=2", "--preload", "--worker-class=asgi", "--bind=127.0.0.1:{}"],
}


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs a fork")
@pytest.mark.parametrize("name", SERVERS)
def test_each_process_of_a_server_is_a_router_and_a_worker(name: str, tmp_path: Path, unused_tcp_port: int) -> None:
    (tmp_path / "server.py").write_text(APP, encoding="utf-8")
    settings = {
        "DYN_FILE_KV": str(tmp_path / "kv"),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "DYNAMO_FAST_LEAVE_DELAY": "0",
    }
    command = [sys.executable, "-m", *(each.format(unused_tcp_port) for each in SERVERS[name])]
    pairs: set[tuple[int, int]] = set()

    def every_process_has_called_every_other() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{unused_tcp_port}/", timeout=LIMIT) as answer:
                caller, worker = json.load(answer)
        except OSError:
            return False
        pairs.add((caller, worker))
        return len(pairs) == 4

    with started(command, environment(settings), tmp_path) as process:
        until_in_thread(every_process_has_called_every_other, 2 * LIMIT, 0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
    assert list((tmp_path / "kv" / "v1" / "instances").iterdir()) == []
