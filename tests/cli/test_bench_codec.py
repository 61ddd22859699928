"""`dynamo-fast bench codec`: what it times, what it compares with, what it prints."""

from __future__ import annotations

import json

import pytest

from dynamo_fast import codec
from dynamo_fast.cli import bench_codec, codec_by_hand, failures
from dynamo_fast.cli.main import main


def test_bench_codec_times_the_frames_and_sends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codec", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table.keys() == {"encode", "decode", "stream"}
    for rows in table.values():
        assert rows.keys() >= {"struct by hand", "Python"}
        assert all(0 < seconds < 1 for row in rows.values() for seconds in row.values())


def test_the_codec_by_hand_is_a_codec() -> None:
    """What the codec is compared with must do the same work."""
    frame = codec_by_hand.encode(b"head", b"data")
    assert frame == codec.encode(b"head", b"data")
    assert codec_by_hand.decode(frame) == (b"head", b"data")
    with pytest.raises(ValueError, match="31 bytes are no message of 32"):
        codec_by_hand.decode(frame[:-1])
    decoder = codec_by_hand.StructDecoder()
    stream = frame * 5
    assert [each for at in range(0, len(stream), 7) for each in decoder.feed(stream[at : at + 7])] == [
        (b"head", b"data")
    ] * 5


def test_a_table_of_the_codec_shows_how_many_times_as_fast_it_is() -> None:
    row = {96: 4e-7, 4096: 4e-7, 65536: 4e-6}
    ours = {size: seconds / 4 for size, seconds in row.items()}
    table = {what: {"struct by hand": row, "compiled": ours} for what in ("encode", "decode", "stream")}
    shown = bench_codec.lines(table)
    assert any(
        each.split() == ["decode,", "compiled", "100", "(4.0x)", "100", "(4.0x)", "1,000", "(4.0x)"] for each in shown
    )


def test_a_request_for_the_codec_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codec", "1"]) == failures.UNUSABLE
    assert "it takes no request" in capsys.readouterr().err
