"""What a caller sees. Each scenario is `async def NAME(api) -> facts`, JSON; see process.py."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import pathlib
import re
import tempfile
import warnings
from typing import Any

from process import GENERATE, Api, attempt, envelope, eventually, outcome, told  # type: ignore[import-not-found]
from values import EXCEPTIONS, VALUES  # type: ignore[import-not-found]

Facts = dict[str, Any]


async def connect(api: Api, path: str = GENERATE, runtime: Any = None) -> Any:
    client = await (runtime or api.runtime()).endpoint(path).client()
    await asyncio.wait_for(client.wait_for_instances(), 10)
    await asyncio.sleep(0.2)  # 1.3.1 knows an instance a moment before it may use it
    return client


def without_numbers(facts: Facts, *numbers: int) -> Facts:
    """Facts without what is different each time: ids, ports, random request ids."""

    def clean(fact: Any) -> Any:
        if isinstance(fact, dict):
            return {key: clean(value) for key, value in fact.items()}
        if isinstance(fact, list):
            return [clean(value) for value in fact]
        if isinstance(fact, str):
            for number in numbers:
                fact = fact.replace(str(number), "<id>").replace(f"{number:x}", "<id>")
            fact = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:<port>", fact)
            return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<uuid>", fact)
        return fact

    return {case: clean(fact) for case, fact in facts.items()}


async def calls(api: Api) -> Facts:
    client = await connect(api)
    (instance_id,) = client.instance_ids()
    count = {"do": "count", "to": 2}
    nones = {"do": "items", "items": [None, 1, None]}
    future = client.round_robin(count)
    stream = await future
    first = await stream.__anext__()
    facts: Facts = {
        "a call is a running future": isinstance(future, asyncio.Future),
        "the next item is a future": isinstance(stream.__anext__(), asyncio.Future),
        "the stream iterates itself": stream.__aiter__() is stream,
        "the stream cannot be closed": not hasattr(stream, "aclose"),
        "an item": [type(first).__name__, repr(first), *envelope(first)],
    }
    for method in ("round_robin", "random", "generate", "device_aware_weighted"):
        facts[method] = await outcome(lambda method=method: getattr(client, method)(count), envelope)
        facts[f"{method}, bare"] = await outcome(lambda method=method: getattr(client, method)(count, False))
    facts["direct"] = await outcome(lambda: client.direct(count, instance_id, annotated=False))
    for name, wrong in (("unknown", 12345), ("zero", 0), ("negative", -1), ("too large", 1 << 64), ("text", "7")):
        facts[f"direct, {name}"] = await outcome(lambda wrong=wrong: client.direct(count, wrong))
    facts["no items"] = await outcome(lambda: client.round_robin({"do": "items", "items": []}))
    facts["None among items, bare"] = await outcome(lambda: client.round_robin(nones, annotated=False))
    facts["None among items"] = await outcome(lambda: client.round_robin(nones), envelope)
    facts["annotated is None"] = await outcome(lambda: client.round_robin(count, None))
    facts["one object yielded again and again"] = await outcome(
        lambda: client.round_robin({"do": "same object"}, False)
    )
    facts["no request"] = attempt(client.round_robin)
    facts["unknown argument"] = attempt(lambda: client.round_robin(count, nope=1))
    facts["a context that is none"] = attempt(lambda: client.round_robin(count, context=5))
    stream = await client.round_robin(count, False)
    facts["two at once"] = sorted(await asyncio.gather(stream.__anext__(), stream.__anext__()))
    facts["after the end"] = [await eventually(stream.__anext__) for _ in range(2)]
    large = await outcome(lambda: client.round_robin({"do": "items", "items": ["x" * 2_000_000]}, False), len)
    facts["two megabytes"] = large
    facts["thirty-four megabytes"] = await outcome(lambda: client.round_robin("x" * 34_000_000))
    return without_numbers(facts, instance_id)


async def nobody(api: Api) -> Facts:
    client = await api.runtime().endpoint("compat.nobody.here").client()
    facts = {
        method: await outcome(lambda method=method: getattr(client, method)({}))
        for method in ("round_robin", "random", "generate")
    }
    facts["direct"] = await outcome(lambda: client.direct({}, 5))
    facts["ids"] = client.instance_ids()
    waiting = client.wait_for_instances()
    await asyncio.sleep(0.1)
    facts["waits"] = not waiting.done()
    return facts


async def errors(api: Api) -> Facts:
    facts: Facts = {}
    runtime = api.runtime()
    for name in EXCEPTIONS:
        for after in (0, 2):
            client = await connect(api, runtime=runtime)  # what one client avoids, another one uses
            call = functools.partial(client.round_robin, annotated=False)
            request = {"do": "raise", "name": name, "after": after}
            facts[f"{name} after {after}"] = await outcome(functools.partial(call, request))
            facts[f"{name} after {after}, next call"] = await outcome(functools.partial(call, "x"))
    return facts


async def requests(api: Api) -> Facts:
    client = await connect(api)
    facts = {}
    for name, make in VALUES.items():
        facts[name] = await asyncio.wait_for(outcome(lambda make=make: client.round_robin(make(), False)), 30)
        if name != "nested":
            facts[f"{name}, inside"] = await outcome(lambda make=make: client.round_robin([make()], False))
    return without_numbers(facts)


async def responses(api: Api) -> Facts:
    facts: Facts = {}
    runtime = api.runtime()
    for name in VALUES:
        client = await connect(api, runtime=runtime)
        call = functools.partial(client.round_robin, {"do": "value", "name": name}, False)
        facts[name] = await outcome(call, lambda item: [type(item).__name__, repr(item)])
    return facts


async def envelopes(api: Api) -> Facts:
    runtime = api.runtime()
    marked: Facts = {"_dynamo_annotated": True}
    items: Facts = {
        "not marked": {"data": 1, "event": "e", "comment": ["c"], "id": "i"},
        "not marked, an error": {"event": "error", "comment": ["c"]},
        "marked false": {"_dynamo_annotated": False, "data": 1},
        "marked, truthy": {"_dynamo_annotated": "yes", "data": 1},
        "marked, empty": marked,
        "data": {**marked, "data": {"x": 1}},
        "all": {**marked, "data": 1, "event": "e", "comment": ["c", "d"], "id": "i"},
        "event": {**marked, "event": "e"},
        "comment": {**marked, "comment": ["c"]},
        "comment, a text": {**marked, "comment": "text"},
        "error": {**marked, "event": "error", "comment": ["went", "wrong"]},
        "error, no comment": {**marked, "event": "error"},
        "error, typed": {
            **marked,
            "event": "error",
            "error": {"error_type": {"Backend": "InvalidArgument"}, "message": "typed"},
        },
        "error, of old": {**marked, "event": "error", "error": {"error_type": "Disconnected", "message": "typed"}},
        "error, but no event": {**marked, "error": {"error_type": "Unknown", "message": "typed"}},
        "more": {**marked, "data": 1, "more": 2},
    }
    facts: Facts = {}
    for name, item in items.items():
        for kind, arguments in (("", ()), (", bare", (False,))):
            client = await connect(api, runtime=runtime)  # what one client avoids, another one uses
            call = functools.partial(client.round_robin, {"do": "items", "items": [item, "then"]}, *arguments)
            facts[name + kind] = await outcome(call, (lambda item: item) if kind else envelope)
    return facts


async def handlers(api: Api) -> Facts:
    facts: Facts = {}
    runtime = api.runtime()
    for name in (
        *("keyword_only", "plain", "only_kwargs", "other_name", "no_generator", "synchronous", "raises_at_once"),
        *("wrapped", "partial", "iterator", "object", "number"),
    ):
        client = await connect(api, f"compat.handlers.{name}", runtime)
        facts[name] = await outcome(lambda client=client: client.round_robin({"a": 1}, False))
        facts[f"{name}, next call"] = await outcome(lambda client=client: client.round_robin({"a": 1}, False))
    return without_numbers(facts)


async def contexts(api: Api) -> Facts:
    context_type = api.Context
    fresh = context_type("x")
    metadata = context_type(metadata={"b": "2", "a": "1"}).metadata
    facts: Facts = {
        "default id": len(context_type().id()),
        "given": [fresh.id(), fresh.is_stopped(), fresh.is_killed(), context_type("").id()],
        "trace": [fresh.trace_id, fresh.span_id, fresh.parent_span_id, fresh.trace_headers()],
        "no-ops": [fresh.notify_first_token(), fresh.current_span().set_attribute("a", 1)],
        "spans": [type(fresh.current_span()).__name__, type(fresh.start_span("s", {"k": 1})).__name__],
        "wrong id": attempt(lambda: context_type(5)),
        "wrong metadata": attempt(lambda: context_type(metadata={"a": 1})),
        "repr": repr(fresh).split(" object")[0],
        "no attributes": attempt(lambda: setattr(fresh, "foo", 1)),
        "detached": attempt(lambda: fresh.detached("y").id()),
        "metadata": [repr(metadata), list(metadata), metadata.keys(), metadata.values(), metadata.items()],
        "metadata, looked up": [
            len(metadata),
            "a" in metadata,
            metadata["a"],
            metadata.get("z"),
            metadata.get("z", "d"),
        ],
        "metadata, missing": attempt(lambda: metadata["z"]),
        "metadata, pop missing": attempt(lambda: metadata.pop("z")),
        "metadata, pop with None": attempt(lambda: metadata.pop("z", None)),
        "metadata, pop with a text": metadata.pop("z", "q"),
        "metadata, set a number": attempt(lambda: metadata.__setitem__("k", 1)),
        "metadata, delete missing": attempt(lambda: metadata.__delitem__("z")),
        "metadata is a dict": metadata == {"a": "1", "b": "2"},
    }
    facts["metadata, pop"] = [metadata.pop("a"), metadata.copy(), dict(metadata)]
    view = fresh.metadata
    view["live"] = "1"
    fresh.metadata = {**fresh.metadata.copy(), "new": "2"}
    facts["metadata, live"] = [fresh.metadata.copy(), view.copy()]
    facts["metadata, assign a number"] = attempt(lambda: setattr(fresh, "metadata", {"a": 1}))
    client = await connect(api)
    for name, context in (
        ("none", None),
        ("id", context_type("my id/é")),
        ("empty id", context_type("")),
        ("metadata", context_type("i", {"tenant": "t", "k é": 'v\n"'})),
        ("live metadata", fresh),
    ):
        facts[f"at the handler: {name}"] = await outcome(
            lambda context=context: client.round_robin({"do": "context"}, False, context=context)
        )
    return without_numbers(facts)


async def cancellation(api: Api) -> Facts:
    client = await connect(api)
    facts: Facts = {}

    async def seen(key: str) -> Any:
        return await outcome(lambda: client.round_robin({"do": "seen", "key": key}, False))

    context = api.Context()
    waiting = context.async_killed_or_stopped()
    stream = await client.round_robin({"do": "until stopped", "key": "stop"}, False, context=context)
    items = [await stream.__anext__()]
    facts["waits"] = [isinstance(waiting, asyncio.Future), waiting.done()]
    context.stop_generating()
    facts["stopped"] = [context.is_stopped(), context.is_killed(), await asyncio.wait_for(waiting, 5)]
    facts["stop: the stream"] = [*items, await eventually(stream.__anext__)]
    facts["stop: the handler"] = await seen("stop")

    stream = await client.round_robin({"do": "until stopped", "key": "drop"}, False)
    await stream.__anext__()
    del stream
    gc.collect()
    facts["drop: the handler"] = await seen("drop")

    stream = await client.round_robin({"do": "until stopped", "key": "task"}, False, context=(context := api.Context()))

    async def consume(stream: Any) -> None:
        async for _ in stream:
            pass

    task = asyncio.ensure_future(consume(stream))
    del stream
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    del task
    gc.collect()
    facts["cancel the consumer: the handler"] = await seen("task")
    facts["cancel the consumer: the context"] = context.is_stopped()

    shared = api.Context()
    streams = [
        await client.round_robin({"do": "until stopped", "key": f"shared {number}"}, False, context=shared)
        for number in range(2)
    ]
    for stream in streams:
        await stream.__anext__()
    shared.stop_generating()
    facts["one context for two calls"] = [await eventually(stream.__anext__) for stream in streams]

    stopped = api.Context()
    stopped.stop_generating()
    facts["stopped before the call"] = await outcome(
        lambda: client.round_robin({"do": "until stopped", "key": "before"}, False, context=stopped)
    )
    facts["stopped before the call: the handler"] = await seen("before")
    stream = await client.round_robin({"do": "count", "to": 30, "pause": 0.01}, False)
    async for _ in stream:
        break
    await asyncio.sleep(0.1)
    facts["left, and gone on with"] = len([item async for item in stream])
    return facts


async def names(api: Api) -> Facts:
    runtime = api.runtime()
    facts: Facts = {}
    for path in (
        *("a.b.c", "dyn://a.b.c", "A.b.c", "a b.c.d", "a.é.c", "a..c", ".b.c", "a.b.", "a.b.c/x", "a.b.c:d", " a.b.c"),
        *("http://a.b.c", "a.b.c%2F"),
        *("", "a", "a.b", "a.b.c.d", "a/b/c", "dyn://", "dyn://a/b/c", "dyn://a.b.c.d"),
    ):
        facts[path] = attempt(lambda path=path: type(runtime.endpoint(path)).__name__)
        if facts[path] == "Endpoint":
            client = await runtime.endpoint(path).client()
            facts[f"{path}, called"] = await outcome(lambda client=client: client.round_robin({}))
    facts["a number"] = attempt(lambda: runtime.endpoint(5))
    ids = {runtime.endpoint(path).connection_id() for path in ("a.b.c", "d.e.f")}
    facts["connection ids"] = [len(ids), type(ids.pop()).__name__]
    return facts


async def constructor(api: Api) -> Facts:
    loop = asyncio.get_running_loop()
    build = api.DistributedRuntime
    arguments: Facts = {
        "an unknown backend": (loop, "zookeeper", "tcp"),
        "backend in capitals": (loop, "FILE", "TCP"),
        "an unknown plane": (loop, "file", "carrier"),
        "http": (loop, "file", "http"),
        "no plane": (loop, "file", None),
        "memory": (loop, "mem", "tcp"),
        "enable_nats": (loop, "file", "tcp", False),
        "no loop": (5, "file", "tcp"),
    }
    facts = {name: attempt(lambda given=given: type(build(*given)).__name__) for name, given in arguments.items()}
    facts["an unknown event plane"] = attempt(lambda: build(loop, "file", "tcp", event_plane="carrier"))
    named = {"event_loop": loop, "discovery_backend": "file", "request_plane": "tcp"}
    facts["by name"] = attempt(lambda: type(build(**named)).__name__)
    runtime = api.runtime()
    facts["the rest"] = [
        runtime.event_loop() is loop,
        runtime.system_status_server_url(),
        runtime.set_health_status(True),
        runtime.endpoint("a.b.c").connection_id() == api.runtime().endpoint("a.b.c").connection_id(),
    ]
    return facts


async def first(request: Any) -> Any:
    yield "first"


async def second(request: Any) -> Any:
    yield "second"


async def serving(api: Api) -> Facts:
    facts: Facts = {}
    runtime = api.runtime()
    endpoint = runtime.endpoint("compat.serving.a")
    future = endpoint.serve_endpoint(first)
    facts["it is a future"] = isinstance(future, asyncio.Future)
    client = await connect(api, "compat.serving.a")
    future.cancel()
    facts["cancelled"] = await eventually(lambda: asyncio.gather(future, return_exceptions=True))
    facts["cancelled"] = [type(each).__name__ for each in facts["cancelled"]]
    facts["still serves"] = await outcome(lambda: client.round_robin({}, False))
    facts["the same object again"] = await eventually(lambda: endpoint.serve_endpoint(second))
    facts["the first handler stays"] = await outcome(lambda: client.round_robin({}, False))
    again = runtime.endpoint("compat.serving.a").serve_endpoint(second)
    await asyncio.sleep(0.3)
    facts["the same path again"] = [again.done(), await outcome(lambda: client.round_robin({}, False))]
    facts["instances"] = len(client.instance_ids())

    async def ids(expected: int) -> int:
        for _ in range(250):
            if len(client.instance_ids()) == expected:
                break
            await asyncio.sleep(0.02)
        return len(client.instance_ids())

    facts["register again"] = [repr(await eventually(endpoint.register_endpoint_instance)), await ids(1)]
    facts["unregister"] = [repr(await eventually(endpoint.unregister_endpoint_instance)), await ids(0)]
    facts["a call then"] = await outcome(lambda: client.round_robin({}))
    facts["unregister again"] = await eventually(endpoint.unregister_endpoint_instance)
    facts["register"] = [repr(await eventually(endpoint.register_endpoint_instance)), await ids(1)]
    facts["a call after that"] = await outcome(lambda: client.round_robin({}, False))
    unserved = runtime.endpoint("compat.serving.unserved")
    facts["unregister what is not served"] = await eventually(unserved.unregister_endpoint_instance)
    facts["register what is not served"] = repr(await eventually(unserved.register_endpoint_instance))
    other = await connect(api, "compat.serving.unserved")
    facts["call what is not served"] = await outcome(lambda: other.round_robin({}))
    serve = runtime.endpoint("compat.serving.b").serve_endpoint
    facts["handler="] = attempt(lambda: serve(handler=first))
    facts["labels, a dict"] = attempt(lambda: serve(first, metrics_labels={"a": "b"}))
    facts["labels, a number"] = attempt(lambda: serve(first, metrics_labels=[("a", 1)]))
    facts["labels, reserved"] = await eventually(lambda: serve(first, metrics_labels=[("worker_id", "x")]))
    fresh = runtime.endpoint("compat.serving.c").serve_endpoint
    facts["payload, a number"] = attempt(lambda: fresh(first, health_check_payload=5))
    last = fresh(generator=first, metrics_labels=[("a", "b")], health_check_payload={}, graceful_shutdown=False)
    await connect(api, "compat.serving.c")
    slow = await connect(api, "compat.serving.a", runtime)
    facts["shutdown"] = [repr(runtime.shutdown()), repr(runtime.shutdown())]
    facts["it returned"] = repr(await eventually(lambda: last))
    facts["gone"] = await ids(0)
    facts["a call after shutdown"] = await outcome(lambda: slow.round_robin({}))
    facts["a client after shutdown"] = await eventually(lambda: runtime.endpoint("x.y.z").client())
    return without_numbers(facts, endpoint.connection_id())


async def avoidance(api: Api) -> Facts:
    runtime = api.runtime()
    client, other = await connect(api, runtime=runtime), await connect(api, runtime=runtime)
    (instance_id,) = client.instance_ids()
    since = asyncio.get_running_loop().time()
    await outcome(lambda: client.round_robin({"do": "raise", "name": "GeneratorExit", "after": 0}))
    facts: Facts = {"listed": len(client.instance_ids())}
    for method in ("round_robin", "random", "generate"):
        facts[method] = await outcome(lambda method=method: getattr(client, method)({}))
    count = {"do": "count", "to": 1}
    facts["direct"] = await outcome(lambda: client.direct(count, instance_id, False))
    facts["another client"] = await outcome(lambda: other.round_robin(count, False))
    passed = 0.0
    while isinstance(await outcome(lambda: client.round_robin(count, False)), dict) and passed < 20:
        await asyncio.sleep(0.05)
        passed = asyncio.get_running_loop().time() - since
    seconds = float(os.environ["DYN_RUNTIME_INHIBITED_DURATION_SECS"])
    facts["until it may be used again"] = seconds <= asyncio.get_running_loop().time() - since < 20
    return facts


async def unary(api: Api) -> Facts:
    runtime = api.runtime()

    async def handler(request: Any, *, context: Any) -> Any:
        if request == "raise":
            raise ValueError("oh no")
        return [request, context.id()]

    ended = asyncio.ensure_future(api.serve_unary_endpoint(runtime.endpoint("compat.unary.a"), handler))
    client = api.UnaryClient(await connect(api, "compat.unary.a"))
    many = api.UnaryClient(await connect(api))
    facts = {
        "one": await eventually(lambda: client.complete({"x": 1}, context=api.Context("my-id"))),
        "an error": await eventually(lambda: client.complete("raise")),
        "none": await eventually(lambda: many.complete({"do": "items", "items": []})),
        "two": await eventually(lambda: many.complete({"do": "items", "items": [1, 2]})),
        "null": await eventually(lambda: many.complete({"do": "items", "items": [None]})),
    }
    del ended
    return facts


async def decorators(api: Api) -> Facts:
    from pydantic import BaseModel

    class Question(BaseModel):
        a: int

    @api.dynamo_endpoint(Question, Question)  # type: ignore[untyped-decorator]
    async def typed(request: Any, context: Any = None) -> Any:
        yield type(request).__name__

    @api.dynamo_endpoint(str, Question)  # type: ignore[untyped-decorator]
    async def untyped(request: Any) -> Any:
        yield type(request).__name__

    async def run(function: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return [item async for item in function(*arguments, **named)]
        except Exception as error:
            return {**told(error), "text": str(error)[:90]}

    facts: Facts = {
        "name": [typed.__name__, hasattr(typed, "__wrapped__")],
        "a dict": await run(typed, {"a": 1}),
        "a text": await run(typed, '{"a": 1}'),
        "a dict that does not fit": await run(typed, {"b": 1}),
        "a text that is no JSON": await run(typed, "nope"),
        "a model": await run(typed, Question(a=1)),
        "a number": await run(typed, 5),
        "by name": await run(typed, request={"a": 1}),
        "no model": await run(untyped, {"a": 1}),
    }

    @api.dynamo_worker()  # type: ignore[untyped-decorator]
    async def worker(runtime: Any, x: int, y: int = 2) -> int:
        facts["worker"] = [type(runtime).__name__, x, y]
        return 42

    @api.dynamo_worker()  # type: ignore[untyped-decorator]
    async def failing(runtime: Any) -> None:
        raise KeyError("x")

    os.environ["DYN_DISCOVERY_BACKEND"] = "file"
    facts["the worker's result"] = [await worker(1, y=3), worker.__name__]
    facts["the worker's error"] = await eventually(failing)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api.dynamo_worker(enable_nats=False)
    facts["enable_nats"] = [each.category.__name__ for each in caught]
    os.environ["DYN_REQUEST_PLANE"] = "bogus"
    facts["a plane that is none"] = await eventually(lambda: worker(1))
    return facts


async def records(api: Api) -> Facts:
    """What the file store looks like, and that a client makes it."""
    os.environ["DYN_FILE_KV"] = folder = tempfile.mkdtemp()
    runtime = api.runtime()
    client = await runtime.endpoint("compat.records.a_b-c é").client()
    facts: Facts = {"made by a client": [sorted(names) for _, names, _ in os.walk(folder)]}
    endpoint = runtime.endpoint("compat.records.a_b-c é")
    ended = endpoint.serve_endpoint(first)
    await asyncio.wait_for(client.wait_for_instances(), 10)
    (name,) = os.listdir(os.path.join(folder, "v1", "instances"))
    path = os.path.join(folder, "v1", "instances", name)
    text = pathlib.Path(path).read_text(encoding="utf-8")  # noqa: ASYNC240  # nothing else runs
    facts["a record"] = [name, text, oct(os.stat(path).st_mode & 0o777), os.stat(path).st_nlink]
    (instance,) = client.instances()
    facts["an instance"] = [str(instance), repr(instance), instance.device_type, instance.transport.kind]
    runtime.shutdown()
    await ended
    facts["left behind"] = os.listdir(os.path.join(folder, "v1", "instances"))
    return without_numbers(facts, endpoint.connection_id())
