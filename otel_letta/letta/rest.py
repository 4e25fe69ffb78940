"""Letta's REST API (self-hosted 0.16.x, and the same paths on Letta Cloud) as a `Transport`.

What the comments call measured was measured on a real Letta 0.16.8.
"""

from __future__ import annotations

import email.utils
import json
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Generator, Sequence
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

import httpx

from otel_letta.errors import (
    LettaAgentNotFoundError,
    LettaAuthenticationError,
    LettaConflictError,
    LettaConnectionError,
    LettaConversationNotFoundError,
    LettaError,
    LettaModelError,
    LettaRateLimitError,
    LettaRequestError,
    LettaServerError,
    LettaTimeoutError,
    LettaUnsupportedError,
)
from otel_letta.letta.transport import Block, Lane, Message, Run
from otel_letta.settings import Secret, Settings
from otel_letta.text import clean_error, clean_line

__all__ = ["RestTransport"]

_logger = logging.getLogger(__name__)

_CONVERSATION_ID = re.compile(r"conv-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_NEWEST = 100
"""How many of the newest messages are searched for one of ours. A turn of many steps adds two or more each."""


class _Bearer(httpx.Auth):
    """Puts the token on the wire and nowhere else.

    As an `httpx.Auth` it is in no header dictionary of ours that a traceback with local variables could show, and
    httpx masks ``Authorization`` (but not Letta's ``X-BARE-PASSWORD``) when it prints headers.
    """

    def __init__(self, token: Secret) -> None:
        self._token = token

    def __repr__(self) -> str:
        return "_Bearer(***)"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._token.reveal()}"
        yield request


