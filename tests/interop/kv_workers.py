"""Workers of this process for a frontend in kv mode. The tokenizer of their model has a word for each token."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.ingress.worker import ServedEndpoint, Worker
from dynamo_fast.llm import ModelCard, ModelRuntimeConfig, ModelType
from tests.interop.frontends import Frontend

BLOCK_SIZE = 4
TOTAL_BLOCKS = 100
WORDS = 2000


@dataclass
class KvWorker:
    """One of the workers of a model."""

    worker: Worker
    served: ServedEndpoint
    prompts: list[list[int]] = field(default_factory=list)
    """The tokens of each request that it got."""
    ranks: list[int | None] = field(default_factory=list)
    """The data-parallel rank that the frontend chose for each."""

    @classmethod
    async def start(cls, frontend: Frontend, model: str, data_parallel_size: int = 1) -> KvWorker:
        """A worker that is registered, with its model card."""
        discovery = FileDiscovery(frontend.folder / "store")
        worker = await Worker.start(discovery)
        prompts: list[list[int]] = []
        ranks: list[int | None] = []

        async def generate(request: Any) -> AsyncIterator[Any]:
            prompts.append(request["token_ids"])
            ranks.append((request.get("routing") or {}).get("dp_rank"))
            yield {"token_ids": [7], "finish_reason": "stop"}

        card = ModelCard.from_folder(
            write_model(frontend.folder / "model"),
            name=model,
            model_type=ModelType.Completions,
            kv_cache_block_size=BLOCK_SIZE,
            runtime_config=runtime_config(data_parallel_size),
        )
        served = await worker.serve(generate, f"test.{model}.generate", model=card)
        return cls(worker, served, prompts, ranks)


def runtime_config(data_parallel_size: int) -> ModelRuntimeConfig:
    config = ModelRuntimeConfig()
    config.data_parallel_size = data_parallel_size
    config.total_kv_blocks = TOTAL_BLOCKS
    return config


def write_model(folder: Path) -> Path:
    """A tokenizer of words: `w7` is the token 7."""
    folder.mkdir(exist_ok=True)
    vocabulary = {f"w{number}": number for number in range(WORDS)}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    }
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": 0, "bos_token_id": None}
    config |= {"max_position_embeddings": 2048, "vocab_size": WORDS}
    for name, content in {"tokenizer.json": tokenizer, "config.json": config}.items():
        if not (folder / name).exists():
            (folder / name).write_text(json.dumps(content))
    return folder
