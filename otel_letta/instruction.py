"""What an agent asks for in its answer: the next message for a task, or a yes or no to what waits for one.

There are two forms, and no other text of an answer means anything. A block works on every server, and stands in the
answer's text, as many times as there are tasks to instruct::

    <task-instruction task_id="…" action="continue">Use the second ledger.</task-instruction>

Or the agent calls its tool `instruct_task` with the same three values (`otel-letta setup letta` gives it one).
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from otel_letta.text import clean_block

__all__ = ["INSTRUCT_TASK", "LONGEST_TEXT", "Action", "Instruction", "instruction_from", "instructions_in"]

Action = Literal["continue", "accept", "reject"]
"""``continue``: go on with this text. ``accept`` or ``reject`` what waits for confirmation, the text is the reason."""

INSTRUCT_TASK = "instruct_task"
"""The name of the tool whose calls are instructions."""

_ACTIONS = frozenset(get_args(Action))
_BLOCK = re.compile(r"<task-instruction\b([^<>]{0,1000})>([^<]{0,32000})</task-instruction\s*>")
_ATTRIBUTE = re.compile(r"""\b(task_id|action)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_MOST = 20
"""Instructions that are read of one answer."""
_LONGEST_ID = 200
LONGEST_TEXT = 8_000
"""Characters. What is longer is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One thing that the agent asks for. Its text was written by an LLM that may have read hostile text."""

    task_id: str
    action: Action
    text: str = ""
    """At most 8,000 characters, without control characters."""


def instructions_in(text: str) -> tuple[Instruction, ...]:
    """Return those that stand in an answer's text as blocks, in order. What is malformed is none."""
    found = []
    for block in _BLOCK.finditer(text):
        attributes = {name: html.unescape(one or two) for name, one, two in _ATTRIBUTE.findall(block[1])}
        instruction = instruction_from({**attributes, "text": html.unescape(block[2])})
        if instruction is not None:
            found.append(instruction)
        if len(found) == _MOST:
            break
    return tuple(found)


def instruction_from(values: Mapping[str, Any]) -> Instruction | None:
    """Return the instruction that these values of ``task_id``, ``action`` and ``text`` are; None if they are none."""
    task_id, action, text = values.get("task_id"), values.get("action"), values.get("text") or ""
    if not (isinstance(task_id, str) and 0 < len(task_id.strip()) <= _LONGEST_ID):
        return None
    if not (isinstance(action, str) and action in _ACTIONS and isinstance(text, str)):
        return None
    text = clean_block(text, LONGEST_TEXT).strip()
    if action == "continue" and not text:
        return None
    return Instruction(task_id=task_id.strip(), action=cast("Action", action), text=text)
