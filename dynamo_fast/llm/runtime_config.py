"""`ModelRuntimeConfig`, as `dynamo.llm` has it: what a model card says about the running engine.

Its attributes take the types that Dynamo's take, and raise the same classes of errors. Attributes that have no value are
None. It is the union of what Dynamo 1.3.1 and 1.6.1 have.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from dynamo_fast.wire.address import EndpointId

__all__ = ["ModelRuntimeConfig"]

_U32 = (1 << 32) - 1
_U64 = (1 << 64) - 1
_TOPOLOGY_TAINT = "dynamo.topology/"
_TOKENIZERS = ("default", "fastokens", "basetenkenizer")
_ENFORCEMENTS = ("required", "preferred")
_STRUCTURAL_TAG: dict[str, tuple[Any, ...]] = {
    "scope": ("auto", "always"),
    "schema": ("auto", "strict"),
    "allow_tool_calls_with_structured_output": (False, True),
    "exclude_special_tokens": (False, True),
    "reasoning_boundary": ("auto", "structural_tag", "backend"),
    "tool_arguments_any_order": (False, True),
}

Check = Callable[[str, Any], Any]


def _wrong_type(name: str, value: Any, wanted: str) -> TypeError:
    return TypeError(f"argument '{name}': '{type(value).__name__}' object cannot be converted to '{wanted}'")


def _number(limit: int) -> Check:
    def check(name: str, value: Any) -> int:
        if not isinstance(value, int):
            raise TypeError(f"argument '{name}': '{type(value).__name__}' object cannot be interpreted as an integer")
        if value < 0:
            raise OverflowError("can't convert negative int to unsigned")
        if value > limit:
            raise OverflowError("out of range integral type conversion attempted")
        return value

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "PyBool")
    return value


def _text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _wrong_type(name, value, "PyString")
    return value


def _texts(name: str, value: Any) -> set[str]:
    if not isinstance(value, (set, frozenset)):
        raise _wrong_type(name, value, "PySet")
    return {str(_text(name, each)) for each in value}


def _domains(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _wrong_type(name, value, "PyDict")
    return {str(_text(name, key)): str(_text(name, each)) for key, each in value.items()}


def _tokenizer(name: str, value: Any) -> str | None:
    text = _text(name, value)
    if text is not None and text not in _TOKENIZERS:
        raise ValueError(f"invalid tokenizer backend {text!r} (expected 'default', 'fastokens', or 'basetenkenizer')")
    return text


def _enforcement(name: str, value: Any) -> str | None:
    text = _text(name, value)
    if text is not None and text not in _ENFORCEMENTS:
        raise ValueError(f"{name} must be 'required' or 'preferred', got {json.dumps(text)}")
    return text


def _weight(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        raise TypeError(f"argument '{name}': must be real number, not {type(value).__name__}")
    return float(value)


def _endpoint(name: str, value: Any) -> str | None:
    """`namespace.component.endpoint`, kept as Dynamo shows it: with `/` between."""
    text = _text(name, value)
    return text and str(EndpointId.parse(text.replace("/", ".")))


#: Attribute -> its check and its first value, in the order of the card.
_ATTRIBUTES: dict[str, tuple[Check, Any]] = {
    "context_length": (_number(_U32), None),
    "total_kv_blocks": (_number(_U64), None),
    "max_num_seqs": (_number(_U64), None),
    "max_num_batched_tokens": (_number(_U64), None),
    "tool_call_parser": (_text, None),
    "reasoning_parser": (_text, None),
    "tokenizer_backend": (_tokenizer, None),
    "exclude_tools_when_tool_choice_none": (_flag, True),
    "data_parallel_start_rank": (_number(_U32), 0),
    "data_parallel_size": (_number(_U32), 1),
    "enable_local_indexer": (_flag, True),
    "kv_event_publishing_enabled": (_flag, None),
    "kv_event_source_mode": (_text, None),
    "kv_state_endpoint": (_endpoint, None),
    "enable_eagle": (_flag, False),
    "taints": (_texts, frozenset()),
    "stable_routing_id": (_text, None),
    "topology_domains": (_domains, {}),
    "kv_transfer_domain": (_text, None),
    "kv_transfer_enforcement": (_enforcement, None),
    "kv_transfer_preferred_weight": (_weight, None),
}
#: These are in a card even if they have no value.
_ALWAYS = ("total_kv_blocks", "max_num_seqs", "max_num_batched_tokens", "tool_call_parser", "reasoning_parser")


class ModelRuntimeConfig:
    """The limits and the features of an engine, for the frontend and its router. A plain value, owned by its maker.

    `ModelRuntimeConfig(context_length=4096, total_kv_blocks=100)` sets attributes at once; Dynamo's takes none.
    """

    context_length: int | None
    total_kv_blocks: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    tool_call_parser: str | None
    reasoning_parser: str | None
    tokenizer_backend: str | None
    exclude_tools_when_tool_choice_none: bool
    data_parallel_start_rank: int
    data_parallel_size: int
    enable_local_indexer: bool
    kv_event_publishing_enabled: bool | None
    kv_event_source_mode: str | None
    kv_state_endpoint: str | None
    enable_eagle: bool
    taints: set[str]
    stable_routing_id: str | None
    topology_domains: dict[str, str]
    kv_transfer_domain: str | None
    kv_transfer_enforcement: str | None
    kv_transfer_preferred_weight: float | None
    _bootstrap: tuple[str | None, int | None]
    _engine_specific: dict[str, str]
    _structural_tag: dict[str, Any] | None
    _tag_words: dict[str, str]

    __slots__ = (*_ATTRIBUTES, "_bootstrap", "_engine_specific", "_structural_tag", "_tag_words")

    def __init__(self, **attributes: Any) -> None:
        for name, (_, first) in _ATTRIBUTES.items():
            object.__setattr__(self, name, first)
        private: dict[str, Any] = {
            "taints": set(),
            "topology_domains": {},
            "_engine_specific": {},
            "_bootstrap": (None, None),
            "_structural_tag": None,
            "_tag_words": {"mode": "off", "scope": "auto", "schema": "auto"},
        }
        for name, value in private.items():
            object.__setattr__(self, name, value)
        for name, value in attributes.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _ATTRIBUTES:
            if hasattr(type(self), name):
                raise AttributeError(f"attribute {name!r} of 'ModelRuntimeConfig' objects is not writable")
            raise AttributeError(f"'ModelRuntimeConfig' object has no attribute {name!r}")
        check, _ = _ATTRIBUTES[name]
        object.__setattr__(self, name, check(name, value))

    @property
    def runtime_data(self) -> dict[str, str]:
        """What `set_engine_specific` has stored: JSON texts by their keys."""
        return dict(self._engine_specific)

    def set_engine_specific(self, key: str, value: str) -> None:
        """Store a JSON text under a key. Raises ValueError for a text that is no JSON."""
        if not isinstance(value, str):
            raise _wrong_type("value", value, "PyString")
        try:
            parsed = json.loads(value)
        except ValueError as error:
            raise ValueError(f"the value of {key!r} is no JSON: {error}") from None
        self._engine_specific[key] = json.dumps(parsed, separators=(",", ":"))

    def get_engine_specific(self, key: str) -> Any:
        """The parsed value under a key; None if there is none."""
        text = self._engine_specific.get(key)
        return None if text is None else json.loads(text)

    @property
    def bootstrap_host(self) -> str | None:
        """See `set_disaggregated_endpoint`."""
        return self._bootstrap[0]

    @property
    def bootstrap_port(self) -> int | None:
        """See `set_disaggregated_endpoint`."""
        return self._bootstrap[1]

    def set_disaggregated_endpoint(self, bootstrap_host: str | None = None, bootstrap_port: int | None = None) -> None:
        """Where a decode worker reaches this prefill worker."""
        host = _text("bootstrap_host", bootstrap_host)
        port = None if bootstrap_port is None else _number(0xFFFF)("bootstrap_port", bootstrap_port)
        object.__setattr__(self, "_bootstrap", (host, port))

    @property
    def structural_tag(self) -> dict[str, Any] | None:
        """What `set_structural_tag` has set, with every key; None if it is off."""
        return None if self._structural_tag is None else dict(self._structural_tag)

    def set_structural_tag(self, structural_tag: dict[str, Any] | None = None) -> None:
        """Switch structural tags on with these options, or off with None. Raises ValueError for an unknown option."""
        if structural_tag is not None and not isinstance(structural_tag, dict):
            raise _wrong_type("structural_tag", structural_tag, "PyDict")
        for name, value in (structural_tag or {}).items():
            if name not in _STRUCTURAL_TAG:
                known = ", ".join(f"`{each}`" for each in _STRUCTURAL_TAG)
                raise ValueError(f"Invalid structural_tag config: unknown field `{name}`, expected one of {known}")
            _check_word("structural_tag config", value, _STRUCTURAL_TAG[name])
        tag: dict[str, Any] | None = None
        if structural_tag is not None:
            tag = {name: structural_tag.get(name, words[0]) for name, words in _STRUCTURAL_TAG.items()}
            if "exclude_special_tokens" not in structural_tag:  # Dynamo writes it only if it was chosen
                del tag["exclude_special_tokens"]
        object.__setattr__(self, "_structural_tag", tag)
        chosen = {"scope": tag["scope"], "schema": tag["schema"]} if tag else {"scope": "auto", "schema": "auto"}
        object.__setattr__(self, "_tag_words", {"mode": "on" if tag else "off", **chosen})

    def set_structural_tag_mode(self, mode: str) -> None:
        """Dynamo 1.3's way: `off` or `on`."""
        self._tag_words["mode"] = _check_word("structural_tag_mode", mode, ("off", "on"))

    def set_structural_tag_scope(self, scope: str) -> None:
        """Dynamo 1.3's way: `auto` or `always`."""
        self._tag_words["scope"] = _check_word("structural_tag_scope", scope, ("auto", "always"))

    def set_structural_tag_schema(self, schema: str) -> None:
        """Dynamo 1.3's way: `auto` or `strict`."""
        self._tag_words["schema"] = _check_word("structural_tag_schema", schema, ("auto", "strict"))

    def to_card(self) -> dict[str, Any]:
        """The object of a model card, keys in Dynamo's order.

        Raises ValueError for attributes that do not fit each other, with Dynamo's text.
        """
        self._check()
        values: dict[str, Any] = {name: getattr(self, name) for name in _ATTRIBUTES}
        domains = {f"{_TOPOLOGY_TAINT}{key}={value}" for key, value in self.topology_domains.items()}
        values["taints"] = sorted(self.taints | domains)
        if self.kv_state_endpoint is not None:
            values["kv_state_endpoint"] = EndpointId(*self.kv_state_endpoint.split("/"))._asdict()
        card: dict[str, Any] = {}
        for name, value in values.items():
            if name in _ALWAYS or value not in (None, [], {}):
                card[name] = value
            if name == "reasoning_parser":
                card["tool_call_arguments_format"] = "json_string"
            elif name == "tokenizer_backend":
                if self._structural_tag is not None:
                    card["structural_tag"] = self.structural_tag
                card.update({f"structural_tag_{word}": chosen for word, chosen in self._tag_words.items()})
            elif name == "kv_state_endpoint":
                self._add_engine(card)
        return card

    def _add_engine(self, card: dict[str, Any]) -> None:
        if self._engine_specific:
            card["runtime_data"] = {key: json.loads(text) for key, text in self._engine_specific.items()}
        bootstrap = {"bootstrap_host": self.bootstrap_host, "bootstrap_port": self.bootstrap_port}
        if given := {key: value for key, value in bootstrap.items() if value is not None}:
            card["disaggregated_endpoint"] = given

    def _check(self) -> None:
        if self.data_parallel_size < 1:
            raise ValueError("__all__: data_parallel_size must be at least 1")
        if self.kv_transfer_domain is not None and self.kv_transfer_domain not in self.topology_domains:
            raise ValueError("__all__: kv_transfer_domain must reference a key in topology_domains")
        if self.kv_transfer_enforcement is not None and self.kv_transfer_domain is None:
            raise ValueError("__all__: kv_transfer_enforcement requires kv_transfer_domain")
        if self.kv_transfer_preferred_weight is not None and self.kv_transfer_enforcement != "preferred":
            raise ValueError(
                "__all__: kv_transfer_preferred_weight can only be set when kv_transfer_enforcement is preferred"
            )


def _check_word(name: str, value: Any, words: tuple[Any, ...]) -> Any:
    if value not in words or isinstance(value, bool) != isinstance(words[0], bool):
        raise ValueError(f"Invalid {name}: {value!r}, expected {' or '.join(map(repr, words))}")
    return value
