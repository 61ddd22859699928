"""The router's address in requests is replaced; every other byte passes unchanged, however the stream is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_fast.inspect import frames
from dynamo_fast.inspect.rewriter import AnswerRewriter
from dynamo_fast.wire.control import RequestControlMessage, RequestType, StreamType, TcpStreamConnectionInfo
from tests.captured import Vector, captured, name_of
from tests.inspect.test_conversation import request_frame

MINE = "127.0.0.1:9"


def request(number: int) -> bytes:
    info = TcpStreamConnectionInfo("10.0.0.1:1", f"s{number}", "i").to_connection_info()
    return request_frame(json.loads(RequestControlMessage("i", info).encode()), body=b'{"n":%d}' % number)


@given(st.lists(st.integers(1, 200), max_size=20))
def test_each_request_is_passed_on_once_it_is_whole(cuts: list[int]) -> None:
    expected: list[TcpStreamConnectionInfo] = []
    rewriter = AnswerRewriter(MINE, expected.append)
    data, passed = b"".join(map(request, range(3))), b""
    for cut in [*cuts, len(data)]:
        passed += rewriter.rewrite(data[:cut])
        data = data[cut:]
    assert rewriter.rest() == b""
    assert [(info.address, info.subject) for info in expected] == [("10.0.0.1:1", f"s{n}") for n in range(3)]
    found = frames(passed)
    assert [frame.content["body"] for frame in found] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert [frame.content["control"]["connection_info"]["info"]["address"] for frame in found] == [MINE] * 3


def test_a_bidirectional_request_has_two_addresses() -> None:
    expected: list[TcpStreamConnectionInfo] = []
    control = RequestControlMessage(
        "i",
        TcpStreamConnectionInfo("10.0.0.1:1", "a", "i").to_connection_info(),
        request_type=RequestType.MANY_IN,
        request_stream_connection_info=TcpStreamConnectionInfo(
            "10.0.0.1:1", "b", "i", StreamType.REQUEST
        ).to_connection_info(),
    )
    passed = AnswerRewriter(MINE, expected.append).rewrite(request_frame(json.loads(control.encode()), body=b""))
    (frame,) = frames(passed)
    for name, subject in (("connection_info", "a"), ("request_stream_connection_info", "b")):
        info = frame.content["control"][name]["info"]
        assert (info["address"], info["subject"]) == (MINE, subject)
    assert [info.subject for info in expected] == ["a", "b"]


def test_bytes_that_are_not_a_request_pass_unchanged_and_so_does_the_rest() -> None:
    rewriter = AnswerRewriter(MINE, lambda _: None)
    assert rewriter.rewrite(request(1)[:-1]) == b""
    assert rewriter.rest() == request(1)[:-1]
    rewriter = AnswerRewriter(MINE, lambda _: None)
    unreadable = request_frame({"no": "control message"})
    assert rewriter.rewrite(unreadable) == unreadable


@pytest.mark.parametrize("vector", captured("req_*"), ids=name_of)
def test_requests_of_real_dynamos_change_in_their_addresses_only(vector: Vector) -> None:
    expected: list[TcpStreamConnectionInfo] = []
    (before,) = frames(vector.data)
    (after,) = frames(AnswerRewriter(MINE, expected.append).rewrite(vector.data))
    assert [info.address for info in expected]
    for name in ("connection_info", "request_stream_connection_info"):
        if name in after.content["control"]:
            assert after.content["control"][name]["info"].pop("address") == MINE
            before.content["control"][name]["info"].pop("address")
    before.content["control"].setdefault("payload_codec", "json")  # what a message without it means
    assert after.content == before.content
