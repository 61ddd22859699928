"""The clock of the stores' threads."""

from __future__ import annotations

import pytest

from dynamo_fast.discovery import background
from tests.discovery.waiting import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stores that are made from now on have this clock."""
    made = Clock()
    monkeypatch.setattr(background, "ThreadLoop", made.make_loop)
    return made
