"""Shapes: what the names of a span's attributes say under all conventions, whatever their values.

Spans of one instrumentation carry the same names again and again. So each set of names is asked about once, by looking
up each name, and what was found is kept: reading a span costs as much as it has attributes that mean something, however
many conventions there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from otel_letta import semconv
from otel_letta.text import pattern
from otel_letta.tracking.conventions.convention import Convention, Role, Unclaimed

if TYPE_CHECKING:
    from otel_letta.tracking.conventions.facts import AgentFacts
    from otel_letta.tracking.reading import Reading

_MOST_KEPT = 512
_MOST_NAMES = 64
_MOST_TEXT = 4_096
"""Shapes that are kept, the names of one, and their characters: names may be anybody's."""
_TOOL_CALLS = pattern(r"\.tool_calls\.\d")
_ASKED = pattern(r"\.tool_calls\.\d.*\.(?:function\.)?name")
CONVERSATIONS = (semconv.GEN_AI_CONVERSATION, "conversation.id", semconv.SESSION_ID)
"""What may hold the id of a conversation, or of a session, in spans and log events alike."""

Refine = Callable[["Reading", "AgentFacts", frozenset[str]], None]
Decide = Callable[["Reading"], "Role | Unclaimed | None"]


class Shape:
    """The names of a span's attributes, by what they hold. All in the order in which they are asked."""

    __slots__ = (
        *("answers", "asked", "asks_for_tools", "calls", "cancelled", "chats", "conversations", "deciding", "declares"),
        *("denied", "error_texts", "error_types", "failed", "finishes", "given", "has_error_type", "has_hint"),
        *("is_marked", "may_fail", "names", "no_result", "plans", "records_answers", "refining", "tool_names"),
    )

    def __init__(self, known: Names, names: Sequence[str]) -> None:
        here = frozenset(names)
        signs = [name for name in names if known.shows_answer(name)]
        self.deciding = tuple(decide for marks, decide in known.deciding if not here.isdisjoint(marks))
        """The conventions that may know its role."""
        self.refining = tuple(refine for marks, refine in known.refining if not here.isdisjoint(marks))
        self.is_marked = not here.isdisjoint(known.marks)
        """An agent framework made the span."""
        self.declares = not here.isdisjoint(semconv.INTERESTING)
        """Something that a declaration is made of is there."""
        self.has_error_type = semconv.ERROR_TYPE in here
        self.error_types = tuple(name for name in known.error_types if name in here)
        """What may hold an error's type, and its text, beside the names that any span may have."""
        self.error_texts = tuple(name for name in known.error_texts if name in here)
        self.has_hint = semconv.GEN_AI_AGENT_NAME in here
        """It names the agent that it belongs to."""
        self.names = {role: tuple(name for name in all_ if name in here) for role, all_ in known.names.items()}
        """What may hold the name that people call it, by its role."""
        self.chats = tuple((rank, name) for name, rank in known.chats.items() if name in here)
        """Rank and name of what may hold a conversation's id, the best first."""
        self.given = tuple(name for name in known.given if name in here)
        """What may hold a conversation's id that its framework gave."""
        self.conversations = tuple(name for name in CONVERSATIONS if name in here)
        self.records_answers = bool(signs)
        self.answers = tuple(name for name in signs if name not in known.no_answers)
        self.asks_for_tools = any(_TOOL_CALLS.search(name) for name in signs)
        self.asked = tuple(name for name in signs if _ASKED.search(name)) if self.asks_for_tools else ()
        """What holds the names of the tools that a model asked for."""
        self.tool_names = tuple(name for name in known.tool_names if name in here)
        """What may hold the names of the tools that an agent has."""
        self.no_result = not known.arguments.isdisjoint(here) and known.results.isdisjoint(here)
        """It holds what a tool was called with, and not what that gave back."""
        self.finishes = tuple(name for name in known.finishes if name in here)
        self.calls = tuple(name for name in known.calls if name in here)
        self.plans = tuple(name for name in known.plans if name in here)
        self.denied = tuple((name, values) for name, values in known.denied.items() if name in here)
        self.failed = tuple((name, value) for name, value in known.failed.items() if name in here)
        self.cancelled = tuple((name, value) for name, value in known.cancelled.items() if name in here)
        self.may_fail = self.has_error_type or bool(self.failed)
        """Something that may say that it failed, whatever the status does, is there."""


class Names:
    """All names that conventions know, and the shapes that were met.

    Args:
        conventions: in the order in which they are asked.
    """

    def __init__(self, conventions: Sequence[Convention]) -> None:
        self.marks: frozenset[str] = frozenset().union(*(c.marks for c in conventions))
        self.deciding: tuple[tuple[frozenset[str], Decide], ...] = tuple(
            (c.marks | c.also_asked, c.role) for c in conventions if c.marks or c.also_asked
        )
        self.refining: tuple[tuple[frozenset[str], Refine], ...] = tuple(
            (c.marks | c.also_asked, c.refine) for c in conventions if c.refine is not None
        )
        self.names = {role: tuple(name for c in conventions for name in c.names.get(role, ())) for role in Role}
        chosen = tuple(name for c in conventions for name in c.chosen_chats)
        self.given = tuple(name for c in conventions for name in c.chats)
        """What may hold a conversation's id that its framework gave."""
        self.rank_of_resource = len(chosen)
        """The rank of the resource's own word. Whoever set that chose it: it beats what a framework gave."""
        self.chats = {name: rank for rank, name in enumerate((*chosen, "", *self.given)) if name}
        self.answers: frozenset[str] = frozenset().union(*(c.answers for c in conventions))
        self.no_answers: frozenset[str] = frozenset().union(*(c.no_answers for c in conventions))
        self.answer_prefixes = tuple(prefix for c in conventions for prefix in c.answer_prefixes)
        self.finishes = tuple(name for c in conventions for name in c.finishes)
        self.calls = tuple(name for c in conventions for name in c.call_ids)
        self.tool_names = tuple(name for c in conventions for name in c.tool_names)
        self.arguments = frozenset(n for c in conventions for n in c.content.get((Role.TOOL, "arguments"), ()))
        self.results = frozenset(n for c in conventions for n in c.content.get((Role.TOOL, "results"), ()))
        self.plans = tuple(name for c in conventions for name in c.plans)
        self.error_types = tuple(name for c in conventions for name in c.error_types)
        self.error_texts = tuple(name for c in conventions for name in c.error_texts)
        self.denied = {name: values for c in conventions for name, values in c.denied.items()}
        self.failed = {name: value for c in conventions for name, value in c.failed.items()}
        self.cancelled = {name: value for c in conventions for name, value in c.cancelled.items()}
        self._shapes: dict[tuple[str, ...], Shape] = {}

    def shows_answer(self, name: str) -> bool:
        return name in self.answers or (type(name) is str and name.startswith(self.answer_prefixes))

    def shape_of(self, attributes: Mapping[str, Any]) -> Shape:
        """Return what the names of these attributes say."""
        names = tuple(attributes)
        shape = self._shapes.get(names)
        if shape is None:
            shape = Shape(self, names)
            if _is_small(names):
                if len(self._shapes) >= _MOST_KEPT:
                    self._shapes.clear()
                self._shapes[names] = shape
        return shape


def _is_small(names: Sequence[str]) -> bool:
    return len(names) <= _MOST_NAMES and all(type(n) is str for n in names) and sum(map(len, names)) <= _MOST_TEXT
