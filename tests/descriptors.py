"""Open files for a test that needs many of them."""

from __future__ import annotations

import pytest

__all__ = ["descriptors_for"]


def descriptors_for(count: int) -> None:
    """Let this process open so many files; skip the test, saying why, where it may not."""
    resource = pytest.importorskip("resource", reason="this system tells no limit of open files")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
        except (OSError, ValueError):
            pytest.skip(f"{count} open files are needed, and {hard} are allowed (ulimit -n)")
