"""`Card` and `ModelRecord`: what discovery knows about a model that an endpoint serves (model_card.md 2).

A record is the key `NAMESPACE/COMPONENT/ENDPOINT/ID[/SUFFIX]` and compact JSON, keys in Dynamo's order:

    {"type":"Model","namespace":..,"component":..,"endpoint":..,"instance_id":..,"card_json":{CARD}[,"model_suffix":..]}

The card says the model's name, the files that a frontend needs (tokenizer, chat template, ...) with their checksums, and
what kind of requests the endpoint takes. The suffix is the slug of a LoRA adapter. Fields that are absent are `UNSET`;
fields that this module does not know are ignored, as Dynamo ignores them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from dynamo_fast.errors import InvalidConfig, InvalidRequest, PayloadError
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.text import UNREADABLE, reason, shown

__all__ = [
    "MODEL_TYPES",
    "WORKER_TYPES",
    "Card",
    "CardFile",
    "Lora",
    "ModelRecord",
    "Template",
    "checksum",
    "lora_id",
    "slug",
]

MODEL_TYPES = (
    *("Chat", "Completions", "Embedding", "TensorBased", "Prefill", "Images", "Audios", "Videos", "Realtime"),
    *("Classify", "Pooling", "Rerank"),
)
"""The flags of `Card.model_type`, in the order in which Dynamo writes them. The last three are Dynamo 1.6's."""
WORKER_TYPES = ("prefill", "decode", "encode", "aggregated")
"""The values of `Card.worker_type`. Their places, counted from 1, are their numbers in `Card.mdc_sum`."""

WorkerTypeName = Literal["prefill", "decode", "encode", "aggregated"]

_MAX_U32 = (1 << 32) - 1
_MAX_U64 = (1 << 64) - 1
_CHECKSUM = re.compile(r"blake3:[0-9a-f]{64}")
_SLUG = re.compile(r"[a-z0-9_-]*")
_NOT_SLUG = re.compile(r"[^a-z0-9_-]")


class CardFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file of a model: where a frontend reads it, its checksum `blake3:` + 64 hexadecimal digits, its size in bytes.

    `path` is a local path or a URL (`http`, `https`, `file`, `hf`). A frontend refuses a file of another checksum, and one
    that is longer than `size`.
    """

    path: str
    checksum: str
    size: int | None = None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class Template(msgspec.Struct, frozen=True):
    """A chat template in a file of its own. `is_custom`: the program chose it, in place of the model's own."""

    is_custom: bool
    file: CardFile


class PromptFormatter(msgspec.Struct, frozen=True, kw_only=True):
    """Where the chat template is. Exactly one of the three is set."""

    hf_tokenizer_config_json: CardFile | UnsetType = UNSET
    hf_chat_template: Template | UnsetType = UNSET
    hf_chat_template_json: Template | UnsetType = UNSET

    def __post_init__(self) -> None:
        _only(self)

    @property
    def file(self) -> CardFile:
        """The file, whichever it is."""
        found = _only(self)
        return found.file if isinstance(found, Template) else found

    def with_file(self, file: CardFile) -> PromptFormatter:
        """The same for another file."""
        ((name, found),) = _set_fields(self)
        changed: Any = Template(found.is_custom, file) if isinstance(found, Template) else file
        return PromptFormatter(**{name: changed})


