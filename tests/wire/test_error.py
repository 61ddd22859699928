from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_fast import errors, reasons
from dynamo_fast.codec import TwoPartCodec
from dynamo_fast.errors import Cancelled, Disconnected, DynamoError, InvalidRequest, RemoteError, Unavailable
from dynamo_fast.wire.control import ResponseStreamPrologue
from dynamo_fast.wire.error import MAX_CAUSES, decode_error, display, encode_error, from_exception
from dynamo_fast.wire.payload import PayloadCodec
from tests.captured import Vector, captured, name_of


def words(error: DynamoError) -> tuple[str, str, str]:
    return error.error_type, error.error_class, error.reason


def typed_errors() -> list[Any]:
    """The error objects in captured items and prologues, by the release that wrote them."""
    found = []
    for vector in captured("error_item_*", "prologue_error"):
        facts: dict[str, Any] = vector.facts["decoded"]
        written = facts["header"].get("typed_error") if "header" in facts else facts["data"]["data"].get("error")
        if written is not None:
            found.append(pytest.param(written, vector.facts["emitter_version"], id=name_of(vector)))
    return found


@pytest.mark.parametrize(("written", "version"), typed_errors())
def test_an_error_of_dynamo(written: dict[str, Any], version: str) -> None:
    error = decode_error(written)
    assert error.message == written["message"]
    again = encode_error(error)
    if version == "1.3.1":  # knows the first and the last of the words
        assert (again["error_type"], again["message"]) == (written["error_type"], written["message"])
        assert display(error) != f"{error.error_class}: "
    elif written["error_type"] == "WorkerUnavailable":  # which 1.3.1 could not read: it gets the nearest word
        assert again == {**written, "error_type": "Unavailable"}
        assert error.error_type == "WorkerUnavailable"
    else:
        assert json.dumps(again) == json.dumps(written)  # the order counts


@pytest.mark.parametrize("vector", captured("prologue_error"), ids=name_of)
def test_a_prologue_with_an_error(vector: Vector) -> None:
    header = bytes(TwoPartCodec().decode_message(vector.data).header)
    prologue = ResponseStreamPrologue.decode(header)
    assert prologue.error is not None
    assert prologue.encode() == header
    if vector.facts["emitter_version"] == "1.6.1":
        assert prologue.typed_error is not None
        assert prologue.error == f"Generate Error: {prologue.typed_error.message}"


# Reading ---------------------------------------------------------------------------------------------------------------

