"""Mistakes that would be silent: each is one line, once, with the remedy."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.util._once import Once

from otel_letta import LettaSpanExporter, LettaSpanProcessor, Settings, task, track
from otel_letta.otel import diagnosis, unreported
from otel_letta.otel.component import Component
from otel_letta.settings import sources
from otel_letta.testing import InMemoryLetta
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a program that has just started."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(diagnosis, "_logged", {})
    monkeypatch.setattr(sources, "_logged", {})
    monkeypatch.setattr(unreported, "unchecked", True)
    monkeypatch.setattr(Component, "made_any", False)
    yield


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "otel_letta")

    def lines(level: int = logging.WARNING) -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.name.startswith("otel_letta") and record.levelno == level
        ]

    return lines


@pytest.fixture
def options(letta: InMemoryLetta, agent: str) -> dict[str, Any]:
    return {"base_url": letta.base_url, "agent_id": agent, "delivery": "messages", "poll_interval": 0.01}


# -- a task, and nothing that reports it -------------------------------------------------------------------------------


def test_a_task_without_a_provider(lines: Any) -> None:
    for name in ("Import", "Export"):
        with task(name):
            pass
    assert lines() == [
        'the task "Import" is not reported: reporting is not turned on. Call otel_letta.configure() at the start'
    ]


def test_a_loop_without_a_provider(lines: Any) -> None:
    assert list(track([1, 2], "Import")) == [1, 2]
    assert len(lines()) == 1


def test_a_task_in_a_program_without_a_processor(lines: Any) -> None:
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    with task("Import"):
        pass
    (line,) = lines()
    assert "no LettaSpanProcessor or LettaSpanExporter. Call otel_letta.configure()" in line


@pytest.mark.parametrize(
    ("environment", "level"), [({}, logging.INFO), ({"LETTA_AGENT_ID": "agent-1"}, logging.WARNING)]
)
def test_where_spans_go_to_another_process_it_is_a_mistake_only_if_an_agent_is_named(
    environment: dict[str, str], level: int, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    trace.set_tracer_provider(provider)
    with task("Import"):
        pass
    assert len(lines(level)) == 1
    assert lines(logging.WARNING if level == logging.INFO else logging.INFO) == []


def test_a_task_that_the_sampler_dropped(lines: Any, options: dict[str, Any]) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(LettaSpanProcessor(**options))
    trace.set_tracer_provider(provider)
    with task("Import"):
        pass
    provider.shutdown()
    assert "the sampler dropped its span. otel_letta.LettaSampler around it keeps tasks" in lines()[0]


@pytest.mark.parametrize("kind", [LettaSpanProcessor, LettaSpanExporter])
def test_where_a_component_is_there_nothing_is_wrong(kind: Any, lines: Any, options: dict[str, Any]) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    component = kind(**options)
    provider.add_span_processor(component if kind is LettaSpanProcessor else SimpleSpanProcessor(component))
    trace.set_tracer_provider(provider)
    with task("Import"):
        pass
    provider.shutdown()
    assert lines() == []


def test_a_component_with_bad_settings_has_said_why_already(lines: Any) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(LettaSpanProcessor())
    trace.set_tracer_provider(provider)
    with task("Import"):
        pass
    assert lines() == []
    assert len(lines(logging.ERROR)) == 1


def test_an_sdk_that_is_switched_off_is_meant(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with task("Import"):
        pass
    assert lines() == []


# -- a name that is spelt wrongly --------------------------------------------------------------------------------------


class Traced:
    """A program with a component of ours."""

    def __init__(self, kind: Any, options: dict[str, Any], resource: dict[str, str] | None = None) -> None:
        self.provider = TracerProvider(resource=Resource(resource or {}), shutdown_on_exit=False)
        component = kind(**options)
        self.component = component
        self.provider.add_span_processor(component if kind is LettaSpanProcessor else SimpleSpanProcessor(component))
        self.tracer = self.provider.get_tracer("app")

    def span(self, **attributes: Any) -> None:
        with self.tracer.start_as_current_span("work", attributes=attributes):
            pass


KINDS = pytest.mark.parametrize("kind", [LettaSpanProcessor, LettaSpanExporter])


@KINDS
@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("letta.task.contents", "letta.task.content"),
        ("letta.chatid", "letta.chat.id"),
        ("letta.chat_id", "letta.chat.id"),
        ("letta.task_progress", "letta.task.progress"),
        ("letta.task.Progress", "letta.task.progress"),
        ("letta.messageId", "letta.message.id"),
        ("letta.agentid", "letta.agent.id"),
    ],
)
@pytest.mark.parametrize("beside", [{}, {"letta.task.id": "task-1"}])
def test_an_attribute(
    kind: Any, wrong: str, meant: str, beside: dict[str, str], lines: Any, options: dict[str, Any]
) -> None:
    traced = Traced(kind, options)
    for _ in range(3):
        traced.span(**{wrong: "x"}, **beside)
    traced.span(**{"letta.chat.id": "chat-1"})
    traced.provider.shutdown()
    assert lines() == [f"the span attribute {wrong} is none that is read: did you mean {meant}?"]


def test_an_attribute_that_resembles_none(lines: Any, options: dict[str, Any]) -> None:
    traced = Traced(LettaSpanProcessor, options)
    traced.span(**{"letta.task.zzz": 1, "letta.chat.id": "chat-1"})
    traced.provider.shutdown()
    (line,) = lines()
    assert "letta.task.zzz is none that is read: those that are read: letta.agent.id, letta.chat.id" in line


def test_attributes_of_the_letta_server_are_its_own(lines: Any, options: dict[str, Any]) -> None:
    traced = Traced(LettaSpanProcessor, options)
    traced.span(**{"letta.server.pool": 1, "letta.chat.id": "chat-1"})
    traced.provider.shutdown()
    assert lines() == []


@KINDS
def test_an_attribute_of_the_resource(kind: Any, lines: Any, options: dict[str, Any]) -> None:
    traced = Traced(kind, options, {"letta.chatid": "chat-1"})
    traced.span(**{"letta.task.name": "Import"})
    traced.provider.shutdown()
    assert lines() == ["the span attribute letta.chatid is none that is read: did you mean letta.chat.id?"]


def test_an_open_span_long_after_the_first_ones(
    lines: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "FIRST", 2)
    traced = Traced(LettaSpanProcessor, options)
    for _ in range(3):
        traced.span(**{"letta.chat.id": "chat-1"})
    assert "and_examine" not in repr(traced.component.on_end)
    with traced.tracer.start_as_current_span("work") as span:
        span.set_attribute("letta.task.contents", "half")
        assert until(lambda: len(lines()) == 1)
    traced.provider.shutdown()
    assert "did you mean letta.task.content?" in lines()[0]


def test_after_the_first_spans_the_hook_is_the_watchers_own(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = Traced(LettaSpanProcessor, options)
    fast = traced.component._pipeline.watcher.on_end
    assert traced.component.on_end is not fast
    for _ in range(diagnosis.FIRST):
        traced.span()
    assert traced.component.on_end is fast
    assert traced.component.examined == diagnosis.FIRST
    traced.provider.shutdown()


def test_a_hostile_name_is_cleaned_and_there_are_not_many(lines: Any, options: dict[str, Any]) -> None:
    traced = Traced(LettaSpanProcessor, options)
    for number in range(100):
        traced.span(**{f"letta.task.x\n{number}" + "y" * 500: 1})
    traced.provider.shutdown()
    found = [line for line in lines() if "is none that is read" in line]
    assert 0 < len(found) <= 25
    assert all(line.isprintable() and len(line) < 600 for line in found)


# -- spans, and none a task --------------------------------------------------------------------------------------------


@KINDS
def test_spans_of_which_none_is_a_task(kind: Any, lines: Any, options: dict[str, Any]) -> None:
    traced = Traced(kind, options)
    for _ in range(3):
        traced.span(http="GET /")
    traced.provider.shutdown()
    (line,) = lines()
    assert line.startswith("3 spans ended and none was a task, so nothing was reported: a task is a span inside")


@KINDS
def test_one_task_is_enough(kind: Any, lines: Any, options: dict[str, Any]) -> None:
    traced = Traced(kind, options)
    traced.span(http="GET /")
    traced.span(**{"letta.chat.id": "chat-1"})
    traced.provider.shutdown()
    assert lines() == []


def test_no_span_is_no_mistake(lines: Any, options: dict[str, Any]) -> None:
    Traced(LettaSpanProcessor, options).provider.shutdown()
    assert lines() == []


def test_a_server_that_runs_on_is_not_warned_but_informed(
    lines: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "FIRST", 5)
    traced = Traced(LettaSpanProcessor, options)
    for _ in range(9):
        traced.span()
    assert until(lambda: len(lines(logging.INFO)) == 1)
    assert lines(logging.INFO)[0].startswith("the first 5 spans ended and none was a task")
    traced.provider.shutdown()
    assert lines() == []


def test_threads_that_end_spans_at_once_do_no_harm(lines: Any, options: dict[str, Any]) -> None:
    traced = Traced(LettaSpanProcessor, options)
    threads = [threading.Thread(target=lambda: [traced.span() for _ in range(300)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    traced.provider.shutdown()
    assert lines(logging.ERROR) == []


# -- a variable that is spelt wrongly ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("OTEL_LETTA_DELVERY", "OTEL_LETTA_DELIVERY"),
        ("OTEL_LETTA_BOARDLABEL", "OTEL_LETTA_BOARD_LABEL"),
        ("OTEL_LETTA_AGENT_ID", "LETTA_AGENT_ID"),
        ("LETTA_AGENTID", "LETTA_AGENT_ID"),
        ("LETTA_BASEURL", "LETTA_BASE_URL"),
        ("LETTA_URL", "LETTA_BASE_URL"),
        ("LETTA_PASWORD", "LETTA_PASSWORD"),
        ("letta_agent_id", "LETTA_AGENT_ID"),
    ],
)
def test_a_variable(wrong: str, meant: str, lines: Any, tmp_path: Path) -> None:
    for _ in range(2):
        Settings.resolve(environ={wrong: "hunter2"}, agent_id="agent-1")
    assert lines() == [f"{wrong} in the environment is none that is read: did you mean {meant}?"]
    file = tmp_path / ".env"
    file.write_text(f"{wrong}=hunter2\n")
    Settings.resolve(environ={}, agent_id="agent-1")
    assert lines()[1:] == [f"{wrong} in {file} is none that is read: did you mean {meant}?"]


@pytest.mark.parametrize("name", ["LETTA_SERVER_PASSWORD", "LETTA_PG_URI", "LETTA_DEBUG", "OTEL_LETTA_LIVE"])
def test_variables_of_the_letta_server_and_of_ours(name: str, lines: Any) -> None:
    Settings.resolve(environ={name: "x"}, agent_id="agent-1")
    assert lines() == []


def test_a_variable_of_ours_that_resembles_none(lines: Any) -> None:
    Settings.resolve(environ={"OTEL_LETTA_XYZZY": "x"}, agent_id="agent-1")
    (line,) = lines()
    assert "OTEL_LETTA_XYZZY in the environment is none that is read: 'otel-letta check --all' lists those" in line


# -- nobody shuts it down ----------------------------------------------------------------------------------------------


PROGRAM = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from otel_letta import LettaSpanExporter, LettaSpanProcessor
exporter = LettaSpanExporter()
provider = TracerProvider(shutdown_on_exit={shutdown_on_exit})
provider.add_span_processor({processor})
with provider.get_tracer("app").start_as_current_span("Import", attributes={{"letta.chat.id": "chat-1"}}):
    pass
{end}
"""


