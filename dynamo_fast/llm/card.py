"""`ModelCard`: what a worker publishes so that Dynamo's frontends list and serve its endpoint as a model.

card = ModelCard.from_folder("/models/tiny", name="tiny")             # the handler gets token ids
worker = await serve(handler, "demo.backend.generate", model=card)

card = ModelCard.text("tiny")                                         # the handler gets the OpenAI request
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from dynamo_fast.errors import InvalidRequest
from dynamo_fast.llm.folder import ModelFolder, card_file
from dynamo_fast.llm.kinds import ModelInput, ModelType, WorkerType, role_fault
from dynamo_fast.llm.runtime_config import ModelRuntimeConfig
from dynamo_fast.wire.model_card import Card, Lora, PromptFormatter, Template, slug
from dynamo_fast.wire.text import printable, shown

__all__ = ["DEFAULT_BLOCK_SIZE", "ModelCard"]

DEFAULT_BLOCK_SIZE = 16
"""Tokens in a block of the KV cache, if nothing else is said; Dynamo's default."""
_CHAT_AND_COMPLETIONS = ModelType.Chat | ModelType.Completions


@dataclass(frozen=True)
class ModelCard:
    """A model card before it has an endpoint: pass it to `serve`, `Worker.serve` or `ServedEndpoint.add_model`.

    A value that may be used for several endpoints and workers. Frontends take no changed card: to change one, remove it
    and put the new one. All instances of an endpoint must have the same card.
    """

    card: Card
    """What is published, with local files."""
    self_host: bool | None = None
    """Whether the worker serves the files over HTTP. None: if its status server is on (`DYN_SYSTEM_PORT`), unless
    `DYN_SELF_HOST_METADATA` is off. Otherwise the card names local files, which the frontend must be able to read."""

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        model_type: ModelType = _CHAT_AND_COMPLETIONS,
        model_input: ModelInput = ModelInput.Tokens,
        kv_cache_block_size: int | None = None,
        runtime_config: ModelRuntimeConfig | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        aliases: Sequence[str] = (),
        user_data: Any = None,
        worker_type: WorkerType = WorkerType.Aggregated,
        needs: Sequence[Sequence[WorkerType]] = (),
        router_config: dict[str, Any] | None = None,
        self_host: bool | None = None,
    ) -> ModelCard:
        """The card of a model folder (see `ModelFolder`). It reads the files that the card names, and blocks meanwhile.

        `name` is the model's name in requests; by default the name of the folder. `chat_template` is a file that comes
        before the folder's own. `kv_cache_block_size` is in tokens; `needs` says which other types of workers must be
        there: one of the lists, all of its types.

        Raises InvalidRequest, which names the file or the field, and InvalidConfig without the package `blake3`.
        """
        folder = ModelFolder(path)
        template = folder.chat_template if chat_template is None else _custom_template(chat_template)
        if model_input is ModelInput.Tokens and model_type & _WITH_TOKENS:
            folder.check_for_tokens(chat=ModelType.Chat in model_type, has_template=template is not None)
        files: dict[str, Any] = {
            "model_info": {"hf_config_json": folder.model_info},
            "tokenizer": folder.tokenizer,
            "prompt_formatter": folder.prompt_formatter or UNSET,
            "chat_template_file": template or UNSET,
            "gen_config": {"hf_generation_config_json": folder.gen_config} if folder.gen_config else UNSET,
        }
        common = _common_fields(
            name=folder.path.name if name is None else name,
            model_type=model_type,
            model_input=model_input,
            runtime_config=runtime_config,
            aliases=aliases,
            user_data=user_data,
            worker_type=worker_type,
            needs=needs,
            router_config=router_config,
        )
        configured = None if runtime_config is None else runtime_config.context_length
        card = Card(
            **common,
            **files,
            source_path=folder.given,
            architectural_max_context_length=folder.context_length or UNSET,
            context_length=folder.context_length or 0 if configured is None else configured,
            kv_cache_block_size=DEFAULT_BLOCK_SIZE if kv_cache_block_size is None else kv_cache_block_size,
        )
        named = {file.name for _, file in card.files()}
        card = msgspec.structs.replace(card, extra_files=folder.extra_files(named) or UNSET)
        return cls._checked(card, self_host)

    @classmethod
    def text(
        cls,
        name: str,
        *,
        model_type: ModelType = _CHAT_AND_COMPLETIONS,
        model_input: ModelInput = ModelInput.Text,
        runtime_config: ModelRuntimeConfig | None = None,
        aliases: Sequence[str] = (),
        user_data: Any = None,
        worker_type: WorkerType = WorkerType.Aggregated,
        needs: Sequence[Sequence[WorkerType]] = (),
        router_config: dict[str, Any] | None = None,
        tensor_model_config: Any = None,
        source_path: str | None = None,
        kv_cache_block_size: int = 0,
    ) -> ModelCard:
        """The card of a model without files: the handler gets the OpenAI request, and yields OpenAI chunks.

        All workers of a model need the same `kv_cache_block_size`. Dynamo's `register_model` writes 0 without files, its
        `Worker` 16. Another `model_input` is for frontends that need no files to make it: those that take tensors, for
        one. Raises InvalidRequest, which names the field.
        """
        common = _common_fields(
            name=name,
            model_type=model_type,
            model_input=model_input,
            runtime_config=runtime_config,
            aliases=aliases,
            user_data=user_data,
            worker_type=worker_type,
            needs=needs,
            router_config=router_config,
        )
        configured = None if runtime_config is None else runtime_config.context_length
        card = Card(
            **common,
            source_path=UNSET if source_path in (None, name) else source_path,
            model_info=None,
            tokenizer=None,
            context_length=configured or 0,
            kv_cache_block_size=kv_cache_block_size,
            tensor_model_config=UNSET if tensor_model_config is None else tensor_model_config,
        )
        return cls._checked(card, None)

    @property
    def cards(self) -> Sequence[Card]:
        """The one card; see `dynamo_fast.ingress.model_cards.Model`."""
        return (self.card,)

    @property
    def name(self) -> str:
        """The model's name in requests."""
        return self.card.display_name

    @property
    def mdc_sum(self) -> str:
        """See `Card.mdc_sum`: the sum of the card as it is published with local files."""
        return msgspec.structs.replace(self.card, extra_files=UNSET).mdc_sum()

    def adapter(self, name: str, max_gpu_lora_count: int | None = None) -> ModelCard:
        """The card of a LoRA adapter of this model, for `ServedEndpoint.add_model`.

        Requests for it arrive at the same endpoint, with its name. Raises InvalidRequest for a name without any character
        of `a-z 0-9 -`: it is the key of the record.
        """
        if not slug(name):
            raise InvalidRequest(f"the LoRA adapter's name {printable(name)!r} has no letter or digit of ASCII")
        lora = Lora(name, max_gpu_lora_count)
        return replace(self, card=msgspec.structs.replace(self.card, display_name=name, slug=slug(name), lora=lora))

    @classmethod
    def _checked(cls, card: Card, self_host: bool | None) -> ModelCard:
        card.check()
        return cls(card, self_host)


