"""`/v1/responses` on workers that take chats: the request as a chat, and its chunks as a response.

Dynamo's frontend does the same, so a worker for it serves this route, too. What needs a memory of earlier responses is not
offered.

    chat_request     the chat for a request
    response         the whole response, of a chat completion
    ResponseEvents   the response as a stream of events, of chat chunks
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from dynamo_fast.gateway.errors import HttpError
from dynamo_fast.gateway.folding import Json, choices_of, decoded
from dynamo_fast.gateway.forms import Sse
from dynamo_fast.wire.payload import Annotated
from dynamo_fast.wire.text import shown

__all__ = ["ResponseEvents", "chat_request", "response"]

_encode = msgspec.json.Encoder().encode
_PASSED = ("temperature", "top_p", "parallel_tool_calls", "user", "top_logprobs", "service_tier")
_STATEFUL = ("previous_response_id", "conversation", "prompt")
_CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""finish_reason of a chat -> why a response is incomplete."""


# The request ----------------------------------------------------------------------------------------------------------


def chat_request(asked: Json) -> Json:
    """The chat that a request for a response is. Raises HttpError for what is not offered."""
    for name in _STATEFUL:
        if asked.get(name) is not None:
            raise HttpError(400, f"`{name}` is not offered: the gateway keeps no responses")
    if asked.get("background"):
        raise HttpError(400, "`background` is not offered: the gateway keeps no responses")
    chat: Json = {"messages": list(_messages(asked)), "model": asked["model"]}
    if asked.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = asked["max_output_tokens"]
    chat |= {"stream": True, "stream_options": {"include_usage": True}}
    chat |= {name: asked[name] for name in _PASSED if asked.get(name) is not None}
    if asked.get("tools"):
        chat["tools"] = [_tool(tool) for tool in asked["tools"]]
    choice = asked.get("tool_choice")
    if choice is not None:
        chat["tool_choice"] = choice if isinstance(choice, str) else _named_tool(choice)
    effort = (asked.get("reasoning") or {}).get("effort")
    if effort is not None:
        chat["reasoning_effort"] = effort
    return chat | _response_format((asked.get("text") or {}).get("format") or {})


def _messages(asked: Json) -> Iterator[Json]:
    if asked.get("instructions"):
        yield {"role": "system", "content": asked["instructions"]}
    given = asked["input"]
    if isinstance(given, str):
        yield {"role": "user", "content": given}
        return
    for item in given if isinstance(given, list) else [given]:
        if not isinstance(item, dict):
            raise HttpError(400, f"`input` has {shown(item)}: expected objects")
        kind = item.get("type", "message")
        if kind == "message":
            yield {"role": item.get("role", "user"), "content": _content(item.get("content"))}
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            yield {"role": "assistant", "content": None, "tool_calls": [call]}
        elif kind == "function_call_output":
            yield {"role": "tool", "tool_call_id": item.get("call_id"), "content": _content(item.get("output"))}
        elif kind != "reasoning":  # which no chat takes
            raise HttpError(400, f"`input` has an item of type {shown(kind)}, which is not offered")


def _content(content: Any) -> Any:
    """Text as it is; parts in the words of chats."""
    if not isinstance(content, list):
        return content
    parts = [_part(part) for part in content]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def _part(part: Any) -> Json:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part.get("text")}
    if kind == "input_image" and part.get("image_url"):
        return {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part.get("detail", "auto")}}
    raise HttpError(400, f"`input` has a part of type {shown(kind)}, which is not offered")


def _tool(tool: Any) -> Json:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise HttpError(400, "`tools` has one that is no function: only functions are offered")
    fields = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in fields if tool.get(name) is not None}}


def _named_tool(choice: Any) -> Json:
    if not isinstance(choice, dict) or choice.get("type") != "function":
        raise HttpError(400, "`tool_choice` is not offered: expected none, auto, required or a function")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _response_format(wanted: Json) -> Json:
    kind = wanted.get("type", "text")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": kind}}
    if kind == "json_schema":
        schema = {name: value for name, value in wanted.items() if name != "type"}
        return {"response_format": {"type": kind, "json_schema": schema}}
    raise HttpError(400, f"the text format {shown(kind)} is not offered")