@pytest.mark.parametrize(
    ("shutdown_on_exit", "processor", "end", "warned", "told"),
    [
        (True, "BatchSpanProcessor(exporter)", "", False, True),
        (False, "BatchSpanProcessor(exporter)", "provider.shutdown()", False, True),
        (False, "SimpleSpanProcessor(exporter)", "exporter.force_flush()", False, True),
        (False, "SimpleSpanProcessor(exporter)", "", True, True),
        (False, "BatchSpanProcessor(exporter)", "", True, False),
        (True, "LettaSpanProcessor()", "", False, True),
    ],
)
def test_a_component_at_the_end_of_a_program(
    shutdown_on_exit: bool,
    processor: str,
    end: str,
    warned: bool,
    told: bool,
    letta: InMemoryLetta,
    agent: str,
    tmp_path: Path,
) -> None:
    """Takes some seconds: six programs that start and end."""
    (tmp_path / ".env").write_text(f"LETTA_BASE_URL={letta.base_url}\nLETTA_AGENT_ID={agent}\n")
    program = PROGRAM.format(shutdown_on_exit=shutdown_on_exit, processor=processor, end=end)
    if "LettaSpanProcessor()" in processor:
        program = program.replace("exporter = LettaSpanExporter()", "")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert ("call provider.shutdown() at the end" in done.stderr) is warned, done.stderr
    assert [report["status"] for report in letta.reports(agent)] == (["completed"] if told else [])


def test_every_variable_that_the_code_names_is_known_so_that_none_is_called_a_mistake() -> None:
    package = Path(sources.__file__).parents[1]
    named = {
        name
        for path in package.rglob("*.py")
        for name in re.findall(r"[\"'](OTEL_LETTA_[A-Z_]*[A-Z])[\"']", path.read_text(encoding="utf-8"))
    }
    assert named - {"OTEL_LETTA_URL"} <= sources.KNOWN_VARIABLES


def test_a_program_with_logs_alone_is_shut_down_by_its_logger_provider(
    agent: str, letta: InMemoryLetta, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"LETTA_BASE_URL={letta.base_url}\nLETTA_AGENT_ID={agent}\n")
    program = """
from opentelemetry.sdk._logs import LoggerProvider
from otel_letta import LettaLogRecordProcessor
provider = LoggerProvider()
provider.add_log_record_processor(LettaLogRecordProcessor())
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