_WITH_TOKENS = ModelType.Chat | ModelType.Completions | ModelType.Embedding


def _common_fields(
    *,
    name: str,
    model_type: ModelType,
    model_input: ModelInput,
    runtime_config: ModelRuntimeConfig | None,
    aliases: Sequence[str],
    user_data: Any,
    worker_type: WorkerType,
    needs: Sequence[Sequence[WorkerType]],
    router_config: dict[str, Any] | None,
) -> dict[str, Any]:
    """The fields that cards with files and without have. Raises InvalidRequest for a list that is a text."""
    if not isinstance(name, str):
        raise InvalidRequest(f"the model's name is {shown(name)}: expected a text")
    if isinstance(aliases, str):
        raise InvalidRequest(f"aliases is the text {printable(aliases)!r}: expected a list of names")
    if fault := role_fault(model_type, worker_type, needs):
        raise InvalidRequest(fault)
    return {
        "display_name": name,
        "slug": slug(name),
        "migration_limit": 0,
        "model_type": model_type.card_text,
        "model_input": model_input.name,
        "worker_type": worker_type.card_text,
        "needs": [[each.card_text for each in group] for group in needs],
        "aliases": list(aliases) or UNSET,
        "user_data": UNSET if user_data is None else user_data,
        "runtime_config": (runtime_config or ModelRuntimeConfig()).to_card(),
        "media_decoder": None,
        "media_fetcher": None,
        "router_config": UNSET if router_config is None else router_config,
    }


def _custom_template(path: str | os.PathLike[str]) -> PromptFormatter:
    template = Path(os.path.abspath(path))
    if not template.is_file():
        raise FileNotFoundError(f"Custom template file does not exist: {template}")
    return PromptFormatter(hf_chat_template=Template(True, card_file(template)))
