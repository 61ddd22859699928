from __future__ import annotations

import asyncio

import pytest

from tests.loops import LOOPS


@pytest.mark.skipif("uvloop" not in LOOPS, reason="there is no uvloop here")
@pytest.mark.parametrize("count", [1, 2], ids=["a server", "two servers"])
def test_a_uvloop_with_an_open_server_ends_and_says_so(count: int) -> None:
    loop = LOOPS["uvloop"]()
    for _ in range(count):
        loop.run_until_complete(asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0))
    with pytest.raises(ResourceWarning, match="unclosed resource <TCPServer"):
        loop.close()
    assert loop.is_closed()