# The response ---------------------------------------------------------------------------------------------------------


def response(asked: Json, completion: Json) -> Json:
    """The response that a chat completion is."""
    choice = (completion.get("choices") or [{}])[0]
    message = choice.get("message") or {}
    calls = message.get("tool_calls") or []
    output = [_message(_new("msg"), message.get("content") or "")] if message.get("content") or not calls else []
    output += [_call(_new("fc"), each) for each in calls]
    whole = _described(asked, _new("resp"), int(completion.get("created") or time.time()))
    return _ended(whole, output, choice.get("finish_reason"), completion.get("usage"))


def _new(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _text_part(text: str) -> Json:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _message(item_id: str, text: str | None, status: str = "completed") -> Json:
    content = [] if text is None else [_text_part(text)]
    return {"type": "message", "content": content, "id": item_id, "role": "assistant", "status": status}


def _call(item_id: str, call: Json, status: str = "completed") -> Json:
    function = call["function"]
    common = {"type": "function_call", "arguments": function["arguments"], "call_id": call["id"]}
    return common | {"name": function["name"], "id": item_id, "status": status}


_NULL = (
    *("billing", "conversation", "completed_at", "error", "incomplete_details", "max_tool_calls"),
    *("previous_response_id", "prompt", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "usage"),
)


def _described(asked: Json, response_id: str, created: int) -> Json:
    """A response that has begun: what was asked for, the defaults of what was not, and nothing yet."""
    whole: Json = {"id": response_id, "object": "response", "created_at": created, "status": "in_progress"}
    whole |= {"model": asked["model"], "output": [], "background": False, "store": False, **dict.fromkeys(_NULL)}
    for name, default in (
        ("instructions", None),
        ("max_output_tokens", None),
        ("metadata", {}),
        ("parallel_tool_calls", True),
        ("reasoning", None),
        ("service_tier", "auto"),
        ("temperature", 1.0),
        ("text", {"format": {"type": "text"}}),
        ("tool_choice", "auto"),
        ("tools", []),
        ("top_logprobs", 0),
        ("top_p", 1.0),
        ("truncation", "disabled"),
    ):
        whole[name] = default if asked.get(name) is None else asked[name]
    return whole


def _ended(whole: Json, output: list[Json], finish: Any, usage: Any) -> Json:
    whole = whole | {"output": output, "completed_at": int(time.time()), "status": "completed", "usage": _usage(usage)}
    if finish in _CUT:
        whole |= {"status": "incomplete", "completed_at": None, "incomplete_details": {"reason": _CUT[finish]}}
    return whole


def _usage(usage: Any) -> Json | None:
    if not isinstance(usage, dict):
        return None
    before, after = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": {"cached_tokens": before.get("cached_tokens") or 0},
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": after.get("reasoning_tokens") or 0},
        "total_tokens": usage.get("total_tokens", 0),
    }


