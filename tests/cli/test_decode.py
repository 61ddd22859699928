"""`dynamo-fast decode`, also on captures of real Dynamos. Most of it runs in this process, which starts faster."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dynamo_fast.cli.main import main
from tests.cli.test_main import run, settings
from tests.inspect.test_capture import CAPTURES
from tests.inspect.test_conversation import HANDSHAKE, ITEM, PROLOGUE, SENTINEL, request_frame


class Done(NamedTuple):
    """What a run of the command wrote, and its status."""

    returncode: int
    stdout: str
    stderr: str


def decode(folder: Path, *arguments: str, given: str = "") -> Done:
    """Run the command in `folder`, with `given` as its standard input."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        patch.setattr(sys, "stdout", output)
        patch.setattr(sys, "stderr", errors)
        status = main(["decode", *arguments])
    return Done(status, *(stream.buffer.getvalue().decode() for stream in (output, errors)))


def json_lines(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in decode(folder, "--json", *arguments).stdout.splitlines()]


# Captures of real Dynamos ----------------------------------------------------------------------------------------------

CONVERSATION_161 = """\
#2 < handshake @0 99 B (header 75) header={"subject":"de9edd75-f821-480f-bf7c-26dff1c9b831","stream_type":"response"}
#2 < prologue  @99 38 B (header 14) header={"error":null}
#2 < item      @137 69 B (data 45) data={"token":0,"text":"the"}
#2 < item      @206 71 B (data 47) data={"token":1,"text":"quick"}
#2 < item      @277 71 B (data 47) data={"token":2,"text":"brown"}
#2 < item      @348 69 B (data 45) data={"token":3,"text":"fox"}
#2 < event     @417 94 B (data 70) data={"tokens":4} event="usage" comment=["all of them"]
#2 < final     @511 41 B (data 17)
#2 < sentinel  @552 34 B (header 10)
"""


