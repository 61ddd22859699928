"""The drop-in for `dynamo.health_check`: the request with which a worker checks its own engine.

from dynamo_fast.health_check import HealthCheckPayload     # was: from dynamo.health_check import ...

class MyHealthCheck(HealthCheckPayload):
    def __init__(self) -> None:
        self.default_payload = {"token_ids": [1], "stop_conditions": {"max_tokens": 1}}
        super().__init__()

endpoint.serve_endpoint(generate, health_check_payload=MyHealthCheck().to_dict())
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynamo_fast.config import text_of_variable
from dynamo_fast.logs import get_logger

__all__ = ["HEALTH_CHECK_KEY", "HealthCheckPayload", "load_health_check_from_env"]

HEALTH_CHECK_KEY = "_HEALTH_CHECK"
"""The key that marks a request as a health check."""

logger = get_logger(__name__)


def load_health_check_from_env(env_var: str = "DYN_HEALTH_CHECK_PAYLOAD") -> dict[str, Any] | None:
    """The JSON object in a variable, or in the file that it names as `@/path/to/file.json`.

    Returns None if the variable is not set. What cannot be read, and JSON that is no object, is logged, and None.
    """
    text = text_of_variable(env_var)
    if not text:
        return None
    try:
        payload = json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        logger.warning("Failed to parse %s: %s", env_var, error)
        return None
    if not isinstance(payload, dict):
        logger.warning("%s must be a JSON object (dict). Got: %s", env_var, type(payload).__name__)
        return None
    return payload


class HealthCheckPayload:
    """The payload for health checks of one kind of engine.

    A subclass sets `default_payload` and then calls this constructor. `DYN_HEALTH_CHECK_PAYLOAD` takes its place.
    """

    default_payload: dict[str, Any]

    def __init__(self) -> None:
        if not hasattr(self, "default_payload"):
            raise NotImplementedError("Subclass must set self.default_payload before calling super().__init__()")
        self._payload: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The payload. The environment is read the first time, and never again."""
        if self._payload is None:
            self._payload = load_health_check_from_env() or self.default_payload
        return self._payload

    def __repr__(self) -> str:
        return f"{type(self).__name__}(payload={self.to_dict()!r})"
