"""How a decoder buffers, and what it verifies: slips that no result would show."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from dynamo_fast.errors import ChecksumMismatch
from tests.codecs import BACKENDS


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    return BACKENDS[request.param]


def test_the_buffer_of_a_frame_that_comes_in_pieces_grows_by_a_share_of_itself(backend: Any) -> None:
    """Were it made anew for each piece, a frame of N pieces would be copied N / 2 times."""
    pieces = 1000
    frame = backend.encode_two_part(b"", bytes(1000 * pieces))
    decoder = backend.TwoPartDecoder()
    decoder.feed(frame[:100])
    sizes = set()
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy lacks it")
    tracemalloc.start()
    try:
        for at in range(100, len(frame) - 1000, 1000):
            piece = frame[at : at + 1000]
            decoder.feed(piece)
            del piece
            sizes.add(tracemalloc.get_traced_memory()[0] // 4096)
    finally:
        tracemalloc.stop()
    assert max(sizes) * 4096 >= 900 * pieces  # it is the buffer that was measured
    assert len(sizes) <= pieces / 5


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("feed", ["feed", "feed_data"])
@pytest.mark.parametrize("cut", [0, 30])
def test_a_wrong_checksum_is_found_however_the_frame_comes(backend: Any, size: int, feed: str, cut: int) -> None:
    body = b"x" * size
    good = backend.TwoPartCodec(checksum=True).encode_message(backend.TwoPartMessage.from_data(body))
    bad = good[:16] + struct.pack(">Q", int.from_bytes(good[16:24], "big") ^ 1) + good[24:]
    decoder = backend.TwoPartDecoder(checksum=True)
    into: Callable[[bytes], Any] = getattr(decoder, feed)
    into(good)
    into(bad[:cut])
    with pytest.raises(ChecksumMismatch):
        into(bad[cut:])
