"""Nothing that a command prints can drive the terminal or forge a line, whatever text it is given."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from dynamo_fast.cli import instances
from dynamo_fast.cli.main import main
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.inspect import Failed, Formatter, Opened, frames
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance, TransportType
from dynamo_fast.wire.payload import PayloadCodec
from tests.egress.raw_worker import FINAL, OK_PROLOGUE, SENTINEL, two_part

HOSTILE = "a\nforged\r\x1b[2J\x07\x9b31m\u2028\u202etxet\x00\x7f[red]"
Output = pytest.CaptureFixture[bytes]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")


def lines_of(written: bytes) -> list[str]:
    """The lines that were written, each of which must be harmless."""
    lines = written.decode().removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines), lines
    assert not any(line.startswith("forged") for line in lines)
    return lines


def record() -> Instance:
    return Instance(EndpointId(HOSTILE, "b", "c"), 1, TransportType("tcp", f"127.0.0.1:1/1/{HOSTILE}"))


async def register() -> None:
    """Leave a record behind, as a worker that was killed."""
    discovery = FileDiscovery()
    await discovery.register(record())
    (file,) = (path for path in discovery.root.rglob("*") if path.is_file())
    content = file.read_bytes()
    await discovery.close()
    file.write_bytes(content)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_instances(options: list[str], capsysbinary: Output) -> None:
    asyncio.run(register())
    assert main(["instances", *options]) == 0
    (line,) = lines_of(capsysbinary.readouterr().out)
    if options:
        assert json.loads(line)["namespace"] == HOSTILE
    else:
        assert line.startswith("a\\nforged\\r\\x1b[2J")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_describing_an_instance_that_cannot_be_reached(options: list[str], capsysbinary: Output) -> None:
    asyncio.run(register())
    assert main(["describe", f"{HOSTILE}.b.c", *options]) == 1
    lines = lines_of(capsysbinary.readouterr().out)
    if options:
        (instance,) = json.loads(lines[0])["instances"]
        assert (instance["reachable"], instance["instance"]) == (False, "1")
    else:
        assert "state      NOT REACHABLE (" in "\n".join(lines)


def test_a_demo_without_rich_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsysbinary: Output) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["demo"]) == 2
    (line,) = lines_of(capsysbinary.readouterr().err)
    assert line == ("dynamo-fast demo: error: the demo shows its requests with rich: pip install 'dynamo-fast[cli]'")


def test_the_table_of_instances_shows_texts_as_they_are() -> None:
    from rich.console import Console

    console = Console(force_terminal=True, width=300, color_system=None)
    with console.capture() as captured:
        console.print(instances._table([record()]))
    assert all(line.isprintable() for line in captured.get().split("\n"))
    assert "[red]" in captured.get()


def test_an_endpoint_without_instances(capsysbinary: Output) -> None:
    assert main(["instances", f"{HOSTILE}.b.c"]) == 1
    assert len(lines_of(capsysbinary.readouterr().err)) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["call", HOSTILE, "{}"],
        ["call", f"127.0.0.1:1/{HOSTILE}", HOSTILE],
        ["call", "127.0.0.1:1/x", "{}", "--metadata", HOSTILE],
        ["serve", HOSTILE, "--endpoint", "a.b.c"],
        ["serve", f"{HOSTILE}:x", "--endpoint", "a.b.c"],
        ["decode", f"/{HOSTILE}"],
        ["tap", HOSTILE, "127.0.0.1:1"],
    ],
)
def test_what_goes_wrong(arguments: list[str], capsysbinary: Output) -> None:
    assert main([each.replace("\0", "") for each in arguments]) == 2  # no program is ever given NUL
    lines_of(capsysbinary.readouterr().err)


@pytest.mark.parametrize("arguments", [[HOSTILE], ["instances", "a.b.c", HOSTILE], ["call", "a", "{}", f"--{HOSTILE}"]])
def test_a_command_line_that_makes_no_sense(arguments: list[str], capsysbinary: Output) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    lines_of(capsysbinary.readouterr().err)


@contextmanager
def hostile_worker(refusal: str = "", *frames: bytes) -> Iterator[str]:
    """A worker of plain sockets that refuses each request, or answers it with `frames`; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, refusal.encode(), frames), daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}/1/a/b/c"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def _serve(listener: socket.socket, refusal: bytes, frames: tuple[bytes, ...]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the test is over
            return
        with connection, connection.makefile("rb") as requests:
            while head := _read(requests, 2):
                requests.read(struct.unpack(">H", head)[0])
                requests.read(struct.unpack(">H", requests.read(2))[0])
                payload = requests.read(struct.unpack(">I", requests.read(4))[0])
                connection.sendall(struct.pack(">I", len(refusal)) + refusal)
                if frames:
                    _answer(payload, frames)


