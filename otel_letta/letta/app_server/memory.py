"""The board on an App Server: a file in the agent's memory.

It stands in the root of the memory: files there are in the agent's prompt, and those in folders, ``system/`` among
them, are not; nor does a file in the root need an index. ``MEMORY.md`` is the root's own index. This, and what the
comments call measured, was measured on 0.34.12.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from otel_letta.errors import LettaConflictError, LettaUnsupportedError
from otel_letta.letta.answers import rows
from otel_letta.letta.app_server.conversations import retrieve_agent
from otel_letta.letta.app_server.socket import Frame, Session
from otel_letta.letta.transport import Block

_logger = logging.getLogger(__name__)

_LOOKS_AFTER_TURN = 0.5
"""Seconds after a turn within which the server checks whether the agent's memory is committed."""
_LOOKS_IN_COMMITS = 5.0
"""The same on a busy machine, in times that a commit takes there: both are a git that the server starts."""
_SOON = 3.0
"""Seconds to wait for the lock. A long turn must not keep the board from its readers."""
_MARK = "otel_letta "
"""Begins the subject of each commit of a board, before what the board's keeper notes about it."""
_HISTORY = 500
"""How many of the newest commits are searched for such notes."""
_LIMIT = 5_000
"""Characters of a board. The server takes files of up to 20,000 and a root of 65,536 in all."""


class Memory:
    """The memory files of a server's agents, written between our turns where possible.

    The server checks them right after each turn, and asks the agent to see to a file that is not committed by then
    (measured).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Held while a file is written, and during our turns."""
        self._turn_ended = -math.inf
        self._commit_took = 0.0

    @contextmanager
    def during_turn(self) -> Iterator[None]:
        """Keep the files as they are, as far as it is our turn that asks for it."""
        with self._held():
            try:
                yield
            finally:
                self._turn_ended = time.monotonic()

    @contextmanager
    def _held(self) -> Iterator[None]:
        mine = self._lock.acquire(timeout=_SOON)
        try:
            yield
        finally:
            if mine:
                self._lock.release()

    def blocks(self, session: Session, agent_id: str) -> list[Block]:
        """See `Board.blocks`."""
        # Of an agent that does not exist the server lists an empty memory, and makes it (measured).
        retrieve_agent(session, agent_id)
        found = []
        notes: dict[str, dict[str, Any]] | None = None
        for entry in _files(session, agent_id):
            label = _label_of(entry.get("relative_path"))
            if label is None:
                continue
            metadata: dict[str, Any] = {}
            if label.startswith(session.settings.board_label):
                notes = _notes(session, agent_id) if notes is None else notes
                metadata = notes.get(label, {})
            value = entry.get("content")
            found.append(_block(agent_id, label, value if isinstance(value, str) else "", metadata))
        return found

    def create(
        self, session: Session, agent_id: str, label: str, value: str, description: str, metadata: dict[str, Any]
    ) -> Block:
        """See `Board.create_block`."""
        retrieve_agent(session, agent_id)
        if any(_label_of(entry.get("relative_path")) == label for entry in _files(session, agent_id)):
            raise LettaConflictError(f"The agent already has a memory file {label!r}", status=409)
        self._write_file(session, agent_id, label, _file(label, description, value), metadata, before=None)
        return _block(agent_id, label, value, metadata)

    def write(self, session: Session, block: Block, value: str, metadata: dict[str, Any]) -> None:
        """See `Board.write_block`."""
        agent_id, _, _ = block.id.partition("/")
        answer = session.request("read_memory_file", {"agent_id": agent_id, "path": _path(block.label)})
        before = answer.get("content")
        if answer.get("success") is not True or not isinstance(before, str):
            retrieve_agent(session, agent_id)
            raise LettaConflictError(
                f"The memory file {block.label!r} was deleted", status=404, hint="it is made again"
            )
        head, description = _head(before)
        if head and before == head + _body(value):
            return  # each write is a commit
        fresh = _file(block.label, description, value)
        self._write_file(session, agent_id, block.label, fresh, metadata, before=before)

    def _write_file(
        self, session: Session, agent_id: str, label: str, content: str, metadata: dict[str, Any], before: str | None
    ) -> None:
        path = _path(label)
        note = _MARK + json.dumps({"label": label, **metadata}, separators=(",", ":"), sort_keys=True)
        body = {"agent_id": agent_id, "path": path, "content": content, "commit_message": note}
        with self._held():
            looks = min(max(_LOOKS_AFTER_TURN, _LOOKS_IN_COMMITS * self._commit_took), _SOON)
            time.sleep(min(max(self._turn_ended + looks - time.monotonic(), 0.0), looks))
            began = time.monotonic()
            answer = session.request("write_memory_file", body)
            self._commit_took = time.monotonic() - began
        if answer.get("success") is True:
            return
        # A refused file stays behind, uncommitted, and the agent is asked with every turn to see to it (measured).
        if before is not None:
            undo = session.request("write_memory_file", {**body, "content": before})
        else:
            undo = session.request("delete_memory_file", {"agent_id": agent_id, "path": path})
        _logger.debug("took back the refused memory file: %s", undo.get("success"))
        if "lock" in str(answer.get("error")):
            # Two writes at once, of whatever files: git has one lock for them all (measured).
            raise LettaConflictError("The agent's memory was written at the same time", status=409)
        raise LettaConflictError(
            "The App Server refused the memory file of the board",
            detail=session.words(answer.get("error")),
            hint="its check covers the whole memory of the agent: mend what it names",
            parks=True,
        )


