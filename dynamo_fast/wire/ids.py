# cython: freethreading_compatible=True, annotation_typing=False
"""Random UUIDs, two for each request: the name of its stream, and its own id unless the caller gave one.

Where there is a compiler, Cython translates this very file, with the types in `ids.pxd` (see setup.py).
"""

from __future__ import annotations

import os

__all__ = ["random_uuid"]

# Then the names that no module here defines are those of functions in C (`_uuid.pxd`).
_IS_COMPILED = not __file__.endswith(".py")

_BATCH = 256
_SIZE = 16  # bytes of one
_pool: list[str] = []


def random_uuid() -> str:
    """A random (version 4) UUID as text.

    As `str(uuid.uuid4())`, at a tenth of its cost: many are made at once, of one call to the kernel, and no object is.
    """
    while True:
        try:
            return _pool.pop()
        except IndexError:  # asked for afterwards: another thread may take the last one
            _pool.extend(_batch(os.urandom(_SIZE * _BATCH)))


def _batch(random: bytes) -> list[str]:
    """One UUID for each 16 of the bytes."""
    return [
        uuid_at(random, at)  # type: ignore[name-defined]  # noqa: F821  # it is in `_uuid.pxd`
        if _IS_COMPILED
        else _uuid(random, at)
        for at in range(0, len(random), _SIZE)
    ]


def _uuid(random: bytes, at: int) -> str:
    """The UUID of the 16 bytes from there on. Two digits say how it was made: the version, and the variant."""
    digits, variant = random[at : at + _SIZE].hex(), "89ab"[random[at + 8] >> 4 & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


if hasattr(os, "register_at_fork"):  # or parent and child would draw the same ones
    os.register_at_fork(after_in_child=_pool.clear)
