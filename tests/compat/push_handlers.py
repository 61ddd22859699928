"""Push handlers of the worker of the scenarios, by the names of their endpoints. Standard library only."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

NEVER: bool = False
"""Makes an async generator of a function that yields nothing."""


def told(call: Callable[[], Any]) -> list[str]:
    """What a call returns, or the class and the text of what it raises."""
    try:
        return ["returned", repr(call())]
    except Exception as error:
        return [type(error).__name__, str(error)]


class Handlers:
    """Each handler with parameters `request, context, response_sender`; what they saw is in `seen`."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.seen: dict[str, Any] = {}
        self.kept: Any = None

    async def items(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        for item in request["items"]:
            response_sender.send(item)
        if NEVER:
            yield

    async def sender(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        seen = self.seen["sender"] = [type(response_sender).__name__, type(context).__name__]
        seen += [response_sender.send(obj=1), response_sender.close(), response_sender.close()]
        seen += told(lambda: response_sender.send(2))
        seen += told(lambda: response_sender.close_with_error("late"))
        self.kept = response_sender
        if NEVER:
            yield

    async def yields(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        response_sender.send(1)
        yield 2

    async def raises(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        response_sender.send(1)
        if NEVER:
            yield
        raise ValueError("oh no")

    async def raises_first(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        if NEVER:
            yield
        raise self.api.EngineShutdown("oh no")

    async def raises_after_close(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        response_sender.send(1)
        response_sender.close()
        if NEVER:
            yield
        raise ValueError("late")

    async def raises_after_error(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        response_sender.close_with_error("first")
        if NEVER:
            yield
        raise ValueError("late")

    async def error(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        response_sender.send(1)
        self.seen["error"] = [
            *told(lambda: response_sender.close_with_error(5)),
            response_sender.close_with_error(msg="broken"),
            response_sender.close_with_error("again"),
            response_sender.close(),
            *told(lambda: response_sender.send(1)),
        ]
        if NEVER:
            yield

    async def bad_item(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        response_sender.send(1)
        self.seen["bad_item"] = told(lambda: response_sender.send(object()))
        response_sender.send(2)
        if NEVER:
            yield

    async def bad_item_raised(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        response_sender.send(object())
        if NEVER:
            yield

    async def closes_early(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        response_sender.send(1)
        response_sender.close()
        await asyncio.sleep(0.1)
        self.seen["closes_early"] = "went on"
        if NEVER:
            yield

    async def same_object(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        item = {"number": 0}
        for item["number"] in range(4):
            response_sender.send(item)
        if NEVER:
            yield

    async def thread(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        def send() -> None:
            for number in range(3):
                response_sender.send(number)
            response_sender.close()

        thread = threading.Thread(target=send)
        thread.start()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
        if NEVER:
            yield

    async def other_task(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        async def send() -> None:
            for number in range(3):
                response_sender.send(number)
                await asyncio.sleep(0.01)

        await asyncio.ensure_future(send())
        if NEVER:
            yield

    async def until_stopped(self, request: Any, context: Any, response_sender: Any) -> AsyncIterator[Any]:
        if NEVER:
            yield
        try:
            while True:
                response_sender.send("item")
                await asyncio.sleep(0.01)
        except Exception as error:
            self.seen[request] = [
                *(type(error).__name__, str(error), context.is_stopped() or context.is_killed()),
                *told(lambda: response_sender.send(1)),
                *told(response_sender.close),
            ]
            raise

    async def no_context(self, request: Any, response_sender: Any) -> AsyncIterator[Any]:
        response_sender.send(1)
        if NEVER:
            yield

    async def positional(self, request: Any, response_sender: Any, /, context: Any) -> AsyncIterator[Any]:
        response_sender.send(1)
        if NEVER:
            yield

    async def coroutine(self, request: Any, context: Any, response_sender: Any) -> Any:
        response_sender.send(1)

    def iterator(self, request: Any, context: Any, response_sender: Any) -> Any:
        class Iterator:
            async def __anext__(self) -> Any:
                response_sender.send("from an iterator")
                raise StopAsyncIteration

        return Iterator()

    def either(self, request: Any, context: Any = None, response_sender: Any = None) -> Any:
        """As Dynamo's own push handlers: they take both forms of a call."""

        async def pushed() -> AsyncIterator[Any]:
            response_sender.send("pushed")
            if NEVER:
                yield

        async def pulled() -> AsyncIterator[Any]:
            yield "pulled"

        return pulled() if response_sender is None else pushed()

    async def many(self, request: Any, **more: Any) -> AsyncIterator[Any]:
        """`**more` does not ask for a sender."""
        yield sorted(more)

    async def look(self, request: Any) -> AsyncIterator[Any]:
        """What a handler saw; of the one that is kept, what it says after its answer."""
        if request == "kept":
            yield [*told(lambda: self.kept.send(1)), *told(self.kept.close)]
        else:
            while request not in self.seen:
                await asyncio.sleep(0.02)
            yield self.seen[request]

    def endpoints(self) -> dict[str, Any]:
        names = [name for name in vars(type(self)) if not name.startswith("_") and name != "endpoints"]
        return {name: getattr(self, name) for name in names}
