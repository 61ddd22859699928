"""`read_capture`: the frames in a pcap or pcapng file, connection by connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dynamo_fast.inspect.conversation import Conversation, Plane
from dynamo_fast.inspect.events import Closed, Event, Failed, FrameSeen, Opened
from dynamo_fast.inspect.reassembly import Data, Gap, reassemble

__all__ = ["read_capture"]


def read_capture(
    source: str | Path | BinaryIO, plane: Plane | None = None, *, port: int | None = None
) -> Iterator[Event]:
    """Yield what happens on the TCP connections in a capture, in its order.

    `source` is a path, or a binary file that may be a pipe: each event is yielded as soon as it has been read. Without
    `plane`, each connection's first bytes tell its plane. With `port`, other connections are left out. Damage ends one
    direction of one connection, the other connections go on.

    Raises InvalidRequest if `source` is not a capture, or if dpkt is not installed; OSError if it cannot be read.
    """
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file:
            yield from read_capture(file, plane, port=port)
        return
    conversations: dict[int, Conversation] = {}
    for event in reassemble(source):
        if isinstance(event, Opened):
            if port is None or any(each.endswith(f":{port}") for each in (event.dialler, event.listener)):
                conversations[event.number] = Conversation(plane, midway=event.midway)
                yield event
        elif isinstance(event, Failed):
            yield event
        elif event.number in conversations:
            yield from _frames(event, conversations[event.number])
            if isinstance(event, Closed):
                del conversations[event.number]


def _frames(event: Data | Gap | Closed, conversation: Conversation) -> Iterator[Event]:
    if isinstance(event, Data):
        for frame in conversation.feed(event.from_dialler, event.data):
            yield FrameSeen(event.number, frame, event.time)
    elif isinstance(event, Gap):
        for frame in conversation.gap(event.from_dialler, event.size):
            yield FrameSeen(event.number, frame)
    else:
        for frame in conversation.close():
            yield FrameSeen(event.number, frame)
        yield event
