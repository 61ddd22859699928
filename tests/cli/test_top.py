"""`dynamo-fast top`, before a gateway and before discovery alone."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from rich.console import Console

from dynamo_fast import FileDiscovery, codec
from dynamo_fast.cli import top_screen
from dynamo_fast.cli.main import main
from dynamo_fast.gateway.fleet import Change, InstanceView, ModelView
from dynamo_fast.gateway.state import EndpointView, Failure, Sample, Snapshot
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance, TransportType
from tests.gateway.conftest import Stage, staged

HOSTILE = "a\nforged\r\x1b[2J\x07\x9b31m\u2028\u202etxet\x00\x7f[red]"
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path, show_errors=True) as stage:
        yield stage


async def top(*arguments: str) -> int:
    """The command, on a loop of its own."""
    return await asyncio.to_thread(main, ["top", *arguments])


async def program(*arguments: str, **options: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dynamo_fast", "top", *arguments),
        env={**os.environ, "DYNAMO_FAST_BACKEND": codec.BACKEND, "TERM": "xterm-256color"},
        **options,
    )


# A gateway --------------------------------------------------------------------------------------------------------------


async def test_what_a_gateway_does_is_shown(stage: Stage, capsys: Output) -> None:
    for body in ({"items": [1, 2, 3]}, {"error": "RuntimeError"}):
        async with stage.post(body) as answer:
            await answer.read()
    shown = ""
    while "on purpose" not in shown:  # a second later at the latest
        assert await top(stage.server.url, "--once") == 0
        shown = capsys.readouterr().out
    (row,) = (line.split() for line in shown.splitlines() if line.startswith("a.b.c"))
    assert row == ["a.b.c", "0", "0", "2", "3", "1", "1"]
    assert "500   a.b.c   RemoteError: RuntimeError: on purpose" in shown
    assert "● ready" in shown
    assert "first item p50" in shown


async def test_a_snapshot_a_line_until_the_gateway_ends(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        process = await program(
            stage.server.url, "--json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        first, second = [json.loads(await process.stdout.readline()) for _ in range(2)]
        assert [each["name"] for each in first["endpoints"]] == ["a.b.c"]
        assert len(second["samples"]) == 1
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode() == f"dynamo-fast top: error: the gateway at {stage.server.url} has ended\n"


async def test_the_screen_is_left_as_it_was(stage: Stage) -> None:
    terminal, theirs = pty.openpty()
    process = await program(stage.server.url, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.set_blocking(terminal, False)
    loop, seen, news = asyncio.get_running_loop(), bytearray(), asyncio.Event()

    def read() -> None:
        try:
            seen.extend(os.read(terminal, 65536))
        except OSError:  # the program has ended
            loop.remove_reader(terminal)
        news.set()

    loop.add_reader(terminal, read)
    try:
        while b"a.b.c" not in seen:
            news.clear()
            await asyncio.wait_for(news.wait(), 20)
        assert b"\x1b[?1049h" in seen, "it has a screen of its own"
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 20) == 130
        while b"\x1b[?1049l" not in seen:
            news.clear()
            await asyncio.wait_for(news.wait(), 20)
    finally:
        loop.remove_reader(terminal)
        os.close(terminal)


async def test_the_token_is_that_of_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    async with staged(tmp_path, token="secret") as stage:
        assert await top(stage.server.url, "--once", "--json") == 2
        assert "asks for a token: set DYNAMO_FAST_GATEWAY_TOKEN" in capsys.readouterr().err
        monkeypatch.setenv("DYNAMO_FAST_GATEWAY_TOKEN", "secret")
        assert await top(stage.server.url, "--once", "--json") == 0
        assert json.loads(capsys.readouterr().out)["endpoints"]


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_what_is_no_gateway(status: int, capsys: Output) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text='data: {"samples": 1}\n\n', status=status)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application)
    try:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        for options in ([], ["--once"]):
            assert await top(url, "--json", *options) == (1 if status == 500 else 2)
            expected = {
                200: "is not the state of a gateway of this version",
                404: "it is no gateway",
                500: "the status 500",
            }
            assert expected[status] in capsys.readouterr().err
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [("127.0.0.1:8080", 2, "expected the URL of a gateway"), ("http://127.0.0.1:1", 1, "error: no gateway at")],
)
def test_where_no_gateway_is(url: str, status: int, said: str, capsys: Output) -> None:
    assert main(["top", url, "--json"]) == status
    assert said in capsys.readouterr().err


# Discovery --------------------------------------------------------------------------------------------------------------


async def test_discovery_alone(stage: Stage, capsys: Output) -> None:
    assert await top("--once") == 0
    shown = capsys.readouterr().out
    assert "○ listed" in shown
    assert "items/s" not in shown
    assert await top("--once", "--json") == 0
    (instance,) = json.loads(capsys.readouterr().out)["instances"]
    assert instance["endpoint"] == "a.b.c"


async def test_discovery_is_followed(tmp_path: Path) -> None:
    process = await program("--json", stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert json.loads(await process.stdout.readline())["instances"] == []
    discovery = FileDiscovery(tmp_path)
    await discovery.register(Instance(EndpointId("a", "b", "c"), 7, TransportType("tcp", "127.0.0.1:1/7/c")))
    while not (found := json.loads(await process.stdout.readline()))["instances"]:
        pass
    assert (found["changes"][0]["what"], found["changes"][0]["name"]) == ("joined", "7")
    await discovery.close()
    while (found := json.loads(await process.stdout.readline()))["instances"]:
        pass
    assert found["changes"][0]["what"] == "left"
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 20) == 130


# What is drawn ------------------------------------------------------------------------------------------------------------


def hostile_snapshot() -> Snapshot:
    return Snapshot(
        version=HOSTILE,
        started=0.0,
        now=5.0,
        processes=2,
        requests=1,
        items=1,
        errors=1,
        in_flight=1,
        endpoints=[EndpointView(f"{HOSTILE}{number}") for number in range(30)],
        instances=[InstanceView(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 1.0)],
        instances_total=1000,
        models=[ModelView(HOSTILE, [HOSTILE], HOSTILE, ["Chat"], "Text", 1)],
        failures=[Failure(500, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, 1.0)],
        changes=[Change(1.0, "left", "model", HOSTILE, HOSTILE)],
        samples=[Sample(1.0, 1, 2.0, 3.0, 4.0)],
    )


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 24), (120, 50), (300, None)])
def test_no_text_drives_the_terminal(width: int, height: int | None) -> None:
    console = Console(force_terminal=True, width=width, color_system=None)
    with console.capture() as captured:
        console.print(top_screen.Screen(HOSTILE).draw(hostile_snapshot(), width, height))
    lines = captured.get().split("\n")
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("forged") for line in lines)
    assert all(len(line) <= width for line in lines)
    if width == 300:
        assert "[red]" in captured.get()
        assert "... and 18 more" in captured.get()
        assert "... and 988 more" in captured.get()


async def test_json_is_one_harmless_line(tmp_path: Path, capsys: Output) -> None:
    discovery = FileDiscovery(tmp_path)
    await discovery.register(Instance(EndpointId(HOSTILE, "b", "c"), 1, TransportType("tcp", "127.0.0.1:1/1/c")))
    assert await top("--once", "--json") == 0
    (line,) = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert line.isprintable()
    assert json.loads(line)["endpoints"][0]["name"] == f"{HOSTILE}.b.c"
    await discovery.close()


def test_the_rates_of_endpoints_are_those_since_the_last_snapshot() -> None:
    def snapshot(now: float, items: int) -> Snapshot:
        return msgspec.structs.replace(hostile_snapshot(), now=now, endpoints=[EndpointView("a.b.c", items=items)])

    screen = top_screen.Screen("http://x")
    screen.draw(snapshot(1.0, 1000), 100)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(screen.draw(snapshot(3.0, 1500), 100))
    (row,) = (line.split() for line in captured.get().splitlines() if line.startswith("a.b.c"))
    assert row[1] == "250"


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([], 3, "   "),
        ([0.0, 0.0], 3, " ▁▁"),
        ([0.0, 1.0, None, 8.0], 4, "▁▂ █"),
        ([9.0, 4.0, 2.0], 2, "█▅"),
    ],
)
def test_a_sparkline(values: list[float | None], width: int, drawn: str) -> None:
    assert top_screen.sparkline(values, width) == drawn


def test_numbers_have_units() -> None:
    rates = [None, 0, 0.25, 12.34, 9999, 12_345, 2.5e6, 3e9]
    assert [top_screen.rate(each) for each in rates] == ["-", "0", "0.2", "12.3", "9,999", "12.3 k", "2.5 M", "3.0 G"]
    times = [None, 2.5e-5, 0.0123, 0.9999, 1.5, 2000]
    assert [top_screen.seconds(each) for each in times] == ["-", "25 us", "12.3 ms", "1,000 ms", "1.5 s", "2,000 s"]
