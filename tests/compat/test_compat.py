"""Code written for `dynamo.runtime` sees the same on `dynamo_fast.runtime`, but for what docs/compatibility.md says.

The answers of the real Dynamo are recorded in expected/ (`make record-compat` asks it again).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.compat.pairs import ALONE, EXPECTED, OURS, WITH_WORKER, call, theirs, worker

TABLE = Path(__file__).parents[2] / "docs" / "compatibility.md"
FOLLOWED = "1.6.1"
#: Their caller drops its stream at once here, and our worker tells the handler of it, as it does of every drop.
SEEN_BY_OUR_WORKER = ("cancellation", "stopped before the call: the handler")


def expected(scenario: str, version: str = FOLLOWED) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((EXPECTED / version / f"{scenario}.json").read_text(encoding="utf-8"))
    return facts


def told_differences() -> set[tuple[str, str]]:
    """Scenario and case of each row of the table of differences."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    return {(scenario, case) for scenario, cases in rows for case in re.findall(r"`([^`]+)`", cases)}


def same(theirs: Any, ours: Any) -> bool:
    """Equal; an exception is, if it is an instance of the other's class and has its text."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        if "raises" in theirs and "raises" in ours:
            rest = [{key: value for key, value in each.items() if key != "raises"} for each in (theirs, ours)]
            return theirs["raises"][0] in ours["raises"] and rest[0] == rest[1]
        return theirs.keys() == ours.keys() and all(same(theirs[key], ours[key]) for key in theirs)
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(theirs) == len(ours) and all(map(same, theirs, ours))
    return bool(theirs == ours)


def differences(scenario: str, facts: dict[str, Any], version: str = FOLLOWED) -> dict[str, list[Any]]:
    """Each case that is not as recorded, and both answers."""
    wanted = expected(scenario, version)
    return {
        case: [wanted.get(case), facts.get(case)]
        for case in sorted(wanted.keys() | facts.keys())
        if not same(wanted.get(case), facts.get(case))
    }


@pytest.mark.parametrize("mux", ["off", "auto"])
@pytest.mark.parametrize("scenario", WITH_WORKER + ALONE)
def test_our_caller_and_our_worker_are_as_dynamo(scenario: str, mux: str, tmp_path: Path) -> None:
    with worker(OURS, tmp_path, mux):
        facts = call(OURS, tmp_path, [scenario], mux)[scenario]
    if scenario == "records" and mux == "auto":  # but for our own key, which Dynamo ignores
        facts["a record"][1] = facts["a record"][1].replace(',"dynamo_fast_mux":1}', "}")
    found = differences(scenario, facts)
    told = {case for each, case in told_differences() if each == scenario}
    assert {case: answers for case, answers in found.items() if case not in told} == {}
    assert told - found.keys() == set(), "the table tells of differences that there are not"


@pytest.mark.parametrize("side", ["their worker", "their caller"])
def test_our_side_of_a_mixed_pair_is_as_dynamo(side: str, tmp_path: Path) -> None:
    caller, server = (OURS, theirs(FOLLOWED)) if side == "their worker" else (theirs(FOLLOWED), OURS)
    told = told_differences() | {SEEN_BY_OUR_WORKER}
    scenarios = [each for each in WITH_WORKER if each not in ("avoidance", "errors")]
    with worker(server, tmp_path):
        answers = call(caller, tmp_path, scenarios)
    found = {
        (scenario, case): both
        for scenario in scenarios
        for case, both in differences(scenario, answers[scenario]).items()
        if (scenario, case) not in told
    }
    assert found == {}


def test_a_caller_of_1_3_1_is_answered_in_its_words(tmp_path: Path) -> None:
    scenarios = ["calls", "errors", "requests", "contexts"]
    with worker(OURS, tmp_path):
        answers = call(theirs("1.3.1"), tmp_path, scenarios)
    # HTTP's statuses have words of their own since 1.6; and what 1.3.1's worker makes of one object is a race.
    new = ("status ", "dynamo WorkerUnavailable", "one object yielded")
    found = {
        (scenario, case): both
        for scenario in scenarios
        for case, both in differences(scenario, answers[scenario], "1.3.1").items()
        if not case.startswith(new)
    }
    assert found == {}


def test_the_table_names_cases_that_exist() -> None:
    for scenario, case in told_differences():
        assert case in expected(scenario), f"{scenario}: {case}"
