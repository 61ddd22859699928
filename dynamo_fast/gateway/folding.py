"""`chat_completion` and `text_completion`: the chunks of a stream as one answer, as Dynamo's frontend folds them.

Texts are joined, tool calls are put together by their index, and of everything else the last value that is not null
counts. A worker may as well yield the whole answer as its one item: that one passes through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from dynamo_fast.gateway.errors import HttpError

__all__ = ["chat_completion", "choices_of", "decoded", "not_openai", "text_completion"]

Json = dict[str, Any]

_decode = msgspec.json.Decoder(Json).decode
_JOINED = ("content", "refusal", "reasoning_content", "reasoning")


def decoded(items: Sequence[bytes]) -> list[Json]:
    """The items as objects. Raises HttpError, an error of the worker, if one is none."""
    try:
        return [_decode(item) for item in items]
    except msgspec.MsgspecError as error:
        raise not_openai(str(error)) from None


def not_openai(what: str) -> HttpError:
    """The worker's items are not what OpenAI's API has."""
    return HttpError(500, "Internal server error", detail=f"the worker's item is no chunk of OpenAI's API: {what}")


def chat_completion(chunks: Sequence[Json]) -> Json:
    """`chat.completion` of `chat.completion.chunk`s."""
    if _is_whole(chunks, "message"):
        return chunks[0]
    choices: dict[int, Json] = {}
    for chunk in chunks:
        for choice in choices_of(chunk):
            folded = choices.setdefault(
                _index(choice),
                {"index": _index(choice), "message": {"content": None, "refusal": None, "role": "assistant"}}
                | {"finish_reason": None, "logprobs": None},
            )
            _add_delta(folded["message"], choice.get("delta") or {})
            _add_end(folded, choice)
    return _whole(chunks, choices, "chat.completion")


def text_completion(chunks: Sequence[Json]) -> Json:
    """`text_completion` of its chunks, which have the same name."""
    if len(chunks) == 1:
        return chunks[0]
    choices: dict[int, Json] = {}
    for chunk in chunks:
        for choice in choices_of(chunk):
            folded = choices.setdefault(
                _index(choice), {"text": "", "index": _index(choice), "finish_reason": None, "logprobs": None}
            )
            folded["text"] += choice.get("text") or ""
            _add_end(folded, choice)
    return _whole(chunks, choices, "text_completion")


def _is_whole(chunks: Sequence[Json], key: str) -> bool:
    return len(chunks) == 1 and any(key in choice for choice in choices_of(chunks[0]))


def choices_of(chunk: Json) -> list[Json]:
    """The choices of a chunk. Raises HttpError, an error of the worker, if they are no objects."""
    choices = chunk.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise not_openai("`choices` is no list of objects")
    return choices


def _index(choice: Json) -> int:
    index = choice.get("index", 0)
    return index if isinstance(index, int) else 0


def _whole(chunks: Sequence[Json], choices: dict[int, Json], kind: str) -> Json:
    whole: Json = {"id": "", "choices": [choices[index] for index in sorted(choices)], "created": 0, "model": ""}
    for chunk in chunks:
        whole |= {name: value for name, value in chunk.items() if value is not None and name != "choices"}
    return whole | {"object": kind}


def _add_delta(message: Json, delta: Json) -> None:
    for name, value in delta.items():
        if name in _JOINED and isinstance(value, str):
            message[name] = (message.get(name) or "") + value
        elif name == "tool_calls" and value:
            _add_tool_calls(message.setdefault("tool_calls", []), value)
        elif value is not None:
            message[name] = value


def _add_tool_calls(calls: list[Json], parts: Sequence[Json]) -> None:
    """The first part of a call has its id and its name, the arguments come in pieces."""
    for part in parts:
        index = part.get("index", len(calls))
        if not isinstance(index, int) or not 0 <= index <= len(calls):
            raise not_openai("the indices of `tool_calls` have a gap")
        if index == len(calls):
            calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
        call = calls[index]
        call |= {name: value for name, value in part.items() if value is not None and name not in ("index", "function")}
        function = part.get("function") or {}
        call["function"]["name"] = function.get("name") or call["function"]["name"]
        call["function"]["arguments"] += function.get("arguments") or ""


def _add_end(folded: Json, choice: Json) -> None:
    if choice.get("finish_reason") is not None:
        folded["finish_reason"] = choice["finish_reason"]
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict):
        known = folded["logprobs"] = folded["logprobs"] or {}
        for name, value in logprobs.items():
            known[name] = [*(known.get(name) or []), *value] if isinstance(value, list) else value
