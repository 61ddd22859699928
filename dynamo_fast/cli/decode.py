"""`dynamo-fast decode INPUT`: what is in bytes that travelled on one of Dynamo's TCP planes."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from dynamo_fast.cli.arguments import port
from dynamo_fast.cli.output import add_format, discard_output, formatter_of
from dynamo_fast.cli.progress import Progress
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.inspect import Event, Failed, Formatter, Frame, FrameSeen, Plane, frames, read_capture
from dynamo_fast.inspect.reassembly import is_capture, peekable

__all__ = ["add_parser", "run"]

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
    parser.add_argument("--port", type=port, help="of a capture, show only connections with this port")
    add_format(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the frames; the status is 1 if something was damaged."""
    plane = None if options.plane is None else Plane(options.plane)
    formatter = formatter_of(options)
    is_damaged = False
    progress = Progress(hidden=sys.stdout.isatty())
    with _open(options.input) as file:
        if options.format == "pcap" or (options.format is None and is_capture(file)):
            lines = _capture_lines(read_capture(file, plane, port=options.port), formatter)
        else:
            lines = _frame_lines(frames(_bytes(file.read(), options.format), plane), formatter)
        try:
            for line, is_damage in lines:
                is_damaged |= is_damage
                print(line)
                if progress.due:
                    progress.show(_how_far(file))
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has stopped, e.g. `| head`: not an error
            discard_output()
        finally:
            progress.close()
    return int(is_damaged)


def _how_far(file: io.BufferedReader) -> str:
    """How much of a file has been read; what comes through a pipe has no size."""
    try:
        read, size = file.tell(), os.fstat(file.fileno()).st_size
    except OSError:
        return "decoding"
    return f"decoding: {read / 1e6:.0f} of {size / 1e6:.0f} MB" if size else f"decoding: {read / 1e6:.0f} MB"


def _capture_lines(events: Iterable[Event], formatter: Formatter) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it tells of damage."""
    for event in events:
        is_damage = isinstance(event, Failed) or (isinstance(event, FrameSeen) and event.frame.kind == "damage")
        for line in formatter.event(event):
            yield line, is_damage


def _frame_lines(found: Iterable[Frame], formatter: Formatter) -> Iterator[tuple[str, bool]]:
    for frame in found:
        yield formatter.frame(frame), frame.kind == "damage"


# What the input is -----------------------------------------------------------------------------------------------------


def _open(name: str) -> io.BufferedReader:
    if name == "-":
        return peekable(sys.stdin.buffer)
    if not Path(name).exists() and _is_hex(name.encode()):
        return peekable(io.BytesIO(name.encode()))
    return open(name, "rb")


def _bytes(data: bytes, form: str | None) -> bytes:
    """The bytes that the input stands for. Raises InvalidRequest for what is not hex, if hex was asked for."""
    if form == "raw" or (form is None and not _is_hex(data)):
        return data
    digits = _NOT_HEX.sub(b"", data).decode("ascii", "replace")
    if len(digits) % 2:
        raise InvalidRequest(f"this is no hex: it has {len(digits)} digits, which is odd")
    try:
        return bytes.fromhex(digits)
    except ValueError as error:
        raise InvalidRequest(f"this is no hex: {error} (of the {len(digits)} digits)") from None


def _is_hex(data: bytes) -> bool:
    return bool(data.strip()) and _HEX.fullmatch(data) is not None
