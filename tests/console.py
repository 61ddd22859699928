"""The terminals of a page: its ```console blocks, carried out in order, each command compared with what the page shows."""

from __future__ import annotations

import doctest
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.programs import started

__all__ = ["Command", "Terminals", "assert_shown", "commands", "consoles", "files"]

LIMIT = 60.0


@dataclass
class Command:
    """A line after a `$`, and what the page shows below it."""

    words: list[str]
    shown: str


def consoles(text: str) -> Iterator[list[Command]]:
    """The terminals of the page, in order."""
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
        yield [Command(shlex.split(line, comments=True), shown) for line, shown in found]


def commands(text: str) -> list[Command]:
    """All of them, in order."""
    return [command for console in consoles(text) for command in console]


def files(text: str) -> dict[str, str]:
    """The Python files of the page: a block whose first line is `# name.py`."""
    return dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL))


def assert_shown(command: Command, output: str) -> None:
    """What the page shows is what came; `...` stands for anything."""
    matches = doctest.OutputChecker().check_output(command.shown, output, doctest.ELLIPSIS)
    assert matches, f"{shlex.join(command.words)}\n{output}"


class Terminals:
    """Does what a page says, in one folder with the files of the page.

    `dynamo-fast serve` is started, and runs until `servers` is closed; its first line is compared. `instead` says for the
    first word of other commands what to do in their place. `changed` replaces texts in commands, such as a port.
    """

    def __init__(
        self,
        page: str,
        folder: Path,
        environment: Mapping[str, str],
        servers: ExitStack,
        *,
        instead: Mapping[str, Callable[[list[str]], None]] | None = None,
        changed: Mapping[str, str] | None = None,
    ) -> None:
        self._page = page
        self._folder = folder
        self._environment = dict(environment)
        self._servers = servers
        self._instead = instead or {}
        self._changed = changed or {}
        for name, source in files(page).items():
            (folder / name).write_text(source, encoding="utf-8")

    def follow(self) -> int:
        """Carry out all commands; returns how many were run and compared, without those that install."""
        return sum(map(self._do, commands(self._page)))

    def _do(self, command: Command) -> bool:
        words = [self._here(word) for word in command.words]
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self._environment[name] = value
            return False
        if words[0] in self._instead:
            self._instead[words[0]](words)
            return False
        if words[0] == "pip":
            return False
        program = [sys.executable, "-m", "dynamo_fast"] if words[0] == "dynamo-fast" else [words[0]]
        if words[0] == "python":
            program = [sys.executable]
        if words[:2] == ["dynamo-fast", "serve"]:
            process = self._servers.enter_context(started([*program, *words[1:]], self._environment, self._folder))
            assert process.stdout is not None
            assert_shown(command, process.stdout.readline())
        else:
            assert_shown(command, self._output([*program, *words[1:]]))
        return True

    def _output(self, words: list[str]) -> str:
        done = subprocess.run(
            words,
            env=self._environment,
            cwd=self._folder,
            stdout=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
            check=True,
        )
        return done.stdout

    def _here(self, word: str) -> str:
        for old, new in self._changed.items():
            word = word.replace(old, new)
        return word
