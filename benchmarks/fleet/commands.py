"""Processes of the benchmark that do what they are told: a command is a line of JSON, and so is its result."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any

__all__ = ["Commands", "Process", "obey"]

Commands = Mapping[str, Callable[..., Awaitable[Any]]]


async def obey(commands: Commands) -> None:
    """Carry out the commands that come on standard input, one after the other, until it ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        name, arguments = json.loads(line)
        print(json.dumps(await commands[name](**arguments)), flush=True)


class Process:
    """A process that runs `obey`. Owns it; ends with `kill`, or with the `with` block."""

    def __init__(self, module: str, *arguments: object, settings: Mapping[str, str]) -> None:
        self._command = [sys.executable, "-m", module, *map(str, arguments)]
        self._process = subprocess.Popen(
            self._command, env=dict(settings), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._process:  # which closes its pipes, and waits for it
            self.kill()

    def kill(self) -> None:
        """End it at once, without a farewell. The program that answers for its workers ends with it."""
        self._process.kill()

    def begin(self, name: str, **arguments: Any) -> None:
        """Send a command; `result` waits for what comes of it."""
        assert self._process.stdin is not None
        print(json.dumps([name, arguments]), file=self._process.stdin, flush=True)

    def result(self) -> Any:
        """Of the command that was sent first. Ends the benchmark if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._command)} ended before its time")
        return json.loads(line)

    def ask(self, name: str, **arguments: Any) -> Any:
        """A command and its result."""
        self.begin(name, **arguments)
        return self.result()
