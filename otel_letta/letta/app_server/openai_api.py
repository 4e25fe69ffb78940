"""Letta's App Server over its OpenAI-compatible HTTP API as a `Transport`: for processes that do not live long.

A client that goes away in the middle of a turn leaves a healthy conversation behind, unlike on the WebSocket. In
return reports go to a conversation of their own (an existing one cannot be named), each request is a turn of its own,
and there is neither a board nor a list of the agent's messages. What the comments call measured was measured on
0.34.12.
"""

from __future__ import annotations

import logging
import socket
import threading
import uuid
import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

import httpx

from otel_letta.errors import (
    LettaAgentNotFoundError,
    LettaError,
    LettaModelError,
    LettaRequestError,
    LettaServerError,
    LettaUnsupportedError,
)
from otel_letta.letta.answers import mapping, parsed, refusal, rows, wrong_token
from otel_letta.letta.configured import Configured
from otel_letta.letta.flavour import ServerInfo
from otel_letta.letta.http import HttpClient
from otel_letta.letta.redaction import redactor
from otel_letta.letta.transport import Lane, Message, Posting, Run
from otel_letta.recent import Recent
from otel_letta.runtime import fork
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings
from otel_letta.text import clean_error

_logger = logging.getLogger(__name__)

_NAMESPACE = uuid.UUID("6f0c8a4e-9a0f-4a55-8c5e-2f6f6f1f9b0a")

_Otids = tuple[str, ...]

_instances: weakref.WeakSet[AppServerHttpTransport] = weakref.WeakSet()


def _after_fork_in_child(transport: AppServerHttpTransport) -> None:
    transport._lock = threading.Lock()


fork.in_child_each(_instances, _after_fork_in_child)


