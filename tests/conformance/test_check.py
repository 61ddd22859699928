"""Our backends pass, as any other implementation would; what is wrong with one is found, and told in words."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dynamo_fast.cli.main import main
from dynamo_fast.conformance import Outcome, cases, check
from tests.codecs import BACKENDS

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
DRIVER = [sys.executable, "-m", "dynamo_fast.conformance.driver"]


class Done(NamedTuple):
    """What a run of the command came to."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def conformance(capfd: pytest.CaptureFixture[str]) -> Run:
    """The command, in this process: it starts one of its own."""

    def run(*arguments: str) -> Done:
        try:
            status = main(["conformance", *arguments])
        except SystemExit as exit_:
            status = int(str(exit_.code))
        return Done(status, *capfd.readouterr())

    return run


def broken(conformance: Run, way: str, *options: str) -> Done:
    return conformance(*options, "--", sys.executable, "-m", "tests.conformance.broken", way)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_backends_pass(conformance: Run, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNAMO_FAST_BACKEND", backend)
    done = conformance("--", *DRIVER)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(cases())} passed, 0 differ, 0 unsupported\n"


@pytest.mark.parametrize(
    ("way", "name", "told"),
    [
        ("swaps", "two_part/both/decode", "message 1, header: byte 0 is 0x64, expected 0x68"),
        ("loses", "two_part/empty/decode", "messages: 0, expected 1"),
        ("short", "two_part/both/encode", "bytes: 25 bytes, expected 26"),
        ("flips", "two_part/both/encode", "bytes: byte 0 is 0x01, expected 0x00"),
        ("accepts", "two_part/limit/one-less", 'error: null, expected "message_too_large"'),
        ("holds", "two_part/short-prefix", "pending: 24, expected 23"),
        ("nonsense", "two_part/both/decode", "messages: not a list of objects"),
        ("nonsense", "two_part/both/encode", "bytes: not bytes in hex: 'no hex'"),
    ],
)
def test_what_differs_is_told(conformance: Run, way: str, name: str, told: str) -> None:
    done = broken(conformance, way, "--only", name)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"differs     {name}", f"            {told}"]
    assert lines[-1] == "0 passed, 1 differ, 0 unsupported"


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("dies", "no answer: its output ended (exit status 7)"),
        ("hangs", "no answer within 0.5 seconds"),
        ("chats", "the answer is not JSON: "),
        ("number", "this is no answer to the question with id 1: "),
    ],
)
def test_an_implementation_without_answers_is_given_up(conformance: Run, way: str, told: str) -> None:
    done = broken(conformance, way, "--only", "two_part/*", "--timeout", "0.5" if way == "hangs" else "20")
    assert done.returncode == 1
    assert told in done.stdout
    assert done.stdout.count("differs  ") == 3
    assert "gave up: no answer three times in a row" in done.stderr


def test_an_implementation_that_dies_is_started_again(conformance: Run) -> None:
    done = broken(conformance, "dies once", "--only", "two_part/e*", "--verbose")
    assert done.stdout.splitlines() == [
        "passed      two_part/empty/decode",
        "differs     two_part/empty/encode",
        "            no answer: its output ended (exit status 7)",
        "1 passed, 1 differ, 0 unsupported",
    ]


def test_what_is_not_supported_is_counted_and_no_failure(conformance: Run) -> None:
    done = broken(conformance, "skips", "--only", "two_part/checksum/*")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "3 passed, 0 differ, 4 unsupported (4 checksum)"


def test_results_as_json(conformance: Run) -> None:
    done = broken(conformance, "swaps", "--only", "two_part/both/decode", "--json")
    assert done.returncode == 1
    case, counts = map(json.loads, done.stdout.splitlines())
    assert case == {
        "case": "two_part/both/decode",
        "result": "differs",
        "differences": [
            "message 1, header: byte 0 is 0x64, expected 0x68",
            "message 1, data: byte 0 is 0x68, expected 0x64",
        ],
    }
    assert counts == {"passed": 0, "differs": 1, "unsupported": 0, "not_tried": 0}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--", "no-such-command-anywhere"], "error: no-such-command-anywhere: No such file or directory"),
        (["--only", "nothing/*", "--", "true"], "no case has a name like 'nothing/*'"),
        ([], "the following arguments are required: COMMAND"),
        (["--timeout", "0", "--", "true"], "'0' is not valid: expected a number of seconds above 0"),
    ],
)
def test_bad_arguments(conformance: Run, arguments: list[str], told: str) -> None:
    done = conformance(*arguments)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_the_examples_of_the_document_are_answered_so() -> None:
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith(("> {", "< {"))]
    questions = [line[2:] for line in lines if line.startswith(">")]
    done = subprocess.run(DRIVER, input="\n".join(questions), capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines() == [line[2:] for line in lines if line.startswith("<")]
    assert len(questions) > 2


async def test_it_can_be_asked_from_python() -> None:
    chosen = [case for case in cases() if case.name.startswith("tcp_response/")]

    async def outcomes() -> list[Outcome]:
        return [outcome async for outcome in check(DRIVER, chosen)]

    seen: list[Any] = await asyncio.wait_for(outcomes(), 30)
    assert [outcome.case for outcome in seen] == chosen
    assert not any(outcome.differences for outcome in seen)
