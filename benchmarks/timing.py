"""How the benchmarks time short calls: as `dynamo-fast bench codec` does."""

from __future__ import annotations

from dynamo_fast.cli.timing import machine, measure

__all__ = ["machine", "measure"]