def _files(session: Session, agent_id: str) -> list[dict[str, Any]]:
    def merge(parts: Frame, more: Frame) -> Frame:
        return {**more, "entries": [*rows(parts.get("entries")), *rows(more.get("entries"))]}

    answer = session.request("list_memory", {"agent_id": agent_id}, merge=merge)
    if answer.get("success") is not True or answer.get("memfs_enabled") is False:
        raise LettaUnsupportedError(
            "This agent's memory is not kept in files", detail=session.words(answer.get("error"))
        )
    return rows(answer.get("entries"))


def _notes(session: Session, agent_id: str) -> dict[str, dict[str, Any]]:
    """Return the boards' metadata. It is in the commits, as a file's own head takes no keys but two."""
    answer = session.request("memory_history", {"agent_id": agent_id, "limit": _HISTORY})
    notes: dict[str, dict[str, Any]] = {}
    for commit in rows(answer.get("commits")):
        message = commit.get("message")
        if not isinstance(message, str) or not message.startswith(_MARK):
            continue
        try:
            noted = json.loads(message[len(_MARK) :])
        except (ValueError, RecursionError):
            continue
        if isinstance(noted, dict) and isinstance(noted.get("label"), str):
            notes.setdefault(noted.pop("label"), noted)  # the newest commit comes first
    return notes


def _path(label: str) -> str:
    return f"{label}.md"


def _label_of(path: object) -> str | None:
    if not isinstance(path, str) or "/" in path or not path.endswith(".md") or path == "MEMORY.md":
        return None
    return path[: -len(".md")]


def _block(agent_id: str, label: str, value: str, metadata: dict[str, Any]) -> Block:
    return Block(id=f"{agent_id}/{label}", label=label, value=value, limit=_LIMIT, metadata=metadata)


def _file(label: str, description: str, value: str) -> str:
    # Each key stands on one line and is taken literally, without quotes; the check knows no other keys (measured).
    return f"---\nname: {label}\ndescription: {' '.join(description.split()) or label}\n---\n{_body(value)}"


def _body(value: str) -> str:
    return f"{value.strip()}\n"


def _head(content: str) -> tuple[str, str]:
    """Return a file's front matter as it stands, and the description in it; empty if it has none."""
    if not content.startswith("---\n"):
        return "", ""
    end = content.find("\n---\n", 3)
    if end < 0:
        return "", ""
    head = content[: end + len("\n---\n")]
    for line in head.splitlines():
        if line.startswith("description:"):
            return head, line.removeprefix("description:").strip()
    return head, ""
