"""An agent's answer, read off what a server returns for a turn. Pure, and of bounded size whatever comes.

The REST server and the App Server answer with rows, each with a ``message_type``; the App Server's OpenAI-compatible
API with ``choices``. The forms were measured on 0.16.8 and 0.34.12.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from otel_letta.answer import Answer
from otel_letta.instruction import INSTRUCT_TASK, Instruction, instruction_from, instructions_in
from otel_letta.letta.answers import mapping, rows
from otel_letta.text import as_text, clean_block, clean_line

_LONGEST_TEXT = 100_000
"""Characters of an answer's text."""
_LONGEST_NAME = 100
_LONGEST_ARGUMENTS = 100_000
"""Characters of a tool call's arguments that are read."""
_MOST_TOOLS = 100
_MOST_INSTRUCTIONS = 20
_MOST_COUNTS = 30
_LARGEST_COUNT = 2**53
_CALLING = frozenset({"tool_call_message", "approval_request_message"})
"""Types of rows that hold tool calls. One that waits for an approval may come again, when it is made."""


def answer_of(agent_id: str, response: Mapping[str, Any], *, reasoning: bool) -> Answer:
    """Read what `Messages.send` returned. Never raises for what a server may have put there.

    Args:
        agent_id: whose answer it is.
        response: is not changed.
        reasoning: whether `Answer.reasoning` is wanted.
    """
    found = _Reading(reasoning)
    messages = rows(response.get("messages"))
    for row in messages:
        found.read(row)
    choice = next(iter(rows(response.get("choices"))), {})
    if choice:
        found.read({**mapping(choice.get("message")), "message_type": "assistant_message"})
    stop = response.get("stop_reason")
    run_ids = (row.get("run_id") for row in ({"run_id": response.get("run_id")}, *messages))
    return Answer(
        agent_id=agent_id,
        text=found.text.whole(),
        tools=tuple(found.tools),
        instructions=tuple(dict.fromkeys(found.instructions))[:_MOST_INSTRUCTIONS],
        run_id=next((name for name in map(_name, run_ids) if name), None),
        stop_reason=_name(mapping(stop).get("stop_reason", stop)) or _name(choice.get("finish_reason")),
        usage=_counts(mapping(response.get("usage"))),
        reasoning=found.reasoning.whole() if found.reasoning is not None else None,
    )


class _Text:
    """Texts, joined by blank lines, of a bounded length together."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._room = _LONGEST_TEXT

    def add(self, text: str) -> str:
        """Add a text, as far as there is room. Return what was added."""
        kept = clean_block(text, self._room) if self._room > 0 else ""
        if kept:
            self._parts.append(kept)
            self._room -= len(kept) + 2
        return kept

    def whole(self) -> str:
        return "\n\n".join(self._parts)


class _Reading:
    """What is gathered from one row after another."""

    def __init__(self, reasoning: bool) -> None:
        self.text = _Text()
        self.reasoning = _Text() if reasoning else None
        self.tools: list[str] = []
        self.instructions: list[Instruction] = []
        self._calls: set[str] = set()

    def read(self, row: Mapping[str, Any]) -> None:
        kind = as_text(row.get("message_type"))
        if kind == "assistant_message":
            # What is obeyed is what stands in the text that a person is shown.
            self.instructions += instructions_in(self.text.add(_words(row.get("content"))))
        elif kind == "reasoning_message" and self.reasoning is not None:
            self.reasoning.add(_words(row.get("reasoning")))
        if kind in _CALLING or row.get("tool_calls"):
            for call in _calls(row):
                self._read_call(call)

    def _read_call(self, call: Mapping[str, Any]) -> None:
        identifier = call.get("tool_call_id") or call.get("id")
        if isinstance(identifier, str):
            if identifier in self._calls:
                return
            self._calls.add(identifier)
        called = mapping(call.get("function")) or call
        name = _name(called.get("name"))
        if name is None or len(self.tools) == _MOST_TOOLS:
            return
        self.tools.append(name)
        if name == INSTRUCT_TASK:
            instruction = instruction_from(_arguments(called.get("arguments")))
            self.instructions += [] if instruction is None else [instruction]


def _calls(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    several = row.get("tool_calls")
    yield from rows(several) or [mapping(row.get("tool_call") or several)]


def _words(content: object) -> str:
    """Return a message's text, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    texts = [part["text"] for part in rows(content) if isinstance(part.get("text"), str)]
    return "".join(texts)


def _arguments(value: object) -> dict[str, Any]:
    if isinstance(value, str) and len(value) <= _LONGEST_ARGUMENTS:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return mapping(value)


def _name(value: object) -> str | None:
    """Return a short text, cleaned; None if it is none."""
    return (clean_line(value, _LONGEST_NAME) or None) if isinstance(value, str) else None


def _counts(usage: Mapping[str, Any]) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for key, number in usage.items():
        name = _name(key)
        if name and type(number) is int and 0 <= number <= _LARGEST_COUNT and len(counts) < _MOST_COUNTS:
            counts[name] = number
    return MappingProxyType(counts)
