"""What a caller sees of the names that Dynamo 1.6's binding has beside calls. As scenarios.py, see process.py."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

from process import Api, attempt, outcome  # type: ignore[import-not-found]

Facts = dict[str, Any]


def told_to_the_user(call: Callable[[], Any]) -> list[Any]:
    """The warnings of a call, and its outcome."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = attempt(call)
    return [[[each.category.__name__, str(each.message)] for each in seen], result]


async def binding(api: Api) -> Facts:
    loop = asyncio.get_running_loop()
    build = api.DistributedRuntime
    runtime = api.runtime()
    span = api.Context().current_span()

    async def echo(body: Any) -> Any:
        return body

    async def no_main(runtime: Any) -> None:
        """Nothing."""

    facts: Facts = {
        "router modes": [repr(getattr(api.RouterMode, name)) for name in ("RoundRobin", "KV", "DeviceAwareWeighted")],
        "enable_nats": told_to_the_user(lambda: type(build(loop, "file", "tcp", enable_nats=True)).__name__),
        "enable_nats is False": told_to_the_user(lambda: type(build(loop, "file", "tcp", False)).__name__),
        "dynamo_worker(enable_nats)": told_to_the_user(lambda: callable(api.dynamo_worker(enable_nats=False)(no_main))),
        "ready": [runtime.set_health_status(ready=False), attempt(lambda: runtime.set_health_status("x"))],
        "healthy": attempt(lambda: runtime.set_health_status(healthy=True))["raises"],
        "an engine route": runtime.register_engine_route(route_name="echo", callback=echo),
        "an engine route without a name": attempt(lambda: runtime.register_engine_route(5, echo)),
        "a span": [
            span.close(),
            span.close(),
            span.set_status("ok"),
            span.set_status("error", description="it failed"),
            span.add_event("event", attrs={"a": 1}),
            span.__exit__(None, None, None),
            span.__enter__() is span,
        ],
        "a span, another status": attempt(lambda: span.set_status("nope")),
        "a span, a number": attempt(lambda: span.set_status(5)),
    }
    for plane in ("tcp", "", "TCP", "carrier", 5):
        facts[f"response plane {plane!r}"] = attempt(
            lambda plane=plane: type(build(loop, "file", "tcp", response_plane=plane)).__name__
        )
    with mock.patch.object(api.module, "DistributedRuntime") as patched:

        @api.dynamo_worker()  # type: ignore[untyped-decorator]
        async def main(runtime: Any) -> None:
            facts["a patched runtime"] = runtime is patched.return_value

        await main()
        facts["a patched runtime, its arguments"] = [len(patched.call_args.args), patched.call_args.kwargs]
    runtime.shutdown()
    return facts


async def push(api: Api) -> Facts:
    runtime = api.runtime()
    facts: Facts = {}

    async def client_of(name: str) -> Any:
        client = await runtime.endpoint(f"compat.push.{name}").client()
        await asyncio.wait_for(client.wait_for_instances(), 10)
        return client

    async def seen(name: str) -> Any:
        client = await client_of("look")
        return await outcome(lambda: client.round_robin(name, False))

    marked = {"_dynamo_annotated": True}
    items = await client_of("items")
    for name, sent in (
        ("items", [{"a": 1}, None, "x", 2]),
        ("no items", []),
        ("many items", list(range(1000))),
        ("large items", ["x" * 300_000] * 3),
        (
            "envelopes",
            [{**marked, "data": 1, "event": "e", "id": "i"}, {**marked, "event": "error", "comment": ["c"]}, 3],
        ),
    ):
        facts[name] = await outcome(lambda sent=sent: items.round_robin({"items": sent}, False), shortened)
        facts[f"{name}, annotated"] = await outcome(lambda sent=sent: items.round_robin({"items": sent}), described)
    for name in (
        *("sender", "yields", "raises", "raises_first", "raises_after_close", "raises_after_error", "error"),
        *("bad_item", "bad_item_raised", "closes_early", "same_object", "thread", "other_task"),
        *("no_context", "positional", "coroutine", "iterator", "either", "many"),
    ):
        client = await client_of(name)
        facts[name] = await outcome(lambda client=client: client.round_robin({}, False))
    for name in ("sender", "error", "bad_item", "closes_early", "kept"):
        facts[f"{name}: the handler"] = await seen(name)
    client = await client_of("until_stopped")
    for key in ("stop", "drop"):
        context = api.Context()
        stream = await client.round_robin(key, False, context=context)
        await stream.__anext__()
        if key == "stop":
            context.stop_generating()
        del stream
        gc.collect()
        facts[f"{key}: the handler"] = await seen(key)
    return facts


def shortened(item: Any) -> Any:
    return len(item) if isinstance(item, str) and len(item) > 9 else item


def described(item: Any) -> Any:
    return [shortened(item.data()), item.event(), item.comments(), item.id(), item.is_error()]
