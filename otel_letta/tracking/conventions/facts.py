"""What is kept of a span with a role: its names, ids and outcome, and how far a plan is. All of it may be reported."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from otel_letta import semconv
from otel_letta.text import as_text, clean_line
from otel_letta.tracking.conventions import CONVENTIONS, Role
from otel_letta.tracking.conventions.names import agent_hint, name_of
from otel_letta.tracking.conventions.plans import plan_of, progress_event
from otel_letta.tracking.conventions.reasons import ADDRESS, Reason, reason_of
from otel_letta.tracking.values import EXTRA_CAP, id_of

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

__all__ = ["AgentFacts", "read_agent"]

_WORDS_OF_AN_ID = 7
"""A conversation's id of so many words is a text."""


class AgentFacts:
    """The facts of a span with a role."""

    hint = ""
    """The agent that a tool's or a model's span says it belongs to."""
    chat: tuple[int, str] | None = None
    """The conversation's id, behind the rank of the attribute that it stood in: lower is better."""
    failed = False
    reason = Reason()
    answered = False
    """A model's span that holds any sign of an answer."""
    plan: float | None = None
    """The share of a plan's points that are done."""
    message_id: str | None = None
    """The message that asked, if its user had it put on all spans."""
    session: str | None = None
    """OpenHands' id of its conversation."""
    is_run = False
    """A run of a conversation: a task whatever is above it, and completed only if something shows that."""
    finishes = False
    """A tool by which the agent says that it is finished."""
    outside = False
    """A tool call that hangs beside the run that it was made in."""

    def __init__(self, role: Role, name: str, extras: dict[str, str]) -> None:
        self.role = role
        self.name = name
        """What people call it; empty where the span has no name that is surely one."""
        self.extras = extras
        """Content that the settings ask for, by field."""


_CHOSEN = tuple(name for convention in CONVENTIONS for name in convention.chosen_chats)
_GIVEN = tuple(name for convention in CONVENTIONS for name in convention.chats)
_CHATS = {name: rank for rank, name in enumerate((*_CHOSEN, *_GIVEN))}
_ANSWERS = frozenset().union(*(convention.answers for convention in CONVENTIONS))
_ANSWER_PREFIXES = tuple(prefix for convention in CONVENTIONS for prefix in convention.answer_prefixes)
_FAILED = {name: value for convention in CONVENTIONS for name, value in convention.failed.items()}
_REFINING = tuple((c.marks, c.refine) for c in CONVENTIONS if c.refine is not None)


def read_agent(
    reading: Reading, role: Role, *, chat_attributes: Sequence[str] = (), content: Collection[str] = ()
) -> AgentFacts:
    """Read the facts of a span that has a role.

    Args:
        chat_attributes: further attributes that may name the conversation, after those of the conventions.
        content: fields of `CONTENT_FIELDS` that may be reported.
    """
    attributes = reading.attributes
    extras = dict(_extras(attributes, role, content)) if content else {}
    facts = AgentFacts(role, name_of(reading, role), extras)
    if role is not Role.AGENT and semconv.GEN_AI_AGENT_NAME in attributes:
        facts.hint = agent_hint(reading)
    facts.chat = _conversation(attributes, chat_attributes)
    if _failed(reading):
        facts.failed = True
        facts.reason = reason_of(reading, whole="errors" in content)
    if role is Role.LLM:
        facts.answered = _answered(attributes)
    elif role is Role.TOOL:
        facts.plan = plan_of(attributes)
    for marks, refine in _REFINING:
        if not attributes.keys().isdisjoint(marks):
            refine(reading, facts, frozenset(content))
    for _, event in reading.events:
        share = progress_event(event)
        if share is not None:
            facts.plan = max(facts.plan or 0.0, share)
    return facts


def _conversation(attributes: Mapping[str, Any], more: Sequence[str]) -> tuple[int, str] | None:
    found = [(rank, name) for name, rank in _CHATS.items() if name in attributes]
    found += [(len(_CHATS) + n, name) for n, name in enumerate(more) if name in attributes]
    for rank, name in found:
        value = id_of(attributes[name])
        if value is not None and (rank < len(_CHOSEN) or name in more or not _says_more_than_an_id(value)):
            return rank, value
    return None


def _says_more_than_an_id(value: str) -> bool:
    """Return True for what names a person, or is a text."""
    return len(value.split()) >= _WORDS_OF_AN_ID or ("@" in value and ADDRESS.search(value) is not None)


def _answered(attributes: Mapping[str, Any]) -> bool:
    if not _ANSWERS.isdisjoint(attributes):
        return True
    return any(type(name) is str and name.startswith(_ANSWER_PREFIXES) for name in attributes)


def _failed(reading: Reading) -> bool:
    attributes = reading.attributes
    return (
        reading.failed
        or (semconv.ERROR_TYPE in attributes and bool(as_text(attributes[semconv.ERROR_TYPE])))
        or any(name in attributes and as_text(attributes[name]) == value for name, value in _FAILED.items())
    )


def _extras(attributes: Mapping[str, Any], role: Role, content: Collection[str]) -> Iterator[tuple[str, str]]:
    for field in content:
        for convention in CONVENTIONS:
            texts = (as_text(attributes.get(name)) for name in convention.content.get((role, field), ()))
            text = next(filter(None, texts), None)
            if text:
                yield field, clean_line(text, EXTRA_CAP)
                break
