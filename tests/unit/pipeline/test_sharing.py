"""Sharing: components that are configured alike have one pipeline, which lasts as long as the last of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from otel_letta.answer import Answer
from otel_letta.pipeline.sharing import Handle, join
from otel_letta.report import ProgressReport, TaskStatus
from otel_letta.runtime.deadline import Deadline
from otel_letta.settings import Settings
from tests.support.fake_transport import FakeTransport

AGENT = "agent-00000000-0000-4000-8000-000000000000"


@pytest.fixture
def handles() -> Iterator[list[Handle]]:
    made: list[Handle] = []
    yield made
    for handle in made:
        handle.close(1.0)


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


def settings(**options: Any) -> Settings:
    options = {"delivery": "messages", **options}
    return Settings.resolve(environ={}, base_url="http://127.0.0.1:9", agent_id=AGENT, **options)


def test_the_same_settings_share_a_pipeline(handles: list[Handle], transport: FakeTransport) -> None:
    handles += [join(settings(), transport, live=live) for live in (True, False)]
    assert handles[0].pipeline is handles[1].pipeline


def test_other_settings_transports_and_filters_have_pipelines_of_their_own(
    handles: list[Handle], transport: FakeTransport
) -> None:
    handles += [
        join(settings(), transport, live=True),
        join(settings(delivery="board"), transport, live=True),
        join(settings(), FakeTransport(), live=True),
        join(settings(), transport, live=True, task_filter=lambda span: None),
    ]
    assert len({handle.pipeline for handle in handles}) == 4


def test_the_last_one_out_closes_the_pipeline(handles: list[Handle], transport: FakeTransport) -> None:
    first, last = (join(settings(), transport, live=True) for _ in range(2))
    assert first.close(1.0)
    assert not first.pipeline._inbox.closed
    assert last.close(1.0)
    assert last.pipeline._inbox.closed
    handles.append(join(settings(), transport, live=True))
    assert handles[0].pipeline is not last.pipeline


def test_closing_twice_closes_once(handles: list[Handle], transport: FakeTransport) -> None:
    handles += [join(settings(), transport, live=True) for _ in range(2)]
    assert handles[0].close(1.0)
    assert handles[0].close(1.0)
    assert not handles[1].pipeline._inbox.closed


# -- sources -----------------------------------------------------------------------------------------------------------


class Counting:
    """A source whose open tasks are numbers."""

    def __init__(self) -> None:
        self.starts = 0
        self.tasks: list[int] = []
        self.ticks = 0
        self.ended: list[int] = []
        self.restored: list[ProgressReport] = []

    @property
    def open_tasks(self) -> int:
        return len(self.tasks)

    def start(self, emit: Any) -> None:
        self.starts += 1
        self.emit = emit
        self.tasks = []

    def begin(self, number: int) -> None:
        self.tasks.append(number)
        self.emit(ProgressReport(chat_id=None, message_id=None, content=f"task {number}", task_id=str(number)))

    def tick(self, now_ns: int) -> int | None:
        self.ticks += 1
        return None

    def shutdown(self) -> None:
        self.ended += self.tasks

    def restore(self, report: ProgressReport) -> None:
        self.restored.append(report)

    def claims(self, conversation_id: str) -> bool:
        return conversation_id == "mine"


def test_a_source_is_called_on_the_pipelines_thread_and_its_reports_are_delivered(
    handles: list[Handle], transport: FakeTransport
) -> None:
    handle = join(settings(), transport, live=False)
    handles.append(handle)
    source = handle.add_source(Counting())
    handle.call(source.begin, 7)
    assert handle.pipeline.flush(5.0) in (True, False)  # the stand-in may say either; the call was made
    assert source.tasks == [7]
    assert source.ticks > 0
    assert handle.pipeline.stats()["open_tasks"] == 1
    assert handle.pipeline.stats()["reports"] == 1


def test_a_pipeline_has_one_source_of_each_type(handles: list[Handle], transport: FakeTransport) -> None:
    handles += [join(settings(), transport, live=False) for _ in range(2)]
    first = handles[0].add_source(Counting())
    assert handles[1].add_source(Counting()) is first


def test_a_source_speaks_for_what_it_claims(handles: list[Handle], transport: FakeTransport) -> None:
    handles.append(join(settings(), transport, live=True))
    assert not handles[0].pipeline.claimed("mine")
    handles[0].add_source(Counting())
    assert handles[0].pipeline.claimed("mine")
    assert not handles[0].pipeline.claimed("other")


def test_a_source_ends_its_tasks_when_the_pipeline_closes_and_not_before(transport: FakeTransport) -> None:
    first, last = (join(settings(), transport, live=False) for _ in range(2))
    source = first.add_source(Counting())
    first.call(source.begin, 1)
    first.close(1.0)
    assert source.ended == []
    last.close(1.0)
    assert source.ended == [1]
    last.call(source.begin, 2)
    assert source.tasks == [1]


def test_a_source_begins_anew_in_a_forked_child(handles: list[Handle], transport: FakeTransport) -> None:
    handles.append(join(settings(), transport, live=False))
    source = handles[0].add_source(Counting())
    handles[0].call(source.begin, 1)
    handles[0].pipeline.flush(1.0)
    handles[0].pipeline.after_fork_in_child()
    assert source.starts == 2
    assert source.open_tasks == 0


def test_a_source_that_fails_does_not_take_spans_along(
    handles: list[Handle], transport: FakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Counting):
        def tick(self, now_ns: int) -> int | None:
            raise ValueError

    handles.append(join(settings(), transport, live=False))
    pipeline = handles[0].pipeline
    handles[0].add_source(Broken())
    made: list[int] = []
    for number in range(3):
        handles[0].call(made.append, number)
        pipeline.flush(1.0)
    assert made == [0, 1, 2]
    assert "unexpected ValueError" in caplog.text


def test_a_callback_for_answers_stays_as_long_as_the_share_that_added_it(
    handles: list[Handle], transport: FakeTransport
) -> None:
    first, second = (join(settings(), transport, live=True) for _ in range(2))
    handles += [first, second]
    calls: list[str] = []

    def on_answer(report: ProgressReport, answer: Answer) -> None:
        calls.append(report.task_id)

    def deliver(name: str) -> None:
        first.pipeline.desk.put(ProgressReport(task_id=name, status=TaskStatus.COMPLETED))
        assert first.pipeline.flush(30.0)
        first.pipeline.desk.answers.wait(Deadline.after(30.0))

    remove = first.on_answer(on_answer)
    second.on_answer(on_answer)
    deliver("both")
    remove()
    remove()
    deliver("one of them")
    assert calls == ["both", "one of them"]
    second.close(5.0)
    deliver("none")
    assert calls == ["both", "one of them"]
