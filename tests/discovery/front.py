"""What stands between a client and a real etcd: it forwards, goes deaf, cuts connections, or answers nonsense itself."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Front", "front", "http"]


def http(status: str, body: bytes, content_type: str = "application/json", *, length: int | None = None) -> bytes:
    """A whole raw answer; `length` is what its header claims."""
    claimed = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {claimed}\r\n\r\n".encode() + body


class _Connection:
    """One client's connection, and ours to etcd: a thread for each direction."""

    def __init__(self, owner: Front, client: socket.socket, server: socket.socket) -> None:
        self.owner = owner
        self.client = client
        self.server = server
        self.is_watch = False
        self.deaf = False
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._forward, self._back)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for each in (self.client, self.server):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def end(self) -> None:
        """Close it and everything that it has."""
        self.deaf = False
        self.close()
        for thread in self._threads:
            thread.join()
        self.client.close()
        self.server.close()

    def _forward(self) -> None:
        try:
            while data := self.client.recv(1 << 16):
                self.is_watch = self.is_watch or b"POST /v3/watch" in data
                nonsense = self.owner.nonsense
                if nonsense is not None:
                    self.client.sendall(next(nonsense))
                    self.owner.answered += 1
                    break
                self.server.sendall(data)
        except OSError:
            pass
        self.close()

    def _back(self) -> None:
        try:
            while data := self.server.recv(1 << 16):
                if not self.deaf:
                    self.client.sendall(data)
        except OSError:
            pass
        if not self.deaf:
            self.close()


class Front:
    """Listens on a port of its own and forwards to `port`, as long as nothing else is asked of it."""

    def __init__(self, port: int) -> None:
        self.nonsense: Iterator[bytes] | None = None
        """Raw answers, one for each request from now on; the connection ends after it."""
        self.answered = 0
        """Requests that got nonsense."""
        self._target = port
        self._connections: list[_Connection] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def answer(self, *answers: bytes) -> None:
        """Answer with these, in turn, and end the watches that there are."""
        self.nonsense = itertools.cycle(answers)
        self.cut()

    def forward(self) -> None:
        """Be a faithful front again."""
        self.nonsense = None

    def watches(self) -> list[_Connection]:
        return [each for each in self._connections if each.is_watch]

    def deafen(self) -> None:
        """The watches that there are stay connected and hear nothing more."""
        for each in self.watches():
            each.deaf = True

    def cut(self) -> None:
        """The watches that there are lose their connection."""
        for each in self.watches():
            each.close()
            each.is_watch = False

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for each in self._connections:
            each.end()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            self._connections.append(_Connection(self, client, server))


@contextmanager
def front(port: int) -> Iterator[Front]:
    made = Front(port)
    try:
        yield made
    finally:
        made.close()
