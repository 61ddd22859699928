"""See what is on the wire: the frames in bytes, in a packet capture, and on live connections.

    from dynamo_fast import inspect

    for frame in inspect.frames(data): print(frame.direction, frame.kind, frame.content)    # bytes of one direction
    for event in inspect.read_capture("talk.pcap"): ...                                     # Opened, FrameSeen, Closed
    frame = inspect.describe(message)                                                       # a message of a decoder
    relay = inspect.Relay("10.0.0.7:9000", on_event=events.append)                          # a proxy on loopback
    print(inspect.Formatter().frame(frame))                                                 # one line of text or JSON

This is the library under the commands `dynamo-fast decode` and `dynamo-fast tap`. Nothing here prints. Bytes that cannot be
read raise nothing: they become frames of the kind `damage`, or `problems` of a frame.
"""

from dynamo_fast.inspect.capture import read_capture
from dynamo_fast.inspect.conversation import Conversation, Plane, frames, plane_of
from dynamo_fast.inspect.describe import Frame, describe
from dynamo_fast.inspect.events import Closed, Event, Failed, FrameSeen, Opened
from dynamo_fast.inspect.formatter import Formatter
from dynamo_fast.inspect.relay import Relay
from dynamo_fast.inspect.values import abbreviated, jsonable

__all__ = [
    "Closed",
    "Conversation",
    "Event",
    "Failed",
    "Formatter",
    "Frame",
    "FrameSeen",
    "Opened",
    "Plane",
    "Relay",
    "abbreviated",
    "describe",
    "frames",
    "jsonable",
    "plane_of",
    "read_capture",
]
