"""Verdicts: how a task ended. An agent's is judged from all its spans: frameworks often leave their root span OK or
UNSET, and some set no status at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from otel_letta.report import TaskStatus
from otel_letta.text import pattern
from otel_letta.tracking.conventions import AGENT, LLM, STEP, TOOL
from otel_letta.tracking.conventions.finishes import Finish
from otel_letta.tracking.conventions.interruptions import A_PERSON
from otel_letta.tracking.conventions.reasons import Reason
from otel_letta.tracking.nodes import Node
from otel_letta.tracking.reading import Reading


class Verdict(NamedTuple):
    """How an agent's task ended, and why."""

    status: TaskStatus
    reason: Reason = Reason()
    stopped: bool = False
    """Nothing failed, and yet the last question to the model has no answer."""
    spoke: bool = False
    """It completed with a message to its user, which may be a question."""
    cancelled: bool = False
    """Somebody cancelled it."""
    timed_out: bool = False
    cut: bool = False
    """It completed with an answer that a limit of length cut off."""
    waits_for: str | None = None
    """It has not ended: it cannot go on without this."""


def judge_declared(given: TaskStatus | None, reading: Reading, aborted: str | None) -> tuple[TaskStatus, str | None]:
    """Judge a declared task whose last span has ended; returns its status, and why it failed.

    An explicit terminal status wins; UNSET alone is success only when nothing aborted the span.

    Args:
        said: the status that the task's own spans gave.
        aborted: why it ended, if an exception stopped it that OpenTelemetry does not record.
    """
    if given is not None and given.is_terminal:
        return given, (reading.error or None) if given is TaskStatus.FAILED else None
    if aborted is not None:
        return TaskStatus.FAILED, aborted
    if reading.failed:
        return TaskStatus.FAILED, reading.error or None
    return TaskStatus.COMPLETED, None


_MOST_HOPS = 1_000
_UNFINISHED = Reason("", "stopped before it was finished: paused, interrupted, stuck, or at a limit")
_COMPLETED = Verdict(TaskStatus.COMPLETED)
_STOPPED = Verdict(TaskStatus.FAILED, stopped=True)
_NOT_CALLED = Verdict(TaskStatus.IN_PROGRESS, waits_for=f"{A_PERSON}: a tool that it asked for was not called")
"""The agent says itself that it ended with the request: whoever called it has to allow the tool, or to call it."""


def judge(root: Node, below: Sequence[Node], outside: int = 0, *, torn: int = 0) -> Verdict:
    """The verdict on a task whose root has ended.

    A failed tool or model call below is a problem of a step: agents recover from those. Only what came last, with
    nothing after it that went well, tells how the task ended.

    Args:
        outside: when the last call of a tool started that belongs to the task and is not below its root.
        torn: when the last span of its work started that names a parent in the same process which never came: that
            one was cut off.
    """
    ended = [span for span in below if span.end is not None]
    return (
        _waits(root, ended)
        or _by_root(root, ended)
        or (_judge_run(below, outside) if root.is_run else None)
        or _by_sub_agent(ended)
        or _by_last_tool(root, ended)
        or _by_torn(root, ended, torn)
        or _by_last_model(root, ended)
        or _COMPLETED
    )


def _waits(root: Node, ended: Sequence[Node]) -> Verdict | None:
    """It waits if its root, or what came last in it, ended only because it cannot go on without somebody."""
    if root.waits_for is not None:
        return Verdict(TaskStatus.IN_PROGRESS, waits_for=root.waits_for)
    waiting = [span for span in ended if span.waits_for is not None]
    last = _last_begun(waiting)
    if last is None or any(span.role is LLM and span.start > (last.end or 0) for span in ended):
        return None
    about = f": {last.name}" if last.role is TOOL and last.name else ""
    return Verdict(TaskStatus.IN_PROGRESS, waits_for=f"{last.waits_for}{about}")


def _by_root(root: Node, ended: Sequence[Node]) -> Verdict | None:
    """What the root says of itself."""
    if root.cancelled:
        return _failed(root, ended)
    if root.failed:
        return _failed(root, ended)
    if root.raised is not None and not root.answered:
        return _failed(root, ended)
    if root.finish in (Finish.ERROR, Finish.FILTERED) or (root.finish is Finish.EMPTY and not root.ok):
        return _by_finish(root)
    return None


