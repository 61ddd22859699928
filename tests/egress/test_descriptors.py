"""The response port when the process has no descriptors left."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.egress.raw_worker import FINAL, OK_PROLOGUE, SENTINEL, two_part
from tests.loops import LOOPS

ROUTER = """
import asyncio, json, logging, os, resource, sys
from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.context import Context
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.observability.metrics import REQUEST_PLANE
if sys.argv[1] == "uvloop":
    from uvloop import run
else:
    from asyncio import run

logging.basicConfig(format="%(message)s", stream=sys.stdout)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))

async def main():
    config = ResponseServerConfig(host="127.0.0.1", max_streams=200, handshake_timeout=60)
    server = await TcpStreamServer.create(config)
    receivers = [server.register(Context()) for _ in range(100)]
    files = [open(os.devnull) for _ in range(120)]  # an engine takes what was promised to the calls
    print(json.dumps([server.address, [each.subject for each in receivers]]), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    print(sum(len(each.frames) for each in receivers), REQUEST_PLANE.tcp_accept_backoffs > 0, flush=True)

run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of open files")
@pytest.mark.parametrize("loop", LOOPS)
def test_more_workers_dial_than_there_are_descriptors(loop: str) -> None:
    pipe, root = subprocess.PIPE, Path(__file__).parents[2]
    command = [sys.executable, "-c", ROUTER, loop]
    with (
        contextlib.ExitStack() as stack,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=root) as router,
    ):
        stack.callback(router.kill)
        assert router.stdout is not None
        assert router.stdin is not None
        address, subjects = json.loads(router.stdout.readline())
        host, _, port = address.rpartition(":")
        workers = {}
        for subject in subjects:
            worker = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            handshake = json.dumps({"subject": subject, "stream_type": "response"}).encode()
            worker.sendall(two_part(handshake) + two_part(OK_PROLOGUE))
            workers[worker.fileno()] = worker
        assert "cannot accept connections" in router.stdout.readline()
        for worker in workers.values():
            worker.sendall(two_part(data=FINAL) + two_part(SENTINEL))
        while workers:  # each is closed with an end of file: a reset would be raised here
            readable, _, _ = select.select(list(workers), [], [], 20)
            assert readable, f"{len(workers)} workers were not served"
            for number in readable:
                assert workers.pop(number).recv(1) == b""
        router.stdin.write("\n")
        router.stdin.flush()
        assert router.stdout.read() == "100 True\n"  # it was said once, and every answer has come
