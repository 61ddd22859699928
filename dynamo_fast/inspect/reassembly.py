"""TCP connections from a pcap or pcapng file: packets in, bytes in order out. dpkt reads the file format."""

from __future__ import annotations

import io
import ipaddress
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from dynamo_fast.errors import InvalidRequest
from dynamo_fast.inspect.events import Closed, Failed, Opened
from dynamo_fast.wire.address import join_host_port

__all__ = ["Data", "Gap", "TcpEvent", "is_capture", "peekable", "reassemble"]

_PCAPNG = b"\x0a\x0d\x0d\x0a"
_MAGIC = (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d", _PCAPNG)
"""How the files begin: pcap of either byte order, in micro- or nanoseconds, and pcapng."""
_MAX_HELD = 1 << 24
"""Bytes of a direction that came too early and wait for those before them; above it, they are a gap."""
_SEQUENCE = 1 << 32


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes, in order. `time` is in seconds since 1970."""

    number: int
    from_dialler: bool
    data: bytes
    time: float


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes that were never captured."""

    number: int
    from_dialler: bool
    size: int


TcpEvent = Opened | Data | Gap | Closed | Failed


def reassemble(file: BinaryIO) -> Iterator[TcpEvent]:
    """Yield what happens on the connections in a capture, in its order, as soon as it has been read (`file` may be a pipe).

    Raises InvalidRequest if `file` is not a capture, or if dpkt is not installed.
    """
    dpkt = _dpkt()
    file = peekable(file)
    is_pcapng = file.peek(4)[:4] == _PCAPNG
    try:
        reader = dpkt.pcapng.Reader(file) if is_pcapng else dpkt.pcap.Reader(file)
    except (ValueError, dpkt.Error) as error:
        raise InvalidRequest(f"this is no pcap or pcapng file: {error or type(error).__name__}") from None
    unpack = _link_layer(dpkt, reader.datalink())
    connections = _Connections()
    packets = iter(reader)
    for count in itertools.count():
        try:
            time, packet = next(packets)
        except StopIteration:
            break
        except (ValueError, dpkt.Error, EOFError) as error:
            yield Failed(f"the capture is damaged after {count} packets: {error or type(error).__name__}")
            break
        segment = _segment(dpkt, unpack, packet)
        if segment is not None:
            yield from connections.take(segment, float(time))
    yield from connections.close()


def peekable(file: BinaryIO) -> io.BufferedReader:
    """`file` with a `peek`."""
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)  # type: ignore[arg-type]


def is_capture(file: io.BufferedReader) -> bool:
    """Whether the file begins like a capture; nothing is consumed."""
    return file.peek(4)[:4] in _MAGIC


def _dpkt() -> Any:
    try:
        import dpkt
    except ImportError as error:
        raise InvalidRequest(f"reading captures needs dpkt: pip install 'dynamo-fast[pcap]' ({error})") from None
    return dpkt


def _link_layer(dpkt: Any, datalink: int) -> Any:
    """The function that unpacks IP from a packet. `datalink` is the number in the file (tcpdump.org, LINKTYPE_)."""

    def internet(packet: bytes) -> Any:
        return dpkt.ip6.IP6(packet) if packet[:1] and packet[0] >> 4 == 6 else dpkt.ip.IP(packet)

    layers = {
        0: lambda packet: internet(packet[4:]),
        1: lambda packet: dpkt.ethernet.Ethernet(packet).data,
        12: internet,
        101: internet,
        108: lambda packet: internet(packet[4:]),
        113: lambda packet: dpkt.sll.SLL(packet).data,
        228: internet,
        229: internet,
        276: lambda packet: dpkt.sll2.SLL2(packet).data,
    }
    if datalink not in layers:
        raise InvalidRequest(f"captures of the link type {datalink} are not read, only {sorted(layers)}")
    return layers[datalink]


@dataclass(frozen=True, slots=True)
class _Segment:
    source: str
    target: str
    sequence: int
    data: bytes
    syn: bool
    ack: bool
    fin: bool
    rst: bool


def _segment(dpkt: Any, unpack: Any, packet: bytes) -> _Segment | None:
    """The TCP segment in a packet; None if there is none, or if it is cut off."""
    try:
        ip = unpack(packet)
        tcp = ip.data
    except (dpkt.Error, AttributeError, IndexError):
        return None
    if not isinstance(tcp, dpkt.tcp.TCP):
        return None
    return _Segment(
        source=join_host_port(str(ipaddress.ip_address(ip.src)), tcp.sport),
        target=join_host_port(str(ipaddress.ip_address(ip.dst)), tcp.dport),
        sequence=tcp.seq,
        data=bytes(tcp.data),
        syn=bool(tcp.flags & dpkt.tcp.TH_SYN),
        ack=bool(tcp.flags & dpkt.tcp.TH_ACK),
        fin=bool(tcp.flags & dpkt.tcp.TH_FIN),
        rst=bool(tcp.flags & dpkt.tcp.TH_RST),
    )


