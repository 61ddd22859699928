"""A model folder without weights: what a frontend needs to turn text into tokens and back. Nothing is fetched.

The tokenizer is a byte-level BPE with 400 tokens: the end of a text, the 256 bytes, and what a few words consist of.
"""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["EOS", "TOKENS", "write"]

EOS = 0
TOKENS = 400
CONTEXT_LENGTH = 2048
WORDS = (
    "the user assistant system hello world answer question token model stream worker frontend request response "
    "again between people because something another through little thought follow around number children important"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if tools %}tools: {{ tools | length }}\n{% endif %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write(folder: Path) -> Path:
    """Write the files of a model into `folder`, which is made; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _vocabulary()
    files = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(vocabulary),
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": None,
            "eos_token_id": EOS,
        },
        "tokenizer.json": _tokenizer(vocabulary, merges),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "</s>",
            "model_max_length": CONTEXT_LENGTH,
            "chat_template": CHAT_TEMPLATE,
        },
        "generation_config.json": {"eos_token_id": EOS},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def _vocabulary() -> tuple[dict[str, int], list[str]]:
    """Tokens with their ids, and the merges in order: each word is put together from its left."""
    tokens = ["</s>", *_alphabet()]
    merges: list[str] = []
    for word in WORDS.split():
        left = "Ġ"  # the blank before a word
        for letter in word:
            if left + letter not in tokens and len(tokens) < TOKENS:
                tokens.append(left + letter)
                merges.append(f"{left} {letter}")
            left += letter
    return {token: number for number, token in enumerate(tokens)}, merges


def _alphabet() -> list[str]:
    """The printable character that stands for each byte in a byte-level BPE, in the order of the bytes."""
    shown = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = iter(range(256))
    return [chr(byte) if byte in shown else chr(256 + next(others)) for byte in range(256)]


def _tokenizer(vocabulary: dict[str, int], merges: list[str]) -> dict[str, object]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": EOS,
                "content": "</s>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
