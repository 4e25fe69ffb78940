"""From spans to reports: what is a task, how far it is, and how it ended.

`Live` sees spans start, change and end; `Alone` sees only ended ones, as an exporter does. Spans come from a real SDK.
"""

from __future__ import annotations

import ast
import gc
import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Status, StatusCode, TraceFlags

from otel_letta import ProgressReport, TaskStatus
from otel_letta.tracking import Reading, reading
from tests.support.otlp import read_spans
from tests.support.tracked import SECOND, Alone, Live, hostile_text

DATA = Path(__file__).parents[2] / "data"

ID, NAME, CHAT, MESSAGE, AGENT = (
    "letta.task.id",
    "letta.task.name",
    "letta.chat.id",
    "letta.message.id",
    "letta.agent.id",
)
PROGRESS, STATUS, CONTENT, RESULT = (
    "letta.task.progress",
    "letta.task.status",
    "letta.task.content",
    "letta.task.result",
)
TASK = {PROGRESS: 0.0}

Driver = Live | Alone
BOTH = pytest.mark.parametrize("make", [Live, Alone], ids=["live", "alone"])


def tell(driver: Driver) -> None:
    """Hand ended spans over, where they do not arrive by themselves."""
    if isinstance(driver, Alone):
        driver.export()


def run(
    driver: Driver, attributes: dict[str, Any], name: str = "job", error: Exception | None = None
) -> list[ProgressReport]:
    """One span from start to end, and all that is reported by then."""
    span = driver.tracer.start_span(name, attributes=attributes)
    if error is not None:
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
    span.end()
    tell(driver)
    return driver.reports


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("otel_letta")]


@contextmanager
def span(driver: Driver, name: str, **attributes: Any) -> Iterator[Span]:
    with driver.tracer.start_as_current_span(
        name, attributes=attributes.pop("attributes", None) or attributes
    ) as opened:
        yield opened


# -- which spans are tasks ------


@BOTH
@pytest.mark.parametrize(
    "attributes",
    [
        {PROGRESS: 0.5},
        {STATUS: "in_progress"},
        {CONTENT: "x"},
        {RESULT: "x"},
        {ID: "x"},
        {NAME: "x"},
        {CHAT: "x"},
        {MESSAGE: "x"},
        {"progress": 0.5},
        {"progress": 1},
        {"chat_id": "x"},
        {"chat_id": 12345},
    ],
    ids=str,
)
def test_a_span_is_a_task_when_it_says_so(make: type[Driver], attributes: dict[str, Any]) -> None:
    reports = run(make(), attributes)
    assert [report.status for report in reports][-1] is TaskStatus.COMPLETED


@BOTH
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"http.request.method": "GET"},
        {AGENT: "agent-1"},
        {"status": "completed"},
        {"content": "a prompt"},
        {"message_id": "m"},
        {"progress": "half"},
        {"progress": True},
        {"chat_id": ""},
        {"letta.task": "x"},
        {"progress": 0.5, "gen_ai.operation.name": "chat"},
        {"chat_id": "c", "openinference.span.kind": "TOOL"},
        {"chat_id": "c", "progress": 0.5, "traceloop.span.kind": "tool"},
    ],
    ids=str,
)
def test_other_spans_are_none(make: type[Driver], attributes: dict[str, Any]) -> None:
    driver = make()
    assert run(driver, attributes) == []


@BOTH
@pytest.mark.parametrize("name", ["otel_letta.opted_in", "otel_letta.opted", "opted_in", "opted"])
def test_no_attribute_can_forge_a_settings_word(make: type[Driver], name: str) -> None:
    assert run(make(), {name: "forged"}) == []
    assert run(make(), {name: "forged", PROGRESS: 0.5}, name="job")[-1].name == "job"


def test_a_span_that_a_setting_makes_a_task_of_is_one_under_the_name_given_there() -> None:
    alone = Alone()
    alone.tracer.start_span("GET /", attributes={"otel_letta.opted_in": "forged"}).end()
    alone.tracker.ended_alone(Reading.of(alone.batch[0], "nightly"))
    alone.tracker.tick()
    assert [(end.name, end.status, end.wakes) for end in alone.ends] == [("nightly", TaskStatus.COMPLETED, False)]


