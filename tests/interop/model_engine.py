"""The engine behind the frontends of the tests. It imports nothing of this project and nothing of Dynamo.

The same functions answer on Dynamo's own worker and on ours. A request with a `seed` asks for one answer of `CASES`;
any other gets the letters of the alphabet, one a token, until `max_tokens`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import string
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["ANSWERS", "CASES", "ERRORS", "HANDLERS", "Case"]

USUAL_TOKENS = 4
Item = Any


def token(letter: str) -> int:
    """The id of a letter in the vocabulary of `model_folder`: the bytes follow the end of the text."""
    return ord(letter) + 1


def tokens(text: str) -> list[int]:
    return [token(letter) for letter in text]


class Coded(Exception):
    """An exception that names its HTTP status, as Dynamo's own HttpError does."""

    def __init__(self, code: int) -> None:
        super().__init__(f"told as {code}")
        self.code = code
        self.message = f"told as {code}"


@dataclass(frozen=True)
class Case:
    """One answer: its items, then what it raises. `statuses` are what 1.6.1 and 1.3.1 make of a request for it."""

    name: str
    items: tuple[Item, ...] = ()
    error: Callable[[], BaseException] | None = None
    statuses: tuple[int, int] = (200, 200)


def _raising(
    name: str, error: Callable[[], BaseException], new: int, old: int, late: int | None = None
) -> tuple[Case, Case]:
    """At once, and after a token, where 1.6.1 makes `late` of it (if it differs), and 1.3.1 always 500."""
    said = ({"token_ids": tokens("n")},)
    return Case(name, (), error, (new, old)), Case(f"{name} after a token", said, error, (late or new, 500))


def _error(kind: type[BaseException]) -> Callable[[], BaseException]:
    return lambda: kind("on purpose")


def _coded(code: int) -> Callable[[], BaseException]:
    return lambda: Coded(code)


SAY_NO = ({"token_ids": tokens("n")}, {"token_ids": tokens("o"), "finish_reason": "stop"})
LOGPROB = {"rank": 1, "token_id": token("n"), "token": "n", "logprob": -0.5}
USAGE = {"prompt_tokens": 111, "completion_tokens": 222, "total_tokens": 333, "prompt_tokens_details": None}

ANSWERS = (
    Case("two tokens", SAY_NO),
    Case("no finish", ({"token_ids": tokens("n")}, {"token_ids": tokens("o")})),
    Case("many tokens in an item", ({"token_ids": tokens("nopq"), "finish_reason": "length"},)),
    Case("text instead of tokens", ({"token_ids": [1], "text": "XX", "finish_reason": "stop"},)),
    Case("the end in an item of its own", (SAY_NO[0], {"token_ids": [], "finish_reason": "eos"})),
    Case("content filter", (SAY_NO[0], {"token_ids": [], "finish_reason": "content_filter"})),
    Case("cancelled", (SAY_NO[0], {"token_ids": [], "finish_reason": "cancelled"})),
    Case("finish by an error", (SAY_NO[0], {"token_ids": [], "finish_reason": "error"}), None, (500, 500)),
    Case("an unknown finish", (SAY_NO[0], {"token_ids": [], "finish_reason": "tired"}), None, (500, 500)),
    Case("usage", (SAY_NO[0], {"token_ids": [], "finish_reason": "stop", "completion_usage": USAGE})),
    Case("log probabilities", ({**SAY_NO[0], "log_probs": [-0.5], "top_logprobs": [[LOGPROB]]}, SAY_NO[1])),
    Case("a reason to stop", ({**SAY_NO[1], "stop_reason": "x"},)),
    Case("an unknown key", ({**SAY_NO[1], "surprise": {"a": 1}},)),
    Case("a token outside the vocabulary", ({"token_ids": [99_999]}, SAY_NO[1])),
    Case("a hidden end", ({"token_ids": [*tokens("n"), 0]}, {"token_ids": [], "finish_reason": "stop"})),
    Case("nothing", ()),
    Case("an item without tokens", ({"text": "x"},), None, (500, 500)),
    Case("an item that is text", ("x",), None, (500, 500)),
    Case("an item that is a list", ([1, 2],), None, (500, 500)),
    Case("a choice that was not asked for", ({**SAY_NO[1], "index": 7},), None, (500, 500)),
    Case("an event", ({"_dynamo_annotated": True, "event": "my-event", "comment": ["c1"]}, SAY_NO[1])),
    Case("an error event", ({"_dynamo_annotated": True, "event": "error", "comment": ["bad"]},), None, (500, 500)),
)
ERRORS = (
    *_raising("ValueError", _error(ValueError), 400, 400),
    *_raising("TypeError", _error(TypeError), 400, 400),
    *_raising("RuntimeError", _error(RuntimeError), 500, 500),
    *_raising("KeyError", _error(KeyError), 500, 500),
    *_raising("OSError", _error(OSError), 500, 500),
    *_raising("PermissionError", _error(PermissionError), 500, 500),
    *_raising("NotImplementedError", _error(NotImplementedError), 500, 500),
    *_raising("MemoryError", _error(MemoryError), 500, 500),
    *_raising("TimeoutError", _error(asyncio.TimeoutError), 504, 500),
    *_raising("ConnectionError", _error(ConnectionError), 503, 500),
    *_raising("CancelledError", _error(asyncio.CancelledError), 499, 500),
    *_raising("code 400", _coded(400), 400, 400),
    *_raising("code 404", _coded(404), 404, 404),
    *_raising("code 413", _coded(413), 413, 413),
    *_raising("code 418", _coded(418), 418, 418, 400),
    *_raising("code 422", _coded(422), 400, 400),
    *_raising("code 429", _coded(429), 429, 429),
    *_raising("code 503", _coded(503), 503, 503),
)
CASES = (*ANSWERS, *ERRORS)


