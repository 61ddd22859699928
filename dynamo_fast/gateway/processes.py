"""`Processes`: several processes that listen on one port, and the process that started them.

The kernel gives each connection to one of them (SO_REUSEPORT). They share nothing: each has its own discovery, router and
limits. The parent serves nothing; it passes signals on, and waits. A child that ends by itself ends all: whatever started
the command starts it again. Children notice the end of a parent that was killed, and leave.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from dynamo_fast.errors import InvalidConfig
from dynamo_fast.logs import get_logger
from dynamo_fast.net.listener import listening_at
from dynamo_fast.wire.text import printable

__all__ = ["Child", "Processes", "reserve_port"]

logger = get_logger(__name__)

_MAX_LINE = 4096
"""Bytes that several processes may write to one pipe without a mixture (PIPE_BUF)."""


def reserve_port(ip: str, port: int) -> socket.socket:
    """A socket that keeps a port, also one that the system chooses, for this process and its children. It is not read.

    Raises OSError if the port is taken, InvalidConfig where ports cannot be shared.
    """
    if not hasattr(os, "fork") or not hasattr(socket, "SO_REUSEPORT"):
        raise InvalidConfig("several processes on one port need a system with fork and SO_REUSEPORT: start one")
    kept = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    try:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with listening_at(ip, port):
            kept.bind((ip, port))
    except BaseException:
        kept.close()
        raise
    return kept


class Processes:
    """The children of this process. Made and used in the main thread, before there is an event loop; `wait` ends it."""

    def __init__(self, count: int, serve: Callable[[Child], int]) -> None:
        """Start `count` children. Each calls `serve`, and ends with its result as its status."""
        self.failures: dict[str, int] = {}
        """Why children could not begin to serve, and the status of each reason."""
        self._ends = False
        self._children: set[int] = set()
        life, self._life = os.pipe()
        self._ready, ready = os.pipe()
        for _ in range(count):
            child = os.fork()
            if not child:
                os.close(self._life)
                os.close(self._ready)
                _be_child(serve, Child(life, ready))
            self._children.add(child)
        os.close(life)
        os.close(ready)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def wait_ready(self) -> bool:
        """Wait until all serve. False if one cannot, which ends the others."""
        said = b""
        while said.count(b"\n") < len(self._children):
            more = os.read(self._ready, _MAX_LINE)
            if not more:  # each has said something or has ended
                break
            said += more
        for line in filter(None, said.decode(errors="replace").split("\n")):
            status, _, why = line.partition(" ")
            self.failures[why] = int(status)
        if self.failures:
            self._tell(signal.SIGTERM)
        return not self.failures and said.count(b"\n") == len(self._children)

    def wait(self) -> int:
        """Wait until all have ended; returns the exit status."""
        status = 0
        while self._children:
            child, code = os.wait()
            self._children.discard(child)
            ended = os.waitstatus_to_exitcode(code)
            status = max(status, abs(ended))
            if not self._ends:
                logger.error(
                    "process %d of the gateway has ended by itself (status %d): ending the others", child, ended
                )
                status = max(status, 1)
                self._tell(signal.SIGTERM)
        os.close(self._life)
        os.close(self._ready)
        return status

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._tell(signal.Signals(number))

    def _tell(self, number: signal.Signals) -> None:
        self._ends = True
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(child, number)


def _be_child(serve: Callable[[Child], int], child: Child) -> NoReturn:
    """The whole life of a child. It has a process group of its own: Ctrl-C reaches it through the parent, once."""
    status = 1
    try:
        os.setpgid(0, 0)
        status = serve(child)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Child:
    """What one of several processes has of its parent. Made by `Processes`; says once how its beginning ended."""

    def __init__(self, parent: int, ready: int) -> None:
        self.parent = parent
        """A descriptor that can be read when the parent has ended."""
        self.is_ready = False
        self._ready = ready

    def say_ready(self) -> None:
        """This process serves."""
        self.is_ready = True
        self._say(b"")

    def say_failed(self, why: str, status: int) -> None:
        """This process cannot serve: the parent is told why, in one line, and the exit status."""
        self._say(f"{status} {printable(why)}".encode()[: _MAX_LINE - 1])

    def _say(self, line: bytes) -> None:
        os.write(self._ready, line + b"\n")
        os.close(self._ready)