def test_tracking_is_pure() -> None:
    tracking = Path(reading.__file__).parent
    impure = {"asyncio", "multiprocessing", "os", "queue", "socket", "sys", "threading", "time", "weakref"}
    for path in tracking.rglob("*.py"):
        found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        named = {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
        assert impure.isdisjoint(named), path


@BOTH
@pytest.mark.parametrize("mark", ["gen_ai.operation.name", "openinference.span.kind", "traceloop.span.kind"])
def test_of_a_frameworks_span_only_our_own_attributes_are_read(make: type[Driver], mark: str) -> None:
    driver = make()
    run(
        driver,
        {mark: "x", CHAT: "chat-1", "content": "a prompt", "status": "failed", "progress": 0.3, "message_id": "m"},
    )
    assert "a prompt" not in str(driver.reports)
    assert (driver.last.chat_id, driver.last.message_id, driver.last.status) == ("chat-1", None, TaskStatus.COMPLETED)


@BOTH
def test_everything_that_a_span_says_is_in_the_report(make: type[Driver]) -> None:
    driver = make(host="host-1", allowed_agents=["agent-2"])
    said = {
        ID: "t-1",
        NAME: "Refactor",
        CHAT: "chat-1",
        MESSAGE: "msg-1",
        AGENT: "agent-2",
        CONTENT: "all done",
        RESULT: "ok",
    }
    run(driver, {**said, PROGRESS: 0.5})
    end = driver.last
    assert (end.task_id, end.name, end.chat_id, end.message_id) == ("t-1", "Refactor", "chat-1", "msg-1")
    assert (end.agent_id, end.content, end.result, end.host) == ("agent-2", "all done", "ok", "host-1")


@BOTH
def test_bare_words_mean_the_same(make: type[Driver]) -> None:
    driver = make()
    run(driver, {"progress": 0.5, "status": "failed", "content": "no", "chat_id": "chat-1", "message_id": "msg-1"})
    end = driver.last
    assert (end.progress, end.status, end.content) == (0.5, TaskStatus.FAILED, "no")
    assert (end.chat_id, end.message_id) == ("chat-1", "msg-1")


@BOTH
def test_our_own_attributes_beat_the_bare_words(make: type[Driver]) -> None:
    driver = make()
    run(driver, {"progress": 0.5, "content": "bare", CONTENT: "ours", "chat_id": "bare", CHAT: "ours"})
    assert (driver.last.content, driver.last.chat_id) == ("ours", "ours")


@BOTH
def test_a_task_is_known_by_its_span_if_nothing_else_is_said(make: type[Driver]) -> None:
    driver = make({"service.name": "worker"})
    run(driver, TASK, name="nightly import")
    end = driver.last
    assert end.name == "nightly import"
    assert end.service == "worker"
    assert end.task_id == f"{end.trace_id}-{end.span_id}"
    assert (len(end.trace_id or ""), len(end.span_id or "")) == (32, 16)


@BOTH
def test_a_service_that_has_no_name_is_not_named(make: type[Driver]) -> None:
    driver = make()
    run(driver, TASK)
    assert driver.last.service is None


@BOTH
def test_the_resource_alone_makes_no_task(make: type[Driver]) -> None:
    assert run(make({CHAT: "chat-1", PROGRESS: "0.5", ID: "x"}), {"db.system": "redis"}) == []


@BOTH
def test_the_resource_gives_ids_that_the_span_does_not(make: type[Driver]) -> None:
    driver = make({CHAT: "res-chat", MESSAGE: "res-msg", AGENT: "agent-2"}, allowed_agents=["agent-2"])
    run(driver, {**TASK, MESSAGE: "own-msg"})
    assert (driver.last.chat_id, driver.last.message_id, driver.last.agent_id) == ("res-chat", "own-msg", "agent-2")


@BOTH
def test_a_chat_of_the_whole_process_makes_no_child_a_task_of_its_own(make: type[Driver]) -> None:
    driver = make({CHAT: "res-chat"})
    with span(driver, "parent", attributes={CHAT: "own-chat"}), span(driver, "child", attributes={PROGRESS: 0.5}):
        pass
    tell(driver)
    assert [(end.name, end.chat_id) for end in driver.ends] == [("parent", "own-chat")]


@BOTH
def test_a_child_that_repeats_the_chat_of_the_whole_process_is_a_step(make: type[Driver]) -> None:
    driver = make({CHAT: "res-chat"})
    with span(driver, "parent", attributes=TASK), span(driver, "child", attributes={CHAT: "res-chat"}):
        pass
    tell(driver)
    assert [(end.name, end.chat_id) for end in driver.ends] == [("parent", "res-chat")]


def test_a_child_task_without_a_chat_belongs_to_its_parents_chat_not_to_that_of_the_process() -> None:
    live = Live({CHAT: "res-chat", MESSAGE: "res-msg"})
    with span(live, "parent", attributes={CHAT: "own-chat"}), span(live, "child", attributes={ID: "c"}):
        pass
    assert [(end.name, end.chat_id, end.message_id) for end in live.ends] == [
        ("child", "own-chat", "res-msg"),
        ("parent", "own-chat", "res-msg"),
    ]


@BOTH
def test_long_ids_that_begin_alike_are_two_tasks(make: type[Driver]) -> None:
    driver = make()
    run(driver, {ID: "x" * 300 + "1"})
    driver2 = make()
    run(driver2, {ID: "x" * 300 + "2"})
    assert driver.last.task_id != driver2.last.task_id
    assert len(driver.last.task_id) <= 200


# -- progress ------

NO_PROGRESS = [50, -1, -0.01, 1.01, float("nan"), float("inf"), "x", "0.5", True, False, 10**400, b"0.5", [0.5]]


@BOTH
@pytest.mark.parametrize("value", NO_PROGRESS, ids=lambda value: repr(value)[:8])
def test_progress_that_is_none_is_ignored_with_one_warning_that_names_the_span(
    make: type[Driver], value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    driver = make()
    opened = driver.tracer.start_span("import of sales", attributes={PROGRESS: value})
    if isinstance(driver, Live):
        driver.look()
        assert driver.last.progress == 0.0
    opened.set_status(StatusCode.ERROR)
    opened.end()
    tell(driver)
    assert (driver.last.progress, driver.last.status) == (0.0, TaskStatus.FAILED)
    (warning,) = warnings(caplog)
    assert "'import of sales'" in warning
    assert PROGRESS in warning
    assert {record.levelno for record in caplog.records if record.name.startswith("otel_letta")} == {logging.WARNING}


def test_each_span_with_bad_progress_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    live = Live()
    for name in ("one", "two"):
        run(live, {PROGRESS: 50}, name=name)
    assert [name in warning for name, warning in zip(("'one'", "'two'"), warnings(caplog), strict=True)] == [True, True]


@pytest.mark.parametrize(("value", "progress"), [(0, 0.0), (1, 1.0), (0.0, 0.0), (1.0, 1.0), (0.25, 0.25), (-0.0, 0.0)])
def test_numbers_from_0_to_1_are_progress(value: float, progress: float, caplog: pytest.LogCaptureFixture) -> None:
    live = Live()
    live.tracer.start_span("job", attributes={PROGRESS: value, STATUS: "failed"}).end()
    assert (live.last.progress, type(live.last.progress)) == (progress, float)
    assert warnings(caplog) == []


@settings(max_examples=100)
@given(
    st.lists(st.floats(allow_nan=True) | st.floats(0, 1) | st.integers(-2, 2) | st.booleans(), min_size=1, max_size=12)
)
def test_progress_never_goes_backwards_and_never_leaves_its_range(values: list[Any]) -> None:
    live = Live()
    opened = live.tracer.start_span("job", attributes=TASK)
    for value in values:
        opened.set_attribute(PROGRESS, value)
        live.look()
    opened.set_status(StatusCode.ERROR)
    opened.end()
    told = [report.progress for report in live.reports]
    assert told == sorted(told)
    good = [value for value in values if type(value) is not bool and 0 <= value <= 1]
    assert told[-1] == max([0.0, *good])


def test_a_change_is_told_once_and_what_is_no_change_never() -> None:
    live = Live()
    opened = live.tracer.start_span("job", attributes=TASK)
    for value in (0.5, 0.5, 0.2, 0.50):
        opened.set_attribute(PROGRESS, value)
        live.look()
        live.look()
    assert [report.progress for report in live.reports] == [0.0, 0.5]


@BOTH
def test_completed_is_all_of_it(make: type[Driver]) -> None:
    assert run(make(), {PROGRESS: 0.3})[-1].progress == 1.0


@BOTH
def test_failed_keeps_how_far_it_came(make: type[Driver]) -> None:
    end = run(make(), {PROGRESS: 0.3}, error=ValueError("bad row 1043"))[-1]
    assert (end.status, end.progress) == (TaskStatus.FAILED, 0.3)


# -- live: starts, changes, ends ------


def test_a_start_is_told_at_the_start() -> None:
    live = Live()
    live.tracer.start_span("job", attributes=TASK)
    assert [(r.content, r.progress, r.status, r.sequence) for r in live.reports] == [
        ("Task started", 0.0, TaskStatus.IN_PROGRESS, 1)
    ]


def test_a_span_becomes_a_task_when_it_says_so_late() -> None:
    live = Live()
    opened = live.tracer.start_span("job")
    live.look()
    assert live.reports == []
    live.clock.pass_seconds(60)
    opened.set_attribute(CHAT, "chat-1")
    live.look()
    assert (live.last.chat_id, live.last.content) == ("chat-1", "Task started")
    assert live.last.started is not None


def test_plain_set_attribute_is_told_while_the_span_is_open() -> None:
    live = Live()
    opened = live.tracer.start_span("job", attributes=TASK)
    opened.set_attribute(PROGRESS, 0.5)
    live.look()
    opened.set_attribute(CONTENT, "row 500 of 1000")
    live.look()
    opened.set_attribute(RESULT, "500 rows")
    live.look()
    opened.set_attribute(NAME, "Import")
    live.look()
    assert [(r.progress, r.content, r.result, r.name) for r in live.reports[1:]] == [
        (0.5, "50% complete", None, "job"),
        (0.5, "row 500 of 1000", None, "job"),
        (0.5, "row 500 of 1000", "500 rows", "job"),
        (0.5, "row 500 of 1000", "500 rows", "Import"),
    ]
    assert [r.sequence for r in live.reports] == [1, 2, 3, 4, 5]


def test_a_renamed_span_renames_its_task() -> None:
    live = Live()
    opened = live.tracer.start_span("GET /", attributes=TASK)
    opened.update_name("Refactor module")
    live.look()
    assert live.last.name == "Refactor module"


def test_an_id_that_is_set_late_is_the_tasks_from_then_on() -> None:
    live = Live()
    opened = live.tracer.start_span("job", attributes=TASK)
    opened.set_attribute(ID, "late")
    live.look()
    opened.end()
    assert [r.task_id for r in live.reports[1:]] == ["late", "late"]
    assert [r.sequence for r in live.reports] == [1, 2, 3]
    assert live.tracker.open_tasks == 0


def test_an_id_that_is_set_late_and_was_used_before_counts_as_another_run() -> None:
    live = Live()
    run(live, {ID: "nightly"})
    opened = live.tracer.start_span("job", attributes=TASK)
    opened.set_attribute(ID, "nightly")
    live.look()
    opened.end()
    assert [(end.task_id, end.run) for end in live.ends] == [("nightly", 1), ("nightly", 2)]
    assert live.ends[1].sequence > live.ends[0].sequence


def test_two_spans_of_one_task_do_not_fight_over_its_id() -> None:
    live = Live()
    first = live.tracer.start_span("one", attributes={ID: "a"})
    second = live.tracer.start_span("two", attributes={ID: "a"})
    second.set_attribute(ID, "b")
    for _ in range(5):
        live.look()
    first.end()
    second.end()
    assert len(live.reports) <= 4
    assert [end.task_id for end in live.ends] == ["a"]


def test_a_time_and_a_duration_come_with_every_report() -> None:
    live = Live()
    opened = live.tracer.start_span("job", attributes=TASK, start_time=live.clock.now)
    live.clock.pass_seconds(90)
    opened.set_attribute(PROGRESS, 0.5)
    live.look()
    opened.end(live.clock.now + 30 * SECOND)
    assert [r.duration for r in live.reports] == [0.0, 90.0, 120.0]
    started = {r.started for r in live.reports}
    assert len(started) == 1
    end = live.last
    assert end.timestamp is not None
    assert end.started is not None
    assert (end.timestamp - end.started).total_seconds() == 120.0
    assert str(end.timestamp.tzinfo) == "UTC"


@BOTH
@pytest.mark.parametrize("start", [0, -5, 10**30, 1.5, "soon"], ids=str)
@pytest.mark.parametrize("end", [1, 10**30, -1, "late"], ids=str)
def test_impossible_times_do_not_cost_the_end(make: type[Driver], start: Any, end: Any) -> None:
    driver = make()
    opened = driver.tracer.start_span("job", attributes=TASK)
    opened._start_time, opened._end_time = start, None  # type: ignore[attr-defined]
    opened.end(end)
    tell(driver)
    assert driver.ends[0].status is TaskStatus.COMPLETED
    if isinstance(driver, Alone):
        assert (driver.last.started is None) == (driver.last.duration is None)


# -- events ------


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("progress", {"progress": 0.5, "content": "half"}),
        ("progress", {PROGRESS: 0.5, CONTENT: "half"}),
        ("letta.task.progress", {"progress": 0.5, "content": "half"}),
        ("tick", {"progress": 0.5, "content": "half"}),
        ("tick", {PROGRESS: 0.5, CONTENT: "half"}),
    ],
)
@BOTH
def test_events_tell_progress_and_content(make: type[Driver], name: str, attributes: dict[str, Any]) -> None:
    driver = make()
    opened = driver.tracer.start_span("job", attributes={CHAT: "c", STATUS: "failed"})
    opened.add_event(name, attributes)
    if isinstance(driver, Live):
        driver.look()
        assert (driver.last.progress, driver.last.content) == (0.5, "half")
        assert len(driver.reports) == 2
        driver.look()
        assert len(driver.reports) == 2
    opened.end()
    tell(driver)
    assert (driver.last.progress, driver.last.content) == (0.5, "half")


