from __future__ import annotations

import os
import uuid

import pytest

from dynamo_fast.wire.ids import _batch, random_uuid


def test_they_are_random_uuids_of_version_4() -> None:
    texts = [random_uuid() for _ in range(2000)]
    assert len(set(texts)) == 2000
    for text in texts:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)


def test_they_are_made_of_random_bytes_as_the_standard_library_makes_them() -> None:
    random = bytes(range(256)) + bytes(16) + b"\xff" * 16 + os.urandom(1024)
    parts = [random[at : at + 16] for at in range(0, len(random), 16)]
    assert _batch(random) == [str(uuid.UUID(bytes=part, version=4)) for part in parts]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_draws_its_own() -> None:
    random_uuid()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, random_uuid().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 36).decode() != random_uuid()
    os.close(reader)
    os.close(writer)
