"""`MediaDecoder` and `MediaFetcher` in a model card. tests/compat compares their arguments and errors with Dynamo's own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.discovery.buckets import MODEL_CARDS
from dynamo_fast.llm import MediaDecoder, MediaFetcher, ModelInput, ModelType, WorkerType, register_model
from dynamo_fast.runtime import DistributedRuntime
from tests.llm.folders import make_folder

LIMIT = 30
NO_LIMITS = {"max_image_width": None, "max_image_height": None, "max_alloc": None}


@pytest.mark.parametrize(
    ("options", "written"),  # by Dynamo 1.6.1
    [
        ([], {}),
        ([{}], {"image": {"limits": {**NO_LIMITS, "max_alloc": 134217728}}}),
        ([{"limits": {"max_image_width": 10}}], {"image": {"limits": {**NO_LIMITS, "max_image_width": 10}}}),
        ([{}, {"limits": {"max_alloc": None}}], {"image": {"limits": NO_LIMITS}}),
    ],
)
def test_a_decoder_in_a_card(options: list[dict[str, Any]], written: dict[str, Any]) -> None:
    decoder = MediaDecoder()
    for each in options:
        decoder.enable_image(each)
    assert json.dumps(decoder.to_card()) == json.dumps(written)


def test_a_fetcher_in_a_card() -> None:
    fetcher = MediaFetcher()
    by_default = (
        '{"user_agent": "dynamo-ai/dynamo", "allow_direct_ip": false, "allow_direct_port": false, '
        '"allow_private_ips": false, "allowed_media_domains": null, "timeout": {"secs": 30, "nanos": 0}}'
    )
    assert json.dumps(fetcher.to_card()) == by_default
    fetcher.user_agent("me")
    fetcher.allow_direct_ip(True)
    fetcher.allow_direct_port(True)
    fetcher.allow_private_ips(True)
    fetcher.allowed_media_domains(["c", "a.b", "c"])
    fetcher.timeout_ms(5)
    changed = (
        '{"user_agent": "me", "allow_direct_ip": true, "allow_direct_port": true, '
        '"allow_private_ips": true, "allowed_media_domains": ["c", "a.b"], "timeout": {"secs": 0, "nanos": 5000000}}'
    )
    assert json.dumps(fetcher.to_card()) == changed


async def test_a_registered_model_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("blake3", reason="model cards need the extra `models`")
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")
    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    endpoint = runtime.endpoint("media.test.generate")
    decoder = MediaDecoder()
    decoder.enable_image({})
    folder = str(make_folder(tmp_path / "model"))
    fetcher = MediaFetcher()
    await register_model(
        *(ModelInput.Text, ModelType.Chat, endpoint, folder),
        worker_type=WorkerType.Aggregated,
        media_decoder=decoder,
        media_fetcher=fetcher,
    )
    (record,) = await runtime._hub.discovery.store.bucket(MODEL_CARDS).list()
    card = json.loads(record.value)["card_json"]
    assert (card["media_decoder"], card["media_fetcher"]) == (decoder.to_card(), fetcher.to_card())
    runtime.shutdown()
    await asyncio.wait_for(runtime.ended(), LIMIT)
