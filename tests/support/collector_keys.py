"""What of telemetry may leave a Collector for the bridge: `collector/privacy.yaml`, made from the conventions' records.

    python -m tests.support.collector_keys             # write the file anew

A key that no record names is dropped with its value. Of keys that hold content only their presence counts, so their
values are replaced; texts of errors become the few words that a verdict depends on. `tests/unit/test_collector.py`
fails if the file is another one than the records make.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

from otel_letta import semconv
from otel_letta.tracking import conventions, log_events
from otel_letta.tracking.conventions import CONVENTIONS, EVENTS, MARKS, NAMES, interruptions, names, shapes

__all__ = ["FOLDER", "blanked", "passed", "privacy"]

FOLDER = Path(__file__).parents[2] / "collector"
BLANK = "****"
_KEY = re.compile(r"[a-z][\w-]*(?:[.:][\w-]+)+")
_OF_RESOURCES = ("service.name", "service.instance.id", "telemetry.sdk.language", "letta.route")
_OF_LOGS = ("event.name", "event.kind", "duration_ms", "success", "decision")
_ENDS_LIKE_CONTENT = re.compile(
    r"(?:^|[._:])(?:inputs?|outputs?|prompt|messages|arg(?:ument)?s|results?|content|text)$"
)
_UNDER_ANSWERS = (
    # Names under the records' prefixes, as instrumentations write them (seen in the recordings).
    *("gen_ai.response.finish_reason", "gen_ai.response.finish_reasons", "gen_ai.response.id", "gen_ai.response.model"),
    *("gen_ai.completion.0.role", "gen_ai.completion.0.finish_reason", "gen_ai.completion.0.tool_calls.0.name"),
    *("llm.completions.0.role", "llm.completions.0.finish_reason", "llm.completions.0.tool_calls.0.name"),
    *("llm.output_messages.0.message.role", "gen_ai.response.time_to_first_chunk"),
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.name",
)
_TEXTS_UNDER_ANSWERS = (
    *("gen_ai.completion.0.content", "llm.completions.0.content", "llm.output_messages.0.message.content"),
    "llm.output_messages.0.message.contents.0.message_content.text",
)


def blanked() -> list[str]:
    """Return the keys whose presence shows that a model answered, and whose values are content."""
    return sorted({key for key in _content() if NAMES.shows_answer(key)} | set(_TEXTS_UNDER_ANSWERS))


def passed() -> list[str]:
    """Return the keys that keep their values: names, ids, kinds, counts, and what people declare for the agent."""
    found = set(semconv.INTERESTING) | {semconv.BARE_DONE, semconv.BARE_TOTAL, semconv.ERROR_TYPE}
    found |= {semconv.EXCEPTION_TYPE, semconv.EXCEPTION_MESSAGE, "error.message", semconv.GEN_AI_MODEL}
    for record in CONVENTIONS:
        found |= record.marks | record.also_asked | record.repeated_names | record.answers | record.no_answers
        found |= {name for names_ in record.names.values() for name in names_}
        found |= {*record.chosen_chats, *record.chats, *record.finishes, *record.call_ids, *record.error_types}
        found |= {*record.denied, *record.cancelled, *record.failed, *record.error_texts, *record.tool_names}
    found |= {name for names_ in EVENTS.values() for name in names_}
    found |= {*_constants_of_modules(), *_UNDER_ANSWERS, *_OF_RESOURCES, *_OF_LOGS, "gen_ai.usage.input_tokens"}
    for keys in (shapes.CONVERSATIONS, log_events._TURNS, log_events._TOOLS, log_events._CALLS):
        found |= set(keys)
    found |= {*log_events._STATUSES, *log_events._ERROR_TYPES}
    return sorted(found - _content() - set(blanked()))


def _content() -> set[str]:
    named = {name for record in CONVENTIONS for names_ in record.content.values() for name in names_}
    named |= {name for record in CONVENTIONS for name in record.plans}
    found = named | {name for name in _constants_of_modules() if _ENDS_LIKE_CONTENT.search(name)}
    return found - semconv.INTERESTING


def _constants_of_modules() -> set[str]:
    """Return what stands in the modules of conventions beside the records: the names that their functions read."""
    found: set[str] = set()
    for module in pkgutil.iter_modules(conventions.__path__, f"{conventions.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            texts = value if isinstance(value, (tuple, frozenset)) else (value,)
            found |= {text for text in texts if type(text) is str and _KEY.fullmatch(text)}
    return {name for name in found if not name.startswith("otel_letta.")}


# --- Statements -----------------------------------------------------------------------------------------------------

_TYPE = r"(?:[A-Za-z_][\w.]{0,120})?(?:Error|Exception|Exit|Interrupt|Warning|Failure):\s+"
_WRAPPED = r"Conversation run failed for id=[^:\s]{1,80}: "
_READ_IN_CONTENT = {
    # The few fixed words that a record's function reads in a text of content; the rest of the text goes.
    "gen_ai.completion.0.content": r'"response_meta":\{"finish_reason":"\w{0,30}"',
    "gen_ai.output.messages": r'"tool_calls":\[\{',
    "genkit:output": r'\{"finishReason":"\w{1,30}"',
    "lmnr.span.output": r'"is_error":true',
}
_PROGRESS = (semconv.PROGRESS_EVENT, semconv.TASK_PROGRESS)


def privacy() -> str:
    """Return the text of `collector/privacy.yaml`."""
    return _FORM.format(
        allowed=_lines(sorted({*passed(), *blanked()}), 6),
        span=_lines([_quoted(statement) for statement in _of_spans()], 10),
        spanevent=_lines([_quoted(statement) for statement in _of_events()], 10),
        log=_lines([_quoted(statement) for statement in _of_logs()], 10),
        unknown=_quoted(_unknown_event()),
        route=_lines([_quoted(statement) for statement in _of_resources()], 10),
    )


def _of_spans() -> list[str]:
    content = f"span.attributes[{_text(semconv.BARE_CONTENT)}]"
    declared = [f"span.attributes[{_text(key)}] == nil" for key in sorted(semconv.DECLARING)]
    marked = " or ".join(f"span.attributes[{_text(key)}] != nil" for key in sorted(MARKS))
    prose = f"IsMatch(span.name, {_text(_prose())})"
    return [
        'set(span.trace_state, "")',
        f"set(span.name, {_text(BLANK)}) where {prose} and {' and '.join(declared)}",
        *_of_error("span.status.message"),
        *(statement for key in _error_keys() for statement in _of_error(f"span.attributes[{_text(key)}]")),
        *(statement for key in blanked() for statement in _of_content(key)),
        f"delete_key(span.attributes, {_text(semconv.BARE_CONTENT)}) where {content} != nil and ({marked})",
        f"replace_pattern(span.attributes[{_text('celery.retry.reason')}], "
        f"{_text('(?s)^(Retry in [^:]{1,60}(?:: [A-Za-z_][A-Za-z0-9_]{0,80}[(])?).*$')}, {_text('$1')})",
    ]


def _of_events() -> list[str]:
    known = _any_of(_PROGRESS)
    kept = _any_of([*sorted(EVENTS), semconv.EXCEPTION_EVENT, *_PROGRESS])
    return [
        f"delete_key(spanevent.attributes, {_text(semconv.BARE_CONTENT)}) where not IsMatch(spanevent.name, {known})",
        f"set(spanevent.name, {_text(BLANK)}) where not IsMatch(spanevent.name, {kept})",
        *(
            statement
            for key in [semconv.EXCEPTION_MESSAGE, *_error_keys()]
            for statement in _of_error(f"spanevent.attributes[{_text(key)}]")
        ),
    ]


def _of_logs() -> list[str]:
    return [
        'set(log.body, "")',
        'set(log.severity_text, "")',
        f"delete_key(log.attributes, {_text(semconv.BARE_CONTENT)})",
        *(
            statement
            for key in [semconv.EXCEPTION_MESSAGE, *_error_keys()]
            for statement in _of_error(f"log.attributes[{_text(key)}]")
        ),
        *(
            f"set(log.attributes[{_text(key)}], {_text(BLANK)}) where log.attributes[{_text(key)}] != nil"
            for key in blanked()
        ),
    ]


def _of_resources() -> list[str]:
    """Return the statements that make the key by which replicas are chosen. It stands on the resource: of a key on
    spans the load balancer reads the first span's alone (measured with 0.161.0)."""
    agent = f"resource.attributes[{_text(semconv.AGENT_ID)}]"
    route = f"resource.attributes[{_text('letta.route')}]"
    name, instance = (f"resource.attributes[{_text(key)}]" for key in ("service.name", "service.instance.id"))
    host, pid = (f"resource.attributes[{_text(key)}]" for key in (semconv.HOST_NAME, "process.pid"))
    return [
        f"delete_key(resource.attributes, {_text('letta.route')})",
        f"set({route}, {agent}) where {agent} != nil",
        f"set({route}, Concat([{name}, {instance}], {_text('/')})) where {route} == nil and {instance} != nil",
        f"set({route}, Concat([{name}, {host}, {pid}], {_text('/')})) where {route} == nil and {host} != nil",
        f"set({route}, {name}) where {route} == nil",
        f"set({route}, {_text('unknown')}) where {route} == nil",
    ]


