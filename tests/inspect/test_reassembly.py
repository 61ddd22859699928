"""Bytes in order out of packets in any order. The packets are made by dpkt, as a capture's are read by it."""

from __future__ import annotations

import io
import itertools
import socket
from collections.abc import Iterable
from typing import Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_fast.errors import InvalidRequest
from dynamo_fast.inspect import Closed, Failed, Opened, reassembly
from dynamo_fast.inspect.reassembly import Data, Gap, reassemble

SYN, ACK, FIN, RST = dpkt.tcp.TH_SYN, dpkt.tcp.TH_ACK, dpkt.tcp.TH_FIN, dpkt.tcp.TH_RST
A, B = ("10.0.0.1", 1000), ("10.0.0.2", 2000)


def ip_packet(
    source: tuple[str, int], target: tuple[str, int], sequence: int, data: bytes = b"", flags: int = ACK
) -> bytes:
    tcp = dpkt.tcp.TCP(sport=source[1], dport=target[1], seq=sequence % 2**32, flags=flags, data=data)
    if ":" in source[0]:
        six = dpkt.ip6.IP6(
            src=socket.inet_pton(socket.AF_INET6, source[0]), dst=socket.inet_pton(socket.AF_INET6, target[0]),
            nxt=6, hlim=64, plen=len(tcp), data=tcp,
        )  # fmt: skip
        six.extension_hdrs = {}
        return bytes(six)
    four = dpkt.ip.IP(src=socket.inet_aton(source[0]), dst=socket.inet_aton(target[0]), p=6, data=tcp)
    four.len = len(four)
    return bytes(four)


def capture_file(packets: Iterable[bytes], linktype: int = 101) -> io.BytesIO:
    file = io.BytesIO()
    writer = dpkt.pcap.Writer(file, linktype=linktype)
    for number, packet in enumerate(packets):
        writer.writepkt(packet, ts=1000 + number)
    file.seek(0)
    return file


def events(*packets: bytes) -> list[Any]:
    return list(reassemble(capture_file(packets)))


def bytes_of(found: list[Any], from_dialler: bool = True) -> bytes:
    return b"".join(each.data for each in found if isinstance(each, Data) and each.from_dialler is from_dialler)


def opening(first: int = 0) -> list[bytes]:
    return [ip_packet(A, B, first - 1, flags=SYN), ip_packet(B, A, 499, flags=SYN | ACK)]


def test_a_connection_from_its_beginning_to_its_end() -> None:
    found = events(
        *opening(),
        ip_packet(A, B, 0, b"hello"),
        ip_packet(B, A, 500, b"you"),
        ip_packet(A, B, 5, b"!", ACK | FIN),
        ip_packet(B, A, 503, b"", ACK | FIN),
        ip_packet(A, B, 7),
    )
    assert found == [
        Opened(1, "10.0.0.1:1000", "10.0.0.2:2000", midway=False),
        Data(1, True, b"hello", 1002.0),
        Data(1, False, b"you", 1003.0),
        Data(1, True, b"!", 1004.0),
        Closed(1, "FIN"),
    ]


@given(data=st.data(), first=st.sampled_from([0, 1, 2**31 - 5, 2**32 - 30, 2**32 - 1]))
def test_segments_in_any_order_and_any_number_of_times(data: st.DataObject, first: int) -> None:
    text = bytes(range(60))
    cuts = sorted(data.draw(st.sets(st.integers(1, 59), max_size=8)) | {0, 60})
    pieces = [(start, text[start:stop]) for start, stop in itertools.pairwise(cuts)]
    again = data.draw(st.lists(st.integers(0, 50).map(lambda at: (at, text[at : at + 10]))))
    order = data.draw(st.permutations(pieces + again))
    found = events(*opening(first), *(ip_packet(A, B, first + at, piece) for at, piece in order))
    assert bytes_of(found) == text
    assert not any(isinstance(each, Gap) for each in found)


