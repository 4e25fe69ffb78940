"""What the conventions of agent tracing say of a span: its role, names, ids, outcome, and how far a plan is.

Roles come from attributes alone, never from the name of a framework or of its tracer, so a framework that nobody here
has seen is read by the same rules. What may be said about a span is picked here too, by an allow list: names,
outcomes, and one line of an error's text.
"""

from __future__ import annotations

import ast
import enum
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from opentelemetry.trace import SpanKind

from otel_letta import semconv
from otel_letta.text import as_text, clean_error, clean_line
from otel_letta.tracking import laminar
from otel_letta.tracking.roles import SpanFacts, SpanKey, _id, number_of, share_of

__all__ = [
    "CONTENT_FIELDS",
    "AgentFacts",
    "Pending",
    "Reason",
    "Role",
    "early_name",
    "name_for_logs",
    "pending_of",
    "read_agent",
    "role_of",
]

NAME_CAP = 80
_REASON_CAP = 200
_EXTRA_CAP = 300
_KIND_CAP = 200
_JSON_CAP = 65_536
_PROSE_WORDS = 7
"""A name of so many words is a sentence: some frameworks put the prompt there."""
_SPAN_NAME_WORDS = 5
"""The same for the name of a span that has no attribute for its name."""
_SPACELESS = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_SPACELESS_LETTERS = 20
"""In scripts without spaces between words (Chinese, Japanese, Thai …) so many letters are a sentence."""
_PUNCTUATION = re.compile(r"[?!。？！]|;\s")
_ADDRESS = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")


class Role(enum.Enum):
    """What a span is in an agent's work. One without a role is looked through."""

    AGENT = "agent"
    STEP = "step"
    TOOL = "tool"
    LLM = "llm"


_OPERATIONS: Mapping[str, Role | None] = {
    "invoke_workflow": Role.AGENT,
    "invoke_agent": Role.AGENT,
    "execute_tool": Role.TOOL,
    "chat": Role.LLM,
    "text_completion": Role.LLM,
    "generate_content": Role.LLM,
    "execute_task": Role.STEP,
}
_OPENINFERENCE: Mapping[str, Role | None] = {
    "AGENT": Role.AGENT,
    "TOOL": Role.TOOL,
    "LLM": Role.LLM,
    "CHAIN": Role.STEP,
    "RETRIEVER": Role.STEP,
    "RERANKER": Role.STEP,
    "GUARDRAIL": Role.STEP,
    "EVALUATOR": Role.STEP,
}
_TRACELOOP: Mapping[str, Role | None] = {
    "workflow": Role.AGENT,
    "agent": Role.AGENT,
    "task": Role.STEP,
    "tool": Role.TOOL,
}
_LAMINAR: Mapping[str, Role | None] = {"TOOL": Role.TOOL, "LLM": Role.LLM}
# Laminar's default kind says nothing, so the operation is told by the name that the instrumented program gave it.
_LAMINAR_NAMES: Mapping[str, Role | None] = {
    **dict.fromkeys(laminar.RUNS, Role.AGENT),
    **dict.fromkeys(laminar.STEPS, Role.STEP),
}


def role_of(facts: SpanFacts) -> Role | None:
    """The role of a span. The most specific convention that the span follows decides, alone."""
    attributes = facts.attributes
    if semconv.AGENT_SPAN_MARKS.isdisjoint(attributes):
        return None
    if semconv.MCP_METHOD in attributes and facts.kind is SpanKind.SERVER:
        return None  # the server's view of a tool call that its client tells too
    operation = as_text(attributes.get(semconv.GEN_AI_OPERATION))
    traceloop = as_text(attributes.get(semconv.TRACELOOP_KIND))
    if operation is not None:
        # OpenLLMetry calls each part of some frameworks an agent, and knows better in its own attribute.
        if operation == "invoke_agent" and traceloop in ("task", "tool"):
            return _TRACELOOP[traceloop]
        return _OPERATIONS.get(operation)
    kind = as_text(attributes.get(semconv.OPENINFERENCE_KIND))
    if kind is not None:
        return _OPENINFERENCE.get(kind.upper())
    if traceloop is not None:
        return _TRACELOOP.get(traceloop)
    kind = as_text(attributes.get(semconv.LAMINAR_KIND))
    if kind is not None:
        role = _LAMINAR.get(kind, _LAMINAR_NAMES.get(facts.name))
        return None if role is Role.LLM and laminar.is_outside_runs(attributes) else role
    if semconv.GEN_AI_MODEL in attributes:
        return Role.LLM
    return Role.TOOL if semconv.GEN_AI_TOOL_NAME in attributes else None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a span failed: the error's type, and one line of its text that may be told."""

    kind: str = ""
    text: str = ""

    def __bool__(self) -> bool:
        return bool(self.kind or self.text)

    def __str__(self) -> str:
        return self.text or self.kind

    @property
    def full(self) -> str:
        return f"{self.kind}: {self.text}" if self.kind and self.text else self.kind or self.text


