"""Captures of real Dynamos, and captures that are made by dpkt."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest

from dynamo_fast.errors import InvalidRequest
from dynamo_fast.inspect import Closed, Event, Failed, FrameSeen, Opened, Plane, read_capture
from tests.inspect.test_conversation import HANDSHAKE, ITEM, PROLOGUE, SENTINEL, request_frame
from tests.inspect.test_reassembly import ACK, FIN, RST, SYN, A, B, capture_file, ip_packet

CAPTURES = Path(__file__).parent / "captures"
BOTH = ["dynamo-1.6.1.pcap", "dynamo-1.3.1.pcapng"]


def kinds_of(events: list[Event]) -> list[tuple[int, str]]:
    return [(event.number, event.frame.kind) for event in events if isinstance(event, FrameSeen)]


@pytest.mark.parametrize("name", BOTH)
def test_a_path_a_text_and_a_file_give_the_same_events(name: str) -> None:
    events = list(read_capture(CAPTURES / name))
    assert events == list(read_capture(str(CAPTURES / name)))
    assert events == list(read_capture(io.BytesIO((CAPTURES / name).read_bytes())))
    connections = [event.number for event in events if isinstance(event, Opened)]
    assert connections == [1, 2, 3, 4]
    assert sorted(event.number for event in events if isinstance(event, Closed)) == connections
    times = [event.time for event in events if isinstance(event, FrameSeen) and event.time is not None]
    assert len(times) == len(kinds_of(events))
    assert times == sorted(times)


@pytest.mark.parametrize("name", BOTH)
def test_both_releases_say_the_same(name: str) -> None:
    stream = ["handshake", "prologue", "item"]
    assert [kind for _, kind in kinds_of(list(read_capture(CAPTURES / name)))] == [
        *["request", "ack", *stream, "item", "item", "item", "event", "final", "sentinel"],
        *["request", "ack", *stream, "error", "final", "sentinel"],
        *["request", "ack", *stream, "item", "item", "stop"],
    ]


def test_a_frame_is_yielded_before_the_rest_of_the_file_is_read() -> None:
    data = (CAPTURES / BOTH[0]).read_bytes()

    class Pipe(io.RawIOBase):
        """Gives the first packets, then fails if it is asked for more."""

        def __init__(self) -> None:
            self.left = io.BytesIO(data[:2000])

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            read = self.left.readinto(buffer)  # type: ignore[arg-type]
            assert read, "the whole file was asked for"
            return read

    first = list(itertools.islice(read_capture(io.BufferedReader(Pipe(), 100)), 2))
    assert isinstance(first[0], Opened)
    assert isinstance(first[1], FrameSeen)


def test_only_the_connections_of_a_port() -> None:
    events = list(read_capture(CAPTURES / BOTH[0], port=40665))
    assert {event.number for event in events if not isinstance(event, Failed)} == {1}
    assert list(read_capture(CAPTURES / BOTH[0], port=665)) == []


def test_the_plane_may_be_named() -> None:
    packets = [ip_packet(A, B, 0, flags=SYN), ip_packet(A, B, 1, bytes(24)), ip_packet(A, B, 25, flags=RST)]
    assert kinds_of(list(read_capture(capture_file(packets)))) == [(1, "damage")]
    assert kinds_of(list(read_capture(capture_file(packets), Plane.RESPONSE))) == [(1, "empty")]


def test_a_connection_without_its_beginning_is_opened_midway() -> None:
    packets = [ip_packet(A, B, 500, request_frame()), ip_packet(B, A, 900, bytes(4), ACK | FIN)]
    events = list(read_capture(capture_file(packets)))
    assert events[0] == Opened(1, "10.0.0.1:1000", "10.0.0.2:2000", midway=True)
    assert kinds_of(events) == [(1, "request"), (1, "ack")]
    assert events[-1] == Closed(1, "the end of the capture")


def test_the_next_connection_is_read_after_damage() -> None:
    """One connection is damaged, one lacks bytes, one is not Dynamo's, two are good."""
    packets: list[bytes] = []
    streams: list[list[bytes | None]] = [
        [HANDSHAKE + b"\xff" * 24],
        [HANDSHAKE, None, PROLOGUE],
        [b"GET / HTTP/1.1\r\n\r\n"],
        [HANDSHAKE + PROLOGUE + ITEM + SENTINEL],
        [request_frame()],
    ]
    for number, stream in enumerate(streams):
        source, at = ("10.0.0.1", 3000 + number), 1
        packets.append(ip_packet(source, B, 0, flags=SYN))
        for data in stream:
            packets += [ip_packet(source, B, at, data)] if data is not None else []
            at += 50 if data is None else len(data)
        packets.append(ip_packet(source, B, at, flags=RST))
    events = list(read_capture(capture_file(packets)))
    assert sorted(kinds_of(events)) == [
        *[(1, "damage"), (1, "handshake"), (2, "damage"), (2, "handshake"), (3, "damage")],
        *[(4, "handshake"), (4, "item"), (4, "prologue"), (4, "sentinel"), (5, "request")],
    ]
    problems = [each for event in events if isinstance(event, FrameSeen) for each in event.frame.problems]
    assert "byte 64: the next 50 bytes are missing from the capture" in problems


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("size", [3000, 3011, 3017])
def test_a_capture_that_ends_in_the_middle(name: str, size: int) -> None:
    events = list(read_capture(io.BytesIO((CAPTURES / name).read_bytes()[:size])))
    assert (1, "request") in kinds_of(events)
    ends = {event.how for event in events if isinstance(event, Closed)}
    assert ends == {"the end of the capture"}
    # A pcap file ends with a shorter packet; a pcapng file has a length that says more.
    damage = [event for event in events if isinstance(event, FrameSeen) and event.frame.kind == "damage"]
    failures = [event.reason for event in events if isinstance(event, Failed)]
    assert damage or failures[0].startswith("the capture is damaged after ")


def test_a_file_that_is_not_a_capture(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a capture")
    with pytest.raises(InvalidRequest, match="this is no pcap or pcapng file"):
        list(read_capture(tmp_path / "text"))
    with pytest.raises(FileNotFoundError):
        list(read_capture(tmp_path / "nothing"))