def test_a_conversation_of_dynamo_161(tmp_path: Path) -> None:
    done = decode(tmp_path, str(CAPTURES / "dynamo-1.6.1.pcap"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "#1 127.0.0.1:46444 dials 127.0.0.1:40665"
    timeless = [line.partition(" ")[2] for line in lines if line[:1].isdigit()]
    assert "\n".join(line for line in timeless if line.startswith("#2 ")) + "\n" == CONVERSATION_161
    assert timeless[0] == (
        "#1 > request   @0 604 B (path 38 + headers 158 + payload 400 + control 348 + body 28) "
        'path="5c23c6573b712190/demo/backend/generate" id="d3c41905-7b79-46d1-b473-b02b5e126c00" '
        'answer_to="127.0.0.1:41335" subject="de9edd75-f821-480f-bf7c-26dff1c9b831" payload_codec="msgpack" '
        'body={"prompt":"the quick brown fox"}'
    )
    assert timeless[1] == "#1 < ack       @0 4 B"
    assert lines[-2:] == ["#4 closed (FIN)", "#1 closed (FIN)"]


@pytest.mark.parametrize("name", ["dynamo-1.6.1.pcap", "dynamo-1.3.1.pcapng"])
def test_both_releases_say_the_same(tmp_path: Path, name: str) -> None:
    lines = json_lines(tmp_path, str(CAPTURES / name))
    frames = [line for line in lines if line["kind"] not in ("connection", "note")]
    connections = [line for line in lines if line["kind"] == "connection"]
    assert [line["connection"] for line in connections] == [1, 2, 3, 4]
    assert {line["listener"] for line in connections[1:]} == {
        connections[1]["listener"]
    }  # the router's, dialled thrice
    stream = ["handshake", "prologue", "item"]
    assert [line["kind"] for line in frames] == [
        *["request", "ack", *stream, "item", "item", "item", "event", "final", "sentinel"],
        *["request", "ack", *stream, "error", "final", "sentinel"],
        *["request", "ack", *stream, "item", "item", "stop"],
    ]
    assert [line["connection"] for line in frames if line["kind"] == "request"] == [1, 1, 1]
    assert [line["content"]["control"]["metadata"] for line in frames if "metadata" in str(line)] == [{"tenant": "a"}]
    assert [line["content"]["control"]["id"] for line in frames if line["kind"] == "request"][2] == "café-1"
    assert {line["direction"] for line in frames if line["kind"] in ("request", "stop")} == {">"}
    assert frames == sorted(frames, key=lambda line: float(line["time"]))
    assert [line["text"] for line in lines if line["kind"] == "note"][-1] == "closed (FIN)"


def test_only_the_connections_of_a_port(tmp_path: Path) -> None:
    lines = run(tmp_path, "decode", "--port", "40665", str(CAPTURES / "dynamo-1.6.1.pcap")).stdout
    assert "#1 > request" in lines
    assert "#2" not in lines


def test_a_capture_that_is_still_being_written(tmp_path: Path) -> None:
    """As in `tcpdump -U -w - tcp | dynamo-fast decode -`."""
    data = (CAPTURES / "dynamo-1.6.1.pcap").read_bytes()
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "dynamo_fast", "decode", "-"],
        env=settings(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(data[:2000])
        assert process.stdout.readline() == b"#1 127.0.0.1:46444 dials 127.0.0.1:40665\n"
        process.stdin.write(data[2000:])
        process.stdin.close()
        assert process.stdout.read().endswith(b"#1 closed (FIN)\n")
        assert process.wait(20) == 0


@pytest.mark.parametrize("name", ["dynamo-1.6.1.pcap", "dynamo-1.3.1.pcapng"])
@pytest.mark.parametrize("size", [3000, 3011, 3017])
def test_a_capture_that_ends_in_the_middle(tmp_path: Path, name: str, size: int) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes((CAPTURES / name).read_bytes()[:size])
    done = decode(tmp_path, str(cut))
    assert done.stderr == ""
    assert "#1 > request " in done.stdout
    assert done.stdout.splitlines()[-1].endswith("closed (the end of the capture)")
    assert done.returncode == 1


# Bytes -----------------------------------------------------------------------------------------------------------------


def test_a_file_of_frames(tmp_path: Path) -> None:
    (tmp_path / "stream.bin").write_bytes(HANDSHAKE + PROLOGUE + ITEM + SENTINEL)
    done = decode(tmp_path, "stream.bin")
    assert done.stdout == (
        '< handshake @0 64 B (header 40) header={"subject":"s","stream_type":"response"}\n'
        '< prologue  @64 38 B (header 14) header={"error":null}\n'
        "< item      @102 66 B (data 42) data=1\n"
        "< sentinel  @168 34 B (header 10)\n"
    )
    assert done.returncode == 0


@pytest.mark.parametrize("text", ["00000000", "0x00000000", "00 00\n00 00\n", "00:00:00:00"])
def test_hex(tmp_path: Path, text: str) -> None:
    assert decode(tmp_path, text).stdout == "< ack       @0 4 B\n"
    assert decode(tmp_path, "-", given=text).stdout == "< ack       @0 4 B\n"
    (tmp_path / "dump.txt").write_text(text)
    assert decode(tmp_path, "dump.txt").stdout == "< ack       @0 4 B\n"


def test_damage(tmp_path: Path) -> None:
    (tmp_path / "bad.bin").write_bytes(ITEM + b"\xff" * 40)
    done = decode(tmp_path, "bad.bin")
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert first.startswith("< item ")
    assert second.startswith(
        f"< damage    @66 40 B begins=h'{'ff' * 24}' ! byte 66: two-part message at byte 66 is too l"
    )
    (line,) = json_lines(tmp_path, "bad.bin")[1:]
    assert line["content"] == {"begins": {"hex": "ff" * 24}}
    assert line["problems"][0].startswith("byte 66: ")


def test_the_plane_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "empty.bin").write_bytes(bytes(24))
    assert decode(tmp_path, "empty.bin").stdout.count("ack") == 6
    assert decode(tmp_path, "--plane", "response", "empty.bin").stdout == "< empty     @0 24 B\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no/such/file"], "dynamo-fast decode: error: no/such/file: No such file or directory"),
        (["--format", "pcap", "00"], "dynamo-fast decode: error: this is no pcap or pcapng file"),
        (["--format", "hex", "000"], "dynamo-fast decode: error: this is no hex"),
        (["--format", "hex", __file__], "dynamo-fast decode: error: this is no hex"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, arguments: list[str], text: str) -> None:
    done = decode(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(text)
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    (tmp_path / "many.bin").write_bytes(ITEM * 20_000)
    command = f"{sys.executable} -m dynamo_fast decode many.bin | head -1"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env=settings(tmp_path),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout == "< item      @0 66 B (data 42) data=1\n"
    assert done.stderr == ""


# The look --------------------------------------------------------------------------------------------------------------


def test_colours_are_for_terminals_or_on_demand(tmp_path: Path) -> None:
    assert "\x1b" not in decode(tmp_path, "00000000").stdout
    assert decode(tmp_path, "--colour", "always", "00000000").stdout.startswith("\x1b[32m<\x1b[0m \x1b[1mack")
    assert "\x1b" not in decode(tmp_path, "--colour", "always", "--json", "00000000").stdout


def test_nothing_is_elided_on_demand(tmp_path: Path) -> None:
    (tmp_path / "request.bin").write_bytes(request_frame(body=json.dumps(["x" * 1000, *range(100)]).encode()))
    assert "more" in decode(tmp_path, "request.bin").stdout
    full = decode(tmp_path, "--full", "request.bin").stdout
    assert "more" not in full
    assert "x" * 1000 in full
    assert "95,96,97,98,99]" in full
    assert "headers={}" in full


def test_json_is_json(tmp_path: Path) -> None:
    body = bytes.fromhex("85 01c40161 c0cb7ff8000000000000 c2cfffffffffffffffff 910102 c4016203")
    (tmp_path / "odd.bin").write_bytes(request_frame({"payload_codec": "msgpack"}, body))
    (line,) = json_lines(tmp_path, "odd.bin")
    assert line["content"]["body"] == {"1": {"hex": "61"}, "null": None, "false": 2**64 - 1, "[1]": 2, "h'62'": 3}
