"""Waits for instances whose model cards have certain runtime data (runtime.md 4.10, model_card.md 2.2).

A worker writes such data into its card (`ModelRuntimeConfig.set_engine_specific`), for other workers to find it by.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import msgspec

from dynamo_fast.discovery.buckets import MODEL_CARDS
from dynamo_fast.discovery.store import RecordEvent, RecordPut
from dynamo_fast.egress.instance_table import Entry, InstanceTable
from dynamo_fast.errors import Disconnected
from dynamo_fast.runtime.exceptions import argument_error
from dynamo_fast.runtime.hub import Hub
from dynamo_fast.wire.text import UNREADABLE

__all__ = ["check_arguments", "wait_for_runtime_data"]


class _RuntimeConfig(msgspec.Struct):
    runtime_data: dict[str, Any] = {}


class _Card(msgspec.Struct):
    runtime_config: _RuntimeConfig = msgspec.field(default_factory=_RuntimeConfig)


class _Record(msgspec.Struct):
    namespace: str
    component: str
    endpoint: str
    instance_id: int
    card_json: _Card
    model_suffix: str | None = None


_decoder = msgspec.json.Decoder(_Record)


class _Matches:
    """The instances of one endpoint whose card has `value` under `key`. Lives as long as one wait; one event loop."""

    def __init__(self, table: InstanceTable, key: str, value: str) -> None:
        self._table = table
        self._wanted = key, value
        self._cards: dict[str, int] = {}  # the key of each record that matches, and its instance
        self._changed = asyncio.Event()
        self._over = False

    def ids(self) -> list[int]:
        """In ascending order. An instance that is not in discovery, or only its card, does not count."""
        return sorted({each for each in self._cards.values() if self._table.find(each) is not None})

    async def until(self, count: int, *, exactly: bool) -> list[int]:
        """The ids, once there are `count` or, unless `exactly`, more. Raises Disconnected if the runtime ends."""
        while True:
            ids = self.ids()
            if len(ids) == count or (len(ids) > count and not exactly):
                return ids
            if self._over:
                raise Disconnected(f"Watch on bucket '{MODEL_CARDS.name}' was cancelled")
            self._changed.clear()
            await self._changed.wait()

    def apply(self, event: RecordEvent[bytes]) -> None:
        """A card appeared or went away."""
        if isinstance(event, RecordPut) and (instance_id := self._instance_of(event.value)) is not None:
            self._cards[event.key] = instance_id
        else:
            self._cards.pop(event.key, None)
        self._changed.set()

    def table_changed(self, gone: Entry | None) -> None:
        """See `TableListener`."""
        self._changed.set()

    def end(self, _: asyncio.Future[None]) -> None:
        """The runtime has ended."""
        self._over = True
        self._changed.set()

    def _instance_of(self, content: bytes) -> int | None:
        """The instance of a record that matches. The card of a LoRA adapter does not: the base model's has the data."""
        try:
            record = _decoder.decode(content)
        except UNREADABLE:
            return None
        if record.model_suffix or (record.namespace, record.component, record.endpoint) != self._table.endpoint:
            return None
        key, value = self._wanted
        found = record.card_json.runtime_config.runtime_data.get(key)
        return record.instance_id if isinstance(found, str) and found == value else None


async def wait_for_runtime_data(
    hub: Hub, table: InstanceTable, wanted: tuple[str, str], count: int, *, timeout: float | None, exactly: bool = False
) -> list[int]:
    """The ids of the instances of `table` with the wanted data, a key and a value, once there are `count`.

    Raises TimeoutError after `timeout` seconds, with Dynamo's text; without a timeout it waits until the runtime ends, and
    raises Disconnected. Raises ValueError for a timeout that is negative or not finite.
    """
    if timeout is not None and (not math.isfinite(timeout) or timeout < 0):
        raise ValueError("timeout_s must be a finite non-negative number")
    hub.check_open(MODEL_CARDS.name)
    key, value = wanted
    matches = _Matches(table, key, value)
    watch = await hub.discovery.store.bucket(MODEL_CARDS).watch(f"{table.endpoint}/", matches.apply)
    table.listen(matches)
    ended = hub.ended()
    ended.add_done_callback(matches.end)
    waiting = asyncio.ensure_future(matches.until(count, exactly=exactly))
    try:
        await asyncio.wait([waiting], timeout=timeout)
        if waiting.done():
            return waiting.result()
        what = "one endpoint instance" if exactly else f"{count} endpoint instances"
        ids = matches.ids()
        raise TimeoutError(
            f"Timed out waiting for {what} with runtime_data[{_quoted(key)}] == {_quoted(value)}; "
            f"last_match_count={len(ids)}, matching_ids={ids}"
        )
    finally:
        waiting.cancel()
        ended.remove_done_callback(matches.end)
        watch.close()


def check_arguments(key: object, value: object, timeout_s: object) -> None:
    """Raises TypeError for an argument of another type than text, text, and a number or None."""
    for name, given in (("key", key), ("value", value)):
        if not isinstance(given, str):
            raise argument_error(name, given, "PyString")
    if timeout_s is not None and not isinstance(timeout_s, (int, float)):
        raise TypeError(f"argument 'timeout_s': must be real number, not {type(timeout_s).__name__}")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
