"""Letta's REST API (self-hosted 0.16.x, and the same paths on Letta Cloud) as a `Transport`.

What the comments call measured was measured on a real Letta 0.16.8.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from otel_letta.errors import (
    LettaAgentNotFoundError,
    LettaConflictError,
    LettaConversationNotFoundError,
    LettaError,
    LettaRequestError,
    LettaServerError,
    LettaUnsupportedError,
)
from otel_letta.ids import APP_SERVER_CONVERSATION, REST_CONVERSATION
from otel_letta.letta.answers import moment, parsed, refusal, rows, server_time
from otel_letta.letta.configured import Configured, another_agents
from otel_letta.letta.history import answers_in, is_older, was_put_away
from otel_letta.letta.http import HttpClient, segment
from otel_letta.letta.redaction import redactor
from otel_letta.letta.transport import Block, Lane, Message, Posting, Run
from otel_letta.recent import Recent
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings

_logger = logging.getLogger(__name__)

_PAGE = 100
"""Messages of one page of a listing."""
_MOST_PAGES = 200
"""Pages that are read in search of a message. A busy agent fills one in half a minute (measured: 7 steps/s)."""
_NEWEST_RUNS = 20
"""Runs that are listed where those that ended count too. The list begins with the newest."""
_CLOCKS = 60.0
"""Seconds by which a message may seem older than its request."""


class RestTransport(Configured):
    """A Letta REST server. See `Transport` for what each call means."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)  # its ending is of no use here: a turn goes on without us
        self._http = HttpClient(settings, _logger)
        self._owners: Recent[str, str] = Recent()
        """Conversation → the agent that it was seen to belong to."""

    queues_messages = False

    def _is_conversation(self, chat_id: str) -> bool:
        return REST_CONVERSATION.match(chat_id) is not None

    def _settings_changed(self) -> None:
        self._http.use(self._settings)
        self._owners.clear()

    def close(self, *, until: Deadline | None = None) -> None:
        self._http.close()

    # -- messages ------------------------------------------------------------------------------------------------

    def send(
        self,
        lane: Lane,
        messages: Sequence[Message],
        *,
        until: Deadline | None = None,
        posting: Posting | None = None,
    ) -> dict[str, Any]:
        """Post the messages and wait for the turn.

        Returns:
            Letta's answer: ``messages`` (the agent's words and actions, each with ``id``, ``message_type``,
            ``content``, ``run_id``, ``step_id``…), ``stop_reason`` and ``usage`` (tokens and ``step_count``).
        """
        self._check_server(lane)
        if lane.conversation_id and APP_SERVER_CONVERSATION.match(lane.conversation_id):
            raise LettaConversationNotFoundError(hint="the chat id names a conversation of an App Server")
        if lane.conversation_id:
            self._check_owner(lane, until)
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": m.content, "otid": m.otid} for m in messages],
        }
        if self._settings.max_steps is not None:
            body["max_steps"] = self._settings.max_steps
        if lane.conversation_id:
            body["streaming"] = False  # the conversations route streams by default, the agents route does not
        posting = posting or Posting()
        try:
            response = self._respond("POST", f"{_place(lane)}/messages", until=until, body=body, posting=posting)
            answer = _mapping(_content(response))
            if not isinstance(answer.get("messages"), list):
                raise _not_a_rest_api(response.status_code)
        except LettaError as error:
            # An answer can come before the request was complete: too large, says a proxy.
            error.may_have_landed = (error.may_have_landed or error.foreign) and posting.sent
            raise
        return answer

    def active_runs(self, lane: Lane, *, lately: float | None = None, until: Deadline | None = None) -> list[Run]:
        # No trailing-slash freedom: the wrong form is answered with 307, which is not followed (measured).
        which = {"active": "true"} if lately is None else {"limit": str(_NEWEST_RUNS)}
        response = self._respond("GET", "/v1/runs/", until=until, params={"agent_id": lane.agent_id, **which})
        now = server_time(response)
        runs = []
        for row in rows(_content(response)):
            # A conversation's non-streaming message leaves its run ``created`` for ever, with no conversation in it;
            # only its type distinguishes it from a turn of the agent's default conversation (measured).
            metadata = row.get("metadata")
            if isinstance(metadata, dict) and metadata.get("run_type") == "send_conversation_message":
                continue
            if row.get("conversation_id") != lane.conversation_id or not isinstance(row.get("id"), str):
                continue
            active = lately is None or row.get("status") in ("created", "running")
            ended = moment(row.get("completed_at"))
            since_end = None if active or ended is None else (now - ended).total_seconds()
            if active or (since_end is not None and since_end < (lately or 0.0)):
                created = moment(row.get("created_at"))
                age = None if created is None else (now - created).total_seconds()
                runs.append(Run(row["id"], age, since_end))
        return runs

    def landed(
        self, lane: Lane, otids: Sequence[str], *, age: float = 0.0, until: Deadline | None = None
    ) -> dict[str, str]:
        wanted = set(otids)
        found: dict[str, str] = {}
        for row in self._newest(lane, age, until):
            otid = row.get("otid")
            if isinstance(otid, str) and otid in wanted:
                found[otid] = str(row.get("id"))
                wanted.remove(otid)  # an older one of the same report was erased before this was sent
                if not wanted:
                    break
        return found

    def stored_answers(
        self, lane: Lane, otids: Sequence[str], *, age: float = 0.0, until: Deadline | None = None
    ) -> dict[str, dict[str, Any]]:
        return answers_in(self._newest(lane, age, until), otids)

    def _newest(self, lane: Lane, age: float, until: Deadline | None) -> Iterator[dict[str, Any]]:
        """Yield the stored messages, the newest first, back to those that are older than ``age`` seconds."""
        params = {"limit": str(_PAGE), "order": "desc"}
        for _ in range(_MOST_PAGES):
            # There is no filter by otid on the server. This order gives the newest page, with its oldest message
            # first, and ``before`` the page before a message's (measured).
            response = self._respond("GET", f"{_place(lane)}/messages", until=until, params=params)
            page = rows(_content(response))
            yield from reversed(page)
            oldest = page[0].get("id") if len(page) >= _PAGE else None
            if not isinstance(oldest, str) or is_older(page[0], server_time(response), age + _CLOCKS):
                return
            if oldest == params.get("before"):
                return  # a server that does not know ``before``
            params["before"] = oldest
        _logger.debug("%s: gave up the search in its messages after %d pages", lane, _MOST_PAGES)

    def in_context(self, lane: Lane, message_ids: Sequence[str], *, until: Deadline | None = None) -> set[str]:
        answer = _mapping(self._call("GET", _place(lane), until=until))
        known = answer.get("in_context_message_ids" if lane.conversation_id else "message_ids")
        # Of a server that does not list its context it is assumed that what it stored is there.
        if not isinstance(known, list):
            return set(message_ids)
        there = set(message_ids).intersection(map(str, known))
        missing = [identifier for identifier in message_ids if identifier not in there]
        return there | self._put_away(lane, missing, known[1:], until) if missing else there

    def _put_away(self, lane: Lane, missing: Sequence[str], context: list[Any], until: Deadline | None) -> set[str]:
        """Return those of the messages that left the context by a compaction or a reset.

        ``context`` is what the agent has now, without its system message.
        """
        if not context:
            return set(missing)  # a reset leaves nothing but the system message
        later: list[dict[str, Any]] = []  # the newest first
        wanted = set(missing)
        for row in self._newest(lane, math.inf, until):
            later.append(row)
            wanted.discard(str(row.get("id")))
            if not wanted:
                break
        if wanted:
            return set()
        return {identifier for identifier in missing if was_put_away(identifier, str(context[0]), later)}

    def probe(self, lane: Lane, *, until: Deadline | None = None) -> None:
        self._call("GET", f"/v1/agents/{segment(lane.agent_id)}", until=until)

    def describe(self, agent_id: str, *, until: Deadline | None = None) -> dict[str, Any]:
        return _described(_mapping(self._call("GET", f"/v1/agents/{segment(agent_id)}", until=until)))

    def agents(self, limit: int, *, until: Deadline | None = None) -> list[dict[str, Any]]:
        found = rows(self._call("GET", "/v1/agents/", until=until, params={"limit": str(limit)}))
        return [_described(row) for row in found if isinstance(row.get("id"), str)][:limit]

    def _check_owner(self, lane: Lane, until: Deadline | None) -> None:
        """Refuse a conversation of another agent: whoever writes spans chooses the chat id, but not the agent."""
        conversation = lane.conversation_id or ""
        owner = self._owners.get(conversation)
        if owner is None:
            found = _mapping(self._call("GET", _place(lane), until=until))
            owner = self._owners[conversation] = str(found.get("agent_id"))
        if owner != lane.agent_id:
            raise another_agents()

    # -- blocks --------------------------------------------------------------------------------------------------

    def blocks(self, agent_id: str, *, until: Deadline | None = None) -> list[Block]:
        try:
            answer = self._call("GET", f"/v1/agents/{segment(agent_id)}/core-memory/blocks", until=until)
        except (LettaServerError, LettaRequestError) as error:
            if error.status not in (404, 405, 501):
                raise
            self.probe(
                self.lane(agent_id, None), until=until
            )  # raises where it is the agent or the address that is wrong
            raise LettaUnsupportedError(status=error.status) from error
        return [_block(row) for row in rows(answer) if isinstance(row.get("id"), str)]

    def create_block(
        self,
        agent_id: str,
        label: str,
        value: str,
        limit: int,
        description: str,
        metadata: dict[str, Any],
        *,
        until: Deadline | None = None,
    ) -> Block:
        body = {
            "label": label,
            "value": value,
            "limit": limit,
            "description": description,
            "read_only": True,  # stops the agent's own tools only; our PATCH still works (measured)
            "metadata": metadata,
        }
        try:
            block = _block(_mapping(self._call("POST", "/v1/blocks/", until=until, body=body)))
        except (LettaServerError, LettaRequestError) as error:
            # The agent's blocks were just listed, so the address is right: there is only no way to make one.
            if error.status not in (404, 405, 501):
                raise
            raise LettaUnsupportedError(status=error.status) from error
        path = f"/v1/agents/{segment(agent_id)}/core-memory/blocks/attach/{segment(block.id)}"
        try:
            self._call("PATCH", path, until=until)
        except LettaError as error:
            # Without this each failed try would leave a block that belongs to nobody.
            try:
                self._call("DELETE", f"/v1/blocks/{segment(block.id)}", until=until)
            except LettaError as nested:
                _logger.debug("could not delete the unattached block %s: %s", block.id, nested)
            if error.status == 409:
                # Attaching a second block of the same label answers 409 with raw SQL in it (measured).
                raise LettaConflictError(f"The agent already has a block labelled {label!r}", status=409) from None
            raise
        return block

    def write_block(
        self, block: Block, value: str, metadata: dict[str, Any], *, until: Deadline | None = None
    ) -> int | None:
        try:
            answer = self._call(
                "PATCH", f"/v1/blocks/{segment(block.id)}", until=until, body={"value": value, "metadata": metadata}
            )
        except LettaAgentNotFoundError as error:
            # Not the agent: somebody deleted the block (measured: 404). Nothing to mend, it can be made again.
            raise LettaConflictError(
                f"The memory block {block.label!r} was deleted", status=error.status, hint="it is made again"
            ) from None
        limit = answer.get("limit") if isinstance(answer, dict) else None
        return limit if isinstance(limit, int) and limit > 0 else None

    # -- one request ---------------------------------------------------------------------------------------------

    def _call(self, method: str, path: str, *, until: Deadline | None, **parts: Any) -> Any:
        """Return the parsed answer; raise the `LettaError` that fits a refusal."""
        return _content(self._respond(method, path, until=until, **parts))

    def _respond(self, method: str, path: str, *, until: Deadline | None, **parts: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, until=until, **parts)
            if not response.is_success:
                raise refusal(response, redactor(self._settings))
        except LettaError as error:
            if method == "GET":
                error.may_have_landed = False  # nothing was to land
            raise
        return response


def _place(lane: Lane) -> str:
    """Return the path of the lane's conversation, or of its agent."""
    if lane.conversation_id:
        return f"/v1/conversations/{segment(lane.conversation_id)}"
    return f"/v1/agents/{segment(lane.agent_id)}"


def _content(response: httpx.Response) -> Any:
    answer = parsed(response, response)
    if answer is response:
        raise _not_a_rest_api(response.status_code)
    return answer


def _not_a_rest_api(status: int | None = None) -> LettaServerError:
    return LettaServerError(
        "What answers is not a Letta REST API",
        status=status,
        hint="check LETTA_BASE_URL",
        parks=True,
        foreign=True,
    )


def _mapping(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise _not_a_rest_api()
    return answer


def _described(agent: dict[str, Any]) -> dict[str, Any]:
    config = agent.get("llm_config")
    config = config if isinstance(config, dict) else {}
    model = next((m for m in (agent.get("model"), config.get("handle"), config.get("model")) if m), None)
    known = {"id": agent.get("id"), "name": agent.get("name"), "model": model}
    return {key: value for key, value in known.items() if isinstance(value, str)}


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