@dataclass(slots=True)
class AgentFacts:
    """What is kept of a span with a role."""

    role: Role
    name: str
    """What people call it; empty where the span has no name that is surely one."""
    hint: str = ""
    """The agent that a tool or LLM span says it belongs to."""
    chat: tuple[int, str] | None = None
    """The conversation's id, behind the rank of the attribute that it stood in: lower is better."""
    failed: bool = False
    reason: Reason = field(default_factory=Reason)
    answered: bool = False
    """An LLM span that holds any sign of an answer."""
    plan: float | None = None
    """The share of a plan's points that are done."""
    extras: dict[str, str] = field(default_factory=dict)
    """Content that the settings ask for, by field."""
    message_id: str | None = None
    """The message that asked, if its user had it put on all spans."""
    session: str | None = None
    """OpenHands' id of its conversation."""
    is_run: bool = False
    """A run of a conversation: a task whatever is above it, and completed only if something shows that."""
    finishes: bool = False
    """A tool by which the agent says that it is finished."""
    outside: bool = False
    """A tool call that hangs beside the run that it was made in."""


def read_agent(
    facts: SpanFacts, role: Role, *, chat_attributes: Sequence[str] = (), content: Collection[str] = ()
) -> AgentFacts:
    """Read a span that has a role.

    Args:
        chat_attributes: further attributes that may name the conversation, after those of the conventions.
        content: fields of `CONTENT_FIELDS` that may be told.
    """
    attributes = facts.attributes
    failed = _failed(facts)
    seen = AgentFacts(
        role=role,
        name=_NAMES[role](facts),
        hint="" if role is Role.AGENT else _told_name(facts, semconv.GEN_AI_AGENT_NAME),
        chat=_conversation(attributes, chat_attributes),
        failed=failed,
        reason=reason_of(facts, whole="errors" in content) if failed else Reason(),
        # Laminar never ends the span of a call that was cut off, and may leave everything out of one that was not.
        answered=role is Role.LLM and (_answered(attributes) or (semconv.LAMINAR_KIND in attributes and not failed)),
        plan=_plan(attributes) if role is Role.TOOL else None,
        extras=dict(_extras(attributes, role, content)) if content else {},
    )
    if semconv.LAMINAR_KIND in attributes:
        _read_laminar(facts, seen, content)
    return seen


def _read_laminar(facts: SpanFacts, seen: AgentFacts, content: Collection[str]) -> None:
    attributes = facts.attributes
    seen.session = _id(attributes.get(laminar.SESSION))
    seen.message_id = next((found for name in laminar.MESSAGE_IDS if (found := _id(attributes.get(name)))), None)
    seen.is_run = seen.role is Role.AGENT and facts.name in laminar.RUNS
    if laminar.is_of_run(attributes):
        seen.hint = laminar.AGENT
    if seen.is_run:
        seen.name, seen.hint = laminar.AGENT, ""
        whole = "errors" in content
        cause = laminar.cause_of(facts.described or facts.exception[1])
        seen.reason = clean_reason(cause, whole=whole) if seen.failed and cause else seen.reason
    elif seen.role is Role.TOOL:
        seen.name = laminar.tool_name(seen.name)
        seen.failed = seen.failed or laminar.reports_error(attributes)
        seen.outside = laminar.is_outside_runs(attributes)
        seen.finishes = laminar.finishes(facts.name)
        if seen.finishes and "answer" in content:
            seen.extras["answer"] = clean_line(laminar.finish_message(attributes), _EXTRA_CAP)


# -- pending twins ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pending:
    """A span that Logfire sends when another one starts: which one, and below what."""

    key: SpanKey
    parent: SpanKey | None