def _unknown_event() -> str:
    last = "|".join(sorted([*log_events._BY_NAME, *log_events._STREAMS]))
    ends = "|".join(re.escape(end) for end in log_events._ENDS)
    known = _text(f"(?:^|[.])(?:{last})$|(?:{ends})$|^{re.escape(semconv.TASK_PROGRESS)}$")
    return f'not IsMatch(log.event_name, {known}) and not IsMatch(log.attributes["event.name"], {known})'


def _error_keys() -> list[str]:
    return sorted({"error.message"}.union(*(record.error_texts for record in CONVENTIONS)))


def _of_error(target: str) -> list[str]:
    """Return the statements that leave of an error's text its type and the words that a verdict depends on."""
    found = [
        interruptions._WAIT_TEXT,
        interruptions._DENIED_TEXT,
        interruptions._CANCELLED_TEXT,
        interruptions._TIMED_OUT_TEXT,
    ]
    words = "|".join(pattern.pattern.removeprefix("(?i)") for pattern in found)
    status = r"\b(?:HTTP|status|code)\b[ :=]{0,3}[45]\d\d\b"
    head = f"(?:{_WRAPPED})?(?-i:{_TYPE})?"
    is_text = f"{target} != nil and not IsString({target})" if "[" in target else ""
    done = f"(?is)^(?:{head})(?:{words}|{status}|{re.escape(BLANK)})?$"
    return [
        *([f"set({target}, {_text(BLANK)}) where {is_text}"] if is_text else []),
        f"replace_pattern({target}, {_text(f'(?is)^({head}).*?({words}|{status}).*$')}, {_text('$1$2')})",
        f"replace_pattern({target}, {_text(f'(?is)^({head}).*$')}, {_text('$1' + BLANK)})"
        f" where not IsMatch({target}, {_text(done)})",
    ]


