"""What is kept of a span with a role: its names, ids and outcome, and how far a plan is. All of it may be reported."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from otel_letta import semconv
from otel_letta.text import as_text, clean_line
from otel_letta.tracking.conventions import AGENT, CONVENTIONS, LLM, NAMES, TOOL, Role
from otel_letta.tracking.conventions.finishes import Finish, finish_of, is_filler
from otel_letta.tracking.conventions.interruptions import A_PERSON, is_cancelled, is_denied, is_timed_out, is_wait
from otel_letta.tracking.conventions.names import agent_hint, name_of
from otel_letta.tracking.conventions.plans import plan_of, progress_event
from otel_letta.tracking.conventions.reasons import ADDRESS, Reason, reason_of
from otel_letta.tracking.conventions.shapes import Refine, Shape
from otel_letta.tracking.values import EXTRA_CAP, id_of

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

NO_EXTRAS: Mapping[str, str] = MappingProxyType({})
NO_TOOLS: frozenset[str] = frozenset()
_MOST_LISTED = 64
_NO_REASON = Reason()
_NO_EXCEPTION = ("", "")
_WORDS_OF_AN_ID = 7
"""A conversation's id of so many words is a text."""


class AgentFacts:
    """The facts of a span with a role."""

    __slots__ = (
        *("answered", "call_id", "cancelled", "chat", "conversation", "denied", "extras", "failed", "finish"),
        *("finish_word", "finishes", "hint", "is_run", "message_id", "name", "named", "no_result", "outside", "plan"),
        *("raised", "reason", "records_answers", "role", "session", "timed_out", "tool_names", "waits_for"),
    )

    extras: Mapping[str, str]
    """Content that the settings ask for, by field."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.name = ""
        """What people call it; empty where the span has no name that is surely one."""
        self.extras = NO_EXTRAS
        self.hint = ""
        """The agent that a tool's or a model's span says it belongs to."""
        self.chat: tuple[int, str] | None = None
        """The conversation's id, behind the rank of the attribute that it stood in: lower is better."""
        self.conversation: str | None = None
        """The conversation's id that its framework gave, whoever else chose one."""
        self.failed = False
        self.reason = _NO_REASON
        self.answered = False
        """It holds a sign of an answer: a model's, or an agent's own. A finish reason that says otherwise wins."""
        self.records_answers = False
        """It has attributes for an answer, whatever is in them. Where no span of a run has any, the lack of one says
        nothing."""
        self.finish: Finish | None = None
        """Why the answer ended; None if nothing says so. Some models say ``ANSWERED`` also when they ask for a tool."""
        self.finish_word = ""
        """The same as it was written, such as ``SAFETY``."""
        self.cancelled = False
        """Its error, its finish reason or an attribute says that somebody cancelled it."""
        self.timed_out = False
        """Its error says that the time was over."""
        self.raised: Reason | None = None
        """An exception that it recorded last, at its end, although its status is not ERROR."""
        self.waits_for: str | None = None
        """What it waits for, if it ended only because it cannot go on without that."""
        self.denied = False
        """A tool's call that a person refused."""
        self.call_id: str | None = None
        """The id of a tool's call: spans that share one are the same call."""
        self.named = False
        """The name stood in an attribute for it, not only in the span's own name."""
        self.no_result = False
        """A tool's call whose arguments are there, and no result."""
        self.tool_names = NO_TOOLS
        """The tools that an agent has, or that a model asked for, by name, where the span says so."""
        self.plan: float | None = None
        """The share of a plan's points that are done."""
        self.message_id: str | None = None
        """The message that asked, if its user had it put on all spans."""
        self.session: str | None = None
        """OpenHands' id of its conversation."""
        self.is_run = False
        """A run of a conversation: a task whatever is above it, and completed only if something shows that."""
        self.finishes = False
        """A tool by which the agent says that it is finished."""
        self.outside = False
        """A tool call that hangs beside the run that it was made in."""

    def finish_by(self, reasons: Iterable[Any]) -> None:
        """Take over why an answer ended. ``reasons``: values of attributes of finish reasons, if there are any."""
        found = finish_of(reasons)
        if found is None:
            return
        self.finish, self.finish_word = found
        self.answered = self.finish not in _NO_OUTCOMES
        self.cancelled = self.cancelled or self.finish is Finish.CANCELLED


