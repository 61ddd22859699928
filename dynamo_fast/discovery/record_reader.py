"""`RecordReader`: reads the bytes of a store that others write to, too, and warns of what is no record."""

from __future__ import annotations

from typing import Generic, TypeVar

from dynamo_fast.discovery.buckets import BucketKind
from dynamo_fast.errors import PayloadError
from dynamo_fast.logs import get_logger

__all__ = ["RecordReader"]

logger = get_logger(__name__)

MOST_REMEMBERED = 10_000
"""Records whose warning is remembered; with more than these, the oldest are warned of again."""

_T = TypeVar("_T")


class RecordReader(Generic[_T]):
    """Reads the records of one bucket, and warns once of each that cannot be read.

    It holds the warnings that were given. Owned by a bucket, used in the thread of its store; needs no end.
    """

    def __init__(self, kind: BucketKind[_T]) -> None:
        self._kind = kind
        self._warned: dict[str, str] = {}

    def read(self, key: str, content: bytes) -> _T | None:
        """The value of this record; None, and a warning, if it cannot be read."""
        try:
            value = self._kind.read(key, content)
        except PayloadError as error:
            self.skip(key, str(error))
            return None
        self._warned.pop(key, None)
        return value

    def skip(self, key: str, reason: str) -> None:
        """Warn of a record that is ignored, unless that was said already."""
        if self._warned.get(key) == reason:
            return
        if len(self._warned) >= MOST_REMEMBERED:
            del self._warned[next(iter(self._warned))]
        self._warned[key] = reason
        logger.warning("ignoring the discovery record %r: %s", key, reason)
