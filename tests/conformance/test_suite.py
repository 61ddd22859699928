"""The questions themselves: they are complete, and right without the codec."""

from __future__ import annotations

import struct
from collections import Counter

import xxhash

from dynamo_fast.conformance import cases, vectors

CASES = {case.name: case for case in cases()}


def test_each_case_has_a_name_of_its_own() -> None:
    assert len(CASES) == len(cases())


def test_the_index_accounts_for_every_byte() -> None:
    prefixes = {"two_part": 24, "tcp_request": 8, "tcp_response": 4}
    for vector in vectors():
        assert vector.facts["size"] == len(vector.data)
        if vector.plane == "request-nats":
            assert "frames" not in vector.facts
        else:
            form, frames = vector.facts["format"], vector.facts["frames"]
            assert sum(prefixes[form] + sum(sizes) for sizes in frames) == len(vector.data)


def test_every_vector_is_asked_for_whole_byte_by_byte_and_with_a_tail() -> None:
    for vector in vectors():
        name = vector.name.removesuffix(".bin")
        if vector.plane != "request-nats":
            assert CASES[f"{name}/whole"].question["chunks"] == [vector.data.hex()]
            assert len(CASES[f"{name}/byte-by-byte"].question["chunks"]) == len(vector.data)
            assert CASES[f"{name}/with-a-tail"].expected["pending"] == 1


def test_the_parts_are_where_the_lengths_of_the_frame_say() -> None:
    prologue = CASES["004_v131_response_prologue_ok/whole"]
    assert prologue.expected == {
        "messages": [{"header": b'{"error":null}'.hex(), "data": ""}],
        "error": None,
        "pending": 0,
    }
    for case in cases():
        if case.question["format"] == "two_part" and case.name.endswith("/whole"):
            stream = bytes.fromhex(case.question["chunks"][0])
            for message in case.expected["messages"]:
                header, data = map(bytes.fromhex, message.values())
                assert struct.unpack(">QQ", stream[:16]) == (len(header), len(data))
                assert stream[24:].startswith(header + data)
                stream = stream[24 + len(header) + len(data) :]


def test_the_checksum_is_that_of_xxhash() -> None:
    written = bytes.fromhex(CASES["two_part/checksum/written"].expected["bytes"])
    assert written[16:24] == struct.pack(">Q", xxhash.xxh3_64_intdigest(b"headdata"))


def test_every_format_has_every_kind_of_case() -> None:
    errors = Counter((case.question["format"], case.question["op"], case.expected["error"]) for case in cases())
    for form in ("two_part", "tcp_request", "tcp_response"):
        for operation in ("decode", "encode"):
            assert errors[form, operation, None] > 2
            assert errors[form, operation, "message_too_large"] > 0
    assert errors["two_part", "decode", "checksum_mismatch"] == 1