_OF_RESOURCE = NAMES.rank_of_resource
_NO_OUTCOMES = (Finish.ERROR, Finish.CANCELLED, Finish.FILTERED, Finish.EMPTY)
_REFINING_BY_EVENTS = tuple((frozenset(c.events), c.refine) for c in CONVENTIONS if c.refine is not None and c.events)


def read_facts(
    facts: AgentFacts, reading: Reading, chat_attributes: Sequence[str] = (), content: frozenset[str] = frozenset()
) -> None:
    """Fill in the facts of a span that has a role.

    Args:
        facts: new ones, which know the role alone.
        chat_attributes: further attributes that may name the conversation, after those of the conventions.
        content: fields of `CONTENT_FIELDS` that may be reported.
    """
    attributes, shape, role = reading.attributes, reading.shape, facts.role
    if content:
        facts.extras = dict(_extras(attributes, role, content))
    facts.name, facts.named = name_of(reading, role)
    if shape.has_hint and role is not AGENT:
        facts.hint = agent_hint(reading)
    facts.chat = _conversation(reading, chat_attributes)
    if shape.given:
        facts.conversation = _first_id(attributes, shape.given)
    if reading.failed or (shape.may_fail and _says_that_it_failed(attributes, shape)):
        facts.failed = True
        facts.reason = _reason(reading, role, content)
    if role is TOOL:
        facts.plan = plan_of(reading)
        facts.call_id = _first_id(attributes, shape.calls) if shape.calls else None
        facts.denied = bool(shape.denied) and reading.denied
        facts.no_result = shape.no_result
    else:
        _read_answer(facts, reading, shape)
        listed = shape.asked if role is LLM else shape.tool_names
        if listed:
            facts.tool_names = _texts_in(attributes, listed)
    if facts.failed or shape.cancelled or reading.exception != _NO_EXCEPTION:
        _read_interruption(facts, reading, shape, content)
    for refine in shape.refining if not reading.signals else _refining(reading, shape):
        refine(reading, facts, content)
    for _, event in reading.events:
        share = progress_event(event)
        if share is not None:
            facts.plan = max(facts.plan or 0.0, share)


def _refining(reading: Reading, shape: Shape) -> Sequence[Refine]:
    """Return what reads a span further: of the conventions whose attributes it has, or whose events."""
    signals = {name for name, _ in reading.signals}
    by_events = {refine for events, refine in _REFINING_BY_EVENTS if not events.isdisjoint(signals)}
    return [refine for _, refine in NAMES.refining if refine in shape.refining or refine in by_events]


def _conversation(reading: Reading, more: Sequence[str]) -> tuple[int, str] | None:
    shape = reading.shape
    chats, chosen = shape.chats, reading.resource.get(semconv.CHAT_ID)
    default = None if chosen is None else id_of(chosen)
    if more:
        chats += tuple((len(NAMES.chats) + 1 + n, name) for n, name in enumerate(more))
    attributes = reading.own_attributes if shape.declares else reading.attributes
    for rank, name in chats:
        if name not in attributes:
            continue
        if default is not None and rank > _OF_RESOURCE:
            break
        value = id_of(attributes[name])
        if value is not None and (rank < _OF_RESOURCE or name in more or not _says_more_than_an_id(value)):
            return rank, value
    return None if default is None else (_OF_RESOURCE, default)


