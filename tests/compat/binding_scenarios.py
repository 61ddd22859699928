"""What a caller sees of the names that Dynamo 1.6's binding has beside calls. As scenarios.py, see process.py."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from process import Api, attempt, eventually, outcome  # type: ignore[import-not-found]

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


async def metrics(api: Api) -> Facts:
    """The status server is on: see pairs.SETTINGS."""
    runtime = api.runtime()
    endpoint = runtime.endpoint("compat.metrics.a")
    url = runtime.system_status_server_url()
    counted = iter(range(1, 100))

    async def own_lines() -> list[str]:
        text = await asyncio.get_running_loop().run_in_executor(None, read, f"{url}/metrics")
        return [line for line in text.splitlines() if line and "dynamo" not in line]

    facts: Facts = {
        "two objects": endpoint.metrics is endpoint.metrics,
        "type": type(endpoint.metrics).__name__,
        "register": endpoint.metrics.register_prometheus_expfmt_callback(
            lambda: f"# TYPE own gauge\nown {next(counted)}\n"
        ),
        "a number": endpoint.metrics.register_prometheus_expfmt_callback(5),
    }
    facts["before it serves"] = await own_lines()
    serving = endpoint.serve_endpoint(nothing)
    for returned in ("no_newline 1", "", 5, None, b"in_bytes 1\n", "no } metric\n"):
        endpoint.metrics.register_prometheus_expfmt_callback(callback=lambda returned=returned: returned)
    endpoint.metrics.register_prometheus_expfmt_callback(fail)
    runtime.endpoint("compat.metrics.b").metrics.register_prometheus_expfmt_callback(lambda: "another 1\n")
    facts["typed"] = endpoint.metrics.register_prometheus_typed_callback(
        callback=lambda: [("typed", "help", "gauge", "", [("typed", [("a", "b")], 1.0, None)])]
    )
    await asyncio.wait_for((await endpoint.client()).wait_for_instances(), 10)
    facts["while it serves"] = await own_lines()
    facts["again"] = await own_lines()
    runtime.shutdown()
    del serving
    return facts


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def fail() -> str:
    raise ValueError("oh no")


async def nothing(request: Any) -> Any:
    yield


async def runtime_data(api: Api) -> Facts:
    """Records that another worker could have written are put into the folder of the store."""
    runtime = api.runtime()
    endpoint = runtime.endpoint("compat.cards.a")
    client = await endpoint.client()
    name = {"namespace": "compat", "component": "cards", "endpoint": "a"}
    bare = {"display_name": "m", "slug": "m", "kv_cache_block_size": 0, "migration_limit": 0}
    bare |= {"model_type": "Chat", "model_input": "Text"}

    def card(instance_id: int, data: Any, lora: str | None = None, endpoint: str = "a") -> None:
        config = {} if data is None else {"runtime_data": data}
        record: Facts = {"type": "Model", **name, "endpoint": endpoint, "instance_id": instance_id}
        record["card_json"] = {**bare, "runtime_config": config, **({"lora": {"name": lora}} if lora else {})}
        if lora:
            record["model_suffix"] = lora
        put("v1/mdc", f"compat/cards/{endpoint}/{instance_id:x}{'/' + lora if lora else ''}", record)

    def instance(instance_id: int) -> None:
        record = {**name, "instance_id": instance_id, "transport": {"tcp": f"127.0.0.1:1/{instance_id:x}/a"}}
        put("v1/instances", f"compat/cards/a/{instance_id:x}", {"type": "Endpoint", **record})

    async def found(count: int = 0, value: str = "v") -> Any:
        """By one call, or by the other."""
        if count:
            return await eventually(lambda: client.wait_for_instances_by_runtime_data("k", value, count, timeout_s=0.3))
        return await eventually(lambda: client.wait_for_instance_by_runtime_data("k", value, timeout_s=0.3))

    wait = client.wait_for_instances_by_runtime_data
    facts: Facts = {
        "nothing": [await found(), await found(1), await found(2)],
        "quotes": await eventually(lambda: wait('k"\n', "v\\é", 2, timeout_s=0)),
        "a key of another type": attempt(lambda: wait(5, "v", 1)),
        "a value of another type": attempt(lambda: client.wait_for_instance_by_runtime_data("k", 5)),
        "counts": [attempt(lambda count=count: wait("k", "v", count)) for count in (0, -1, 1 << 64, "1", 1.5)],
        "times": [
            await eventually(lambda time=time: client.wait_for_instance_by_runtime_data("k", "v", timeout_s=time))
            for time in (-1, float("nan"), float("inf"), "1")
        ],
    }
    for number, data in enumerate([{"k": "v"}, {"k": 5}, {"k": ["v"]}, {"k": "w"}, {"other": "v"}, None, {}]):
        card(10 + number, data)
    facts["cards without instances"] = [await found(), await found(1)]
    for number in range(7):
        instance(10 + number)
    facts["one matches"] = [await found(), await found(1), await found(2)]
    facts["another value"] = [await found(0, "w"), await found(1, "w"), await found(1, "")]
    instance(20)
    card(20, {"k": "v"}, lora="adapter")
    card(21, {"k": "v"}, endpoint="b")
    facts["an adapter, another endpoint"] = [await found(), await found(2)]
    instance(22)
    waiting = wait("k", "v", 2)
    card(22, {"k": "v"})
    facts["a second one"] = [await eventually(lambda: waiting), await found(2), await found(3)]
    facts["several"] = (await found())["text"].partition(", matching_ids")[0]  # in any order
    facts["a future"] = isinstance(waiting, asyncio.Future)
    runtime.shutdown()
    facts["after shutdown"] = await found(1)
    return facts


def put(bucket: str, key: str, record: Any) -> None:
    """Put a record into a store of files, as another process would."""
    name = "".join(each if each.isascii() and each.isalnum() else f"%{ord(each):02X}" for each in key)
    folder = Path(os.environ["DYN_FILE_KV"], bucket)
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{name}.new"
    new.write_text(json.dumps(record))
    new.rename(folder / name)


async def first_tokens(api: Api) -> Facts:
    endpoint = api.runtime().endpoint("compat.tokens.a")
    worker_type = api.WorkerType
    context = api.Context()
    source = await endpoint.first_token_source(worker_type=worker_type.Decode)
    facts: Facts = {
        name: type(await endpoint.first_token_source(getattr(worker_type, name))).__name__
        for name in ("Aggregated", "Decode", "Prefill", "Encode")
    }
    facts |= {
        "another type": attempt(lambda: endpoint.first_token_source("decode")),
        "none": attempt(lambda: endpoint.first_token_source(None)),
        "bind": [source.bind(context), source.bind(context, 0), source.bind(context=context, dp_rank=3)],
        "no context": attempt(lambda: source.bind(5)),
        "ranks": [attempt(lambda rank=rank: source.bind(context, rank)) for rank in (-1, 1 << 32, "0", None)],
        "a first token": context.notify_first_token(),
    }
    return facts