def pending_of(facts: SpanFacts) -> Pending | None:
    """What a pending span announces; None for any other span."""
    if as_text(facts.attributes.get(semconv.LOGFIRE_SPAN_TYPE)) != "pending_span":
        return None
    real = facts.parent or facts.remote
    if real is None:
        return None
    try:
        parent = int(as_text(facts.attributes.get(semconv.LOGFIRE_PENDING_PARENT)) or "0", 16)
    except ValueError:
        parent = 0
    return Pending(real, (real[0], parent) if 0 < parent < 2**64 else None)


# -- names -----------------------------------------------------------------------------------------------------------


def _told_name(facts: SpanFacts, *names: str) -> str:
    for name in names:
        text = as_text(facts.attributes.get(name))
        shown = _without_values(clean_line(text, NAME_CAP)) if text else ""
        if shown and not _is_prose(shown, facts.attributes):
            return shown
    return ""


def _without_values(name: str) -> str:
    """A name without what addresses in it hold: queries, passwords, people."""
    if "@" in name or "?" in name or "://" in name:
        name = _ADDRESS.sub("…", clean_error(name, NAME_CAP))
        return name if any(character.isalnum() for character in name) else ""
    return name


def _is_prose(name: str, attributes: Mapping[str, Any], most: int = _PROSE_WORDS) -> bool:
    """True for a name that is rather a text: it is long, or part of what stands in the span's inputs."""
    words = len(name.split())
    letters = 0 if name.isascii() else len(_SPACELESS.findall(name))
    if words >= most or letters >= _SPACELESS_LETTERS or (_PUNCTUATION.search(name) and "/" not in name):
        return True
    return (words > 2 or letters > 4) and any(
        name.rstrip("…") in (as_text(value) or "")[:_JSON_CAP]
        for key, value in attributes.items()
        if key not in _NAME_ATTRIBUTES
    )


_NAME_ATTRIBUTES = frozenset(
    {
        semconv.GEN_AI_WORKFLOW_NAME,
        semconv.GEN_AI_AGENT_NAME,
        semconv.GEN_AI_TOOL_NAME,
        "agent.name",
        "tool.name",
        "traceloop.entity.name",
        "traceloop.entity.path",
        "traceloop.workflow.name",
        "lmnr.span.path",
        semconv.TASK_NAME,
        "logfire.msg",
        "logfire.msg_template",
    }
)
_PREFIX = re.compile(r"^(?:invoke_agent|invoke_workflow|execute_tool|execute_task|invoke|create_agent|tools/call)\s+")
_SUFFIX = re.compile(r"(?:\._execute_core|\.(?:run|arun|kickoff|workflow|task|agent|tool))$")


def _span_name(facts: SpanFacts) -> str:
    name = _SUFFIX.sub("", _PREFIX.sub("", clean_line(facts.name, 4 * NAME_CAP)))
    if _is_prose(name, facts.attributes, _SPAN_NAME_WORDS):
        return ""
    return _without_values(clean_line(name, NAME_CAP))


def early_name(facts: SpanFacts, near: Mapping[str, Any]) -> str:
    """The name of an open span whose attributes are still to come. ``near``: those of a span below it, which may hold
    the text that the name is part of."""
    return _span_name(replace(facts, attributes={**near, **facts.attributes}))


def name_for_logs(facts: SpanFacts) -> str:
    """What a log line may call a span."""
    name = clean_line(facts.name, NAME_CAP)
    return name if semconv.AGENT_SPAN_MARKS.isdisjoint(facts.attributes) else _span_name(facts) or "(of an agent)"


def _agent_name(facts: SpanFacts) -> str:
    operation = as_text(facts.attributes.get(semconv.GEN_AI_OPERATION))
    first = (semconv.GEN_AI_WORKFLOW_NAME, semconv.GEN_AI_AGENT_NAME)
    # A workflow's span may name an agent of it, and an agent's the workflow around it.
    names = first[::-1] if operation == "invoke_agent" else first
    return _told_name(facts, *names, "agent.name", "traceloop.entity.name") or _span_name(facts)


def _step_name(facts: SpanFacts) -> str:
    return _told_name(facts, semconv.GEN_AI_WORKFLOW_NAME, "traceloop.entity.name") or _span_name(facts)


def _tool_name(facts: SpanFacts) -> str:
    name = _told_name(facts, semconv.GEN_AI_TOOL_NAME, "tool.name", "traceloop.entity.name") or _span_name(facts)
    if name.startswith("mcp__"):
        name = name.split("__", 2)[-1]
    return name


