from __future__ import annotations

import collections
import datetime
import enum
import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_fast.codec import TwoPartCodec
from dynamo_fast.errors import Disconnected, PayloadError, RemoteError, SerializationError
from dynamo_fast.wire import _plain
from dynamo_fast.wire.payload import Annotated, NetworkStreamWrapper, PayloadCodec
from tests.captured import Vector, captured, name_of
from tests.interpreted import interpreted

JSON, MSGPACK = PayloadCodec.JSON, PayloadCodec.MSGPACK
CODECS = pytest.mark.parametrize("codec", list(PayloadCodec), ids=lambda codec: codec.value)
ITEMS = captured("data_*", "event_item_*")


def body_of(vector: Vector) -> tuple[PayloadCodec, bytes]:
    """The body of the frame, and how it is encoded."""
    message = TwoPartCodec().decode_message(vector.data)
    return PayloadCodec(vector.kind.rpartition("_")[2]), bytes(message.data)


def values(*, nan: bool) -> st.SearchStrategy[Any]:
    """What both formats can hold."""
    scalars = (
        st.none()
        | st.booleans()
        | st.integers(-(1 << 63), (1 << 64) - 1)
        | st.floats(allow_nan=nan, allow_infinity=nan)
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    )
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    return st.recursive(scalars, lambda each: st.lists(each) | st.dictionaries(texts, each), max_leaves=20)


# Captured items --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", ITEMS, ids=name_of)
def test_an_item_of_dynamo_is_read_and_written_again_to_the_byte(vector: Vector) -> None:
    codec, body = body_of(vector)
    wrapper = codec.decode_item(body)
    assert not wrapper.complete_final
    assert wrapper.data is not None
    assert not wrapper.data.is_error()
    assert codec.encode_item(wrapper.data) == body


@pytest.mark.parametrize("vector", captured("data_*"), ids=name_of)
def test_what_a_handler_yields_is_written_as_dynamo_does(vector: Vector) -> None:
    codec, body = body_of(vector)
    item = codec.decode_item(body).data
    assert item is not None
    if item.data() is not None:
        assert codec.encode_item(item.data()) == body


@pytest.mark.parametrize("vector", captured("final_*"), ids=name_of)
def test_the_final_marker(vector: Vector) -> None:
    codec, body = body_of(vector)
    assert codec.final == body
    assert codec.decode_item(body) == NetworkStreamWrapper(complete_final=True)


@pytest.mark.parametrize("vector", captured("error_item_*"), ids=name_of)
def test_an_error_item_of_dynamo(vector: Vector) -> None:
    codec, body = body_of(vector)
    item = codec.decode_item(body).data
    assert item is not None
    assert item.is_error()
    error = item.error()
    assert isinstance(error, RemoteError)
    written = vector.facts["decoded"]["data"]["data"]
    assert error.message == (written["error"]["message"] if "error" in written else ", ".join(written["comment"]))
    if vector.facts["emitter_version"] == "1.6.1" and error.error_type != "WorkerUnavailable":
        assert codec.encode_item(item) == body
        if "error" in written:
            assert codec.encode_error_item(error) == body


# Items -----------------------------------------------------------------------------------------------------------------


def test_an_item_has_the_methods_and_the_look_of_dynamo() -> None:
    item = JSON.decode_item(
        b'{"data":{"data":{"a":1},"id":"7","event":"e","comment":["c\\"1","d"],"x":0},"complete_final":false,"y":0}'
    ).data
    assert item is not None
    assert (item.data(), item.id(), item.event(), item.comments()) == ({"a": 1}, "7", "e", ['c"1', "d"])
    assert item.error() is None
    assert repr(item) == """Annotated(data={'a': 1}, event=e, comment=["c\\"1", "d"], id=7)"""
    assert repr(Annotated()) == "Annotated(data=<no_data>, event=None, comment=[], id=None)"
    assert Annotated().comments() is None


@CODECS
def test_all_parts_may_be_null(codec: PayloadCodec) -> None:
    inner = dict.fromkeys(["data", "id", "event", "comment", "error"])
    wrapper = codec.decode_item(codec.encode({"data": inner, "complete_final": True}))
    assert wrapper == NetworkStreamWrapper(True, Annotated())
    assert codec.decode_item(codec.encode({"data": None, "complete_final": False})).data is None


