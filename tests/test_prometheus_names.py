"""The module of metric names is what its script writes; tests/compat compares it with Dynamo's own."""

from __future__ import annotations

from dynamo_fast.prometheus_names import frontend_service, transport
from scripts.prometheus_names import TARGET, written


def test_the_module_is_what_the_script_writes() -> None:
    assert TARGET.read_text(encoding="utf-8") == written(), (
        "run `python -m scripts.prometheus_names` and commit the module"
    )


def test_a_part_of_a_part_is_a_class_in_it() -> None:
    assert transport.tcp.ERRORS_TOTAL == "tcp_errors_total"
    assert frontend_service.operation.TOKENIZE == "tokenize"