def test_of_several_events_the_newest_content_and_the_highest_progress_count() -> None:
    for driver in (Live(), Alone()):
        opened = driver.tracer.start_span("job", attributes={CHAT: "c", STATUS: "failed"})
        for progress, content in ((0.2, "one"), (0.9, "two"), (0.4, "three")):
            opened.add_event("progress", {"progress": progress, "content": content}, timestamp=1_000)
        opened.end()
        tell(driver)
        assert (driver.last.progress, driver.last.content) == (0.9, "three")


def test_an_event_with_bad_progress_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    live = Live()
    opened = live.tracer.start_span("import", attributes=TASK)
    opened.add_event("progress", {"progress": 50, "content": "half"})
    live.look()
    live.look()
    opened.end()
    assert [r.content for r in live.reports[:2]] == ["Task started", "half"]
    (warning,) = warnings(caplog)
    assert "'import'" in warning


@BOTH
def test_events_make_no_task(make: type[Driver]) -> None:
    driver = make()
    with driver.tracer.start_as_current_span("job") as opened:
        opened.add_event("progress", {"progress": 0.5, "content": "half"})
    tell(driver)
    assert driver.reports == []


@BOTH
@pytest.mark.parametrize("name", ["exception", "gen_ai.user.message", "gen_ai.choice"])
def test_the_content_of_a_frameworks_events_is_never_told(make: type[Driver], name: str) -> None:
    driver = make()
    with driver.tracer.start_as_current_span("agent", attributes={CHAT: "chat-1"}) as opened:
        opened.add_event(name, {"content": "my secret prompt"})
    tell(driver)
    assert "prompt" not in str(driver.reports)


# -- how a task ended ------


