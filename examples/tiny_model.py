"""A small model of Hugging Face `transformers` that is made here: random weights, a local tokenizer, nothing fetched.

    python examples/tiny_model.py FOLDER

Writes a folder like those of real models: config.json, model.safetensors, tokenizer.json, tokenizer_config.json with a chat
template, generation_config.json. What the model says makes no sense.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 400
CONTEXT_LENGTH = 2048
END = "</s>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TEXT = """user: what is a token? assistant: a token is a piece of a text, often a word or a part of one.
user: who makes the text from tokens? assistant: the frontend does, with the tokenizer of the model.
system: answer in short sentences. the worker gets numbers and sends numbers, the frontend does the rest.
a batch holds all requests that run. each step of the engine adds one token to every one of them."""


def make(folder: Path) -> Path:
    """Write the model into `folder`, unless it is there; returns the folder."""
    if not (folder / "config.json").exists():
        tokenizer = _tokenizer()
        tokenizer.save_pretrained(folder)
        _model(len(tokenizer)).save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE, which has a token for every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def _model(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=None,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