def _by_sub_agent(ended: Sequence[Node]) -> Verdict | None:
    """A sub-agent that failed last, and no model went on after it.

    One that a tool called is that tool's failure: agents recover from those, and where their calls of models are not
    traced nobody sees it.
    """
    agent = _last(span for span in ended if span.role is AGENT)
    if agent is None or not agent.failed:
        return None
    tool = next((span for span in _above(agent) if span.role is TOOL), None)
    if tool is not None and all(_is_below(span, tool) for span in ended if span.role is LLM):
        return None
    if any(span.role is LLM and span.answered and span.start >= (agent.end or 0) for span in ended):
        return None
    return _failed(agent, ended)


_FINAL = pattern(
    r"(?i)(?:transfer_|hand_?off).*|(?:final|structured)_?(?:output|answer|result|response)(?:_.*)?"
    r"|(?:output|answer|finish|submit|complete|done)|(?:attempt_completion|task_complete|submit_.*)"
    r"|(?:exit|end|finish|complete)_(?:loop|task|run|turn|conversation|session)|set_model_response"
)
"""Tools by which agents end on purpose, or hand over."""
_ASKING = pattern(r"(?i)(?:adk_)?request_(?:input|confirmation|credential)|get_user_choice")
"""Tools by which agents end to ask a person: the answer comes in another run."""


def _by_last_tool(root: Node, ended: Sequence[Node]) -> Verdict | None:
    """A tool is last: the model was not asked again with what it gave, so something stopped the agent.

    Models are ordered by their starts: some spans of models enclose the tools that the model asked for.
    """
    models = [span for span in ended if span.role is LLM]
    tools = [span for span in ended if span.role is TOOL]
    if not models or not tools:
        return _failed(tools[-1], ended) if tools and (tools := [t for t in tools if t.cancelled]) else None
    last = [tool for tool in tools if not _asked_again(tool, models)]
    if not last:
        return None
    if any(tool.finishes or _FINAL.fullmatch(tool.name) for tool in last):
        return None
    asking = [tool.name for tool in last if _ASKING.fullmatch(tool.name) and not (tool.failed or tool.cancelled)]
    if asking:
        return Verdict(TaskStatus.IN_PROGRESS, waits_for=f"{A_PERSON}: {asking[0]}")
    if root.ok and root.finish is Finish.ANSWERED:
        return None  # one span of a model holds the whole conversation with it, and the root has its last word
    bad = _last(tool for tool in last if tool.failed or tool.cancelled)
    if bad is not None:
        return _failed(bad, ended)
    if root.ok and (root.answered or not any(tool.no_result for tool in last)):
        return None
    return _STOPPED


def _by_torn(root: Node, ended: Sequence[Node], torn: int) -> Verdict | None:
    """Something was cut off, and no model was asked after that."""
    if root.ok or not torn or any(span.role is LLM and span.start > torn for span in ended):
        return None
    return _STOPPED


def _asked_again(tool: Node, models: Sequence[Node]) -> bool:
    """Return True if a model's call began after a tool's, or if only the tool's own calls of models are traced."""
    if any(model.start >= tool.start and not _is_below(model, tool) for model in models):
        return True
    return all(_is_below(model, tool) for model in models)


def _above(span: Node) -> Iterator[Node]:
    """Yield the spans with a role above one, the nearest first."""
    up = span.above
    for _ in range(_MOST_HOPS):
        if up is None:
            return
        yield up
        up = up.above


def _is_below(span: Node, above: Node) -> bool:
    return any(up is above for up in _above(span))


def _by_last_model(root: Node, ended: Sequence[Node]) -> Verdict | None:
    """What the last call of a model says. Calls that ran side by side with it count as one: a race has one winner."""
    models = [span for span in ended if span.role is LLM]
    last = _last_begun(models)
    if last is None:
        return None
    race = [span for span in models if (span.end or 0) >= last.start and not _only_wraps(span, last)]
    if any(span.answered and not span.failed for span in race):
        if last.finish is Finish.TOOLS and last.answered and not _is_used(last, ended):
            # It asked for a tool, and was never asked again. OK says little where no agent shows an answer: some
            # instrumentations end every span with it. One that answered may have taken the request as its answer.
            agents = [span for span in _above(last) if span.role is AGENT]
            agent = agents[0] if agents else None
            if agent is not None and agent.finish is Finish.TOOLS:
                return _NOT_CALLED
            if agent is not None and agent.ok and (names := agent.tool_names & last.tool_names):
                return Verdict(TaskStatus.IN_PROGRESS, waits_for=f"{A_PERSON}: {', '.join(sorted(names))}")
            if not (root.answered or any(span.answered for span in agents)):
                return _STOPPED
        return Verdict(TaskStatus.COMPLETED, cut=all(s.finish is Finish.LENGTH for s in race if s.answered))
    bad = _last(span for span in race if span.failed or span.cancelled or span.raised is not None)
    if bad is not None:
        return _failed(bad, ended)
    if (found := _by_finish(last)) is not None:
        return found
    # Some instrumentations never record an answer, and then the lack of one says nothing.
    silent = not any(span.records_answers for span in models)
    return _COMPLETED if silent and (root.ok or root.answered) else _STOPPED


