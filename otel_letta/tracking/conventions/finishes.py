"""Finish reasons: why a model's answer ended, in the words of any provider or framework."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from otel_letta.text import as_text, clean_line, pattern

_WORD_CAP = 40
_MOST_CHOICES = 16
_READ = 400
"""Characters of a finish reason that are read."""


class Finish(enum.Enum):
    """Why an answer ended."""

    ANSWERED = "it was complete"
    TOOLS = "the model asked for a tool"
    LENGTH = "a limit of length"
    FILTERED = "a filter"
    CANCELLED = "somebody cancelled it"
    ERROR = "an error"
    EMPTY = "the attribute is there and says nothing: the answer was cut off"

    __hash__ = object.__hash__  # until Python 3.12 that of an enum is a function in Python


FILLERS = frozenset({"", "none", "null", "nil", "unknown", "undefined", "n/a", "unspecified", "other"})
"""Values that stand for no value."""

_WORDS: Mapping[Finish, str] = {
    Finish.ERROR: "error errored failed failure server_error network_error malformed_function_call malformed_tool_call "
    "unexpected_tool_call invalid_tool_call insufficient_system_resource",
    Finish.CANCELLED: "cancelled canceled cancel aborted abort interrupted user_abort user_cancelled user_canceled "
    "client_disconnected",
    Finish.FILTERED: "safety image_safety content_filter content_filtered filtered filter blocklist blocked "
    "prohibited_content image_prohibited_content spii recitation image_recitation refusal guardrail_intervened "
    "guardrail sensitive",
    # A turn that a provider paused is to be sent again, like one with a tool's answer.
    Finish.TOOLS: "tool_calls tool_call tool_use tool_execution function_call function_calls tools tool pause_turn",
    Finish.LENGTH: "length max_tokens max_output_tokens max_length token_limit max_token model_length "
    "model_context_window_exceeded context_length_exceeded",
}
_FINISHES = {word: finish for finish, words in _WORDS.items() for word in words.split()}
_WEIGHTS = {finish: place for place, finish in enumerate((*_WORDS, Finish.ANSWERED, Finish.EMPTY))}
"""Of several choices the one that says most counts."""
_SPLIT = pattern(r"[\[\]\"',\s]+")


def is_filler(value: Any) -> bool:
    """Return True for an attribute's value that stands for no value: empty, zero, or a word for nothing."""
    kind = type(value)  # whoever subclasses these may have any code in it
    if value is None:
        return True
    if kind in (int, float, bool):
        return not value
    if kind in (tuple, list):
        return all(is_filler(item) for item in value[:_MOST_CHOICES])
    text = as_text(value)
    return text is not None and len(text) <= _WORD_CAP and text.strip(" []{}\"'").lower() in FILLERS


def finish_of(values: Iterable[Any]) -> tuple[Finish, str] | None:
    """Return why an answer ended, and the word for it; None if nothing says so.

    Args:
        values: what stands in attributes of finish reasons: text, arrays, or an array written as text.
    """
    found: dict[Finish, str] = {}
    for value in values:
        words = _words_of(value)
        if not words:
            found.setdefault(Finish.EMPTY, "")
        for word in words:
            one = _finish_by(word)
            if one is not None:
                found.setdefault(*one)
    finish = min(found, key=_WEIGHTS.__getitem__, default=None)
    return None if finish is None else (finish, found[finish])


@functools.lru_cache(maxsize=128)
def _finish_by(word: str) -> tuple[Finish, str] | None:
    # "FinishReason.STOP", "FINISH_REASON_STOP", "tool-calls"
    plain = word.rpartition(".")[2].lower().replace("-", "_").removeprefix("finish_reason_")
    return None if plain in FILLERS else (_FINISHES.get(plain, Finish.ANSWERED), clean_line(word, _WORD_CAP))


def _words_of(value: Any) -> Sequence[str]:
    if type(value) in (tuple, list):
        return [word for item in value[:_MOST_CHOICES] for word in _words_of(item)]
    text = as_text(value)
    return () if text is None else _words_in(text[:_READ])


@functools.lru_cache(maxsize=128)
def _words_in(text: str) -> Sequence[str]:
    return tuple([word for word in _SPLIT.split(text) if word][:_MOST_CHOICES])
