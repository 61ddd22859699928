"""docs/cli.md: its examples are run in a real shell, and it names every command."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from dynamo_fast.cli import failures, main
from tests.cli.test_main import LIMIT, settings
from tests.programs import started

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def shell(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the page in bash."""
    function = f'dynamo-fast() {{ "{sys.executable}" -m dynamo_fast "$@"; }}'
    return subprocess.run(
        ["/bin/bash", "-c", f"{function}\n{command}"],
        env=settings(folder),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        cwd=folder,
    )


def test_the_examples(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(blocks("python")[0])
    first, completion = blocks("console")
    lines = first.splitlines()
    assert lines[0].startswith("$ dynamo-fast serve ")
    command = [sys.executable, "-m", *lines[0].removeprefix("$ ").replace("dynamo-fast", "dynamo_fast").split()]
    with started(command, settings(tmp_path), tmp_path) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        for example in re.split(r"^\$ ", "\n".join(lines[1:]) + "\n", flags=re.MULTILINE)[1:]:
            given, _, expected = example.partition("\n")
            done = shell(tmp_path, given)
            assert (done.returncode, done.stderr) == (0, ""), given
            assert done.stdout == expected if expected else done.stdout, given
    done = shell(tmp_path, f"{completion.removeprefix('$ ')}\ncomplete -p dynamo-fast")
    assert done.stdout == "complete -o default -F _dynamo_fast dynamo-fast\n", done.stderr


def test_every_command_is_in_the_table() -> None:
    subparsers = argparse.ArgumentParser().add_subparsers()
    for command in main._COMMANDS:
        command.add_parser(subparsers)
    named = set(re.findall(r"^\| `([a-z]+)", PAGE, re.MULTILINE))
    assert named == set(subparsers.choices)


def test_every_exit_code_is_in_the_table() -> None:
    codes = {int(each) for each in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert codes == {
        0,
        failures.FAILED,
        failures.UNUSABLE,
        failures.INTERRUPTED,
        failures.READER_GONE,
        failures.TERMINATED,
    }