_NAMES: Mapping[Role, Callable[[SpanFacts], str]] = {
    Role.AGENT: _agent_name,
    Role.STEP: _step_name,
    Role.TOOL: _tool_name,
    Role.LLM: lambda facts: "",
}


# -- the conversation ------------------------------------------------------------------------------------------------

_CHAT_ATTRIBUTES = (
    semconv.CHAT_ID,
    *laminar.CHAT_IDS,
    semconv.GEN_AI_CONVERSATION,
    semconv.SESSION_ID,
    "traceloop.association.properties.session_id",
    "traceloop.association.properties.thread_id",
    laminar.SESSION,
)
_CHOSEN = 1 + len(laminar.CHAT_IDS)
"""So many of them are ours: whoever set them wants them told."""


def _conversation(attributes: Mapping[str, Any], more: Sequence[str]) -> tuple[int, str] | None:
    for rank, name in enumerate((*_CHAT_ATTRIBUTES, *more)):
        value = _id(attributes.get(name))
        if value is not None and (rank < _CHOSEN or name in more or not _tells_more_than_an_id(value)):
            return rank, value
    return None


def _tells_more_than_an_id(value: str) -> bool:
    """True for what names a person, or is a text."""
    return len(value.split()) >= _PROSE_WORDS or _ADDRESS.search(value) is not None


# -- outcomes --------------------------------------------------------------------------------------------------------

_STATUSES = ("tool.status", "gen_ai.tool.status")
_ANSWERS = frozenset(
    {
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.completion_tokens",
        "gen_ai.output.messages",
        "llm.token_count.completion",
        "llm.output_messages",
        "output.value",
        "output_tokens",
        "traceloop.entity.output",
        "lmnr.span.output",
    }
)
_ANSWER_PREFIXES = ("gen_ai.response.", "llm.output_messages.", "gen_ai.completion.")


def _answered(attributes: Mapping[str, Any]) -> bool:
    if not _ANSWERS.isdisjoint(attributes):
        return True
    return any(type(name) is str and name.startswith(_ANSWER_PREFIXES) for name in attributes)


def _failed(facts: SpanFacts) -> bool:
    attributes = facts.attributes
    return (
        facts.failed
        or bool(as_text(attributes.get(semconv.ERROR_TYPE)))
        or any(as_text(attributes.get(name)) == "error" for name in _STATUSES)
    )


_EMPTY_WORDS = re.compile(r"(?i)(?:run\s+)?(?:status:\s*)?(?:error|failed|failure|unknown)\.?")


def reason_of(facts: SpanFacts, *, whole: bool = False) -> Reason:
    """Why a span failed. ``whole``: the error's line with what it quotes."""
    kind = as_text(facts.attributes.get(semconv.ERROR_TYPE)) or ""
    exception, message = facts.exception
    if kind == "_OTHER" or not kind:
        kind = exception
    text = next(
        (text for text in (facts.described, message, as_text(facts.attributes.get("error.message")) or "") if text), ""
    )
    return clean_reason(text, kind, whole=whole)


# A constructor as it is shown by repr(): frameworks put that, and a stack trace right behind it, into the status.
_REPR = re.compile(r"(?P<kind>[A-Za-z_][\w.]{0,120})\((?P<quote>['\"])(?P<text>.*?)(?P=quote),?\)\s*\Z", re.DOTALL)
_TYPED = re.compile(r"(?P<kind>[A-Za-z_][\w.]{0,120}(?:Error|Exception|Exit|Interrupt|Warning|Failure)):\s+")
_PROVIDER = re.compile(
    r"(?P<head>Error code: \d{3}|status_code: \d{3})(?:, model_name: [^,{]{1,80}, body:)?\s*(?:- )?\{"
)
_DETAILED = re.compile(r"Error (?:in agent run|running tool)[^:{]{0,80}: (?={)")
_DETAILS = frozenset({"error", "tool_name"})
_QUOTED = re.compile(r"(?<!\w)(?P<q>['\"`])(?:(?!(?P=q)(?!\w)).)*(?:(?P=q)|$)")
_QUOTED_ELSEWHERE = re.compile(r"“[^”]*”?|„[^“”]*[“”]?|«[^»]*»?|「[^」]*」?|『[^』]*』?|‘[^’]*’(?!\w)")
_TAGGED = re.compile(r"<(?P<tag>[A-Za-z][\w.-]{0,60})(?:\s[^<>]*)?>.*?(?:</(?P=tag)>|$)")
_HOME = re.compile(r"(?:/home|/Users|\b[A-Za-z]:\\{1,2}Users)[/\\]{1,2}[^/\\\s:]+")
_BRACED = re.compile(r"\{.*\}|\{.*$")
_LISTED = re.compile(r"\[[^\]]*[,'\"…][^\]]*\]|\[[^\]]*$")
_VALUE_OF = re.compile(
    r"(?i)(?P<head>\b(?:input_value|arguments?|args|kwargs|prompt|input|query|parameters?|content|payload|body"
    r"|e-?mail|user(?:[ _-]?(?:id|name))?)\s*[=:]|\b(?:message|text)=).*"
)
_TYPE_NAME = re.compile(r"[\w.:$<>\[\]-]+")


