"""What is left for the garbage collector: on the path of a request nothing should be, for it stops everyone's streams."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage() -> Iterator[None]:
    """Fail if objects of this project die within only because the garbage collector finds them."""
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        ours = sorted(type(each).__name__ for each in gc.garbage if type(each).__module__.startswith("dynamo_fast"))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert ours == [], ours
