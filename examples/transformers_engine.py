"""A model of Hugging Face `transformers` behind Dynamo's OpenAI frontend.

    python examples/transformers_engine.py                # the frontend sends token ids
    python examples/transformers_engine.py --text         # the frontend sends the OpenAI request itself
    python examples/transformers_engine.py --kv-events    # tells frontends in `kv` mode what is in its cache

What to install, and how to start the frontend: README.md in this folder. The model is made in ./tiny-model
if it is not there (`tiny_model.py`). `--model` takes the folder of any causal language model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import tiny_model
from batched_engine import BLOCK_SIZE, Engine
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dynamo_fast import Context, FileDiscovery, Worker
from dynamo_fast.llm import ModelCard, ModelType


class TokenHandler:
    """`ModelInput.Tokens`: gets token ids, yields token ids. The frontend has the tokenizer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        stopping, sampling = request["stop_conditions"], request["sampling_options"]
        if (sampling.get("n") or 1) > 1:
            raise ValueError("this engine gives one choice: n must be 1")  # 400 for the client
        ends = [*(request.get("eos_token_ids") or ()), *(stopping.get("stop_token_ids") or ())]
        steps = self._engine.submit(
            request["token_ids"],
            max_tokens=stopping.get("max_tokens"),
            stop_tokens=() if stopping.get("ignore_eos") else ends,
            temperature=sampling.get("temperature"),
            seed=sampling.get("seed"),
        )
        made = 0
        async with contextlib.aclosing(steps):  # an iterator that is closed takes its request out of the batch
            async for step in steps:
                if context.is_stopped():  # the client is gone, or the frontend has found a stop string
                    return
                item: dict[str, Any] = {"token_ids": [] if step.token is None else [step.token]}
                if step.logprob is not None:
                    item["log_probs"] = [step.logprob]
                made += len(item["token_ids"])
                if step.finish is not None:
                    item["finish_reason"] = step.finish
                    item["completion_usage"] = usage(len(request["token_ids"]), made, step.cached)
                yield item


class TextHandler:
    """`ModelInput.Text`: gets the request of an OpenAI chat, yields chunks of its answer."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase) -> None:
        self._engine = engine
        self._tokenizer = tokenizer

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        prompt = self._tokenizer.apply_chat_template(request["messages"], tokenize=False, add_generation_prompt=True)
        tokens = self._tokenizer.encode(prompt)
        steps = self._engine.submit(
            tokens,
            max_tokens=request.get("max_completion_tokens") or request.get("max_tokens"),
            stop_tokens=[self._tokenizer.eos_token_id],
            temperature=request.get("temperature"),
            seed=request.get("seed"),
        )
        chunk = {
            "id": f"chatcmpl-{context.id()}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": request["model"],
        }
        made: list[int] = []
        told = ""
        async with contextlib.aclosing(steps):
            async for step in steps:
                if context.is_stopped():
                    return
                made += [] if step.token is None else [step.token]
                text = self._tokenizer.decode(made, skip_special_tokens=True)
                if text.endswith("\N{REPLACEMENT CHARACTER}") and step.finish is None:
                    continue  # a part of a character
                delta = {"role": "assistant", "content": text[len(told) :]}
                item = {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": step.finish}]}
                if step.finish is not None:
                    item["usage"] = usage(len(tokens), len(made), step.cached)
                yield item
                told = text


def usage(prompt: int, made: int, cached: int) -> dict[str, Any]:
    """What an answer took, as OpenAI counts it."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


async def serve(options: argparse.Namespace) -> None:
    folder = str(tiny_model.make(options.model))
    engine = Engine(folder, max_batch=options.max_batch)
    if options.text:
        handler = TextHandler(engine, AutoTokenizer.from_pretrained(folder, local_files_only=True)).generate
        card = ModelCard.text(options.name, model_type=ModelType.Chat)
    else:
        handler = TokenHandler(engine).generate
        card = ModelCard.from_folder(folder, name=options.name, kv_cache_block_size=BLOCK_SIZE)

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with await Worker.start(FileDiscovery()) as worker:
        served = await worker.serve(handler, options.endpoint, model=card)
        if options.kv_events:
            from dynamo_fast.llm.kv_events import KvEventSource

            engine.cache.listener = await KvEventSource.open(served, BLOCK_SIZE)  # the worker closes it
        print(f"{options.name} is served", flush=True)
        await stopped.wait()
    engine.close()  # every request that was accepted has its answer


def main() -> None:
    parser = argparse.ArgumentParser(description="A model of `transformers` behind Dynamo's frontend.")
    parser.add_argument("--model", type=Path, default=Path("tiny-model"), help="a model folder (default: %(default)s)")
    parser.add_argument("--name", default="tiny", help="the model's name in requests (default: %(default)s)")
    parser.add_argument("--endpoint", default="demo.transformers.generate", help="default: %(default)s")
    parser.add_argument("--max-batch", type=int, default=16, help="requests in one step (default: %(default)s)")
    parser.add_argument("--text", action="store_true", help="take OpenAI requests, not token ids")
    parser.add_argument("--kv-events", action="store_true", help="tell frontends in `kv` mode of the cache")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
