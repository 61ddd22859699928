"""`POST /{namespace}/{component}/{endpoint}`: what the answer is in each form, and which status an error gets."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.conftest import Stage

SSE, NDJSON, JSON = "text/event-stream", "application/x-ndjson", "application/json"


@pytest.mark.parametrize(
    ("accept", "kind", "text"),
    [
        (None, SSE, 'data: {"a":1}\n\ndata: "two"\n\ndata: [DONE]\n\n'),
        ("*/*", SSE, 'data: {"a":1}\n\ndata: "two"\n\ndata: [DONE]\n\n'),
        ("text/event-stream", SSE, 'data: {"a":1}\n\ndata: "two"\n\ndata: [DONE]\n\n'),
        ("application/x-ndjson", NDJSON, '{"a":1}\n"two"\n'),
        ("application/json", JSON, '[{"a":1},"two"]'),
    ],
)
async def test_the_form_of_an_answer_is_what_accept_asks_for(
    stage: Stage, accept: str | None, kind: str, text: str
) -> None:
    headers = {} if accept is None else {"Accept": accept}
    async with stage.post({"items": [{"a": 1}, "two"]}, headers=headers) as response:
        assert (response.status, response.content_type) == (200, kind)
        assert await response.text() == text


@pytest.mark.parametrize("accept", [SSE, NDJSON, JSON])
@pytest.mark.parametrize(("error", "status"), [("ValueError", 400), ("RuntimeError", 500)])
async def test_an_error_before_the_first_item_is_a_status(stage: Stage, accept: str, error: str, status: int) -> None:
    async with stage.post({"error": error}, headers={"Accept": accept}) as response:
        assert (response.status, response.content_type) == (status, JSON)
        told: dict[str, Any] = await response.json()
        assert told["error"]["code"] == status
        assert "on purpose" not in told["error"]["message"]


async def test_an_error_after_an_item_is_a_part_of_the_stream(stage: Stage) -> None:
    async with stage.post({"items": [1], "error": "RuntimeError"}) as response:
        assert response.status == 200
        assert await response.text() == (
            'data: 1\n\ndata: {"error":{"message":"Internal server error","type":"internal_server_error","code":500}}'
            "\n\ndata: [DONE]\n\n"
        )
