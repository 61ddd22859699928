"""Bytes that are chosen to break the worker's shell cost their own request, and nothing of the others in the same read."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from dynamo_fast.errors import RemoteError
from tests.ingress.conftest import Start, address_of
from tests.ingress.requester import PATIENCE, Answer, Requester, request_frame, two_part

DEEP = b"[" * 100_000 + b"]" * 100_000
LONG = "1" * 5000


@pytest.fixture(autouse=True)
async def troubles() -> AsyncIterator[list[dict[str, Any]]]:
    """What reached the event loop's exception handler: nothing may."""
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    yield seen
    assert not seen


def frame(requester: Requester, control: bytes | None = None, body: bytes = b"1", headers: bytes = b"{}") -> bytes:
    control = json.dumps(requester.control()).encode() if control is None else control
    return request_frame(requester.path, two_part(control, body), headers)


def control_with(requester: Requester, **changes: Any) -> bytes:
    return json.dumps(requester.control(**changes)).encode()


def with_address(requester: Requester, address: str) -> bytes:
    return control_with(requester, connection_info=requester.connection_info("id", address=address), id="id")


REFUSED: dict[str, Callable[[Requester], bytes]] = {
    "a deep control message": lambda each: frame(each, DEEP),
    "a deep value in the control message": lambda each: frame(
        each, json.dumps(each.control()).encode()[:-1] + b',"x":' + DEEP + b"}"
    ),
    "deep connection info": lambda each: frame(
        each, control_with(each, connection_info={"transport": "tcp_server", "info": DEEP.decode()})
    ),
    "a port of 4,301 digits": lambda each: frame(each, with_address(each, "127.0.0.1:" + "1" * 4301)),
    "a port that is too large": lambda each: frame(each, with_address(each, "127.0.0.1:65536")),
    "NUL in the address": lambda each: frame(each, with_address(each, "[fe80::1%\0]:80")),
    "a transport with a line feed": lambda each: frame(
        each, control_with(each, connection_info={"transport": "\n\x1b" * 10_000, "info": "{}"})
    ),
}
ANSWERED: dict[str, Callable[[Requester], bytes]] = {
    "a time of 5,000 digits": lambda each: frame(each, headers=b'{"x-frontend-send-ts-ns":"%s"}' % LONG.encode()),
    "a time of 400 digits": lambda each: frame(each, headers=b'{"x-frontend-send-ts-ns":"%s"}' % (b"1" * 400)),
    "deep headers": lambda each: frame(each, headers=b'{"a":' + b"[" * 20_000 + b"}"),
    "a trace of 60,000 digits": lambda each: frame(each, headers=b'{"traceparent":"%s"}' % (b"1" * 60_000)),
    "a deep body": lambda each: frame(each, body=DEEP),
    "a number of 5,000 digits as the body": lambda each: frame(each, body=LONG.encode()),
    "an id that differs from the stream's": lambda each: frame(each, control_with(each, id="x\n" * 20_000)),
    "no body": lambda each: frame(each, body=b""),
}


async def last_of(answer: Answer) -> str:
    """The error of the prologue, or of the last item before the end; empty for none."""
    prologue = await answer.read()
    assert prologue is not None
    if prologue.header["error"] is not None:
        return str(prologue.header["error"])
    items = await answer.items()
    return "" if items[-1]["complete_final"] else "no final marker"


@pytest.mark.parametrize("case", REFUSED)
async def test_what_cannot_be_answered_is_refused_alone(
    start: Start, case: str, logged: pytest.LogCaptureFixture
) -> None:
    async with Requester(address_of(await start())) as requester:
        first, subject = frame(requester), requester.subject
        hostile = REFUSED[case](requester)
        third, other_subject = frame(requester), requester.subject
        requester.writer.write(first + hostile + third)
        assert await requester.ack() == ""
        refusal = await requester.ack()
        assert refusal.startswith("Server unavailable: unreadable request: ")
        assert len(refusal) < 1000
        assert await requester.ack() == ""
        for each in (subject, other_subject):
            assert await last_of(await requester.dialled(each)) == ""
    assert all(len(record.getMessage()) < 2000 for record in logged.records)


@pytest.mark.parametrize("case", ANSWERED)
async def test_what_is_accepted_is_answered(
    start: Start, case: str, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_LOGGING_JSONL", "1")  # traces are read
    async with Requester(address_of(await start())) as requester:
        subjects, frames = [], []
        for make in (frame, ANSWERED[case], frame):
            frames.append(make(requester))
            subjects.append(requester.subject)
        requester.writer.write(b"".join(frames))
        for _ in frames:
            assert await requester.ack() == ""
        for subject in subjects:
            error = await last_of(await requester.dialled(subject))
            assert len(error) < 1000
            assert not error or subject == subjects[1]
    assert all(len(record.getMessage()) < 2000 for record in logged.records)


@pytest.mark.parametrize("info", [DEEP.decode(), "{}", json.dumps({"address": LONG})])
async def test_an_input_that_cannot_be_dialled_is_refused(start: Start, info: str) -> None:
    async def handler(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        yield 1

    async with Requester(address_of(await start(handler, bidirectional=True))) as requester:
        second = {"transport": "tcp_server", "info": info}
        control = control_with(requester, request_type="many_in", request_stream_connection_info=second)
        requester.writer.write(frame(requester, control, b""))
        assert (await requester.ack()).startswith("Server unavailable: unreadable request: ")


class WithoutText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Halved(Exception):
    def __str__(self) -> str:
        return "half \ud800 of it"


def deep_public() -> RemoteError:
    value: list[Any] = []
    for _ in range(900):
        value = [value]
    return RemoteError("text", public={"a": value, "b": 1 << 80})


@pytest.mark.parametrize("make", [WithoutText, Halved, deep_public])
@pytest.mark.parametrize("is_called", [False, True], ids=["when it is called", "when it runs"])
async def test_whatever_a_handler_raises_is_told_to_the_caller(
    start: Start, is_called: bool, make: Callable[[], Exception], logged: pytest.LogCaptureFixture
) -> None:
    async def runs(request: Any) -> AsyncIterator[Any]:
        for _ in [1]:
            raise make()
        yield

    def fails(request: Any) -> AsyncIterator[Any]:
        raise make()

    logged.set_level(logging.CRITICAL)  # pytest itself formats records, and shows what cannot be formatted
    async with Requester(address_of(await start(runs if is_called else fails))) as requester:
        answer = await requester.call(1)
        prologue = await answer.read()
        assert prologue is not None
        if not is_called:
            assert prologue.header["error"].startswith("Generate Error: ")
            return
        item = await answer.read()
        assert item is not None
        assert item.item["data"]["event"] == "error"
        final = await answer.read()
        assert final is not None
        assert final.item == {"complete_final": True}
        answer.writer.write_eof()
        assert await asyncio.wait_for(answer.rest(), PATIENCE)
