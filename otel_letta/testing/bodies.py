"""What goes in and out of the in-memory server: answers, refusals, and what a client's JSON becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from otel_letta.testing.world import Block, Message

_ROLES = ("user", "system", "assistant")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the client. ``drop``: nothing does, the connection closes."""

    status: int = 200
    payload: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = None
    drop: bool = False


DROP = Answer(drop=True)


class Refused(Exception):
    """Raised anywhere below an endpoint to end the request with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def json_answer(body: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(body).encode("ascii"), content_type="application/json")


def refused(status: int, detail: str) -> Refused:
    """Make the refusal that an endpoint raises."""
    return Refused(json_answer({"detail": detail}, status))


def invalid(kind: str, loc: tuple[str | int, ...], msg: str, *, examples: list[str] | None = None) -> Refused:
    """Make a 422 as Letta words it: ``detail`` is the text of a Python list, not JSON."""
    body: dict[str, Any] = {"trace_id": "", "detail": repr([{"type": kind, "loc": loc, "msg": msg}])}
    if examples:
        body["examples"] = examples
    return Refused(json_answer(body, 422))


def items_of(body: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Read a list of objects from the body; missing or null is empty."""
    items = body.get(name)
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise invalid("list_type", ("body", name), "Input should be a valid list of objects")
    return items


def new_message(item: dict[str, Any], index: int, conversation_id: str | None) -> Message:
    where = ("body", "messages", index)
    if item.get("role") not in _ROLES:
        raise invalid("enum", (*where, "role"), "Input should be 'user', 'system' or 'assistant'")
    content = item.get("content")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        # A single text part comes back from listings as a plain string.
        content = content[0]["text"] if len(content) == 1 else content
    elif not isinstance(content, str):
        raise invalid("string_type", (*where, "content"), "Input should be a valid string")
    for name in ("otid", "name", "sender_id"):
        if not isinstance(item.get(name), (str, type(None))):
            raise invalid("string_type", (*where, name), "Input should be a valid string")
    return Message(
        role=item["role"],
        content=content,
        otid=item.get("otid"),
        name=item.get("name"),
        sender_id=item.get("sender_id"),
        conversation_id=conversation_id,
        received=True,
    )


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def turn_answer(messages: list[dict[str, Any]], reason: str, streaming: bool) -> Answer:
    steps = len(messages)
    stop = {"message_type": "stop_reason", "stop_reason": reason}
    usage = {
        "message_type": "usage_statistics",
        "completion_tokens": 3 * steps,
        "prompt_tokens": 10 * steps,
        "total_tokens": 13 * steps,
        "step_count": steps,
    }
    if streaming:
        return _event_stream("".join(f"data: {json.dumps(event)}\n\n" for event in (*messages, stop, usage)))
    return json_answer({"messages": messages, "stop_reason": stop, "usage": usage, "logprobs": None, "turns": None})


def error_stream(error: dict[str, Any]) -> Answer:
    """Stream a failure. Measured: once an answer streams, its failure is HTTP 200 with an error event inside."""
    details = error.get("error", {"type": "llm_error", "message": error.get("detail")})
    return _event_stream(f"event: error\ndata: {json.dumps({'message_type': 'error_message', **details})}\n\n")


def _event_stream(events: str) -> Answer:
    return Answer(200, f"{events}data: [DONE]\n\n".encode("ascii"), content_type="text/event-stream")


_BLOCK_TYPES: dict[str, type] = {
    "label": str,
    "value": str,
    "limit": int,
    "description": str,
    "metadata": dict,
    "read_only": bool,
}


def _block_fields(body: dict[str, Any]) -> dict[str, Any]:
    """Read the fields that the body sets. As measured: null is an empty value, NUL vanishes, no limit holds."""
    fields = {name: body[name] for name in _BLOCK_TYPES if body.get(name) is not None}
    for name, value in fields.items():
        if type(value) is not _BLOCK_TYPES[name]:
            raise invalid("type_error", ("body", name), f"Input should be a valid {_BLOCK_TYPES[name].__name__}")
    if "value" in body:
        fields["value"] = fields.get("value", "").replace("\0", "")
    return fields


def new_block(body: dict[str, Any]) -> Block:
    for name in ("value", "label"):
        if name not in body:
            raise invalid("missing", ("body", name), "Field required")
    fields = _block_fields(body)
    if not fields.get("label"):
        raise invalid("string_type", ("body", "label"), "Input should be a valid string")
    return Block(**fields)


def update_block(block: Block, body: dict[str, Any]) -> Answer:
    for name, value in _block_fields(body).items():
        setattr(block, name, value)
    return json_answer(block.row())