@BOTH
@pytest.mark.parametrize(
    ("span_status", "explicit", "verdict"),
    [
        (StatusCode.UNSET, None, TaskStatus.COMPLETED),
        (StatusCode.OK, None, TaskStatus.COMPLETED),
        (StatusCode.ERROR, None, TaskStatus.FAILED),
        (StatusCode.ERROR, "completed", TaskStatus.COMPLETED),
        (StatusCode.UNSET, "failed", TaskStatus.FAILED),
        (StatusCode.OK, "failed", TaskStatus.FAILED),
        (StatusCode.UNSET, "in_progress", TaskStatus.COMPLETED),
        (StatusCode.ERROR, "in_progress", TaskStatus.FAILED),
        (StatusCode.ERROR, "done", TaskStatus.FAILED),
        (StatusCode.UNSET, "done", TaskStatus.COMPLETED),
    ],
)
def test_an_explicit_status_wins_else_the_spans_own(
    make: type[Driver], span_status: StatusCode, explicit: str | None, verdict: TaskStatus
) -> None:
    driver = make()
    opened = driver.tracer.start_span("job", attributes={CHAT: "c", **({STATUS: explicit} if explicit else {})})
    opened.set_status(span_status)
    opened.end()
    tell(driver)
    assert [end.status for end in driver.ends] == [verdict]
    assert driver.last.progress == (1.0 if verdict is TaskStatus.COMPLETED else 0.0)


def test_a_terminal_status_on_an_open_span_is_told_at_its_end() -> None:
    live = Live()
    opened = live.tracer.start_span("job", attributes=TASK)
    opened.set_attribute(STATUS, "failed")
    live.look()
    assert live.ends == []
    opened.end()
    assert [end.status for end in live.ends] == [TaskStatus.FAILED]