@pytest.mark.parametrize(
    ("yielded", "written"),
    [
        (None, b'{"data":null}'),
        ([], b'{"data":[]}'),
        ({"event": "error", "data": 1}, b'{"data":{"event":"error","data":1}}'),
        ({"_dynamo_annotated": 0, "data": 1}, b'{"data":{"_dynamo_annotated":0,"data":1}}'),
        ({"_dynamo_annotated": True}, b"{}"),
        ({"_dynamo_annotated": True, "data": None, "other": 1}, b"{}"),
        ({"event": "e", "comment": ("c",), "_dynamo_annotated": 1}, b'{"event":"e","comment":["c"]}'),
        ({"id": "7", "data": {1}, "_dynamo_annotated": 1}, b'{"data":[1],"id":"7"}'),
        (collections.OrderedDict(_dynamo_annotated=True, data=1), b'{"data":1}'),
        (Annotated({"a": 1}, "7", "e", ["c"]), b'{"data":{"a":1},"id":"7","event":"e","comment":["c"]}'),
    ],
)  # fmt: skip
def test_what_is_an_envelope_and_what_is_data(yielded: Any, written: bytes) -> None:
    body = JSON.encode_item(yielded)
    assert body == b'{"data":' + written + b',"complete_final":false}'
    assert MSGPACK.decode_item(MSGPACK.encode_item(yielded)) == JSON.decode_item(body)


@CODECS
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"comment": "text"}, "the comment of an annotated item is a list of str, not 'text'"),
        ({"comment": ["a", 1]}, "the comment of an annotated item is a list of str"),
        ({"id": 7}, "the id of an annotated item is a str, not int"),
        ({"event": b"e"}, "the event of an annotated item is a str, not bytes"),
    ],
)
def test_an_envelope_that_nobody_could_read_is_refused(codec: PayloadCodec, part: dict[str, Any], message: str) -> None:
    with pytest.raises(SerializationError, match=message):
        codec.encode_item({"_dynamo_annotated": True, **part})


@CODECS
def test_an_error_in_an_envelope(codec: PayloadCodec) -> None:
    typed = {"error_type": "Disconnected", "message": "gone"}
    for error in (typed, Disconnected("gone")):
        item = codec.decode_item(
            codec.encode_item({"_dynamo_annotated": True, "event": "error", "error": error, "comment": ["why"]})
        ).data
        assert item is not None
        told = item.error()
        assert told is not None
        assert (told.error_type, told.reason, told.message) == ("Disconnected", "transport.disconnected", "gone")
    for comment, text in ((["a", "b"], "a, b"), ([], "unknown error"), (None, "unknown error")):
        told = Annotated(None, None, "error", comment).error()
        assert told is not None
        assert told.message == text
    assert Annotated(None, None, "other", None, typed).error() is None


# Bytes that are no item ------------------------------------------------------------------------------------------------


@CODECS
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"data": {"data": 1}}, "missing field `complete_final`"),
        ({"data": 5, "complete_final": False}, r"Expected `object \| null`, got `int` - at `\$.data`"),
        ({"data": {"id": 5}, "complete_final": False}, r"Expected `str \| null`, got `int` - at `\$.data.id`"),
        ({"data": {"comment": [5]}, "complete_final": False}, r"Expected `str`, got `int`"),
        ({"complete_final": 1}, "Expected `bool`, got `int`"),
        (7, "Expected `object`, got `int`"),
    ],
)
def test_a_value_that_is_no_item(codec: PayloadCodec, value: Any, message: str) -> None:
    data = codec.encode(value)
    with pytest.raises(PayloadError, match=message) as raised:
        codec.decode_item(data)
    assert f"(in the {len(data)} bytes of this {codec.value} item)" in str(raised.value)


HOSTILE = [
    (JSON, b""),
    (JSON, b"not json"),
    (JSON, b"\xff"),
    (JSON, b'"\\ud800"'),
    (JSON, b'"\xc3"'),
    (JSON, b"[1] x"),
    (JSON, b"[1"),
    (JSON, b"NaN"),
    (JSON, b"[" * 100_000),
    (JSON, b'{"a":' * 100_000),
    (MSGPACK, b""),
    (MSGPACK, b"\xc1"),
    (MSGPACK, b"\xa1\xff"),
    (MSGPACK, b"\xdd\xff\xff\xff\xff"),
    (MSGPACK, b"\xdf\xff\xff\xff\xff"),
    (MSGPACK, b"\xdb\xff\xff\xff\xff"),
    (MSGPACK, b"\xc6\xff\xff\xff\xff"),
    (MSGPACK, b"\x81\x80\x01"),
    (MSGPACK, b"\x91" * 100_000),
]


