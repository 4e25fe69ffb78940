"""What a statement about a task changes in it."""

from __future__ import annotations

from otel_letta.tracking import wording
from otel_letta.tracking.conventions import AGENT, LLM, TOOL
from otel_letta.tracking.conventions.facts import AgentFacts
from otel_letta.tracking.declared import Declaration
from otel_letta.tracking.ledger import seconds_between
from otel_letta.tracking.nodes import Followed
from otel_letta.tracking.reading import Reading
from otel_letta.tracking.tasks import InferredTask, Task


def stands_alone(declaration: Declaration, around: Task) -> bool:
    """Return True for a task inside a task that is one of its own: only with an id or a chat of its own."""
    return (declaration.task_id is not None and declaration.task_id != around.id) or (
        declaration.chat_id is not None and declaration.chat_id != around.chat_id
    )


def left_behind(reading: Reading, declaration: Declaration, around: Task) -> bool:
    """Return True for a span that is no step of the task above it any more, since that had ended."""
    return around.ended and (declaration.task_id is not None or around.had_ended(reading.start))


def merge(task: Task, declaration: Declaration, content: str | None, *, own: bool) -> bool:
    """Take over a statement about a task; True if it is news.

    Args:
        content: the content, if it is one that the span did not give before.
        own: the task's own span says it, not a step.
    """
    changed = task.reach(declaration.progress)
    if content is not None:
        changed |= content != task.content
        task.content = content
        if own:
            task.root_content = content
    # A step's result counts as its task's only until the task gives one itself.
    if declaration.result is not None and (own or not task.has_own_result):
        changed |= declaration.result != task.result
        task.result, task.has_own_result = declaration.result, own
    return changed


def wait_or_go_on(task: Task, span: Followed, waits: bool, said: str | None = None) -> bool:
    """Note whether a task waits as one of its open spans has it, and for what; True if that is news.

    What it waits for is what that span says. What others say meanwhile is no question: it would wake an agent.

    Args:
        said: the content, if the span has just given one.
    """
    before = task.questions.get(span)
    after = None
    if waits:
        after = said or (task.content if before is None else before) or wording.waits_for(wording.A_PERSON)
    if before == after:
        return False
    questions = {other: asks for other, asks in task.questions.items() if other is not span}
    if after is not None:
        questions[span] = after
    task.questions = questions
    return True


def merge_agents_step(task: Task, reading: Reading, facts: AgentFacts, aborted: str | None) -> bool:
    """Take over the end of a tool, a model call or a sub-agent; True if it is news."""
    failed = facts.failed or aborted is not None
    reason = (str(facts.reason) or aborted or "") if failed else None
    if facts.role in (TOOL, LLM):
        task.failed_steps += failed
    if facts.plan is not None:
        task.reach(min(facts.plan, wording.ALMOST_DONE))
    if facts.role is TOOL and facts.name:
        task.content = wording.tool_used(facts.name, seconds_between(reading.start, reading.end or 0), reason)
    elif facts.role is AGENT and facts.name:
        task.content = wording.sub_agent(facts.name, reason)
    else:
        return False
    return True


def merge_declaration(task: InferredTask, declaration: Declaration, *, own: bool) -> bool:
    """Take over what attributes of ours say about an agent's task; True if it is news about where it stands.

    Somebody addressed the task, so its end is wanted, however short it was.

    Args:
        own: the task's root says it, not a step.
    """
    task.inferred = task.inferred and declaration.inferred
    news = declaration.content is not None and declaration.content != task.content
    if declaration.content is not None:
        task.content = declaration.content
    news |= task.reach(declaration.progress)
    task.message_id = declaration.message_id or task.message_id
    if declaration.result is not None and (own or not task.has_own_result):
        task.result, task.has_own_result = declaration.result, own
    if own:
        task.declared_name = declaration.name or task.declared_name
        task.root_content = declaration.content if declaration.content is not None else task.root_content
        task.status = declaration.status if declaration.status is not None else task.status
    return news
