"""The command `dynamo-fast`, run as a user would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_fast import __version__, codec
from tests.programs import started

LIMIT = 40.0


def settings(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DYNAMO_FAST_BACKEND": codec.BACKEND,  # else the Python one says on standard error that it was not chosen
        "DYN_FILE_KV": str(folder),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }


def run(folder: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dynamo_fast", *arguments]
    return subprocess.run(
        command,
        env=settings(folder),
        input=given,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        cwd=folder,
    )


def test_version_and_backend(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout == f"dynamo-fast {__version__} (codec backend: {codec.BACKEND})\n"


def test_without_a_command_it_shows_its_help(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: dynamo-fast")
    assert "    completion\n" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["unknown"], 2, "argument COMMAND: invalid choice: 'unknown'"),
        (["call"], 2, "the following arguments are required: TARGET (see dynamo-fast call --help)"),
        (["serve", "x:y"], 2, "--endpoint is missing"),
        (["call", "a.b", "{}"], 2, "'a.b' is no endpoint: expected NAMESPACE.COMPONENT.ENDPOINT, such as demo."),
        (["call", "a/b", "{}"], 2, "'a/b' is no endpoint"),
        (["call", "a..c", "{}"], 2, "'a..c' is no endpoint"),
        (["call", "localhost:1/x", "{}"], 2, "Invalid TCP address 'localhost:1/x'"),
        (["call", "127.0.0.1:1/x", "{"], 2, "the request is no JSON: Input data was truncated"),
        (["call", "127.0.0.1:1/x"], 2, "the request of standard input is no JSON: "),
        (["call", "127.0.0.1:1/x", "{}"], 1, "TCP connection to 127.0.0.1:1 failed"),
        (["call", "a.b.c", "{}", "--wait", "0.1"], 1, "no instance of a.b.c within 0.1 s (discovery: file, "),
        (["call", "a/b/c", "{}", "--wait", "0"], 1, "no instance of a/b/c within 0 s (discovery: file, "),
        (["call", "a.b.c", "{}", "--metadata", "x"], 2, "'x' is no metadata: expected KEY=VALUE"),
        (["call", "a.b.c", "{}", "--header", "=x"], 2, "'=x' is no header: expected KEY=VALUE"),
        (["call", "a.b.c", "{}", "--instance", "z"], 2, "argument --instance: 'z' is no instance id: expected hex"),
        (["call", "a.b.c", "{}", "--timeout", "0"], 2, "argument --timeout: '0' is not valid: expected a number of"),
        (
            ["bench", "a.b.c", "--rate", "0"],
            2,
            "argument --rate: '0' is not valid: expected a number of requests a second",
        ),
        (["describe", "a.b.c"], 1, "no instance of a.b.c (discovery: file, "),
        (["describe", "a.b"], 2, "'a.b' is no endpoint"),
        (["instances", "a.b"], 2, "'a.b' is no endpoint"),
        (["models"], 1, "no model (discovery: file, "),
        (["decode", "nowhere.bin"], 2, "nowhere.bin: No such file or directory"),
        (["decode", "/"], 2, "/: Is a directory"),
        (["conformance", "--", "no-such-command"], 2, "no-such-command: No such file or directory"),
        (["conformance", "--only", "x", "--", "true"], 2, "no case has a name like 'x'"),
        (["conformance", "--timeout", "x", "--", "true"], 2, "argument --timeout: 'x' is not valid: expected a number"),
        (["completion", "ksh"], 2, "argument shell: invalid choice: 'ksh'"),
        (["run"], 2, "no program to run"),
        (["serve", "nowhere", "--endpoint", "a.b.c"], 2, "'nowhere' is no handler: expected MODULE:HANDLER"),
        (["serve", "nowhere:x", "--endpoint", "a.b.c"], 2, "the handler 'nowhere:x' cannot be imported: No mod"),
        (["serve", "os:name", "--endpoint", "a.b.c"], 2, "the handler 'os:name' is a str, which cannot be called"),
        (
            ["serve", "os:fsencode", "--endpoint", "a.b.c"],
            2,
            "the handler _fscodec.<locals>.fsencode is a plain function: write",
        ),
        (["serve", "os:getcwd", "--endpoint", "a.b"], 2, "'a.b' is no endpoint"),
        *(
            ([*given, "x", "--y"], 2, f"unrecognized arguments: x --y (see dynamo-fast {given[0]} --help)")
            for given in (
                ["demo"],
                ["serve", "a:b"],
                ["gateway"],
                ["call", "a.b.c", "{}"],
                ["bench", "a.b.c", "{}"],
                ["instances", "a.b.c"],
                ["describe", "a.b.c"],
                ["models"],
                ["top", "http://127.0.0.1:1"],
                ["decode", "00"],
                ["tap", "127.0.0.1:0", "127.0.0.1:1"],
                ["completion", "bash"],
            )
        ),
        (["decode", "00", "--port", "x"], 2, "argument --port: 'x' is not valid: expected a whole number, 0 to 65535"),
        (["gateway", "--port", "70000"], 2, "argument --port: '70000' is not valid: expected a whole number, 0 to"),
        (["gateway", "--grace", "x"], 2, "argument --grace: 'x' is not valid: expected a number of seconds, 0 or"),
        (["gateway", "--grace", "-1"], 2, "argument --grace: '-1' is not valid: expected a number of seconds, 0 or"),
        (["decode", "--format", "hex", "000"], 2, "this is no hex: it has 3 digits, which is odd"),
        (
            ["call", "a.b.c", "{}", "--timeout", "0.1", "--wait", "3600"],
            1,
            "no instance of a.b.c within 0.1 s (discovery: file, ",
        ),
        (
            ["call", "a.b.c", "{}", "--timeout", "0.1", "--repeat", "3", "--wait", "3600"],
            1,
            "no instance of a.b.c within 0.1 s (discovery: file, ",
        ),
    ],
)
def test_what_goes_wrong_is_one_line(tmp_path: Path, arguments: list[str], status: int, text: str) -> None:
    done = run(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    command = "" if arguments[0] == "unknown" else f" {arguments[0]}"
    assert done.stderr.startswith(f"dynamo-fast{command}: error: {text}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("by_address", [True, False])
def test_a_call_gives_up_a_silent_worker(tmp_path: Path, by_address: bool) -> None:
    (tmp_path / "engine.py").write_text(
        "async def silent(request, context):\n    yield 1\n    await context.async_killed_or_stopped()\n"
    )
    command = [sys.executable, "-m", "dynamo_fast", "serve", "engine:silent", "--endpoint", "a.b.c"]
    with started(command, settings(tmp_path), tmp_path) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        done = run(tmp_path, "call", address if by_address else "a.b.c", "{}", "--inactivity-timeout", "0.2")
        assert (done.returncode, done.stdout) == (1, "1\n")
        assert done.stderr == "dynamo-fast call: error: backend response inactivity timeout\n"
        done = run(tmp_path, "call", address if by_address else "a/b/c", "{}", "--timeout", "0.5")
        assert (done.returncode, done.stdout) == (1, "1\n")
        assert done.stderr == "dynamo-fast call: error: the answer was not complete within 0.5 s (1 item came)\n"
        done = run(tmp_path, "call", address if by_address else "a/b/c", "{}", "--timeout", "0.5", "--repeat", "2")
        assert (done.returncode, done.stderr) == (1, "")
        assert done.stdout.startswith("2 requests, 2 failed, 2 items in ")
        assert done.stdout.endswith("\n2 x the answer was not complete within 0.5 s\n")
    refused = run(tmp_path, "call", "a.b.c", "{}", "--inactivity-timeout", "0")
    assert "'0' is not valid: expected a number of seconds above 0" in refused.stderr


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("raise LookupError('boom')", "LookupError: boom"),
        ("def f(:", "SyntaxError: "),
    ],
)
def test_a_handler_whose_module_raises_is_shown_where(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "engine.py").write_text(text)
    done = run(tmp_path, "serve", "engine:f", "--endpoint", "a.b.c")
    assert (done.returncode, done.stdout) == (2, "")
    *shown, last = done.stderr.splitlines()
    assert last.startswith(f"dynamo-fast serve: error: the handler 'engine:f' cannot be imported: {error}")
    assert any(f'  File "{tmp_path / "engine.py"}", line 1' in each for each in shown)
    assert not any("importlib" in each or "serve.py" in each for each in shown)


def test_a_port_that_is_taken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("DYN_TCP_RPC_PORT", str(port))
        for arguments in (
            ["serve", "dynamo_fast.cli.demo:handler", "--endpoint", "a.b.c"],
            ["gateway", "--port", str(port)],
            ["gateway", "--port", str(port), "--workers", "2"],
            ["tap", f"127.0.0.1:{port}", "127.0.0.1:1"],
        ):
            done = run(tmp_path, *arguments)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == (
                f"dynamo-fast {arguments[0]}: error: cannot listen on 127.0.0.1:{port}: Address already in use\n"
            )


def test_a_bad_setting_is_one_line(tmp_path: Path) -> None:
    environment = {**settings(tmp_path), "DYN_TCP_POOL_SIZE": "none"}
    command = [sys.executable, "-m", "dynamo_fast", "call", "127.0.0.1:1/x", "{}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("dynamo-fast call: error: DYN_TCP_POOL_SIZE='none' is not valid: expected ")


def test_serve_call_and_instances(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(
        "async def echo(request, context):\n"
        "    yield {'request': request, 'id': context.id(), 'metadata': context.metadata}\n"
        "    yield {'_dynamo_annotated': True, 'event': 'note', 'comment': ['c']}\n"
    )
    command = [sys.executable, "-m", "dynamo_fast", "serve", "engine:echo", "--endpoint", "a.b.c"]
    with started(command, settings(tmp_path), tmp_path) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line.split()[-1]
        assert line == f"serving a.b.c at {address}\n"
        (record,) = run(tmp_path, "instances", "--json").stdout.splitlines()
        instance = json.loads(record)
        assert instance["transport"] == {"tcp": address}
        listed = run(tmp_path, "instances", "a.b.c").stdout
        assert listed == f"a.b.c  {instance['instance_id']:x}  {address}  msgpack\n"
        answer = run(tmp_path, "call", "a.b.c", "-", "--id", "7", "--metadata", "k=v=w", given='"größe"')
        assert (answer.returncode, answer.stderr) == (0, "")
        first, second = map(json.loads, answer.stdout.splitlines())
        assert first == {"request": "größe", "id": "7", "metadata": {"k": "v=w"}}
        assert second is None
        raw = run(tmp_path, "call", address, "{}", "--raw", "--codec", "json").stdout.splitlines()
        assert json.loads(raw[1]) == {"event": "note", "comment": ["c"]}
        one = run(tmp_path, "call", "a.b.c", "7", "--instance", f"{instance['instance_id']:x}", "--mode", "random")
        assert json.loads(one.stdout.splitlines()[0])["request"] == 7
        load = run(tmp_path, "call", "a.b.c", "{}", "--repeat", "50", "--concurrency", "8").stdout
        assert load.startswith("50 requests, 0 failed, 100 items in ")
        assert "first item: median " in load
        counted = run(tmp_path, "bench", "a.b.c", "{}", "--count", "40", "--concurrency", "4", "--json")
        figures = json.loads(counted.stdout)
        assert (counted.returncode, figures["requests"], figures["failed"], figures["items"]) == (0, 40, 0, 80)
        assert sum(number for _, number in figures["histogram"]) == 40
        timed = run(tmp_path, "bench", address, "{}", "--duration", "0.2", "--rate", "50", "--codec", "json").stdout
        assert timed.startswith("10 requests, 0 failed, 20 items in ")  # at 0, 20, ... 180 ms
        assert timed.splitlines()[-1].split()[1] == "ms"
        failing = run(tmp_path, "call", f"{address}x", "{}", "--repeat", "3")
        assert failing.returncode == 1
        assert "3 x Unavailable: Server unavailable: unknown endpoint" in failing.stdout
        at_once = run(tmp_path, "call", "a.b.c", "7", "--wait", "0")
        assert (at_once.returncode, at_once.stderr) == (0, "")
        described = run(tmp_path, "describe", "a/b/c")
        assert (described.returncode, described.stderr) == (0, "")
        assert f"address    {address}" in described.stdout
        assert "state      reachable (connected in " in described.stdout
        facts = json.loads(run(tmp_path, "describe", "a.b.c", "--json").stdout)
        assert facts["endpoint"] == "a.b.c"
        assert (facts["instances"][0]["address"], facts["instances"][0]["reachable"]) == (address, True)
        other = run(tmp_path, "call", "a.b.c", "{}", "--instance", "abc", "--wait", "0.1")
        assert "with the id abc" in other.stderr
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "leaving; 0 requests to finish\n"
        assert process.wait(LIMIT) == 0
    gone = run(tmp_path, "instances", "a.b.c")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr.startswith("dynamo-fast instances: error: no instance of a.b.c (discovery: file, ")


def test_a_call_waits_for_an_instance_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("async def echo(request):\n    return request\n")
    call = [sys.executable, "-m", "dynamo_fast", "call", "a/b/c", "7", "--wait", "30"]
    with started(call, settings(tmp_path), tmp_path, stderr=subprocess.PIPE) as caller:
        assert caller.stderr is not None
        assert caller.stderr.readline() == "waiting for an instance of a/b/c (for 30 s)\n"
        serve = [sys.executable, "-m", "dynamo_fast", "serve", "engine:echo", "--endpoint", "a/b/c"]
        with started(serve, settings(tmp_path), tmp_path):
            assert caller.stdout is not None
            assert caller.stdout.read() == "7\n"
            assert caller.wait(LIMIT) == 0


def test_headers_reach_the_worker(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(
        "async def trace(request, context):\n    return (context.trace_headers() or {}).get('traceparent')\n"
    )
    parent = "00-11111111111111111111111111111111-2222222222222222-01"
    serve = [sys.executable, "-m", "dynamo_fast", "serve", "engine:trace", "--endpoint", "a.b.c"]
    environment = {**settings(tmp_path), "DYN_LOG": "info", "DYN_LOGGING_JSONL": "1"}
    with started(serve, environment, tmp_path) as worker:
        assert worker.stdout is not None
        address = worker.stdout.readline().split()[-1]
        for options in ([address], ["a.b.c"], ["a.b.c", "--instance", address.split("/")[1]]):
            done = run(tmp_path, "call", *options, "--header", f"traceparent={parent}", given="{}")
            assert parent.split("-")[1] in done.stdout, done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_changes_of_instances_are_followed_as_lines(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "engine.py").write_text("async def echo(request):\n    yield request\n")
    watch = [sys.executable, "-m", "dynamo_fast", "instances", "--watch", *options]
    with started(watch, settings(tmp_path), tmp_path) as watching:
        assert watching.stdout is not None
        serve = [sys.executable, "-m", "dynamo_fast", "serve", "engine:echo", "--endpoint", "a.b.c"]
        with started(serve, settings(tmp_path), tmp_path) as worker:
            assert worker.stdout is not None
            address = worker.stdout.readline().split()[-1]
            added = watching.stdout.readline()
            worker.send_signal(signal.SIGTERM)
            removed = watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert watching.wait(LIMIT) == 130
    if options:
        assert json.loads(added)["change"] == "added"
        assert json.loads(removed)["change"] == "removed"
        assert json.loads(added)["instance"]["transport"] == {"tcp": address}
    else:
        assert added.split()[:2] == ["added", "a.b.c"]
        assert removed.split()[:2] == ["removed", "a.b.c"]


def test_watching_instances_ends_with_an_interrupt(tmp_path: Path) -> None:
    watch = [sys.executable, "-m", "dynamo_fast", "instances", "--watch"]
    (tmp_path / "engine.py").write_text("async def echo(request):\n    yield request\n")
    with started(watch, settings(tmp_path), tmp_path) as watching:
        serve = [sys.executable, "-m", "dynamo_fast", "serve", "engine:echo", "--endpoint", "a.b.c"]
        with started(serve, settings(tmp_path), tmp_path) as worker:
            assert worker.stdout is not None
            assert watching.stdout is not None
            assert watching.stdout.readline().startswith("added ")  # it hears signals as soon as it watches
            watching.send_signal(signal.SIGINT)
            assert watching.wait(LIMIT) == 130
            worker.terminate()


def test_interrupting_a_call_kills_its_request(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(
        "import asyncio\n"
        "async def slow(request, context):\n"
        "    yield 1\n"
        "    await context.async_killed_or_stopped()\n"
        "    print('killed' if context.is_killed() else 'stopped', flush=True)\n"
    )
    command = [sys.executable, "-m", "dynamo_fast"]
    serve = [*command, "serve", "engine:slow", "--endpoint", "a.b.c"]
    with started(serve, settings(tmp_path), tmp_path) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        call = [*command, "call", "a.b.c", "{}"]
        with started(call, settings(tmp_path), stderr=subprocess.PIPE) as caller:
            assert caller.stdout is not None
            assert caller.stdout.readline() == "1\n"
            caller.send_signal(signal.SIGINT)
            assert caller.wait(LIMIT) == 130
            assert caller.stderr is not None
            assert caller.stderr.read() == ""
        assert worker.stdout.readline() == "killed\n"
        worker.terminate()


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(
        "async def endless(request, context):\n    while not context.is_stopped():\n        yield 'x' * 1000\n"
    )
    command = [sys.executable, "-m", "dynamo_fast"]
    serve = [*command, "serve", "engine:endless", "--endpoint", "a.b.c"]
    with started(serve, settings(tmp_path), tmp_path) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        call = [*command, "call", "a.b.c", "{}"]
        with started(call, settings(tmp_path), stderr=subprocess.PIPE) as caller:
            assert caller.stdout is not None
            assert caller.stderr is not None
            caller.stdout.readline()
            caller.stdout.close()
            assert caller.wait(LIMIT) == 141
            assert caller.stderr.read() == ""
        worker.terminate()
        assert worker.wait(LIMIT) == 0


def test_the_demo(tmp_path: Path) -> None:
    done = run(tmp_path, "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RemoteError:" in done.stdout
    assert f"Codec backend: {codec.BACKEND}" in done.stdout
    assert "stopped" in done.stdout
