"""A loopback HTTP server that answers GETs as a test says, and remembers who asked with which headers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.loopback import Handler, LoopbackServer

Answer = tuple[int, Any]
"""A status, and a body: bytes as they are (HTML), everything else as JSON."""

INFO = {
    "type": "app_server_info_response",
    "backend": "local",
    "letta_code_version": "0.34.12",
    "protocol_version": 1,
    "capabilities": {"memory_management": True, "conversation_management": True, "split_channels": False},
}
MISSING = (401, {"error": "missing websocket bearer token"})
WRONG = (401, {"error": "invalid websocket bearer token"})
HTML = b"<html><body>Welcome</body></html>"


@dataclass
class Stub:
    """``answer(path, authorization)`` may be replaced at any time; ``seen`` holds each path with its token."""

    url: str
    answer: Callable[[str, str | None], Answer]
    seen: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]

    @property
    def tokens(self) -> list[str]:
        return [token for _, token in self.seen if token is not None]


def rest(version: str = "0.16.8") -> Callable[[str, str | None], Answer]:
    """A REST server that wants no password."""
    return lambda path, token: (
        (200, {"version": version, "status": "ok"})
        if path == "/v1/health/"
        else (200, [{"handle": "openai/gpt"}])
        if path == "/v1/models"
        else (404, {"detail": "Not Found"})
    )


def app_server(
    *, token: str | None = None, openai_api: bool = True, info: dict[str, Any] | None = None
) -> Callable[[str, str | None], Answer]:
    """An App Server as measured on 0.34.12."""

    def answer(path: str, authorization: str | None) -> Answer:
        if path not in ("/app-server-info", "/v1/models"):
            return 404, b""
        if token is not None and authorization != f"Bearer {token}":
            return MISSING if authorization is None else WRONG
        if path == "/app-server-info":
            return 200, INFO if info is None else info
        return (200, {"object": "list", "data": []}) if openai_api else (404, b"")

    return answer


@contextmanager
def stub_server(answer: Callable[[str, str | None], Answer]) -> Iterator[Stub]:
    class Asked(Handler):
        protocol_version = "HTTP/1.0"  # nothing is kept open, as not every test closes what asks

        def do_GET(self) -> None:
            token = self.headers.get("Authorization")
            stub.seen.append((self.path, token))
            status, body = stub.answer(self.path, token)
            self.send(status, body, "text/html" if isinstance(body, bytes) else None)

    with LoopbackServer(Asked) as server:
        stub = Stub(server.url, answer)
        yield stub