class Lora(msgspec.Struct, frozen=True, omit_defaults=True):
    """The LoRA adapter that a card describes."""

    name: str
    max_gpu_lora_count: int | None = None


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A model card, fields in Dynamo's order. The fields that have no default are required by every frontend."""

    display_name: str
    """The model's name in requests and in lists, any text."""
    slug: str
    """See `slug`. It names the frontend's cache folder."""
    source_path: str | UnsetType | None = UNSET
    """The folder or repository that the model comes from."""
    model_info: dict[Literal["hf_config_json"], CardFile] | UnsetType | None = UNSET
    tokenizer: dict[Literal["hf_tokenizer_json", "tik_token_model"], CardFile] | UnsetType | None = UNSET
    prompt_formatter: PromptFormatter | UnsetType | None = UNSET
    chat_template_file: PromptFormatter | UnsetType | None = UNSET
    """Comes before the template that `prompt_formatter` has; does not suffice alone."""
    gen_config: dict[Literal["hf_generation_config_json"], CardFile] | UnsetType | None = UNSET
    architectural_max_context_length: int | UnsetType | None = UNSET
    """Tokens that the model can take, as its folder says."""
    context_length: int | UnsetType | None = UNSET
    """Tokens that the worker takes. Since Dynamo 1.6."""
    kv_cache_block_size: int
    """Tokens in a block of the KV cache; 0 if there are none."""
    migration_limit: int
    """Ignored by frontends, and required."""
    model_type: str
    """Which requests the endpoint takes: flags of `MODEL_TYPES`, joined by ` | `; empty for none."""
    model_input: Literal["Tokens", "Text", "Tensor"]
    """`Tokens`: the frontend sends token ids. `Text`: it sends the client's request."""
    worker_type: WorkerTypeName | UnsetType | None = UNSET
    needs: list[list[WorkerTypeName]] | UnsetType = UNSET
    """Which other types of workers must be there: one of the lists, all of its types."""
    lora: Lora | UnsetType | None = UNSET
    aliases: list[str] | UnsetType = UNSET
    """Further names of the model. Since Dynamo 1.6."""
    user_data: Any = UNSET
    runtime_config: dict[str, Any] | UnsetType = UNSET
    tensor_model_config: Any = UNSET
    media_decoder: Any = UNSET
    media_fetcher: Any = UNSET
    router_config: dict[str, Any] | UnsetType | None = UNSET
    extra_files: list[CardFile] | UnsetType = UNSET
    """Further files of the folder, where the worker itself serves the files. Since Dynamo 1.6."""

    def __post_init__(self) -> None:
        """What a decoder calls, too. Raises InvalidRequest, a ValueError, which names the field."""
        for field in _NUMBERS:
            number = getattr(self, field)
            if isinstance(number, int) and not 0 <= number <= _MAX_U32:
                raise InvalidRequest(f"`{field}` is {number}: expected 0 to {_MAX_U32}")
        if (wrong := _SLUG.match(self.slug).end()) < len(self.slug):  # type: ignore[union-attr]  # it matches anything
            raise InvalidRequest(f"`slug` has {self.slug[wrong]!r}: expected a-z, 0-9, '_' and '-'")
        if unknown := [flag for flag in self.flags if flag not in MODEL_TYPES]:
            raise InvalidRequest(f"`model_type` has the unknown flag {unknown[0]!r}")
        for field, file in self.files():
            if _CHECKSUM.fullmatch(file.checksum) is None:
                raise InvalidRequest(f"`{field}` has the checksum {file.checksum!r}: expected blake3: and 64 digits")
        for key in ("router_mode", "kv_router_config") if self.router_config else ():
            if key not in (self.router_config or {}):
                raise InvalidRequest(f"`router_config` has no {key}: it must be complete")

    @property
    def flags(self) -> list[str]:
        """The flags of `model_type`."""
        return [flag.strip() for flag in self.model_type.split("|")] if self.model_type else []

    def files(self) -> Iterator[tuple[str, CardFile]]:
        """The name of the field, and the file that it names, in the order of `mdc_sum`; `extra_files` last."""
        for field in _FILE_FIELDS:
            value = getattr(self, field)
            if isinstance(value, PromptFormatter):
                yield field, value.file
            elif value:
                yield field, next(iter(value.values()))
        for file in self.extra_files or ():
            yield "extra_files", file

    def with_files(self, change: Callable[[CardFile], CardFile]) -> Card:
        """The same card, with `change` of each file."""
        changed: dict[str, Any] = {}
        for field in _FILE_FIELDS:
            value = getattr(self, field)
            if isinstance(value, PromptFormatter):
                changed[field] = value.with_file(change(value.file))
            elif value:
                changed[field] = {kind: change(file) for kind, file in value.items()}
        if self.extra_files:
            changed["extra_files"] = [change(file) for file in self.extra_files]
        return msgspec.structs.replace(self, **changed)

    def faults(self) -> list[str]:
        """Why a frontend would take the card and not serve the model: a text for each field. Usually empty."""
        needed: list[str] = []
        if self.model_input == "Tokens" and {"Chat", "Completions", "Embedding"} & set(self.flags):
            needed = ["model_info", "tokenizer"] + ["prompt_formatter"] * ("Chat" in self.flags)
        return [
            f"{field} is missing: the frontend makes tokens with it" for field in needed if not getattr(self, field)
        ]

    def effective_context_length(self) -> int:
        """Tokens: what the runtime configuration says, else what the model says, else `context_length`, else 0."""
        configured = (self.runtime_config or {}).get("context_length")
        for number in (configured, self.architectural_max_context_length, self.context_length):
            if isinstance(number, int):
                return number
        return 0

    def mdc_sum(self) -> str:
        """The checksum of the card, 64 hexadecimal digits: frontends send it with each request, and compare it.

        Instances whose sums differ are different models to a frontend (model_card.md 2.4). A frontend of Dynamo 1.3 knows
        no aliases, and leaves them out. Raises InvalidConfig without the package `blake3`.
        """
        from_needs = self.needs or []
        parts = [self.display_name.encode(), (self.source_path or "").encode()]
        extra = sorted((file.name, file.checksum.removeprefix("blake3:")) for file in self.extra_files or ())
        parts += [file.checksum.encode() for field, file in self.files() if field != "extra_files"]
        parts += [f"{name}\0{digest}".encode() for name, digest in extra]
        parts += [_u32(self.effective_context_length()), _u32(self.kv_cache_block_size)]
        parts += [bytes([_worker_number(self.worker_type)]), _u32(len(from_needs))]
        parts += [_u32(len(group)) + bytes(map(_worker_number, group)) for group in from_needs]
        if self.router_config:
            parts.append(_blake3(msgspec.json.encode(self.router_config)).digest())
        if self.aliases:
            names = [alias.encode() for alias in self.aliases]
            parts += [_u32(len(names)), *(_u32(len(name)) + name for name in names)]
        digest: str = _blake3(b"".join(parts)).hexdigest()
        return digest

    def check(self) -> None:
        """Raises InvalidRequest, which names the field, for a value of the wrong type: a frontend refuses the card."""
        try:
            _card_decoder.decode(msgspec.json.encode(self))
        except UNREADABLE as error:
            raise InvalidRequest(f"the card of the model {shown(self.display_name)}: {reason(error)}") from None


