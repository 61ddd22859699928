"""`register_model` of the drop-in: what it publishes, in either order with serving, and the errors of its arguments."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast import llm
from dynamo_fast.errors import Disconnected, InvalidRequest
from dynamo_fast.llm import ModelInput, ModelRuntimeConfig, ModelType, WorkerType
from dynamo_fast.runtime import DistributedRuntime, Endpoint
from dynamo_fast.wire.model_card import ModelRecord
from tests.llm.folders import make_folder
from tests.waiting import until

SPEC = Path(__file__).parents[2] / "docs" / "spec"
ALL: dict[str, Any] = {"worker_type": WorkerType.Aggregated}
KIND = (ModelInput.Tokens, ModelType.Chat)


async def handler(request: Any) -> AsyncIterator[Any]:
    yield request


@pytest.fixture
def kv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path / "kv"))
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")
    return tmp_path / "kv" / "v1"


@pytest.fixture
async def runtime(kv: Path) -> AsyncIterator[DistributedRuntime]:
    made = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    yield made
    made.shutdown()
    await made.ended()


@pytest.fixture
def endpoint(runtime: DistributedRuntime) -> Endpoint:
    return runtime.endpoint("a.b.c")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(make_folder(tmp_path / "tiny"))


def names(kv: Path, bucket: str) -> list[str]:
    return sorted(each.name for each in (kv / bucket).iterdir()) if (kv / bucket).exists() else []


def cards(kv: Path) -> list[dict[str, Any]]:
    return [json.loads(each.read_bytes())["card_json"] for each in sorted((kv / "mdc").iterdir())]


def test_the_signatures_are_dynamos() -> None:
    recorded = json.loads((SPEC / "api-1.6.1.json").read_text())["dynamo.llm"]
    for name in ("register_model", "unregister_model", "update_model_taints", "fetch_model", "lora_name_to_id"):
        signature = inspect.signature(getattr(llm, name))
        plain = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
        assert f"fn {inspect.Signature(plain)}" == recorded[name]
    for older, newer in (("register_llm", "register_model"), ("unregister_llm", "unregister_model")):
        assert getattr(llm, older) is getattr(llm, newer)
    assert llm.fetch_llm is llm.fetch_model


def test_the_classes_have_dynamos_members() -> None:
    for version in ("1.3.1", "1.6.1"):
        recorded = json.loads((SPEC / f"api-{version}.json").read_text())["dynamo.llm"]
        for name in ("ModelInput", "ModelType", "WorkerType", "ModelRuntimeConfig"):
            assert [member for member in recorded[name]["members"] if not hasattr(getattr(llm, name), member)] == []


async def test_before_and_after_serving(kv: Path, runtime: DistributedRuntime, folder: str) -> None:
    first, second = runtime.endpoint("a.b.c"), runtime.endpoint("a.b.d")
    assert await llm.register_model(*KIND, first, folder, "one", **ALL) == ()
    serving = first.serve_endpoint(handler), second.serve_endpoint(handler)
    await until(lambda: len(names(kv, "instances")) == 2)
    assert await llm.register_model(*KIND, second, folder, "two", **ALL) == ()
    assert names(kv, "mdc") == names(kv, "instances")
    assert [card["display_name"] for card in cards(kv)] == ["one", "two"]
    runtime.shutdown()
    assert names(kv, "mdc") == names(kv, "instances") == []
    for each in serving:
        assert await each == ()


async def test_the_name_is_the_path_if_there_is_no_other(kv: Path, endpoint: Endpoint, folder: str) -> None:
    await llm.register_model(*KIND, endpoint, folder, **ALL)
    (card,) = cards(kv)
    assert card["display_name"] == card["source_path"] == folder


async def test_unregistering_removes_the_card_and_serves_on(kv: Path, endpoint: Endpoint, folder: str) -> None:
    endpoint.serve_endpoint(handler)
    await until(lambda: names(kv, "instances"))
    assert await llm.unregister_model(endpoint) == ()
    assert await llm.unregister_model(endpoint, "none") == ()
    await llm.register_model(*KIND, endpoint, folder, **ALL)
    with pytest.raises(InvalidRequest, match="a/b/c has no card of the LoRA adapter 'none'"):
        await llm.unregister_model(endpoint, "none")
    assert await llm.unregister_model(endpoint) == ()
    assert (names(kv, "mdc"), len(names(kv, "instances"))) == ([], 1)
    await llm.register_model(*KIND, endpoint, folder, kv_cache_block_size=64, **ALL)
    assert [card["kv_cache_block_size"] for card in cards(kv)] == [64]


async def test_adapters(kv: Path, endpoint: Endpoint, folder: str) -> None:
    await llm.register_model(*KIND, endpoint, folder, "base", **ALL)
    await llm.register_model(
        *KIND, endpoint, "/adapter", lora_name="My L", base_model_path=folder, max_gpu_lora_count=3, **ALL
    )
    base, adapter = cards(kv)
    assert base["display_name"] == "base"
    assert (adapter["display_name"], adapter["source_path"]) == ("My L", folder)
    assert adapter["lora"] == {"name": "My L", "max_gpu_lora_count": 3}
    assert "max_gpu_lora_count" not in adapter["runtime_config"]
    await llm.update_model_taints(endpoint, {"b", "a"})
    assert [card["runtime_config"].get("taints") for card in cards(kv)] == [["a", "b"], None]
    await llm.unregister_model(endpoint, "My L")
    assert [card["display_name"] for card in cards(kv)] == ["base"]


async def test_taints_need_a_card(endpoint: Endpoint) -> None:
    with pytest.raises(InvalidRequest, match="a/b/c has no card of a model: nothing to update"):
        await llm.update_model_taints(endpoint, {"a"})
    with pytest.raises(TypeError, match="argument 'taints': 'list' object cannot be converted to 'PySet'"):
        llm.update_model_taints(endpoint, ["a"])  # type: ignore[arg-type]


async def test_a_changed_card_is_refused(kv: Path, endpoint: Endpoint, folder: str) -> None:
    await llm.register_model(*KIND, endpoint, folder, **ALL)
    await llm.register_model(*KIND, endpoint, folder, **ALL)
    with pytest.raises(InvalidRequest, match="another kv_cache_block_size: .*remove the old one, and put the new one"):
        await llm.register_model(*KIND, endpoint, folder, kv_cache_block_size=64, **ALL)
    assert [card["kv_cache_block_size"] for card in cards(kv)] == [16]


async def test_models_without_files_need_no_folder(kv: Path, endpoint: Endpoint) -> None:
    tensors = {"name": "t", "inputs": [], "outputs": []}
    await llm.register_model(
        ModelInput.Tensor,
        ModelType.TensorBased,
        endpoint,
        "nowhere",
        "t",
        tensor_model_config=tensors,
        **ALL,
    )
    (card,) = cards(kv)
    assert (card["source_path"], card["tensor_model_config"], card["tokenizer"]) == ("nowhere", tensors, None)


class Routing:
    """What a `RouterConfig` must have."""

    def to_card(self) -> dict[str, Any]:
        return {"router_mode": "random", "kv_router_config": {}}


async def test_a_configuration_object_says_its_form_in_the_card(kv: Path, endpoint: Endpoint, folder: str) -> None:
    await llm.register_model(*KIND, endpoint, folder, router_config=Routing(), media_decoder=Routing(), **ALL)
    (card,) = cards(kv)
    assert card["router_config"] == card["media_decoder"] == Routing().to_card()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"endpoint": "x"}, TypeError, "argument 'endpoint': 'str' object cannot be converted to 'Endpoint'"),
        ({"model_input": 1}, TypeError, "argument 'model_input': 'int' object cannot be converted to 'ModelInput'"),
        ({"model_type": 1}, TypeError, "argument 'model_type': 'int' object cannot be converted to 'ModelType'"),
        ({"model_path": 7}, TypeError, "argument 'model_path': 'int' object cannot be converted to 'PyString'"),
        ({"model_name": 7}, TypeError, "argument 'model_name': 'int' object cannot be converted to 'PyString'"),
        ({"kv_cache_block_size": -1}, OverflowError, "out of range integral type conversion attempted"),
        ({"kv_cache_block_size": "1"}, TypeError, "cannot be interpreted as an integer"),
        ({"runtime_config": {}}, TypeError, "'dict' object cannot be converted to 'ModelRuntimeConfig'"),
        (
            {"router_config": {}},
            TypeError,
            "argument 'router_config': 'dict' object cannot be converted to 'RouterConfig'",
        ),
        ({"media_decoder": {}}, TypeError, "'dict' object cannot be converted to 'MediaDecoder'"),
        ({"user_data": [1]}, TypeError, "argument 'user_data': 'list' object cannot be converted to 'PyDict'"),
        ({"needs": [WorkerType.Decode]}, TypeError, "argument 'needs': 'WorkerType' object cannot be converted"),
        ({"model_aliases": "x"}, TypeError, "argument 'model_aliases': Can't extract `str` to `Vec`"),
        ({"custom_template_path": "/no"}, FileNotFoundError, "Custom template file does not exist: /no"),
        ({"lora_name": "x"}, ValueError, "lora_name and base_model_path must both be provided together, or neither"),
        ({"base_model_path": "x"}, ValueError, "lora_name and base_model_path must both be provided together"),
        (
            {"worker_type": None},
            ValueError,
            "register_model: `worker_type` is required. Pass one of WorkerType.Prefill",
        ),
        ({"worker_type": WorkerType.Encode}, ValueError, "worker_type=Encode requires a non-empty `needs`"),
        (
            {"worker_type": WorkerType.Prefill},
            ValueError,
            "register_model: worker_type=Prefill must not expose an OpenAI surface (got model_type=ModelType(Chat)).",
        ),
        ({"tensor_model_config": 7}, TypeError, "'int' object cannot be converted to 'PyDict'"),
        ({"tensor_model_config": {"name": "x"}}, ValueError, "missing field `inputs`"),
    ],
    ids=str,
)
async def test_arguments_are_checked_when_it_is_called(
    endpoint: Endpoint, folder: str, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    given: dict[str, Any] = {
        "model_input": ModelInput.Tokens,
        "model_type": ModelType.Chat,
        "endpoint": endpoint,
        "model_path": folder,
        **ALL,
        **arguments,
    }
    with pytest.raises(error) as raised:
        llm.register_model(**given)
    assert text in str(raised.value)


async def test_a_folder_that_no_frontend_could_use_publishes_nothing(
    kv: Path, endpoint: Endpoint, tmp_path: Path
) -> None:
    bad = str(make_folder(tmp_path / "bad", {"tokenizer.json": None}))
    with pytest.raises(InvalidRequest, match="/bad has no tokenizer"):
        await llm.register_model(*KIND, endpoint, bad, **ALL)
    assert names(kv, "mdc") == []


async def test_after_the_end_nothing_is_published(kv: Path, runtime: DistributedRuntime, folder: str) -> None:
    endpoint = runtime.endpoint("a.b.c")
    runtime.shutdown()
    with pytest.raises(Disconnected):
        await llm.register_model(*KIND, endpoint, folder, **ALL)


async def test_only_local_folders_are_fetched(tmp_path: Path, folder: str) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert await llm.fetch_model(str(tmp_path / "link")) == folder
    with pytest.raises(InvalidRequest, match="'Qwen/Qwen3-0.6B' is no local folder, and dynamo_fast fetches nothing"):
        await llm.fetch_model("Qwen/Qwen3-0.6B")


@pytest.mark.parametrize(
    ("name", "number"), [("abc", 944132403), ("", 1979294118), ("my-lora", 868637996), ("Ö", 1192207765)]
)
def test_the_numbers_of_adapters_are_dynamos(name: str, number: int) -> None:
    """The numbers are those of Dynamo 1.6.1."""
    assert llm.lora_name_to_id(name) == number


def test_kinds_are_shown_as_dynamo_shows_them() -> None:
    assert [str(each) for each in ModelInput] == ["ModelInput.Text", "ModelInput.Tokens", "ModelInput.Tensor"]
    assert [repr(each) for each in WorkerType][-1] == "WorkerType.Aggregated"
    assert [str(each) for each in WorkerType] == ["prefill", "decode", "encode", "aggregated"]
    assert [int(each) for each in WorkerType] == [1, 2, 3, 4]
    everything = ModelType.Empty
    for each in ModelType:
        everything |= each
    assert str(everything) == (
        "chat,completions,embedding,tensor,prefill,images,audios,videos,realtime,classify,pooling,rerank"
    )
    assert (ModelType.Chat | ModelType.Completions).supports_chat()
    assert not ModelType.Completions.supports_chat()
    assert str(ModelType.Empty) == ""


def test_kinds_are_joined_with_kinds_only() -> None:
    kind: Any = ModelType.Chat
    with pytest.raises(TypeError):
        kind | 1


def attributes(config: ModelRuntimeConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in dir(config) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda config: setattr(config, "total_kv_blocks", "x"), TypeError, "cannot be interpreted as an integer"),
        (lambda config: setattr(config, "total_kv_blocks", None), TypeError, "cannot be interpreted as an integer"),
        (lambda config: setattr(config, "total_kv_blocks", -1), OverflowError, "can't convert negative int"),
        (lambda config: setattr(config, "context_length", 1 << 40), OverflowError, "out of range"),
        (lambda config: setattr(config, "foo", 1), AttributeError, "has no attribute 'foo'"),
        (lambda config: setattr(config, "runtime_data", {}), AttributeError, "is not writable"),
        (lambda config: setattr(config, "bootstrap_host", "a"), AttributeError, "is not writable"),
        (lambda config: setattr(config, "enable_eagle", 1), TypeError, "cannot be converted to 'PyBool'"),
        (lambda config: setattr(config, "taints", ["a"]), TypeError, "'list' object cannot be converted to 'PySet'"),
        (lambda config: setattr(config, "topology_domains", []), TypeError, "cannot be converted to 'PyDict'"),
        (lambda config: setattr(config, "reasoning_parser", 3), TypeError, "cannot be converted to 'PyString'"),
        (lambda config: setattr(config, "tokenizer_backend", "x"), ValueError, "invalid tokenizer backend 'x'"),
        (lambda config: setattr(config, "kv_transfer_enforcement", "x"), ValueError, "must be 'required' or"),
        (lambda config: setattr(config, "kv_transfer_preferred_weight", "x"), TypeError, "must be real number"),
        (lambda config: config.set_engine_specific("a", 1), TypeError, "cannot be converted to 'PyString'"),
        (lambda config: config.set_engine_specific("a", "{bad"), ValueError, "the value of 'a' is no JSON"),
        (lambda config: config.set_disaggregated_endpoint("h", 70000), OverflowError, "out of range"),
        (lambda config: config.set_structural_tag("x"), TypeError, "cannot be converted to 'PyDict'"),
        (lambda config: config.set_structural_tag({"mode": 1}), ValueError, "unknown field `mode`, expected one of"),
        (lambda config: config.set_structural_tag({"scope": "x"}), ValueError, "'auto' or 'always'"),
        (
            lambda config: config.set_structural_tag({"tool_arguments_any_order": 1}),
            ValueError,
            "Invalid structural_tag config: 1",
        ),
        (lambda config: config.set_structural_tag_mode("x"), ValueError, "Invalid structural_tag_mode: 'x'"),
        (lambda config: config.set_structural_tag_scope("x"), ValueError, "Invalid structural_tag_scope: 'x'"),
        (lambda config: config.set_structural_tag_schema("x"), ValueError, "Invalid structural_tag_schema: 'x'"),
    ],
)
def test_a_runtime_configuration_checks_what_it_is_given(
    change: Callable[[Any], Any], error: type[Exception], text: str
) -> None:
    config = ModelRuntimeConfig()
    before = attributes(config)
    with pytest.raises(error) as raised:
        change(config)
    assert text in str(raised.value)
    after = attributes(config)
    assert [name for name in before if not callable(before[name]) and before[name] != after[name]] == []


def test_what_a_runtime_configuration_keeps() -> None:
    config = ModelRuntimeConfig()
    config.set_engine_specific("k", '{"x": [1, 2.5, null]}')
    assert config.runtime_data == {"k": '{"x":[1,2.5,null]}'}
    assert config.get_engine_specific("k") == {"x": [1, 2.5, None]}
    assert config.get_engine_specific("none") is None
    config.set_disaggregated_endpoint("h", 5)
    assert (config.bootstrap_host, config.bootstrap_port) == ("h", 5)
    config.kv_state_endpoint = "a.b.c"
    assert config.kv_state_endpoint == "a/b/c"
    config.set_structural_tag({})
    assert config.structural_tag == {**(config.structural_tag or {}), "scope": "auto"}
    config.set_structural_tag(None)
    assert not config.structural_tag
    config.tool_call_parser = "hermes"
    config.tool_call_parser = None
    first, second = ModelRuntimeConfig(), ModelRuntimeConfig()
    first.taints.add("a")
    first.topology_domains["x"] = "y"
    assert (second.taints, second.topology_domains) == (set(), {})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"kv_transfer_domain": "zone"}, "kv_transfer_domain must reference a key in topology_domains"),
        ({"kv_transfer_enforcement": "required"}, "kv_transfer_enforcement requires kv_transfer_domain"),
        ({"kv_transfer_preferred_weight": 0.5}, "can only be set when kv_transfer_enforcement is preferred"),
        ({"data_parallel_size": 0}, "data_parallel_size must be at least 1"),
    ],
)
def test_attributes_that_do_not_fit_each_other_make_no_card(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"__all__: .*{text}"):
        ModelRuntimeConfig(**fields).to_card()


def test_a_record_can_be_read_again(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    card = llm.ModelCard.from_folder(folder, runtime_config=ModelRuntimeConfig(context_length=5)).card
    from dynamo_fast.wire.address import EndpointId

    record = ModelRecord.of(card, EndpointId("a", "b", "c"), 7)
    assert ModelRecord.decode(record.encode()) == record
