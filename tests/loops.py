"""The event loops that asynchronous tests run on. Both end with their test, whatever it has left and however it hangs."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Callable, Generator
from typing import Any, TypeVar

__all__ = ["LOOPS", "NewLoop"]

_T = TypeVar("_T")
NewLoop = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, NewLoop] = {"asyncio": asyncio.new_event_loop}
if sys.platform != "win32" and sys.implementation.name == "cpython":
    import uvloop

    class TestedLoop(uvloop.Loop):
        """uvloop, that a failed test cannot hang. A test's own loop; `close` ends it."""

        _outcome: BaseException | None = None
        """What pytest-timeout has raised in the handler of its signal."""

        def call_exception_handler(self, context: dict[str, Any]) -> None:
            """uvloop's own takes an outcome of pytest for the error of some callback, logs it, and waits on."""
            error = context.get("exception")
            if error is None or isinstance(error, (Exception, asyncio.CancelledError)):
                super().call_exception_handler(context)
            else:
                self._outcome = error
                self.stop()

        def run_until_complete(self, future: Generator[Any, None, _T] | Any) -> Any:
            """Raises the outcome that has stopped it, too."""
            self._outcome = None
            try:
                return super().run_until_complete(future)
            except RuntimeError:
                if self._outcome is None:
                    raise
            raise self._outcome

        def close(self) -> None:
            """Raises what uvloop warns of, after it has closed that.

            uvloop warns of each open server and transport before it closes it, and waits until all are closed. Where the
            warning is an error, it closes nothing, and waits for ever.
            """
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                super().close()
            for each in caught:
                warnings.warn(each.message, stacklevel=2)

    LOOPS["uvloop"] = TestedLoop