_instances: weakref.WeakSet[RestTransport] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for transport in list(_instances):
        transport.forget_connections()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class RestTransport:
    """Speaks to one Letta REST server. See `Transport` for what each call means."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server = settings.base_url
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        _instances.add(self)

    # -- lanes ---------------------------------------------------------------------------------------------------

    def lane(self, agent_id: str | None, chat_id: str | None) -> Lane:
        """A ``chat_id`` that has the form of a conversation's id names the conversation, any other is only told."""
        conversation = chat_id if chat_id and _CONVERSATION_ID.match(chat_id) else None
        return Lane(self._server, agent_id or self._settings.agent_id, conversation)

    # -- messages ------------------------------------------------------------------------------------------------

    def send(self, lane: Lane, messages: Sequence[Message]) -> dict[str, Any]:
        """Post and wait for the turn.

        Returns:
            Letta's answer: ``messages`` (what the agent said and did, each with ``id``, ``message_type``,
            ``content``, ``run_id``, ``step_id``…), ``stop_reason`` and ``usage`` (tokens and ``step_count``).
        """
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": m.content, "otid": m.otid} for m in messages],
        }
        if self._settings.max_steps is not None:
            body["max_steps"] = self._settings.max_steps
        if lane.conversation_id:
            body["streaming"] = False  # the conversations route streams by default, the agents route does not
            path = f"/v1/conversations/{_segment(lane.conversation_id)}/messages"
        else:
            path = f"/v1/agents/{_segment(lane.agent_id)}/messages"
        try:
            answer = self._call("POST", path, body=body)
        except LettaAgentNotFoundError as error:
            if lane.conversation_id:
                raise LettaConversationNotFoundError(status=error.status, detail=error.detail) from error
            raise
        return _mapping(answer)

    def active_runs(self, lane: Lane) -> list[Run]:
        # No trailing-slash freedom: the wrong form is answered with 307, which is not followed (measured).
        rows, now = self._call_dated("GET", "/v1/runs/", params={"agent_id": lane.agent_id, "active": "true"})
        runs = []
        for row in _rows(rows):
            # A conversation's non-streaming message leaves its run ``created`` for ever, with no conversation in it;
            # only its type tells it from a turn of the agent's default conversation (measured).
            metadata = row.get("metadata")
            if isinstance(metadata, dict) and metadata.get("run_type") == "send_conversation_message":
                continue
            if row.get("conversation_id") == lane.conversation_id and isinstance(row.get("id"), str):
                created = _moment(row.get("created_at"))
                runs.append(Run(row["id"], None if created is None else (now - created).total_seconds()))
        return runs

    def landed(self, lane: Lane, otids: Sequence[str]) -> dict[str, str]:
        # The default order gives the newest page. There is no filter by otid on the server (measured).
        path = (
            f"/v1/conversations/{_segment(lane.conversation_id)}/messages"
            if lane.conversation_id
            else f"/v1/agents/{_segment(lane.agent_id)}/messages"
        )
        wanted = set(otids)
        rows = _rows(self._call("GET", path, params={"limit": str(_NEWEST), "order": "desc"}))
        return {row["otid"]: str(row.get("id", "")) for row in rows if row.get("otid") in wanted}

    def in_context(self, lane: Lane, message_ids: Sequence[str]) -> set[str]:
        if lane.conversation_id:
            answer = _mapping(self._call("GET", f"/v1/conversations/{_segment(lane.conversation_id)}"))
            known = answer.get("in_context_message_ids")
        else:
            known = _mapping(self._call("GET", f"/v1/agents/{_segment(lane.agent_id)}")).get("message_ids")
        # A server that does not say is taken at its word that the message was stored.
        return set(message_ids) if not isinstance(known, list) else set(message_ids).intersection(map(str, known))

    def probe(self, lane: Lane) -> None:
        self._call("GET", f"/v1/agents/{_segment(lane.agent_id)}")

    # -- blocks --------------------------------------------------------------------------------------------------

    def blocks(self, agent_id: str) -> list[Block]:
        try:
            answer = self._call("GET", f"/v1/agents/{_segment(agent_id)}/core-memory/blocks")
        except (LettaServerError, LettaRequestError) as error:
            if error.status not in (404, 405, 501):
                raise
            self.probe(Lane(self._server, agent_id))  # raises where it is the agent or the address that is wrong
            raise LettaUnsupportedError(status=error.status) from error
        return [_block(row) for row in _rows(answer) if isinstance(row.get("id"), str)]

    def create_block(
        self, agent_id: str, label: str, value: str, limit: int, description: str, metadata: dict[str, Any]
    ) -> Block:
        block = _block(
            _mapping(
                self._call(
                    "POST",
                    "/v1/blocks/",
                    body={
                        "label": label,
                        "value": value,
                        "limit": limit,
                        "description": description,
                        "read_only": True,  # stops the agent's own tools only; our PATCH still works (measured)
                        "metadata": metadata,
                    },
                )
            )
        )
        path = f"/v1/agents/{_segment(agent_id)}/core-memory/blocks/attach/{_segment(block.id)}"
        try:
            self._call("PATCH", path)
        except LettaError as error:
            # Without this each failed try would leave a block that belongs to nobody.
            try:
                self._call("DELETE", f"/v1/blocks/{_segment(block.id)}")
            except LettaError as nested:
                _logger.debug("could not delete the unattached block %s: %s", block.id, nested)
            if error.status == 409:
                # Attaching a second block of the same label answers 409 with raw SQL in it (measured).
                raise LettaConflictError(f"The agent already has a block labelled {label!r}", status=409) from None
            raise
        return block

    def write_block(self, block: Block, value: str, metadata: dict[str, Any]) -> None:
        self._call("PATCH", f"/v1/blocks/{_segment(block.id)}", body={"value": value, "metadata": metadata})

    # -- life ----------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        fresh = self._settings.refresh()
        if fresh.identity() == self._settings.identity():
            return
        _logger.info("Letta settings changed: using the new ones")
        with self._lock:
            self._settings = fresh
            stale, self._client = self._client, None
        if stale is not None:
            stale.close()

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def forget_connections(self) -> None:
        """In a forked child: drop the parent's connections without closing them, which would speak on them."""
        self._lock = threading.Lock()
        self._client = None

    # -- one request ---------------------------------------------------------------------------------------------

    def _http(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                settings = self._settings
                token = settings.token
                self._client = httpx.Client(
                    base_url=settings.base_url,
                    auth=_Bearer(token) if token is not None else None,
                    timeout=httpx.Timeout(
                        settings.read_timeout, connect=settings.connect_timeout, write=30.0, pool=None
                    ),
                    # uvicorn closes idle connections after 5 s, and httpx keeps them as long: a request that meets
                    # a closing connection fails as if it might have landed. So ours are given up earlier.
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=2.0),
                    headers={"Accept": "application/json", "User-Agent": "otel-letta"},
                )
            return self._client

    def _call(
        self, method: str, path: str, *, body: dict[str, Any] | None = None, params: dict[str, str] | None = None
    ) -> Any:
        return self._call_dated(method, path, body=body, params=params)[0]

    def _call_dated(
        self, method: str, path: str, *, body: dict[str, Any] | None = None, params: dict[str, str] | None = None
    ) -> tuple[Any, datetime]:
        """The parsed answer and the server's own time; raises the `LettaError` that fits."""
        # ASCII JSON: a lone surrogate travels as its escape, where UTF-8 would refuse to encode the request.
        content = None if body is None else json.dumps(body, allow_nan=False).encode("ascii")
        headers = {"Content-Type": "application/json"} if content is not None else {}
        began = time.monotonic()
        failure: LettaError
        try:
            response = self._http().request(method, path, content=content, params=params, headers=headers)
        except Exception as error:  # noqa: BLE001 - TLS files, host names and proxies fail in many ways of their own
            failure = _no_answer(error, self._settings)
            ms = (time.monotonic() - began) * 1e3
            _logger.debug("%s %s -> no answer after %.0f ms: %s", method, path, ms, failure)
        else:
            _logger.debug(
                "%s %s -> %d in %.0f ms, %d bytes sent, %d received",
                method,
                path,
                response.status_code,
                (time.monotonic() - began) * 1e3,
                len(content or b""),
                len(response.content),
            )
            if response.is_success:
                try:
                    return response.json(), _server_time(response)
                except ValueError:
                    failure = LettaServerError(
                        "What answers is not a Letta REST API",
                        status=response.status_code,
                        hint="check LETTA_BASE_URL",
                        parks=True,
                    )
            else:
                failure = _refusal(response)
        # Raised outside the handler: a library's frames hold the request's headers in their local variables, and
        # some error reporters print those.
        raise failure