class _Connections:
    """The connections that are open at this point of the capture. Owned by one call of `reassemble`."""

    def __init__(self) -> None:
        self._open: dict[frozenset[str], _Connection] = {}
        self._count = 0

    def take(self, segment: _Segment, time: float) -> Iterator[TcpEvent]:
        key = frozenset((segment.source, segment.target))
        connection = self._open.get(key)
        if segment.syn and not segment.ack and connection is not None and not connection.is_again(segment):
            yield from self._open.pop(key).close("another connection between the same ports")
            connection = None
        if connection is None:
            if not segment.data and not segment.syn:
                return  # the end of a connection that is over, or that was not captured
            connection = self._open[key] = self._connection(segment)
            yield connection.opened
        yield from connection.take(segment, time)
        if connection.how_it_ended:
            del self._open[key]
            yield from connection.close(connection.how_it_ended)

    def close(self) -> Iterator[TcpEvent]:
        for connection in self._open.values():
            yield from connection.close("the end of the capture")

    def _connection(self, segment: _Segment) -> _Connection:
        self._count += 1
        dialler, listener = segment.source, segment.target
        if segment.syn and segment.ack:
            dialler, listener = listener, dialler
        return _Connection(Opened(self._count, dialler, listener, midway=not segment.syn))


class _Connection:
    """One connection, from its first packet in the capture to its end. Owned by `_Connections`."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.how_it_ended = ""
        self._orders = {True: _Order(), False: _Order()}

    def is_again(self, segment: _Segment) -> bool:
        """Whether a SYN repeats the one that opened this connection."""
        order = self._orders[segment.source == self.opened.dialler]
        return order.first == (segment.sequence + 1) % _SEQUENCE

    def take(self, segment: _Segment, time: float) -> Iterator[TcpEvent]:
        from_dialler = segment.source == self.opened.dialler
        order = self._orders[from_dialler]
        for data in order.take(segment):
            yield Data(self.opened.number, from_dialler, data, time)
        if order.held_size > _MAX_HELD:
            yield from self._gap(from_dialler)
        if segment.rst:
            self.how_it_ended = "RST"
        elif all(each.ended for each in self._orders.values()):
            self.how_it_ended = "FIN"

    def close(self, how: str) -> Iterator[TcpEvent]:
        for from_dialler, order in self._orders.items():
            if order.held:
                yield from self._gap(from_dialler)
        yield Closed(self.opened.number, how)

    def _gap(self, from_dialler: bool) -> Iterator[TcpEvent]:
        yield Gap(self.opened.number, from_dialler, self._orders[from_dialler].give_up())


class _Order:
    """One direction of a connection: takes segments as they were captured, returns bytes in order.

    Owned by its connection. Holds at most `_MAX_HELD` bytes and one segment; after a gap it holds nothing.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.held: dict[int, bytes] = {}
        self.held_size = 0
        self._size = 0  # delivered
        self._end: int | None = None
        self._given_up = False

    @property
    def ended(self) -> bool:
        return self._end is not None and (self._given_up or self._size >= self._end)

    def take(self, segment: _Segment) -> Iterator[bytes]:
        if self.first is None:
            self.first = (segment.sequence + segment.syn) % _SEQUENCE
        at = self._place(segment.sequence + segment.syn)
        if segment.fin:
            self._end = at + len(segment.data)
        if not segment.data or self._given_up:
            return
        if len(segment.data) > len(self.held.get(at, b"")):
            self.held_size += len(segment.data) - len(self.held.get(at, b""))
            self.held[at] = segment.data
        while self.held and (at := min(self.held)) <= self._size:
            data = self.held.pop(at)
            self.held_size -= len(data)
            new = data[self._size - at :]
            self._size += len(new)
            if new:
                yield new

    def give_up(self) -> int:
        """Skip the missing bytes; returns how many. What follows them is not delivered."""
        missing = min(self.held) - self._size
        self.held.clear()
        self.held_size = 0
        self._given_up = True
        return missing

    def _place(self, sequence: int) -> int:
        """The position of a sequence number in the bytes of the direction. Sequence numbers wrap."""
        assert self.first is not None
        near = (sequence - self.first - self._size) % _SEQUENCE
        return self._size + (near if near < _SEQUENCE // 2 else near - _SEQUENCE)