def _only_wraps(span: Node, last: Node) -> bool:
    """Return True for a span around the last call of a model that leaves it to that one to say how it ended."""
    return span.finish is None and last.finish is not None and _is_below(last, span)


def _is_used(model: Node, ended: Sequence[Node]) -> bool:
    """Return True if a tool was called after a model: whether that was the last step is judged by the tool."""
    return any(span.role is TOOL and span.start >= model.start for span in ended)


def _by_finish(span: Node) -> Verdict | None:
    """What a finish reason says that is no answer's."""
    if span.finish is Finish.FILTERED:
        return Verdict(TaskStatus.FAILED, Reason("", f"blocked by the model's filter ({span.finish_word})"))
    if span.finish is Finish.CANCELLED:
        return Verdict(TaskStatus.FAILED, cancelled=True)
    if span.finish is Finish.ERROR:
        return Verdict(TaskStatus.FAILED, Reason("", "the model's answer ended with an error"), stopped=True)
    return _STOPPED if span.finish is Finish.EMPTY else None


def _failed(span: Node, ended: Sequence[Node]) -> Verdict:
    """It failed with a span, or was cancelled there."""
    if span.waits_for is not None:
        return Verdict(TaskStatus.IN_PROGRESS, waits_for=span.waits_for)
    reason = _reason(span, ended)
    return Verdict(TaskStatus.FAILED, reason, cancelled=span.cancelled, timed_out=span.timed_out)


def _judge_run(below: Sequence[Node], outside: int) -> Verdict:
    """The verdict on a run whose own status says only that it did not raise.

    It finished if its last step called the tool for that, or answered without calling any. A step that was cut off
    never ends.
    """
    step = max((span for span in below if span.role is STEP), key=lambda span: span.start, default=None)
    began = step.start if step is not None else 0
    if any(span.finishes and not span.failed and span.end is not None and span.start >= began for span in below):
        return Verdict(TaskStatus.COMPLETED)
    if step is not None and step.end is not None and not step.failed:
        parts = [span for span in below if span.above is step]
        used_tool = began <= outside <= step.end or any(span.role is TOOL for span in parts)
        if not used_tool and any(span.finish is Finish.TOOLS and span.start >= began for span in below):
            # The step is over, and the tool that the model called has not begun: somebody has to confirm it.
            return Verdict(TaskStatus.IN_PROGRESS, waits_for=A_PERSON)
        if not used_tool and any(span.role is LLM and span.answered for span in parts):
            return Verdict(TaskStatus.COMPLETED, spoke=True)
    return Verdict(TaskStatus.FAILED, _UNFINISHED)


def judge_orphans(tops: Sequence[Node], below: Sequence[Node]) -> Verdict | None:
    """The verdict on spans whose root never came; None if they do not tell, and the task is lost."""
    last = _last(span for span in tops if span.end is not None)
    return _failed(last, below) if last is not None and (last.failed or last.waits_for is not None) else None


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
    if last.role is TOOL and not any(span.role is LLM for span in below):
        return None  # agents recover from those, and where models are not traced nobody sees it
    return _failed(last, below)


def _last(spans: Iterable[Node]) -> Node | None:
    return max(spans, key=lambda span: (span.end or 0, -span.depth), default=None)


def _last_begun(spans: Iterable[Node]) -> Node | None:
    return max(spans, key=lambda span: (span.start, span.depth), default=None)


def _reason(failed: Node, below: Sequence[Node]) -> Reason:
    """Its own reason, or that of the last failure below it, the deepest first."""
    own = failed.reason or failed.raised or Reason()
    if own.text and not own.is_partial:
        return own
    causes = [span for span in below if span.failed and span.reason and span is not failed]
    if own.text:  # a wrapper, whose cause was told nothing of: the model's own error says more
        causes = [span for span in causes if span.role is LLM and not span.reason.is_partial and span.reason.text]
    deepest = max(causes, key=lambda span: (bool(span.reason.text), span.end or 0, span.depth), default=None)
    return deepest.reason if deepest is not None and (deepest.reason.text or not own) else own