INVALID = ("Unknown", "Internal", "runtime.invalid_error")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({}, ("Unknown", "Internal", "runtime.unclassified")),
        ({"error_type": "Disconnected"}, ("Disconnected", "Unavailable", "transport.disconnected")),
        ({"error_type": {"Backend": "Cancelled"}}, ("Backend.Cancelled", "Cancelled", "backend.cancelled")),
        ({"error_type": "ResourceExhausted"}, ("ResourceExhausted", "CapacityExhausted", "capacity.pool_exhausted")),
        ({"error_type": "Nonsense"}, ("Nonsense", "Internal", "runtime.unclassified")),
        ({"error_type": {"Backend": 5}}, ("Unknown", "Internal", "runtime.unclassified")),
        ({"class": "NotFound"}, ("Unknown", "NotFound", "request.not_found")),
        ({"class": "RateLimited"}, ("ResourceExhausted", "RateLimited", "request.rate_limited")),
        (
            {"class": "Unavailable", "error_type": "Disconnected"},
            ("Disconnected", "Unavailable", "transport.disconnected"),
        ),
        (
            {"class": "Internal", "error_type": "Disconnected"},
            ("Disconnected", "Internal", "runtime.internal"),
        ),
        (
            {"class": "Unavailable", "reason": "backend.engine_shutdown"},
            ("Unavailable", "Unavailable", "backend.engine_shutdown"),
        ),
        (
            {"class": None, "reason": None, "error_type": "Cancelled"},
            ("Cancelled", "Cancelled", "request.cancelled"),
        ),
        ({"class": "Nonsense"}, INVALID),
        ({"class": 5}, INVALID),
        ({"class": {}}, INVALID),
        ({"class": "NotFound", "reason": "request.conflict"}, INVALID),
        ({"class": "NotFound", "reason": "nonsense"}, INVALID),
        ({"class": "NotFound", "reason": ["request.not_found"]}, INVALID),
        ({"reason": "backend.unavailable"}, INVALID),
        ({"error_type": "Disconnected", "reason": "request.invalid"}, ("Disconnected", *INVALID[1:])),
        ({"class": "Internal", "reason": "runtime.invalid_error"}, INVALID),
    ],
)  # fmt: skip
def test_words_that_are_missing_are_derived_and_words_that_contradict_are_internal(
    written: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    error = decode_error({**written, "message": "m", "public": {"type": "message", "message": "p"}})
    assert words(error) == expected
    assert error.message == "m"
    assert (error.public is None) == (expected[2] == "runtime.invalid_error")


def test_the_diagnostic_goes_before_the_message() -> None:
    assert decode_error({"message": "m", "diagnostic": "d"}).message == "d"
    assert decode_error({"message": "m", "diagnostic": ""}).message == "m"
    assert decode_error({"message": "m", "diagnostic": None}).message == "m"
    assert display(decode_error({"message": "m"})) == "Internal: m"
    assert display(decode_error({"error_type": "Disconnected"})) == "Unavailable: transport.disconnected"


@pytest.mark.parametrize(
    ("value", "text"), [("text", "text"), (None, ""), (7, "7"), ([1], "[1]"), ({"message": 5}, "5")]
)
def test_what_is_no_error_object_is_shown_as_it_came(value: object, text: str) -> None:
    error = decode_error(value)
    assert words(error) == ("Unknown", "Internal", "runtime.unclassified")
    assert error.message == text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(["error_type", "class", "reason", "message", "diagnostic", "public", "caused_by"])
names = st.sampled_from(["Disconnected", "Unavailable", "request.invalid", "transport.disconnected", "Backend"])
error_like = st.recursive(
    json_values | names,
    lambda each: st.dictionaries(keys, each | names | st.just({"Backend": "Unknown"})),
    max_leaves=8,
)


@given(value=error_like)
def test_anything_is_read_and_stays_the_same_when_read_again(value: object) -> None:
    error = decode_error(value)
    again = decode_error(encode_error(error))
    for one, other in zip(error.chain(), again.chain(), strict=True):
        assert (one.error_class, one.reason, one.message) == (other.error_class, other.reason, other.message)


# Causes ----------------------------------------------------------------------------------------------------------------


def test_causes_are_a_chain_both_ways() -> None:
    inner = {"error_type": "Cancelled", "message": "inner"}
    error = decode_error({"error_type": "Disconnected", "message": "outer", "caused_by": inner})
    assert [words(each)[0] for each in error.chain()] == ["Disconnected", "Cancelled"]
    assert error.__cause__ is error.caused_by
    assert not error.migratable
    written = encode_error(error)
    assert list(written)[-1] == "caused_by"
    assert written["caused_by"]["message"] == "inner"
    assert decode_error({"message": "m", "caused_by": "no object"}).caused_by is None


def test_a_long_chain_and_a_ring() -> None:
    value: dict[str, Any] = {"message": "0"}
    for number in range(1, MAX_CAUSES):
        value = {"message": str(number), "caused_by": value}
    error = decode_error(value)
    assert len(error.chain()) == MAX_CAUSES
    written = encode_error(error)
    for number in reversed(range(MAX_CAUSES)):
        assert written["message"] == str(number)
        written = written.get("caused_by", {})
    one, other = Disconnected("one"), Disconnected("other")
    one.__cause__, other.__cause__ = other, one
    assert encode_error(one)["caused_by"] == encode_error(Disconnected("other"))


# Writing ---------------------------------------------------------------------------------------------------------------


def every_error_class() -> list[type[DynamoError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DynamoError)]


@pytest.mark.parametrize("kind", every_error_class())
def test_every_error_of_ours_has_words_that_dynamo_knows(kind: type[DynamoError]) -> None:
    more: dict[type[DynamoError], dict[str, Any]] = {
        errors.MessageTooLarge: {"size": 2, "limit": 1},
        errors.RequestTooLarge: {"size": 2, "limit": 1},
        errors.InvalidLabel: {"label": "text"},
    }
    error = kind("text", **more.get(kind, {}))
    assert words(decode_error(encode_error(error)))[1:] == words(error)[1:]
    assert encode_error(error)["error_type"] in reasons.BY_TYPE
    assert display(error) == f"{error.error_class}: text"


def test_a_text_is_cut_where_dynamo_cuts_it() -> None:
    for text in ("x" * 5000, "é" * 3000, "\U0001f600" * 2000):
        written = encode_error(RemoteError(text))
        assert written["message"] == written["diagnostic"]
        assert written["message"].endswith("...[truncated]")
        assert 4090 < len(written["message"].encode()) <= 4096
    assert encode_error(RemoteError("x" * 4096))["message"] == "x" * 4096
    assert encode_error(RemoteError("a\ud800"))["message"] == "a?"


def test_no_text() -> None:
    assert encode_error(RemoteError("")) == {
        "error_type": "Unknown",
        "class": "Internal",
        "reason": "runtime.unclassified",
        "message": "",
    }


# What a handler raised -------------------------------------------------------------------------------------------------


def dynamo_exception(name: str) -> type[Exception]:
    """An exception as `dynamo.llm.exceptions` has it."""
    base = type("DynamoException", (Exception,), {"__module__": "dynamo._core"})
    return base if name == "DynamoException" else type(name, (base,), {"__module__": "dynamo._core"})


@pytest.mark.parametrize("vector", captured("error_item_json"), ids=name_of)
def test_exceptions_are_told_as_dynamo_tells_them(vector: Vector) -> None:
    """The vectors have `msg NAME` for `dynamo`'s own exceptions and `Type: text` for Python's."""
    written = vector.facts["decoded"]["data"]["data"].get("error", {"message": ""})
    message: str = written["message"]
    if vector.facts["emitter_version"] != "1.6.1":
        written = {}
    if message.startswith("msg "):
        told = from_exception(dynamo_exception(message.removeprefix("msg "))(message))
    elif message.startswith('{"message"'):
        fields = json.loads(message)
        told = from_exception(type("HttpError", (Exception,), fields)())
    else:
        kind, _, text = message.partition(": ")
        python = {"CancelledError": asyncio.CancelledError, **vars(__import__("builtins"))}.get(kind)
        if python is None or kind == "UnicodeDecodeError" or "Errno" in text or kind == "KeyError":
            return  # another test's: an error that the binding itself told, or one whose text is made of parts
        told = from_exception(python(text))
    for key, value in written.items():
        if value != "WorkerUnavailable":
            assert encode_error(told)[key] == value


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (TimeoutError("t"), "Backend.ConnectionTimeout"),
        (asyncio.TimeoutError("t"), "Backend.ConnectionTimeout"),
        (ConnectionRefusedError(111, "r"), "Backend.CannotConnect"),
        (ConnectionResetError(104, "r"), "Backend.Disconnected"),
        (asyncio.CancelledError(), "Backend.Cancelled"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "why"), "Backend.InvalidArgument"),
        (KeyError("k"), "Backend.Unknown"),
        (OSError(2, "no"), "Backend.Unknown"),
        (KeyboardInterrupt(), "Backend.Unknown"),
    ],
    ids=repr,
)
def test_exceptions_of_python(error: BaseException, error_type: str) -> None:
    told = from_exception(error)
    assert words(told) == reasons.BY_TYPE[error_type]
    assert told.message == f"{type(error).__name__}: {error}"


def test_errors_of_ours_that_a_handler_raises() -> None:
    """A worker whose own call failed is not gone itself: the router must not avoid it."""
    assert words(from_exception(Disconnected("m"))) == ("Backend.Disconnected", "Unavailable", "backend.disconnected")
    assert words(from_exception(InvalidRequest("m")))[0] == "Backend.InvalidArgument"
    assert words(from_exception(Cancelled("m")))[0] == "Backend.Cancelled"
    for kept in (Unavailable("m"), RemoteError("m", error_type="Backend.Cancelled"), DynamoError("m")):
        assert from_exception(kept) is kept
    assert from_exception(Disconnected("m")).message == "m"


def test_an_exception_that_cannot_be_shown() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    assert from_exception(Broken()).message == "Broken: <its text raises RuntimeError>"


def test_an_error_item_is_the_same_in_both_formats() -> None:
    error = from_exception(ValueError("no"))
    for codec in PayloadCodec:
        item = codec.decode_item(codec.encode_error_item(error)).data
        assert item is not None
        told = item.error()
        assert told is not None
        assert (words(told), told.message) == (words(error), "ValueError: no")
