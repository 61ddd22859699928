"""A card of `register_model` here has the fields that Dynamo's own `register_model` writes for the same arguments."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast import llm
from dynamo_fast.runtime import DistributedRuntime
from dynamo_fast.wire.model_card import ModelRecord
from tests.interop.peers import LIMIT, VERSIONS, environment, interpreter
from tests.llm.folders import CONFIG, RANKS, make_folder

#: Fields that Dynamo 1.3.1 does not write; it ignores them.
NEW = {"context_length"}
NEW_OF_RUNTIME = {"tool_call_arguments_format", "structural_tag"}
#: What 1.3.1 does not take.
NEW_ARGUMENTS = {"model_aliases", "skip_model_assets"}
NEW_ATTRIBUTES = {"kv_event_publishing_enabled", "kv_event_source_mode", "kv_state_endpoint", "structural_tag"}
NEW_TYPES = {"Classify", "Pooling", "Rerank"}


def folders(root: Path) -> dict[str, Path]:
    """Models of every form."""
    without = {key: value for key, value in CONFIG.items() if key != "max_position_embeddings"}
    made = {
        "plain": make_folder(root / "plain"),
        "bare": make_folder(root / "bare", {"generation_config.json": None}, config=without),
        "text_config": make_folder(
            root / "text_config", config={**without, "text_config": {"max_position_embeddings": 777}}
        ),
        "both": make_folder(root / "both", config={**CONFIG, "text_config": {"max_position_embeddings": 777}}),
        "tokenizer_length": make_folder(
            root / "tokenizer_length", {"tokenizer_config.json": {"model_max_length": 555}}, config=without
        ),
        "huge": make_folder(
            root / "huge",
            {"tokenizer_config.json": '{"model_max_length":1000000000000000019884624838656}'},
            config=without,
        ),
        "zero": make_folder(root / "zero", config={**CONFIG, "max_position_embeddings": 0}),
        "other_names": make_folder(root / "other_names", config={**without, "n_positions": 9, "seq_length": 8}),
        "nan": make_folder(root / "nan", config='{"max_position_embeddings": 5, "x": NaN, "y": [-Infinity]}'),
        "jinja": make_folder(root / "jinja", {"chat_template.jinja": "{{ messages }}", "preprocessor_config.json": {}}),
        "json_template": make_folder(root / "json_template", {"chat_template.json": {"chat_template": "x"}}),
        "tiktoken": make_folder(root / "tiktoken", {"tokenizer.json": None, "tiktoken.model": RANKS}),
        "other_tiktoken": make_folder(root / "other_tiktoken", {"tokenizer.json": None, "q.tiktoken": RANKS}),
        "two_tokenizers": make_folder(root / "two_tokenizers", {"tiktoken.model": RANKS}),
        "link": root / "link",
    }
    made["link"].symlink_to(made["plain"])
    return made


def cases(root: Path) -> list[dict[str, Any]]:
    """Arguments of `register_model`, in the form of peer_models.py."""
    paths = {name: str(path) for name, path in folders(root).items()}
    template = root / "my.jinja"
    template.write_text("{{ messages }}")
    plain = paths["plain"]
    zone = {"topology_domains": {"zone": "z"}, "kv_transfer_domain": "zone"}
    runtimes: list[dict[str, Any]] = [
        {"total_kv_blocks": 100, "max_num_seqs": 7, "max_num_batched_tokens": 5},
        {"context_length": 1024},
        {"context_length": 0},
        {"context_length": 99999},
        {"tool_call_parser": "hermes", "reasoning_parser": "basic", "tokenizer_backend": "fastokens"},
        {"data_parallel_start_rank": 1, "data_parallel_size": 2, "enable_local_indexer": False, "enable_eagle": True},
        {"exclude_tools_when_tool_choice_none": False, "stable_routing_id": ""},
        {"taints": ["b", "a"], "topology_domains": {"zone": "z"}},
        {**zone, "kv_transfer_enforcement": "required"},
        {**zone, "kv_transfer_enforcement": "preferred", "kv_transfer_preferred_weight": 0.5},
        {"engine_specific": {"k": {"a": [1, None, 2.5]}, "c": "text"}},
        {"disaggregated_endpoint": ["h", 5]},
        {"disaggregated_endpoint": ["h", None]},
        {"kv_event_publishing_enabled": True, "kv_event_source_mode": "x", "kv_state_endpoint": "a.b.c"},
        {"structural_tag": {}},
        {"structural_tag": {"scope": "always", "schema": "strict", "exclude_special_tokens": True}},
    ]
    found: list[dict[str, Any]] = [
        *({"path": path} for path in paths.values()),
        *({"path": plain, "runtime_config": runtime} for runtime in runtimes),
        *({"path": plain, "model_name": name} for name in ("Qwen/Qwen3-0.6B", "_x", "-x..Ö", "ÖÄ", "")),
        *({"path": plain, "type": kind} for kind in ("", "Prefill", "Completions|Chat|Embedding", "Audios", "Rerank")),
        *({"path": plain, "type": kind, "model_name": "n"} for kind in ("Images", "Chat|Videos", "Realtime")),
        *({"path": path, "input": "Text"} for path in (plain, paths["jinja"])),
        {"path": plain, "input": "Text", "type": "Images"},
        {"path": "nowhere", "input": "Tensor", "type": "TensorBased", "model_name": "t"},
        {
            "path": "nowhere",
            "input": "Tensor",
            "type": "TensorBased",
            "model_name": "t",
            "tensor_model_config": {"name": "t", "inputs": [], "outputs": []},
        },
        {"path": plain, "kv_cache_block_size": 0},
        {"path": plain, "kv_cache_block_size": 7},
        {"path": plain, "user_data": {"b": [1, None, 2.5], "a": {}}},
        {"path": plain, "custom_template_path": str(template)},
        {"path": paths["jinja"], "custom_template_path": str(template)},
        {"path": plain, "type": "", "worker_type": "Prefill", "needs": [["Decode"]]},
        {"path": plain, "type": "Prefill", "worker_type": "Prefill", "needs": [["Decode"]]},
        {"path": plain, "needs": [["Decode", "Prefill"], ["Encode"]]},
        {"path": plain, "worker_type": "Decode", "needs": [["Prefill"]]},
        {"path": plain, "model_aliases": ["a", "b"]},
        {"path": plain, "model_aliases": []},
        {"path": "/adapter", "lora_name": "My Lora", "base_model_path": plain},
        {"path": "/adapter", "lora_name": "lo", "base_model_path": plain, "max_gpu_lora_count": 3},
        {"path": plain, "max_gpu_lora_count": 3},
        {"path": plain, "ignore_weights": True, "self_host_metadata": True},
        {"path": "nowhere", "skip_model_assets": True},
        {"path": "nowhere", "skip_model_assets": True, "model_name": "s", "input": "Text"},
    ]
    return [
        {"endpoint": f"n{number}.c.e", "input": "Tokens", "type": "Chat|Completions", **case}
        for number, case in enumerate(found)
    ]


def is_known(case: dict[str, Any], version: str) -> bool:
    if version != "1.3.1":
        return True
    new = NEW_ARGUMENTS & case.keys() or NEW_ATTRIBUTES & case.get("runtime_config", {}).keys()
    return not new and not NEW_TYPES & set(case["type"].split("|"))


def ask(version: str, folder: Path, asked: list[dict[str, Any]], **settings: str) -> list[Any]:
    """What Dynamo's own `register_model` writes."""
    program = Path(__file__).with_name("peer_models.py")
    done = subprocess.run(
        [str(interpreter(version)), str(program)],
        input=json.dumps(asked),
        env=environment(folder, HF_HUB_OFFLINE="1", **settings),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    answers: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


async def register(runtime: DistributedRuntime, case: dict[str, Any]) -> None:
    """As peer_models.py does it."""
    given = json.loads(json.dumps(case))
    endpoint = runtime.endpoint(given.pop("endpoint"))
    kind = llm.ModelType.Empty
    for name in filter(None, given.pop("type").split("|")):
        kind |= getattr(llm.ModelType, name)
    if "runtime_config" in given:
        attributes = given["runtime_config"]
        config = given["runtime_config"] = llm.ModelRuntimeConfig()
        for name, value in attributes.pop("engine_specific", {}).items():
            config.set_engine_specific(name, json.dumps(value))
        if "disaggregated_endpoint" in attributes:
            config.set_disaggregated_endpoint(*attributes.pop("disaggregated_endpoint"))
        if "structural_tag" in attributes:
            config.set_structural_tag(attributes.pop("structural_tag"))
        for name, value in attributes.items():
            setattr(config, name, set(value) if name == "taints" else value)
    given["worker_type"] = getattr(llm.WorkerType, given.get("worker_type", "Aggregated"))
    if "needs" in given:
        given["needs"] = [[getattr(llm.WorkerType, name) for name in group] for group in given["needs"]]
    model_input = getattr(llm.ModelInput, given.pop("input"))
    await llm.register_model(model_input, kind, endpoint, given.pop("path"), **given)


def hosted_cases(root: Path) -> list[dict[str, Any]]:
    """Models whose files the worker serves."""
    extra = dict.fromkeys(
        (
            *(
                "a.bin",
                "a.gguf",
                "a.h5",
                "a.msgpack",
                "a.onnx",
                "a.pt",
                "a.pth",
                "a.safetensors",
                "a.tflite",
                ".hidden",
            ),
            *("README.md", "LICENSE", "a.md", "a.ckpt", "a.npz", "a.png", "a.JSON", "a.BIN", "Makefile", "vocab.bpe"),
            *("model.safetensors.index.json", "modeling.py", "special_tokens_map.json", "tokenizer.model"),
        ),
        "x",
    )
    many = make_folder(root / "many", {**extra, "chat_template.jinja": "x", "chat_template.json": {"a": 1}})
    (many / "folder").mkdir()
    (many / "link.json").symlink_to(many / "config.json")
    (many / "broken.json").symlink_to(root / "nothing")
    template = root / "mine.jinja"
    template.write_text("{{ messages }}")
    found: list[dict[str, Any]] = [
        {"path": str(many)},
        {"path": str(many), "model_name": "Org/My Model"},
        {"path": str(many), "custom_template_path": str(template)},
        {"path": str(many), "self_host_metadata": False},
        {"path": "/adapter", "lora_name": "My Lora", "base_model_path": str(many)},
    ]
    common = {"input": "Tokens", "type": "Chat|Completions"}
    return [{"endpoint": f"n{number}.c.e", **common, **case} for number, case in enumerate(found)]


def without_host(record: dict[str, Any]) -> dict[str, Any]:
    """Without the address of the status server; the further files are sorted, as Dynamo takes them as they come."""
    plain: dict[str, Any] = json.loads(re.sub(r"http://[^/]+/", "http://HOST/", json.dumps(record)))
    card = plain["card_json"]
    if "extra_files" in card:
        card["extra_files"] = sorted(card["extra_files"], key=lambda file: str(file["path"]))
    return plain


def comparable(record: dict[str, Any], version: str) -> dict[str, Any]:
    """Without what differs from process to process, or is new since that release; sets are sorted."""
    card = dict(record["card_json"])
    runtime = dict(card["runtime_config"])
    if "taints" in runtime:
        runtime["taints"] = sorted(runtime["taints"])
    if version == "1.3.1":
        card = {key: value for key, value in card.items() if key not in NEW}
        runtime = {key: value for key, value in runtime.items() if key not in NEW_OF_RUNTIME}
        if card["tokenizer"] is None and card["model_info"] is None:  # it forgets them if there are no files
            card.pop("source_path", None)
    return {**record, "instance_id": 0, "card_json": {**card, "runtime_config": runtime}}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The fields that differ, down to those of the card and of its runtime configuration."""
    found: dict[str, Any] = {}
    for name in ours.keys() | theirs.keys():
        mine, their = ours.get(name, "absent"), theirs.get(name, "absent")
        if name in {"card_json", "runtime_config"}:
            found.update(differences(mine, their))
        elif mine != their:
            found[name] = (mine, their)
    return found


async def compare(
    version: str, asked: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: str
) -> None:
    """Each case, here and in a real Dynamo."""
    interpreter(version)
    ours_in = folder / "ours"
    theirs = await asyncio.to_thread(ask, version, folder / "theirs", asked, **settings)
    for name, value in {"DYN_FILE_KV": str(ours_in), "DYN_TCP_RPC_HOST": "127.0.0.1", **settings}.items():
        monkeypatch.setenv(name, value)
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    try:
        for case, answer in zip(asked, theirs, strict=True):
            assert isinstance(answer, dict), (case, answer)
            ((their_key, their_record),) = answer.items()
            await register(runtime, case)
            prefix = case["endpoint"].replace(".", "%2F") + "%2F"
            (file,) = (each for each in (ours_in / "v1" / "mdc").iterdir() if each.name.startswith(prefix))
            ours, their_record = without_host(json.loads(file.read_bytes())), without_host(their_record)
            assert differences(comparable(ours, version), comparable(their_record, version)) == {}, case
            assert version == "1.3.1" or list(ours["card_json"]) == list(their_record["card_json"]), case
            assert list(ours) == list(their_record)
            assert ModelRecord.decode(file.read_bytes()).key.split("/")[4:] == their_key.split("/")[4:]
    finally:
        runtime.shutdown()
        await runtime.ended()


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_records_are_those_of_the_real_register_model(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [case for case in cases(tmp_path / "models") if is_known(case, version)]
    await compare(version, asked, tmp_path, monkeypatch, DYN_SYSTEM_PORT="")


async def test_hosted_files_are_those_of_the_real_register_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo 1.3.1 has no files over HTTP."""
    hosting = {"DYN_SYSTEM_PORT": "0", "DYN_SYSTEM_HOST": "127.0.0.1"}
    await compare("1.6.1", hosted_cases(tmp_path / "models"), tmp_path, monkeypatch, **hosting)
