"""How an agent's task ended, judged from all its spans: frameworks often leave their root span OK or UNSET."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from otel_letta.report import TaskStatus
from otel_letta.tracking.conventions import Reason, Role

__all__ = ["Judged", "Verdict", "judge", "judge_orphans"]


class Judged(Protocol):
    """What is asked of a span."""

    role: Role
    start: int
    end: int | None
    failed: bool
    reason: Reason
    answered: bool
    depth: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """``stopped``: nothing failed, and yet the last question to the model has no answer."""

    status: TaskStatus
    reason: Reason = Reason()  # noqa: RUF009 - frozen
    stopped: bool = False


def judge(root: Judged, below: Sequence[Judged]) -> Verdict:
    """The verdict on a task whose root has ended.

    A failed tool or model call below is a problem of a step: agents recover from those. Only what came last, with
    nothing after it that went well, tells how the task ended.
    """
    ended = [span for span in below if span.end is not None]
    if root.failed:
        return Verdict(TaskStatus.FAILED, _reason(root, ended))
    models = [span for span in ended if span.role is Role.LLM]
    agent = _last(span for span in ended if span.role is Role.AGENT)
    if agent is not None and agent.failed and not _recovered(agent, models):
        return Verdict(TaskStatus.FAILED, _reason(agent, ended))
    if models:
        leaf = _last(span for span in ended if span.role in (Role.LLM, Role.TOOL))
        if leaf is not None and leaf.failed:
            return Verdict(TaskStatus.FAILED, _reason(leaf, ended))
        last = _last(models)
        # Calls that ran side by side with the last one count as one: a race has one winner.
        if last is not None and not any(span.answered for span in models if (span.end or 0) >= last.start):
            return Verdict(TaskStatus.FAILED, stopped=True)
    return Verdict(TaskStatus.COMPLETED)


def judge_orphans(tops: Sequence[Judged], below: Sequence[Judged]) -> Verdict | None:
    """The verdict on spans whose root never came; None if they do not tell, and the task is lost."""
    last = _last(span for span in tops if span.end is not None)
    if last is None:
        return None
    if last.role is Role.AGENT:
        return judge(last, [*(span for span in tops if span is not last), *below])
    return Verdict(TaskStatus.FAILED, _reason(last, below)) if last.failed else None


def _last(spans: Iterable[Judged]) -> Judged | None:
    return max(spans, key=lambda span: (span.end or 0, -span.depth), default=None)


def _recovered(agent: Judged, models: Sequence[Judged]) -> bool:
    return any(span.answered and not span.failed and span.start >= (agent.end or 0) for span in models)


def _reason(failed: Judged, below: Sequence[Judged]) -> Reason:
    """Its own reason, or that of the last failure below it, the deepest first."""
    if failed.reason.text:
        return failed.reason
    causes = [span for span in below if span.failed and span.reason and span is not failed]
    deepest = max(causes, key=lambda span: (bool(span.reason.text), span.end or 0, span.depth), default=None)
    return deepest.reason if deepest is not None and (deepest.reason.text or not failed.reason) else failed.reason