def _of_content(key: str) -> list[str]:
    target, words = f"span.attributes[{_text(key)}]", _READ_IN_CONTENT.get(key)
    if words is None:
        return [f"set({target}, {_text(BLANK)}) where {target} != nil"]
    return [
        f"set({target}, {_text(BLANK)}) where {target} != nil and not (IsString({target}) and "
        f"IsMatch({target}, {_text(words)}))",
        f"replace_pattern({target}, {_text(f'(?s)^.*?({words}).*$')}, {_text('$1')})",
    ]


def _prose() -> str:
    """Return a pattern of names that are rather texts: their reader gives them up as well."""
    spaceless = names._SPACELESS.pattern
    return rf"^\s*(?:\S+\s+){{{names._PROSE_WORDS - 1}}}\S|(?:{spaceless}[^\n]*?){{{names._SPACELESS_LETTERS}}}"


def _any_of(texts: object) -> str:
    assert isinstance(texts, (list, tuple))
    return _text("^(?:" + "|".join(re.escape(text) for text in texts) + ")$")


def _text(text: str) -> str:
    """Return a text as a literal of the transformation language, in a file where a dollar sign begins a variable."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("$", "$$")
    return f'"{escaped}"'


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _lines(items: list[str], indent: int) -> str:
    return "\n".join(f"{' ' * indent}- {item}" for item in items)


_FORM = """\
# Made by `python -m tests.support.collector_keys` from the records of conventions: change those, and make it anew.
#
# The processors that stand between telemetry and the bridge, for gateway.yaml and scale-out.yaml, which do not start
# without this file. What is not named here does not pass. Statements of different contexts stand in groups of their
# own: in one list all of them would run per span event, without any warning (measured with 0.161.0).
processors:
  filter/letta:
    error_mode: propagate
    log_conditions:
      - {unknown}
  transform/letta:
    error_mode: propagate
    trace_statements:
      - statements:
{span}
      - statements:
{spanevent}
    log_statements:
      - statements:
{log}
  redaction/letta:
    allow_all_keys: false
    summary: silent
    allowed_keys:
{allowed}
  transform/letta_route:
    error_mode: propagate
    trace_statements:
      - statements:
{route}
    log_statements:
      - statements:
{route}
"""


if __name__ == "__main__":
    (FOLDER / "privacy.yaml").write_text(privacy(), "utf-8")