class AppServerHttpTransport(Configured):
    """An App Server that was started with ``--openai-api``. See `Transport` for what each call means."""

    queues_messages = True

    def __init__(self, settings: Settings, info: ServerInfo | None = None) -> None:
        if info is not None and info.openai_api is False:
            raise LettaUnsupportedError(
                "This App Server does not offer its OpenAI-compatible API",
                hint="start it with --openai-api, or set OTEL_LETTA_SERVER=app-server for its WebSocket",
                parks=True,
            )
        super().__init__(settings)  # its ending is of no use here: a turn goes on without us
        self._http = HttpClient(settings, _logger)
        self._lock = threading.Lock()
        self._unsettled: Recent[_Otids, str] = Recent()
        """Requests without an answer, as they were sent: the same key joins the turn that may still be running."""
        self._taken: Recent[str, None] = Recent()
        """Messages whose turn failed. The server had stored them before."""
        _instances.add(self)

    def _is_conversation(self, chat_id: str) -> bool:
        # One lane for each agent: its gate also sees to it that the first request with a new key goes alone, since
        # two at once would make two conversations (measured).
        return False

    def _settings_changed(self) -> None:
        self._http.use(self._settings)

    def close(self, *, until: Deadline | None = None) -> None:
        self._http.close()

    def send(
        self,
        lane: Lane,
        messages: Sequence[Message],
        *,
        until: Deadline | None = None,
        posting: Posting | None = None,
    ) -> dict[str, Any]:
        """Post the messages as one text, and wait for the turn.

        Returns:
            The server's answer in OpenAI's form: ``id``, ``choices`` (with the agent's words in ``message``),
            ``usage``, ``model``.
        """
        self._check_server(lane)
        contents = {message.otid: message.content for message in messages}
        answer: dict[str, Any] = {}
        with self._lock:
            # As a whole, even if a part of it is not asked for any more: with another key it would be another turn.
            before = [(otids, text) for otids, text in self._unsettled.items() if not contents.keys().isdisjoint(otids)]
        for otids, text in before:
            answer = self._post(lane.agent_id, otids, text, until, posting)
            for otid in otids:
                contents.pop(otid, None)
        if contents:
            answer = self._post(lane.agent_id, tuple(contents), "\n\n".join(contents.values()), until, posting)
        return answer

    def _post(
        self, agent_id: str, otids: _Otids, text: str, until: Deadline | None, posting: Posting | None
    ) -> dict[str, Any]:
        # The last user message is the only one that a request with a chat key delivers, so all reports share one.
        body = {"model": agent_id, "messages": [{"role": "user", "content": text}]}
        headers = {
            "X-Letta-Chat-Key": self._chat_key(agent_id),
            "Idempotency-Key": str(uuid.uuid5(_NAMESPACE, "\n".join(otids))),
        }
        try:
            response = self._http.request(
                "POST", "/v1/chat/completions", body=body, headers=headers, until=until, posting=posting
            )
            if not response.is_success:
                raise self._refusal(response, otids)
            answer = mapping(parsed(response))
            if not answer:
                raise LettaServerError("The answer is not that of an App Server", may_have_landed=True)
        except LettaError as error:
            with self._lock:
                if error.may_have_landed and not isinstance(error, LettaModelError):
                    self._unsettled[otids] = text
                else:
                    self._unsettled.pop(otids, None)
            raise
        with self._lock:
            self._unsettled.pop(otids, None)
        return answer

    def _chat_key(self, agent_id: str) -> str:
        # The key's conversation lives as long as the server's process. A key for each host, since nothing keeps the
        # first requests of two hosts apart.
        title = self._settings.conversation
        # A header holds no characters beyond ASCII.
        return str(uuid.uuid5(_NAMESPACE, f"{title}\n{agent_id}" if title else f"\n{socket.gethostname()}\n{agent_id}"))

    def _refusal(self, response: httpx.Response, otids: _Otids) -> LettaError:
        """Make the error for an answer that is not a success; ``otids`` is empty for a request that starts no turn."""
        own = isinstance(mapping(parsed(response)).get("error"), dict) and bool(_words(response))
        error = self._known_refusal(response, otids, own) or refusal(response, redactor(self._settings))
        # What is not the server's own says nothing about the turn behind it.
        error.foreign = not own
        error.may_have_landed = bool(otids) and (error.may_have_landed or not own)
        return error

    def _known_refusal(self, response: httpx.Response, otids: _Otids, own: bool) -> LettaError | None:
        status = response.status_code
        words = clean_error(redactor(self._settings)(_words(response)))
        if status in (401, 403):
            return wrong_token(status, words)
        if status == 404 and "does not exist" in words:
            return LettaAgentNotFoundError(status=status, hint="check LETTA_AGENT_ID")
        if status == 404:
            return LettaServerError(
                "No OpenAI-compatible API at this address",
                status=status,
                hint="start the App Server with --openai-api, or set OTEL_LETTA_SERVER=app-server",
                parks=True,
            )
        if status == 500 and otids and own:
            # Its LLM failed sixteen times by then, in half a minute, and the message stands in the conversation. A
            # failure is not remembered with its key, so another try would cost all of that again (measured).
            with self._lock:
                for otid in otids:
                    self._taken[otid] = None
            return LettaModelError(
                status=status,
                detail=words,
                hint="check the LLM that the agent uses on the App Server; your own settings are fine",
                may_have_landed=True,
            )
        if status in (400, 413, 422) and own:
            return LettaRequestError(status=status, detail=words)
        return None

    def active_runs(self, lane: Lane, *, lately: float | None = None, until: Deadline | None = None) -> list[Run]:
        return []

    def landed(
        self, lane: Lane, otids: Sequence[str], *, age: float = 0.0, until: Deadline | None = None
    ) -> dict[str, str]:
        """Return only what this process knows: the server lists nothing here."""
        with self._lock:
            return {otid: otid for otid in otids if otid in self._taken}

    def in_context(self, lane: Lane, message_ids: Sequence[str], *, until: Deadline | None = None) -> set[str]:
        return set(message_ids)

    def stored_answers(
        self, lane: Lane, otids: Sequence[str], *, age: float = 0.0, until: Deadline | None = None
    ) -> dict[str, dict[str, Any]]:
        return {}  # a lost one comes with the same request, sent again

    def probe(self, lane: Lane, *, until: Deadline | None = None) -> None:
        """Check the server and the token. Whether the agent exists shows only when it is sent something."""
        self._models(until)

    def describe(self, agent_id: str, *, until: Deadline | None = None) -> dict[str, Any]:
        self._models(until)
        return {"id": agent_id}

    def agents(self, limit: int, *, until: Deadline | None = None) -> list[dict[str, Any]]:
        # Agents by their names, which a request may use as well as their ids.
        return [{"id": row["id"]} for row in self._models(until) if isinstance(row.get("id"), str)][:limit]

    def _models(self, until: Deadline | None) -> list[dict[str, Any]]:
        response = self._http.request("GET", "/v1/models", until=until)
        if not response.is_success:
            raise self._refusal(response, ())
        return rows(mapping(parsed(response)).get("data"))

    def blocks(self, *_: object, **__: object) -> NoReturn:
        raise LettaUnsupportedError("The App Server's HTTP API has no memory, so there is no board")

    create_block = write_block = blocks


def _words(response: httpx.Response) -> str:
    error = mapping(parsed(response)).get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""