def test_bytes_that_are_missing() -> None:
    found = events(*opening(), ip_packet(A, B, 0, b"one"), ip_packet(A, B, 10, b"two"), ip_packet(B, A, 500, b"other"))
    assert found[-2:] == [Gap(1, True, 7), Closed(1, "the end of the capture")]
    assert (bytes_of(found), bytes_of(found, from_dialler=False)) == (b"one", b"other")


def test_what_waits_for_missing_bytes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reassembly, "_MAX_HELD", 100)
    late = [ip_packet(A, B, at, bytes(50)) for at in range(10, 1000, 50)]
    found = events(*opening(), *late, ip_packet(A, B, 0, b"x" * 10))
    assert found[1:] == [Gap(1, True, 10), Closed(1, "the end of the capture")]


def test_a_connection_whose_beginning_is_missing() -> None:
    found = events(ip_packet(B, A, 77), ip_packet(A, B, 1000, b"data"), ip_packet(A, B, 990, b"before that"))
    assert found[0] == Opened(1, "10.0.0.1:1000", "10.0.0.2:2000", midway=True)
    assert bytes_of(found) == b"data"
    found = events(ip_packet(B, A, 499, flags=SYN | ACK), ip_packet(A, B, 0, b"data"))
    assert found[0] == Opened(1, "10.0.0.1:1000", "10.0.0.2:2000", midway=False)


def test_ports_that_are_used_again() -> None:
    found = events(
        *opening(), ip_packet(A, B, 0, b"1"), ip_packet(A, B, 1, b"", RST), ip_packet(B, A, 500),
        ip_packet(A, B, 8999, flags=SYN), ip_packet(A, B, 8999, flags=SYN), ip_packet(A, B, 9000, b"2"),
        ip_packet(A, B, 5000, flags=SYN), ip_packet(A, B, 5001, b"3"),
    )  # fmt: skip
    assert [each.data for each in found if isinstance(each, Data)] == [b"1", b"2", b"3"]
    assert [each.how for each in found if isinstance(each, Closed)] == [
        "RST",
        "another connection between the same ports",
        "the end of the capture",
    ]
    assert [each.number for each in found if isinstance(each, Opened)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("linktype", "wrap"),
    [
        (1, lambda packet: bytes(12) + b"\x08\x00" + packet),
        (1, lambda packet: bytes(12) + b"\x81\x00\x00\x05\x08\x00" + packet),
        (113, lambda packet: b"\0\0\0\1\0\6" + bytes(8) + b"\x08\x00" + packet),
        (276, lambda packet: b"\x08\x00" + bytes(18) + packet),
        (0, lambda packet: b"\2\0\0\0" + packet),
        (12, lambda packet: packet),
        (228, lambda packet: packet),
    ],
)
def test_link_layers(linktype: int, wrap: Any) -> None:
    packets = [wrap(packet) for packet in (*opening(), ip_packet(A, B, 0, b"data"))]
    assert bytes_of(list(reassemble(capture_file(packets, linktype)))) == b"data"


def test_ipv6_and_what_is_no_tcp() -> None:
    udp = dpkt.ip.IP(src=bytes(4), dst=bytes(4), p=17, data=dpkt.udp.UDP(sport=1, dport=2, data=b"x"))
    a, b = ("::1", 1), ("fe80::2", 2)
    found = events(bytes(udp), b"", b"\x45", b"\xff" * 40, ip_packet(a, b, 9, flags=SYN), ip_packet(a, b, 10, b"data"))
    assert found[0] == Opened(1, "[::1]:1", "[fe80::2]:2", midway=False)
    assert bytes_of(found) == b"data"


def test_files_that_are_none() -> None:
    for data in (b"", b"\xd4\xc3\xb2\xa1", b"not a capture at all, but a text"):
        with pytest.raises(InvalidRequest, match="this is no pcap or pcapng file"):
            list(reassemble(io.BytesIO(data)))
    with pytest.raises(InvalidRequest, match="link type 147 are not read"):
        list(reassemble(capture_file([], linktype=147)))
    cut = capture_file(opening()).getvalue()[: 24 + 16 + 40 + 7]
    assert isinstance(list(reassemble(io.BytesIO(cut)))[1], Failed)
