"""Settings of what a model tells Dynamo's frontends: the event plane, KV events."""

from __future__ import annotations

from dataclasses import dataclass

from dynamo_fast.config._settings import (
    POSITIVE,
    FromEnvironment,
    choice,
    setting,
    truth,
)
from dynamo_fast.errors import InvalidConfig

# Models ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EventPlaneConfig(FromEnvironment):
    """Where a worker publishes events to frontends (model_card.md 7)."""

    plane: str = setting("DYN_EVENT_PLANE", "zmq", choice("zmq", "nats"))
    """`nats` is refused: it is not offered. It is Dynamo's own default on etcd and Kubernetes, so a frontend there needs
    `DYN_EVENT_PLANE=zmq` too."""
    host: str = setting("DYN_EVENT_PLANE_HOST", "")
    """As `ResponseServerConfig.host`. (Dynamo binds every address, and takes this for what it advertises alone.)"""
    broker_enabled: bool = setting("DYN_ZMQ_BROKER_ENABLED", False, truth)
    """Refused if it is true: a broker is not offered."""
    broker_url: str = setting("DYN_ZMQ_BROKER_URL", "")
    """Refused if it is set."""
    queue: int = setting("DYNAMO_FAST_EVENT_QUEUE", 100_000, POSITIVE)
    """Messages that wait for one slow frontend; it loses further ones, notices, and asks for them."""

    def check_offered(self) -> None:
        """Raises InvalidConfig if these settings ask for something that is not offered."""
        if self.plane == "nats":
            raise InvalidConfig("DYN_EVENT_PLANE='nats' is not offered: set it to 'zmq', in the frontend too")
        for name, value in (("ENABLED", self.broker_enabled), ("URL", self.broker_url)):
            if value:
                raise InvalidConfig(
                    f"DYN_ZMQ_BROKER_{name}={value!r} is not offered: unset it, frontends connect directly"
                )


@dataclass(frozen=True)
class KvEventConfig(FromEnvironment):
    """What a worker keeps of its KV events, for frontends that come late or miss some (model_card.md 7.3)."""

    history: int = setting("DYNAMO_FAST_KV_EVENT_HISTORY", 1024, POSITIVE)
    """The newest events. A frontend that missed more gets all blocks instead."""
    max_blocks: int = setting("DYNAMO_FAST_MAX_KV_BLOCKS", 1_000_000, POSITIVE)
    """Blocks that are remembered as stored, of about 300 bytes each; beyond it the oldest are forgotten, and a frontend
    that comes late does not hear of them."""
