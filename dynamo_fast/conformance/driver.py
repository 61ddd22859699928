"""`python -m dynamo_fast.conformance.driver`: answers the questions of the conformance run with `dynamo_fast.codec`."""

from __future__ import annotations

import json
import sys
from typing import Any

from dynamo_fast import codec
from dynamo_fast.conformance.suite import PARTS
from dynamo_fast.errors import ChecksumMismatch, CodecError, MessageTooLarge

__all__ = ["answer", "main"]

_CLASSES = {"two_part": "TwoPart", "tcp_request": "TcpRequest", "tcp_response": "TcpResponse"}
_ERRORS = {MessageTooLarge: "message_too_large", ChecksumMismatch: "checksum_mismatch"}


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The answer to one question."""
    told = _decode(question) if question["op"] == "decode" else _encode(question)
    return {"id": question["id"], **told}


def _decode(question: dict[str, Any]) -> dict[str, Any]:
    decoder = _made("Decoder", question)
    messages: list[Any] = []
    for chunk in question["chunks"]:
        messages += [] if decoder.failed else _fed(decoder, bytes.fromhex(chunk))
    parts = PARTS[question["format"]]
    return {
        "messages": [{part: bytes(getattr(message, part)).hex() for part in parts} for message in messages],
        "pending": decoder.pending,
        "error": _name_of(decoder.failed),
    }


def _fed(decoder: Any, chunk: bytes) -> list[Any]:
    try:
        return list(decoder.feed(chunk))
    except CodecError:  # it is in decoder.failed, too
        return []


def _encode(question: dict[str, Any]) -> dict[str, Any]:
    parts = [bytes.fromhex(question["message"][part]) for part in PARTS[question["format"]]]
    message = getattr(codec, f"{_CLASSES[question['format']]}Message").from_parts(*parts)
    try:
        return {"bytes": _made("Codec", question).encode_message(message).hex(), "error": None}
    except CodecError as error:
        return {"error": _name_of(error)}


def _made(kind: str, question: dict[str, Any]) -> Any:
    options = {"checksum": True} if question["checksum"] else {}
    return getattr(codec, _CLASSES[question["format"]] + kind)(question["max_message_size"], **options)


def _name_of(error: CodecError | None) -> str | None:
    return None if error is None else _ERRORS[type(error)]


def main() -> None:
    """Answer until there are no more questions."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
