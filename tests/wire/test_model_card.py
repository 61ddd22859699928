"""Model cards: Dynamo's own records byte for byte, and what a frontend refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_fast.errors import InvalidConfig, InvalidRequest, PayloadError
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.model_card import MODEL_TYPES, Card, CardFile, Lora, ModelRecord, checksum, slug

SPEC = Path(__file__).parents[2] / "docs" / "spec" / "model_card"
DIGEST = "blake3:" + "0" * 64


def captured() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each record of a model that real workers wrote: its name here, its key, its content."""
    for version in ("131", "161"):
        for case, records in json.loads((SPEC / f"records-{version}.json").read_text()).items():
            for key, record in records.items():
                if key.startswith("v1/mdc/"):
                    yield f"{version}-{case}-{key.rpartition('/')[2]}", key.removeprefix("v1/mdc/"), record


CAPTURED = list(captured())


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def card(**fields: Any) -> dict[str, Any]:
    """The smallest card that frontends serve, and further fields."""
    smallest = {
        "display_name": "m",
        "slug": "m",
        "kv_cache_block_size": 16,
        "migration_limit": 0,
        "model_type": "Chat",
        "model_input": "Text",
    }
    return {**smallest, **fields}


def record(card_json: Any, **fields: Any) -> dict[str, Any]:
    return {
        "type": "Model",
        **dict(zip(("namespace", "component", "endpoint"), "abc", strict=True)),
        "instance_id": 0xF5,
        "card_json": card_json,
        **fields,
    }


@pytest.mark.parametrize(("key", "content"), [each[1:] for each in CAPTURED], ids=[each[0] for each in CAPTURED])
def test_a_record_of_a_real_worker_is_written_again_byte_for_byte(key: str, content: dict[str, Any]) -> None:
    found = ModelRecord.decode(compact(content))
    assert found.encode() == compact(content)
    assert found.key == key
    assert found.faults() == []
    found.card.check()
    assert ModelRecord.of(found.card, found.endpoint_id, found.instance_id) == found


def test_there_are_records_of_both_releases() -> None:
    assert len(CAPTURED) == 44


