"""Model folders for tests: a config, a tokenizer of four words, a chat template. Nothing is fetched."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

__all__ = ["CONFIG", "RANKS", "TOKENIZER", "make_folder"]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "eos_token_id": 0,
    "bos_token_id": 0,
    "max_position_embeddings": 2048,
    "vocab_size": 4,
}
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            "id": 0,
            "content": "</s>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"</s>": 0, "hello": 1, "world": 2, "again": 3}, "unk_token": "</s>"},
}
TOKENIZER_CONFIG = {"chat_template": "{{ messages[0].content }}", "eos_token": "</s>"}
RANKS = "".join(f"{base64.b64encode(bytes([number])).decode()} {number}\n" for number in range(256))
"""A file in the form of tiktoken: each byte is a token."""


def make_folder(path: Path, files: dict[str, Any] | None = None, *, config: Any = None) -> Path:
    """A model folder. `files` are more files, or others: an object is written as JSON, None is left out."""
    path.mkdir(parents=True)
    contents: dict[str, Any] = {
        "config.json": CONFIG if config is None else config,
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "generation_config.json": {"eos_token_id": 0},
        **(files or {}),
    }
    for name, content in contents.items():
        if content is not None:
            (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path
