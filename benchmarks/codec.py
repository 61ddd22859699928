"""What a frame costs: the compiled codec beside the one in Python, and beside yardsticks, in one run.

    python -m benchmarks.codec [--rounds 15] [--figures docs/figures]

Decoding is timed for one frame, for runs of frames (as many as fill 64 KiB, the size of a read), and for frames that come
in two pieces. Large parts are views, as on the planes. The yardsticks: the same frames with `struct` by hand, as one would
write it without this package; msgpack for a message of the same two parts; and `orjson.loads` of a JSON body of the same
size, which is what a frame's content costs at least. Prints nanoseconds per frame; writes JSON, and a plot if matplotlib is
there.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dynamo_fast._codec_py as python
from benchmarks.timing import machine, measure

try:
    import msgpack
    import orjson

    import dynamo_fast._codec as compiled
except ImportError as error:  # a benchmark of a part would mislead
    sys.exit(f"{error}: `pip install -e '.[bench]'` in this folder builds and installs what the benchmarks need")

BACKENDS: dict[str, Any] = {"cython": compiled, "python": python}
SIZES = (0, 32, 96, 256, 1024, 4096, 65536, 1 << 20, 16 << 20)
READ = 65536
"""Bytes of a run of frames, if they are small enough for more than one."""
_PREFIX = struct.Struct(">QQQ")


def json_body(size: int) -> bytes:
    """JSON of that many bytes, shaped like an item of an answer; for small sizes the nearest that there is."""
    empty = orjson.dumps({"data": {"data": {"token": 1, "text": ""}}, "complete_final": False})
    if size <= len(empty):
        return b'"' + b"x" * max(size - 2, 0) + b'"'
    text = "x" * (size - len(empty))
    return orjson.dumps({"data": {"data": {"token": 1, "text": text}}, "complete_final": False})


def decode_by_hand(data: bytes) -> list[tuple[bytes, bytes]]:
    """Two-part frames without a codec: the loop that this package spares its users, as short as it can be."""
    messages = []
    at, end = 0, len(data)
    while end - at >= 24:
        header_size, data_size, _ = _PREFIX.unpack_from(data, at)
        start = at + 24
        stop = start + header_size + data_size
        if stop > end:
            break
        messages.append((data[start : start + header_size], data[start + header_size : stop]))
        at = stop
    return messages


def decode_in_pieces(decoder: Any, frame: bytes) -> None:
    """A frame that comes in two reads."""
    middle = len(frame) // 2
    decoder.feed(frame[:middle])
    decoder.feed(frame[middle:])


def cases(size: int) -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed for one body size, each with the number of frames that a call handles."""
    body = json_body(size)
    frame = python.encode_two_part(b"", body)
    count = max(1, READ // len(frame))
    run = frame * count
    packed = msgpack.packb((b"", body))
    parts = b"1f/demo/backend/generate", b'{"request-id":"1"}', frame
    request = python.TcpRequestCodec().encode_message(python.TcpRequestMessage.from_parts(*parts))
    requests = request * max(1, READ // len(request))
    timed: dict[str, tuple[Callable[[], object], int]] = {
        "encode, struct by hand": (lambda: _PREFIX.pack(0, len(body), 0) + body, 1),
        "encode, msgpack": (lambda: msgpack.packb((b"", body)), 1),
        "decode one, msgpack": (lambda: msgpack.unpackb(packed), 1),
        "decode one, struct by hand": (lambda: decode_by_hand(frame), 1),
        "decode a run, struct by hand": (lambda: decode_by_hand(run), count),
        "orjson.loads of the body": (lambda: orjson.loads(body), 1),
    }
    for name, module in BACKENDS.items():
        message = module.TwoPartMessage.from_data(body)
        codec, request_codec = module.TwoPartCodec(views=True), module.TcpRequestCodec()
        decoder, requests_decoder = module.TwoPartDecoder(views=True), module.TcpRequestDecoder(views=True)
        timed |= {
            f"encode, {name}": (partial(codec.encode_message, message), 1),
            f"encode_two_part, {name}": (partial(module.encode_two_part, b"", body), 1),
            f"encode request, {name}": (
                partial(request_codec.encode_message, module.TcpRequestMessage.from_parts(*parts)),
                1,
            ),
            f"decode one, {name}": (partial(codec.decode_message, frame), 1),
            f"decode a run, {name}": (partial(decoder.feed, run), count),
            f"decode two pieces, {name}": (partial(decode_in_pieces, decoder, frame), 1),
            f"decode requests, {name}": (partial(requests_decoder.feed, requests), len(requests) // len(request)),
        }
    return timed


def results(rounds: int) -> dict[str, dict[int, float]]:
    """Seconds per frame, by case and body size."""
    table: dict[str, dict[int, float]] = {}
    for size in SIZES:
        if sys.stderr.isatty():
            print(f"bodies of {size:,} bytes ...", file=sys.stderr)
        timed = cases(size)
        # The largest take milliseconds each: fewer rounds of them are as good.
        taken = measure(
            {name: call for name, (call, _) in timed.items()}, rounds if size < 1 << 20 else rounds // 3 + 1
        )
        for name, seconds in taken.items():
            table.setdefault(name, {})[size] = seconds / timed[name][1]
    return table


def ratios(table: dict[str, dict[int, float]]) -> dict[str, float]:
    """The figures that are aimed at (see docs/performance.md)."""
    run, large = table["decode a run, cython"], table["decode one, cython"]
    flat = [large[size] for size in SIZES if size >= 65536]
    return {
        "run of 96 B: fallback / compiled": table["decode a run, python"][96] / run[96],
        "run of 96 B: orjson.loads / compiled": table["orjson.loads of the body"][96] / run[96],
        "run of 96 B: struct by hand / fallback": table["decode a run, struct by hand"][96]
        / table["decode a run, python"][96],
        "encode 96 B: fallback / compiled": table["encode, python"][96] / table["encode, cython"][96],
        "decode one, 64 KiB to 16 MiB: slowest / fastest": max(flat) / min(flat),
    }


def shown(table: dict[str, dict[int, float]]) -> str:
    """The table in nanoseconds per frame."""
    lines = [f"{'ns per frame, body of':34}" + "".join(f"{_size(size):>11}" for size in SIZES)]
    lines += [
        f"{name:34}" + "".join(f"{seconds * 1e9:11,.0f}" for seconds in row.values())
        for name, row in sorted(table.items())
    ]
    return "\n".join(lines)


def _size(size: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


_TIMES = ("10 ns", "100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms")


def plot(table: dict[str, dict[int, float]], facts: dict[str, str], folder: Path) -> None:
    """Cost against size, one line each, both axes logarithmic."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'dynamo-fast[bench]')")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "dynamo_fast"})
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 5), sharey=True)
    styles = {
        "cython": ("#1b7f4d", "-", 2.4),
        "python": ("#3568b0", "-", 2.0),
        "struct by hand": ("#b0772a", "--", 1.4),
    }
    yardsticks = {"msgpack": ("#8a8a8a", ":", 1.4), "orjson.loads of the body": ("#a83a6b", ":", 1.6)}
    panels = (("Encode one frame", "encode, "), ("Decode a run of frames", "decode a run, "))
    for axis, (title, prefix) in zip(axes, panels, strict=True):
        for name, (colour, line, width) in {**styles, **yardsticks}.items():
            row = table.get(prefix + name)
            if row is None and prefix.startswith("decode"):
                row = table.get(name)
            if row is None:
                continue
            sizes = [size for size in SIZES if size]
            label = {"cython": "dynamo_fast, compiled", "python": "dynamo_fast, Python"}.get(name, name)
            costs = [row[size] * 1e9 for size in sizes]
            axis.plot(sizes, costs, line, color=colour, linewidth=width, marker="o", markersize=3.5, label=label)
        axis.set(xscale="log", yscale="log", title=title, xlabel="body of a frame")
        axis.set_xticks(
            [32, 256, 4096, 65536, 1 << 20, 16 << 20], ["32 B", "256 B", "4 KiB", "64 KiB", "1 MiB", "16 MiB"]
        )
        axis.minorticks_off()
        axis.grid(True, color="#e4e4e4", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="upper left", fontsize=9)
    axes[0].set_ylabel("time per frame")
    axes[0].set_yticks([10.0**power for power in range(1, 9)], _TIMES)
    figure.suptitle(f"What a frame costs ({facts['python']}, {facts['cpu']}): lower is better", fontsize=11)
    figure.tight_layout()
    for suffix in ("svg", "png"):
        figure.savefig(folder / f"codec.{suffix}", dpi=140, metadata={"Date": None} if suffix == "svg" else None)
    pyplot.close(figure)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.codec", description="What a frame costs, on both backends.")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each case (default: 15)")
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"), help="where codec.json and the plots go")
    options = parser.parse_args()
    facts = machine("dynamo-fast", "cython", "orjson", "msgpack")
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    table = results(options.rounds)
    print(shown(table))
    print()
    for name, ratio in ratios(table).items():
        print(f"{ratio:6.1f}x  {name}")
    options.figures.mkdir(parents=True, exist_ok=True)
    data = {"machine": facts, "seconds_per_frame": table, "ratios": ratios(table)}
    (options.figures / "codec.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    plot(table, facts, options.figures)


if __name__ == "__main__":
    main()
