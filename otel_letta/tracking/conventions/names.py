"""Names of spans: what people call them, and nothing that somebody wrote to an agent."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from otel_letta import semconv
from otel_letta.text import as_text, clean_error, clean_line, pattern
from otel_letta.tracking.conventions import AGENT, CONVENTIONS, LLM, NAMES, TOOL, Role
from otel_letta.tracking.conventions.reasons import ADDRESS
from otel_letta.tracking.values import JSON_CAP, NAME_CAP

if TYPE_CHECKING:
    from otel_letta.tracking.reading import Reading

_PROSE_WORDS = 7
"""A name of so many words is a sentence: some frameworks put the prompt there."""
_SPAN_NAME_WORDS = 5
"""The same for the name of a span that has no attribute for its name."""
_SPACELESS = pattern("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_SPACELESS_LETTERS = 20
"""In scripts without spaces between words (Chinese, Japanese, Thai …) so many letters are a sentence."""
_READ = 2_000
"""Characters of a name that are read; far fewer are shown."""
_PUNCTUATION = pattern(r"[?!。？！]|;\s")

_REPEATED = frozenset().union(*NAMES.names.values(), *(convention.repeated_names for convention in CONVENTIONS))
_OPERATIONS = frozenset(
    {"agent", "ai_agent", "invoke_agent", "create_agent", "invoke_workflow", "workflow", "execute_task", "task"}
    | {"invoke", "run", "execute", "chain", "generate", "interaction", "invocation", "chat", "completion"}
    | {"turn", "step"}
)
"""Names of spans that say what is done, and not by whom."""
_CODE = pattern(r"[\w$-]+(?:\.[\w$-]+)+")
_IN_BRACKETS = pattern(r"<[^<>]*>|\([^()]*\)")
"""What stands for a name that is not known: ``<not found>``."""
_MADE_UP = pattern(r"[-_/:.#\s]*(?<![0-9A-Fa-f])[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?![0-9A-Fa-f])")
"""A UUID in a name, which its program made up where nobody gave one."""
_PREFIX = pattern(r"^(?:invoke_agent|invoke_workflow|execute_tool|execute_task|invoke|create_agent|tools/call)\s+")
_SUFFIX = pattern(
    r"(?:\._execute_core|\.(?:run|arun|kickoff|workflow|task|agent|tool|__call__|acall|forward|aforward))$"
)


def name_of(reading: Reading, role: Role) -> tuple[str, bool]:
    """Return what people call a span with a role, and whether an attribute says so; empty where it has no name that is
    surely one."""
    if role is LLM:
        return "", False
    attributes = reading.attributes
    names = reading.shape.names[role]
    if role is AGENT and as_text(attributes.get(semconv.GEN_AI_OPERATION)) == "invoke_agent":
        # A workflow's span may name an agent of it, and an agent's the workflow around it.
        names = (semconv.GEN_AI_AGENT_NAME, *names)
    name = _first_name(attributes, names)
    if role is TOOL:
        named = bool(name) and not _IN_BRACKETS.fullmatch(name)
        name = name if named else _span_name(reading.name, attributes)
        return name.split("__", 2)[-1] if name.startswith("mcp__") else name, named
    if name:
        kind = as_text(attributes.get(semconv.TRACELOOP_KIND))
        if kind and name.endswith(f".{kind}"):
            name = _if_for_people(name[: -len(kind) - 1])
        return name, bool(name)
    return _if_for_people(_span_name(reading.name, attributes)), False


def _is_code(name: str) -> bool:
    """Return True for dotted code: ``session.llm``, ``AiService.chat``."""
    return _CODE.fullmatch(name) is not None


def _if_for_people(name: str) -> str:
    """Return a span's name if it may be what people call an agent; empty for the name of its operation."""
    return "" if name.lower() in _OPERATIONS or _is_code(name) else name


def agent_hint(reading: Reading) -> str:
    """Return the agent that a tool's or a model's span says it belongs to."""
    return _first_name(reading.attributes, (semconv.GEN_AI_AGENT_NAME,))


def early_name(reading: Reading, near: Mapping[str, Any]) -> str:
    """Return the name of an open span whose attributes are still to come.

    Args:
        near: attributes of a span below it, which may hold the text that the name is part of.
    """
    return _if_for_people(_span_name(reading.name, {**near, **reading.attributes}))


def name_for_logs(reading: Reading) -> str:
    """Return what a log line may call a span."""
    if not reading.shape.is_marked:
        return clean_line(reading.name, NAME_CAP)
    return _span_name(reading.name, reading.attributes) or "(of an agent)"


def _first_name(attributes: Mapping[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        text = as_text(attributes[name]) if name in attributes else None
        if text:
            shown = _shown(text[:_READ])
            if shown and not _is_prose(shown, attributes):
                return shown
    return ""


@functools.lru_cache(maxsize=256)
def _shown(text: str) -> str:
    return _without_values(_MADE_UP.sub("", clean_line(text, NAME_CAP)).strip())


def _span_name(full: str, attributes: Mapping[str, Any]) -> str:
    name = _bare_span_name(full[:_READ])
    return "" if _is_prose(name, attributes, _SPAN_NAME_WORDS) else _shown(name)


@functools.lru_cache(maxsize=256)
def _bare_span_name(full: str) -> str:
    return _SUFFIX.sub("", _PREFIX.sub("", clean_line(full, 4 * NAME_CAP)))


def _without_values(name: str) -> str:
    """Return a name without what addresses in it hold: queries, passwords, people."""
    if "@" in name or "?" in name or "://" in name:
        name = ADDRESS.sub("…", clean_error(name, NAME_CAP))
        return name if any(character.isalnum() for character in name) else ""
    return name


def _is_prose(name: str, attributes: Mapping[str, Any], most: int = _PROSE_WORDS) -> bool:
    """Return True for a name that is rather a text: it is long, or part of what stands in the span's inputs."""
    is_text, may_be_part = _looks_of(name, most)
    return is_text or (
        may_be_part
        and any(
            name.rstrip("…") in (as_text(value) or "")[:JSON_CAP]
            for key, value in attributes.items()
            if key not in _REPEATED
        )
    )


@functools.lru_cache(maxsize=256)
def _looks_of(name: str, most: int) -> tuple[bool, bool]:
    """Return whether a name is a text by itself, and whether it may be a part of one."""
    words = len(name.split())
    letters = 0 if name.isascii() else len(_SPACELESS.findall(name))
    if words >= most or letters >= _SPACELESS_LETTERS or (_PUNCTUATION.search(name) and "/" not in name):
        return True, False
    return False, words > 2 or letters > 4


def service_of(reading: Reading) -> str | None:
    """Return the name that somebody gave the service; None for what an SDK makes up."""
    service = as_text(reading.resource.get(semconv.SERVICE_NAME)) or ""
    return None if service.startswith("unknown_service") else clean_line(service, 200) or None


def program_of(reading: Reading) -> str:
    """Return the executable that an SDK names where nobody names the service: ``unknown_service:/usr/bin/node``."""
    _, _, program = (as_text(reading.resource.get(semconv.SERVICE_NAME)) or "").partition("unknown_service:")
    return clean_line(program.replace("\\", "/").rpartition("/")[2], 80)
