"""The arguments of the value classes. The texts are those of Dynamo 1.6.1, for the same calls."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo_fast import backend
from dynamo_fast.backend import DisaggregationMode, EngineConfig, LlmRegistration, RuntimeConfig, Worker, WorkerConfig
from dynamo_fast.runtime import NotOffered


@pytest.mark.parametrize(
    ("make", "arguments", "error", "text"),
    [
        (
            RuntimeConfig,
            (5,),
            TypeError,
            "argument 'discovery_backend': 'int' object cannot be converted to 'PyString'",
        ),
        (WorkerConfig, (5,), TypeError, "argument 'namespace': 'int' object cannot be converted to 'PyString'"),
        (EngineConfig, (5,), TypeError, "argument 'model': 'int' object cannot be converted to 'PyString'"),
        (
            LlmRegistration,
            ("a",),
            TypeError,
            "argument 'context_length': 'str' object cannot be interpreted as an integer",
        ),
        (LlmRegistration, (1.5,), TypeError, "'float' object cannot be interpreted as an integer"),
        (LlmRegistration, (-1,), OverflowError, "context_length=-1 is out of range: expected 0 to 4294967295"),
        (LlmRegistration, (1 << 32,), OverflowError, "context_length=4294967296 is out of range"),
    ],
)
def test_an_argument_of_the_wrong_type(make: Any, arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        make(*arguments)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"component": None}, TypeError, "argument 'component': 'NoneType' object cannot be converted to 'PyString'"),
        ({"model_input": 5}, TypeError, "argument 'model_input': 'int' object cannot be converted to 'ModelInput'"),
        ({"metrics_labels": {"a": "b"}}, TypeError, "argument 'metrics_labels': 'dict' object cannot be converted to"),
        ({"metrics_labels": [("a", 1)]}, TypeError, "argument 'metrics_labels': 'int' object cannot be converted to"),
        ({"metrics_labels": [["a", "b"]]}, TypeError, "'list' object cannot be converted to 'PyTuple'"),
        ({"runtime": 5}, TypeError, "argument 'runtime': 'int' object cannot be converted to 'RuntimeConfig'"),
        ({"disaggregation_mode": "agg"}, TypeError, "'str' object cannot be converted to 'DisaggregationMode'"),
        ({"health_check_payload": [1]}, ValueError, "health_check_payload must be a JSON object (dict)"),
        ({"health_check_payload": {1: object()}}, ValueError, "must be a JSON-serializable dict"),
        ({"structural_tag": 5}, TypeError, "argument 'structural_tag': 'int' object cannot be converted to 'PyDict'"),
        ({"structural_tag": {"scpoe": 1}}, ValueError, "unknown field `scpoe`, expected one of `scope`"),
        (
            {"route_to_encoder": 1},
            TypeError,
            "argument 'route_to_encoder': 'int' object cannot be converted to 'PyBool'",
        ),
        ({"structural_tag_mode": "x"}, ValueError, "Invalid structural_tag_mode: 'x', expected 'off' or 'on'"),
        ({"zzz": 1}, TypeError, "unexpected keyword argument 'zzz'"),
    ],
)
def test_what_a_worker_config_refuses(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        WorkerConfig("ns", **arguments)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"runtime_data": [1]}, TypeError, "argument 'runtime_data': 'list' object cannot be converted to 'PyDict'"),
        ({"llm": 5}, TypeError, "argument 'llm': 'int' object cannot be converted to 'LlmRegistration'"),
        ({"model_aliases": "abc"}, TypeError, "argument 'model_aliases': Can't extract `str` to `Vec`"),
        (
            {"model_aliases": (1,)},
            TypeError,
            "argument 'model_aliases': 'int' object cannot be converted to 'PyString'",
        ),
        ({"model_aliases": 1}, TypeError, "argument 'model_aliases': 'int' object cannot be converted to 'Sequence'"),
    ],
)
def test_what_an_engine_config_refuses(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        EngineConfig("m", **arguments)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"bootstrap_port": 70000}, "bootstrap_port=70000 is out of range: expected 0 to 65535"),
        ({"total_kv_blocks": 1 << 64}, "total_kv_blocks=18446744073709551616 is out of range"),
    ],
)
def test_numbers_that_do_not_fit(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(OverflowError, match=text):
        LlmRegistration(**arguments)


def test_what_is_not_given_has_dynamos_defaults() -> None:
    engine = EngineConfig("m")
    assert (engine.runtime_data, engine.model_aliases, engine.llm) == ({}, [], None)
    worker = WorkerConfig("ns")
    assert (worker.component, worker.endpoint, worker.endpoint_types) == ("backend", "generate", "chat,completions")
    assert worker.disaggregation_mode is DisaggregationMode.Aggregated


def test_values_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        EngineConfig("m").model = "x"  # type: ignore[misc]


def test_the_parts_of_a_worker() -> None:
    assert [int(mode) for mode in DisaggregationMode] == [1, 2, 3, 4]
    assert repr(DisaggregationMode.Prefill) == str(DisaggregationMode.Prefill) == "DisaggregationMode.Prefill"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((object(), 5, None), "argument 'config': 'int' object cannot be converted to 'WorkerConfig'"),
        ((object(), WorkerConfig("ns"), None, "x"), "argument 'raw': 'str' object cannot be converted to 'PyBool'"),
    ],
)
def test_what_a_worker_refuses(arguments: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        Worker(*arguments)


@pytest.mark.parametrize("name", ["_run_sglang_sidecar", "_run_trtllm_sidecar", "_run_vllm_sidecar"])
def test_dynamos_sidecars_say_that_they_are_not_offered(name: str) -> None:
    with pytest.raises(NotOffered, match="sidecar is not offered"):
        getattr(backend, name)(["--help"])