@functools.lru_cache(maxsize=512)  # as `id_of` remembers ids
def _says_more_than_an_id(value: str) -> bool:
    """Return True for what names a person, or is a text."""
    return value.count(" ") >= _WORDS_OF_AN_ID - 1 or ("@" in value and ADDRESS.search(value) is not None)


def _first_id(attributes: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        if found := id_of(attributes[name]):
            return found
    return None


def _read_answer(facts: AgentFacts, reading: Reading, shape: Shape) -> None:
    attributes = reading.attributes
    facts.records_answers = shape.records_answers
    for name in shape.answers:
        if not is_filler(attributes[name]):
            facts.answered = True
            break
    reasons = [attributes[name] for name in shape.finishes] if shape.finishes else []
    if reading.signals:
        reasons += [values[name] for _, values in reading.signals for name in NAMES.finishes if name in values]
    if reasons:
        facts.finish_by(reasons)
    # Some models say that they are done when they ask for a tool, too.
    if shape.asks_for_tools and facts.finish in (None, Finish.ANSWERED):
        facts.finish, facts.finish_word = Finish.TOOLS, "tool_calls"


def _reason(reading: Reading, role: Role, content: Collection[str]) -> Reason:
    shape = reading.shape
    return reason_of(reading, role, types=shape.error_types, texts=shape.error_texts, whole="errors" in content)


def _read_interruption(facts: AgentFacts, reading: Reading, shape: Shape, content: Collection[str]) -> None:
    """Read what an error says that is none: somebody cancelled the work, or it waits for somebody."""
    attributes = reading.attributes
    exception, message = reading.exception
    if shape.cancelled:
        facts.cancelled = facts.cancelled or _holds(attributes, shape.cancelled)
    if not (facts.failed or exception or message):
        return
    error_type = as_text(attributes.get(semconv.ERROR_TYPE)) or ""
    text = reading.described or message
    kinds = [kind for kind in (error_type, exception) if kind]
    if any(is_wait(kind, "") for kind in kinds) or (facts.role is not LLM and is_wait("", text)):
        facts.waits_for = A_PERSON
        facts.reason = Reason("", f"waits for {A_PERSON}") if facts.failed else facts.reason
        return
    if facts.role is TOOL and (is_denied("", text) or any(is_denied(kind, "") for kind in kinds)):
        facts.denied = True
    at_end = reading.raised_at_end
    if facts.failed or at_end:
        facts.cancelled = facts.cancelled or is_cancelled("", text) or any(is_cancelled(kind, "") for kind in kinds)
        facts.timed_out = is_timed_out("", text) or any(is_timed_out(kind, "") for kind in kinds)
    if at_end and not facts.failed:
        facts.raised = _reason(reading, facts.role, content)


def _texts_in(attributes: Mapping[str, Any], names: Sequence[str]) -> frozenset[str]:
    """Return the texts that attributes hold, alone or in arrays."""
    found: set[str | None] = set()
    for name in names[:_MOST_LISTED]:
        value = attributes[name]
        found.update(map(as_text, value[:_MOST_LISTED] if type(value) in (tuple, list) else (value,)))
    return frozenset(text for text in found if text)


def _says_that_it_failed(attributes: Mapping[str, Any], shape: Shape) -> bool:
    """Return True if an attribute says so, whatever the status does."""
    if shape.has_error_type and as_text(attributes[semconv.ERROR_TYPE]):
        return True
    return bool(shape.failed) and _holds(attributes, shape.failed)


def _holds(attributes: Mapping[str, Any], values: Sequence[tuple[str, str]]) -> bool:
    return any((as_text(attributes[name]) or "").lower() == value for name, value in values)


def _extras(attributes: Mapping[str, Any], role: Role, content: Collection[str]) -> Iterator[tuple[str, str]]:
    for field in content:
        for convention in CONVENTIONS:
            texts = (as_text(attributes.get(name)) for name in convention.content.get((role, field), ()))
            text = next(filter(None, texts), None)
            if text:
                yield field, clean_line(text, EXTRA_CAP)
                break