def _answer(payload: bytes, frames: tuple[bytes, ...]) -> None:
    (size,) = struct.unpack_from(">Q", payload)
    info: dict[str, Any] = json.loads(json.loads(payload[24 : 24 + size])["connection_info"]["info"])
    host, _, port = info["address"].rpartition(":")
    handshake = json.dumps({"subject": info["subject"], "stream_type": "response"}).encode()
    with socket.create_connection((host, int(port))) as answer:
        answer.sendall(two_part(handshake) + b"".join(frames) + two_part(SENTINEL))
        with answer.makefile("rb") as controls:
            while _read(controls, 1):
                pass


def _read(file: BinaryIO, size: int) -> bytes:
    """Empty for a reset, too: the router resets what it refuses."""
    try:
        return file.read(size)
    except ConnectionError:
        return b""


@pytest.mark.parametrize("options", [[], ["--repeat", "2"]])
@pytest.mark.parametrize("text", [HOSTILE, "x" * 1_000_000])
def test_a_refusal_of_a_worker(options: list[str], text: str, capsysbinary: Output) -> None:
    with hostile_worker(text) as address:
        assert main(["call", address, "{}", *options]) == 1
    written = capsysbinary.readouterr()
    assert len(written.out + written.err) < 10_000
    lines_of(written.out)
    lines_of(written.err)


@pytest.mark.parametrize(
    "frames",
    [
        (two_part(json.dumps({"error": HOSTILE}).encode()),),
        (
            two_part(OK_PROLOGUE),
            two_part(
                b"",
                PayloadCodec.JSON.encode({"data": {"event": "error", "comment": [HOSTILE]}, "complete_final": False}),
            ),
        ),
        (two_part(OK_PROLOGUE), two_part(b"", HOSTILE.encode())),
        (two_part(HOSTILE.encode()),),
    ],
)
def test_an_error_of_a_worker(frames: tuple[bytes, ...], capsysbinary: Output) -> None:
    with hostile_worker("", *frames) as address:
        assert main(["call", address, "{}"]) == 1
    assert len(lines_of(capsysbinary.readouterr().err)) == 1


@pytest.mark.parametrize("options", [[], ["--raw"]])
def test_the_items_of_a_worker_are_json_of_printable_characters(options: list[str], capsysbinary: Output) -> None:
    value = {HOSTILE: [HOSTILE, "日本語 ö 🙂", "\U000e0001"]}
    item = two_part(b"", PayloadCodec.JSON.encode({"data": {"data": value}, "complete_final": False}))
    with hostile_worker("", two_part(OK_PROLOGUE), item, two_part(b"", FINAL)) as address:
        assert main(["call", address, "{}", *options]) == 0
    (line,) = lines_of(capsysbinary.readouterr().out)
    assert json.loads(line) == ({"data": value} if options else value)
    assert "日本語 ö 🙂" in line


@pytest.mark.parametrize("data", [b"[" * 500 + b"]" * 500, b"1" * 40, b"-" + b"1" * 4000], ids=len)
def test_an_item_that_is_deep_or_large_is_printed(data: bytes, capsysbinary: Output) -> None:
    item = two_part(b"", b'{"data":{"data":' + data + b'},"complete_final":false}')
    with hostile_worker("", two_part(OK_PROLOGUE), item, two_part(b"", FINAL)) as address:
        assert main(["call", address, "{}"]) == 0
    (line,) = lines_of(capsysbinary.readouterr().out)
    assert data.startswith(b"[") or line == data.decode()


@pytest.mark.parametrize("formatter", [Formatter(), Formatter(full=True), Formatter(as_json=True)])
def test_frames(formatter: Formatter) -> None:
    text = json.dumps({"a": HOSTILE, HOSTILE: "\U000e0001"}, ensure_ascii=False).encode()
    data = two_part(text) + two_part(b"", text) + HOSTILE.encode() * 10
    for frame in frames(data):
        assert formatter.frame(frame, number=1, time=0.0).isprintable()
    assert formatter.note(HOSTILE).isprintable()
    assert formatter.note(HOSTILE, 1).isprintable()
    for event in (Opened(1, HOSTILE, HOSTILE, midway=True), Failed(HOSTILE), Failed(HOSTILE, 1)):
        assert all(line.isprintable() for line in formatter.event(event))
