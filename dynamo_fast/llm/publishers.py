"""`KvEventPublisher` and `WorkerMetricsPublisher`, as `dynamo.llm` has them in Dynamo 1.6.1 and 1.3.1.

They take endpoints of the drop-in runtime. What they publish is `KvEventSource` and `LoadSource`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dynamo_fast.errors import DynamoError
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.llm.engine_relay import EngineRelay
from dynamo_fast.llm.kv_blocks import MmInfos, compute_block_hash_for_seq
from dynamo_fast.llm.kv_events import KvEventSource, blocks_of
from dynamo_fast.llm.kv_state import KvChange, removed, stored
from dynamo_fast.llm.load import LoadSource
from dynamo_fast.llm.source import Source
from dynamo_fast.logs import get_logger
from dynamo_fast.wire.address import EndpointId

__all__ = ["KvEventPublisher", "WorkerMetricsPublisher"]

logger = get_logger(__name__)


class _Hub(Protocol):
    """What is asked of a runtime's hub (`dynamo_fast.runtime.hub`)."""

    async def worker(self) -> Worker: ...

    def run(self, work: Any) -> None: ...


class KvEventPublisher:
    """KV events of one rank. The constructor returns at once; the records appear a moment later.

    Any thread may publish. It ends with `shutdown`, or with the runtime.
    """

    def __init__(  # noqa: PLR0917  # as Dynamo has it
        self,
        endpoint: Any,
        worker_id: int | None = None,
        kv_block_size: int = 0,
        dp_rank: int = 0,
        enable_local_indexer: bool = False,
        zmq_endpoint: str | None = None,
        zmq_topic: str | None = None,
        batching_timeout_ms: Any = ...,
        image_token_id: int | None = None,
        kv_state_endpoint: str | None = None,
        video_token_id: int | None = None,
    ) -> None:
        """`zmq_endpoint`: relay what an engine publishes there, as vLLM and SGLang do; `zmq_topic` is the topic's prefix.

        What frontends missed is always offered to them, whatever `enable_local_indexer` says, and events are sent at
        once, whatever `batching_timeout_ms` says. Multimodal placeholder tokens are not replaced: with `image_token_id`
        or `video_token_id`, prompts with media do not find their blocks.

        Raises an Exception with Dynamo's text for a block size of 0, OverflowError and TypeError as Dynamo does,
        InvalidConfig for a setting or a missing package, OSError if the host cannot be bound.
        """
        hub, name, connection_id = _parts(endpoint)
        for argument, value, bits in (("kv_block_size", kv_block_size, 64), ("dp_rank", dp_rank, 32)):
            _check_unsigned(argument, value, bits)
        if kv_block_size == 0:
            raise Exception("kv_block_size cannot be 0")
        if image_token_id is not None or video_token_id is not None:
            logger.warning("image_token_id and video_token_id are ignored: prompts with media do not find their blocks")
        self._source = KvEventSource(
            name,
            connection_id if worker_id is None else worker_id,
            kv_block_size,
            dp_rank,
            state_endpoint=None if kv_state_endpoint is None else EndpointId.parse(kv_state_endpoint),
        )
        try:
            if zmq_endpoint is not None:
                self._source.feeds.append(EngineRelay(self._source, zmq_endpoint, zmq_topic or "").close)
            self._hub = hub
            hub.run(_announced(hub, self._source))
        except BaseException:
            self._source.close_sockets()
            raise

    def publish_stored(  # noqa: PLR0917  # as Dynamo has it
        self,
        token_ids: Sequence[int],
        num_block_tokens: Sequence[int],
        block_hashes: Sequence[int],
        parent_hash: int | None = None,
        block_mm_infos: MmInfos | None = None,
        lora_name: str | None = None,
        is_eagle: bool | None = None,
        cache_salt: str | None = None,
    ) -> None:
        """The cache has these blocks now. A block that is not full ends them: what follows is not published."""
        changes = self._stored(
            token_ids=token_ids,
            num_block_tokens=num_block_tokens,
            block_hashes=block_hashes,
            parent_hash=parent_hash,
            block_mm_infos=block_mm_infos,
            lora_name=lora_name,
            is_eagle=is_eagle,
            cache_salt=cache_salt,
        )
        self._source.publish(changes)

    def publish_removed(self, block_hashes: Sequence[int]) -> None:
        """The cache has these blocks no more."""
        self._source.removed(block_hashes)

    def publish_batch(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Several of these at once: `{"type": "stored", ...}` or `{"type": "removed", ...}`, with the arguments' names.

        Raises ValueError, and publishes nothing, if one of them has another form.
        """
        self._source.publish([change for event in events for change in self._changes(event)])

    def shutdown(self) -> None:
        """Leave discovery, and publish nothing any more. May be called twice, from any thread."""
        self._source.close_sockets()
        try:
            self._hub.run(self._source.close())
        except RuntimeError:  # the loop has ended, and the records with it
            pass

    def _changes(self, event: Mapping[str, Any]) -> list[KvChange]:
        fields = dict(event)
        try:
            kind = fields.pop("type", None)
            if kind == "stored":
                return self._stored(**fields)
            if kind == "removed":
                return [KvChange(removed(fields["block_hashes"]), self._source.dp_rank)]
        except (TypeError, KeyError) as error:
            raise ValueError(f"invalid KV event batch: {error}") from error
        if kind is None:
            raise ValueError("invalid KV event batch: missing field `type`")
        raise ValueError(f"invalid KV event batch: unknown variant `{kind}`, expected `stored` or `removed`")

    def _stored(
        self,
        *,
        token_ids: Sequence[int],
        num_block_tokens: Sequence[int],
        block_hashes: Sequence[int],
        parent_hash: int | None = None,
        block_mm_infos: MmInfos | None = None,
        lora_name: str | None = None,
        is_eagle: bool | None = None,
        cache_salt: str | None = None,
    ) -> list[KvChange]:
        size = self._source.block_size
        hashes = compute_block_hash_for_seq(token_ids, size, block_mm_infos, lora_name, is_eagle, cache_salt)
        full = next((at for at, tokens in enumerate(num_block_tokens) if tokens != size), len(num_block_tokens))
        count = min(full, len(hashes), len(block_hashes))
        if count < len(block_hashes):
            logger.debug("%d of %d blocks are published: the others are not full", count, len(block_hashes))
        if count == 0:
            return []
        blocks = blocks_of(block_hashes[:count], hashes, block_mm_infos)
        return [KvChange(stored(blocks, parent_hash), self._source.dp_rank)]


class WorkerMetricsPublisher:
    """The load of a worker. What is published before `create_endpoint` is kept, the last of it, until then.

    Any thread may publish. It ends with the runtime.
    """

    def __init__(self) -> None:
        self._source: LoadSource | None = None
        self._kept: dict[str, Any] | None = None

    def create_endpoint(self, endpoint: Any) -> asyncio.Future[tuple[()]]:
        """The endpoint whose load it is. Await it. Raises what `LoadSource` raises."""
        hub, name, connection_id = _parts(endpoint)
        return asyncio.ensure_future(self._create(hub, name, connection_id))

    def publish(
        self, dp_rank: int | None = None, active_decode_blocks: int | None = None, kv_used_blocks: int | None = None
    ) -> None:
        """The load now. Raises an Exception with Dynamo's text if there is none, OverflowError for negative numbers."""
        load = {"active_decode_blocks": active_decode_blocks, "kv_used_blocks": kv_used_blocks}
        for argument, value, bits in (("dp_rank", dp_rank, 32), *((name, each, 64) for name, each in load.items())):
            if value is not None:
                _check_unsigned(argument, value, bits)
        if active_decode_blocks is None and kv_used_blocks is None:
            raise Exception("worker metrics publish requires at least one load metric")
        self._kept = {**load, "dp_rank": dp_rank or 0}
        if self._source is not None:
            self._source.publish(**self._kept)

    async def _create(self, hub: _Hub, name: EndpointId, connection_id: int) -> tuple[()]:
        worker = await hub.worker()
        source = LoadSource(name, connection_id)
        await source.announce(worker)
        self._source = source
        if self._kept is not None:
            source.publish(**self._kept)
        return ()


async def _announced(hub: _Hub, source: Source) -> None:
    try:
        await source.announce(await hub.worker())
    except (DynamoError, OSError) as error:
        logger.error("%s are not published: %s", source, error)
        await source.close()


def _parts(endpoint: Any) -> tuple[_Hub, EndpointId, int]:
    """The hub, the name and the connection id of an endpoint of the drop-in runtime."""
    try:
        return endpoint._hub, endpoint._id, endpoint.connection_id()
    except AttributeError:
        raise TypeError(
            f"argument 'endpoint': '{type(endpoint).__name__}' object cannot be converted to 'Endpoint'"
        ) from None


def _check_unsigned(argument: str, value: Any, bits: int) -> None:
    if not isinstance(value, int):
        text = f"argument '{argument}': '{type(value).__name__}' object cannot be interpreted as an integer"
        raise TypeError(text)
    if value < 0:
        raise OverflowError("can't convert negative int to unsigned")
    if value >> bits:
        raise OverflowError("out of range integral type conversion attempted")
