"""The kept mutants: each changes what a user gets, and each has a test that fails for it.

`before` stands exactly once in `file`. Add one whenever a fault is found that no test saw.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant"]


class Mutant(NamedTuple):
    """One edit, and the test that kills it."""

    name: str
    file: str
    before: str
    after: str
    test: str


MUTANTS = [
    Mutant(
        "a deadline table that forgets its other keys when one expires",
        "dynamo_fast/deadlines.py",
        "            if self._deadlines and self._timer is None:  # it may have added a key, and with it a timer\n",
        "            if False:\n",
        "tests/test_deadlines.py",
    ),
]
