"""Fuzz the connections of one plane, on one backend of the codec.

    python -m tests.fuzz.shells cython|python answers|sessions|acks|requests|controls|inputs [options of libFuzzer]

What the planes are and what must hold is in `tests.fuzz.planes`; `tests/test_shells.py` runs a few inputs in every test
run. The corpus starts with the captured bytes of Dynamo; it and what breaks are kept in build/fuzz/.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

import atheris

BACKENDS = ("cython", "python")
BACKEND, PLANE = (*sys.argv[1:3], "", "")[:2]
if BACKEND not in BACKENDS:
    sys.exit(f"{BACKEND!r} is no backend: expected one of {', '.join(BACKENDS)}")
os.environ["DYNAMO_FAST_BACKEND"] = BACKEND  # read when the package is imported, and never again

with atheris.instrument_imports(include=["dynamo_fast"]):
    from dynamo_fast import codec
    from tests.captured import captured
    from tests.fuzz.planes import PLANES, RAW_SCRIPTS, Playing

FOLDER = Path("build/fuzz")
SEEDS = {
    "answers": ("prologue_*", "data_*", "*_item_*", "final_*", "sentinel", "conv_*_worker_side"),
    "sessions": ("data_*", "*_item_*", "final_*"),
    "acks": ("ack*",),
    "requests": ("req_*",),
    "controls": ("stop", "kill", "sentinel", "conv_*_requester_side"),
    "inputs": ("bidi_*",),
}


def seed(folder: Path) -> None:
    """The captured bytes of this plane, whole and cut; a few scripts of composed frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, vector in enumerate(captured(*SEEDS[PLANE])):
        for how, begins in enumerate(RAW_SCRIPTS):
            (folder / f"seed{number}-{how}").write_bytes(begins + vector.data)
    for number in range(64):
        (folder / f"composed{number}").write_bytes(
            bytes((number % 3, number % 4, number % 9, 0, *range(number, 200, 7)))
        )


def main() -> None:
    if PLANE not in PLANES:
        sys.exit(f"{PLANE!r} is no plane: expected one of {', '.join(PLANES)}")
    logging.getLogger("dynamo_fast").setLevel(logging.CRITICAL)
    folder = FOLDER / f"{PLANE}-{BACKEND}"
    seed(folder)
    print(f"fuzzing {PLANE} on the {codec.BACKEND} backend", flush=True)
    limits = ["-timeout=60", "-rss_limit_mb=2048", "-max_len=4096", f"-artifact_prefix={FOLDER}/{PLANE}-{BACKEND}-"]
    playing = Playing(PLANE, asyncio.new_event_loop())
    atheris.Setup([sys.argv[0], *limits, *sys.argv[3:], str(folder)], playing.play)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