def test_fields_that_are_not_known_are_ignored() -> None:
    found = ModelRecord.decode(compact(record(card(later={"x": 1}), also=2)))
    assert found.card == ModelRecord.decode(compact(record(card()))).card


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (compact({**record(card()), "type": "Endpoint"}), "type"),
        (compact({key: value for key, value in record(card()).items() if key != "type"}), "missing.*`type`"),
        (compact(record(card(), instance_id=-1)), "instance_id"),
        (compact(record(card(), instance_id=1 << 64)), "instance_id"),
        (compact(record(None)), "card_json"),
        *(
            (compact(record({key: value for key, value in card().items() if key != name})), f"missing.*`{name}`")
            for name in card()
        ),
        (compact(record(card(slug="A.b"))), "`slug` has 'A'"),
        (compact(record(card(model_type="Chat | Chatty"))), "unknown flag 'Chatty'"),
        (compact(record(card(model_type=["Chat"]))), r"\$.card_json.model_type"),
        (compact(record(card(model_input="text"))), r"\$.card_json.model_input"),
        (compact(record(card(worker_type="Prefill"))), r"\$.card_json.worker_type"),
        (compact(record(card(runtime_config=None))), r"\$.card_json.runtime_config"),
        (compact(record(card(kv_cache_block_size=1 << 32))), "`kv_cache_block_size` is 4294967296"),
        (compact(record(card(context_length=-1))), "`context_length` is -1"),
        (compact(record(card(model_info={"hf_config_json": {"path": "x"}}))), "missing.*`checksum`"),
        (
            compact(record(card(model_info={"hf_config_json": {"path": "x", "checksum": "sha256:00"}}))),
            "`model_info` has the checksum 'sha256:00'",
        ),
        (compact(record(card(router_config={"router_mode": "random"}))), "`router_config` has no kv_router_config"),
        (compact(record(card(router_config={"kv_router_config": {}}))), "`router_config` has no router_mode"),
        (compact(record(card(prompt_formatter={}))), "0 of hf_tokenizer_config_json"),
        (compact(record(card(display_name="here"))).replace(b"here", b"\xff"), "."),
        (b'{"a":' + b"[" * 100_000, "."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_frontend_refuses_is_an_error_that_names_the_field(content: bytes, wrong: str) -> None:
    with pytest.raises(PayloadError, match=f"not a model's record: .*{wrong}"):
        ModelRecord.decode(content)


@pytest.mark.parametrize("content", [compact(record(card()))[:length] for length in range(0, 200, 7)])
def test_a_record_that_is_cut_is_an_error(content: bytes) -> None:
    with pytest.raises(PayloadError, match="not a model's record"):
        ModelRecord.decode(content)


def test_a_model_for_tokens_needs_its_files() -> None:
    tokens = ModelRecord.decode(compact(record(card(model_input="Tokens"))))
    assert [fault.split()[0] for fault in tokens.faults()] == ["model_info", "tokenizer", "prompt_formatter"]
    tokens.card.check()  # it is a card; other frontends than Dynamo's might make the tokens without files
    completions = ModelRecord.decode(compact(record(card(model_input="Tokens", model_type="Completions"))))
    assert [fault.split()[0] for fault in completions.faults()] == ["model_info", "tokenizer"]
    prefill = ModelRecord.decode(compact(record(card(model_input="Tokens", model_type=""))))
    assert prefill.faults() == []


def test_an_adapter_and_its_suffix_belong_together() -> None:
    for fields, suffix in (({}, "x"), ({"lora": {"name": "x"}}, None)):
        found = ModelRecord.decode(compact(record(card(**fields), model_suffix=suffix)))
        assert found.faults() == ["lora and model_suffix disagree: expected both, or neither"]
    adapter = msgspec.structs.replace(
        ModelRecord.decode(compact(record(card()))).card, display_name="My Lora", slug="my_lora", lora=Lora("My Lora")
    )
    made = ModelRecord.of(adapter, EndpointId("a", "b", "c"), 0xF5)
    assert (made.key, made.faults()) == ("a/b/c/f5/my_lora", [])


def test_a_card_with_a_value_of_the_wrong_type_is_refused_before_it_is_put() -> None:
    wrong: Any = 7
    made = Card(
        display_name=wrong, slug="m", kv_cache_block_size=0, migration_limit=0, model_type="Chat", model_input="Text"
    )
    with pytest.raises(InvalidRequest, match=r"display_name"):
        made.check()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen3-0.6B", "qwen_qwen3-0_6b"),
        ("A.B:C@1", "a_b_c_1"),
        ("_x", "x"),
        ("-x..Ö", "-x___"),
        ("ÖÄ", ""),
        ("", ""),
        ("My Model/v1.0 X_y", "my_model_v1_0_x_y"),
    ],
)
def test_slugs_are_dynamos(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_a_checksum_is_blake3() -> None:
    """From the test vectors of BLAKE3: the input of no byte."""
    assert checksum(b"") == "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(InvalidConfig, match=r"model cards need blake3: pip install 'dynamo-fast\[models\]'"):
        checksum(b"")
    with pytest.raises(InvalidConfig, match=r"pip install 'dynamo-fast\[models\]'"):
        ModelRecord.decode(compact(record(card()))).card.mdc_sum()


BASE = ModelRecord.decode(compact(record(card(model_info={"hf_config_json": {"path": "x", "checksum": DIGEST}})))).card


@pytest.mark.parametrize(
    "fields",
    [
        {"display_name": "n"},
        {"source_path": "x"},
        {"model_info": {"hf_config_json": CardFile("x", DIGEST[:-1] + "1")}},
        {"kv_cache_block_size": 17},
        {"context_length": 1},
        {"architectural_max_context_length": 1},
        {"runtime_config": {"context_length": 1}},
        {"worker_type": "prefill"},
        {"needs": [["decode"]]},
        {"aliases": ["a"]},
        {"router_config": {"router_mode": "random", "kv_router_config": {}}},
        {"extra_files": [CardFile("/a/b", DIGEST)]},
    ],
    ids=str,
)
def test_the_sum_covers(fields: dict[str, Any]) -> None:
    assert msgspec.structs.replace(BASE, **fields).mdc_sum() != BASE.mdc_sum()


@pytest.mark.parametrize(
    "fields",
    [
        {"model_info": {"hf_config_json": CardFile("http://elsewhere/x", DIGEST, 5)}},
        {"user_data": {"a": 1}},
        {"model_type": "Completions"},
        {"runtime_config": {"total_kv_blocks": 1}},
        {"migration_limit": 3},
        {"aliases": []},
    ],
    ids=str,
)
def test_the_sum_does_not_cover(fields: dict[str, Any]) -> None:
    assert msgspec.structs.replace(BASE, **fields).mdc_sum() == BASE.mdc_sum()


def test_the_files_can_be_replaced() -> None:
    content = next(each for name, _, each in CAPTURED if name.startswith("161-jinja"))
    found = ModelRecord.decode(compact(content)).card
    changed = found.with_files(lambda file: CardFile(f"/local/{file.name}", file.checksum, file.size))
    assert [file.path for _, file in changed.files()] == [f"/local/{file.name}" for _, file in found.files()]
    assert changed.mdc_sum() == found.mdc_sum()
    assert {name for name, _ in found.files()} == {
        *("model_info", "tokenizer", "prompt_formatter", "chat_template_file", "gen_config", "extra_files")
    }


def test_every_flag_is_known() -> None:
    everything = " | ".join(MODEL_TYPES)
    assert ModelRecord.decode(compact(record(card(model_type=everything)))).card.flags == list(MODEL_TYPES)
