"""The drop-in's publishers beside real ones: the same calls, the same errors, the same events."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.interop.kv_calls import FIRST, LAST
from tests.interop.peers import LIMIT, ROOT, VERSIONS, environment, interpreter
from tests.llm.subscriber import Message, Subscriber
from tests.waiting import until_in_thread

KEYS = {"1.6.1": "namespace/ns/component/comp/endpoint/generate/topic/{topic}", "1.3.1": "ns/{component}/{topic}"}
TEXTS_OF_THEIR_OWN = ("OverflowError", "TypeError")
"""The same class of error; the text is that of the function that found it."""


@pytest.mark.parametrize("version", VERSIONS)
def test_calls_errors_and_events_are_those_of_the_real_publishers(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    calls, events, loads = run([str(python)], "dynamo", version, tmp_path / "real")
    found_calls, found_events, found_loads = run([sys.executable], "dynamo_fast", version, tmp_path / "ours")
    assert found_calls == calls
    assert found_events == events
    assert [load for load in found_loads if load in loads] == loads  # it may publish the last load of a moment only
    assert len(found_loads) == 3


def run(python: list[str], package: str, version: str, folder: Path) -> tuple[list[Any], list[Any], list[Any]]:
    """What each call returned or raised, and the events and loads that came of them."""
    folder.mkdir()
    with program(python, package, version, folder) as (process, told):
        told_before = until_told(told, "ready")
        worker_id = int(told_before.pop())
        events, loads = subscribe(folder, version, "kv-events"), subscribe(folder, version, "kv_metrics")
        try:
            assert process.stdin is not None
            first_event, first_load = events.receive_here(), loads.receive_here()
            process.stdin.write("go\n")
            process.stdin.flush()
            published = [each for event in payloads(events, first_event) for each in blocks(event, worker_id)]
            load = list(payloads(loads, first_load))
            assert {each.pop("worker_id") for each in load} == {worker_id}
            calls = until_told(told, "done")
            process.stdin.write("end\n")
            process.stdin.flush()
            assert process.wait(LIMIT) == 0
        finally:
            events.close()
            loads.close()
    return [without_texts(json.loads(each)) for each in told_before + calls if each], published, load


def payloads(subscriber: Subscriber, first: Message) -> Iterator[Any]:
    """The events or loads that were published between the first ones and the last."""
    payload = first.payload
    while str(LAST) not in (text := json.dumps(payload)):
        load = payload.get("active_decode_blocks") if isinstance(payload, dict) else None
        if (load or 0) < FIRST and str(FIRST) not in text:
            yield from payload if isinstance(payload, list) else [payload]
        payload = subscriber.receive_here().payload


def blocks(event: Any, worker_id: int) -> Iterator[Any]:
    """What an event says, block by block: real Dynamo may join events that come at once."""
    assert event.pop("worker_id") == worker_id
    body = event.pop("event")
    if "stored" in body["data"]:
        stored = body["data"]["stored"]
        parent = stored["parent_hash"]
        for block in stored["blocks"]:
            yield {**event, "rank": body["dp_rank"], "parent": parent, "start": stored["start_position"], **block}
            parent = block["block_hash"]
    else:
        yield {**event, "rank": body["dp_rank"], **body["data"]}


def subscribe(folder: Path, version: str, topic: str) -> Subscriber:
    """Connected to the channel of a topic, once its record is there."""
    component = "" if topic == "kv_metrics" else "comp"
    wanted = KEYS[version].format(topic=topic, component=component)
    found: list[Path] = []

    def look() -> bool:
        channels = (folder / "v1" / "event_channels").glob("[!.]*")
        found[:] = [path for path in channels if unquote(path.name).startswith(f"{wanted}/")]
        return bool(found)

    until_in_thread(look)
    subscriber = Subscriber()
    record = json.loads(found[0].read_text())
    subscriber.connect(record["transport"]["config"]["endpoint"])
    return subscriber


def without_texts(told: Any) -> Any:
    return told[0] if isinstance(told, list) and told and told[0] in TEXTS_OF_THEIR_OWN else told


@contextmanager
def program(
    python: list[str], package: str, version: str, folder: Path
) -> Iterator[tuple[subprocess.Popen[str], queue.SimpleQueue[str]]]:
    """The process, and the lines that it prints; an empty one when it has ended."""
    settings = {"DYN_EVENT_PLANE_HOST": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    log = folder.with_suffix(".log")
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*python, "-m", "tests.interop.kv_calls", package, version],
            env=environment(folder, **settings),
            cwd=folder.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = threading.Thread(target=read, args=(process, lines))
        reader.start()
        try:
            yield process, lines
        finally:
            process.kill()
            process.wait()
            reader.join()
            sys.stderr.write(log.read_text())


def read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.rstrip("\n"))
    lines.put("")


def until_told(told: queue.SimpleQueue[str], word: str) -> list[str]:
    """What the calls before this word told, and the rest of its line."""
    found: list[str] = []
    while line := told.get(timeout=LIMIT):
        if line.startswith("call "):
            found.append(line.removeprefix("call "))
        elif line.startswith(word):
            return [*found, line.removeprefix(word).strip()]
    raise AssertionError(f"the program ended before it told {word!r}")
