"""`dynamo-fast decode INPUT`: what is in bytes that travelled on one of Dynamo's TCP planes."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from dynamo_fast.cli import capture
from dynamo_fast.cli.frames import Conversation, Frame, Plane, complete_messages, plane_of
from dynamo_fast.cli.show import Look
from dynamo_fast.codec import TcpResponseDecoder
from dynamo_fast.config import CommandConfig
from dynamo_fast.errors import InvalidRequest

__all__ = ["add_look", "add_parser", "look_of", "run"]

_HEX = re.compile(rb"(?:0[xX])?[0-9a-fA-F\s:,]+")
_NOT_HEX = re.compile(rb"0[xX]|[\s:,]")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "decode",
        help="show what is in captured bytes: hex, a file, standard input, a pcap or pcapng file",
        description="Show the frames in captured bytes, a line each: `>` is router to worker, `<` is worker to router. "
        "Damage is told with its byte and its reason; a capture goes on with its next connection. The exit status is 1 "
        "if there was damage.",
    )
    parser.add_argument(
        "input", metavar="INPUT", help="a file, - for standard input, or hex digits; a capture is recognised by itself"
    )
    parser.add_argument("--format", choices=["hex", "raw", "pcap"], help="of the input (default: recognised)")
    parser.add_argument("--plane", choices=[each.value for each in Plane], help="default: told by the first bytes")
    parser.add_argument("--port", type=int, help="of a capture, show only connections with this port")
    add_look(parser)
    parser.set_defaults(run=run)


def add_look(parser: argparse.ArgumentParser) -> None:
    """The options of a `Look`."""
    parser.add_argument("--json", action="store_true", help="a JSON object a line, with everything in it")
    parser.add_argument("--full", action="store_true", help="elide nothing")
    parser.add_argument("--colour", "--color", choices=["auto", "always", "never"], default="auto")


def look_of(options: argparse.Namespace) -> Look:
    """How the options want it; colours only on a terminal whose owner has not said NO_COLOR."""
    is_coloured = sys.stdout.isatty() and not CommandConfig.from_env().no_color
    colour = options.colour == "always" or (options.colour == "auto" and is_coloured)
    return Look(as_json=options.json, colour=colour and not options.json, full=options.full)


def run(options: argparse.Namespace) -> int:
    """Show it all; 1 if something was damaged."""
    plane = None if options.plane is None else Plane(options.plane)
    look = look_of(options)
    with _open(options.input) as file:
        is_capture = options.format == "pcap" or (options.format is None and file.peek(4)[:4] in capture.MAGIC)
        if is_capture:
            lines = _capture(file, plane, options.port, look)
        else:
            data = file.read()
            is_hex = options.format == "hex" or (options.format is None and _is_hex(data))
            lines = _bytes(_from_hex(data) if is_hex else data, plane, look)
        is_damaged = False
        try:
            for line, is_damage in lines:
                is_damaged |= is_damage
                print(line)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads has seen enough, e.g. `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(is_damaged)


# What the input is -----------------------------------------------------------------------------------------------------


def _open(name: str) -> io.BufferedReader:
    if name == "-":
        return capture.peekable(sys.stdin.buffer)
    if not Path(name).exists() and _is_hex(name.encode()):
        return capture.peekable(io.BytesIO(name.encode()))
    return open(name, "rb")


def _is_hex(data: bytes) -> bool:
    return bool(data.strip()) and _HEX.fullmatch(data) is not None


def _from_hex(data: bytes) -> bytes:
    digits = _NOT_HEX.sub(b"", data).decode("ascii", "replace")
    try:
        return bytes.fromhex(digits)
    except ValueError as error:
        raise InvalidRequest(f"this is no hex: {error} (of the {len(digits)} digits)") from None


# Bytes of one direction ------------------------------------------------------------------------------------------------


def _bytes(data: bytes, plane: Plane | None, look: Look) -> Iterator[tuple[str, bool]]:
    for frame in read_bytes(data, plane):
        yield look.frame(frame), frame.kind == "damage"


def read_bytes(data: bytes, plane: Plane | None = None) -> list[Frame]:
    """The frames in one direction of a connection, from its beginning or from any boundary of frames."""
    from_dialler = True
    if plane is not Plane.RESPONSE and _are_acks(data):
        plane, from_dialler = Plane.REQUEST, False
    frames = _read(data, plane or plane_of(data, ended=True), from_dialler)
    if frames and frames[0].direction == "<" and frames[0].kind in ("stop", "kill", "input"):
        frames = _read(data, Plane.RESPONSE, from_dialler=False)
    return frames


def _read(data: bytes, plane: Plane | None, from_dialler: bool) -> list[Frame]:
    conversation = Conversation(plane)
    return [*conversation.feed(from_dialler, data), *conversation.close()]


def _are_acks(data: bytes) -> bool:
    """Whether these are acknowledgements and nothing else: short texts, most of them empty."""
    decoder = TcpResponseDecoder(1 << 16)
    texts = [bytes(message.data) for message in complete_messages(decoder, data)]
    is_whole = bool(texts) and decoder.failed is None and not decoder.pending
    return is_whole and all(text.isascii() and b"\0" not in text for text in texts)


# Captures --------------------------------------------------------------------------------------------------------------


def _capture(file: io.BufferedReader, plane: Plane | None, port: int | None, look: Look) -> Iterator[tuple[str, bool]]:
    conversations: dict[int, Conversation] = {}
    for event in capture.read_capture(file):
        if isinstance(event, capture.Opened):
            if port is None or any(each.endswith(f":{port}") for each in (event.dialler, event.listener)):
                conversations[event.number] = Conversation(plane, midway=event.midway)
                yield look.opened(event.number, event.dialler, event.listener), False
                if event.midway:
                    reason = "the beginning of this connection was not captured: who dialled is a guess"
                    yield look.note(reason, event.number), False
        elif isinstance(event, capture.Damaged):
            yield look.note(event.reason), True
        elif event.number in conversations:
            yield from _event(event, conversations, look)


def _event(
    event: capture.Data | capture.Gap | capture.Closed, conversations: dict[int, Conversation], look: Look
) -> Iterator[tuple[str, bool]]:
    conversation, number, time = conversations[event.number], event.number, None
    if isinstance(event, capture.Data):
        frames, time = conversation.feed(event.from_dialler, event.data), event.time
    elif isinstance(event, capture.Gap):
        frames = conversation.gap(event.from_dialler, event.size)
    else:
        frames = conversation.close()
        del conversations[number]
    for frame in frames:
        yield look.frame(frame, number=number, time=time), frame.kind == "damage"
    if isinstance(event, capture.Closed):
        yield look.note(f"closed ({event.how})", number), False
