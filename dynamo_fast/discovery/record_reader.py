"""`RecordReader`: turns the bytes of an untrusted store into an instance, or into one warning."""

from __future__ import annotations

from dynamo_fast.errors import PayloadError
from dynamo_fast.logs import get_logger
from dynamo_fast.wire.instance import Instance

__all__ = ["RecordReader"]

logger = get_logger(__name__)

MOST_REMEMBERED = 10_000
"""Records whose warning is remembered; with more than these, the oldest are warned of again."""


class RecordReader:
    """Reads records, and warns once of each that cannot be read. Owned by one backend object, used from one thread."""

    def __init__(self) -> None:
        self._warned: dict[str, str] = {}

    def read(self, key: str, content: bytes) -> Instance | None:
        """The instance of `key` ("namespace/component/endpoint/id"); None, and a warning, if this is no such record.

        Which endpoint it belongs to must be what the key says; the id is the content's, as with Dynamo.
        """
        try:
            instance = Instance.decode(content)
        except PayloadError as error:
            self.skip(key, str(error))
            return None
        if key.rpartition("/")[0] != str(instance.endpoint_id):
            self.skip(key, f"its content says {str(instance.endpoint_id)!r}")
            return None
        self._warned.pop(key, None)
        return instance

    def skip(self, key: str, reason: str) -> None:
        """Warn of a record that is ignored, unless that was said already."""
        if self._warned.get(key) == reason:
            return
        if len(self._warned) >= MOST_REMEMBERED:
            del self._warned[next(iter(self._warned))]
        self._warned[key] = reason
        logger.warning("ignoring the discovery record %r: %s", key, reason)