def _segment(identifier: str) -> str:
    """One path segment. An id of dots alone would otherwise walk up the path."""
    return quote(identifier, safe="") if identifier.strip(".") else identifier.replace(".", "%2E")


def _no_answer(error: Exception, settings: Settings) -> LettaError:
    reason = clean_error(str(error)) or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    failure: LettaError
    if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
        failure = LettaTimeoutError(
            f"Letta API at {settings.base_url} did not answer within {settings.read_timeout:g} s",
            hint="the agent's turn may still be running; OTEL_LETTA_READ_TIMEOUT allows more",
            may_have_landed=True,
        )
    else:
        sent = isinstance(error, (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.DecodingError))
        failure = LettaConnectionError(
            f"Could not connect to Letta API at {settings.base_url}",
            detail=reason,
            hint="check LETTA_BASE_URL, and that the server runs",
            may_have_landed=sent,
        )
    failure.__cause__ = error
    return failure


def _refusal(response: httpx.Response) -> LettaError:
    """The error for an answer that is not a success. Two 401s look alike and mean different things, so read on."""
    status = response.status_code
    detail, kind, is_letta = _complaint(response)
    retry_after = _retry_after(response)
    if kind.startswith("llm_") or "CONTEXT_WINDOW_EXCEEDED" in detail:
        overflow = "CONTEXT_WINDOW_EXCEEDED" in detail
        return LettaModelError(
            status=status,
            detail=kind or "the agent's context window is full",
            hint="compact or reset the agent's messages in Letta"
            if overflow
            else "check the LLM key, credits and endpoint of the Letta server; your own settings are fine",
            retry_after=retry_after,
            parks=overflow or status in (401, 402, 403),
        )
    if status in (401, 403):
        return LettaAuthenticationError(
            status=status, hint="check LETTA_AGENT_ID and LETTA_PASSWORD (or LETTA_API_KEY)"
        )
    if status == 402:
        return LettaModelError(status=status, detail=detail, hint="the account is out of credits", parks=True)
    if status == 404:
        if not is_letta or detail == "Not Found":
            return LettaServerError(
                "No Letta REST API at this address", status=status, hint="check LETTA_BASE_URL", parks=True
            )
        return LettaAgentNotFoundError(status=status, hint="check LETTA_AGENT_ID")
    if status == 422 and "string_pattern_mismatch" in detail and "agent" in response.request.url.path:
        return LettaAgentNotFoundError(
            status=status, hint="check LETTA_AGENT_ID: this server's ids look like agent-<uuid4>"
        )
    shown = "" if _is_repr(detail) else clean_error(detail)
    if status == 409:
        if "PENDING_APPROVAL" in detail:
            return LettaConflictError(
                "The agent waits for an approval",
                status=status,
                hint="approve or deny its pending tool call in Letta",
                parks=True,
            )
        return LettaConflictError(status=status, detail=shown, retry_after=retry_after)
    if status == 429:
        return LettaRateLimitError(status=status, detail=shown, retry_after=retry_after)
    if status == 408:
        return LettaTimeoutError(status=status, detail=shown, may_have_landed=True)
    if 400 <= status < 500:
        return LettaRequestError(status=status, detail=shown)
    if 300 <= status < 400:
        return LettaServerError(
            "The address redirects elsewhere",
            status=status,
            detail=clean_line(response.headers.get("location", "").partition("?")[0], 200),
            hint="check LETTA_BASE_URL (https or http, and no path that the server does not have)",
            parks=True,
        )
    return LettaServerError(
        status=status,
        detail=shown,
        retry_after=retry_after,
        # A gateway in front of Letta gives up on a turn that goes on behind it. Letta's own errors are JSON and
        # leave nothing in the agent's history (measured).
        may_have_landed=status in (502, 504) and not is_letta,
    )


