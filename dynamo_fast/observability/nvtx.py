"""Ranges for NVIDIA's profilers (Nsight Systems), under the names of Dynamo 1.6.1 (observability.md 5).

    transport.tcp.request               the request is sent - the worker has begun its answer
      transport.tcp.send                inside it: sent - acknowledged
      transport.response.wait_backend   inside it: acknowledged - the worker has begun its answer

The ranges of several requests overlap on one thread, so each is begun and ended by its handle (`start_range`).
`DYN_ENABLE_RUST_NVTX` or `DYNAMO_FAST_NVTX` switches them on. Without them nothing of this runs.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

from dynamo_fast.errors import InvalidConfig

__all__ = ["RequestRanges", "load_nvtx"]


class RequestRanges:
    """The ranges of one request. A router makes it just before it sends the request, on its loop; `end` ends it."""

    __slots__ = ("_inner", "_nvtx", "_outer")

    def __init__(self, kind: str) -> None:
        """`kind`: of the transport."""
        self._nvtx = load_nvtx()
        self._outer = self._nvtx.start_range(f"transport.{kind}.request")
        self._inner = self._nvtx.start_range("transport.tcp.send")  # Dynamo's name, over NATS too

    def acknowledged(self, _: object = None) -> None:
        """The worker has acknowledged the request, or the wait for that has ended."""
        if self._outer is not None:
            self._nvtx.end_range(self._inner)
            self._inner = self._nvtx.start_range("transport.response.wait_backend")

    def end(self, _: object = None) -> None:
        """The worker has begun its answer, or it will not."""
        if self._outer is not None:
            self._nvtx.end_range(self._inner)
            self._nvtx.end_range(self._outer)
            self._outer = None


@cache
def load_nvtx() -> ModuleType:
    """The package. Raises InvalidConfig if it is not installed."""
    try:
        import nvtx
    except ImportError as error:
        raise InvalidConfig(
            f"DYN_ENABLE_RUST_NVTX or DYNAMO_FAST_NVTX is set, but {error}: pip install dynamo_fast[nvtx]"
        ) from error
    module: ModuleType = nvtx
    return module
