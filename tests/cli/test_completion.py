"""The scripts of `dynamo-fast completion`, in the shells themselves."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from dynamo_fast.cli.main import main

LIMIT = 20


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> str:
    assert main(["completion", request.param]) == 0
    return capsys.readouterr().out


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def completed(script: str, *words: str) -> list[str]:
    """What bash offers for the last word of a command line."""
    line = " ".join(f"'{word}'" for word in words)
    asked = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _dynamo_fast; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(
        [shell("bash"), "--norc", "-c", f"{script}\n{asked}"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("script", ["bash"], indirect=True)
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["dynamo-fast", "ca"], ["call"]),
        (["dynamo-fast", "mod"], ["models"]),
        (["dynamo-fast", "--v"], ["--version"]),
        (["dynamo-fast", "call", "--time"], ["--timeout"]),
        (["dynamo-fast", "call", "a.b.c", "{}", "--mode", "r"], ["random", "round_robin"]),
        (["dynamo-fast", "instances", "--discovery", ""], ["etcd", "file", "kubernetes"]),
        (["dynamo-fast", "completion", "f"], ["fish"]),
        (["dynamo-fast", "instances", "--count"], []),
        (["dynamo-fast", "nowhere", ""], []),
    ],
)
def test_bash_completes(script: str, words: list[str], offered: list[str]) -> None:
    assert sorted(completed(script, *words)) == offered


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_knows_the_function(script: str) -> None:
    done = subprocess.run(
        [shell("bash"), "--norc", "-c", f"{script}\ncomplete -p dynamo-fast"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert done.stdout == "complete -o default -F _dynamo_fast dynamo-fast\n"


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh_reads_it(script: str) -> None:
    subprocess.run([shell("zsh"), "-n"], input=script, text=True, timeout=LIMIT, check=True)


@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish_reads_it(script: str) -> None:
    subprocess.run([shell("fish"), "--no-execute"], input=script, text=True, timeout=LIMIT, check=True)


@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_the_script_for_fish_has_every_option_with_its_help(script: str) -> None:
    assert "-f -a 'call' -d 'send a request to a worker, and print its answer as it comes'" in script
    assert (
        "from call' -l timeout -r -d 'for all of it, the wait for an instance included; then the request is killed"
        in script
    )
    assert "%" not in script