def clean_reason(text: str, kind: str = "", *, whole: bool = False) -> Reason:
    """One line of an error's text without what it quotes: texts in quotation marks, dictionaries, lists and addresses
    in an error are the values that somebody's program worked on."""
    kind = clean_line(kind, _KIND_CAP)
    # An error's type is one word; what has more of them is an error's text.
    kind = clean_line(kind.rpartition(".")[2] or kind, NAME_CAP) if _TYPE_NAME.fullmatch(kind) else ""
    text = text.partition("Traceback (most recent")[0].strip()
    shown = _REPR.match(text)
    if shown is not None:
        kind, text = kind or shown["kind"].rpartition(".")[2], shown["text"].replace("\\n", "\n")
    if not whole:
        text = _unwrapped(text)
    typed = _TYPED.match(text)
    if typed is not None:
        kind, text = kind or typed["kind"].rpartition(".")[2], text[typed.end() :]
    elif kind:
        # Classes of users' own may have any name; the SDK writes it in front of the text.
        before, colon, after = text.partition(": ")
        text = after if colon and before.rpartition(".")[2] == kind else text
    if kind == "KeyError" and not whole:
        return Reason(kind)  # its text is the key alone
    if kind == "CancelledError":
        return Reason("", "cancelled or timed out")
    head, _, rest = text.partition("\n")
    if head.rstrip().endswith(":"):
        text = f"{head.rstrip()} {rest.lstrip()}"
    line = clean_error(text, 4 * _REASON_CAP)
    if not whole:
        line = _VALUE_OF.sub(r"\g<head> …", line)
        line = _BRACED.sub("{…}", _QUOTED_ELSEWHERE.sub("'…'", _QUOTED.sub("'…'", line)))
        line = _ADDRESS.sub("…", _LISTED.sub("[…]", _TAGGED.sub("<…>", line)))
        line = _HOME.sub("~", line)
    line = clean_line(line, _REASON_CAP)
    if _EMPTY_WORDS.fullmatch(line) or not any(character.isalnum() for character in line):
        line = ""
    return Reason(kind, line)


def _unwrapped(text: str) -> str:
    """The message inside an error that is shown as a dictionary, where its form is a known one: OpenAI Agents' own,
    and an LLM provider's answer behind its status code. Any other dictionary may hold a tool's arguments."""
    if text.startswith("{"):
        found = _literal(text)
        if isinstance(found, dict) and isinstance(found.get("message"), str):
            inner = found.get("data")
            cause = inner.get("error") if isinstance(inner, dict) else None
            return _unwrapped(cause) if isinstance(cause, str) and cause else found["message"]
        return text
    detailed = _DETAILED.match(text)
    if detailed is not None:
        found = _literal(text[detailed.end() :])
        cause = found.get("error") if isinstance(found, dict) and found.keys() <= _DETAILS else None
        return _unwrapped(cause) if isinstance(cause, str) and cause else text
    provider = _PROVIDER.search(text)
    if provider is not None:
        body = _literal(text[provider.end() - 1 :])
        if isinstance(body, dict):
            inner = body.get("error", body)
            message = inner.get("message") if isinstance(inner, dict) else None
            if isinstance(message, str):
                return f"{text[: provider.end('head')]} - {message}"
    return text


_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_GLUED = re.compile(r"(?<=[0-9])(?=(?:and|else|for|if|in|is|not|or)\b)")
"""Between a number and a keyword: the same."""


