"""The model card of an engine. What is expected was published by the `Worker` of Dynamo 1.6.1 for the same input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.backend import DisaggregationMode, EngineConfig, LlmRegistration, WorkerConfig
from dynamo_fast.backend.registration import register
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.ingress.model_cards import Model
from dynamo_fast.llm import ModelInput
from dynamo_fast.wire.model_card import Card
from tests.llm.folders import make_folder

PLAIN = {
    "total_kv_blocks": None,
    "max_num_seqs": None,
    "max_num_batched_tokens": None,
    "tool_call_parser": None,
    "reasoning_parser": None,
    "tool_call_arguments_format": "json_string",
    "structural_tag_mode": "off",
    "structural_tag_scope": "auto",
    "structural_tag_schema": "auto",
    "exclude_tools_when_tool_choice_none": True,
    "data_parallel_start_rank": 0,
    "data_parallel_size": 1,
    "enable_local_indexer": True,
    "enable_eagle": False,
}
ENCODE = DisaggregationMode.Encode
PREFILL = DisaggregationMode.Prefill
DECODE = DisaggregationMode.Decode


class _Endpoint:
    """Keeps the model that is published under it."""

    card: Card

    async def publish_model(self, model: Model) -> None:
        (self.card,) = model.cards

    async def remove_model(self, suffix: str | None = None) -> None: ...

    async def update_model(self, change: Any) -> None: ...


async def card_of(engine: EngineConfig, **config: Any) -> Card:
    endpoint: Any = _Endpoint()
    await register(endpoint, WorkerConfig("ns", **config), engine)
    card: Card = endpoint.card
    return card


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(make_folder(tmp_path / "tiny"))


async def test_the_card_of_an_engine_that_says_nothing(folder: str) -> None:
    card = await card_of(EngineConfig("m"), model_name=folder)
    assert (card.display_name, card.model_type, card.model_input) == ("m", "Chat | Completions", "Tokens")
    assert (card.worker_type, card.needs, card.kv_cache_block_size) == ("aggregated", [], 16)
    assert (card.source_path, card.context_length) == (folder, 2048)
    assert card.runtime_config == PLAIN


async def test_everything_that_an_engine_and_an_operator_can_say(folder: str) -> None:
    llm = LlmRegistration(2048, 32, 1000, 64, 4096, 2, 1, "1.2.3.4", 99, True, 3)
    engine = EngineConfig("m", runtime_data={"a": {"b": 1}, "c": "d"}, llm=llm, model_aliases=["al1", "al2"])
    card = await card_of(
        engine,
        model_name=folder,
        default_thinking_mode="disabled",
        reasoning_parser="kimi_k25",
        tool_call_parser="kimi_k2",
        exclude_tools_when_tool_choice_none=False,
        enable_local_indexer=False,
        structural_tag={"scope": "always"},
        kv_state_endpoint="ns.comp.other",
    )
    assert (card.kv_cache_block_size, card.aliases) == (32, ["al1", "al2"])
    assert card.runtime_config == {
        **PLAIN,
        "context_length": 2048,
        "total_kv_blocks": 1000,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 4096,
        "tool_call_parser": "kimi_k2",
        "reasoning_parser": "kimi_k25",
        "structural_tag": {
            "scope": "always",
            "schema": "auto",
            "allow_tool_calls_with_structured_output": False,
            "reasoning_boundary": "auto",
            "tool_arguments_any_order": False,
        },
        "structural_tag_mode": "on",
        "structural_tag_scope": "always",
        "exclude_tools_when_tool_choice_none": False,
        "data_parallel_start_rank": 1,
        "data_parallel_size": 2,
        "enable_local_indexer": False,
        "kv_state_endpoint": {"namespace": "ns", "component": "comp", "name": "other"},
        "runtime_data": {"default_thinking_mode": "disabled", "a": {"b": 1}, "c": "d"},
        "disaggregated_endpoint": {"bootstrap_host": "1.2.3.4", "bootstrap_port": 99},
        "enable_eagle": True,
        "max_gpu_lora_count": 3,
    }


async def test_the_words_of_dynamo_1_3_for_structural_tags(folder: str) -> None:
    card = await card_of(
        EngineConfig("m"),
        model_name=folder,
        structural_tag_mode="on",
        structural_tag_scope="always",
        structural_tag_schema="strict",
    )
    words = {"structural_tag_mode": "on", "structural_tag_scope": "always", "structural_tag_schema": "strict"}
    assert card.runtime_config == {**PLAIN, **words}


@pytest.mark.parametrize(
    ("mode", "route", "expected"),
    [
        (DisaggregationMode.Aggregated, True, ("Chat | Completions", "aggregated", [["encode"]])),
        (PREFILL, False, ("Prefill", "prefill", [["decode"]])),
        (PREFILL, True, ("Prefill", "prefill", [["decode", "encode"]])),
        (DECODE, False, ("Chat | Completions", "decode", [["prefill"]])),
        (ENCODE, False, ("", "encode", [["prefill", "decode"], ["aggregated"]])),
    ],
)
async def test_the_part_of_a_worker(mode: DisaggregationMode, route: bool, expected: Any, folder: str) -> None:
    card = await card_of(EngineConfig("m"), model_name=folder, disaggregation_mode=mode, route_to_encoder=route)
    assert (card.model_type, card.worker_type, card.needs) == expected
    assert isinstance(card.runtime_config, dict)
    assert card.runtime_config["enable_local_indexer"] is (mode is not ENCODE)
    assert card.runtime_config.get("runtime_data") == ({"encoder_result_handoff": True} if route else None)


@pytest.mark.parametrize(
    ("operator", "engine", "shown"), [("cfg", "eng", "cfg"), (None, "eng", "eng"), (None, None, "m"), ("", None, "m")]
)
async def test_the_name_of_a_model(operator: str | None, engine: str | None, shown: str, folder: str) -> None:
    card = await card_of(EngineConfig("m", engine), model_name=folder, served_model_name=operator)
    assert (card.display_name, card.source_path) == (shown, folder)


@pytest.mark.parametrize(
    ("types", "card_type"),
    [
        ("Chat", "Chat"),
        ("chat,,completions", "Chat | Completions"),
        ("chat, completions", "Chat | Completions"),
        ("embeddings", "Embedding"),
        ("tensor", "TensorBased"),
        ("image,videos,audios", "Images | Audios | Videos"),
    ],
)
async def test_endpoint_types(types: str, card_type: str, folder: str) -> None:
    assert (await card_of(EngineConfig("m"), model_name=folder, endpoint_types=types)).model_type == card_type


@pytest.mark.parametrize(
    ("types", "text"),
    [
        ("foo", "unknown endpoint type 'foo'"),
        ("prefill", "unknown endpoint type 'prefill'"),
        ("", "endpoint_types cannot be empty"),
        (" , ", "endpoint_types cannot be empty"),
    ],
)
async def test_endpoint_types_that_do_not_exist(types: str, text: str, folder: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        await card_of(EngineConfig("m"), model_name=folder, endpoint_types=types)


@pytest.mark.parametrize("config", [{"model_name": ""}, {"model_name": "no-folder", "model_input": ModelInput.Text}])
async def test_a_model_without_files(config: dict[str, Any]) -> None:
    card = await card_of(EngineConfig("m", "shown"), endpoint_types="images", **config)
    assert (card.display_name, card.model_info, card.tokenizer) == ("shown", None, None)
    assert card.kv_cache_block_size == 16
    sized = EngineConfig("m", llm=LlmRegistration(kv_cache_block_size=24))
    assert (await card_of(sized, endpoint_types="images", **config)).kv_cache_block_size == 24


async def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidRequest, match="no-such-folder does not exist"):
        await card_of(EngineConfig("m"), model_name="no-such-folder")


async def test_a_chat_template_that_is_not_there_is_named(folder: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"Custom template file does not exist: .*nope\.jinja"):
        await card_of(EngineConfig("m"), model_name=folder, custom_jinja_template="nope.jinja")