@pytest.mark.parametrize(("codec", "data"), HOSTILE, ids=lambda part: repr(part)[:40])
def test_hostile_bytes_are_an_error_and_nothing_else(codec: PayloadCodec, data: bytes) -> None:
    with pytest.raises(PayloadError, match=rf"\(in the {len(data)} bytes of this {codec.value} body\)"):
        codec.decode(data)
    with pytest.raises(PayloadError):
        codec.decode_item(data)


@CODECS
@given(data=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(codec: PayloadCodec, data: bytes) -> None:
    for read in (codec.decode, codec.decode_item):
        try:
            read(data)
        except PayloadError:
            pass


def test_what_follows_a_messagepack_value_is_not_looked_at() -> None:
    assert MSGPACK.decode(b"\x92\x01\x02rest") == [1, 2]
    assert MSGPACK.decode_item(MSGPACK.final + b"\xc1") == NetworkStreamWrapper(complete_final=True)
    item = MSGPACK.encode_item({"a": 1})
    assert MSGPACK.decode_item(memoryview(item + bytes(5))) == MSGPACK.decode_item(item)


@CODECS
def test_a_view_is_as_good_as_bytes(codec: PayloadCodec) -> None:
    data = codec.encode_item({"text": "x" * 1000})
    assert codec.decode_item(memoryview(data)) == codec.decode_item(data)
    assert codec.decode(memoryview(codec.encode([1]))) == [1]


# Values ----------------------------------------------------------------------------------------------------------------


@CODECS
@given(value=values(nan=False))
def test_values_come_back(codec: PayloadCodec, value: Any) -> None:
    assert codec.decode(codec.encode(value)) == value
    item = codec.decode_item(codec.encode_item(value)).data
    assert item is not None
    assert item.data() == value


@given(value=values(nan=True))
def test_the_fast_way_and_the_slow_way_write_the_same(value: Any) -> None:
    for codec in PayloadCodec:
        slow = collections.OrderedDict(key=value)  # a subclass is nothing that the fast way takes
        assert codec.encode(slow) == codec.encode({"key": value})
        assert codec.encode_item(slow) == codec.encode_item({"key": value})


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1e-7, b"1e-7"), (1e16, b"1e+16"), (1e-5, b"0.00001"), (1.5e-5, b"0.000015"), (1.25e20, b"1.25e+20"),
        (1e15, b"1000000000000000.0"), (-0.0, b"-0.0"), (2.0, b"2.0"), (5e-324, b"5e-324"),
        (math.nan, b"null"), (math.inf, b"null"), ('"\\/\x1b\x7f\u2028é', '"\\"\\\\/\\u001b\x7f\u2028é"'.encode()),
        ((1, {2}, frozenset([3]), range(2), memoryview(b"a")), b"[1,[2],[3],[0,1],[97]]"),
        (b"ab", b"[97,98]"), ({1: 0, 1.5: 2}, b'{"1":0,"1.5":2}'), ({True: 1}, b'{"true":1}'),
    ],
)  # fmt: skip
def test_json(value: Any, written: bytes) -> None:
    assert JSON.encode(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (127, "7f"), (128, "cc80"), (256, "cd0100"), (65536, "ce00010000"), (2**32, "cf0000000100000000"),
        (2**64 - 1, "cfffffffffffffffff"), (-1, "ff"), (-32, "e0"), (-33, "d0df"), (-129, "d1ff7f"),
        (-(2**15) - 1, "d2ffff7fff"), (-(2**31) - 1, "d3ffffffff7fffffff"), (1.0, "cb3ff0000000000000"),
        (math.nan, "cb7ff8000000000000"), (b"ab", "c4026162"), ({1: (True,)}, "810191c3"), ({None: 0}, "81c000"),
        ({(1, frozenset([2])): 0}, "8192019102" "00"), (memoryview(b"ab"), "926162"),
    ],
)  # fmt: skip
def test_messagepack(value: Any, written: str) -> None:
    assert MSGPACK.encode(value).hex() == written


