"""Verdicts: how a task ended. An agent's is judged from all its spans: frameworks often leave their root span OK or
UNSET."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from otel_letta.report import TaskStatus
from otel_letta.tracking.conventions import Role
from otel_letta.tracking.conventions.reasons import Reason
from otel_letta.tracking.nodes import Node
from otel_letta.tracking.reading import Reading

__all__ = ["Verdict", "judge", "judge_declared", "judge_orphans", "judge_unended"]


class Verdict(NamedTuple):
    """How an agent's task ended, and why."""

    status: TaskStatus
    reason: Reason = Reason()
    stopped: bool = False
    """Nothing failed, and yet the last question to the model has no answer."""
    spoke: bool = False
    """It completed with a message to its user, which may be a question."""


def judge_declared(said: TaskStatus | None, reading: Reading, aborted: str | None) -> tuple[TaskStatus, str | None]:
    """Judge a declared task whose last span has ended; returns its status, and why it failed.

    An explicit terminal status wins; UNSET alone is success only when nothing aborted the span.

    Args:
        said: the status that the task's own spans gave.
        aborted: why it ended, if an exception stopped it that OpenTelemetry does not record.
    """
    if said is not None and said.is_terminal:
        return said, (reading.error or None) if said is TaskStatus.FAILED else None
    if aborted is not None:
        return TaskStatus.FAILED, aborted
    if reading.failed:
        return TaskStatus.FAILED, reading.error or None
    return TaskStatus.COMPLETED, None


_UNFINISHED = Reason("", "stopped before it was finished: paused, interrupted, stuck, or at a limit")


def judge(root: Node, below: Sequence[Node], outside: int = 0) -> Verdict:
    """The verdict on a task whose root has ended.

    A failed tool or model call below is a problem of a step: agents recover from those. Only what came last, with
    nothing after it that went well, tells how the task ended.

    Args:
        outside: when the last call of a tool started that belongs to the task and is not below its root.
    """
    ended = [span for span in below if span.end is not None]
    if root.failed:
        return Verdict(TaskStatus.FAILED, _reason(root, ended))
    if root.is_run:
        return _judge_run(below, outside)
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


def _judge_run(below: Sequence[Node], outside: int) -> Verdict:
    """The verdict on a run whose own status says only that it did not raise.

    It finished if its last step called the tool for that, or answered without calling any. A step that was cut off
    never ends.
    """
    step = max((span for span in below if span.role is Role.STEP), key=lambda span: span.start, default=None)
    began = step.start if step is not None else 0
    if any(span.finishes and not span.failed and span.end is not None and span.start >= began for span in below):
        return Verdict(TaskStatus.COMPLETED)
    if step is not None and step.end is not None and not step.failed:
        parts = [span for span in below if span.above is step]
        used_tool = began <= outside <= step.end or any(span.role is Role.TOOL for span in parts)
        if not used_tool and any(span.role is Role.LLM and span.answered for span in parts):
            return Verdict(TaskStatus.COMPLETED, spoke=True)
    return Verdict(TaskStatus.FAILED, _UNFINISHED)


def judge_orphans(tops: Sequence[Node], below: Sequence[Node]) -> Verdict | None:
    """The verdict on spans whose root never came; None if they do not tell, and the task is lost."""
    last = _last(span for span in tops if span.end is not None)
    return Verdict(TaskStatus.FAILED, _reason(last, below)) if last is not None and last.failed else None


def judge_unended(root: Node, below: Sequence[Node]) -> Verdict | None:
    """The verdict on a task whose root came and never ended; None if nothing tells, and the task is lost.

    Some instrumentations never end the span that an exception went through. Then what failed last right below it is
    why, unless something went on after that.
    """
    if any(span.end is None for span in below):
        return None
    last = _last(span for span in below if span.above is root)
    if last is None or not last.failed:
        return None
    if last.role is Role.TOOL and not any(span.role is Role.LLM for span in below):
        return None  # agents recover from those, and where models are not traced nobody sees it
    return Verdict(TaskStatus.FAILED, _reason(last, below))


def _last(spans: Iterable[Node]) -> Node | None:
    return max(spans, key=lambda span: (span.end or 0, -span.depth), default=None)


def _recovered(agent: Node, models: Sequence[Node]) -> bool:
    return any(span.answered and not span.failed and span.start >= (agent.end or 0) for span in models)


def _reason(failed: Node, below: Sequence[Node]) -> Reason:
    """Its own reason, or that of the last failure below it, the deepest first."""
    if failed.reason.text:
        return failed.reason
    causes = [span for span in below if span.failed and span.reason and span is not failed]
    deepest = max(causes, key=lambda span: (bool(span.reason.text), span.end or 0, span.depth), default=None)
    return deepest.reason if deepest is not None and (deepest.reason.text or not failed.reason) else failed.reason