class ModelRecord(msgspec.Struct, frozen=True):
    """One record: which instance of which endpoint serves the model, and the model's card. Made with `of`."""

    type: Literal["Model"]
    namespace: str
    component: str
    endpoint: str
    instance_id: int
    card_json: Card
    model_suffix: str | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if not 0 <= self.instance_id <= _MAX_U64:
            raise ValueError(f"`instance_id` is {self.instance_id}: expected an unsigned 64-bit number")

    @classmethod
    def of(cls, card: Card, endpoint: EndpointId, instance_id: int) -> ModelRecord:
        """The record of a card. The card of a LoRA adapter gets its slug as the suffix."""
        return cls("Model", *endpoint, instance_id, card, card.slug if card.lora else UNSET)

    @property
    def endpoint_id(self) -> EndpointId:
        """The endpoint that serves the model."""
        return EndpointId(self.namespace, self.component, self.endpoint)

    @property
    def card(self) -> Card:
        """The model's card."""
        return self.card_json

    @property
    def key(self) -> str:
        """The key in the bucket of model cards."""
        base = f"{self.endpoint_id}/{self.instance_id:x}"
        return f"{base}/{self.model_suffix}" if self.model_suffix else base

    def faults(self) -> list[str]:
        """As `Card.faults`, and whether the card and the suffix agree."""
        faults = self.card.faults()
        if bool(self.card.lora) != bool(self.model_suffix):
            faults.append("lora and model_suffix disagree: expected both, or neither")
        return faults

    def must_match(self, other: ModelRecord) -> bool:
        """Whether a frontend compares the two cards: the same model, and the same endpoint or, in Dynamo 1.3, namespace.

        If their sums differ, it refuses the one that it sees second. Workers with different parts (`worker_type`) have
        different cards at different endpoints.
        """
        if self.card.display_name != other.card.display_name or bool(self.model_suffix) != bool(other.model_suffix):
            return False
        if self.endpoint_id == other.endpoint_id:
            return True
        return self.namespace == other.namespace and self.card.worker_type == other.card.worker_type

    def with_card(self, card: Card) -> ModelRecord:
        """The same record for another card."""
        return msgspec.structs.replace(self, card_json=card)

    def encode(self) -> bytes:
        """The record as Dynamo writes it: compact JSON, keys in its order."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> ModelRecord:
        """Read a record. Raises PayloadError, which names the field, for one that a frontend refuses."""
        try:
            return _record_decoder.decode(data)
        except UNREADABLE as error:
            raise PayloadError(f"not a model's record: {reason(error)}") from None


def slug(name: str) -> str:
    """The name in lower case, each other character than `a-z 0-9 _ -` replaced by `_`, without the leading `_`."""
    return _NOT_SLUG.sub("_", name.lower()).lstrip("_")


def checksum(data: bytes) -> str:
    """The checksum of a file's content, as `CardFile` has it. Raises InvalidConfig without the package `blake3`."""
    return f"blake3:{_blake3(data).hexdigest()}"


def lora_id(name: str) -> int:
    """Dynamo's number for a LoRA adapter: the first 8 bytes of the BLAKE3 of its name, big-endian, the lowest 31 bits."""
    return int.from_bytes(_blake3(name.encode()).digest()[:8], "big") & 0x7FFF_FFFF


def _blake3(data: bytes) -> Any:
    try:
        from blake3 import blake3
    except ImportError:
        raise InvalidConfig("model cards need blake3: pip install 'dynamo-fast[models]'") from None
    return blake3(data)


def _set_fields(formatter: PromptFormatter) -> list[tuple[str, Any]]:
    found = [(name, getattr(formatter, name)) for name in formatter.__struct_fields__]
    return [(name, value) for name, value in found if value is not UNSET]


def _only(formatter: PromptFormatter) -> Any:
    found = _set_fields(formatter)
    if len(found) != 1:
        raise ValueError(f"a template has {len(found)} of {', '.join(formatter.__struct_fields__)}: expected one")
    return found[0][1]


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _worker_number(name: str | UnsetType | None) -> int:
    return WORKER_TYPES.index(name) + 1 if isinstance(name, str) else 0


_FILE_FIELDS = ("model_info", "tokenizer", "prompt_formatter", "chat_template_file", "gen_config")
_NUMBERS = ("architectural_max_context_length", "context_length", "kv_cache_block_size", "migration_limit")
_card_decoder = msgspec.json.Decoder(Card)
_record_decoder = msgspec.json.Decoder(ModelRecord)