class ResponseEvents(Sse):
    """The events of one response. Owned by its exchange; `items` takes the chunks in order, `end` is called last."""

    __slots__ = ("_failed", "_finish", "_output", "_sequence", "_usage", "_whole")

    def __init__(self, asked: Json) -> None:
        self._whole = _described(asked, _new("resp"), int(time.time()))
        self._sequence = 0
        self._finish: Any = None
        self._usage: Any = None
        self._output: list[_OutputItem] = []
        self._failed: HttpError | None = None

    def plain(self, items: Sequence[bytes]) -> bytes:
        """See Form. Raises HttpError for an item that is no chunk of a chat."""
        events = list(self._begin())
        for chunk in decoded(items):
            self._usage = chunk.get("usage") or self._usage
            for choice in choices_of(chunk):
                if choice.get("index", 0) == 0:
                    self._finish = choice.get("finish_reason") or self._finish
                    events += self._delta(choice.get("delta") or {})
        return b"".join(events)

    def annotated(self, item: Annotated[bytes]) -> bytes:
        """See Form. Events of the worker's own have no place in a response."""
        data: bytes | None = item.data()
        return b"" if data is None else self.plain([data])

    def error(self, error: HttpError) -> bytes:
        """See Form. It is told by the last event."""
        self._failed = error
        return b""

    def end(self) -> bytes:
        """See Form."""
        events = list(self._begin())
        failed, finish = self._failed, self._finish
        status = "incomplete" if failed is not None or finish in _CUT else "completed"
        for item in self._output:
            events += item.done(self, status)
        output = [item.item(status) for item in self._output]
        whole = _ended(self._whole, output, finish, self._usage)
        if failed is not None:
            code = "invalid_prompt" if failed.status < 500 else "server_error"
            whole |= {"status": "failed", "completed_at": None, "error": {"code": code, "message": failed.message}}
        events.append(self.event(f"response.{whole['status']}", response=whole))
        return b"".join(events) + super().end()

    def event(self, kind: str, **fields: Any) -> bytes:
        """One event, with the next number."""
        body = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode(body))

    def _begin(self) -> Iterator[bytes]:
        if not self._sequence:
            yield self.event("response.created", response=self._whole)
            yield self.event("response.in_progress", response=self._whole)

    def _delta(self, delta: Json) -> Iterator[bytes]:
        if delta.get("content"):
            message = next((item for item in self._output if isinstance(item, _Message)), None)
            if message is None:
                message = _Message(len(self._output))
                self._output.append(message)
                yield from message.begun(self)
            yield message.more(self, delta["content"])
        for part in delta.get("tool_calls") or ():
            calls = [item for item in self._output if isinstance(item, _Call)]
            function = part.get("function") or {}
            if part.get("index", 0) >= len(calls):
                call = _Call(len(self._output), part.get("id"), function.get("name"))
                self._output.append(call)
                yield from call.begun(self)
            else:
                call = calls[part.get("index", 0)]
            if function.get("arguments"):
                yield call.more(self, function["arguments"])


class _OutputItem:
    """A part of the output that grows: what has come of it, and the events that tell of it."""

    def __init__(self, index: int, prefix: str) -> None:
        self.text = ""
        self.place = {"item_id": _new(prefix), "output_index": index}

    def begun(self, events: ResponseEvents) -> Iterator[bytes]:
        item = self.item("in_progress")
        yield events.event("response.output_item.added", output_index=self.place["output_index"], item=item)

    def done(self, events: ResponseEvents, status: str) -> Iterator[bytes]:
        item = self.item(status)
        yield events.event("response.output_item.done", output_index=self.place["output_index"], item=item)

    def item(self, status: str) -> Json:
        raise NotImplementedError


class _Message(_OutputItem):
    def __init__(self, index: int) -> None:
        super().__init__(index, "msg")
        self._part = {**self.place, "content_index": 0}

    def item(self, status: str) -> Json:
        text = None if status == "in_progress" else self.text
        return _message(str(self.place["item_id"]), text, status)

    def begun(self, events: ResponseEvents) -> Iterator[bytes]:
        yield from super().begun(events)
        yield events.event("response.content_part.added", **self._part, part=_text_part(""))

    def more(self, events: ResponseEvents, text: str) -> bytes:
        self.text += text
        return events.event("response.output_text.delta", **self._part, delta=text, logprobs=[])

    def done(self, events: ResponseEvents, status: str) -> Iterator[bytes]:
        yield events.event("response.output_text.done", **self._part, text=self.text, logprobs=[])
        yield events.event("response.content_part.done", **self._part, part=_text_part(self.text))
        yield from super().done(events, status)


class _Call(_OutputItem):
    def __init__(self, index: int, call_id: Any, name: Any) -> None:
        super().__init__(index, "fc")
        self._call_id, self._name = call_id, name

    def item(self, status: str) -> Json:
        function = {"name": self._name, "arguments": self.text}
        return _call(str(self.place["item_id"]), {"id": self._call_id, "function": function}, status)

    def more(self, events: ResponseEvents, text: str) -> bytes:
        self.text += text
        return events.event("response.function_call_arguments.delta", **self.place, delta=text)

    def done(self, events: ResponseEvents, status: str) -> Iterator[bytes]:
        name = {"name": self._name, "arguments": self.text}
        yield events.event("response.function_call_arguments.done", **self.place, **name)
        yield from super().done(events, status)
