"""Words: what may be told of an error's text, and whose ids count."""

from __future__ import annotations

import pytest

from otel_letta.tracking.conventions.reasons import clean_reason, reason_of
from tests.support.facts import END, facts, raised, read

TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "check"}
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "keeper"}
GO = {"telemetry.sdk.language": "go"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no such note: SECRET notes of mine", "no such note: …"),
        ("panic in tool 'x': SECRET: more", "panic in tool '…': …"),
        ("panic error: SECRET", "panic error: …"),
        ("tool 'x' failed: error calling tool read: no such note: SECRET.txt", "tool '…' failed: …"),
        ("cannot open /srv/SECRET-dir/a.txt now", "cannot open … now"),
        ("row SECRET-17 is broken", "row … is broken"),
        ("HTTP 503: connection refused", "HTTP 503: connection refused"),
        ("request failed: 500 upstream exploded", "request failed: 500 upstream exploded"),
        ("account 1234567890 is closed", "account … is closed"),
    ],
)
def test_a_tools_error_tells_no_value(text: str, told: str) -> None:
    assert facts(TOOL, error=text).reason.text == told
    assert facts(AGENT, error=text, resource=GO).reason.text == told


def test_a_part_of_a_tools_call_tells_no_value_either() -> None:
    assert str(reason_of(read({}, error="no such note: SECRET"))) == "no such note: …"


def test_python_puts_values_into_quotation_marks() -> None:
    python = {"telemetry.sdk.language": "python"}
    found = facts(TOOL, error="mail service returned 503: no row 'SECRET'", resource=python)
    assert found.reason.text == "mail service returned 503: no row '…'"


def test_the_whole_line_is_told_by_a_setting() -> None:
    assert facts(TOOL, error="no such note: budget", content=["errors"]).reason.text == "no such note: budget"


def test_what_a_models_provider_says_is_told() -> None:
    assert facts(CHAT, error="401: invalid api key", resource=GO).reason.text == "401: invalid api key"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"error": {"message": "upstream exploded", "code": null}}', "upstream exploded"),
        ('HTTP 500 - {"error": {"message": "upstream exploded", "code": null}}', "HTTP 500 - upstream exploded"),
        (
            'POST "http://h/v1": 500 Internal Server Error {"message": "overloaded"}',
            "POST '…': 500 Internal Server Error - overloaded",
        ),
    ],
)
def test_a_providers_body_gives_its_message(text: str, told: str) -> None:
    assert facts(CHAT, error=text).reason.text == told
    assert "overloaded" not in facts(TOOL, error=text).reason.text
    assert "exploded" not in facts(TOOL, error=text).reason.text


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("*url.Error", ""),
        ("*compose.internalError", "internalError"),
        ("*errors.errorString", ""),
        ("*fmt.wrapError", ""),
        ("java.lang.IllegalStateException", "IllegalStateException"),
        ("alloc::string::FromUtf8Error", "FromUtf8Error"),
        ("500", "HTTP 500"),
        ("TelemetrySafeError", ""),
        ("_OTHER", ""),
    ],
)
def test_types_of_errors_are_told_without_their_package(kind: str, told: str) -> None:
    assert clean_reason("", kind).kind == told


@pytest.mark.parametrize(
    "text",
    [
        "Tool failed",
        "Tool execution failed",
        "Session error",
        "unexpected exit",
        "Model call failed",
        "API call failed",
    ],
)
def test_a_stock_reason_falls_back_to_the_errors_type(text: str) -> None:
    assert str(facts({**TOOL, "error.type": "ToolError"}, error=text).reason) == "ToolError"


@pytest.mark.parametrize("form", ["{kind}: ({args})", "{kind}({args})", "({args})"])
def test_of_an_exception_with_a_text_and_its_cause_the_cause_is_told(form: str) -> None:
    """Semantic Kernel writes the first, Agent Framework the second."""
    cause = "InternalServerError(\"Error code: 500 - {'error': {'message': 'overloaded'}}\")"
    args = f"\"<class 'x.Client'> service failed to complete the prompt\", {cause}"
    reason = clean_reason(form.format(kind="pkg.ServiceError", args=args))
    assert reason.text == "Error code: 500 - overloaded"
    assert reason.kind in ("ServiceError", "")
    assert (
        "SECRET" not in clean_reason("ServiceError: (\"it failed for 'SECRET'\", ValueError('got \\'SECRET\\''))").full
    )
    # Two values are no text and a cause.
    assert "SECRET" not in clean_reason("ServiceError: ('SECRET', 42)").full


def test_a_bare_type_in_front_of_the_text_says_nothing() -> None:
    assert clean_reason("Error: 500 upstream exploded").full == "500 upstream exploded"
    assert str(facts({**TOOL, "error.type": "TelemetrySafeError"}, error="TelemetrySafeError").reason) == ""


STACK = """\
  + Exception Group Traceback (most recent call last):
  |   File "a.py", line 1, in <module>
  | ExceptionGroup: unhandled errors in a TaskGroup (3 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "a.py", line 2, in row
    | ValueError: row 17 is broken
    +---------------- 2 ----------------
    | ExceptionGroup: inner (1 sub-exception)
    +-+---------------- 1 ----------------
      | KeyError: 'x'
      +------------------------------------
    +---------------- 3 ----------------
    | OSError
    +------------------------------------
"""


@pytest.mark.parametrize("described", ["ExceptionGroup: unhandled errors in a TaskGroup (3 sub-exceptions)", ""])
def test_a_group_of_exceptions_names_its_leaves(described: str) -> None:
    text = "unhandled errors in a TaskGroup (3 sub-exceptions)"
    event = raised("ExceptionGroup", text, stack=STACK)
    assert read({}, error=described, events=[event]).error == "ValueError: row 17 is broken, and 2 more"
    assert facts(AGENT, error=described, events=[event]).reason.full == "ValueError: row 17 is broken, and 2 more"


def test_a_group_without_a_stack_trace_is_told_as_it_is() -> None:
    event = raised("ExceptionGroup", "two (2 sub-exceptions)", at=END)
    assert read({}, error="", events=[event]).error == "ExceptionGroup: two (2 sub-exceptions)"


RESOURCE = {"letta.chat.id": "chat-9", "letta.message.id": "msg-9"}


def test_ours_on_the_resource_beats_a_frameworks_id() -> None:
    found = facts({**AGENT, "gen_ai.conversation.id": "session"}, resource=RESOURCE).chat
    assert found is not None
    assert found[1] == "chat-9"


def test_ours_on_the_span_beats_the_resources() -> None:
    found = facts({**AGENT, "letta.chat.id": "chat-1"}, resource=RESOURCE).chat
    assert found == (0, "chat-1")


def test_copies_of_the_resource_declare_nothing() -> None:
    assert read({**TOOL, **RESOURCE}, resource=RESOURCE).declaration is None
    assert read({"span.type": "hook", **RESOURCE}, resource=RESOURCE).declaration is None
    found = facts({**TOOL, **RESOURCE, "session.id": "s"}, resource=RESOURCE).chat
    assert found is not None
    assert found[1] == "chat-9"


def test_what_is_no_agents_span_and_says_what_its_resource_says_is_a_task() -> None:
    assert read(RESOURCE, resource=RESOURCE).declaration is not None
