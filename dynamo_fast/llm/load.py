"""`LoadSource`: tells frontends how full a worker is (model_card.md 7.4).

Frontends that run with a busy threshold, in any router mode, send nothing to a worker above it, and answer 529 if all are.
The threshold is a part of `runtime_config.total_kv_blocks` of the model card.
"""

from __future__ import annotations

import msgspec

from dynamo_fast.config import EventPlaneConfig
from dynamo_fast.discovery.buckets import EVENT_CHANNELS
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.ingress.worker import ServedEndpoint, Worker
from dynamo_fast.llm.event_plane import ChannelScope, new_publisher_id
from dynamo_fast.llm.source import Source
from dynamo_fast.wire.address import EndpointId

__all__ = ["LoadSource"]

TOPIC = "kv_metrics"
_write = msgspec.msgpack.Encoder().encode


class LoadSource(Source):
    """The load of one endpoint; `open` makes it. Any thread may publish; nothing waits for a frontend.

    Frontends of Dynamo 1.6 and 1.3 read the same socket, and find it under two records.
    """

    def __init__(self, endpoint: EndpointId, worker_id: int, *, plane: EventPlaneConfig | None = None) -> None:
        """Bind the socket. Frontends learn of it by `announce`. `open` does both. Raises InvalidConfig, OSError."""
        self._endpoint = endpoint
        self._worker_id = worker_id
        super().__init__(plane)
        self._channel = self._plane.channel(TOPIC, new_publisher_id())

    @classmethod
    async def open(cls, served: ServedEndpoint) -> LoadSource:
        """The load of a served endpoint, announced. Raises what the constructor and `announce` raise."""
        source = cls(served.endpoint, served.instance.instance_id)
        await source.announce(served.worker)
        return source

    def __str__(self) -> str:
        return f"the load figures of {self._endpoint}"

    def publish(
        self,
        *,
        active_decode_blocks: int | None = None,
        kv_used_blocks: int | None = None,
        active_prefill_tokens: int | None = None,
        dp_rank: int = 0,
    ) -> None:
        """The load now, in blocks of the KV cache and in tokens. None: not known.

        Raises InvalidRequest if nothing is known, or for a number that is negative. Does nothing after `close`.
        """
        load = {
            "worker_id": self._worker_id,
            "dp_rank": dp_rank,
            "active_decode_blocks": active_decode_blocks,
            "active_prefill_tokens": active_prefill_tokens,
            "kv_used_blocks": kv_used_blocks,
        }
        known = {name: value for name, value in load.items() if value is not None}
        if len(known) == 2:
            raise InvalidRequest("worker metrics publish requires at least one load metric")
        for name, value in known.items():
            if not 0 <= value < 1 << (32 if name == "dp_rank" else 64):
                raise InvalidRequest(f"{name}={value} is not valid: expected an unsigned number")
        with self._lock:
            if not self._closed:
                self._channel.send(_write(load))

    async def _announce(self, worker: Worker) -> None:
        bucket = worker.discovery.store.bucket(EVENT_CHANNELS)
        whole_namespace = self._endpoint._replace(component="")  # as Dynamo 1.3 has it for this topic
        for scope, endpoint in ((ChannelScope.ENDPOINT, self._endpoint), (ChannelScope.COMPONENT, whole_namespace)):
            key = scope.key(endpoint, TOPIC, self._channel.publisher_id)
            await self._put(bucket, key, self._channel.record(scope, endpoint))