@BOTH
@pytest.mark.parametrize("value", ["done", "", 3, True, b"done", ["failed"]], ids=repr)
def test_a_status_that_is_none_is_ignored_with_one_warning(
    make: type[Driver], value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run(make(), {STATUS: value})
    (warning,) = warnings(caplog)
    assert "'job'" in warning
    assert STATUS in warning


def test_a_bare_status_that_means_something_else_is_warned_about_once_in_all(caplog: pytest.LogCaptureFixture) -> None:
    live = Live()
    for _ in range(50):
        run(live, {"chat_id": "c", "status": "200"})
    assert len(warnings(caplog)) == 1
    assert {end.status for end in live.ends} == {TaskStatus.COMPLETED}


@BOTH
def test_a_completed_task_says_how_long_it_took(make: type[Driver]) -> None:
    driver = make()
    opened = driver.tracer.start_span("job", attributes=TASK, start_time=1_000 * SECOND)
    opened.end(1_125 * SECOND)
    tell(driver)
    assert driver.last.content == "Task completed in 2 min 5 s"


@BOTH
def test_a_failed_task_says_why(make: type[Driver]) -> None:
    end = run(make(), TASK, error=ValueError("bad row 1043"))[-1]
    assert end.content == "Task failed: ValueError: bad row 1043"
    assert end.error == "ValueError: bad row 1043"


@BOTH
def test_an_authors_own_last_word_stands_beside_the_error(make: type[Driver]) -> None:
    end = run(make(), {CONTENT: "importing row 1043"}, error=ValueError("bad row"))[-1]
    assert (end.content, end.error) == ("importing row 1043", "ValueError: bad row")


@BOTH
def test_what_a_step_said_last_is_not_how_the_task_ended(make: type[Driver]) -> None:
    driver = make()
    with span(driver, "parent", attributes=TASK), span(driver, "child", attributes={CONTENT: "step 2 of 3"}):
        pass
    tell(driver)
    assert driver.last.content.startswith("Task completed in ")


@BOTH
def test_what_a_step_said_last_helps_to_understand_a_failure(make: type[Driver]) -> None:
    driver = make()
    with pytest.raises(ValueError, match="bad"), span(driver, "parent", attributes=TASK):
        with span(driver, "child", attributes={CONTENT: "step 2 of 3"}):
            pass
        raise ValueError("bad")
    tell(driver)
    assert driver.last.content == "Task failed: ValueError: bad (last: step 2 of 3)"


@BOTH
@pytest.mark.parametrize(
    ("description", "events", "error"),
    [
        ("ValueError: bad", [], "ValueError: bad"),
        (None, [{"exception.type": "app.Refused", "exception.message": "no"}], "app.Refused: no"),
        (None, [{"exception.type": "Refused"}], "Refused"),
        (None, [{"exception.message": "no"}], "no"),
        (None, [{"exception.type": "First"}, {"exception.type": "Last", "exception.message": "2"}], "Last: 2"),
        (None, [], None),
        ("GET https://h/?q=private failed", [], "GET https://h/?… failed"),
        ("login: password=hunter2", [], "login: password=[redacted]"),
        ("boom\nTraceback (most recent call last):\n  File", [], "boom"),
    ],
)  # fmt: skip
def test_the_error_is_one_clean_line(
    make: type[Driver], description: str | None, events: list[dict[str, str]], error: str | None
) -> None:
    driver = make()
    opened = driver.tracer.start_span("job", attributes=TASK)
    for event in events:
        opened.add_event("exception", {**event, "exception.stacktrace": "File secret.py"})
    opened.set_status(Status(StatusCode.ERROR, description))
    opened.end()
    tell(driver)
    assert driver.last.error == error
    assert "secret.py" not in str(driver.reports)


def test_error_type_is_told_if_nothing_else_is() -> None:
    live = Live()
    opened = live.tracer.start_span("job", attributes={**TASK, "error.type": "timeout"})
    opened.set_status(StatusCode.ERROR)
    opened.end()
    assert live.last.content == "Task failed: timeout"


def test_prompts_outputs_and_arguments_are_never_told() -> None:
    secret = "the prompt"
    attributes = {"gen_ai.input.messages": secret, "input.value": secret, "code.arguments": secret, "content2": secret}
    for driver in (Live(), Alone()):
        run(driver, {**TASK, **attributes}, error=ValueError("x"))
        assert secret not in str(driver.reports)


def test_long_content_and_results_are_capped() -> None:
    live = Live(content_cap=100)
    run(live, {CONTENT: "x" * 1_000_000, RESULT: "y" * 1_000_000})
    assert (len(live.last.content), len(live.last.result or "")) == (100, 100)


def test_an_aborted_task_failed_and_says_why() -> None:
    live = Live()
    live.aborted = lambda span: "cancelled or timed out"
    opened = live.tracer.start_span("job", attributes={PROGRESS: 0.4, CONTENT: "row 400"})
    opened.end()
    end = live.last
    assert (end.status, end.progress, end.error) == (TaskStatus.FAILED, 0.4, "cancelled or timed out")
    assert end.content == "Task failed: cancelled or timed out (last: row 400)"


def test_an_explicit_status_wins_over_an_abort() -> None:
    live = Live()
    live.aborted = lambda span: "cancelled or timed out"
    live.tracer.start_span("job", attributes={STATUS: "completed"}).end()
    assert live.last.status is TaskStatus.COMPLETED


def test_a_span_that_is_never_ended_is_lost() -> None:
    live = Live()
    opened = live.tracer.start_span("job", attributes={PROGRESS: 0.4})
    del opened
    gc.collect()
    live.look()
    assert [(end.status, end.progress, end.content) for end in live.ends] == [
        (TaskStatus.FAILED, 0.4, "Task failed: its span was never ended (lost)")
    ]
    assert live.tracker.open_tasks == 0


def test_a_lost_span_that_said_how_it_ended_ended_so() -> None:
    live = Live()
    opened = live.tracer.start_span("job", attributes={STATUS: "completed"})
    del opened
    gc.collect()
    live.look()
    assert [end.status for end in live.ends] == [TaskStatus.COMPLETED]


def test_a_lost_step_fails_nobody() -> None:
    live = Live()
    with span(live, "parent", attributes=TASK):
        opened = live.tracer.start_span("child", attributes={PROGRESS: 0.5})
        del opened
        gc.collect()
        live.look()
        assert live.ends == []
    assert [end.status for end in live.ends] == [TaskStatus.COMPLETED]


def test_a_task_with_two_spans_is_not_lost_with_one() -> None:
    live = Live()
    one, two = (live.tracer.start_span("job", attributes={ID: "t"}) for _ in range(2))
    del one
    gc.collect()
    live.look()
    assert live.ends == []
    two.end()
    assert [end.status for end in live.ends] == [TaskStatus.COMPLETED]


def test_shutdown_fails_what_is_open_and_tells_no_end_twice() -> None:
    live = Live()
    spans = [live.tracer.start_span(f"job-{n}", attributes={PROGRESS: n / 10}) for n in range(3)]
    spans[0].end()
    live.stop()
    live.stop()
    for opened in spans[1:]:
        live.look()
        opened.end()
    assert [(end.name, end.status) for end in live.ends] == [
        ("job-0", TaskStatus.COMPLETED),
        ("job-1", TaskStatus.FAILED),
        ("job-2", TaskStatus.FAILED),
    ]
    assert live.last.content == "Task failed: the program shut down while the task was still open"
    assert live.last.progress == 0.2


def test_shutdown_respects_an_explicit_status() -> None:
    live = Live()
    opened = live.tracer.start_span("job", attributes={STATUS: "completed"})
    live.stop()
    opened.end()
    assert live.told()[1:] == [("job", "completed")]


# -- steps and tasks of their own ------


@BOTH
def test_a_child_without_an_id_or_a_chat_is_a_step(make: type[Driver]) -> None:
    driver = make()
    with (
        span(driver, "parent", attributes={CHAT: "c", STATUS: "failed"}),
        span(driver, "step", attributes={PROGRESS: 0.5, NAME: "n", MESSAGE: "m", STATUS: "completed", CONTENT: "x"}),
    ):
        pass
    tell(driver)
    assert {report.name for report in driver.reports} == {"parent"}
    assert [(end.status, end.progress, end.message_id) for end in driver.ends] == [(TaskStatus.FAILED, 0.5, None)]


@BOTH
@pytest.mark.parametrize("own", [{ID: "own"}, {CHAT: "own"}], ids=["id", "chat"])
def test_a_child_with_an_id_or_a_chat_of_its_own_is_a_task(make: type[Driver], own: dict[str, str]) -> None:
    driver = make()
    with span(driver, "parent", attributes={ID: "p", CHAT: "c"}), span(driver, "child", attributes=own):
        pass
    tell(driver)
    assert [end.name for end in driver.ends] == ["child", "parent"]


@BOTH
@pytest.mark.parametrize("same", [{ID: "p"}, {CHAT: "c"}, {ID: "p", CHAT: "c"}], ids=["id", "chat", "both"])
def test_a_child_that_repeats_its_parents_id_or_chat_is_not(make: type[Driver], same: dict[str, str]) -> None:
    driver = make()
    with span(driver, "parent", attributes={ID: "p", CHAT: "c"}), span(driver, "child", attributes=same):
        pass
    tell(driver)
    assert [end.task_id for end in driver.ends] == ["p"]


@BOTH
def test_plain_spans_between_a_task_and_its_step_are_looked_through(make: type[Driver]) -> None:
    driver = make()
    with (
        span(driver, "parent", attributes={CHAT: "c", STATUS: "failed"}),
        span(driver, "plain"),
        span(driver, "deeper"),
        span(driver, "step", attributes={PROGRESS: 0.5}),
    ):
        pass
    tell(driver)
    assert [(end.name, end.progress) for end in driver.ends] == [("parent", 0.5)]


@BOTH
def test_a_step_below_a_step_below_a_task_of_the_same_chat_is_a_step(make: type[Driver]) -> None:
    driver = make()
    with (
        span(driver, "parent", attributes={CHAT: "c"}),
        span(driver, "step", attributes=TASK),
        span(driver, "deep", attributes={CHAT: "c"}),
    ):
        pass
    tell(driver)
    assert [end.name for end in driver.ends] == ["parent"]


@BOTH
def test_failed_steps_are_counted(make: type[Driver]) -> None:
    driver = make()
    with span(driver, "parent", attributes=TASK):
        for name in ("one", "two"):
            with pytest.raises(ValueError, match="x"), span(driver, name, attributes={CONTENT: "trying"}):
                raise ValueError("x")
    tell(driver)
    assert driver.last.status is TaskStatus.COMPLETED
    assert driver.last.content.endswith(", 2 failed steps")


def test_what_a_step_says_at_its_end_is_told_then() -> None:
    live = Live()
    with span(live, "parent", attributes=TASK):
        with span(live, "step") as step:
            step.set_attribute(PROGRESS, 0.5)
        assert live.last.progress == 0.5
        assert live.last.name == "parent"


def test_a_steps_result_counts_until_the_task_gives_its_own() -> None:
    live = Live()
    with span(live, "parent", attributes=TASK) as parent, span(live, "step", attributes={RESULT: "part"}):
        live.look()
        assert live.last.result == "part"
        parent.set_attribute(RESULT, "whole")
        count = len(live.reports)
        for _ in range(3):
            live.look()
        assert len(live.reports) == count + 1
    assert live.last.result == "whole"


def test_a_step_that_outlives_its_task_tells_nothing_after_the_end() -> None:
    live = Live()
    with span(live, "parent", attributes=TASK):
        step = live.tracer.start_span("step", attributes={PROGRESS: 0.1})
        late = live.tracer.start_span("late")
    step.set_attribute(PROGRESS, 0.5)
    late.set_attribute(CONTENT, "still here")
    live.look()
    step.end()
    late.end()
    assert live.told()[-1] == ("parent", "completed")
    assert len(live.ends) == 1


@pytest.mark.parametrize("attributes", [{PROGRESS: 0.5}, {"letta.task.name": "job"}, TASK])
@pytest.mark.parametrize("order", [("parent", "job"), ("job", "parent")])
@pytest.mark.parametrize("driver", ["live", "alone"])
def test_a_job_that_starts_after_its_parent_ended_is_no_step_of_it(
    driver: str, order: tuple[str, ...], attributes: dict[str, Any]
) -> None:
    made: Live | Alone = Live() if driver == "live" else Alone()
    with span(made, "parent", attributes=TASK) as parent:
        pass
    with pytest.raises(OSError), trace.use_span(parent), span(made, "job", attributes=attributes):
        raise OSError("disk full")
    if isinstance(made, Alone):
        made.export(*order)
        made.tracker.shutdown()
    assert sorted((end.name, str(end.status)) for end in made.ends) == [("job", "failed"), ("parent", "completed")]
    assert "disk full" in next(end for end in made.ends if end.name == "job").content


def test_a_step_may_start_when_its_plain_parent_has_ended() -> None:
    alone = Alone()
    with span(alone, "task", attributes=TASK):
        with span(alone, "plain") as plain:
            pass
        with trace.use_span(plain), span(alone, "step", attributes={PROGRESS: 0.5}):
            pass
    for name in ("plain", "step", "task"):
        alone.export(name)
    alone.tracker.shutdown()
    assert [(end.name, str(end.status)) for end in alone.ends] == [("task", "completed")]


def test_a_child_that_is_told_as_a_task_live_inherits_its_parents_agent() -> None:
    live = Live(allowed_agents=["agent-2"])
    with span(live, "parent", attributes={AGENT: "agent-2", ID: "p"}), span(live, "child", attributes={ID: "c"}):
        pass
    assert {report.agent_id for report in live.reports} == {"agent-2"}


def test_a_child_of_another_process_is_a_task() -> None:
    for driver in (Live(), Alone()):
        remote = trace.set_span_in_context(NonRecordingSpan(SpanContext(1, 2, True, TraceFlags(1))))
        driver.tracer.start_span("job", context=remote, attributes=TASK).end()
        tell(driver)
        assert [end.name for end in driver.ends] == ["job"]


# -- one task in several traces ------


def test_spans_of_one_id_that_are_open_at_once_are_one_task_which_the_last_one_ends() -> None:
    live = Live()
    one = live.tracer.start_span("one", attributes={ID: "t", PROGRESS: 0.1})
    two = live.tracer.start_span("two", attributes={ID: "t", PROGRESS: 0.2})
    one.set_attribute(PROGRESS, 0.6)
    one.end()
    assert live.ends == []
    assert live.last.progress == 0.6
    two.end()
    assert [(end.name, end.run) for end in live.ends] == [("one", 1)]
    assert {report.task_id for report in live.reports} == {"t"}


def test_a_failed_part_of_a_task_that_went_on_is_counted() -> None:
    live = Live()
    one, two = (live.tracer.start_span("job", attributes={ID: "t"}) for _ in range(2))
    one.set_status(StatusCode.ERROR)
    one.end()
    two.end()
    assert live.last.status is TaskStatus.COMPLETED
    assert live.last.content.endswith(", 1 failed step")


@BOTH
def test_spans_of_one_id_that_come_one_after_another_are_runs_of_a_task(make: type[Driver]) -> None:
    driver = make()
    for n in range(3):
        driver.tracer.start_span(f"job-{n}", attributes={ID: "nightly", PROGRESS: 0.5}).end()
    tell(driver)
    assert [(end.task_id, end.run, end.progress) for end in driver.ends] == [("nightly", n, 1.0) for n in (1, 2, 3)]
    sequences = [report.sequence for report in driver.reports]
    assert sequences == list(range(1, len(sequences) + 1))


@pytest.mark.parametrize("agent", [None, "agent-2"])
def test_a_span_that_names_the_id_which_another_tasks_span_made_is_part_of_that_task(agent: str | None) -> None:
    live = Live(allowed_agents=["agent-2"])
    to = {} if agent is None else {AGENT: agent}
    first = live.tracer.start_span("job", attributes={NAME: "job", **to})
    task_id = live.last.task_id
    elsewhere = live.tracer.start_span("half", attributes={ID: task_id, PROGRESS: 0.5, **to})
    assert (live.last.task_id, live.last.progress, live.last.sequence) == (task_id, 0.5, 2)
    first.end()
    assert live.ends == []
    elsewhere.end()
    assert [end.task_id for end in live.ends] == [task_id]
    again = live.tracer.start_span("again", attributes={ID: task_id, **to})
    assert (live.last.task_id, live.last.run) == (task_id, 2)
    again.end()


@pytest.mark.parametrize(
    "task_id", ["0" * 32, "a" * 32, "A" * 32, f"{'a' * 32}-{'0' * 16}", f"{'a' * 32}-{'b' * 16}", f"{'a' * 32}-b"]
)
def test_an_id_that_looks_as_if_a_span_had_made_it_stays_as_it_was_given(task_id: str) -> None:
    live = Live()
    with span(live, "job", attributes={ID: task_id}), span(live, "half", attributes={ID: task_id, PROGRESS: 0.5}):
        pass
    assert {report.task_id for report in live.reports} == {task_id}
    assert len(live.ends) == 1


@BOTH
def test_without_an_explicit_id_traces_never_meet(make: type[Driver]) -> None:
    driver = make()
    for _ in range(2):
        driver.tracer.start_span("same name", attributes={CHAT: "same chat", NAME: "same"}).end()
    tell(driver)
    assert len({end.task_id for end in driver.ends}) == 2
    assert [end.run for end in driver.ends] == [1, 1]


def test_one_id_at_two_agents_is_two_tasks() -> None:
    live = Live(allowed_agents=["a", "b"])
    spans = [live.tracer.start_span("job", attributes={ID: "t", AGENT: agent}) for agent in "ab"]
    for opened in spans:
        opened.end()
    assert [end.agent_id for end in live.ends] == ["a", "b"]


# -- agents ------


@BOTH
def test_an_agent_that_is_not_on_the_list_is_not_told(make: type[Driver], caplog: pytest.LogCaptureFixture) -> None:
    driver = make(allowed_agents=["agent-2"])
    for _ in range(3):
        driver.tracer.start_span("job", attributes={**TASK, AGENT: "agent-9"}).end()
    tell(driver)
    assert {end.agent_id for end in driver.ends} == {None}
    (warning,) = warnings(caplog)
    assert "'agent-9'" in warning
    assert "OTEL_LETTA_AGENT_ALLOW_LIST" in warning


# -- ended spans alone, in any order ------


@pytest.mark.parametrize("order", [("child", "parent"), ("parent", "child")], ids=["child first", "parent first"])
def test_a_step_is_never_told_as_a_task(order: tuple[str, str]) -> None:
    alone = Alone()
    with span(alone, "parent", attributes=TASK), span(alone, "child", attributes={CONTENT: "step"}):
        pass
    alone.export(*order)
    alone.clock.pass_seconds(100_000)
    assert alone.tracker.tick() is None
    assert alone.told() == [("parent", "completed")]


NAMES = ("root", "plain", "step", "deep", "own", "ownstep", "chat", "samechat")


def family(driver: Alone) -> None:
    """A task with a chat, and below it: a plain span with steps, a task with an id and one with another chat."""
    with span(driver, "root", attributes={CHAT: "c"}):
        with span(driver, "plain"), span(driver, "step", attributes={PROGRESS: 0.5}):
            with span(driver, "deep", attributes={CONTENT: "deep"}):
                pass
            with span(driver, "samechat", attributes={CHAT: "c", CONTENT: "x"}):
                pass
        with span(driver, "own", attributes={ID: "own"}), span(driver, "ownstep", attributes={PROGRESS: 0.2}):
            pass
        with span(driver, "chat", attributes={CHAT: "d"}):
            pass


@settings(max_examples=150)
@given(order=st.permutations(NAMES), ticks=st.booleans())
def test_in_whatever_order_spans_come_each_task_is_told_once_and_no_step_is(order: list[str], ticks: bool) -> None:
    alone = Alone()
    family(alone)
    for name in order:
        alone.export(name)
        if ticks:
            alone.clock.pass_seconds(1)
            alone.tracker.tick()
    alone.clock.pass_seconds(100_000)
    alone.tracker.tick()
    assert sorted(alone.told()) == [("chat", "completed"), ("own", "completed"), ("root", "completed")]
    assert {end.name: end.chat_id for end in alone.ends}["root"] == "c"


@settings(max_examples=50)
@given(order=st.permutations(NAMES))
def test_spans_that_come_twice_are_told_once(order: list[str]) -> None:
    alone = Alone()
    family(alone)
    alone.export(*order)
    alone.export(*reversed(order))
    alone.clock.pass_seconds(100_000)
    alone.tracker.tick()
    assert sorted(end.name for end in alone.ends) == ["chat", "own", "root"]


def test_children_that_end_first_are_told_as_soon_as_it_is_clear_what_they_are() -> None:
    alone = Alone()
    family(alone)
    told = []
    for ended in alone.batch:
        alone.tracker.ended_alone(Reading.of(ended))
        told.append((ended.name, [end.name for end in alone.ends]))
    assert dict(told)["own"] == ["own"]  # it has an id: at once
    assert dict(told)["chat"] == ["own"]  # it has a chat, and its parent might have the same
    assert dict(told)["root"] == ["own", "chat", "root"]


def test_a_child_with_a_chat_waits_for_its_parent_only_so_long() -> None:
    alone = Alone(patience=30, step_patience=3_600)
    with span(alone, "plain"), span(alone, "task", attributes={CHAT: "c"}):
        pass
    began = alone.clock.now
    alone.export("task")
    assert alone.tracker.tick() == began + 30 * SECOND
    alone.clock.pass_seconds(29.9)
    assert alone.tracker.tick() == began + 30 * SECOND
    assert alone.reports == []
    alone.clock.pass_seconds(0.1)
    assert alone.tracker.tick() is None
    assert alone.told() == [("task", "completed")]
    alone.export("plain")
    assert len(alone.reports) == 1


def test_a_child_without_any_id_waits_for_longer_since_it_is_likely_a_step() -> None:
    alone = Alone(patience=30, step_patience=3_600)
    with span(alone, "root", attributes={CHAT: "c"}), span(alone, "step", attributes={PROGRESS: 0.5}):
        pass
    alone.export("step")
    alone.clock.pass_seconds(1_800)
    alone.tracker.tick()
    assert alone.reports == []
    alone.export("root")
    assert alone.told() == [("root", "completed")]
    assert alone.tracker.tick() is None


def test_one_that_waits_for_long_does_not_hold_up_others() -> None:
    alone = Alone(patience=30, step_patience=3_600)
    with span(alone, "p1"), span(alone, "anonymous", attributes=TASK):
        pass
    with span(alone, "p2"), span(alone, "chat", attributes={CHAT: "c"}):
        pass
    alone.export("anonymous", "chat")
    alone.clock.pass_seconds(31)
    alone.tracker.tick()
    assert alone.told() == [("chat", "completed")]
    alone.clock.pass_seconds(3_600)
    assert alone.tracker.tick() is None
    assert alone.told() == [("chat", "completed"), ("anonymous", "completed")]


def test_a_task_below_plain_spans_only_is_told_when_the_root_has_ended() -> None:
    alone = Alone()
    with span(alone, "root"), span(alone, "mid"), span(alone, "task", attributes=TASK):
        pass
    alone.export("task", "mid")
    assert alone.reports == []
    alone.export("root")
    assert alone.told() == [("task", "completed")]


def test_what_waits_at_shutdown_is_told() -> None:
    alone = Alone()
    with span(alone, "root"), span(alone, "task", attributes={PROGRESS: 0.5, CONTENT: "x"}):
        pass
    alone.export("task")
    alone.tracker.shutdown()
    alone.tracker.shutdown()
    assert alone.told() == [("task", "completed")]
    assert alone.tracker.tick() is None


@pytest.mark.parametrize(
    ("child_fails", "parent_fails", "told"),
    [
        (False, False, ["completed"]),
        (True, True, ["failed"]),
        (False, True, ["completed", "failed"]),
        (True, False, ["failed", "completed"]),
    ],
)
def test_a_parent_with_the_id_of_a_child_that_was_told_is_told_only_if_it_ended_otherwise(
    child_fails: bool, parent_fails: bool, told: list[str]
) -> None:
    alone = Alone()
    with span(alone, "parent", attributes={ID: "t"}) as parent:
        with span(alone, "plain"), span(alone, "child", attributes={ID: "t"}) as child:
            child.set_status(StatusCode.ERROR if child_fails else StatusCode.OK)
        parent.set_status(StatusCode.ERROR if parent_fails else StatusCode.OK)
    alone.export("child", "plain", "parent")
    assert [str(end.status) for end in alone.ends] == told
    assert len({(end.task_id, end.run) for end in alone.ends}) == len(told)


def test_a_child_with_the_id_of_its_parent_that_was_told_is_not_told() -> None:
    alone = Alone()
    with span(alone, "parent", attributes={ID: "t"}), span(alone, "plain"), span(alone, "child", attributes={ID: "t"}):
        pass
    alone.export("parent", "plain", "child")
    assert alone.told() == [("parent", "completed")]


def test_an_ended_span_below_a_live_task_is_its_step() -> None:
    live, alone = Live(), Alone()
    live.provider.add_span_processor(alone)
    with span(live, "parent", attributes=TASK) as parent:
        with live.tracer.start_as_current_span("child") as child:
            pass
        (record,) = live.open.all()
        entry = live.open.observe(record)
        assert entry is not None
        assert isinstance(child.get_span_context(), SpanContext)
        facts = Reading.of(alone.batch[0], more={PROGRESS: 0.5})
        facts.key = (facts.key[0], 99)  # a span that only the exporter saw
        live.tracker.ended_alone(facts, [entry])
        assert (live.last.name, live.last.progress) == ("parent", 0.5)
        assert parent.is_recording()
    assert live.told()[-1] == ("parent", "completed")


def test_the_end_of_a_task_that_is_open_elsewhere_is_left_to_it() -> None:
    live, alone = Live(), Alone()
    opened = live.tracer.start_span("open", attributes={ID: "t"})
    alone.tracer.start_span("other", attributes={ID: "t", PROGRESS: 0.5}).end()
    live.tracker.ended_alone(Reading.of(alone.batch[0]))
    assert (live.ends, live.last.progress) == ([], 0.5)
    opened.end()
    assert live.told()[-1] == ("open", "completed")
    assert len(live.ends) == 1


def test_a_span_that_was_told_live_is_not_told_again_from_an_exporter() -> None:
    live, alone = Live(), Alone()
    live.provider.add_span_processor(alone)
    with span(live, "parent", attributes=TASK), span(live, "child", attributes={PROGRESS: 0.5}):
        pass
    for ended in alone.batch:
        live.tracker.ended_alone(Reading.of(ended))
    assert len(live.ends) == 1


def test_parents_that_go_in_circles_are_no_trap() -> None:
    alone = Alone()
    with span(alone, "a", attributes={CHAT: "c"}), span(alone, "b"), span(alone, "c", attributes={CHAT: "c"}):
        pass
    facts = {ended.name: Reading.of(ended) for ended in alone.batch}
    facts["a"].parent = facts["c"].key
    facts["b"].parent = facts["b"].key
    for each in itertools.chain(facts.values(), facts.values()):
        alone.tracker.ended_alone(each)
    alone.tracker.shutdown()
    assert sorted(end.name for end in alone.ends) in (["a", "c"], ["a"], ["c"])


def test_waiting_spans_are_bounded() -> None:
    alone = Alone()
    with span(alone, "root"):
        for _ in range(10_050):
            alone.tracer.start_span("task", attributes=TASK).end()
    for ended in alone.batch[:-1]:
        alone.tracker.ended_alone(Reading.of(ended))
        alone.tracker.tick()
    assert len(alone.ends) == 50
    alone.tracker.ended_alone(Reading.of(alone.batch[-1]))
    assert len(alone.ends) == 10_050


# -- hostile values ------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(5_000, 5_010).map(lambda digits: 10**digits),
    st.floats(),
    st.text(st.characters(), max_size=20),
    st.text(max_size=20).map(hostile_text),
    st.binary(max_size=20),
    st.sampled_from([Path("/x"), 1j, TaskStatus.FAILED, object()]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        *(ID, NAME, CHAT, MESSAGE, AGENT, PROGRESS, STATUS, CONTENT, RESULT),
        *("progress", "status", "content", "chat_id", "message_id", "error.type", "gen_ai.operation.name", "other"),
    ]
)
ATTRIBUTES = st.dictionaries(KEYS, VALUES, max_size=6)


