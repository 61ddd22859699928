"""Real Dynamo, in the environments that `make peers` makes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

VERSIONS = ("1.3.1", "1.6.1")
ROOT = Path(__file__).parents[2]
_HERE = Path(__file__).parent
LIMIT = 30.0
"""Seconds after which a test that waits for a peer fails."""


def interpreter(version: str) -> Path:
    """The Python of a peer; skips the test, saying why, if there is none."""
    peer = ROOT / ".peers" / version
    if not list(peer.glob("lib/python*/site-packages/ai_dynamo_runtime-*")):  # an environment that was left empty, too
        pytest.skip(f"no real Dynamo {version}: `make peers` makes .peers/{version}, which needs the package index")
    return peer / "bin" / "python"


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """The environment of a peer that stays on this machine, and finds others through files in `folder`.

    `settings` come on top: `PEER_DISCOVERY="etcd"` or `PEER_PLANE="nats"`, for one.
    """
    return {
        **os.environ,
        "DYN_FILE_KV": str(folder),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "lo",  # 1.3.1 takes the name of an interface only
        "DYN_EVENT_PLANE": "zmq",
        "DYN_LOG": "off",
        "PYTHONPATH": "",
        **settings,
    }


@dataclass
class Peer:
    """A process of a peer that serves, and where it can be found."""

    version: str
    process: subprocess.Popen[str]
    folder: Path


@contextmanager
def peer_worker(version: str, folder: Path, *, prefix: Sequence[str] = (), **settings: str) -> Iterator[Peer]:
    """`peer_worker.py`, as a process that lives as long as the context. `prefix` is a command that runs it."""
    log = folder / f"worker-{version}.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*prefix, str(interpreter(version)), str(_HERE / "peer_worker.py")],
            env=environment(folder, **settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        try:
            yield Peer(version, process, folder)
        finally:
            process.kill()
            process.wait()
            sys.stderr.write(log.read_text())  # pytest shows it with a test that fails


class PeerClient:
    """`peer_client.py`, as a process that makes calls."""

    def __init__(self, version: str, process: asyncio.subprocess.Process) -> None:
        self.version = version
        self._process = process
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._count = 0
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, version: str, folder: Path, *, prefix: Sequence[str] = (), **settings: str) -> PeerClient:
        process = await asyncio.create_subprocess_exec(
            *prefix,
            str(interpreter(version)),
            str(_HERE / "peer_client.py"),
            env=environment(folder, **settings),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=1 << 26,
        )
        client = cls(version, process)
        ready = client._expect(0)
        client._reading = asyncio.ensure_future(client._read())
        await asyncio.wait_for(ready, LIMIT)
        return client

    async def call(self, endpoint: str, request: Any, **options: Any) -> tuple[list[Any], list[str] | None]:
        """The items of the answer, and the class and text of the error at its end, if there was one."""
        answer = await self._do({"endpoint": endpoint, "request": request, **options})
        return answer["items"], answer["error"]

    async def wait_for(self, endpoint: str, count: int) -> list[int]:
        """Wait until the client sees that many instances; returns their ids."""
        ids: list[int] = (await self._do({"endpoint": endpoint, "wait_for": count}))["items"]
        return ids

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._process._transport.close()  # type: ignore[attr-defined]  # or its pipes outlive the loop

    async def _do(self, command: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        answer = self._expect(self._count)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": self._count, **command}).encode() + b"\n")
        return await asyncio.wait_for(answer, LIMIT)

    def _expect(self, number: int) -> asyncio.Future[dict[str, Any]]:
        self._answers[number] = asyncio.get_running_loop().create_future()
        return self._answers[number]

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.startswith(b"{"):  # 1.6.1 logs to standard output, too
                answer = json.loads(line)
                self._answers.pop(answer["id"]).set_result(answer)
