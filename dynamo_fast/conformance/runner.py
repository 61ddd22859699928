"""Asks an implementation every question, and compares its answers with the expected ones."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from dynamo_fast.conformance.suite import Case

__all__ = ["Implementation", "Outcome", "check", "differences"]

_MAX_ANSWER = 16 << 20
_LOST_IN_A_ROW = 3
_EXIT_SECONDS = 5.0


class Outcome(NamedTuple):
    """The result of a case. It passed if there are no differences and nothing was unsupported."""

    case: Case
    differences: list[str]
    unsupported: str | None = None
    is_lost: bool = False
    """There was no valid answer: the implementation ended, hung or wrote something else, and was started again."""


async def check(command: Sequence[str], cases: Iterable[Case], timeout: float = 10.0) -> AsyncIterator[Outcome]:
    """The outcome of each case, in order; ends early if `command` leaves three in a row unanswered.

    Every answer must come within `timeout` seconds. Raises OSError if the command cannot be started.
    """
    implementation = Implementation(command, timeout)
    lost = 0
    try:
        for number, case in enumerate(cases, 1):
            outcome = await implementation.ask(number, case)
            lost = lost + 1 if outcome.is_lost else 0
            yield outcome
            if lost == _LOST_IN_A_ROW:
                return
    finally:
        await implementation.close()


class Implementation:
    """A command that answers questions.

    Owned by one run of `check`, which calls `ask` for one question after the other, and `close` at the end. It owns the
    process: started for the first question, and again for the next one after it was lost.
    """

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self._command = command
        self._timeout = timeout
        self._process: Process | None = None

    async def ask(self, number: int, case: Case) -> Outcome:
        """Ask one question, and compare the answer."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, limit=_MAX_ANSWER
            )
        try:
            line = await asyncio.wait_for(_ask(self._process, {"id": number} | case.question), self._timeout)
        except asyncio.TimeoutError:
            return await self._lost(case, f"no answer within {self._timeout:g} seconds")
        except (ConnectionError, ValueError) as error:
            return await self._lost(case, f"no answer: {error or 'its input is closed'}")
        if not line.endswith(b"\n"):
            return await self._lost(case, "no answer: its output ended")
        return await self._judge(case, number, line)

    async def _judge(self, case: Case, number: int, line: bytes) -> Outcome:
        try:
            answer = json.loads(line)
        except ValueError as error:
            return await self._lost(case, f"the answer is not JSON: {error}: {line[:80]!r}")
        if not isinstance(answer, dict) or answer.get("id") != number:
            return await self._lost(case, f"this is no answer to the question with id {number}: {line[:80]!r}")
        if "unsupported" in answer:
            return Outcome(case, [], unsupported=str(answer["unsupported"]))
        return Outcome(case, list(differences(case.expected, answer)))

    async def _lost(self, case: Case, reason: str) -> Outcome:
        status = await self.close()
        ended = "" if status is None else f" (exit status {status})"
        return Outcome(case, [reason + ended], is_lost=True)

    async def close(self) -> int | None:
        """Close its input, then kill the process if it does not end. Returns the exit status, None if it was killed."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None
        process.stdin.close()
        try:
            return await asyncio.wait_for(process.wait(), min(self._timeout, _EXIT_SECONDS))
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()
            return None


async def _ask(process: Process, question: dict[str, Any]) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question).encode() + b"\n")
    await process.stdin.drain()
    return await process.stdout.readline()


# What differs ----------------------------------------------------------------------------------------------------------


def differences(expected: dict[str, Any], answer: dict[str, Any]) -> Iterator[str]:
    """The differences of an answer: what came, what was expected, and for bytes the first place that differs."""
    for name in ("error", "pending"):
        if name in expected and answer.get(name) != expected[name]:
            yield f"{name}: {_shown(answer, name)}, expected {json.dumps(expected[name])}"
    if "bytes" in expected:
        yield from _bytes_differ("bytes", answer.get("bytes"), expected["bytes"])
    if "messages" in expected:
        yield from _messages_differ(answer.get("messages"), expected["messages"])


def _messages_differ(got: Any, expected: list[dict[str, str]]) -> Iterator[str]:
    if not isinstance(got, list) or not all(isinstance(message, dict) for message in got):
        yield "messages: not a list of objects"
        return
    if len(got) != len(expected):
        yield f"messages: {len(got)}, expected {len(expected)}"
    for number, (message, wanted) in enumerate(zip(got, expected, strict=False), 1):
        for part, data in wanted.items():
            yield from _bytes_differ(f"message {number}, {part}", message.get(part), data)


def _bytes_differ(name: str, got: Any, expected: str) -> Iterator[str]:
    try:
        data = bytes.fromhex(got)
    except (TypeError, ValueError):
        yield f"{name}: not bytes in hex: {str(got)[:80]!r}"
        return
    wanted = bytes.fromhex(expected)
    if data == wanted:
        return
    at = next((at for at, pair in enumerate(zip(data, wanted, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        yield f"{name}: {len(data)} bytes, expected {len(wanted)}"
    else:
        yield f"{name}: byte {at} is {data[at]:#04x}, expected {wanted[at]:#04x}"


def _shown(answer: dict[str, Any], name: str) -> str:
    return json.dumps(answer[name])[:80] if name in answer else "absent"
