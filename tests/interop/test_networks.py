"""Our ends and those of real Dynamo 1.6.1, on two machines without a default route that listen on a wildcard."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.interop.peers import LIMIT, PeerClient, interpreter, peer_worker
from tests.namespaces import environment, machines
from tests.programs import started

VERSION = "1.6.1"
IPV4, IPV6 = ("10.9.0.1/24", "10.9.0.2/24"), ("fd09::1/64", "fd09::2/64")
NETWORKS = pytest.mark.parametrize(
    ("host", "addresses"),
    [("::", IPV4), ("::", IPV6), ("", IPV4), ("", IPV6)],
    ids=["any-v4", "any-v6", "unset-v4", "unset-v6"],
)


def settings(folder: Path, host: str) -> dict[str, str]:
    return {
        "DYN_FILE_KV": str(folder),
        "DYN_TCP_RPC_HOST": host,
        "DYN_TCP_RESPONSE_STREAM_HOST": host,
        "DYNAMO_FAST_LEAVE_DELAY": "0",
    }


@NETWORKS
async def test_a_real_caller_and_our_worker(host: str, addresses: tuple[str, str], tmp_path: Path) -> None:
    interpreter(VERSION)
    (tmp_path / "engine.py").write_text("async def generate(request):\n    yield request\n")
    variables = settings(tmp_path / "kv", host)
    command = [sys.executable, "-m", "dynamo_fast", "serve", "engine:generate", "--endpoint", "a.b.c"]
    with machines(2) as (one, two):
        one.link(two, *addresses)
        with started(one.command(*command), environment(variables), tmp_path) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline().startswith("serving a.b.c at ")
            client = await PeerClient.start(VERSION, prefix=two.command(), **variables, folder=tmp_path / "kv")
            try:
                await client.wait_for("a.b.c", 1)
                assert await client.call("a.b.c", {"x": 1}) == ([{"x": 1}], None)
            finally:
                await client.close()


@NETWORKS
async def test_our_caller_and_a_real_worker(host: str, addresses: tuple[str, str], tmp_path: Path) -> None:
    variables = settings(tmp_path, host)
    request = json.dumps({"mode": "count", "n": 2})
    command = [sys.executable, "-m", "dynamo_fast", "call", "peer.worker.generate", request]
    with machines(2) as (one, two):
        one.link(two, *addresses)
        with peer_worker(VERSION, tmp_path, prefix=one.command(), **variables):
            process = await asyncio.create_subprocess_exec(
                *two.command(*command),
                env=environment(variables),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            output, errors = await asyncio.wait_for(process.communicate(), LIMIT)
            assert (process.returncode, output, errors) == (0, b'{"number":0}\n{"number":1}\n', b"")
