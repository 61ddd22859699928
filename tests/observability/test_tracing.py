"""Which incoming headers are a trace, and what is handed on; the cases are those that Dynamo 1.6.1 was seen to decide,
but for flags that it does not know: it begins a new trace, where W3C wants them ignored."""

from __future__ import annotations

import pytest

from dynamo_fast.errors import InvalidConfig
from dynamo_fast.observability.tracing import active, follow, outgoing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
UUID = "3e3a33b7-014e-4f8f-b745-40dc5b122179"


@pytest.mark.parametrize(
    ("traceparent", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", "01"),
        (f"00-{TRACE}-{SPAN}-00", "00"),
        (f"00-{TRACE}-{SPAN}-03", "01"),  # sampled and random, as the SDKs of OpenTelemetry write it
        (f"00-{TRACE}-{SPAN}-02", "00"),
        (f"00-{TRACE}-{SPAN}-ff", "01"),
        (f"01-{TRACE}-{SPAN}-01", "01"),
        (f"cc-{TRACE}-{SPAN}-01-more", "01"),
    ],
)
def test_a_trace_is_followed(traceparent: str, flags: str) -> None:
    span = follow({"traceparent": traceparent})
    assert (span.trace_id, span.parent_span_id) == (TRACE, SPAN)
    assert span.span_id != SPAN
    assert span.headers == {"traceparent": f"00-{TRACE}-{span.span_id}-{flags}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Traceparent": f"00-{TRACE}-{SPAN}-01"},
        *(
            {"traceparent": each}
            for each in (
                f"00-{TRACE}-{SPAN}-01".upper(),
                f"ff-{TRACE}-{SPAN}-01",
                f"00-{TRACE}-{SPAN}-01-more",
                f"00-{'0' * 32}-{SPAN}-01",
                f"00-{TRACE}-{'0' * 16}-01",
                f"00-{TRACE[1:]}-{SPAN}-01",
                f"00-{TRACE}-{SPAN}-01\n",
                "",
                "zzz",
            )
        ),
    ],
)
def test_what_is_no_trace_begins_a_new_one(headers: dict[str, str]) -> None:
    span = follow(headers)
    assert span.trace_id not in (TRACE, follow(headers).trace_id)
    assert span.parent_span_id is None
    assert span.headers == {"traceparent": f"00-{span.trace_id}-{span.span_id}-01"}


def test_what_goes_on_beside_the_trace() -> None:
    come = {
        "traceparent": f"00-{TRACE}-{SPAN}-01",
        "tracestate": "a=1",
        "x-request-id": "x",
        "request-id": UUID,
        "baggage": "k=v",
    }
    span = follow(come)
    assert span.headers.keys() == {"traceparent", "tracestate", "x-request-id", "request-id"}
    assert "request-id" not in follow({"request-id": "a word"}).headers
    call = outgoing(span.headers)
    assert (call.trace_id, call.parent_span_id) == (TRACE, span.span_id)
    assert call.headers == {"traceparent": f"00-{TRACE}-{call.span_id}-01", "tracestate": "a=1", "x-request-id": "x"}
    assert outgoing(None).parent_span_id is None


def test_traces_are_followed_only_when_the_process_is_set_up_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, word in (
        ("DYN_LOGGING_JSONL", "1"),
        ("OTEL_EXPORT_ENABLED", "true"),
        ("DYN_LOGGING_CONSOLE_FORMAT", "jsonl"),
    ):
        assert not active()
        monkeypatch.setenv(name, word)
        assert active()
        monkeypatch.delenv(name)
    monkeypatch.setenv("DYN_LOGGING_CONSOLE_FORMAT", "readable")
    monkeypatch.setenv("DYN_LOGGING_JSONL", "0")
    assert not active()
    monkeypatch.setenv("DYN_LOGGING_JSONL", "perhaps")
    with pytest.raises(InvalidConfig, match="DYN_LOGGING_JSONL='perhaps'"):
        active()