def _complaint(response: httpx.Response) -> tuple[str, str, bool]:
    """The server's words, Letta's error type if it has one, and whether it looks like Letta speaking."""
    try:
        body = response.json()
    except ValueError:
        return clean_error(response.text[:2000]) if "html" not in response.text[:200].lower() else "", "", False
    if not isinstance(body, dict):
        return "", "", False
    error = body.get("error")
    if isinstance(error, dict):
        return str(error.get("message") or ""), str(error.get("type") or ""), True
    detail = body.get("detail")
    if isinstance(detail, dict):
        return json.dumps(detail)[:2000], str(detail.get("code") or ""), True
    return str(detail or "")[:2000], "", "detail" in body


def _is_repr(detail: str) -> bool:
    # Letta puts Python's own notation of objects into some details; it tells users nothing.
    return detail.startswith(("[{", "{", "[")) or "id='[" in detail or "[SQL" in detail


def _retry_after(response: httpx.Response) -> float | None:
    """``Retry-After`` in seconds, given as a number or as a date; None if absent or nonsense."""
    text = response.headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        seconds = (moment - _server_time(response)).total_seconds()
    return min(max(seconds, 0.0), 3600.0) if seconds == seconds else None


def _server_time(response: httpx.Response) -> datetime:
    """The answer's ``Date``, so that ages are right even where our clock is not."""
    try:
        moment = email.utils.parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError):
        return datetime.now(timezone.utc)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def _moment(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        # Python 3.10 reads no trailing Z.
        moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def _rows(answer: Any) -> list[dict[str, Any]]:
    return [row for row in answer if isinstance(row, dict)] if isinstance(answer, list) else []


def _mapping(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise LettaServerError("What answers is not a Letta REST API", hint="check LETTA_BASE_URL", parks=True)
    return answer


def _block(row: dict[str, Any]) -> Block:
    limit = row.get("limit")
    metadata = row.get("metadata")
    return Block(
        id=str(row.get("id", "")),
        label=str(row.get("label") or ""),
        value=str(row.get("value") or ""),
        limit=limit if isinstance(limit, int) and limit > 0 else 2_000,
        metadata=metadata if isinstance(metadata, dict) else {},
    )
