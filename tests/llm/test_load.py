"""`LoadSource`: the load of a worker."""

from __future__ import annotations

import msgspec
import pytest

from dynamo_fast.discovery.buckets import EVENT_CHANNELS
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.ingress.worker import ServedEndpoint
from dynamo_fast.llm.load import LoadSource
from tests.llm import captured
from tests.llm.conftest import WORKER_ID
from tests.llm.subscriber import Subscriber, channels, records

NEW, OLD = "namespace/ns/component/comp/endpoint/generate/topic/kv_metrics", "ns//kv_metrics"


@pytest.mark.parametrize("version", ["161", "131"])
async def test_the_load_is_dynamos_to_the_byte(version: str, served: ServedEndpoint) -> None:
    (frames,) = captured.frames(version, captured.LOAD)
    payload = msgspec.msgpack.decode(frames[3][5:])["payload"]
    source = LoadSource(served.endpoint, msgspec.msgpack.decode(payload)["worker_id"])
    sent: list[bytes] = []
    source._channel.send = sent.append  # type: ignore[assignment, method-assign]
    source.publish(active_decode_blocks=3, kv_used_blocks=9)
    source.close_sockets()
    assert sent == [payload]


async def test_both_releases_find_one_socket(served: ServedEndpoint, subscriber: Subscriber) -> None:
    source = await LoadSource.open(served)
    addresses = await channels(served.worker.discovery.store)
    assert addresses.keys() == {NEW, OLD}
    assert addresses[NEW] == addresses[OLD]
    source.publish(active_decode_blocks=5)
    source.publish(kv_used_blocks=6, dp_rank=2)
    subscriber.connect(addresses[NEW])  # late: it gets the last one at once
    assert (await subscriber.receive()).payload == {
        "worker_id": WORKER_ID,
        "dp_rank": 2,
        "active_decode_blocks": None,
        "active_prefill_tokens": None,
        "kv_used_blocks": 6,
    }
    await source.close()
    source.publish(kv_used_blocks=6)
    assert await records(served.worker.discovery.store, EVENT_CHANNELS) == {}


async def test_wrong_figures_name_the_field(served: ServedEndpoint) -> None:
    source = await LoadSource.open(served)
    with pytest.raises(InvalidRequest, match="at least one load metric"):
        source.publish()
    with pytest.raises(InvalidRequest, match="kv_used_blocks=-1"):
        source.publish(kv_used_blocks=-1)
    with pytest.raises(InvalidRequest, match="dp_rank=4294967296"):
        source.publish(kv_used_blocks=1, dp_rank=1 << 32)
