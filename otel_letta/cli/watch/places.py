"""The two places from which tasks can be read: a receiver, and the board of an agent."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from otel_letta.errors import LettaError
from otel_letta.letta.transport import Transport
from otel_letta.runtime.deadline import Deadline
from otel_letta.text import clean_line

_PATIENCE = 10.0
"""Seconds for an answer."""
_MOST_BYTES = 4_000_000
_MARK = "otel_letta"
"""Key in a block's metadata that makes it a board of ours."""
_CAP = 300


class Trouble(Exception):
    """What kept the tasks from being read just now; another try may go well."""


class Refused(Trouble):
    """What keeps them from being read until somebody does something about it."""


class NoReceiver(Refused):
    """Nothing that has tasks to show answers there."""


class Board(NamedTuple):
    """One board's lines, as they stand there."""

    title: str
    lines: list[str]


class Receiver:
    """A receiver, `otel-letta serve`, by its address.

    Args:
        url: without a path.
        token: where one is needed.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.place = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(headers=headers, timeout=_PATIENCE)

    def read(self) -> Mapping[str, Any]:
        """Return the receiver's document; see `otel_letta.serve.page`.

        Raises:
            Trouble: not now.
        """
        try:
            with self._client.stream("GET", f"{self.place}/tasks.json") as answer:
                return self._document(answer)
        except httpx.ConnectError:
            raise NoReceiver(f"Nothing listens on {self.place}") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise Refused(f"{self.place} is no address: it begins with http:// or https://") from None
        except httpx.HTTPError as error:
            raise Trouble(f"{self.place} does not answer ({type(error).__name__})") from None

    def _document(self, answer: httpx.Response) -> Mapping[str, Any]:
        if answer.status_code == 401:
            raise Refused(f"{self.place} needs a token: set OTEL_LETTA_SERVE_TOKEN, or use --token-file")
        if answer.status_code == 404:
            raise NoReceiver(f"{self.place} is no otel-letta serve, or one of an older version")
        if answer.status_code != 200:
            raise Trouble(f"{self.place} answers with HTTP {answer.status_code}")
        body = b""
        for part in answer.iter_bytes():
            body += part
            if len(body) > _MOST_BYTES:
                raise NoReceiver(f"{self.place} sends too much to be tasks")
        try:
            found = httpx.Response(200, content=body).json()
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(found.get(name), list) for name in _LISTS):
            raise NoReceiver(f"{self.place} is no otel-letta serve")
        return found

    def close(self) -> None:
        """Release the connection."""
        self._client.close()


_LISTS = ("waiting", "working", "ended", "troubles")


class Boards:
    """The boards of a Letta agent that otel_letta keeps, from whichever programs.

    Args:
        transport: the server; closed by `close`.
        agent_id: None is the configured one.
    """

    def __init__(self, transport: Transport, agent_id: str | None = None) -> None:
        self._transport = transport
        lane = transport.lane(agent_id, None)
        self._agent_id = lane.agent_id
        self.place = str(lane)

    def read(self) -> list[Board]:
        """Return the boards. May block for the network.

        Raises:
            Trouble: not now.
        """
        try:
            blocks = self._transport.blocks(self._agent_id, until=Deadline.after(_PATIENCE))
        except LettaError as error:
            raise Trouble(clean_line(str(error), _CAP)) from None
        ours = sorted((block for block in blocks if _MARK in block.metadata), key=lambda block: block.label)
        return [Board(clean_line(block.label, _CAP), _lines_of(block.value)) for block in ours]

    def close(self) -> None:
        """Release the connections."""
        self._transport.close()


def _lines_of(value: str) -> list[str]:
    # The board escapes what could be taken for markup by an agent; here it cannot.
    return [clean_line(html.unescape(line), _CAP) for line in value.splitlines()[:500]]
