"""The form of a convention of agent tracing: one record says all that is known of it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading


class Role(enum.Enum):
    """The part of a span in an agent's work. One without a role is looked through."""

    AGENT = "agent"
    STEP = "step"
    TOOL = "tool"
    LLM = "llm"

    __hash__ = object.__hash__  # until Python 3.12 that of an enum is a function in Python


AGENT, STEP, TOOL, LLM = Role
"""The same under names of their own: until Python 3.12 a look at ``Role.TOOL`` takes 80 ns longer, and each span has
dozens of them."""


class Unclaimed(enum.Enum):
    """The answer of a convention that a span does not follow, so that another one may decide its role."""

    UNCLAIMED = "unclaimed"


UNCLAIMED: Final[Literal[Unclaimed.UNCLAIMED]] = Unclaimed.UNCLAIMED

_NONE: Mapping[Any, Any] = MappingProxyType({})


class Convention(NamedTuple):
    """A convention: which attributes it has, and what they mean. All but the name may be left out.

    Names of attributes stand in the order in which they are asked, and those of an earlier convention come first.
    """

    name: str
    marks: frozenset[str] = frozenset()
    """Attributes of which every span of the convention has one. Bare words on such a span mean something else."""
    role: Callable[[Reading], Role | Unclaimed | None] = lambda reading: UNCLAIMED
    """The role of a span, None for none. Asked only where one of ``marks``, or of ``also_asked``, is there."""
    also_asked: frozenset[str] = frozenset()
    names: Mapping[Role, tuple[str, ...]] = _NONE
    """Attributes that hold what people call a span, by its role."""
    repeated_names: frozenset[str] = frozenset()
    """Further attributes that may repeat a name: a text that is found in them is still a name."""
    chosen_chats: tuple[str, ...] = ()
    """Attributes that hold a conversation's id which its user chose, to have it reported."""
    chats: tuple[str, ...] = ()
    """Attributes that hold a conversation's id which a framework gave."""
    answers: frozenset[str] = frozenset()
    """Attributes that show that a model answered."""
    answer_prefixes: tuple[str, ...] = ()
    """Beginnings of the names of such attributes."""
    no_answers: frozenset[str] = frozenset()
    """Attributes with such a beginning that show none: they are known before a model answers."""
    finishes: tuple[str, ...] = ()
    """Attributes that hold why an answer ended."""
    call_ids: tuple[str, ...] = ()
    """Attributes that hold the id of a tool's call: spans that share one are the same call."""
    tool_names: tuple[str, ...] = ()
    """Attributes that hold the names of the tools that an agent has."""
    error_types: tuple[str, ...] = ()
    """Attributes that hold an error's type, beside ``error.type``."""
    error_texts: tuple[str, ...] = ()
    """Attributes that hold an error's text, beside ``error.message``."""
    denied: Mapping[str, frozenset[str]] = _NONE
    """Attributes, and the values by which they say that a person refused a tool's call."""
    cancelled: Mapping[str, str] = _NONE
    """Attributes, and the value by which they say that somebody cancelled the work."""
    events: Mapping[str, tuple[str, ...]] = _NONE
    """Names of its span events that are read, with their attributes that may be."""
    failed: Mapping[str, str] = _NONE
    """Attributes, and the value by which they say that a span failed."""
    plans: tuple[str, ...] = ()
    """Attributes of a tool's span that may hold a plan: a list of points with a status each."""
    content: Mapping[tuple[Role, str], tuple[str, ...]] = _NONE
    """Attributes that hold content, by role and field of `CONTENT_FIELDS`."""
    event_prefixes: tuple[str, ...] = ()
    """Beginnings of the names of its span events, whose ``content`` is a prompt or an answer."""
    declares_nothing: Callable[[str, Mapping[str, Any]], bool] | None = None
    """True for a span, by its name and attributes, that carries ids of ours and is still no task."""
    refine: Callable[[Reading, AgentFacts, frozenset[str]], None] | None = None
    """Reads what this record has no field for; the last argument holds the content fields that may be reported."""
