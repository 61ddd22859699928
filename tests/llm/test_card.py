"""A model card from a folder: what is in it, and the errors for a folder that no frontend could use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from dynamo_fast.errors import InvalidConfig, InvalidRequest
from dynamo_fast.llm import ModelCard, ModelInput, ModelRuntimeConfig, ModelType, WorkerType
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.model_card import ModelRecord
from tests.llm.folders import CONFIG, RANKS, make_folder


def published(card: ModelCard) -> dict[str, Any]:
    """The card as a record has it."""
    found: dict[str, Any] = json.loads(ModelRecord.of(card.card, EndpointId("a", "b", "c"), 1).encode())["card_json"]
    return found


def test_a_card_has_the_files_of_its_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    card = published(ModelCard.from_folder(folder))
    for field, kind, name in (
        ("model_info", "hf_config_json", "config.json"),
        ("tokenizer", "hf_tokenizer_json", "tokenizer.json"),
        ("prompt_formatter", "hf_tokenizer_config_json", "tokenizer_config.json"),
        ("gen_config", "hf_generation_config_json", "generation_config.json"),
    ):
        content = (folder / name).read_bytes()
        assert card[field] == {
            kind: {
                "path": str(folder / name),
                "checksum": f"blake3:{blake3(content).hexdigest()}",
                "size": len(content),
            }
        }
    assert (card["display_name"], card["slug"], card["source_path"]) == ("tiny", "tiny", str(folder))
    assert (card["model_type"], card["model_input"], card["worker_type"]) == (
        "Chat | Completions",
        "Tokens",
        "aggregated",
    )
    assert "chat_template_file" not in card
    assert "aliases" not in card


def test_what_is_said_comes_into_the_card(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    template = tmp_path / "my.jinja"
    template.write_text("{{ messages }}")
    card = published(
        ModelCard.from_folder(
            folder,
            name="Org/Tiny 1",
            model_type=ModelType.Chat,
            kv_cache_block_size=32,
            runtime_config=ModelRuntimeConfig(context_length=1024, total_kv_blocks=7, taints={"b", "a"}),
            chat_template=template,
            aliases=["also", "too"],
            user_data={"z": [1]},
            worker_type=WorkerType.Decode,
            needs=[[WorkerType.Prefill]],
        )
    )
    assert (card["display_name"], card["slug"], card["kv_cache_block_size"]) == ("Org/Tiny 1", "org_tiny_1", 32)
    assert (card["context_length"], card["architectural_max_context_length"]) == (1024, 2048)
    assert card["runtime_config"]["context_length"] == 1024
    assert card["runtime_config"]["taints"] == ["a", "b"]
    assert card["chat_template_file"]["hf_chat_template"]["is_custom"] is True
    assert card["chat_template_file"]["hf_chat_template"]["file"]["path"] == str(template)
    assert (card["aliases"], card["user_data"]) == (["also", "too"], {"z": [1]})
    assert (card["worker_type"], card["needs"]) == ("decode", [["prefill"]])


def test_a_model_of_text_has_no_files() -> None:
    card = published(ModelCard.text("t", aliases=["u"]))
    assert card["model_input"] == "Text"
    assert card["model_info"] is card["tokenizer"] is None
    assert "source_path" not in card


def test_an_adapter_is_a_card_of_its_own(tmp_path: Path) -> None:
    base = ModelCard.from_folder(make_folder(tmp_path / "tiny"), name="base")
    adapter = base.adapter("My Lora", max_gpu_lora_count=4)
    card = published(adapter)
    assert (card["display_name"], card["slug"]) == ("My Lora", "my_lora")
    assert card["lora"] == {"name": "My Lora", "max_gpu_lora_count": 4}
    assert card["tokenizer"] == published(base)["tokenizer"]
    with pytest.raises(InvalidRequest, match="adapter's name 'ÖÖ'"):
        base.adapter("ÖÖ")


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        (CONFIG, {}, 2048),
        ({**CONFIG, "text_config": {"max_position_embeddings": 7}}, {}, 2048),
        ({"text_config": {"max_position_embeddings": 7}}, {}, 7),
        ({"text_config": None, "n_positions": 9}, {}, None),
        ({"max_position_embeddings": 0}, {}, None),
        ({}, {"tokenizer_config.json": {"model_max_length": 555}}, 555),
        ({}, {"tokenizer_config.json": '{"model_max_length": 1000000000000000019884624838656}'}, None),
        ({}, {"tokenizer_config.json": {"model_max_length": "no"}}, None),
        ('{"max_position_embeddings": 5, "time_step_limit": [0.0, Infinity], "x": NaN}', {}, 5),
    ],
    ids=str,
)
def test_the_context_length_is_found_by_dynamos_rule(
    tmp_path: Path, config: Any, files: dict[str, Any], expected: int | None
) -> None:
    card = published(ModelCard.from_folder(make_folder(tmp_path / "m", files, config=config)))
    assert card.get("architectural_max_context_length") == expected
    assert card["context_length"] == (expected or 0)


def test_a_tiktoken_file_serves_as_the_tokenizer(tmp_path: Path) -> None:
    for name in ("tiktoken.model", "qwen.tiktoken"):
        folder = make_folder(tmp_path / name, {"tokenizer.json": None, name: RANKS})
        assert published(ModelCard.from_folder(folder))["tokenizer"]["tik_token_model"]["path"] == str(folder / name)
    both = make_folder(tmp_path / "both", {"tiktoken.model": RANKS})
    assert "hf_tokenizer_json" in published(ModelCard.from_folder(both))["tokenizer"]


def test_a_chat_template_of_its_own_comes_first(tmp_path: Path) -> None:
    jinja = make_folder(tmp_path / "jinja", {"chat_template.jinja": "x", "chat_template.json": {"chat_template": "y"}})
    found = published(ModelCard.from_folder(jinja))["chat_template_file"]["hf_chat_template"]
    assert (found["is_custom"], found["file"]["path"]) == (False, str(jinja / "chat_template.jinja"))
    other = make_folder(tmp_path / "json", {"chat_template.json": {"chat_template": "y"}})
    assert "hf_chat_template_json" in published(ModelCard.from_folder(other))["chat_template_file"]


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"config.json": None}, {}, r"/m has no config\.json"),
    ({"config.json": "{no"}, {}, r"/m/config\.json is no JSON: Expecting property name"),
    ({"config.json": "[1]"}, {}, r"/m/config\.json is \[1\]: expected an object"),
    ({"config.json": {"text_config": 5}}, {}, "text_config is 5: expected an object"),
    *(
        ({"config.json": {"max_position_embeddings": value}}, {}, "max_position_embeddings is .*: expected a whole")
        for value in ("2048", 2048.5, -1, 1 << 32, None, True)
    ),
    (
        {"config.json": {"text_config": {"max_position_embeddings": "x"}}},
        {},
        r"text_config\.max_position_embeddings is 'x'",
    ),
    ({"tokenizer.json": None}, {}, r"/m has no tokenizer: expected tokenizer\.json, tiktoken\.model or one \*\.tik"),
    ({"tokenizer.json": None, "tokenizer.model": "x"}, {}, "/m has no tokenizer"),
    ({"tokenizer.json": "no"}, {}, r"/m/tokenizer\.json is no JSON"),
    ({"tokenizer.json": None, "a.tiktoken": RANKS, "b.tiktoken": RANKS}, {}, r"2 tokenizers: a\.tiktoken, b\.tiktok"),
    ({"tokenizer_config.json": None}, {}, r"/m has no tokenizer_config\.json: chat needs it"),
    ({"tokenizer_config.json": "no"}, {}, r"/m/tokenizer_config\.json is no JSON"),
    ({"chat_template.json": "no"}, {}, r"/m/chat_template\.json is no JSON"),
    ({}, {"aliases": "one"}, "aliases is the text 'one': expected a list"),
    ({}, {"aliases": [1]}, r"aliases"),
    ({}, {"kv_cache_block_size": -1}, "`kv_cache_block_size` is -1"),
    ({}, {"name": 7}, "the model's name is 7"),
    ({}, {"router_config": {"router_mode": "random"}}, "`router_config` has no kv_router_config"),
    (
        {},
        {"worker_type": WorkerType.Prefill, "needs": [[WorkerType.Decode]]},
        r"must not expose an OpenAI surface \(got model_type=ModelType\(Chat \| Completions\)\)",
    ),
    ({}, {"worker_type": WorkerType.Decode}, "worker_type=Decode requires a non-empty `needs`"),
]


@pytest.mark.parametrize(("files", "fields", "wrong"), BAD, ids=[each[2] for each in BAD])
def test_a_folder_that_no_frontend_could_use_is_an_error(
    tmp_path: Path, files: dict[str, Any], fields: dict[str, Any], wrong: str
) -> None:
    folder = make_folder(tmp_path / "m", files)
    with pytest.raises(InvalidRequest, match=wrong):
        ModelCard.from_folder(folder, **fields)


def test_a_chat_model_without_a_template_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = make_folder(tmp_path / "bare", {"tokenizer_config.json": {}})
    ModelCard.from_folder(bare, model_type=ModelType.Completions)
    ModelCard.from_folder(bare, model_input=ModelInput.Text)
    ModelCard.from_folder(bare, chat_template=bare / "config.json")
    ModelCard.from_folder(make_folder(tmp_path / "jinja", {"tokenizer_config.json": {}, "chat_template.jinja": "x"}))
    assert caplog.text == ""
    ModelCard.from_folder(bare)
    assert "/bare has no chat template: a frontend lists such a model only if it knows the family itself" in caplog.text


def test_a_path_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="the model Org/Name does not exist: expected a local folder"):
        ModelCard.from_folder("Org/Name")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match="/file is not a folder"):
        ModelCard.from_folder(tmp_path / "file")


def test_what_is_not_needed_may_be_missing(tmp_path: Path) -> None:
    bare = make_folder(tmp_path / "m", {"tokenizer.json": None, "tokenizer_config.json": None})
    assert published(ModelCard.from_folder(bare, model_input=ModelInput.Text))["tokenizer"] is None
    completions = make_folder(tmp_path / "c", {"tokenizer_config.json": None, "generation_config.json": None})
    card = published(ModelCard.from_folder(completions, model_type=ModelType.Completions))
    assert not {"prompt_formatter", "gen_config"} & card.keys()


def test_a_file_that_is_too_large_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "m")
    monkeypatch.setattr("dynamo_fast.llm.folder._MAX_FILE", 300)
    with pytest.raises(InvalidRequest, match=r"tokenizer\.json has \d+ bytes \(the limit is 300\)"):
        ModelCard.from_folder(folder)


def test_without_blake3_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "m")
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(InvalidConfig, match=r"pip install 'dynamo-fast\[models\]'"):
        ModelCard.from_folder(folder)
    assert ModelCard.text("t").name == "t"


def test_importing_the_package_loads_nothing_else() -> None:
    program = "import sys, dynamo_fast.errors; known = set(sys.modules); import dynamo_fast.llm; \
print(*sorted(set(sys.modules) - known))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["dynamo_fast.llm"]


def test_its_names_can_be_listed_and_an_unknown_one_is_an_error() -> None:
    import dynamo_fast.llm as llm

    assert {"ModelCard", "ModelInput", "ModelType", "WorkerType", "ModelRuntimeConfig"} <= set(dir(llm))
    assert all(hasattr(llm, name) for name in llm.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        llm.Nothing  # noqa: B018
