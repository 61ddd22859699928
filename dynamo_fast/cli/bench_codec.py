"""`dynamo-fast bench codec`: what a frame costs here, on both backends and with `struct` by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from dynamo_fast import _codec_py
from dynamo_fast.cli import codec_by_hand
from dynamo_fast.cli.timing import machine, measure

__all__ = ["Table", "lines", "results"]

SIZES = (96, 4096, 65536)
"""Bytes of data: a token, a chunk of text, an array."""
READ = 65536
"""Bytes that a stream is fed with at once, as a read of a socket returns them."""
_ROUNDS = 5
_HEADER = b'{"id":1}'

Table = dict[str, dict[str, dict[int, float]]]
"""Seconds of a message: by what is done, who does it, and the size of its data."""


def results() -> Table:
    """Time all of it. It takes about two seconds."""
    table: Table = {}
    for size in SIZES:
        timed = {
            (what, name): case for name, module in _contestants().items() for what, case in _cases(module, size).items()
        }
        keys = {f"{what}, {name}": (what, name) for what, name in timed}
        taken = measure({key: timed[each][0] for key, each in keys.items()}, _ROUNDS)
        for key, (what, name) in keys.items():
            table.setdefault(what, {}).setdefault(name, {})[size] = taken[key] / timed[what, name][1]
    return table


def lines(table: Table) -> list[str]:
    """The table in nanoseconds, and how many times as long it takes by hand."""
    facts = ", ".join(f"{name} {value}" for name, value in machine("dynamo-fast").items())
    shown = [facts, "", f"{'ns a message, data of':32}" + "".join(f"{_size(size):>16}" for size in SIZES)]
    for what, rows in table.items():
        by_hand = rows["struct by hand"]
        for name, row in rows.items():
            cells = (f"{seconds * 1e9:,.0f} ({by_hand[size] / seconds:.1f}x)" for size, seconds in row.items())
            shown.append(f"{f'{what}, {name}':32}" + "".join(f"{cell:>16}" for cell in cells))
    if "compiled" not in table["encode"]:
        shown += ["", "The compiled codec is not built here."]
    return shown


def _contestants() -> dict[str, Any]:
    found: dict[str, Any] = {"struct by hand": codec_by_hand, "Python": _codec_py}
    compiled = _compiled()
    return found if compiled is None else {**found, "compiled": compiled}


def _compiled() -> ModuleType | None:
    try:
        from dynamo_fast import _codec
    except ImportError:
        return None
    return _codec


def _cases(module: Any, size: int) -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed, each with the messages that a call handles."""
    data = bytes(size)
    frame = codec_by_hand.encode(_HEADER, data)
    count = 4 * (READ // len(frame) + 1)
    stream = frame * count
    chunks = [stream[at : at + READ] for at in range(0, len(stream), READ)]
    if module is codec_by_hand:
        encode, decode, decoder = module.encode, module.decode, module.StructDecoder()
    else:
        encode, decode, decoder = module.encode_two_part, module.decode_two_part, module.TwoPartDecoder()
    return {
        "encode": (partial(encode, _HEADER, data), 1),
        "decode": (partial(decode, frame), 1),
        "stream": (partial(_feed, decoder, chunks), count),
    }


def _feed(decoder: Any, chunks: list[bytes]) -> None:
    for chunk in chunks:
        for _header, _data in decoder.feed(chunk):
            pass


def _size(size: int) -> str:
    return f"{size // 1024} KiB" if size >= 1024 else f"{size} B"
