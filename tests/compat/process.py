"""One side of a compatibility scenario, in a process of its own, on Dynamo's binding or on ours.

    python process.py serve dynamo.runtime                   the worker, until it is told to stop
    python process.py call dynamo_fast.runtime SCENARIO      the caller: one JSON object on its last line

Standard library only, for the peers' interpreters have nothing else. `Api` is the one place that knows an implementation.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import push_handlers  # type: ignore[import-not-found]  # a neighbour, not a package: see above
import values  # type: ignore[import-not-found]  # a neighbour, not a package: see above

GENERATE = "compat.worker.generate"
PATIENCE = 6.0
"""Seconds after which an answer counts as one that never comes."""


class Api:
    """The names of an implementation; what Dynamo keeps in its private module is looked for there, too."""

    def __init__(self, module: str) -> None:
        self.module = importlib.import_module(module)

    def __getattr__(self, name: str) -> Any:
        package = self.module.__name__.partition(".")[0]
        others = ["dynamo._core"] if package == "dynamo" else ["dynamo_fast.llm"]
        for module in (self.module, *map(importlib.import_module, others)):
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(name)

    def runtime(self) -> Any:
        return self.DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")


# The worker ---------------------------------------------------------------------------------------------------------


class Worker:
    def __init__(self, api: Api) -> None:
        self.api = api
        self.seen: dict[str, dict[str, Any]] = {}

    async def generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """What it does is in the request."""
        action = request.get("do") if isinstance(request, dict) else None
        if action is None:
            yield [type(request).__name__, repr(request)]
        elif action == "count":
            for number in range(request["to"]):
                yield number
                await asyncio.sleep(request.get("pause", 0))
        elif action == "items":
            for item in request["items"]:
                yield item
        elif action == "same object":
            item = {"number": 0}
            for item["number"] in range(5):
                yield item
        elif action == "value":
            yield values.VALUES[request["name"]]()
            yield "then"
        elif action == "raise":
            for number in range(request["after"]):
                yield number
            raise values.exception(request["name"], self.api)
        elif action == "context":
            yield {
                "type": type(context).__name__,
                "id": context.id(),
                "metadata": context.metadata.copy(),
                "trace": [context.trace_id, context.span_id, context.parent_span_id, context.trace_headers()],
            }
        elif action == "until stopped":
            try:
                yield 0
                self.seen[request["key"]] = {"waited": await context.async_killed_or_stopped()}
                await asyncio.sleep(0.1)  # a drop is told as a stop, then as a kill
            finally:
                flags = {"stopped": context.is_stopped(), "killed": context.is_killed()}
                self.seen[request["key"]] = {**self.seen.get(request["key"], {}), **flags}
            yield "farewell"
        elif action == "seen":
            while "killed" not in self.seen.get(request["key"], {}):
                await asyncio.sleep(0.02)
            yield self.seen[request["key"]]

    def handlers(self) -> dict[str, Any]:
        """Callables of many shapes, by the name of their endpoint."""

        async def keyword_only(request: Any, *, context: Any) -> AsyncIterator[Any]:
            yield type(context).__name__

        async def plain(request: Any) -> AsyncIterator[Any]:
            yield request

        async def only_kwargs(request: Any, **more: Any) -> AsyncIterator[Any]:
            yield sorted(more)

        async def other_name(request: Any, ctx: Any) -> AsyncIterator[Any]:
            yield "never"

        async def no_generator(request: Any) -> Any:
            return request

        def synchronous(request: Any) -> Any:
            yield request

        def raises_at_once(request: Any) -> Any:
            raise ValueError("at once")

        @functools.wraps(keyword_only)
        async def wrapped(*arguments: Any, **named: Any) -> AsyncIterator[Any]:
            async for item in keyword_only(*arguments, **named):
                yield [item, len(arguments), sorted(named)]

        class Iterator:
            def __init__(self) -> None:
                self.left = 2

            def __aiter__(self) -> Any:
                return self

            async def __anext__(self) -> Any:
                if not self.left:
                    raise StopAsyncIteration
                self.left -= 1
                return self.left

        class Called:
            async def __call__(self, request: Any, context: Any) -> AsyncIterator[Any]:
                yield type(context).__name__

        return {
            "keyword_only": keyword_only,
            "plain": plain,
            "only_kwargs": only_kwargs,
            "other_name": other_name,
            "no_generator": no_generator,
            "synchronous": synchronous,
            "raises_at_once": raises_at_once,
            "wrapped": wrapped,
            "partial": functools.partial(keyword_only),
            "iterator": lambda request: Iterator(),
            "object": Called(),
            "number": 5,
        }

    async def run(self) -> None:
        runtime = self.api.runtime()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runtime.shutdown)
        endpoints = {GENERATE: self.generate}
        endpoints |= {f"compat.handlers.{name}": each for name, each in self.handlers().items()}
        pushing = push_handlers.Handlers(self.api).endpoints()
        endpoints |= {f"compat.push.{name}": each for name, each in pushing.items()}
        serving = [runtime.endpoint(path).serve_endpoint(each) for path, each in endpoints.items()]
        client = await runtime.endpoint("compat.handlers.number").client()
        await client.wait_for_instances()
        print("ready", flush=True)
        for each in serving:
            print("ended", repr(await each), flush=True)


# The caller ---------------------------------------------------------------------------------------------------------


def told(error: BaseException) -> dict[str, Any]:
    """An exception: its classes, itself first, and its text."""
    names = [each.__name__ for each in type(error).__mro__[:-2]]
    return {"raises": names, "text": str(error)}


async def outcome(call: Callable[[], Any], take: Callable[[Any], Any] = lambda item: item) -> Any:
    """What a call comes to: its items, and how it ended."""
    try:
        future = call()
    except Exception as error:
        return {"when": "called", **told(error)}
    try:
        stream = await asyncio.wait_for(future, PATIENCE)
    except Exception as error:
        return {"when": "awaited", **told(error)}
    items: list[Any] = []
    try:
        while True:
            items.append(take(await asyncio.wait_for(stream.__anext__(), PATIENCE)))
    except StopAsyncIteration:
        return items
    except Exception as error:
        return {"items": items, "when": "iterated", **told(error)}


def attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return told(error)


async def eventually(call: Callable[[], Any]) -> Any:
    """The result of an awaitable, or its error."""
    try:
        return await asyncio.wait_for(call(), PATIENCE)
    except Exception as error:
        return told(error)


def envelope(item: Any) -> list[Any]:
    return [item.data(), item.event(), item.comments(), item.id(), item.is_error()]


async def main() -> None:
    what, module, *wanted = sys.argv[1:]
    api = Api(module)
    if what == "serve":
        await Worker(api).run()
        return
    import binding_scenarios  # type: ignore[import-not-found]  # as values
    import llm_scenarios  # type: ignore[import-not-found]  # as values
    import module_scenarios  # type: ignore[import-not-found]  # as values
    import names  # type: ignore[import-not-found]  # as values
    import scenarios  # type: ignore[import-not-found]  # as values

    files = (scenarios, binding_scenarios, module_scenarios, llm_scenarios, names)
    known = {name: value for file in files for name, value in vars(file).items()}
    facts = {name: await known[name](api) for name in wanted}
    print(json.dumps(facts, default=repr, ensure_ascii=False, sort_keys=True), flush=True)
    if module == "dynamo.runtime":
        os._exit(0)  # the peers' threads may hold up an orderly end


if __name__ == "__main__":
    sys.modules["process"] = sys.modules["__main__"]
    asyncio.run(main())
