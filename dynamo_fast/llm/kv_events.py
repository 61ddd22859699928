"""`KvEventSource`: tells frontends in `kv` mode which blocks of the KV cache a worker has (model_card.md 7).

    served = await worker.serve(handler, "demo.backend.generate")
    source = await KvEventSource.open(served, block_size=16)
    source.stored(token_ids, block_hashes)          # from any thread
    source.removed(block_hashes)
    source.cleared()

Frontends of Dynamo 1.6 and 1.3 want other bytes under other records. Which release a subscriber has is not on the wire,
so both are published, each on a socket of its own, and both ask their own endpoint for what they missed. What is sent to
a socket without a subscriber is dropped there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from dynamo_fast.config import EventPlaneConfig, KvEventConfig
from dynamo_fast.discovery.buckets import EVENT_CHANNELS, EVENT_SOURCES
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.ingress.worker import ServedEndpoint, Worker
from dynamo_fast.llm.event_plane import ChannelScope, EventChannel, endpoint_fields, new_publisher_id
from dynamo_fast.llm.kv_blocks import MmInfos, compute_block_hash_for_seq, mm_extra_info
from dynamo_fast.llm.kv_state import DEVICE, KvChange, KvDialect, KvState, block_hash, cleared, removed, stored
from dynamo_fast.llm.source import Source
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.json_text import dumps, loads
from dynamo_fast.wire.payload import Bare

__all__ = ["KvEventSource", "blocks_of"]

TOPIC = "kv-events"
TIERS = (DEVICE, "host_pinned", "disk", "external")


class KvEventSource(Source):
    """The KV events of one endpoint and one data-parallel rank; `open` makes it.

    It owns its recovery endpoints, beside what every `Source` owns. The block size must be that of the model card. Any
    thread may publish; nothing waits for a frontend.
    """

    def __init__(
        self,
        endpoint: EndpointId,
        worker_id: int,
        block_size: int,
        dp_rank: int = 0,
        *,
        state_endpoint: EndpointId | None = None,
        plane: EventPlaneConfig | None = None,
        config: KvEventConfig | None = None,
    ) -> None:
        """Bind the sockets. They are not in discovery until `announce`. `open` does both.

        `worker_id` is the instance id that frontends know the worker by. `state_endpoint` is the endpoint whose state the
        events describe, if it is another one.

        Raises InvalidRequest for the block size or the rank, InvalidConfig for a setting or a missing package, OSError if
        the host cannot be bound.
        """
        if block_size < 1:
            raise InvalidRequest(f"block_size={block_size} is not valid: expected at least 1")
        if not 0 <= dp_rank < 1 << 32:
            raise InvalidRequest(f"dp_rank={dp_rank} is not valid: expected an unsigned 32-bit number")
        compute_block_hash_for_seq((), block_size)  # a missing package is an error here, not in an engine's thread
        self.block_size = block_size
        self.dp_rank = dp_rank
        self.publisher_id = new_publisher_id()
        self._endpoint = endpoint
        self._state_endpoint = state_endpoint or endpoint
        self._state = KvState(worker_id, dp_rank, config or KvEventConfig.from_env())
        self._recovery: list[ServedEndpoint] = []
        super().__init__(plane)
        self._new = self._plane.channel(TOPIC, self.publisher_id)
        self._old = self._plane.channel(TOPIC, self.publisher_id)
        self._channels: tuple[tuple[KvDialect, EventChannel], ...] = (
            (KvDialect.SINCE_1_6, self._new),
            (KvDialect.UNTIL_1_5, self._old),
        )

    @classmethod
    async def open(cls, served: ServedEndpoint, block_size: int, dp_rank: int = 0) -> KvEventSource:
        """The events of a served endpoint, announced. Raises what the constructor and `announce` raise."""
        source = cls(served.endpoint, served.instance.instance_id, block_size, dp_rank)
        await source.announce(served.worker)
        return source

    def __str__(self) -> str:
        return f"the KV events of {self._endpoint}"

    # From any thread --------------------------------------------------------------------------------------------------

    def stored(
        self,
        token_ids: Sequence[int],
        block_hashes: Sequence[int],
        parent_hash: int | None = None,
        *,
        lora_name: str | None = None,
        cache_salt: str | None = None,
        is_eagle: bool = False,
        block_mm_infos: MmInfos | None = None,
        tier: str = DEVICE,
    ) -> None:
        """The cache has the blocks `block_hashes` now, which hold `token_ids` and follow the block `parent_hash`.

        The hashes are the engine's own, 64 bits, signed or unsigned. `tier` is where the blocks are: `device`,
        `host_pinned`, `disk` or `external`. Tokens beyond the last block are ignored.

        Raises InvalidRequest if there are too few tokens, OverflowError and TypeError for values that are no numbers of
        the right size. Does nothing after `close`.
        """
        hashes = compute_block_hash_for_seq(token_ids, self.block_size, block_mm_infos, lora_name, is_eagle, cache_salt)
        if len(hashes) < len(block_hashes):
            raise InvalidRequest(
                f"{len(token_ids)} tokens fill {len(hashes)} blocks of {self.block_size}, not {len(block_hashes)}"
            )
        if block_hashes:
            data = stored(blocks_of(block_hashes, hashes, block_mm_infos), parent_hash)
            self.publish([KvChange(data, self.dp_rank, _tier(tier))])

    def removed(self, block_hashes: Sequence[int], *, tier: str = DEVICE) -> None:
        """The cache has these blocks no more. Raises OverflowError, TypeError. Does nothing after `close`."""
        if block_hashes:
            self.publish([KvChange(removed(block_hashes), self.dp_rank, _tier(tier))])

    def cleared(self) -> None:
        """The cache is empty now. Does nothing after `close`."""
        self.publish([KvChange(cleared, self.dp_rank)])

    def publish(self, changes: Sequence[KvChange]) -> None:
        """Publish several changes in one message, where the release allows it. Does nothing after `close`."""
        with self._lock:
            if self._closed:
                return
            events = [self._state.add(change) for change in changes]
            for dialect, channel in self._channels:
                for payload in dialect.payloads(self._state.worker_id, events):
                    channel.send(payload)

    # Being found ------------------------------------------------------------------------------------------------------

    async def _announce(self, worker: Worker) -> None:
        new_recovery = await self._serve(worker, KvDialect.SINCE_1_6, f"worker_kv_query_source_{self.publisher_id:x}")
        await self._serve(worker, KvDialect.UNTIL_1_5, f"worker_kv_indexer_query_dp{self.dp_rank}")
        store, scope = worker.discovery.store, ChannelScope.ENDPOINT
        source = self._source_record(new_recovery.instance)
        # The source goes first when the records are removed in this order.
        key = scope.key(self._state_endpoint, TOPIC, self.publisher_id)
        await self._put(store.bucket(EVENT_SOURCES), key, source)
        await self._put(store.bucket(EVENT_CHANNELS), key, self._new.record(scope, self._state_endpoint))
        scope = ChannelScope.COMPONENT
        key = scope.key(self._endpoint, TOPIC, self.publisher_id)
        await self._put(store.bucket(EVENT_CHANNELS), key, self._old.record(scope, self._endpoint))

    async def _serve(self, worker: Worker, dialect: KvDialect, name: str) -> ServedEndpoint:
        """Serve a recovery endpoint, in the component of the endpoint."""

        async def recover(request: Any) -> AsyncIterator[Bare]:
            yield Bare(await asyncio.to_thread(self._state.recover, request, dialect, self._lock))  # blocks may be many

        namespace, component, _ = self._endpoint
        served = await worker.serve(recover, EndpointId(namespace, component, name))
        self._recovery.append(served)
        return served

    async def _leave(self) -> None:
        await super()._leave()
        await asyncio.gather(*(served.close() for served in self._recovery))

    def _source_record(self, recovery: Instance) -> bytes:
        target = loads(recovery.encode())
        del target["type"]
        target.pop("dynamo_fast_mux", None)  # for callers of the endpoint only
        return dumps(
            {
                "type": "EventSource",
                **ChannelScope.ENDPOINT.fields(self._state_endpoint),
                "topic": TOPIC,
                "publisher_id": self.publisher_id,
                "metadata": {
                    "kv_state_endpoint": endpoint_fields(self._state_endpoint),
                    "worker": {"worker_id": self._state.worker_id, "dp_rank": self.dp_rank},
                    "publisher_id": self.publisher_id,
                    "recovery_target": target,
                },
            }
        )


def blocks_of(
    block_hashes: Sequence[int], tokens_hashes: Sequence[int], mm_infos: MmInfos | None
) -> list[dict[str, Any]]:
    infos = [mm_extra_info(info) for info in (mm_infos or ())[: len(block_hashes)]]
    infos += [None] * (len(block_hashes) - len(infos))
    return [
        {"block_hash": block_hash(number), "tokens_hash": tokens_hash, "mm_extra_info": info}
        for number, tokens_hash, info in zip(block_hashes, tokens_hashes, infos, strict=False)
    ]


def _tier(tier: str) -> str:
    if tier not in TIERS:
        raise InvalidRequest(f"tier={tier!r} is not valid: expected one of {', '.join(map(repr, TIERS))}")
    return tier
