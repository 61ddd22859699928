"""`ModelFolder`: what a model card takes from a folder in the form of Hugging Face (model_card.md 2.2).

    config.json               required: the context length is in it
    tokenizer.json            or `tiktoken.model`, or the only `*.tiktoken`
    tokenizer_config.json     the chat template, for chat
    chat_template.jinja       or `chat_template.json`: comes before the template of `tokenizer_config.json`
    generation_config.json    default sampling and end tokens, if it is there

The rules are those of Dynamo's `register_model`. Where Dynamo publishes a card that no frontend serves, this raises.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dynamo_fast.errors import InvalidRequest
from dynamo_fast.logs import get_logger
from dynamo_fast.wire.model_card import CardFile, PromptFormatter, Template, checksum
from dynamo_fast.wire.text import printable, shown

__all__ = ["ModelFolder"]

logger = get_logger(__name__)

_MAX_U32 = (1 << 32) - 1
_MAX_FILE = 256 * 1024 * 1024
"""Bytes of the largest file that a card names. Tokenizers have up to about 35 MB; weights are not named."""
_MAX_EXTRA_FILES = 1000
_NOT_EXTRA = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".tflite", "README.md")
"""Ends of the names that Dynamo leaves out: weights, mostly. Its choice counts, as the files are part of a card's sum."""


class ModelFolder:
    """Reads one folder, when it is made. Owns nothing; blocks while it reads.

    Raises InvalidRequest, which names the folder, the file or the field, and InvalidConfig without `blake3`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.given = os.fspath(path)
        """The path as it was given; Dynamo's `source_path`."""
        if not os.path.isdir(self.given):
            what = "is not a folder" if os.path.exists(self.given) else "does not exist"
            raise InvalidRequest(
                f"the model {printable(self.given)} {what}: expected a local folder with config.json (nothing is fetched)"
            )
        self.path = Path(os.path.realpath(self.given))
        self.model_info = self._required_file("config.json")
        self.context_length = self._context_length()
        """Tokens that the model can take; None if the folder does not say it."""
        self.tokenizer = self._tokenizer()
        self.has_chat_template = False
        """Whether `tokenizer_config.json` has a chat template."""
        self.prompt_formatter = self._prompt_formatter()
        self.chat_template = self._chat_template()
        found = self.path / "generation_config.json"
        self.gen_config = card_file(found) if found.is_file() else None

    def extra_files(self, named: set[str]) -> list[CardFile]:
        """The other files beside the weights, for a frontend that reads them over HTTP; `named` are not taken again.

        Files that are too large, and all after the first thousand, are left out: a frontend fetches each of them.
        """
        found = [
            each
            for each in sorted(self.path.iterdir())
            if each.is_file()
            and each.name not in named
            and not each.name.startswith(".")
            and not each.name.endswith(_NOT_EXTRA)
            and each.stat().st_size <= _MAX_FILE
        ]
        return [card_file(each) for each in found[:_MAX_EXTRA_FILES]]

    def check_for_tokens(self, *, chat: bool, has_template: bool) -> None:
        """Raises InvalidRequest if the folder lacks what a frontend needs to make tokens.

        Chat needs a template: one that the card has beside `tokenizer_config.json` (`has_template`), or the one in it.
        """
        if self.tokenizer is None:
            raise InvalidRequest(
                f"{printable(str(self.path))} has no tokenizer: expected tokenizer.json, tiktoken.model or one *.tiktoken"
            )
        if chat and self.prompt_formatter is None:
            raise InvalidRequest(f"{printable(str(self.path))} has no tokenizer_config.json: chat needs it")
        if chat and not (has_template or self.has_chat_template):
            logger.warning(
                "%s has no chat template: a frontend lists such a model only if it knows the family itself (DeepSeek, "
                "Kimi); pass a template, or ModelType.Completions",
                self.path,
            )

    def _required_file(self, name: str) -> CardFile:
        path = self.path / name
        if not path.is_file():
            raise InvalidRequest(f"{printable(str(self.path))} has no {name}")
        return card_file(path)

    def _context_length(self) -> int | None:
        """`max_position_embeddings`, at the top or in `text_config`; else the tokenizer's `model_max_length`; 0 is none."""
        path = self.path / "config.json"
        config = _json_object(path)
        text = config.get("text_config")
        if text is not None and not isinstance(text, dict):
            raise InvalidRequest(f"{printable(str(path))}: text_config is {shown(text)}: expected an object")
        for name, values in (("", config), ("text_config.", text or {})):
            if "max_position_embeddings" in values:
                number = values["max_position_embeddings"]
                if not _is_u32(number):
                    field = f"{name}max_position_embeddings"
                    raise InvalidRequest(
                        f"{printable(str(path))}: {field} is {shown(number)}: expected a whole number, 0 to {_MAX_U32}"
                    )
                return number or None
        tokenizer_config = self.path / "tokenizer_config.json"
        number = _json_object(tokenizer_config).get("model_max_length") if tokenizer_config.is_file() else None
        return number or None if _is_u32(number) else None

    def _tokenizer(self) -> dict[Any, CardFile] | None:
        path = self.path / "tokenizer.json"
        if path.is_file():
            _json_object(path)
            return {"hf_tokenizer_json": card_file(path)}
        path = self.path / "tiktoken.model"
        if path.is_file():
            return {"tik_token_model": card_file(path)}
        found = sorted(self.path.glob("*.tiktoken"))
        if len(found) > 1:
            raise InvalidRequest(
                f"{printable(str(self.path))} has {len(found)} tokenizers: {', '.join(each.name for each in found)}"
            )
        return {"tik_token_model": card_file(found[0])} if found else None

    def _prompt_formatter(self) -> PromptFormatter | None:
        path = self.path / "tokenizer_config.json"
        if not path.is_file():
            return None
        self.has_chat_template = bool(_json_object(path).get("chat_template"))
        return PromptFormatter(hf_tokenizer_config_json=card_file(path))

    def _chat_template(self) -> PromptFormatter | None:
        path = self.path / "chat_template.jinja"
        if path.is_file():
            return PromptFormatter(hf_chat_template=Template(False, card_file(path)))
        path = self.path / "chat_template.json"
        if path.is_file():
            _json_object(path)
            return PromptFormatter(hf_chat_template_json=Template(False, card_file(path)))
        return None


def card_file(path: Path) -> CardFile:
    """The file as a card names it. Reads all of it. Raises InvalidRequest for a file that cannot be read."""
    data = _content(path)
    return CardFile(str(path), checksum(data), len(data))


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _MAX_FILE:
            raise InvalidRequest(f"{printable(str(path))} has {size} bytes (the limit is {_MAX_FILE})")
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{printable(str(path))} cannot be read: {error.strerror}") from error


def _json_object(path: Path) -> dict[str, Any]:
    """As Python reads JSON: with NaN and Infinity, which some models have. Raises InvalidRequest."""
    try:
        value = json.loads(_content(path))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{printable(str(path))} is no JSON: {printable(str(error))}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{printable(str(path))} is {shown(value)}: expected an object")
    return value


def _is_u32(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_U32