def test_integers_beyond_64_bits() -> None:
    """An answer may hold them, in forms of their own; a request may not."""
    assert JSON.encode_item([2**64]) == b'{"data":{"data":[18446744073709551616]},"complete_final":false}'
    assert b"\xc4\x10" + (2**64).to_bytes(16, "big") in MSGPACK.encode_item([2**64])
    assert b"\xc4\x10\xff" in MSGPACK.encode_item(-(2**63) - 1)
    for codec in PayloadCodec:
        for value in (2**64, -(2**63) - 1):
            with pytest.raises(SerializationError, match=rf"integer `{value}` as [iu]128, .* \(at \$\[0\]\)"):
                codec.encode([value])
    with pytest.raises(SerializationError, match="`an integer of 10001 bits` as u128"):
        MSGPACK.encode_item(1 << 10_000)


class Colour(enum.Enum):
    RED = 1


@CODECS
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"unsupported type object \(at \$\)"),
        ({"a": [0, Colour.RED]}, r"unsupported type Colour \(at \$\.a\[1\]\)"),
        ({"a": {"b": datetime.date(2020, 1, 1)}}, r"unsupported type date \(at \$\.a\.b\)"),
        (bytearray(b"a"), "'bytearray' object cannot be converted"),
        ([iter([])], r"unsupported type list_iterator \(at \$\[0\]\)"),
        (1j, "unsupported type complex"),
        ({"a": "\ud800"}, r"surrogates not allowed \(at \$\.a\)"),
        ({"\udfff": 1}, "surrogates not allowed"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_named(codec: PayloadCodec, value: Any, message: str) -> None:
    for encode in (codec.encode, codec.encode_item):
        with pytest.raises(SerializationError, match=message):
            encode(value)


@pytest.mark.parametrize("key", [None, math.nan, (1,), b"k"])
def test_keys_that_json_does_not_have(key: Any) -> None:
    with pytest.raises(SerializationError, match=r"key must be a string, not \w+ \(at \$\.a\)"):
        JSON.encode({"a": {key: 1}})


@CODECS
def test_a_value_without_an_end(codec: PayloadCodec) -> None:
    ring: list[Any] = []
    ring.append({"ring": ring})
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (ring, deep):
        for encode in (codec.encode, codec.encode_item):
            with pytest.raises(SerializationError, match="nested too deeply"):
                encode(value)
    while deep:  # the interpreter's own way of letting go of it may be deep, too
        deep = deep.pop()


@CODECS
def test_a_value_of_some_depth(codec: PayloadCodec) -> None:
    value: Any = 1
    for _ in range(120):
        value = {"a": [value]}
    assert codec.decode(codec.encode(value)) == value


# _plain ----------------------------------------------------------------------------------------------------------------


BOTH = pytest.mark.parametrize("plain", [_plain, interpreted(_plain)], ids=["imported", "interpreted"])


class Text(str):
    __slots__ = ()


@BOTH
def test_what_is_plain(plain: Any) -> None:
    look = plain.is_plain
    values: list[Any] = [None, True, 1, 1.5, "a", b"a", [], (), {}, [1, (2, {"a": None})], {"a": {"b": []}}]
    for value in values:
        assert look(value), value
    odd: list[Any] = [Text(), Colour.RED, {1}, range(1), bytearray(), memoryview(b""), collections.OrderedDict(), 1j]
    for value in odd:
        arounds: list[Any] = [value, [value], (value,), {"a": value}, [[{"a": [0, value]}]]]
        for around in arounds:
            assert not look(around), around
    for key in (1, None, Text("b"), b"a"):
        assert not look({"a": 1, key: 1})
    deep: Any = []
    deep_map: Any = {}
    for _ in range(sys.getrecursionlimit() * 2):
        deep, deep_map = [deep], {"": deep_map}
    assert not look(deep)
    assert not look(deep_map)


def test_a_body_is_what_python_reads() -> None:
    """Two readers of JSON agree on what we write."""
    value = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    assert json.loads(JSON.encode(value)) == value


@pytest.mark.parametrize("codec", PayloadCodec)
@pytest.mark.parametrize("place", ["value", "list", "key", "path", "comment"])
def test_a_number_that_python_does_not_convert_cannot_be_written(codec: PayloadCodec, place: str) -> None:
    huge = 10**5000
    values: dict[str, Any] = {
        "value": huge,
        "list": [huge],
        "key": {huge: 1},
        "path": {"a": {huge: [object()]}},
        "comment": {"_dynamo_annotated": True, "comment": [[huge]]},
    }
    with pytest.raises(SerializationError) as caught:
        codec.encode_item(values[place])
    assert len(str(caught.value)) < 1000