def _literal(text: str) -> object:
    text = text[:4_000].strip()
    end = text.rfind("}") + 1
    # Python complains about escapes that it does not know in a warning that shows them, on the program's stderr.
    text = _ESCAPE.sub(lambda m: m[0] if m[1] in "\\'\"abfnrtvxuUN\n" else f"\\{m[0]}", text[:end])
    try:
        return ast.literal_eval(_GLUED.sub(" ", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


# -- plans -----------------------------------------------------------------------------------------------------------

_PLAN_HOLDERS = (
    "lmnr.span.output",
    "gen_ai.tool.call.result",
    "gen_ai.tool.call.arguments",
    "tool.parameters",
    "output.value",
    "input.value",
    "traceloop.entity.output",
    "traceloop.entity.input",
)
_PLAN_LISTS = ("task_list", "todos", "todo_list", "tasks", "plan", "steps", "items")
_DONE = frozenset({"done", "completed", "complete", "finished"})
_STATES = _DONE | {"todo", "pending", "in_progress", "in-progress", "not_started", "cancelled", "blocked", "open"}


def _plan(attributes: Mapping[str, Any]) -> float | None:
    """How much of a plan is done: of a to-do list in a tool's span, or of an MCP progress notification."""
    share = share_of(attributes.get(semconv.BARE_PROGRESS), attributes.get(semconv.BARE_TOTAL))
    if share is not None:
        return share
    for name in _PLAN_HOLDERS:
        text = as_text(attributes.get(name))
        if text is None or len(text) > _JSON_CAP or '"status"' not in text.replace("'", '"'):
            continue
        share = _share_done(_parsed(text))
        if share is not None:
            return share
    return None


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _literal(text) if len(text) <= 4_000 else None


def _share_done(value: object, depth: int = 4) -> float | None:
    if isinstance(value, str) and depth and value[:1] in "{[":
        return _share_done(_parsed(value[:_JSON_CAP]), depth - 1)
    if isinstance(value, Mapping) and depth:
        for name in _PLAN_LISTS:
            if isinstance(value.get(name), list):
                return _counted(value[name])
        inner: Iterable[object] = value.values()
        return next((share for share in (_share_done(v, depth - 1) for v in inner) if share is not None), None)
    return None


def _counted(points: list[object]) -> float | None:
    states = [str(point.get("status")).lower() for point in points if isinstance(point, Mapping)]
    if not states or len(states) != len(points) or not set(states) <= _STATES:
        return None
    return sum(state in _DONE for state in states) / len(states)


# -- content, where the settings ask for it --------------------------------------------------------------------------

CONTENT_FIELDS: Mapping[str, str] = {
    "arguments": "what a tool was called with",
    "results": "what a tool gave back",
    "prompt": "what the agent was asked",
    "answer": "what the agent answered",
    "errors": "error lines with the values that they quote",
}
"""What the setting ``content`` can opt into."""

_EXTRA_ATTRIBUTES: Mapping[tuple[Role, str], tuple[str, ...]] = {
    (Role.TOOL, "arguments"): (
        "gen_ai.tool.call.arguments",
        "tool.parameters",
        "input.value",
        "traceloop.entity.input",
        "lmnr.span.input",
    ),
    (Role.TOOL, "results"): (
        "gen_ai.tool.call.result",
        "output.value",
        "traceloop.entity.output",
        "lmnr.span.output",
    ),
    (Role.AGENT, "prompt"): ("gen_ai.input.messages", "input.value", "traceloop.entity.input"),
    (Role.STEP, "prompt"): ("gen_ai.input.messages", "input.value", "traceloop.entity.input"),
    (Role.AGENT, "answer"): ("final_result", "gen_ai.output.messages", "output.value", "traceloop.entity.output"),
    (Role.STEP, "answer"): ("gen_ai.output.messages", "output.value", "traceloop.entity.output"),
}


def _extras(attributes: Mapping[str, Any], role: Role, content: Collection[str]) -> Iterator[tuple[str, str]]:
    for name in content:
        for attribute in _EXTRA_ATTRIBUTES.get((role, name), ()):
            text = as_text(attributes.get(attribute))
            if text:
                yield name, clean_line(text, _EXTRA_CAP)
                break


def progress_event(attributes: Mapping[str, Any]) -> float | None:
    """The share that an event of a tool's span tells: MCP's ``progress`` of ``total``, or ``done`` of ``total``."""
    for name in (semconv.BARE_PROGRESS, semconv.BARE_DONE):
        share = share_of(attributes.get(name), attributes.get(semconv.BARE_TOTAL))
        if share is not None:
            return share
    value = number_of(attributes.get(semconv.TASK_PROGRESS))
    return value if value is not None and 0.0 <= value <= 1.0 else None
