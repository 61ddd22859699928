"""`Resumed`: a handler that goes on after a cancellation that came while it was suspended at a yield.

(Who is cancelled where: see `push_handler`.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

__all__ = ["Resumed"]


class Resumed:
    """The rest of `iterator`: first `cancellation` is thrown in where it is suspended, then it is asked as before.

    Raises `cancellation` if it is an iterator that nothing can be thrown into.
    """

    __slots__ = ("_cancellation", "_iterator")

    def __init__(self, iterator: AsyncIterator[Any], cancellation: asyncio.CancelledError) -> None:
        self._iterator = iterator
        self._cancellation: asyncio.CancelledError | None = cancellation

    def __aiter__(self) -> Resumed:
        return self

    async def __anext__(self) -> Any:
        cancellation, self._cancellation = self._cancellation, None
        if cancellation is None:
            return await self._iterator.__anext__()
        try:
            throw = getattr(self._iterator, "athrow", None)
            if throw is None:
                raise cancellation
            return await throw(cancellation)
        finally:
            del cancellation  # its traceback holds this frame