def tell(**event: Any) -> None:
    """Tell the test by a line of standard output."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def listen() -> asyncio.Event:
    """An event that a line on standard input sets."""
    told = asyncio.Event()

    def read() -> None:
        if sys.stdin.readline():
            told.set()
        else:
            asyncio.get_running_loop().remove_reader(sys.stdin)

    asyncio.get_running_loop().add_reader(sys.stdin, read)
    return told


async def generate(request: Any, context: Any) -> AsyncIterator[Item]:
    """A model of tokens: a case, or letters for each choice."""
    options = request["sampling_options"]
    seed, choices = options.get("seed"), options.get("n") or 1
    if seed is not None:
        async for each in _case(CASES[seed]):
            yield each
        return
    count = request["stop_conditions"].get("max_tokens") or USUAL_TOKENS
    wants_logprobs = request["output_options"].get("logprobs") is not None
    for position in range(count):
        if context.is_stopped():
            return
        for choice in range(choices):
            letter = string.ascii_lowercase[(position + choice) % 26]
            item: dict[str, Any] = {"token_ids": [token(letter)], "index": choice}
            if wants_logprobs:
                likely = {"rank": 1, "token_id": token(letter), "token": letter, "logprob": -0.25}
                item |= {"log_probs": [-0.25], "top_logprobs": [[likely]]}  # 1.3.1 shows none without the second
            if position == count - 1:
                item["finish_reason"] = "length"
            yield item


async def _case(case: Case) -> AsyncIterator[Item]:
    for item in case.items:
        yield item
    if case.error is not None:
        raise case.error()


async def held(request: Any, context: Any) -> AsyncIterator[Item]:
    """Yields a token and waits: for the test to say go, or for the end of its context, which it tells with the time."""
    tell(event="request", request=request, id=context.id())
    going = asyncio.ensure_future(_go().wait())
    stopped = asyncio.ensure_future(context.async_killed_or_stopped())
    try:
        yield {"token_ids": tokens("a")}
        tell(event="held")
        await asyncio.wait({going, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if going.done():
            yield {"token_ids": tokens("z"), "finish_reason": "stop"}
    finally:
        if not going.done():  # Dynamo's own worker may close the generator before it tells the context
            tell(event="stopped", at=time.monotonic())
        going.cancel()
        stopped.cancel()


_told: asyncio.Event | None = None


def _go() -> asyncio.Event:
    global _told  # noqa: PLW0603  # one standard input in a process
    if _told is None:
        _told = listen()
    return _told


async def call_a_tool(request: Any, context: Any) -> AsyncIterator[Item]:
    """Calls a tool in the words of the `hermes` parser, a token a letter."""
    call = json.dumps({"name": "weather", "arguments": {"city": "Bern"}})
    for letter in f"<tool_call>{call}</tool_call>":
        yield {"token_ids": [token(letter)]}
    yield {"token_ids": [], "finish_reason": "stop"}


async def embed(request: Any, context: Any) -> AsyncIterator[Item]:
    """Two numbers for each text: 0.5 and its count of tokens, in the form that the request's release wants."""
    texts = request["token_ids"]
    vectors = [(0.5, float(len(text))) for text in texts]
    count = sum(map(len, texts))
    old = "encoding_format" in request  # 1.3.1 sends it always, 1.6.1 only if the client did
    told: list[Any] = (
        [list(each) for each in vectors]
        if old
        else [base64.b64encode(struct.pack("<2f", *each)).decode() for each in vectors]
    )
    yield {"embeddings": told, "prompt_tokens": count, "total_tokens": count}


async def chat_text(request: Any, context: Any) -> AsyncIterator[Item]:
    """A model of text: the request is OpenAI's, and so are the chunks."""
    chunk = {"id": "mine-1", "object": "chat.completion.chunk", "created": 7, "model": request["model"]}
    said = f"you said {request['messages'][-1]['content']}"
    for word in said.split():
        delta = {"role": "assistant", "content": f"{word} "}
        yield {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


async def complete_text(request: Any, context: Any) -> AsyncIterator[Item]:
    """The same for completions, which 1.3.1 does not offer."""
    chunk = {"id": "mine-2", "object": "text_completion", "created": 7, "model": request["model"]}
    text = f"after {request['prompt']}"
    yield {**chunk, "choices": [{"index": 0, "text": text, "finish_reason": "stop"}]}


async def embed_text(request: Any, context: Any) -> AsyncIterator[Item]:
    """OpenAI's list of embeddings, with as many as there are texts."""
    texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
    vectors = [
        {"object": "embedding", "index": number, "embedding": [0.5, float(len(text))]}
        for number, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    yield {"object": "list", "model": request["model"], "data": vectors, "usage": usage}


async def leave(request: Any, context: Any) -> AsyncIterator[Item]:
    """What an engine raises that shuts down: the frontend leaves the worker out for a while."""
    if request:
        raise GeneratorExit
    yield


HANDLERS: dict[str, Callable[[Any, Any], AsyncIterator[Item]]] = {
    each.__name__: each for each in (generate, held, call_a_tool, embed, chat_text, complete_text, embed_text, leave)
}
