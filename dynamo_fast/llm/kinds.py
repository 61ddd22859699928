"""`ModelInput`, `ModelType` and `WorkerType`, as `dynamo.llm` has them: what kind of model an endpoint is."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Flag, IntEnum

from dynamo_fast.wire.model_card import WorkerTypeName

__all__ = ["ModelInput", "ModelType", "WorkerType", "role_fault"]


class ModelInput(IntEnum):
    """What the handler gets: the client's request (`Text`), token ids (`Tokens`) or tensors (`Tensor`)."""

    Text = 1
    Tokens = 2
    Tensor = 3

    def __str__(self) -> str:
        return f"ModelInput.{self.name}"

    __repr__ = __str__


class ModelType(Flag):
    """Which requests a frontend sends: `ModelType.Chat | ModelType.Completions`. `Empty` for none."""

    Empty = 0
    Chat = 1 << 0
    Completions = 1 << 1
    Embedding = 1 << 2
    TensorBased = 1 << 3
    Prefill = 1 << 4
    Images = 1 << 5
    Audios = 1 << 6
    Videos = 1 << 7
    Realtime = 1 << 8
    Classify = 1 << 9
    Pooling = 1 << 10
    Rerank = 1 << 11

    def supports_chat(self) -> bool:
        """Whether it takes chat requests."""
        return ModelType.Chat in self

    def supports_embedding(self) -> bool:
        """Whether it takes embedding requests."""
        return ModelType.Embedding in self

    def supports_classify(self) -> bool:
        """Whether it takes classification requests."""
        return ModelType.Classify in self

    def supports_pooling(self) -> bool:
        """Whether it takes pooling requests."""
        return ModelType.Pooling in self

    def supports_rerank(self) -> bool:
        """Whether it takes reranking requests."""
        return ModelType.Rerank in self

    @property
    def card_text(self) -> str:
        """As a model card has it: `Chat | Completions`."""
        return " | ".join(self._names())

    def __str__(self) -> str:
        return ",".join(name.lower().replace("tensorbased", "tensor") for name in self._names())

    def _names(self) -> list[str]:
        return [str(each.name) for each in ModelType.__members__.values() if each.value and each in self]


class WorkerType(IntEnum):
    """A worker's part: all of it (`Aggregated`), or one step of it."""

    Prefill = 1
    Decode = 2
    Encode = 3
    Aggregated = 4

    @property
    def card_text(self) -> WorkerTypeName:
        """As a model card has it: `aggregated`."""
        text: WorkerTypeName = self.name.lower()  # type: ignore[assignment]
        return text

    def __str__(self) -> str:
        return self.card_text

    def __repr__(self) -> str:
        return f"WorkerType.{self.name}"


def role_fault(model_type: ModelType, worker_type: WorkerType, needs: Sequence[Sequence[WorkerType]]) -> str | None:
    """Why a worker of this type cannot be such a model, in Dynamo's words; None if it can."""
    role = f"worker_type={worker_type.name}"
    if worker_type is WorkerType.Prefill and model_type not in (ModelType.Empty, ModelType.Prefill):
        return (
            f"{role} must not expose an OpenAI surface (got model_type=ModelType({model_type.card_text})). Use "
            "ModelType.Empty or ModelType.Prefill; the prefill role is carried by worker_type, and ModelType only "
            "describes the OpenAI surface, which prefill workers don't expose."
        )
    if worker_type is not WorkerType.Aggregated and not needs:
        return f"{role} requires a non-empty `needs` (at least one peer worker type the role depends on)"
    return None
