"""Interruptions: errors that are none, because somebody cancelled the work, or the work waits for somebody."""

from __future__ import annotations

import functools

from otel_letta.text import pattern

A_PERSON = "a person"
"""What a task waits for, where nothing says more."""

_CANCELLED_TYPE = pattern(
    r"(?i)(?:.*[.:$*_])?\w*?(?:cancell?(?:ed|ation)|abort(?:ed)?|keyboardinterrupt|generatorexit|(?<![a-z])interrupted)(?:error|exception)?"
)
_CANCELLED_TEXT = pattern(
    r"(?i)(?:\bcontext cancell?ed\b|\bparent job is cancelling\b|\bsleep interrupted\b"
    r"|\b(?:interrupt|termination|terminated) signal received\b|\bsignal: (?:interrupt|terminated|killed)\b"
    r"|\brequest was interrupted\b|\bcancell?ed by (?:the )?user\b"
    r"|\b(?:the )?user (?:aborted|cancell?ed)\b"
    r"|\b(?:operation|request|delay|call|task|run|stream|agent|turn|session|coroutine|future|job)"
    r" (?:was |is |has been )?(?:aborted|cancell?ed)\b)"
    r"|^\s*(?:error: )?(?:abort(?:ed)?|cancell?ed|interrupted)\.?\s*$"
)
_TIMED_OUT_TEXT = pattern(r"(?i)\b(?:deadline exceeded|timed out|timeout (?:exceeded|expired))\b")
_TIMED_OUT_TYPE = pattern(r"(?i)(?:.*[.:$*_])?\w*?(?:time-?d?_?out|deadline_?exceeded)(?:error|exception)?")

_WAIT_TYPES = frozenset(
    {
        "graphinterrupt",  # LangGraph
        "nodeinterrupt",
        "parentcommandinterrupt",
        "toolinterrupterror",  # Genkit
        "interrupterror",  # Eino
        "interruptsignal",
        "interruptexception",
        "approvalrequired",  # Pydantic AI
        "calldeferred",
        "approvalrequirederror",
        "toolapprovalrequired",
        "toolapprovalrequirederror",
        "humaninputrequired",
        "humanfeedbackpending",  # CrewAI
        "inputrequired",
        "inputrequirederror",
        "confirmationrequired",
        "confirmationrequirederror",
        "waitingforevent",  # LlamaIndex
    }
)
_WAIT_TEXT = pattern(
    r"(?i)\b(?:requires?|needs?|awaiting|waiting for) (?:a |the )?(?:user(?:'s)? |human )?(?:confirmation|approval)\b"
    r"|^\W{0,2}(?:\w+\.)*(?:Graph|Node)?Interrupt\("  # LangGraph's, as repr() shows it
)


def _last_part(kind: str) -> str:
    return kind.strip("* ").rpartition(".")[2].rpartition(":")[2]


@functools.lru_cache(maxsize=128)
def is_cancelled(kind: str, text: str) -> bool:
    """Return True for an error's type or text that says that somebody cancelled the work."""
    if kind and _CANCELLED_TYPE.fullmatch(kind.strip()[:200]):
        return True
    # JavaScript puts a stack trace behind the first line.
    return bool(text) and _CANCELLED_TEXT.search(text[:2_000].strip().partition("\n")[0]) is not None


@functools.lru_cache(maxsize=128)
def is_timed_out(kind: str, text: str) -> bool:
    """Return True for an error's type or text that says that the time was over."""
    if kind and _TIMED_OUT_TYPE.fullmatch(kind.strip()[:200]):
        return True
    return bool(text) and _TIMED_OUT_TEXT.search(text[:2_000]) is not None


@functools.lru_cache(maxsize=128)
def is_wait(kind: str, text: str) -> bool:
    """Return True for an error's type or text by which a framework pauses until somebody answers."""
    return _last_part(kind).lower() in _WAIT_TYPES or (bool(text) and _WAIT_TEXT.search(text[:2_000]) is not None)


_DENIED_TYPES = frozenset(
    {"denied", "rejected", "declined", "tooldenied", "toolrejected", "userrejected", "userdenied", "approvaldenied"}
    | {"tool_denied", "tool_rejected", "user_rejected", "user_denied", "approval_denied", "tooldeniederror"}
)
_DENIED_TEXT = pattern(
    r"(?i)\b(?:denied|rejected|declined|refused) by (?:the |a )?(?:user|human|person|operator|reviewer)\b"
    r"|\b(?:the )?(?:user|human|operator|reviewer) (?:has )?(?:denied|rejected|declined|refused)\b"
)


@functools.lru_cache(maxsize=128)
def is_denied(kind: str, text: str) -> bool:
    """Return True for an error's type or text that says that a person refused a tool's call."""
    return _last_part(kind).lower() in _DENIED_TYPES or (bool(text) and _DENIED_TEXT.search(text[:2_000]) is not None)