def check(reports: list[ProgressReport]) -> None:
    for report in reports:
        report.to_json().encode("ascii")
        assert report.task_id
        assert 0.0 <= report.progress <= 1.0
        for text in (report.task_id, report.name, report.content, report.chat_id, report.message_id, report.result):
            assert text is None or (type(text) is str and len(text) <= 2_000 and text.encode("utf-8") is not None)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150)
@given(first=ATTRIBUTES, later=ATTRIBUTES, event=ATTRIBUTES, description=VALUES, resource=ATTRIBUTES)
@example(first={"chat_id": False}, later={"chat_id": None}, event={}, description=None, resource={})
def test_no_value_of_any_kind_gets_an_exception_out_of_tracking(
    first: dict[str, Any], later: dict[str, Any], event: dict[str, Any], description: Any, resource: dict[str, Any]
) -> None:
    live, alone = Live(), Alone()
    live.provider.add_span_processor(alone)
    opened = live.tracer.start_span("job")
    opened._attributes._dict.update(first)  # type: ignore[attr-defined]  # as they are, not as the SDK may clean them
    opened._resource = type("R", (), {"attributes": resource})()  # type: ignore[attr-defined]
    live.look()
    was_task = Reading.of(opened).declaration is not None  # type: ignore[arg-type]
    opened._attributes._dict.update(later)  # type: ignore[attr-defined]  # it may take back what made it one
    opened.add_event("progress")
    opened.add_event("exception")
    for added in opened.events:  # type: ignore[attr-defined]
        added._attributes = event
    live.look()
    opened._status = type("S", (), {"status_code": StatusCode.ERROR, "description": description})()  # type: ignore[attr-defined]
    opened._name = description  # type: ignore[attr-defined]
    opened.end()
    tell(alone)
    is_task = Reading.of(alone.batch[0]).declaration is not None
    assert len(alone.ends) == is_task
    assert len(live.ends) == (is_task or was_task)
    check(live.reports)
    check(alone.reports)


