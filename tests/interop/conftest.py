from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.peers import VERSIONS, Peer, peer_worker


@pytest.fixture(scope="session", params=VERSIONS)
def worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A worker of each release, for all the tests that leave it as it was."""
    with peer_worker(request.param, tmp_path_factory.mktemp("peer")) as peer:
        yield peer


@pytest.fixture(params=VERSIONS)
def doomed_worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A worker of each release, for a test that kills it."""
    with peer_worker(request.param, tmp_path_factory.mktemp("peer")) as peer:
        yield peer
