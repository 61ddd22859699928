"""`Shares`: what the processes of one gateway (`--workers N`) have counted, in files of one folder, so that each shows all.

A browser's connection reaches one of the processes. Each writes its own share once a second and reads those of the others,
so what the others did appears up to a second later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from dynamo_fast.gateway.state import Share
from dynamo_fast.logs import get_logger

__all__ = ["Shares"]

logger = get_logger(__name__)


class Shares:
    """The files of one folder, which belongs to the command that started the processes. It owns the one of this process.

    It is the `others` of a `LiveState`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / f"{os.getpid()}.share"
        self._failed = False
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Share)

    def __call__(self, own: Share) -> list[Share]:
        """Write `own`; return the others. What cannot be written or read is left out, and logged once."""
        try:
            self._write(own)
            return list(self._others())
        except OSError as error:
            if not self._failed:
                self._failed = True
                logger.warning("the page shows one process only: %s", error)
            return []

    def _write(self, own: Share) -> None:
        """In one step: a reader sees the old file or the new one."""
        new = self._own.with_suffix(".new")
        new.write_bytes(self._encoder.encode(own))
        new.replace(self._own)

    def _others(self) -> Iterator[Share]:
        for path in sorted(self._folder.glob("*.share")):
            if path != self._own:
                try:
                    yield self._decoder.decode(path.read_bytes())
                except (FileNotFoundError, msgspec.ValidationError):  # it has ended, or is another version
                    continue
