"""A client of Letta's App Server for tests, with no code in common with the library's own transport.

What it reads back decides whether a report arrived, so it must not share that transport's mistakes.  It opens a
socket for each call and closes it when nothing is under way: the server treats a conversation that nobody
watches any more in its own way, and a socket kept open here would hide that from the tests.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

__all__ = ["AppServerClient", "Frame", "RequestFailed", "Turn", "TurnFailed", "content_text"]

Frame: TypeAlias = dict[str, Any]
"""One JSON message of the protocol, in either direction."""

_TIMEOUT = 60.0
_PAGE = 100


class RequestFailed(RuntimeError):
    """The server answered ``success: false``; the message is its ``error``."""


class TurnFailed(RuntimeError):
    """The agent's turn ended otherwise than by an answer."""

    def __init__(self, stop_reason: str, error: str) -> None:
        super().__init__(f"{stop_reason}: {error}")
        self.stop_reason = stop_reason
        self.error = error


@dataclass(frozen=True)
class Turn:
    """One finished turn: what the agent said, and the run it said it in."""

    reply: str
    run_id: str | None


class AppServerClient:
    """Synchronous; may be used from several threads at once, as every call has a socket of its own."""

    def __init__(self, url: str, token: str | None = None, timeout: float = _TIMEOUT) -> None:
        self.url = url
        self.token = token
        self.timeout = timeout

    @contextmanager
    def socket(self) -> Iterator[ClientConnection]:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token is not None else None
        # No limits: a page of messages may be long, and a socket with a full queue of unread frames stops
        # reading, so that it would not see the answer to its own closing.
        options: dict[str, Any] = {"max_size": None, "max_queue": None, "open_timeout": self.timeout}
        with connect(f"{self.url}/ws", additional_headers=headers, **options) as socket:
            yield socket

    def request(self, kind: str, **fields: Any) -> Frame:
        """Ask, and return the answer; RequestFailed if it says so, TimeoutError if there is none."""
        return self.request_all(kind, **fields)[-1]

    def request_all(self, kind: str, **fields: Any) -> list[Frame]:
        """As :meth:`request`, for answers in several frames (they have ``done: false`` but for the last)."""
        request_id = uuid.uuid4().hex
        answers: list[Frame] = []
        with self.socket() as socket:
            socket.send(json.dumps({"type": kind, "request_id": request_id, **fields}))
            for frame in self._frames(socket, f"an answer to {kind}"):
                if frame.get("request_id") != request_id:
                    continue
                if frame.get("success") is False:
                    raise RequestFailed(str(frame.get("error")))
                answers.append(frame)
                if frame.get("done", True):
                    break
        return answers

    def create_agent(self, **settings: Any) -> str:
        """Returns the agent's id; ``settings`` need a ``model``."""
        return str(self.request("agent_create", body=settings)["agent"]["id"])

    def create_conversation(self, agent_id: str, **settings: Any) -> str:
        body = {"agent_id": agent_id, **settings}
        return str(self.request("conversation_create", body=body)["conversation"]["id"])

    def say(self, agent_id: str, text: str, conversation: str = "default") -> Turn:
        """Say something as a person, and wait for the end of the turn it went into.

        Raises TurnFailed when the turn fails, and RequestFailed when the input is not accepted.
        """
        message_id, request_id = f"person-{uuid.uuid4()}", uuid.uuid4().hex
        runtime = {"agent_id": agent_id, "conversation_id": conversation}
        message = {"role": "user", "content": text, "client_message_id": message_id}
        payload = {"kind": "create_message", "messages": [message]}
        begun, reply = False, ""
        with self.socket() as socket:
            request = {"type": "input", "request_id": request_id, "runtime": runtime, "payload": payload}
            socket.send(json.dumps(request))
            for frame in self._frames(socket, "the end of the turn"):
                kind, delta = frame.get("type"), frame.get("delta", {})
                if frame.get("runtime") != runtime:
                    continue
                if kind == "input_accepted" and frame.get("request_id") == request_id:
                    if not frame["accepted"]:
                        raise RequestFailed(str(frame.get("error")))
                    begun = begun or frame["disposition"] == "started"
                elif kind == "stream_delta" and delta.get("otid") == message_id:
                    begun = True  # it had waited in the queue while another turn ran
                elif kind == "stream_delta" and delta.get("message_type") == "assistant_message" and begun:
                    reply += content_text(delta)
                elif kind == "turn_finished" and begun:
                    if frame["stop_reason"] != "end_turn":
                        raise TurnFailed(frame["stop_reason"], str(frame.get("error")))
                    return Turn(reply, frame.get("run_id"))
        raise AssertionError("unreachable: waiting ends in a turn or an error")

    def conversations(self, agent_id: str) -> list[Frame]:
        """The agent's conversations, newest first; the default one is not among them."""
        found: list[Frame] = []
        query: dict[str, Any] = {"agent_id": agent_id, "limit": _PAGE}
        while True:
            page = self.request("conversation_list", query=query)["conversations"]
            found += page
            if len(page) < _PAGE:
                return found
            query["after"] = page[-1]["id"]

    def messages(self, agent_id: str, conversation: str = "default") -> list[Frame]:
        """Everything stored in the conversation, oldest first; what a client calls an id is in ``otid``."""
        newest_first: list[Frame] = []
        query: dict[str, Any] = {"agent_id": agent_id, "limit": _PAGE}
        while True:
            page = self.request("conversation_messages_list", conversation_id=conversation, query=query)
            newest_first += page["messages"]
            if not page["has_more"]:
                return newest_first[::-1]
            query["before"] = page["next_before"]

    def queued(self, agent_id: str, conversation: str = "default") -> list[str]:
        """What clients call the messages that wait behind a turn, or behind a restart, oldest first."""
        runtime = {"agent_id": agent_id, "conversation_id": conversation}
        queue: list[Frame] = []
        with self.socket() as socket:
            # Only a look: by default it would also see to approvals that were left over, and wait for the turn.
            look = {"type": "sync", "request_id": "queued", "runtime": runtime, "recover_approvals": False}
            socket.send(json.dumps(look))
            for frame in self._frames(socket, "an answer to sync"):
                if frame["type"] == "update_queue" and frame.get("runtime") == runtime:
                    queue = frame["queue"]
                elif frame.get("request_id") == "queued":
                    break
        return [str(item["client_message_id"]) for item in queue]

    def memory(self, agent_id: str) -> dict[str, str]:
        """The text of every memory file, by path, without front matter; uncommitted ones included."""
        frames = self.request_all("list_memory", agent_id=agent_id)
        return {entry["relative_path"]: entry["content"] for frame in frames for entry in frame["entries"]}

    def memory_file(self, agent_id: str, path: str) -> str:
        """One memory file as it stands, front matter included."""
        return str(self.request("read_memory_file", agent_id=agent_id, path=path)["content"])

    def memory_commits(self, agent_id: str) -> list[str]:
        """The messages of the commits to the agent's memory, newest first."""
        commits = self.request("memory_history", agent_id=agent_id, path="MEMORY.md")["commits"]
        return [str(commit["message"]) for commit in commits]

    def _frames(self, socket: ClientConnection, what: str) -> Iterator[Frame]:
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                data = socket.recv(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise TimeoutError(f"no sign of {what} within {self.timeout:g} s") from None
            except ConnectionClosed as error:
                raise ConnectionError(f"the server went away before {what}") from error
            yield json.loads(data)


def content_text(message: Frame) -> str:
    """The text of a listed message or a ``stream_delta``; its parts joined by line ends."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content or [])
