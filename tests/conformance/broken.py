"""A driver that is wrong in one way, which its argument names: what the conformance run has to find."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from dynamo_fast.conformance import driver


def spoiled(way: str, answer: dict[str, Any]) -> dict[str, Any]:
    if way == "swaps" and answer.get("messages"):
        message = answer["messages"][0]
        message["header"], message["data"] = message["data"], message["header"]
    if way == "loses" and answer.get("messages"):
        answer["messages"].pop()
    if way == "short" and "bytes" in answer:
        answer["bytes"] = answer["bytes"][:-2]
    if way == "flips" and "bytes" in answer:
        answer["bytes"] = "01" + answer["bytes"][2:]
    if way == "accepts":
        answer["error"] = None
    if way == "holds" and "pending" in answer:
        answer["pending"] += 1
    if way == "number":
        answer["id"] += 1
    if way == "nonsense":
        return {"id": answer["id"], "messages": 5, "bytes": "no hex", "error": None, "pending": 0}
    return answer


def main() -> None:
    way = sys.argv[1]
    for line in sys.stdin:
        question = json.loads(line)
        if way == "dies":
            sys.exit(7)
        if way == "dies once" and question["id"] == 2:
            sys.exit(7)
        if way == "hangs":
            time.sleep(60)
        if way == "chats":
            print("hello", flush=True)
        if way == "skips" and question["checksum"]:
            print(json.dumps({"id": question["id"], "unsupported": "checksum"}), flush=True)
        else:
            print(json.dumps(spoiled(way, driver.answer(question))), flush=True)


if __name__ == "__main__":
    main()
