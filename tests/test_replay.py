"""`replay.c` as a generator of paced items: every answer gets all its items, and an engine's answers step together.

Nothing here measures time: a step that is late is made up for, so what is written and in which order is always the same.
"""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from benchmarks.replay_worker import compiled, request_frame

if shutil.which("cc") is None:
    pytest.skip("there is no C compiler", allow_module_level=True)

LIMIT = 60.0
OPEN, PROLOGUE, DATA, END, HELLO = 1, 2, 3, 5, 16
PACE = 5_000
ITEMS, STREAMS, ENGINES = 6, 12, 4


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compiled("replay", str(tmp_path_factory.mktemp("replay")))


@pytest.fixture
def requests(program: str) -> Iterator[socket.socket]:
    """A connection on which it takes requests."""
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with socket.create_connection(("127.0.0.1", int(process.stdout.readline())), LIMIT) as connection:
            yield connection
        process.kill()


@pytest.fixture
def router() -> Iterator[socket.socket]:
    """Where answers are dialled."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        listener.settimeout(LIMIT)
        yield listener


def ask(requests: socket.socket, router: socket.socket, session: str | None = None) -> None:
    """Send `STREAMS` requests, and take their acknowledgements."""
    work = {"items": ITEMS, "size": 100, "pace": PACE, "engines": ENGINES}
    for number in range(STREAMS):
        requests.sendall(request_frame(work, router.getsockname()[1], subject=f"s{number}", session=session))


def exactly(connection: socket.socket, size: int) -> bytes:
    connection.settimeout(LIMIT)
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        assert more, "it has closed the connection"
        data += more
    return data


def two_part(connection: socket.socket) -> tuple[bytes, bytes]:
    header, body, _ = struct.unpack(">QQQ", exactly(connection, 24))
    return exactly(connection, header), exactly(connection, body)


def mux_frame(connection: socket.socket) -> tuple[int, int, bytes]:
    stream, word = struct.unpack(">II", exactly(connection, 8))
    return stream, word >> 24, exactly(connection, word & 0xFF_FFFF)


def test_each_answer_on_a_connection_of_its_own_has_all_items(requests: socket.socket, router: socket.socket) -> None:
    began = time.monotonic()
    ask(requests, router)
    total = 0
    for _ in range(STREAMS):
        connection, _ = router.accept()
        with connection:
            assert two_part(connection)[0].startswith(b'{"subject":"s')
            assert two_part(connection) == (b'{"error":null}', b"")
            for _ in range(ITEMS):
                header, body = two_part(connection)
                assert header == b""
                assert b"token" in body
                total += 1
            assert b"complete_final" in two_part(connection)[1]
            assert two_part(connection) == (b'"sentinel"', b"")
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    assert total == STREAMS * ITEMS
    assert time.monotonic() - began >= (ITEMS - 1) * PACE / 1e6  # no step is early


def test_the_engines_of_a_session_step_by_turns(requests: socket.socket, router: socket.socket) -> None:
    """One connection carries all answers; an engine's items come together, and each engine has its turn."""
    ask(requests, router, session="token")
    connection, _ = router.accept()
    with connection:
        assert two_part(connection)[0] == b'{"mux":1,"session":"token","worker":"replay"}'
        connection.sendall(struct.pack(">IIIII", 0, HELLO << 24 | 12, 1, 1 << 18, 1 << 22))
        began: list[int] = []
        items: list[int] = []
        ended: list[int] = []
        while len(ended) < STREAMS:
            number, kind, body = mux_frame(connection)
            if kind == OPEN:
                assert body == b"s%d" % (number - 1)
                assert mux_frame(connection) == (number, PROLOGUE, b"")
                began.append(number)
            elif kind == END:
                ended.append(number)
            else:
                assert kind == DATA
                assert number in began
                if b"token" in body:
                    items.append(number)
    assert sorted(began) == list(range(1, STREAMS + 1))
    assert {number: items.count(number) for number in set(items)} == dict.fromkeys(began, ITEMS)
    for index, number in enumerate(items):
        next_of_engine = number + ENGINES
        if next_of_engine in items[:index]:  # it has joined the engine's steps
            assert items[index + 1] == next_of_engine, items
