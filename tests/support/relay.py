"""A TCP relay on loopback that can lose a server's answers: its clients' requests arrive, and they never hear of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit

__all__ = ["Relay"]


class Relay:
    """Stands before the server at ``url``; for use in a ``with`` block.

    A connection whose answers are lost stays open to both sides until the server closes its own.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._upstream = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"{parts.scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[_Connection] = []
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone does not wake a thread that waits in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            connection.close()

    def lose_answers(self) -> None:
        """From now on, on the connections that are open now; later ones work."""
        for connection in self._connections:
            connection.deaf = True

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._upstream)
            except OSError:
                client.close()
                continue
            self._connections.append(_Connection(client, server))


class _Connection:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.deaf = False
        for work in (self._requests, self._answers):
            threading.Thread(target=work, name="relay connection", daemon=True).start()

    def _requests(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.client.recv(65_536):
                self.server.sendall(data)
        if not self.deaf:
            self.close()

    def _answers(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.server.recv(65_536):
                if not self.deaf:
                    self.client.sendall(data)
        self.close()

    def close(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
