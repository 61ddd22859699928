"""The base of the protocol classes: what it calls, when, and that no codec error leaves it."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

import dynamo_fast.egress
import dynamo_fast.ingress
from dynamo_fast.codec import (
    TcpRequestCodec,
    TcpRequestDecoder,
    TcpRequestMessage,
    TcpResponseCodec,
    TcpResponseDecoder,
    TcpResponseMessage,
    TwoPartCodec,
    TwoPartDecoder,
    TwoPartMessage,
)
from dynamo_fast.errors import CodecError
from dynamo_fast.net import frame_log
from dynamo_fast.net.frame_protocol import DataFrameProtocol, Decoder, FrameProtocol

LIMIT = 1000
GARBAGE = b"\xff" * 24
TOO_LARGE = bytes(4) + GARBAGE  # a request without a path and headers


class Recorder(FrameProtocol):
    def __init__(self, decoder: Decoder[Any]) -> None:
        super().__init__(decoder)
        self._transport = None
        self.calls: list[Any] = []

    def message_received(self, message: Any) -> None:
        self.calls.append(message)

    def stream_failed(self, error: CodecError) -> None:
        assert self._decoder.failed is error
        self.calls.append(type(error))

    def read_finished(self, size: int) -> None:
        self.calls.append(size)


class DataRecorder(DataFrameProtocol):
    """Hands data frames to a sink between the messages "on" and "off"."""

    def __init__(self, sink: deque[bytes | memoryview] | None) -> None:
        super().__init__(TwoPartDecoder(LIMIT))
        self._transport = None
        self._own_sink = sink
        self.received: deque[bytes | memoryview] = deque() if sink is None else sink
        self.calls: list[Any] = []

    def message_received(self, message: TwoPartMessage) -> None:
        if message.header:
            self._sink = self._own_sink if message.header == b"on" else None
            self.calls.append((len(self.received), bytes(message.header)))
        else:
            assert self._sink is None or not message.data
            self.received.append(message.data)

    def stream_failed(self, error: CodecError) -> None:
        self.calls.append((len(self.received), type(error)))


def frames_of(kind: str) -> tuple[Decoder[Any], list[Any], bytes]:
    """A decoder, three messages, and the bytes of these."""
    if kind == "two-part":
        codec: Any = TwoPartCodec()
        messages: list[Any] = [TwoPartMessage.from_parts(b"h" * n, b"d" * 3 * n) for n in (1, 0, 9)]
        decoder: Decoder[Any] = TwoPartDecoder(LIMIT)
    elif kind == "request":
        codec, decoder = TcpRequestCodec(), TcpRequestDecoder(LIMIT)
        messages = [TcpRequestMessage.from_parts(b"p" * n, b"h" * n, b"d" * n) for n in (1, 2, 9)]
    else:
        codec, decoder = TcpResponseCodec(), TcpResponseDecoder(LIMIT)
        messages = [TcpResponseMessage.from_parts(b"d" * n) for n in (0, 2, 9)]
    return decoder, messages, b"".join(map(codec.encode_message, messages))


def pieces(data: bytes, rng: random.Random) -> Iterator[bytes]:
    while data:
        size = rng.randint(1, len(data))
        yield data[:size]
        data = data[size:]


@pytest.mark.parametrize("kind", ["two-part", "request", "response"])
@pytest.mark.parametrize("seed", range(20))
def test_bytes_become_messages_then_the_failure(kind: str, seed: int) -> None:
    decoder, messages, data = frames_of(kind)
    protocol = Recorder(decoder)
    bad = TOO_LARGE if kind == "request" else GARBAGE
    reads = list(pieces(data + bad, random.Random(seed)))
    for read in reads:
        protocol.data_received(read)
    sizes = [call for call in protocol.calls if isinstance(call, int)]
    assert sizes == [len(read) for read in reads]
    assert isinstance(protocol.calls[-1], int)
    events = [call for call in protocol.calls if not isinstance(call, int)]
    assert events[:3] == messages
    assert events[3:]
    assert all(isinstance(event, type) and issubclass(event, CodecError) for event in events[3:])


def test_messages_of_the_read_that_fails_come_first() -> None:
    decoder, messages, data = frames_of("two-part")
    protocol = Recorder(decoder)
    protocol.data_received(data + GARBAGE)
    *received, failure, size = protocol.calls
    assert received == messages
    assert issubclass(failure, CodecError)
    assert size == len(data + GARBAGE)
    protocol.data_received(b"more")
    assert protocol.calls[-2:] == [failure, 4]


def test_what_a_subclass_raises_is_its_own() -> None:
    class Broken(Recorder):
        def message_received(self, message: Any) -> None:
            raise CodecError("not the decoder's")

    decoder, _, data = frames_of("two-part")
    with pytest.raises(CodecError, match="not the decoder's"):
        Broken(decoder).data_received(data)


@pytest.mark.parametrize("logged", [False, True], ids=["not logged", "logged"])
@pytest.mark.parametrize("seed", range(40))
def test_a_sink_takes_the_data_frames_in_their_place(seed: int, logged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_log, "ENABLED", logged)
    rng = random.Random(seed)
    parts = [(b"", b"%d" % n) if rng.random() < 0.7 else (rng.choice([b"on", b"off"]), b"") for n in range(20)]
    codec = TwoPartCodec()
    data = b"".join(codec.encode_message(TwoPartMessage.from_parts(*part)) for part in parts)
    if rng.random() < 0.5:
        data += GARBAGE
    reads = list(pieces(data, rng))
    with_sink, without = DataRecorder(deque()), DataRecorder(None)
    for read in reads:
        with_sink.data_received(read)
        without.data_received(read)
    assert list(with_sink.received) == list(without.received) == [body for header, body in parts if not header]
    assert with_sink.calls == without.calls


def protocol_classes() -> list[type[asyncio.Protocol]]:
    for package in (dynamo_fast.egress, dynamo_fast.ingress):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)

    def below(cls: type[asyncio.Protocol]) -> Iterator[type[asyncio.Protocol]]:
        for each in cls.__subclasses__():
            yield each
            yield from below(each)

    own = (dynamo_fast.egress.__name__, dynamo_fast.ingress.__name__)
    return [each for each in below(asyncio.Protocol) if each.__module__.startswith(own)]


def test_every_protocol_class_reads_through_the_base() -> None:
    bases = {asyncio.Protocol.data_received, FrameProtocol.data_received, DataFrameProtocol.data_received}
    classes = protocol_classes()
    assert len(classes) >= 5
    for each in classes:
        assert each.data_received in bases, f"{each.__qualname__} decodes on its own"