@settings(max_examples=60)
@given(values=st.dictionaries(KEYS, VALUES.filter(lambda value: not isinstance(value, dict)), max_size=6))
def test_nor_through_the_sdk_itself(values: dict[str, Any]) -> None:
    live = Live()
    with live.tracer.start_as_current_span("job") as opened:
        for key, value in values.items():
            try:
                opened.set_attribute(key, value)
            except Exception:
                continue  # the SDK's own refusal of this value
        live.look()
    check(live.reports)


# -- recorded traces ------


@pytest.mark.parametrize("recorded", ["web_noise.success", "celery_batch.success"])
def test_programs_without_tasks_and_agents_tell_nothing(recorded: str) -> None:
    alone = Alone()
    spans = read_spans(DATA / f"{recorded}.otlp.jsonl")
    for recorded_span in spans:
        alone.tracker.ended_alone(Reading.of(recorded_span))
    alone.tracker.shutdown()
    assert alone.reports == []
    assert len(spans) > 5


def test_a_recorded_agent_that_was_given_a_chat_tells_one_task_and_none_of_its_prompts() -> None:
    alone = Alone()
    for recorded_span in read_spans(DATA / "strands.native.success.otlp.jsonl", {CHAT: "chat-1"}):
        alone.tracker.ended_alone(Reading.of(recorded_span))
    alone.tracker.shutdown()
    roots = {end.trace_id for end in alone.ends}
    assert len(alone.ends) == len(roots) == 1
    assert {(end.status, end.chat_id, end.wakes) for end in alone.ends} == {(TaskStatus.COMPLETED, "chat-1", True)}
    assert alone.last.content == "Finished 'reporter' in 3.9 s, 2 tools"
    assert "quarterly revenue" not in str(alone.reports)
